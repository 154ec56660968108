"""One recording's bytes into 16-kHz int16, or a reason why not."""

import io
import struct
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from tfds_dcase import audio

SAMPLE_RATE = audio.SAMPLE_RATE
SECONDS = 10
NUM_SAMPLES = SECONDS * SAMPLE_RATE


class BadRecordingError(ValueError):
  """A recording that cannot be used; the text says why."""


class Clip(NamedTuple):
  """A decoded recording.

  Attributes:
    audio_S: int16 [160000], zero after the recording's end.
    num_samples: samples of real sound.
  """

  audio_S: np.ndarray
  num_samples: int


def decode(data: bytes | None, tolerance_seconds: float = 0.5) -> Clip:
  """Decodes, mixes down, resamples to 16 kHz, and pads or cuts to 10 s.

  Args:
    data: a sound file's bytes; None stands for one too large to be read.
    tolerance_seconds: how far from 10 s a recording may be.

  Returns:
    The clip. soundfile and soxr release Python's lock: threads decode in
    parallel.

  Raises:
    BadRecordingError: empty, truncated, unreadable, too large, not 10 s, or not
      finite.
  """
  if data is None:
    raise BadRecordingError('too large for a recording of 10 s')
  if not data:
    raise BadRecordingError('an empty file')
  _check_riff(data)
  try:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
      rate = file.samplerate
      _check_length(file.frames / rate, rate, tolerance_seconds)
      samples_SH = file.read(dtype='float32', always_2d=True)
  except (soundfile.LibsndfileError, ValueError, ZeroDivisionError) as error:
    if isinstance(error, BadRecordingError):
      raise
    raise BadRecordingError(f'not a readable sound file ({error})') from error
  _check_length(len(samples_SH) / rate, rate, tolerance_seconds)
  if not np.isfinite(samples_SH).all():
    raise BadRecordingError('samples that are not finite')
  # The mean over one channel would take as long as the resampling.
  mono_S = samples_SH[:, 0]
  if samples_SH.shape[1] > 1:
    mono_S = samples_SH.mean(axis=1, dtype=np.float32)
  if rate != SAMPLE_RATE:
    mono_S = soxr.resample(mono_S, rate, SAMPLE_RATE, quality='HQ')
  return Clip(*audio.fit_length(audio.to_int16(mono_S), NUM_SAMPLES))


def _check_length(seconds, rate, tolerance_seconds):
  if not abs(seconds - SECONDS) <= tolerance_seconds:
    raise BadRecordingError(
      f'{seconds:.3f} s long at {rate} Hz, expected {SECONDS} s +- '
      f'{tolerance_seconds:g} s'
    )


def _check_riff(data):
  """libsndfile reads what is there of a cut file: compare with its header."""
  if data[:4] != b'RIFF' or len(data) < 12:
    return
  (promised,) = struct.unpack('<I', data[4:8])
  # 0 and the maximum are what programs write that did not know the length.
  if promised not in (0, 0xFFFFFFFF) and len(data) < promised + 8:
    raise BadRecordingError(
      f'truncated: {len(data)} bytes, its header promises {promised + 8}'
    )
