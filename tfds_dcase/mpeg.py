"""Counts the frames of an MPEG audio stream, layers I to III.

libsndfile guesses the length of an MP3 without a Xing or Info header from its
first frame, and reads no further than that; of a truncated one it promises what
the header says. Both are found by counting.
"""

import functools
import struct
from typing import NamedTuple

_WINDOW = 1 << 18  # bytes read at once
_ID3_HEADER = 10  # bytes
# Kilobits a second by index; the first is for MPEG 1, the second for 2 and 2.5.
_KBIT = {
  (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
  (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
  (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
  (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
  (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
  (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000),
          0: (11025, 12000, 8000)}  # fmt: skip


class Frame(NamedTuple):
  """What the four bytes of a frame's header say.

  Attributes:
    family: version bits, layer and sample rate: the same in a whole stream.
    size: of the frame in bytes.
    samples: of each channel.
    rate: sample rate in Hz.
    mono: whether it has one channel.
  """

  family: tuple[int, int, int]
  size: int
  samples: int
  rate: int
  mono: bool


class Stream(NamedTuple):
  """An MPEG stream, counted.

  Attributes:
    first: its first frame.
    header: the four bytes of the first frame's header.
    start: offset of the first frame with sound in bytes.
    end: offset after the last whole frame.
    frames: whole frames with sound.
    declared: frames that its Xing, Info or VBRI header counts, if it has one.
    exact: whether the decoder knows that header.
    lost: bytes within the stream that are no frame.
    rest: bytes of a last frame that is not whole.
  """

  first: Frame
  header: bytes
  start: int
  end: int
  frames: int
  declared: int | None
  exact: bool
  lost: int
  rest: int

  @property
  def samples(self) -> int:
    """Samples of each channel in the whole frames."""
    return self.frames * self.first.samples


@functools.lru_cache(maxsize=4096)
def frame(header: bytes) -> Frame | None:
  """Reads a frame's header; None for what is none, free format included."""
  if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
    return None
  version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
  index, rate_index = header[2] >> 4, header[2] >> 2 & 3
  if version == 1 or layer == 4 or index in (0, 15) or rate_index == 3:
    return None
  first = version == 3  # MPEG 1
  rate = _RATES[version][rate_index]
  bits = _KBIT[1 if first else 2, layer][index - 1] * 1000
  padding = header[2] >> 1 & 1
  if layer == 1:
    size, samples = (12 * bits // rate + padding) * 4, 384
  else:
    samples = 576 if layer == 3 and not first else 1152
    size = samples // 8 * bits // rate + padding
  return Frame((version, layer, rate), size, samples, rate, header[3] >> 6 == 3)


class _Window:
  """Random access to a part of a file, mostly forward."""

  def __init__(self, file, end: int):
    self._file, self.end = file, end
    self._start, self._data = 0, b''

  def at(self, position: int, count: int) -> bytes:
    count = max(0, min(count, self.end - position))
    offset = position - self._start
    if offset < 0 or offset + count > len(self._data):
      self._file.seek(position)
      self._start, offset = position, 0
      self._data = self._file.read(min(_WINDOW, self.end - position))
    return self._data[offset : offset + count]


def skip_id3(file, start: int = 0) -> int:
  """Offset behind the ID3v2 tags that stand at `start`."""
  while True:
    file.seek(start)
    head = file.read(_ID3_HEADER)
    if len(head) < _ID3_HEADER or head[:3] != b'ID3' or max(head[6:]) > 127:
      return start
    length = 0
    for byte in head[6:]:
      length = length << 7 | byte
    footer = _ID3_HEADER if head[5] & 0x10 else 0
    start += _ID3_HEADER + length + footer


def count(file, start: int, end: int) -> Stream | None:
  """Counts the frames between two offsets; None where none begins there.

  Args:
    file: binary, with `seek` and `read`.
    start: offset of the first frame, ID3 tags left out.
    end: offset behind the stream.
  """
  window = _Window(file, end)
  header = window.at(start, 4)
  first = frame(header)
  if first is None:
    return None
  following = start + first.size
  alone = following + 4 > end
  if not alone and not _same(window, following, first.family):
    return None
  declared, exact = _declared(window.at(start, 256), first)
  position = start if declared is None else following
  begin = last = position
  frames = lost = rest = 0
  while position + 4 <= end:
    found = frame(window.at(position, 4))
    if found is None or found.family != first.family:
      resumed = _resume(window, position + 1, first.family)
      if resumed is None:
        break
      lost += resumed - position
      position = resumed
      continue
    if position + found.size > end:
      rest = end - position
      break
    frames += 1
    position += found.size
    last = position
  return Stream(first, header, begin, last, frames, declared, exact, lost, rest)


def _same(window, position: int, family) -> bool:
  found = frame(window.at(position, 4))
  return found is not None and found.family == family


def _resume(window, position: int, family) -> int | None:
  """The next frame of a stream whose follower is one too, or ends the file."""
  while position + 4 <= window.end:
    data = window.at(position, min(_WINDOW, window.end - position))
    place = data.find(b'\xff')
    if place < 0 or position + place + 4 > window.end:
      if position + len(data) >= window.end:
        return None
      position += len(data)
      continue
    position += place
    found = frame(window.at(position, 4))
    if found is not None and found.family == family:
      after = position + found.size
      if after == window.end or _same(window, after, family):
        return position
    position += 1
  return None


def _side_bytes(first: Frame) -> int:
  """Size of the side information of a frame of layer III."""
  if first.family[0] == 3:
    return 17 if first.mono else 32
  return 9 if first.mono else 17


def _declared(data: bytes, first: Frame) -> tuple[int | None, bool]:
  """Frames by a Xing, Info or VBRI header, and whether mpg123 knows it."""
  if first.family[1] != 3:
    return None, False
  for offset in (4, 6):  # 6: behind a checksum
    place = offset + _side_bytes(first)
    if data[place : place + 4] in (b'Xing', b'Info'):
      flags, frames = struct.unpack('>II', data[place + 4 : place + 12])
      if flags & 1 and frames:
        return frames, True
      return 0, False  # a header that counts nothing
  if data[36:40] == b'VBRI' and len(data) >= 54:
    return struct.unpack('>I', data[50:54])[0], False
  return None, False


def info_frame(stream: Stream) -> bytes:
  """A frame of layer III whose Info header counts the stream's frames.

  Before the frames of a stream it tells a decoder their right number.
  """
  version = stream.first.family[0]
  index = 9 if version == 3 else 8  # 128 and 64 kbit/s: large enough
  head = bytearray(stream.header)
  head[1] |= 1  # no checksum
  head[2] = index << 4 | (head[2] & 0x0C)
  made = frame(bytes(head))
  assert made is not None
  tag = b'Info' + struct.pack('>II', 1, stream.frames)
  body = bytes(head) + bytes(_side_bytes(stream.first)) + tag
  return body.ljust(made.size, b'\0')
