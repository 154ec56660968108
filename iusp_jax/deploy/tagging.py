"""Tags recordings of any length with a trained model.

A recording is cut into windows as long as the clips that the model was trained
on, each half a window after the last one; the last window ends where the
recording ends. A shorter recording is padded with zeros, as in training. A
tag's probability in the recording is the highest of its windows: the tag is
there if it is in some window. Every time between two windows belongs to the
one whose middle is nearer, which gives each frame one probability.

Windows start at multiples of the time between frames, so that all frames lie
on one grid; up to one such time of zeros follows the recording's end.

Waves are read as int16, as in training. Memory does not depend on the length
of a recording but for its results.
"""

import dataclasses
import functools
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import soundfile

from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files
from iusp_jax.scoring import calibration
from tfds_dcase import audio

_BATCH = 8  # Windows at a time.


class Window(NamedTuple):
  """A part of a recording.

  Attributes:
    start: its first sample.
    wave_S: int16, as long as a clip; zeros past the end of the recording.
  """

  start: int
  wave_S: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tagging:
  """What a model says of a recording.

  Attributes:
    names: of the tags, C of them.
    seconds: length of what was tagged.
    start_seconds: where that begins in the recording.
    probabilities_C: calibrated, of the recording: the maxima over windows.
    thresholds_C: from which on a tag counts as present.
    window_starts_W: of each window, seconds from `start_seconds`.
    windows_WC: calibrated probabilities of each window.
    window_seconds: length of a window.
    frame_seconds: from one frame to the next; frame j covers the time from
      j * frame_seconds on.
    frames_TC: calibrated probabilities of each frame; None where they were not
      asked for.
    embeddings_TD: the frame embeddings; None where they were not asked for.
    notes: what the reader did to the recording, and what a user should know.
  """

  names: tuple[str, ...]
  seconds: float
  start_seconds: float
  probabilities_C: np.ndarray
  thresholds_C: np.ndarray
  window_starts_W: np.ndarray
  windows_WC: np.ndarray
  window_seconds: float
  frame_seconds: float
  frames_TC: np.ndarray | None
  embeddings_TD: np.ndarray | None
  notes: tuple[str, ...]

  @property
  def probabilities(self) -> dict[str, float]:
    """By the tag's name, highest first."""
    order = np.argsort(-self.probabilities_C, kind='stable')
    return {self.names[c]: float(self.probabilities_C[c]) for c in order}

  @property
  def present(self) -> list[str]:
    """The tags at or above their thresholds, most probable first."""
    return present_tags(self.names, self.probabilities_C, self.thresholds_C)


def present_tags(
  names: Sequence[str], probabilities_C, thresholds_C, top_k: int = 0
) -> list[str]:
  """The tags at or above their thresholds, most probable first.

  Args:
    names: of the tags.
    probabilities_C: of one recording, window or frame.
    thresholds_C: of the tags.
    top_k: where it is not 0, so many tags whatever the thresholds.
  """
  order: list[int] = np.argsort(-probabilities_C, kind='stable').tolist()
  if top_k:
    return [names[c] for c in order[:top_k]]
  return [names[c] for c in order if probabilities_C[c] >= thresholds_C[c]]


class LoadedTagger:
  """A trained model, ready to tag.

    tagger = iusp_jax.load('runs/iusp-demo')
    found = tagger(waveform, sample_rate)
    found.present, found.probabilities, found.frames_TC

  Attributes:
    trained: model, variables and metadata.
    calibration: temperatures and thresholds.
    names: of the tags.
  """

  def __init__(self, found: trained.Trained, own: calibration.Calibration):
    self.trained, self.calibration = found, own
    self.names = tuple(found.metadata['tags'])
    self._grid = Grid.of(found.model, found.metadata['num_samples'])

  @property
  def sample_rate(self) -> int:
    """Of the model's front end, in Hz."""
    return self.trained.model.frontend.sample_rate

  @property
  def window_seconds(self) -> float:
    """Length of the clips that the model was trained on."""
    return self._grid.size / self.sample_rate

  def __call__(
    self, waveform, sample_rate: int, frames: bool = True
  ) -> Tagging:
    """Tags a waveform, read as a sound file with it would be.

    Args:
      waveform: float in [-1, 1], int16 or int32; [S], or [S, channels].
      sample_rate: in Hz; any, it is resampled.
      frames: whether to give the probabilities of frames.

    Raises:
      ValueError: for a waveform of another type or shape, with NaN, or shorter
        than a frame.
    """
    return self.tag(_as_file(waveform, sample_rate), frames=frames)

  def tag(
    self,
    source,
    start_seconds: float = 0.0,
    seconds: float | None = None,
    frames: bool = False,
    embeddings: bool = False,
  ) -> Tagging:
    """Tags a sound file.

    Args:
      source: path, or the bytes, of any file that `audio.read` reads.
      start_seconds: where to begin.
      seconds: how much to tag; None for all that follows.
      frames: whether to give the probabilities of frames.
      embeddings: whether to give the frame embeddings.

    Raises:
      BadRecordingError: (a ValueError) naming the file and what is wrong.
    """
    notes: list[str] = []
    rate, grid = self.sample_rate, self._grid
    blocks = audio.blocks(source, rate, notes=notes)
    part = _Section(blocks, round(start_seconds * rate), seconds, rate)
    starts, logits, parts = [], [], []
    run = _compile(self.trained.model)
    for window, found in _run(run, self.trained.variables, grid.windows(part)):
      starts.append(window.start)
      logits.append(found.logits_BC)
      if frames or embeddings:
        parts.append((found.frame_logits_BTC, found.frames_BTD))
    if not starts:
      name = os.fspath(source) if isinstance(source, str | os.PathLike) else ''
      raise audio.BadRecordingError(
        name,
        f'ends after {part.seen / rate:.2f} s, and --start={start_seconds}: '
        'expected less',
      )
    if part.is_silent:
      notes.append('every sample is silent')
    joined = grid.join_frames(starts, parts, part.taken) if parts else None
    own = self.calibration
    windows_WC = own.probabilities(np.stack(logits))
    return Tagging(
      names=self.names,
      seconds=part.taken / rate,
      start_seconds=start_seconds,
      probabilities_C=windows_WC.max(axis=0),
      thresholds_C=own.thresholds_C,
      window_starts_W=np.array(starts) / rate,
      windows_WC=windows_WC,
      window_seconds=self.window_seconds,
      frame_seconds=grid.step / rate,
      frames_TC=own.probabilities(joined[0]) if joined and frames else None,
      embeddings_TD=joined[1] if joined and embeddings else None,
      notes=tuple(notes),
    )

  def log_mel(
    self, source, start_seconds: float = 0.0, seconds: float | None = None
  ) -> np.ndarray:
    """The log-mel [T, F] of a part of a recording, for a plot of it."""
    rate = self.sample_rate
    blocks = audio.blocks(source, rate)
    part = _Section(blocks, round(start_seconds * rate), seconds, rate)
    wave_S = np.concatenate([audio.to_int16(block_S) for block_S in part])
    cfg = self.trained.model.frontend
    short = max(0, cfg.window_samples - len(wave_S))
    wave_S = np.pad(wave_S, (0, short))
    wave_BS = jnp.asarray(wave_S)[None]
    return np.asarray(tagger.log_mel(self.trained.model, wave_BS))[0]


def load(folder: str | os.PathLike, which: str = 'best') -> LoadedTagger:
  """The tagger that a run trained, ready to tag.

  Args:
    folder: workdir of a finished run.
    which: checkpoint, 'best' by validation or 'last'.

  Raises:
    ValueError: where there is no trained model, its files do not agree, or it
      is of another version of this program.
  """
  path = pathlib.Path(files.resolve(os.fspath(folder)))
  try:
    found = trained.load(path, which)
    own = calibration.load(path, found.metadata['tags'])
    return LoadedTagger(found, own)
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'{path / trained.METADATA} is of another version of this program or '
      f'damaged ({type(error).__name__}: {error}): train the model again'
    ) from error


@dataclasses.dataclass(frozen=True)
class Grid:
  """Where the windows and frames of a recording lie, in samples.

  Attributes:
    size: of a window.
    step: from a frame to the next.
  """

  size: int
  step: int

  @classmethod
  def of(cls, model: tagger.Tagger, num_samples: int) -> 'Grid':
    """The grid of a model trained on clips of `num_samples`."""
    step = tagger.frame_reduction(model) * model.frontend.hop_samples
    return cls(num_samples, step)

  @property
  def hop(self) -> int:
    """From a window to the next: half a window, on the frames' grid."""
    return max(1, self.size // 2 // self.step) * self.step

  def windows(self, blocks: Iterable[np.ndarray]) -> Iterator[Window]:
    """The windows of a recording.

    Args:
      blocks: its samples in parts of any lengths, int16 or float [S].
    """
    base, hop = 0, 0  # Of the last window; from it to the next.
    waiting_S = np.zeros(0, np.int16)
    for block_S in blocks:
      if block_S.dtype != np.int16:
        block_S = audio.to_int16(block_S)
      waiting_S = np.concatenate([waiting_S, block_S])
      while len(waiting_S) > hop + self.size:
        waiting_S, base = waiting_S[hop:], base + hop
        yield Window(base, waiting_S[: self.size])
        hop = self.hop
    if len(waiting_S):
      late = max(0, len(waiting_S) - self.size)
      late = -(-late // self.step) * self.step
      wave_S, _ = audio.fit_length(waiting_S[late:], self.size)
      yield Window(base + late, wave_S)

  def join_frames(
    self,
    starts: Sequence[int],
    parts: Sequence[Sequence[np.ndarray]],
    num_samples: int,
  ) -> list[np.ndarray]:
    """Frames of the recording from those of its windows.

    Args:
      starts: first samples of the windows.
      parts: for each window some arrays [T', …] of its frames.
      num_samples: of the recording.

    Returns:
      Each array for the whole recording, [T, …].
    """
    whole = -(-num_samples // self.step)
    middles = [
      (start + following + self.size) // 2 // self.step
      for start, following in itertools.pairwise(starts)
    ]
    bounds = [0, *middles, whole]
    found = []
    for arrays in zip(*parts, strict=True):
      pieces = [
        array[first - start // self.step : last - start // self.step]
        for array, start, first, last in zip(
          arrays, starts, bounds[:-1], bounds[1:], strict=True
        )
      ]
      found.append(np.concatenate(pieces))
    return found


class _Section:
  """A part of the blocks of a recording, and what was seen of it.

  Attributes:
    seen: samples of the recording that came.
    taken: of these, how many are in the section.
    is_silent: whether all of them are equal.
  """

  def __init__(self, blocks, first: int, seconds: float | None, rate: int):
    self._blocks, self._first = blocks, first
    self._last = None if seconds is None else first + round(seconds * rate)
    self.seen = self.taken = 0
    self._extremes: set[float] = set()

  @property
  def is_silent(self) -> bool:
    return audio.is_silent(np.array(sorted(self._extremes)))

  def __iter__(self) -> Iterator[np.ndarray]:
    for block_S in self._blocks:
      own_S = block_S[max(0, self._first - self.seen) :]
      if self._last is not None:
        start = max(self._first, self.seen)
        own_S = own_S[: max(0, self._last - start)]
      self.seen += len(block_S)
      if len(own_S):
        self.taken += len(own_S)
        ends = {*self._extremes, float(own_S.min()), float(own_S.max())}
        self._extremes = {min(ends), max(ends)}
        yield own_S
      if self._last is not None and self.seen >= self._last:
        return


@functools.cache
def _compile(model: tagger.Tagger) -> Callable:
  """A compiled function of variables and waves [B, S]: a `TaggerOutput`."""

  def run(variables, wave_BS):
    return tagger.apply(model, variables, tagger.log_mel(model, wave_BS))

  return jax.jit(run)


def _run(
  run: Callable, variables: Mapping[str, Any], windows: Iterable[Window]
) -> Iterator[tuple[Window, Any]]:
  """Each window with its own output, computed in batches of two sizes."""
  waiting: list[Window] = []

  def flush(count):
    wave_BS = np.stack([window.wave_S for window in waiting[:count]])
    found = jax.device_get(run(variables, wave_BS))
    for i, window in enumerate(waiting[:count]):
      yield window, jax.tree.map(lambda x, i=i: x[i], found)
    del waiting[:count]

  for window in windows:
    waiting.append(window)
    if len(waiting) == _BATCH:
      yield from flush(_BATCH)
  while waiting:
    yield from flush(1)


def _as_file(waveform, sample_rate: int) -> bytes:
  """A waveform as the bytes of a sound file: one reader, one rule for all."""
  wave = np.asarray(waveform)
  kinds = {
    'float32': 'FLOAT',
    'float64': 'DOUBLE',
    'int16': 'PCM_16',
    'int32': 'PCM_32',
  }
  if wave.dtype.name not in kinds or wave.ndim not in (1, 2):
    raise ValueError(
      f'waveform is {wave.dtype} of shape {wave.shape}: expected float in '
      '[-1, 1], int16 or int32, [samples] or [samples, channels]'
    )
  if wave.ndim == 2 and wave.shape[1] > max(64, wave.shape[0]):
    raise ValueError(
      f'waveform has shape {wave.shape}, that is {wave.shape[1]} channels: '
      'expected [samples, channels]; transpose it'
    )
  if not len(wave):
    raise ValueError('waveform has no samples: expected at least one frame')
  if int(sample_rate) != sample_rate or sample_rate < 1:
    raise ValueError(
      f'sample_rate is {sample_rate!r}: expected samples a second, a whole '
      'number'
    )
  content = io.BytesIO()
  soundfile.write(
    content,
    wave,
    int(sample_rate),
    subtype=kinds[wave.dtype.name],
    format='RF64' if wave.nbytes > 1 << 31 else 'WAV',
  )
  return content.getvalue()
