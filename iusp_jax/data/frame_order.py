"""Whether a teacher's frames are in order of time: compared with the log-mel.

Nothing in an array of frames says which axis is time and which way it runs.
But frames follow the sound: how they change over a clip is more like how its
log-mel changes in the right order than in any other.
"""

from typing import NamedTuple

import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.data import datasets, foreign_outputs, sources
from iusp_jax.objectives import alignment, similarity

CLIPS = 64  # That are looked at, spread over the split.
_LEAST_FRAMES = 3  # Two frames are as alike in either order.


class Likeness(NamedTuple):
  """Linear CKA of frames and log-mel, one a clip: float64 `[N]`."""

  given: np.ndarray
  reversed: np.ndarray
  shuffled: np.ndarray

  def problem(self) -> str:
    """What is wrong with the order; empty where it is clearly the best."""
    if all(_is_less(x, self.given) for x in (self.reversed, self.shuffled)):
      return ''
    values = ', '.join(
      f'{name} {x.mean():.3f}' for name, x in self._asdict().items()
    )
    return (
      f'over {len(self.given)} clips the frames change as the log-mel does no '
      f'more in the given order than in another (linear CKA: {values})'
    )


def _is_less(other_N: np.ndarray, given_N: np.ndarray) -> bool:
  """Whether the mean is, by more than two standard errors."""
  more_N = given_N - other_N
  return more_N.mean() > 2 * more_N.std() / np.sqrt(len(more_N))


def compare(
  teacher: foreign_outputs.Foreign, split: datasets.Split, sample_rate: int
) -> Likeness | None:
  """Frames of some clips in three orders, each beside the log-mel.

  None where there is nothing to compare: too few frames in a clip.

  Args:
    teacher: whose frames to look at.
    split: of the data set.
    sample_rate: of its clips, Hz.

  Raises:
    ValueError: where clips are missing, or numbers are not finite.
  """
  timing = teacher.contents.timing
  assert timing is not None
  count = min(CLIPS, len(split))
  config = frontend.FrontendConfig(
    sample_rate=sample_rate,
    max_hertz=min(frontend.FrontendConfig.max_hertz, sample_rate / 2),
  )
  clips = np.linspace(0, len(split) - 1, count).astype(int)
  rows_N = teacher.rows(split, clips.tolist())
  found = []
  for clip, row in zip(clips, rows_N, strict=True):
    read = teacher.read(split.name, np.array([row]), ['frames'])
    example = datasets.read_clip(split, int(clip))
    num_frames = read.get('num_frames', [read['frames'].shape[1]])[0]
    frames_TD = read['frames'][0, : int(num_frames)]
    found.append(_of_clip(frames_TD, timing, example, config))
  good = [of for of in found if of is not None]
  return Likeness(*np.array(good).T) if good else None


def _of_clip(
  frames_TD, timing, example, config: frontend.FrontendConfig
) -> tuple[float, float, float] | None:
  """Linear CKA as given, reversed and shuffled, of the recording's frames."""
  mel_TF = np.asarray(
    sources.compile_log_mel(config)(example['wave'][None])[0], np.float64
  )
  hop = config.hop_samples / config.sample_rate
  window = config.window_samples / config.sample_rate
  own = alignment.Timing(hop, hop, window / 2)
  aligned = alignment.align(
    alignment.Timings(own, timing), len(mel_TF), len(frames_TD)
  )
  if aligned is not None:
    if aligned.student is not None:
      mel_TF = aligned.student @ mel_TF
    if aligned.teacher is not None:
      frames_TD = aligned.teacher @ frames_TD
    seconds = example['length'] / config.sample_rate
    kept_T = (aligned.covered_T > 0) & (aligned.starts_T < seconds)
    mel_TF, frames_TD = mel_TF[kept_T], frames_TD[kept_T]
  if len(mel_TF) < _LEAST_FRAMES:
    return None
  frames_TD = frames_TD.astype(np.float64)
  mel_TT, frames_TT = mel_TF @ mel_TF.T, frames_TD @ frames_TD.T
  order = np.random.default_rng(0).permutation(len(mel_TF))
  return (
    similarity.linear_cka(mel_TT, frames_TT),
    similarity.linear_cka(mel_TT, frames_TT[::-1, ::-1]),
    similarity.linear_cka(mel_TT, frames_TT[order][:, order]),
  )
