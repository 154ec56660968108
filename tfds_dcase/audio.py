"""Reads any sound file to mono float32 at one sample rate; no jax here.

One reader with one rule for all who need sound: the builders, scoring and
tagging. A recording is read as its file holds it, but for what would spoil it:

- channels are averaged; where their mix is more than 20 dB below the loudest
  channel, they cancel each other out, and that channel is taken;
- a constant offset above a tenth of the sound's effective value is removed;
- a peak above full scale, up to 4, is scaled down to full scale.

Each of these is noted. A file that ends before the length its header gives,
holds NaN or is scaled like integers (a peak above 4) is a bad recording, and
the error says why.

Units: waves are float32 in [-1, 1], one axis of samples; lengths are samples
unless a name says seconds.
"""

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import soundfile
import soxr

from tfds_dcase import files, interrupt, mpeg, sound_header

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
MIN_SECONDS = 0.02  # less than one analysis window
MAX_PEAK = 4.0  # of float samples; beyond it they were meant as integers
_BLOCK = 1 << 20  # samples decoded at once: bounds memory for long files
_HELD = 1 << 24  # samples kept while a recording is measured
_RATES = (1_000, 1_000_000)  # Hz; what lies beyond is a damaged header
_CANCELLED = 0.01  # -20 dB, of power
_OFFSET = 0.1  # of the effective value
_OVER = 1.001  # a peak that is as good as full scale
# Samples of a coded block that a header may count though they are not there.
_SLACK = {'GSM610': 320, 'MPEG_LAYER_III': 1152, 'MPEG_LAYER_II': 1152}
_LOSSY = ('VORBIS', 'OPUS', 'MPEG')
_OVERSHOOT = 1.25  # 2 dB: not worth a note
# What libsndfile logs of formats whose headers are not read here: VOC, WVE.
_LOGGED_TRUNCATION = re.compile(r'truncated|Data length\D+\d+ should be \d+')
_EXACT = ('PCM', 'FLOAT', 'DOUBLE', 'ULAW', 'ALAW', 'VORBIS', 'OPUS', 'ALAC')


class BadRecordingError(ValueError):
  """A recording that cannot be used; the text names it and says why.

  Attributes:
    name: of the recording; '' for bytes without a name.
    reason: why it cannot be used.
  """

  def __init__(self, name: str, reason: str):
    """Both go into the text."""
    super().__init__(f'{name}: {reason}' if name else reason)
    self.name = name
    self.reason = reason


class _Sequential(soundfile.SoundFile):
  """A sound file that is read from start to end.

  soundfile seeks after every block of a file that it calls seekable, which
  costs time, makes MP3 decoders start anew and fails at the end of damaged
  files.
  """

  def seekable(self) -> bool:
    return False


class _Bytes(io.BytesIO):
  """Bytes as a file; a place before its start, of a damaged header, is none."""

  def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
    try:
      return super().seek(offset, whence)
    except (ValueError, OverflowError):
      return self.tell()


class _Joined(io.RawIOBase):
  """Some bytes, then a part of a file, as one file."""

  def __init__(self, head: bytes, file, start: int, end: int):
    self._head, self._file = head, file
    self._start, self._size = start, len(head) + end - start
    self._position = 0

  def seekable(self) -> bool:
    return True

  def readable(self) -> bool:
    return True

  def tell(self) -> int:
    return self._position

  def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
    base = (0, self._position, self._size)[whence]
    self._position = max(0, base + offset)
    return self._position

  def readinto(self, buffer) -> int:
    count = min(len(buffer), self._size - self._position)
    if count <= 0:
      return 0
    data = self._head[self._position : self._position + count]
    if not data:
      self._file.seek(self._start + self._position - len(self._head))
      data = self._file.read(count)
    buffer[: len(data)] = data
    self._position += len(data)
    return len(data)


class _Opened(NamedTuple):
  """A sound file that is ready to be decoded.

  Attributes:
    name: for messages.
    file: of libsndfile.
    frames: that it should deliver; None where nobody knows.
    notes: what a user should know.
  """

  name: str
  file: soundfile.SoundFile
  frames: int | None
  notes: list[str]

  @property
  def rate(self) -> int:
    """Sample rate in Hz."""
    return self.file.samplerate


class _Treatment(NamedTuple):
  """How the channels of a recording become one wave.

  Attributes:
    channel: that is taken; None for the mean.
    offset: that is taken off.
    gain: that is applied then.
  """

  channel: int | None
  offset: float
  gain: float

  def __call__(self, block_SH) -> np.ndarray:
    """The wave of a block. [S]"""
    if self.channel is not None:
      mono_S = block_SH[:, self.channel]
    elif block_SH.shape[1] == 1:  # a mean over it takes long
      mono_S = block_SH[:, 0]
    else:
      mono_S = block_SH.mean(axis=1, dtype=np.float32)
    if self.offset:
      mono_S = mono_S - np.float32(self.offset)
    if self.gain != 1:
      mono_S = mono_S * np.float32(self.gain)
    return np.ascontiguousarray(mono_S, np.float32)


class _Levels:
  """What is known of a recording's samples: of its channels and their mix."""

  def __init__(self, channels: int):
    columns = channels + (channels > 1)  # the mix comes last
    self.length = self.not_finite = 0
    self.low_H, self.high_H = np.full((2, columns), np.nan)
    self._sum_H, self._square_H = np.zeros((2, columns))

  def add(self, block_SH) -> None:
    """Counts a block in. [S, H]"""
    self.length += len(block_SH)
    bad_S = ~np.isfinite(block_SH).all(axis=1)
    if bad_S.any():
      self.not_finite += int(bad_S.sum())
      block_SH = block_SH[~bad_S]
    if not len(block_SH):
      return
    block_SH = block_SH.astype(np.float64)
    if block_SH.shape[1] > 1:
      mix_S1 = block_SH.mean(axis=1, keepdims=True)
      block_SH = np.concatenate([block_SH, mix_S1], axis=1)
    self.low_H = np.fmin(self.low_H, block_SH.min(axis=0))
    self.high_H = np.fmax(self.high_H, block_SH.max(axis=0))
    self._sum_H += block_SH.sum(axis=0)
    self._square_H += np.einsum('sh,sh->h', block_SH, block_SH)

  @property
  def mean_H(self) -> np.ndarray:
    """Constant offset of each column."""
    return self._sum_H / max(1, self.length)

  @property
  def power_H(self) -> np.ndarray:
    """Power of each column without its offset."""
    power_H = self._square_H / max(1, self.length) - np.square(self.mean_H)
    return np.maximum(power_H, 0)


def read(
  source,
  sample_rate: int = SAMPLE_RATE,
  min_seconds: float = MIN_SECONDS,
  max_seconds: float | None = None,
  notes: list[str] | None = None,
) -> np.ndarray:
  """Decodes a sound file to one wave, resampled (soxr, high quality).

  Args:
    source: path, or the bytes, of any file that libsndfile reads (WAV of 8 to
      64 bit, FLAC, Ogg, MP3, AIFF, ...), of any sample rate and number of
      channels.
    sample_rate: of the result, in Hz.
    min_seconds: a shorter recording is an error.
    max_seconds: what comes later is not even decoded; None reads everything.
    notes: what was done to the recording is appended, a phrase each.

  Returns:
    float32 [S].

  Raises:
    BadRecordingError: (a ValueError) naming the file, if it is missing, no
      regular file, not a readable sound file, shorter than its header says,
      empty, shorter than `min_seconds`, holds NaN or infinity, or is scaled
      like integers.
  """
  with _open(source) as opened:
    held = []
    levels, rate = _Levels(opened.file.channels), opened.rate
    limit = _limit(opened, max_seconds)
    keep = _most(opened, limit) * opened.file.channels <= _HELD
    for block_SH in _decode(opened, limit):
      levels.add(block_SH)
      if keep:
        held.append(block_SH)
    treat = _judge(opened, levels, min_seconds, notes)
  if keep:
    wave_S = np.concatenate([treat(block_SH) for block_SH in held])
  else:
    with _open(source) as opened:
      blocks = [treat(block_SH) for block_SH in _decode(opened, limit)]
      wave_S = np.concatenate(blocks)
  if rate != sample_rate:
    wave_S = soxr.resample(wave_S, rate, sample_rate, quality='HQ')
  return np.ascontiguousarray(wave_S, np.float32)


def blocks(
  source,
  sample_rate: int = SAMPLE_RATE,
  block_seconds: float = 10.0,
  min_seconds: float = MIN_SECONDS,
  notes: list[str] | None = None,
) -> Iterator[np.ndarray]:
  """`read`, block by block: the memory does not depend on the length.

  The file is decoded twice, as what is done to it depends on all of it; a bad
  recording is refused before the first block. The blocks, joined, are what
  `read` returns.

  Args:
    source: as in `read`.
    sample_rate: of the result, in Hz.
    block_seconds: length of every block but the last.
    min_seconds: as in `read`.
    notes: as in `read`.

  Yields:
    float32 [S].

  Raises:
    BadRecordingError: as in `read`.
  """
  with _open(source) as opened:
    levels = _Levels(opened.file.channels)
    for block_SH in _decode(opened, None):
      levels.add(block_SH)
    treat = _judge(opened, levels, min_seconds, notes)
  size = max(1, round(block_seconds * sample_rate))
  waiting_S = np.zeros(0, np.float32)
  with _open(source) as opened:
    for wave_S in _resampled(opened, treat, sample_rate):
      waiting_S = np.concatenate([waiting_S, wave_S])
      while len(waiting_S) > size:
        yield waiting_S[:size].copy()
        waiting_S = waiting_S[size:]
  if len(waiting_S):
    yield waiting_S


def _resampled(opened, treat, sample_rate) -> Iterator[np.ndarray]:
  """The blocks of a file as they are decoded, at another rate. [S]"""
  if opened.rate == sample_rate:
    yield from (treat(block_SH) for block_SH in _decode(opened, None))
    return
  resampler = soxr.ResampleStream(
    opened.rate, sample_rate, 1, dtype='float32', quality='HQ'
  )
  for block_SH in _decode(opened, None):
    yield resampler.resample_chunk(treat(block_SH))
  yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)


def _limit(opened, max_seconds) -> int | None:
  if max_seconds is None:
    return None
  return int(np.ceil(max_seconds * opened.rate))


def _most(opened, limit) -> int:
  """Frames that will be decoded at most."""
  frames = opened.file.frames if opened.frames is None else opened.frames
  return frames if limit is None else min(frames, limit)


@contextlib.contextmanager
def _open(source) -> Iterator[_Opened]:
  """Opens a path or bytes, its header compared with what is there."""
  if isinstance(source, bytes | bytearray | memoryview):
    with _opened('', _Bytes(source), len(source)) as opened:
      yield opened
    return
  name = os.fspath(source)
  reason = files.why_unusable(source)
  if reason is not None:
    if 'folder' in reason or 'no such file' in reason:
      reason += '; give the path of one sound file'
    raise BadRecordingError(name, reason)
  try:
    file = open(source, 'rb', buffering=0)  # noqa: SIM115
  except OSError as error:
    raise BadRecordingError(
      name, f'cannot be opened ({error.strerror})'
    ) from error
  with file, _opened(name, file, files.size(source)) as opened:
    yield opened


@contextlib.contextmanager
def _opened(name: str, file, size: int) -> Iterator[_Opened]:
  try:
    header = sound_header.look(file)
  except OSError as error:
    raise BadRecordingError(name, f'cannot be read ({error})') from error
  if header.problem:
    raise BadRecordingError(name, header.problem)
  target = _target(name, file, header.stream)
  try:
    sound = _Sequential(target, closefd=False)
  except (soundfile.SoundFileError, RuntimeError, ValueError) as error:
    why = _truncated(f'{header.found} bytes', f'{header.declared} bytes')
    if not header.is_truncated:
      because = header.note or _libsndfile(error)
      why = (
        f'({size} bytes) not a readable sound file ({because}); use '
        'WAV, FLAC, Ogg, MP3 or AIFF'
      )
    raise BadRecordingError(name, why) from error
  with sound:
    yield _with_length(name, sound, header)


def _target(name: str, file, stream: mpeg.Stream | None) -> Any:
  """What libsndfile is to open: the file itself, or a mended MP3."""
  if stream is not None and stream.first.family[1] == 3:
    counted = stream.exact and stream.declared is not None
    if not (counted and abs(stream.frames - (stream.declared or 0)) <= 1):
      head = mpeg.info_frame(stream)
      return io.BufferedReader(
        _Joined(head, file, stream.start, stream.end), 1 << 16
      )
  file.seek(0)
  if isinstance(file, io.BytesIO):
    return file
  if name.lower().endswith('.sd2'):  # has a second file beside it
    return os.fsencode(name)
  # Not the path: beside a file that macOS has left as ._NAME, libsndfile takes
  # an MP3 for another format, and it asks for the rate of what is called .raw.
  return file.fileno()


def _with_length(name: str, sound, header: sound_header.Header) -> _Opened:
  """Adds how long a file is, and refuses one that is truncated."""
  low, high = _RATES
  if not low <= sound.samplerate <= high:
    raise BadRecordingError(
      name,
      f'its header gives a sample rate of {sound.samplerate} Hz, expected '
      f'{low:,} to {high:,}; the header is damaged: export it again',
    )
  rate, frames = sound.samplerate, sound.frames
  stream = header.stream
  if header.is_truncated:
    assert header.declared
    found = frames if stream is None else stream.samples
    whole = found * header.declared / max(1, header.found)
    raise BadRecordingError(
      name, _truncated(f'{found / rate:.2f} s', f'{whole / rate:.2f} s')
    )
  if stream is not None and abs(frames - stream.samples) > 3 * 1152:
    raise BadRecordingError(
      name,
      f'holds {stream.samples / rate:.2f} s in MPEG frames, of which only '
      f'{frames / rate:.2f} s can be decoded; convert it to WAV or FLAC',
    )
  if header.declared is None and _LOGGED_TRUNCATION.search(sound.extra_info):
    raise BadRecordingError(
      name,
      f'truncated: it ends after {frames / rate:.2f} s, sooner than its header '
      'says; copy or download it again',
    )
  return _Opened(
    name,
    sound,
    frames if 0 <= frames < 1 << 62 else None,
    [header.note] if header.note else [],
  )


def _truncated(found: str, declared: str) -> str:
  return (
    f'truncated: it ends after {found}, its header gives {declared}; copy or '
    'download it again'
  )


def _libsndfile(error: Exception) -> str:
  """The reason of an error of libsndfile, without the object's address."""
  return str(getattr(error, 'error_string', error)).rstrip('.')


def _decode(opened: _Opened, limit: int | None) -> Iterator[np.ndarray]:
  """Blocks of samples until nothing comes, float32 [S, H].

  Raises:
    BadRecordingError: damaged, or less than the header promises.
  """
  file, done, rate = opened.file, 0, opened.rate
  size = max(1024, _BLOCK // file.channels)
  if file.format == 'FLAC':
    size = 4096  # nothing is delivered of a damaged block
  while limit is None or done < limit:
    count = size if limit is None else min(size, limit - done)
    try:
      block_SH = file.read(count, dtype='float32', always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
      whole = f'of {opened.frames / rate:.2f} s ' if opened.frames else ''
      raise BadRecordingError(
        opened.name,
        f'damaged or truncated after {done / rate:.2f} s {whole}'
        f'({_libsndfile(error)}); copy or download it again',
      ) from error
    if not len(block_SH):
      break
    interrupt.check()
    done += len(block_SH)
    yield block_SH
  if limit is not None and done >= limit:
    _check_rest(opened)
  else:
    _check_end(opened, done)


def _check_end(opened: _Opened, done: int) -> None:
  """Compares the frames that came until nothing more did with the header."""
  rate = opened.rate
  # libsndfile delivers what was in its memory in place of missing SDS blocks.
  if opened.file.format == 'SDS' and 'short read' in opened.file.extra_info:
    raise BadRecordingError(
      opened.name, 'truncated: blocks are missing; copy or download it again'
    )
  if opened.frames and done < opened.frames - _slack(opened.file.subtype):
    raise BadRecordingError(
      opened.name,
      _truncated(f'{done / rate:.2f} s', f'{opened.frames / rate:.2f} s'),
    )


def _check_rest(opened: _Opened) -> None:
  """Looks for the end of a FLAC file that is not decoded so far.

  Of the other formats the header has been compared with the size.
  """
  if opened.file.format != 'FLAC' or not opened.frames:
    return
  try:
    opened.file.seek(opened.frames - 1)
    whole = len(opened.file.read(1)) == 1
  except (soundfile.SoundFileError, RuntimeError):
    whole = False
  if not whole:
    raise BadRecordingError(
      opened.name,
      f'truncated: not all of the {opened.frames / opened.rate:.2f} s that its '
      'header gives are there; copy or download it again',
    )


def _slack(subtype: str) -> int:
  """Frames that a codec's header may count though they are not there."""
  exact = any(part in subtype.split('_') for part in _EXACT)
  return _SLACK.get(subtype, 0 if exact else 4096)


def _judge(opened: _Opened, levels: _Levels, min_seconds, notes) -> _Treatment:
  """What is to be done to a recording; its notes are appended to `notes`.

  Raises:
    BadRecordingError: too short, not finite, or scaled like integers.
  """
  found, name = list(opened.notes), opened.name
  _check_samples(opened, levels, min_seconds)
  channel = _channel(levels, found)
  column = -1 if channel is None else channel
  offset = _offset(levels, column, found)
  peak = max(levels.high_H[column] - offset, offset - levels.low_H[column])
  if peak > MAX_PEAK:
    raise BadRecordingError(
      name,
      f'its samples reach {peak:.6g}, expected at most 1 (full scale): they '
      'are scaled like integers; divide them by 32768, or by the full scale '
      'of their format',
    )
  gain = 1 / peak if peak > _OVER else 1.0
  # Decoders of lossy formats go a little over full scale all the time.
  lossy = opened.file.subtype.startswith(_LOSSY)
  if gain != 1 and not (lossy and peak < _OVERSHOOT):
    found.append(f'its peak of {peak:.4g} was scaled down to 1')
  if notes is not None:
    notes += found
  return _Treatment(channel, offset, gain)


def _check_samples(opened: _Opened, levels: _Levels, min_seconds) -> None:
  name, length = opened.name, levels.length
  because = f' ({"; ".join(opened.notes)})' if opened.notes else ''
  if length == 0:
    raise BadRecordingError(
      name, f'holds no samples{because}; record it anew or remove it'
    )
  if length < min_seconds * opened.rate:
    raise BadRecordingError(
      name,
      f'{length / opened.rate:.4f} s long{because}, at least {min_seconds} s '
      'needed; remove it or lower min_seconds',
    )
  if levels.not_finite:
    raise BadRecordingError(
      name,
      f'{levels.not_finite} of {length} samples are NaN or infinite; '
      'export it again',
    )


def _channel(levels: _Levels, found: list[str]) -> int | None:
  """The channel to take; None for the mean of all."""
  power_H = levels.power_H
  if len(power_H) == 1:
    return 0
  best, mix = int(np.argmax(power_H[:-1])), power_H[-1]
  if mix >= _CANCELLED * power_H[best] or np.sqrt(power_H[best]) < 1 / 32768:
    return None
  below = '' if mix <= 0 else f' {10 * np.log10(power_H[best] / mix):.0f} dB'
  found.append(
    f'the mix of its channels lies{below} below channel {best + 1}, which was '
    'taken instead'
  )
  return best


def _offset(levels: _Levels, column: int, found: list[str]) -> float:
  """The constant to take off: 0, or the mean where that is large."""
  mean, power = levels.mean_H[column], levels.power_H[column]
  if abs(mean) <= max(_OFFSET * np.sqrt(power), 1 / 32768):
    return 0.0
  found.append(f'a constant offset of {mean:.3g} was removed')
  return float(mean)


def is_silent(wave_S) -> bool:
  """Whether nothing but silence (or a constant) is left in 16 bits."""
  return len(wave_S) == 0 or float(np.ptp(wave_S)) < 1 / 32768


def read_usable(
  path,
  problems: list[str],
  on_bad_recording: str = 'stop',
  reader: Callable[..., np.ndarray] = read,
  **options,
) -> np.ndarray | None:
  """`read`, but a recording that is bad or silent stops or is reported.

  Args:
    path: as in `read`.
    problems: one line is appended for each recording that is skipped.
    on_bad_recording: 'stop' raises for the first one, 'skip' goes on.
    reader: called with the path and the options in place of `read`.
    **options: of `read`.

  Returns:
    float32 [S], or None for a recording to be skipped.

  Raises:
    BadRecordingError: with 'stop'.
    ValueError: for an unknown setting.
  """
  check_on_bad_recording(on_bad_recording)
  try:
    wave_S = reader(path, **options)
    if is_silent(wave_S):
      raise BadRecordingError(os.fspath(path), 'every sample is silent')
  except BadRecordingError as error:
    if on_bad_recording == 'stop':
      raise BadRecordingError(
        error.name,
        f"{error.reason}. on_bad_recording='skip' leaves such recordings out",
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
