"""SONYC-UST: builds from every layout, and clear words for every bad input."""

import contextlib
import hashlib
import http.server
import io
import logging
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import pytest
import soundfile
from array_record.python import array_record_module

import tfds_dcase.sonyc_ust as sonyc_ust
from tfds_dcase import annotations, taxonomy
from tfds_dcase.sonyc_ust import (
  availability,
  decode,
  fetch,
  gather,
  prepare,
  records,
  sources,
)

CLIPS = {
  '00_000001.wav': 'train',
  '00_000002.wav': 'train',
  '01_000003.wav': 'train',
  '02_000004.wav': 'validate',
  '02_000005.wav': 'validate',
}
SIREN = taxonomy.FINE_COLUMNS.index('5-3_siren')
ENGINE_X = taxonomy.FINE_COLUMNS.index('1-X_engine-of-uncertain-size')
NON_MACHINERY = taxonomy.FINE_COLUMNS.index('3-1_non-machinery-impact')


def wav(seed=0, seconds=10.0, rate=16_000, **options) -> bytes:
  rng = np.random.default_rng(seed)
  noise = rng.integers(-9000, 9000, int(seconds * rate)).astype(np.int16)
  options = {'format': 'WAV', 'subtype': 'PCM_16', **options}
  file = io.BytesIO()
  soundfile.write(file, noise, rate, **options)
  return file.getvalue()


WAVS = {name: wav(seed) for seed, name in enumerate(CLIPS)}


def row(name, split, annotator, present=(), proximity=None, extra=()):
  """A row of annotations.csv; coarse columns carry the historic fault."""
  fine = [int(q in present) for q in range(29)]
  coarse = [max(f for f, n in zip(fine, taxonomy.FINE_COLUMNS, strict=True)
                if n[0] == c[0]) for c in taxonomy.COARSE]  # fmt: skip
  coarse[1] |= coarse[2]
  near = [(proximity or {}).get(q, -1) for q in range(29)]
  cells = [split, int(name[:2]), name, annotator, *extra, *fine, *near, *coarse]
  return ','.join(map(str, cells))


def write_annotations(path, clips=CLIPS, version='v1', truth=True):
  extra = annotations.EXTRA_V2 if version == 'v2' else ()
  where = (2017, 5, 6, 23, 1, 547, 40.72951, -73.99388) if extra else ()
  header = list(annotations.COLUMNS_V1)
  lines = [','.join([*header[:4], *extra, *header[4:]])]
  for name, split in clips.items():
    lines += [
      row(name, split, 7, [SIREN], {SIREN: 'far'}, where),
      row(name, split, 8, [NON_MACHINERY], None, where),
      row(name, split, 9, [], None, where),
    ]
    if split != 'train':
      lines.append(row(name, split, -1, [SIREN], None, where))
    if split != 'train' and truth:
      lines.append(row(name, split, 0, [ENGINE_X], None, where))
  path.write_text('\n'.join(lines) + '\n')


def write_folder(path, wavs=WAVS):
  path.mkdir(parents=True, exist_ok=True)
  for name, data in wavs.items():
    (path / name).write_bytes(data)


def write_archive(path, wavs=WAVS, prefix='audio-dev/train/', members=()):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz', compresslevel=1) as archive:
    for name, data in wavs.items():
      info = tarfile.TarInfo(prefix + name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
    for info in members:
      archive.addfile(info, io.BytesIO(b'\0' * info.size))


@pytest.fixture
def manual(tmp_path):
  path = tmp_path / 'manual'
  path.mkdir()
  write_annotations(path / 'annotations.csv')
  return path


@pytest.fixture
def said(caplog):
  """What is logged; absl's own handler bypasses pytest's otherwise."""
  caplog.set_level(logging.INFO, logger='absl')
  return caplog


def build(tmp_path, manual=None, name='data', version='v1', **settings):
  builder = sonyc_ust.make_builder(tmp_path / name, version, manual, **settings)
  builder.download_and_prepare()
  return builder


def raw_records(builder) -> dict[str, list[bytes]]:
  result = {}
  for path in sorted(pathlib.Path(builder.data_dir).glob('*.array_record-*')):
    reader = array_record_module.ArrayRecordReader(str(path))
    result[path.name] = reader.read_all()
    reader.close()
  return result


class Server:
  """Serves a folder on 127.0.0.1 with Range; can cut, refuse or forget."""

  def __init__(self, root):
    self.root, self.log = pathlib.Path(root), []
    self.cut_after = None  # bytes of the next answer, once
    self.ignore_range = False
    self.status = None
    self.status_after_cut = None
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_HEAD(self):
        owner.answer(self, body=False)

      def do_GET(self):
        owner.answer(self, body=True)

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.http.server_port}/record'
    threading.Thread(
      target=self.http.serve_forever, args=[0.01], daemon=True
    ).start()

  def answer(self, handler, body):
    asked = handler.headers.get('Range')
    self.log.append((handler.command, handler.path, asked))
    path = self.root / handler.path.removeprefix('/record/')
    if self.status or not path.is_file():
      handler.send_error(self.status or 404)
      return
    data = path.read_bytes()
    tag = '"' + hashlib.md5(data).hexdigest() + '"'
    start = 0
    same = handler.headers.get('If-Range', tag) == tag
    if asked and same and not self.ignore_range:
      start = int(asked.removeprefix('bytes=').rstrip('-'))
    if start and start >= len(data):
      handler.send_response(416)
      handler.send_header('Content-Range', f'bytes */{len(data)}')
      handler.end_headers()
      return
    handler.send_response(206 if start else 200)
    handler.send_header('Content-Length', str(len(data) - start))
    handler.send_header('ETag', tag)
    handler.end_headers()
    end = None
    if body:
      if self.cut_after is not None:
        end, self.cut_after = start + self.cut_after, None
        self.status = self.status_after_cut
      with contextlib.suppress(ConnectionError):
        handler.wfile.write(data[start:end])
    if body and end is not None:
      handler.close_connection = True

  def gets(self, name):
    return [r for r in self.log if r[0] == 'GET' and r[1].endswith(name)]


@pytest.fixture
def server(tmp_path):
  files = tmp_path / 'zenodo/3338310/files'
  files.mkdir(parents=True)
  write_annotations(files / 'annotations.csv')
  write_archive(files / 'audio-dev.tar.gz')
  write_archive(files / 'audio-eval.tar.gz', {}, 'audio-eval/')
  server = Server(tmp_path / 'zenodo')
  yield server
  server.http.shutdown()
  server.http.server_close()


# --- What is built -----------------------------------------------------------


def test_features_of_an_example(tmp_path, manual):
  write_folder(manual / 'audio')
  builder = build(tmp_path, manual)
  splits = {s: builder.as_data_source(s) for s in builder.info.splits}
  assert {s: len(d) for s, d in splits.items()} == {'train': 3, 'validate': 2}
  for split, source in splits.items():
    for example in source:
      name = example['clip_id'].decode()
      expected, _ = soundfile.read(io.BytesIO(WAVS[name]), dtype='int16')
      np.testing.assert_array_equal(example['audio'], expected)
      assert example['num_samples'] == 160_000
      assert CLIPS[name] == split == example['split'].decode()
      assert example['sensor_id'] == int(name[:2])
      truth = split == 'validate'
      assert example['has_truth'] == truth
      # Train: siren and non-machinery by one volunteer each; never machinery,
      # though the file says so. Truth: the engine X only.
      assert np.flatnonzero(example['coarse']).tolist() == (
        [0] if truth else [2, 4]
      )
      tags = [] if truth else ['3-1_non-machinery-impact', '5-3_siren']
      assert [taxonomy.FINE[i] for i in np.flatnonzero(example['fine'])] == tags
      assert example['fine_unknown'].tolist() == [int(truth), 0, 0, 0, 0, 0]
      assert example['votes'].shape == example['proximity'].shape == (3, 29)
      assert example['annotator_id'].tolist() == [7, 8, 9]
      assert example['votes'].sum() == 2
      assert example['votes'][0, SIREN] == 1
      code = builder.info.metadata['proximity_code']
      assert code[str(example['proximity'][0, SIREN])] == 'far'
      assert (np.delete(example['proximity'].ravel(), SIREN) == -1).all()
  assert list(builder.info.metadata['coarse']) == list(taxonomy.COARSE)
  assert list(builder.info.metadata['fine']) == list(taxonomy.FINE)


def test_v2_has_time_and_place_and_sets_unverified_clips_apart(tmp_path):
  manual = tmp_path / 'manual'
  manual.mkdir()
  write_annotations(manual / 'annotations.csv', version='v2')
  text = (manual / 'annotations.csv').read_text().splitlines()
  # The truth row of one validate clip is not there, as for most of v2's.
  text = [t for t in text if not t.startswith('validate,2,02_000005.wav,0,')]
  (manual / 'annotations.csv').write_text('\n'.join(text) + '\n')
  write_folder(manual / 'audio')
  builder = build(tmp_path, manual, version='v2')
  sizes = {s: i.num_examples for s, i in builder.info.splits.items()}
  assert sizes == {'train': 3, 'validate': 1, 'validate_unverified': 1}
  (example,) = builder.as_data_source('validate_unverified')
  assert not example['has_truth']
  assert np.flatnonzero(example['coarse']).tolist() == [2, 4]
  keys = ['year', 'week', 'day', 'hour', 'borough', 'block']
  assert [example[k] for k in keys] == [2017, 5, 6, 23, 1, 547]
  assert example['latitude'] == pytest.approx(40.72951, abs=1e-5)
  assert example['longitude'] == pytest.approx(-73.99388, abs=1e-5)


def _flat(path):
  write_folder(path)


def _audio(path):
  write_folder(path / 'audio')


def _by_split(path):
  for name, split in CLIPS.items():
    write_folder(path / 'audio-dev' / split, {name: WAVS[name]})


def _archive(path):
  write_archive(path / 'audio-dev.tar.gz')


def _first_record(path):
  write_archive(path / 'audio.tar.gz', prefix='audio/')


def _many_archives(path):
  for n, name in enumerate(reversed(CLIPS)):
    wavs = {name: WAVS[name]}
    write_archive(path / f'deep/audio-eval-{n}.tar.gz', wavs, './')


def _mixture(path):
  names = list(CLIPS)
  write_folder(path / 'audio-dev/train', {n: WAVS[n] for n in names[:2]})
  write_archive(path / 'audio-dev.tar.gz', {n: WAVS[n] for n in names[1:4]})
  write_archive(path / 'audio.tar.gz', {n: WAVS[n] for n in names[3:]})


def _mac(path):
  """Apple's tar adds a ._NAME.wav that is no sound."""
  members = [tarfile.TarInfo(f'audio-dev/train/._{n}') for n in CLIPS]
  for info in members:
    info.size = 200
  directory = tarfile.TarInfo('audio-dev')
  directory.type = tarfile.DIRTYPE
  write_archive(path / 'audio-dev.tar.gz', members=[*members, directory])


@pytest.mark.parametrize(
  'layout',
  [_flat, _audio, _by_split, _archive, _first_record, _many_archives, _mixture,
   _mac],
)  # fmt: skip
def test_every_layout_gives_the_same_records(tmp_path, manual, layout):
  reference = tmp_path / 'reference'
  write_folder(reference / 'audio')
  write_annotations(reference / 'annotations-dev.csv')
  layout(manual)
  got = raw_records(build(tmp_path, manual, 'a'))
  assert got == raw_records(build(tmp_path, reference, 'b', workers=1))
  assert sum(map(len, got.values())) == len(CLIPS)


def test_shards_hold_every_clip_once(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(gather, 'CLIPS_PER_SHARD', 2)
  _archive(manual)
  builder = build(tmp_path, manual)
  assert builder.info.splits['train'].shard_lengths == [2, 1]
  names = [e['clip_id'].decode() for e in builder.as_data_source('train')]
  assert sorted(names) == [n for n, s in CLIPS.items() if s == 'train']
  left = {p.name for p in pathlib.Path(builder.data_dir).iterdir()}
  assert not [name for name in left if 'waiting' in name]


def test_resampling_keeps_a_tone():
  time = np.arange(441_000) / 44_100
  tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
  file = io.BytesIO()
  both = np.stack([tone, 0.5 * tone], axis=1)
  soundfile.write(file, both, 44_100, format='WAV', subtype='PCM_16')
  clip = decode.decode(file.getvalue())
  expected = 0.375 * np.sin(2 * np.pi * 1000 * np.arange(160_000) / 16_000)
  inner = slice(1000, -1000)
  error = clip.audio_S[inner] / 32768 - expected[inner]
  assert np.abs(error).max() < 1e-3
  assert clip.num_samples == 160_000


@pytest.mark.parametrize(
  ('seconds', 'real'), [(9.75, 156_000), (10.25, 160_000)]
)
def test_nearly_ten_seconds_are_padded_or_cut(seconds, real):
  clip = decode.decode(wav(3, seconds))
  assert clip.num_samples == real
  assert len(clip.audio_S) == 160_000
  assert clip.audio_S[:real].any()
  assert not clip.audio_S[real:].any()


def test_without_test_truth_there_is_no_test_split(tmp_path, manual, said):
  write_archive(manual / 'audio-dev.tar.gz')
  write_archive(manual / 'audio-eval.tar.gz', {}, 'audio-eval/')
  builder = build(tmp_path, manual)
  assert 'test' not in builder.info.splits
  assert 'has no truth for the test split' in said.text
  assert 'record 3338310 has it' in said.text


def test_faulty_rows_are_reported_once(tmp_path, manual, said):
  _audio(manual)
  builder = build(tmp_path, manual)
  found = [r for r in said.messages if 'rows ship coarse tags' in r]
  assert len(found) == 1
  assert 'v0.4' in found[0]
  # The volunteer row with non-machinery-impact, one a clip.
  assert builder.info.metadata['build']['faulty_rows'] == len(CLIPS)


def test_builder_by_name_and_pickled(tmp_path, manual):
  import tensorflow_datasets as tfds

  _audio(manual)
  builder = tfds.builder('sonyc_ust/v1', data_dir=str(tmp_path / 'data'))
  config = tfds.download.DownloadConfig(manual_dir=manual)
  builder.download_and_prepare(download_config=config)
  again = pickle.loads(pickle.dumps(builder))
  assert len(again.as_data_source('train')) == 3


# --- Bad recordings ----------------------------------------------------------

_HEADERLESS = b'RIFF\x00\x00\x00\x00WAVEnonsense' + b'\0' * 400
_NOT_FINITE = io.BytesIO()
soundfile.write(
  _NOT_FINITE, np.full(160_000, np.nan), 16_000, format='WAV', subtype='FLOAT'
)
BAD = {
  'missing': (None, 'missing'),
  'empty': (b'', 'an empty file'),
  'truncated': (WAVS['00_000002.wav'][:-5000], 'truncated: 315044 bytes'),
  'cut in the header': (WAVS['00_000002.wav'][:20], 'truncated: 20 bytes'),
  'unreadable header': (_HEADERLESS, 'not a readable sound file'),
  'no sound at all': (b'hello, world' * 100, 'not a readable sound file'),
  'four seconds': (wav(1, 4.0), '4.000 s long at 16000 Hz, expected 10 s'),
  'eleven seconds': (wav(1, 11.0), '11.000 s long'),
  'not finite': (_NOT_FINITE.getvalue(), 'not finite'),
  'huge': (b'\0' * (sources.MAX_BYTES + 1), 'too large'),
}


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('fault', BAD)
def test_bad_recording(tmp_path, manual, fault, packed, said):
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
  assert '1 recordings skipped' in said.text
  assert len(builder.as_data_source('train')) == 2
  # Whoever opens it later is told.
  said.clear()
  sonyc_ust.make_builder(tmp_path / 'data', 'v1')
  assert 'was built without 1 recordings' in said.text


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


def test_extra_recordings_are_left_out_and_named(tmp_path, manual, said):
  write_folder(manual / 'audio', {**WAVS, '77_123456.wav': wav(9)})
  builder = build(tmp_path, manual)
  assert '1 recordings that the annotations do not name' in said.text
  assert '77_123456.wav' in said.text
  assert builder.info.metadata['build']['extra'] == 1


def test_the_same_recording_twice_is_counted(tmp_path, manual, said):
  write_folder(manual / 'a')
  write_folder(manual / 'b', {'00_000001.wav': WAVS['00_000001.wav']})
  builder = build(tmp_path, manual)
  assert builder.info.metadata['build']['duplicates'] == 1
  assert '1 recordings were there twice' in said.text


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
    (_member('00_000009.wav', tarfile.SYMTYPE), 'a link or device'),
    (_member('00_000009.wav', tarfile.LNKTYPE), 'a link or device'),
    (_member('00_000009.wav', tarfile.CHRTYPE), 'a link or device'),
    (_member('00_000009.wav', tarfile.FIFOTYPE), 'a link or device'),
  ],
)
def test_unsafe_member_is_refused(tmp_path, manual, member, words):
  write_archive(manual / 'audio-dev.tar.gz', members=[member])
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual, on_bad_recording='skip')
  assert 'audio-dev.tar.gz' in str(error.value)
  assert repr(member.name) in str(error.value)


@pytest.mark.parametrize('keep', [0, 5, 0.3, 0.7, -9])
def test_cut_archive(tmp_path, manual, keep):
  path = manual / 'audio-dev.tar.gz'
  _archive(manual)
  data = path.read_bytes()
  path.write_bytes(data[: int(keep * len(data)) if 0 < keep < 1 else keep])
  with pytest.raises(ValueError, match='the archive is cut or damaged') as e:
    build(tmp_path, manual, on_bad_recording='skip')
  assert str(path) in str(e.value)
  if keep == -9:
    assert re.search('after [45] recordings .*: audio-dev', str(e.value))


def test_flipped_bit_in_an_archive(tmp_path, manual):
  path = manual / 'audio-dev.tar.gz'
  _archive(manual)
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
  _audio(manual)
  path = manual / 'annotations.csv'
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(ValueError, match=words) as error:
    build(tmp_path, manual)
  assert 'annotations.csv' in str(error.value)


@pytest.mark.parametrize(('has', 'asked'), [('v1', 'v2'), ('v2', 'v1')])
def test_annotations_of_the_other_version(tmp_path, manual, has, asked):
  _audio(manual)
  write_annotations(manual / 'annotations.csv', version=has)
  with pytest.raises(ValueError, match=f'an annotations file of {has}') as e:
    build(tmp_path, manual, version=asked)
  assert f'sonyc_ust/{asked} is asked for' in str(e.value)


# --- Downloads ---------------------------------------------------------------


def test_download_then_build_then_reuse(tmp_path, server, said):
  got = raw_records(build(tmp_path, base_url=server.url))
  reference = tmp_path / 'reference'
  write_folder(reference)
  write_annotations(reference / 'annotations.csv')
  assert got == raw_records(build(tmp_path, reference, 'other'))
  assert 'no md5 is published' in said.text
  folder = availability.download_dir(tmp_path / 'data', 'v1')
  assert 'md5' in (folder / 'checksums.json').read_text()
  before = list(server.log)
  assert (
    sonyc_ust.check_available(tmp_path / 'data', base_url=server.url).missing
    == ()
  )
  assert server.log == before


ARCHIVE = '3338310/files/audio-dev.tar.gz'


def test_a_cut_connection_is_taken_up_within_one_call(tmp_path, server):
  whole = (server.root / ARCHIVE).read_bytes()
  server.cut_after = len(whole) // 3
  target = tmp_path / 'audio-dev.tar.gz'
  fetch.fetch(f'{server.url}/{ARCHIVE}', target, pause_seconds=0)
  assert target.read_bytes() == whole
  asked = [r[2] for r in server.gets('audio-dev.tar.gz')]
  assert asked == [None, f'bytes={len(whole) // 3}-']


def test_interrupted_download_continues_in_the_next_run(tmp_path, server):
  whole = (server.root / ARCHIVE).read_bytes()
  third = len(whole) // 3
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  server.cut_after, server.status_after_cut = third, 503
  with pytest.raises(fetch.DownloadError) as error:
    fetch.fetch(url, target, attempts=2, pause_seconds=0)
  assert 'the server answered 503' in str(error.value)
  assert f'{third} bytes are kept in {target}.part' in str(error.value)
  assert 'run again to continue' in str(error.value)
  assert not target.exists()

  server.status = None
  server.log.clear()
  fetch.fetch(url, target)
  assert [r[2] for r in server.gets('')] == [f'bytes={third}-']
  assert target.read_bytes() == whole
  assert {p.name for p in tmp_path.glob('audio-dev*')} == {'audio-dev.tar.gz'}


@pytest.mark.parametrize('fault', ['ignores Range', 'other content'])
def test_a_part_that_cannot_be_continued_starts_anew(tmp_path, server, fault):
  whole = (server.root / ARCHIVE).read_bytes()
  target = tmp_path / 'audio-dev.tar.gz'
  part = target.with_name('audio-dev.tar.gz.part')
  part.write_bytes(b'x' * 1000)
  if fault == 'ignores Range':
    server.ignore_range = True
  else:
    part.with_name(part.name + '.etag').write_text('"of another file"')
  fetch.fetch(f'{server.url}/{ARCHIVE}', target)
  assert target.read_bytes() == whole


@pytest.mark.parametrize('extra', [b'', b'too much'])
def test_a_part_that_is_whole_already(tmp_path, server, extra):
  whole = (server.root / ARCHIVE).read_bytes()
  target = tmp_path / 'audio-dev.tar.gz'
  target.with_name('audio-dev.tar.gz.part').write_bytes(whole + extra)
  fetch.fetch(f'{server.url}/{ARCHIVE}', target, pause_seconds=0)
  assert target.read_bytes() == whole


def test_wrong_published_md5(tmp_path, server):
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  with pytest.raises(fetch.DownloadError, match='published') as error:
    fetch.fetch(url, target, md5='0' * 32)
  whole = (server.root / ARCHIVE).read_bytes()
  found = hashlib.md5(whole).hexdigest()
  assert f'md5 is {found}, expected {"0" * 32}' in str(error.value)
  assert not target.exists()  # so that the next run downloads it anew
  assert fetch.fetch(url, target, md5=found).read_bytes() == whole


def test_changed_since_the_first_download(tmp_path, server):
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  fetch.fetch(url, target)
  data = bytearray(target.read_bytes())
  data[100] ^= 1
  target.write_bytes(data)
  with pytest.raises(fetch.DownloadError, match='recorded at the first'):
    fetch.fetch(url, target)
  assert target.with_name('audio-dev.tar.gz.bad').exists()
  server.log.clear()
  fetch.fetch(url, target)
  assert len(server.gets('audio-dev.tar.gz')) == 1


def test_a_refusal_is_not_tried_again(tmp_path, server):
  url = f'{server.url}/3338310/files/nothing.tar.gz'
  with pytest.raises(fetch.DownloadError, match='404'):
    fetch.fetch(url, tmp_path / 'nothing.tar.gz')
  assert len(server.gets('nothing.tar.gz')) == 1


def test_no_room_for_the_download(tmp_path, server, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10)
  monkeypatch.setattr(fetch.shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(fetch.DownloadError, match='only 10 are free'):
    fetch.fetch(f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz')


def test_a_failed_build_does_not_download_again(tmp_path, server):
  write_archive(server.root / ARCHIVE, {**WAVS, '00_000001.wav': b'broken'})
  with pytest.raises(ValueError, match='not a readable sound file'):
    build(tmp_path, base_url=server.url)
  assert len(server.gets('audio-dev.tar.gz')) == 1
  builder = build(tmp_path, base_url=server.url, on_bad_recording='skip')
  assert len(server.gets('audio-dev.tar.gz')) == 1
  assert len(builder.as_data_source('train')) == 2


# --- What is not there -------------------------------------------------------

NOWHERE = 'http://127.0.0.1:9/record'  # the discard port: nobody answers


def test_nothing_here_and_no_network(tmp_path, monkeypatch):
  monkeypatch.setattr(prepare, 'prepare', lambda *_: pytest.fail('worked'))
  for check in (
    lambda: build(tmp_path, base_url=NOWHERE),
    lambda: sonyc_ust.check_available(tmp_path / 'data', base_url=NOWHERE),
  ):
    with pytest.raises(sonyc_ust.NotAvailableError) as error:
      check()
    text = str(error.value)
    for name in ('annotations.csv', 'audio-dev.tar.gz', 'audio-eval.tar.gz'):
      assert f'{NOWHERE}/3338310/files/{name}' in text
    assert 'manual_dir' in text
    assert str(tmp_path / 'data/downloads/sonyc_ust/3338310') in text
    assert 'python run.py --config=configs/iusp.py' in text
    assert 'cannot be reached' in text


def test_nothing_here_names_the_md5_of_v2(tmp_path):
  with pytest.raises(sonyc_ust.NotAvailableError) as error:
    sonyc_ust.check_available(tmp_path, 'v2', base_url=NOWHERE)
  assert 'audio-18.tar.gz  (md5 c6b2ef4d0d5b7269d465c469cdbbdc4b)' in str(
    error.value
  )


def test_only_the_annotations_are_not_there(tmp_path, manual):
  _audio(manual)
  (manual / 'annotations.csv').unlink()
  with pytest.raises(sonyc_ust.NotAvailableError) as error:
    sonyc_ust.check_available(tmp_path, 'v1', manual, NOWHERE)
  assert 'SONYC-UST v1: annotations.csv not found' in str(error.value)


def test_files_put_where_downloads_go(tmp_path):
  folder = availability.download_dir(tmp_path / 'data', 'v1')
  folder.mkdir(parents=True)
  write_annotations(folder / 'annotations.csv')
  write_archive(folder / 'audio-dev.tar.gz')
  write_archive(folder / 'audio-eval.tar.gz', {}, 'audio-eval/')
  builder = build(tmp_path, base_url=NOWHERE)
  assert len(builder.as_data_source('train')) == 3


def test_manual_dir_that_is_no_folder(tmp_path):
  with pytest.raises(ValueError, match='nowhere is not a folder'):
    build(tmp_path, tmp_path / 'nowhere')


def test_unknown_settings_list_the_legal_ones(tmp_path):
  with pytest.raises(ValueError, match=r"'v3'; legal: v1, v2"):
    sonyc_ust.make_builder(tmp_path, 'v3')
  with pytest.raises(ValueError, match='stop'):
    sonyc_ust.make_builder(tmp_path, on_bad_recording='ignore')


# --- Full disk, TensorFlow, versions -----------------------------------------


def _python(code, *arguments):
  root = pathlib.Path(__file__).resolve().parent.parent
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )


_FULL = """
  import resource, sys
  import tfds_dcase.sonyc_ust as sonyc_ust
  data_dir, url, limit = sys.argv[1:]
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
  sonyc_ust.make_builder(data_dir, base_url=url).download_and_prepare()
"""


# In the download (1.5 MB), and in the ArrayRecord itself: three clips wait in
# 960 kB, and their records are a little larger.
@pytest.mark.parametrize('limit', [500_000, 960_000 + 2000])
def test_full_disk(tmp_path, server, limit):
  if limit > 900_000:  # the archive may not be what is too large
    quiet = {n: wav(i)[:44] + bytes(320_000) for i, n in enumerate(CLIPS)}
    for each in ('00_000001.wav', '00_000002.wav', '01_000003.wav'):
      quiet[each] = WAVS[each]
    for name in ('audio-dev.tar.gz', 'audio-eval.tar.gz'):
      (server.root / '3338310/files' / name).unlink()
    half = {n: quiet[n] for n in list(CLIPS)[:2]}
    rest = {n: quiet[n] for n in list(CLIPS)[2:]}
    write_archive(server.root / '3338310/files/audio-dev.tar.gz', half)
    write_archive(server.root / '3338310/files/audio-eval.tar.gz', rest)
    text = (server.root / '3338310/files/annotations.csv').read_text()
    test = text.replace('validate,2,02_000005', 'test,2,02_000005')
    (server.root / '3338310/files/annotations.csv').write_text(test)
  done = _python(_FULL, tmp_path / 'data', server.url, limit)
  assert done.returncode == 1
  message = done.stderr.strip().rpartition('OSError: ')[2]
  assert f'The disk of {tmp_path / "data"} is full' in message
  assert 'File too large' in message
  assert 'run again' in message
  assert not list((tmp_path / 'data/sonyc_ust/v1').glob('*'))
  whole = {r[1] for r in server.log if r[0] == 'GET'}
  server.log.clear()
  builder = build(tmp_path, base_url=server.url)
  assert len(builder.as_data_source('train')) == 3
  again = {r[1]: r[2] for r in server.log if r[0] == 'GET'}
  if limit > 900_000:
    assert len(whole) == 3
    assert not again  # all of it was downloaded
  else:
    assert again['/record/' + ARCHIVE] == f'bytes={limit}-'


def test_tensorflow_is_never_imported(tmp_path, manual):
  write_archive(manual / 'audio-dev.tar.gz')
  done = _python(
    """
    import sys
    import tfds_dcase.sonyc_ust as sonyc_ust
    builder = sonyc_ust.make_builder(sys.argv[1], manual_dir=sys.argv[2])
    builder.download_and_prepare()
    print(len(builder.as_data_source('train')), 'tensorflow' in sys.modules)
    """,
    tmp_path / 'data',
    manual,
  )
  assert done.stdout.split()[-2:] == ['3', 'False'], done.stderr


@pytest.mark.parametrize(
  ('train', 'test', 'split'),
  [
    ('v2', 'v1', 'test'),
    ('v2', 'v1', 'validate'),
    ('sonyc_ust/v2', 'sonyc_ust/v1', 'test'),
    ('v1', 'v2', 'validate'),
  ],
)
def test_mixed_versions_are_refused(train, test, split):
  with pytest.raises(ValueError, match='is refused') as error:
    sonyc_ust.refuse_mixed_versions(train, test, split)
  assert "v1's clips" in str(error.value)
  assert f'the {split} split' in str(error.value)


def test_builders_of_mixed_versions_are_refused(tmp_path):
  one, two = (sonyc_ust.make_builder(tmp_path, v) for v in ('v1', 'v2'))
  with pytest.raises(ValueError, match='Training on sonyc_ust/v2'):
    sonyc_ust.refuse_mixed_versions(two, one)
  sonyc_ust.refuse_mixed_versions(one, one)
  sonyc_ust.refuse_mixed_versions(two, two, 'validate')
  sonyc_ust.refuse_mixed_versions(one, two)


def test_records_are_those_published():
  v1, v2 = records.release('v1'), records.release('v2')
  assert [sum(r.num_clips.values()) for r in (v1, v2)] == [3068, 18510]
  md5 = [file.md5 for file in v2.archives]
  assert len(set(md5)) == 19
  assert {len(m) for m in md5} == {32}
  assert v2.url('audio-18.tar.gz') == (
    'https://zenodo.org/record/3966543/files/audio-18.tar.gz'
  )
  for release in (v1, v2):
    for file in release.archives:
      assert records.ARCHIVE_PATTERN.fullmatch(file.name)
