"""What the header of a sound file promises, against what is there.

libsndfile reads what is left of a truncated file without a word; the sizes in
its header tell it from a whole one. Known are RIFF (WAV, RIFX), RF64 and BW64,
W64, AIFF, AIFF-C and 8SVX, AU, CAF, NIST, AVR, FLAC and Ogg; MPEG streams are
counted in `mpeg`. The other formats have no size, or are left to libsndfile.
"""

import os
import re
import struct
from typing import NamedTuple

from tfds_dcase import mpeg

# Programs that write into a pipe put some number near the greatest one where
# the size belongs.
_UNKNOWN_FROM = 0x7FFF0000
_MPEG_TAGS = (0x50, 0x55)  # format tags of MPEG in a WAV
_MOST_CHUNKS = 10_000  # a damaged header is not followed for ever
_REPAIR_WAV = (
  '`sox --ignore-length IN OUT` or `ffmpeg -ignore_length 1 -i IN OUT`'
)
_REPAIR = '`ffmpeg -i IN OUT`, or in an editor that imports raw data'


class Header(NamedTuple):
  """What a file's own header says of its sound.

  Attributes:
    declared: bytes of sound that it promises; None where it gives no number.
    found: bytes of sound that are there, of those promised.
    problem: why the file is none to be read, if that is seen here.
    note: what a user should know though the file can be read.
    stream: the MPEG stream in the file, if it holds one.
  """

  declared: int | None = None
  found: int = 0
  problem: str | None = None
  note: str | None = None
  stream: mpeg.Stream | None = None

  @property
  def is_truncated(self) -> bool:
    """Whether less is there than promised."""
    return self.declared is not None and self.found < self.declared


def look(file) -> Header:
  """Reads the header of a sound file; an empty `Header` for other formats.

  Args:
    file: binary, with `seek` and `read`.
  """
  size = file.seek(0, os.SEEK_END)
  start = mpeg.skip_id3(file)
  file.seek(start)
  head = file.read(16)
  for is_format, read in _FORMATS:
    if is_format(head):
      return read(file, start, size)
  stream = mpeg.count(file, start, size)
  return Header() if stream is None else _of_stream(stream)


def _at(file, position: int, count: int, size: int) -> bytes:
  """Bytes of a file of `size`; a damaged one may point anywhere."""
  if position >= size:
    return b''
  file.seek(position)
  return file.read(count)


def _of_stream(stream: mpeg.Stream) -> Header:
  """The header of an MPEG stream, whose unit is frames."""
  note = None
  lost = stream.lost + stream.rest
  if lost > max(1000, (stream.end - stream.start) // 100):
    note = f'{lost} bytes of it are no MPEG frames'
  elif stream.rest and not stream.declared:
    note = 'its last MPEG frame is not whole: it may be truncated'
  declared = stream.declared
  # Some encoders count the frame that holds the number.
  if declared is not None and stream.frames >= declared - 1:
    declared = stream.frames
  return Header(declared or None, stream.frames, note=note, stream=stream)


def _sized(size: int, found: int) -> Header:
  """A header with the size of its sound, where `found` bytes are left."""
  if size >= _UNKNOWN_FROM and found < size:
    note = (
      'its header gives no length (written into a pipe, or never finished): '
      'read to the end of the file'
    )
    return Header(None, found, note=note)
  return Header(size, min(size, found))


def _never_finished(size: int, found: int, repair: str = _REPAIR) -> Header:
  problem = (
    f'its header was never finished: it gives {size} bytes of sound, but '
    f'{found} follow. All sound may be there; repair it with {repair}'
  )
  return Header(None, found, problem=problem)


def _looks_like_chunk(head: bytes, endian: str, left: int) -> bool:
  """Whether bytes behind an empty data chunk are another chunk."""
  if len(head) < 8:
    return True  # too little to be sound
  (size,) = struct.unpack(endian + 'I', head[4:8])
  return head[:4].isascii() and head[:4].strip().isalnum() and size <= left


def _riff(file, start: int, size: int) -> Header:
  """RIFF, RIFX, RF64, BW64: chunks of four letters and a 32-bit size."""
  file.seek(start)
  head = file.read(8)
  endian = '>' if head[:4] == b'RIFX' else '<'
  (whole,) = struct.unpack(endian + 'I', head[4:])
  position, tag, large = start + 12, 0, None
  for _ in range(_MOST_CHUNKS):
    head = _at(file, position, 8, size)
    if len(head) < 8:
      return _sized(whole + 8, size - start)
    (length,) = struct.unpack(endian + 'I', head[4:])
    left = size - position - 8
    if head[:4] == b'fmt ':
      tag = struct.unpack(endian + 'H', file.read(2).ljust(2, b'\0'))[0]
    elif head[:4] == b'ds64':
      large = struct.unpack('<8xQ', file.read(16).ljust(16, b'\0'))[0]
    elif head[:4] == b'data':
      if length == 0xFFFFFFFF and large is not None:
        length = large or 0xFFFFFFFF
      return _riff_data(file, position + 8, length, left, tag, endian)
    position += 8 + length + length % 2
  return Header()


def _riff_data(file, position, length, left, tag, endian) -> Header:
  if tag in _MPEG_TAGS:
    stream = mpeg.count(file, position, min(position + length, position + left))
    if stream is not None:
      header = _of_stream(stream)
      if left < length < _UNKNOWN_FROM and not header.is_truncated:
        header = header._replace(declared=length, found=left)
      return header
  if length == 0 and left > 0:
    file.seek(position)
    if not _looks_like_chunk(file.read(8), endian, left):
      return _never_finished(length, left, _REPAIR_WAV)
  return _sized(length, left)


def _w64(file, start: int, size: int) -> Header:
  """Sony Wave64: names of 16 bytes and 64-bit sizes that count the head."""
  position = start + 40
  for _ in range(_MOST_CHUNKS):
    head = _at(file, position, 24, size)
    if len(head) < 24:
      return Header()
    (length,) = struct.unpack('<Q', head[16:])
    if head[:4] == b'data':
      return _sized(max(0, length - 24), size - position - 24)
    position += max(24, length + -length % 8)
  return Header()


def _form(file, start: int, size: int) -> Header:
  """AIFF, AIFF-C and 8SVX: as RIFF, but big-endian."""
  position = start + 12
  for _ in range(_MOST_CHUNKS):
    head = _at(file, position, 8, size)
    if len(head) < 8:
      return Header()
    (length,) = struct.unpack('>I', head[4:])
    left = size - position - 8
    if head[:4] in (b'SSND', b'BODY'):
      fixed = 8 if head[:4] == b'SSND' else 0  # offset and block size
      if length <= fixed and left > fixed:
        file.seek(position + 8 + fixed)
        if not _looks_like_chunk(file.read(8), '>', left):
          return _never_finished(length, left - fixed)
      return _sized(max(0, length - fixed), left - fixed)
    position += 8 + length + length % 2
  return Header()


def _au(file, start: int, size: int) -> Header:
  file.seek(start)
  head = file.read(12)
  endian = '>' if head[:4] == b'.snd' else '<'
  offset, length = struct.unpack(endian + 'II', head[4:12].ljust(8, b'\0'))
  found = max(0, size - start - offset)
  if length == 0 and found:
    return _never_finished(length, found)
  return _sized(length, found)


def _caf(file, start: int, size: int) -> Header:
  """Core Audio: names of four letters, 64-bit sizes, -1 for 'to the end'."""
  position = start + 8
  for _ in range(_MOST_CHUNKS):
    head = _at(file, position, 12, size)
    if len(head) < 12:
      # libsndfile refuses it without a reason: all others have 'data'.
      return Header(problem='truncated: it ends before its sound begins')
    (length,) = struct.unpack('>q', head[4:])
    found = size - position - 12
    if head[:4] == b'data':
      if length < 0:  # legal, but libsndfile refuses it
        return _never_finished(length, found)
      return _sized(length, found)
    position += 12 + max(0, length)
  return Header()


def _nist(file, start: int, size: int) -> Header:
  """NIST Sphere: a text header with the number of samples."""
  file.seek(start)
  text = file.read(1024).decode('latin-1')
  values = dict(re.findall(r'^(\w+) -i (\d+)', text, re.MULTILINE))
  length = re.match(r'NIST_1A\s+(\d+)', text)
  values.setdefault('sample_n_bytes', '1')  # left out for u-law and A-law
  names = ('sample_count', 'channel_count', 'sample_n_bytes')
  if length is None or any(name not in values for name in names):
    return Header()
  if re.search(r'^sample_coding .*(shorten|shortpack)', text, re.MULTILINE):
    return Header()
  samples, channels, width = (int(values[name]) for name in names)
  found = max(0, size - start - int(length.group(1)))
  return _sized(samples * channels * width, found)


def _avr(file, start: int, size: int) -> Header:
  file.seek(start)
  head = file.read(128)
  if len(head) < 128:
    return Header()
  stereo, bits = struct.unpack('>HH', head[12:16])
  (samples,) = struct.unpack('>I', head[26:30])
  width = (2 if bits == 16 else 1) * (2 if stereo else 1)
  return _sized(samples * width, size - start - 128)


def _flac(file, start: int, size: int) -> Header:
  """STREAMINFO alone; that all samples are there is seen when decoding."""
  del size
  file.seek(start + 8)
  info = file.read(18)
  if len(info) == 18 and not int.from_bytes(info[13:18]) & 0xFFFFFFFFF:
    return Header(
      problem='a FLAC file whose header does not give its length (written '
      'into a pipe, or never finished); repair it with `ffmpeg -i IN OUT` or '
      '`flac --decode` and encode it again'
    )
  return Header()


def _ogg(file, start: int, size: int) -> Header:
  """No size, but the last page is marked, and each gives its own length."""
  begin = max(start, size - (1 << 17))  # a page has at most 65,307 bytes
  file.seek(begin)
  data = file.read(size - begin)
  place = data.rfind(b'OggS\0')
  page = data[place:] if place >= 0 else b''
  table = page[27 : 27 + page[26]] if len(page) >= 27 else b''
  if not table or len(page) < 27 + len(table) + sum(table):
    return Header(note='its last Ogg page is not whole: it was truncated')
  if not page[5] & 4:
    return Header(
      note='its Ogg stream is not closed: it was truncated, or its recorder '
      'stopped'
    )
  return Header()


_RIFF = (b'RIFF', b'RIFX', b'RF64', b'BW64')
_AIFF = (b'AIFF', b'AIFC', b'8SVX', b'16SV')
_W64 = b'riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0'
# Whether the first 16 bytes are those of a format, and who reads its header.
_FORMATS = (
  (lambda head: head[:4] in _RIFF and head[8:12] == b'WAVE', _riff),
  (lambda head: head == _W64, _w64),
  (lambda head: head[:4] == b'FORM' and head[8:12] in _AIFF, _form),
  (lambda head: head[:4] in (b'.snd', b'dns.'), _au),
  (lambda head: head[:4] == b'caff', _caf),
  (lambda head: head[:7] == b'NIST_1A', _nist),
  (lambda head: head[:4] == b'2BIT', _avr),
  (lambda head: head[:4] == b'fLaC', _flac),
  (lambda head: head[:4] == b'OggS', _ogg),
)
