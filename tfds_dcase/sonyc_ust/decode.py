"""One recording's bytes into 16-kHz int16, or a reason why not."""

from typing import NamedTuple

import numpy as np

from tfds_dcase import audio

BadRecordingError = audio.BadRecordingError

SAMPLE_RATE = audio.SAMPLE_RATE
SECONDS = 10
NUM_SAMPLES = SECONDS * SAMPLE_RATE


class Clip(NamedTuple):
  """A decoded recording.

  Attributes:
    audio_S: int16 [160000], zero after the recording's end.
    num_samples: samples of real sound.
    notes: what was done to the recording, see `audio.read`.
  """

  audio_S: np.ndarray
  num_samples: int
  notes: tuple[str, ...] = ()


def decode(data: bytes | None, tolerance_seconds: float = 0.5) -> Clip:
  """Decodes, mixes down, resamples to 16 kHz, and pads or cuts to 10 s.

  Args:
    data: a sound file's bytes; None stands for one too large to be read.
    tolerance_seconds: how far from 10 s a recording may be.

  Returns:
    The clip; a silent one is a clip, as it was tagged. soundfile and soxr
    release Python's lock: threads decode in parallel.

  Raises:
    BadRecordingError: empty, too large, not 10 s, or as in `audio.read`.
  """
  if data is None:
    raise BadRecordingError('', 'too large for a recording of 10 s')
  if not data:
    raise BadRecordingError('', 'an empty file')
  notes: list[str] = []
  most = SECONDS + tolerance_seconds + 1  # what is longer is no clip
  wave_S = audio.read(
    data, SAMPLE_RATE, min_seconds=0, max_seconds=most, notes=notes
  )
  seconds = len(wave_S) / SAMPLE_RATE
  if not abs(seconds - SECONDS) <= tolerance_seconds:
    over = 'over ' if seconds > most - 0.01 else ''
    raise BadRecordingError(
      '',
      f'{over}{seconds:.3f} s long, expected {SECONDS} s +- '
      f'{tolerance_seconds:g} s',
    )
  audio_S, num_samples = audio.fit_length(audio.to_int16(wave_S), NUM_SAMPLES)
  return Clip(audio_S, num_samples, tuple(notes))
