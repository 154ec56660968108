"""SONYC-UST: a clear message for every bad recording, archive or annotation."""

import gzip
import io
import logging
import re
import tarfile

import numpy as np
import pytest
import soundfile
from sonyc_ust_world import (
  WAVS,
  build,
  wav,
  write_annotations,
  write_archive,
  write_folder,
)  # fmt: skip

import tfds_dcase.sonyc_ust as sonyc_ust
from tfds_dcase.sonyc_ust import (
  gather,
  sources,
)


@pytest.fixture
def manual(tmp_path):
  path = tmp_path / 'manual'
  path.mkdir()
  write_annotations(path / 'annotations.csv')
  return path


@pytest.fixture
def logged(caplog):
  """The records of the builders' logger."""
  caplog.set_level(logging.INFO, logger='tfds_dcase')
  return caplog


# --- Bad recordings ----------------------------------------------------------

_HEADERLESS = b'RIFF\x00\x00\x00\x00WAVEnonsense' + b'\0' * 400
_NOT_FINITE = io.BytesIO()
soundfile.write(
  _NOT_FINITE, np.full(160_000, np.nan), 16_000, format='WAV', subtype='FLOAT'
)
BAD = {
  'missing': (None, 'missing'),
  'empty': (b'', 'an empty file'),
  'truncated': (
    WAVS['00_000002.wav'][:-5000],
    'truncated: it ends after 9.84 s, its header gives 10.00 s',
  ),
  'cut in the header': (
    WAVS['00_000002.wav'][:20],
    'truncated: it ends after 20 bytes, its header gives 320044 bytes',
  ),
  'unreadable header': (_HEADERLESS, 'not a readable sound file'),
  'no sound at all': (b'hello, world' * 100, 'not a readable sound file'),
  'four seconds': (wav(1, 4.0), '4.000 s long, expected 10 s'),
  'eleven seconds': (wav(1, 11.0), '11.000 s long'),
  'not finite': (
    _NOT_FINITE.getvalue(),
    '160000 of 160000 samples are NaN or infinite',
  ),
  'huge': (b'\0' * (sources.MAX_BYTES + 1), 'too large'),
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('fault', BAD)
def test_bad_recording(tmp_path, manual, fault, packed, logged):
  data, words = BAD[fault]
  wavs = {**WAVS, '00_000002.wav': data}
  if data is None:
    del wavs['00_000002.wav']
  if packed:
    write_archive(manual / 'audio-dev.tar.gz', wavs)
  else:
    write_folder(manual / 'audio', wavs)
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual)
  assert '00_000002.wav' in str(error.value)
  assert 'annotations.csv, row 5' in str(error.value)
  assert "on_bad_recording='skip'" in str(error.value)
  assert not list((tmp_path / 'data/sonyc_ust/v1').glob('*'))

  builder = build(tmp_path, manual, on_bad_recording='skip')
  skipped = builder.info.metadata['build']['skipped']
  assert list(skipped) == ['00_000002.wav']
  assert words in skipped['00_000002.wav']
  assert '1 recordings skipped' in logged.text
  assert len(builder.as_data_source('train')) == 2
  # Later uses log it too.
  logged.clear()
  sonyc_ust.make_builder(tmp_path / 'data', 'v1')
  assert 'was built without 1 recordings' in logged.text


def test_skipping_everything_is_refused(tmp_path, manual):
  write_folder(manual / 'audio', {'99_000000.wav': wav()})
  with pytest.raises(ValueError, match='5 of 5 recordings are missing'):
    build(tmp_path, manual, on_bad_recording='skip')


def test_missing_recordings_are_counted_by_split(tmp_path, manual):
  kept = {n: w for n, w in WAVS.items() if n.startswith('00')}
  write_folder(manual / 'audio', kept)
  with pytest.raises(
    ValueError, match='3 of 5 recordings are missing'
  ) as error:
    build(tmp_path, manual)
  assert '1 of 3 in train, 2 of 2 in validate' in str(error.value)
  assert 'audio-dev.tar.gz' in str(error.value)
  assert str(manual / 'audio') in str(error.value)


def test_extra_recordings_are_left_out_and_named(tmp_path, manual, logged):
  write_folder(manual / 'audio', {**WAVS, '77_123456.wav': wav(9)})
  builder = build(tmp_path, manual)
  assert '1 recordings that the annotations do not name' in logged.text
  assert '77_123456.wav' in logged.text
  assert builder.info.metadata['build']['extra'] == 1
  assert '77_123456.wav' in (builder.data_path / 'notes.txt').read_text()


def test_the_same_recording_twice_is_counted(tmp_path, manual, logged):
  write_folder(manual / 'a')
  write_folder(manual / 'b', {'00_000001.wav': WAVS['00_000001.wav']})
  builder = build(tmp_path, manual)
  assert builder.info.metadata['build']['duplicates'] == 1
  assert '1 recordings were there twice' in logged.text


@pytest.mark.parametrize('packed', [False, True])
def test_one_name_with_two_contents_is_refused(tmp_path, manual, packed):
  write_folder(manual / 'a', {'00_000001.wav': wav(77)})
  if packed:
    write_archive(manual / 'audio-dev.tar.gz')
  else:
    write_folder(manual / 'b')
  with pytest.raises(ValueError, match='twice with different contents') as e:
    build(tmp_path, manual, on_bad_recording='skip')
  assert str(manual / 'a/00_000001.wav') in str(e.value)
  assert 'annotations.csv, row 2' in str(e.value)


# --- Bad archives and annotations --------------------------------------------


def _member(name, kind=tarfile.REGTYPE):
  info = tarfile.TarInfo(name)
  info.type = kind
  info.linkname = 'target'
  return info


@pytest.mark.parametrize(
  ('member', 'words'),
  [
    (_member('/etc/00_000009.wav'), 'an absolute path'),
    (_member('audio/../../00_000009.wav'), r'a path with \.\.'),
    (_member('C:/00_000009.wav'), 'an absolute path'),
    (_member('audio\\..\\00_000009.wav'), r'a path with \.\.'),
    (_member('00_000009.wav', tarfile.SYMTYPE), 'a link, device or sparse'),
    (_member('00_000009.wav', tarfile.LNKTYPE), 'a link, device or sparse'),
    (_member('00_000009.wav', tarfile.CHRTYPE), 'a link, device or sparse'),
    (_member('00_000009.wav', tarfile.FIFOTYPE), 'a link, device or sparse'),
  ],
)
def test_unsafe_member_is_refused(tmp_path, manual, member, words):
  write_archive(manual / 'audio-dev.tar.gz', members=[member])
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual, on_bad_recording='skip')
  assert 'audio-dev.tar.gz' in str(error.value)
  assert repr(member.name) in str(error.value)


def _header(kind, size, data=b''):
  """A header block of a member, and its data in whole blocks."""
  info = tarfile.TarInfo('x')
  info.type, info.size = kind, size
  return info.tobuf() + data + bytes(-len(data) % 512)


def _pax(text):
  line = f'00 {text}\n'.encode()
  line = f'{len(line)} {text}\n'.encode()
  return _header(tarfile.XHDTYPE, len(line), line)


def _plain(name='audio/00_000001.wav'):
  info = tarfile.TarInfo(name)
  info.size = 10
  return info.tobuf() + b'0123456789' + bytes(502)


def _sparse():
  info = tarfile.TarInfo('audio/00_000001.wav')
  info.type = tarfile.GNUTYPE_SPARSE
  return info.tobuf()


HUGE = {
  'PAX size of 2^62': (_pax(f'size={2**62}') + _plain(), f'{2**62} bytes'),
  'negative PAX size': (_pax('size=-5000') + _plain(), 'damaged|bytes'),
  'PAX header of 300 MB': (_header(tarfile.XHDTYPE, 300 << 20), 'a header of'),
  'global header of 300 MB': (
    _header(tarfile.XGLTYPE, 300 << 20),
    'a header of 314572800 bytes, at most 65536',
  ),
  'long name of 300 MB': (
    _header(tarfile.GNUTYPE_LONGNAME, 300 << 20),
    'a header of',
  ),
  'a file of 2^40': (_header(tarfile.REGTYPE, 2**40), f'{2**40} bytes'),
  'a chain of headers': (3000 * _pax('a=b') + _plain(), 'damaged'),
  'a sparse file': (_sparse(), 'sparse file'),
  'PAX sparse of 2^62': (
    _pax(f'GNU.sparse.size={2**62}') + _plain(),
    'sparse|bytes',
  ),
}


@pytest.mark.parametrize('fault', HUGE)
def test_sizes_that_no_release_has(tmp_path, manual, fault):
  data, words = HUGE[fault]
  # What a header promises is there as zeros, which gzip makes small.
  zeros = bytes(310 << 20) if '300 MB' in fault else bytes(1024)
  with gzip.open(manual / 'audio-dev.tar.gz', 'wb', compresslevel=1) as file:
    file.write(data + zeros)
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual, on_bad_recording='skip')
  assert str(manual / 'audio-dev.tar.gz') in str(error.value)
  assert 'download' in str(error.value)


def test_an_archive_with_more_bytes_than_the_release(
  tmp_path, manual, monkeypatch
):
  monkeypatch.setattr(sources, 'MAX_BYTES', 100)
  write_archive(manual / 'audio-dev.tar.gz')
  most = 100 * (2351 + 443 + 274)
  with pytest.raises(ValueError, match=f'{most} .*of the|{most} expected'):
    build(tmp_path, manual, on_bad_recording='skip')


@pytest.mark.parametrize('keep', [0, 5, 0.3, 0.7, -9])
def test_cut_archive(tmp_path, manual, keep):
  path = manual / 'audio-dev.tar.gz'
  write_archive(path)
  data = path.read_bytes()
  path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
  with pytest.raises(ValueError, match='the archive is cut or damaged') as e:
    build(tmp_path, manual, on_bad_recording='skip')
  assert str(path) in str(e.value)
  if keep == -9:
    assert re.search('after [45] recordings .*: audio-dev', str(e.value))


def test_flipped_bit_in_an_archive(tmp_path, manual):
  path = manual / 'audio-dev.tar.gz'
  write_archive(path)
  data = bytearray(path.read_bytes())
  data[-6] ^= 1  # in the CRC, so that only the last word can tell
  path.write_bytes(data)
  with pytest.raises(ValueError, match='CRC check failed'):
    build(tmp_path, manual)


def test_wrong_md5_of_a_manual_archive(tmp_path, manual):
  write_archive(manual / 'audio-3.tar.gz')
  with pytest.raises(ValueError, match='md5 is') as error:
    build(tmp_path, manual)
  assert 'expected d2a872392d95993a2c238d305b940812' in str(error.value)
  assert str(manual / 'audio-3.tar.gz') in str(error.value)
  assert (manual / 'audio-3.tar.gz').exists()


@pytest.mark.parametrize(
  ('old', 'new', 'words'),
  [
    ('5-3_siren_presence', '5-3_sirens_presence', '5-3_siren_presence'),
    ('8_dog_presence', '8_dog_presence,9_cat', '9_cat'),
    ('train,0,00_000002.wav,8,0', 'train,0,00_000002.wav,8,3', 'row 6'),
    ('train,0,00_000002.wav,8', 'train,0,00_000002.wav,eight', 'row 6'),
    ('train,0,00_000002.wav,8', 'practice,0,00_000002.wav,8', 'row 6'),
    (',far,', ',yonder,', 'row 2'),
  ],
)
def test_bad_annotations_stop_before_any_audio(
  tmp_path, manual, old, new, words, monkeypatch
):
  monkeypatch.setattr(gather, 'gather', lambda *_: pytest.fail('read audio'))
  write_folder(manual / 'audio')
  path = manual / 'annotations.csv'
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual)
  assert 'annotations.csv' in str(error.value)


@pytest.mark.parametrize(('has', 'asked'), [('v1', 'v2'), ('v2', 'v1')])
def test_annotations_of_the_other_version(tmp_path, manual, has, asked):
  write_folder(manual / 'audio')
  write_annotations(manual / 'annotations.csv', version=has)
  with pytest.raises(ValueError, match=f'an annotations file of {has}') as e:
    build(tmp_path, manual, version=asked)
  assert f'sonyc_ust/{asked} was requested' in str(e.value)
