"""Reads any sound file to mono float32 at one sample rate; no jax here.

Units: waves are float32 in [-1, 1], one axis of samples; lengths are samples
unless a name says seconds.
"""

import os

import numpy as np
import soundfile
import soxr

SAMPLE_RATE = 16000
# For telling recordings from the other files of a folder; `read` itself goes
# by content. The formats of libsndfile but for header-less ones and .mat, which
# is rarely a sound. The last four cannot be decoded here: they are listed so
# that such files are refused by name instead of being passed over.
EXTENSIONS = (
  '.8svx', '.aif', '.aifc', '.aiff', '.au', '.avr', '.caf', '.flac', '.htk',
  '.iff', '.ircam', '.mp2', '.mp3', '.nist', '.oga', '.ogg', '.opus', '.paf',
  '.pvf', '.rf64', '.sd2', '.sds', '.sf', '.snd', '.sph', '.svx', '.voc',
  '.w64', '.wav', '.wave', '.wve', '.xi',
  '.aac', '.amr', '.m4a', '.wma',
)  # fmt: skip
ON_BAD_RECORDING = ('stop', 'skip')
_BLOCK = 1 << 20  # frames decoded at once: bounds memory for long files


def read(
  path,
  sample_rate: int = SAMPLE_RATE,
  min_seconds: float = 0.02,
  max_seconds: float | None = None,
) -> np.ndarray:
  """Decodes a sound file: channels averaged, resampled (soxr, high quality).

  Args:
    path: any file that libsndfile reads (WAV of 8 to 64 bit, FLAC, Ogg, MP3,
      AIFF, ...), of any sample rate and number of channels.
    sample_rate: of the result, in Hz.
    min_seconds: a shorter recording is an error; the default is less than one
      analysis window.
    max_seconds: what comes later is not even decoded; None reads everything.

  Returns:
    float32 [S].

  Raises:
    ValueError: naming the file, if it is missing, not a readable sound file,
      empty, shorter than `min_seconds` or holds NaN or infinity.
  """
  path = os.fspath(path)
  wave_S, rate = _decode(path, max_seconds)
  if len(wave_S) == 0:
    raise ValueError(f'{path}: holds no samples; record it anew or remove it')
  if len(wave_S) < min_seconds * rate:
    raise ValueError(
      f'{path}: {len(wave_S) / rate:.4f} s long, at least {min_seconds} s '
      'needed; remove it or lower min_seconds'
    )
  if not np.isfinite(wave_S).all():
    bad = int((~np.isfinite(wave_S)).sum())
    raise ValueError(
      f'{path}: {bad} of {len(wave_S)} samples are NaN or infinite; '
      'export it again'
    )
  if rate != sample_rate:
    wave_S = soxr.resample(wave_S, rate, sample_rate, quality='HQ')
  return np.ascontiguousarray(wave_S, np.float32)


def _decode(path: str, max_seconds) -> tuple[np.ndarray, int]:
  """Mono samples at the file's own rate, and that rate."""
  if not os.path.isfile(path):
    what = 'is a folder' if os.path.isdir(path) else 'no such file'
    raise ValueError(f'{path}: {what}; give the path of one sound file')
  try:
    with soundfile.SoundFile(path) as file:
      rate = file.samplerate
      frames = -1 if max_seconds is None else int(np.ceil(max_seconds * rate))
      blocks = [
        block.mean(axis=1, dtype=np.float32)
        for block in file.blocks(
          _BLOCK, frames=frames, dtype='float32', always_2d=True
        )
      ]
  except (soundfile.SoundFileError, RuntimeError) as error:
    raise ValueError(
      f'{path} ({os.path.getsize(path)} bytes): not a sound file that can be '
      f'read ({error}); use WAV, FLAC, Ogg, MP3 or AIFF'
    ) from error
  if not blocks:
    return np.zeros(0, np.float32), rate
  return np.concatenate(blocks), rate


def is_silent(wave_S) -> bool:
  """Whether nothing but silence (or a constant) is left in 16 bits."""
  return len(wave_S) == 0 or float(np.ptp(wave_S)) < 1 / 32768


def read_usable(
  path, problems: list[str], on_bad_recording: str = 'stop', **options
) -> np.ndarray | None:
  """`read`, but a recording that is bad or silent stops or is reported.

  Args:
    path: as in `read`.
    problems: one line is appended for each recording that is skipped.
    on_bad_recording: 'stop' raises for the first one, 'skip' goes on.
    **options: of `read`.

  Returns:
    float32 [S], or None for a recording to be skipped.

  Raises:
    ValueError: for a bad recording with 'stop', or an unknown setting.
  """
  check_on_bad_recording(on_bad_recording)
  try:
    wave_S = read(path, **options)
    if is_silent(wave_S):
      raise ValueError(f'{os.fspath(path)}: every sample is silent')
  except ValueError as error:
    if on_bad_recording == 'stop':
      raise ValueError(
        f"{error}. on_bad_recording='skip' leaves such recordings out"
      ) from error
    problems.append(str(error))
    return None
  return wave_S


def check_on_bad_recording(value: str) -> None:
  """Refuses anything but 'stop' and 'skip'."""
  if value not in ON_BAD_RECORDING:
    raise ValueError(
      f'on_bad_recording={value!r}: must be one of {ON_BAD_RECORDING}'
    )


def summarise_problems(problems: list[str], total: int, limit: int = 10) -> str:
  """One message on the recordings left out, at most `limit` lines of them."""
  if not problems:
    return f'all {total} recordings are usable'
  lines = [f'{len(problems)} of {total} recordings left out:']
  lines += [f'  {line}' for line in problems[:limit]]
  if len(problems) > limit:
    lines.append(f'  ... and {len(problems) - limit} more')
  return '\n'.join(lines)


def to_int16(wave_S) -> np.ndarray:
  """float [-1, 1] to int16 by rounding x * 32768; what lies beyond is cut."""
  scaled = np.rint(np.asarray(wave_S, np.float32) * 32768)
  return np.clip(scaled, -32768, 32767).astype(np.int16)


def fit_length(wave_S, num_samples: int) -> tuple[np.ndarray, int]:
  """Cuts, or pads with zeros, to `num_samples`.

  Args:
    wave_S: any dtype. [S]
    num_samples: of the result.

  Returns:
    The wave [num_samples] of the same dtype, and how many of its samples are
    real sound.
  """
  wave_S = np.asarray(wave_S)[:num_samples]
  true_length = len(wave_S)
  return np.pad(wave_S, (0, num_samples - true_length)), true_length
