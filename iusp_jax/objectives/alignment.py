"""Frames of two models side by side, by the time that they cover.

Models of one front end cut a clip into equal parts, and frames of the same
number belong together. A teacher from elsewhere may have frames of any length,
overlapping ones too, that begin anywhere: its frame 7 is not the student's
frame 7, nor the mean of the student's frames 28 to 31.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

# Of the hop: frames that differ by less in time are taken as the same.
_SAME = 0.1


@dataclasses.dataclass(frozen=True)
class Timing:
  """When the frames of a model are.

  Attributes:
    hop_seconds: from the centre of a frame to that of the next.
    span_seconds: the stretch of sound that one frame covers.
    first_seconds: the centre of frame 0, from the start of the clip.
  """

  hop_seconds: float
  span_seconds: float
  first_seconds: float

  def centres(self, num_frames: int) -> np.ndarray:
    """Of frames, in seconds: float64 `[T]`."""
    return self.first_seconds + self.hop_seconds * np.arange(num_frames)

  def edges(self, num_frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the spans of frames begin and end, in seconds: float64 `[T]`."""
    centre_T = self.centres(num_frames)
    return centre_T - self.span_seconds / 2, centre_T + self.span_seconds / 2


class Timings(NamedTuple):
  """Of a student and of its teacher."""

  student: Timing
  teacher: Timing


@dataclasses.dataclass(frozen=True)
class Alignment:
  """What brings the frames of student and teacher to T common frames.

  Attributes:
    student: float32 `[T, T_student]`, rows of shares; None: as they are.
    teacher: float32 `[T, T_teacher]`, rows of shares; None: as they are.
    starts_T: where the spans of the common frames begin, seconds.
    covered_T: 1 where both models have something, 0 where one has not.
  """

  student: np.ndarray | None
  teacher: np.ndarray | None
  starts_T: np.ndarray
  covered_T: np.ndarray


def pooling_by_time(
  fine: Timing, num_fine: int, coarse: Timing, num_coarse: int
) -> np.ndarray:
  """Averages the frames of one model over the spans of another's.

  A finer frame stands for the hop around its centre, so that overlapping ones
  do not blur the average more than they do already.

  Args:
    fine: of the model whose frames are averaged.
    num_fine: its frames.
    coarse: of the other model.
    num_coarse: its frames.

  Returns:
    float32 `[num_coarse, num_fine]`: each row has the share of every finer
    frame in a span and sums to 1, or is 0 where there is none in it.
  """
  start_T, end_T = (edge[:, None] for edge in coarse.edges(num_coarse))
  cells = dataclasses.replace(fine, span_seconds=fine.hop_seconds)
  first_U, last_U = (edge[None] for edge in cells.edges(num_fine))
  shared = np.minimum(end_T, last_U) - np.maximum(start_T, first_U)
  # Rounding of seconds is no overlap.
  shared = np.where(shared > 1e-6 * fine.hop_seconds, shared, 0.0)
  total_T = shared.sum(1, keepdims=True)
  return (shared / np.where(total_T > 0, total_T, 1.0)).astype(np.float32)


def align(
  timings: Timings, num_student: int, num_teacher: int
) -> Alignment | None:
  """How to bring the frames of two models to common ones.

  The finer model's, by the hop, are averaged over the spans of the coarser's.

  Args:
    timings: of both.
    num_student: frames of the student.
    num_teacher: frames of the teacher.

  Returns:
    None where frames of the same number cover the same time: nothing is to do.
  """
  if num_student == num_teacher and _same(*timings, num_student):
    return None
  counts = num_student, num_teacher
  # Of equal hops the longer spans are the coarser.
  sizes = [(t.hop_seconds, t.span_seconds) for t in timings]
  coarse = int(sizes[1] >= sizes[0])
  fine = 1 - coarse
  pool = pooling_by_time(
    timings[fine], counts[fine], timings[coarse], counts[coarse]
  )
  return Alignment(
    student=pool if fine == 0 else None,
    teacher=pool if fine == 1 else None,
    starts_T=timings[coarse].edges(counts[coarse])[0],
    covered_T=(pool.sum(1) > 0).astype(np.float32),
  )


def _same(one: Timing, other: Timing, num_frames: int) -> bool:
  """Whether all frames cover the same time, up to `_SAME`."""
  differing = [
    np.abs(own_T - other_T).max()
    for own_T, other_T in zip(
      one.edges(num_frames), other.edges(num_frames), strict=True
    )
  ]
  return max(differing) <= _SAME * min(one.hop_seconds, other.hop_seconds)
