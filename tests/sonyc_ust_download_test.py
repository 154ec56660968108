"""SONYC-UST: downloads, and the messages where there are none."""

import logging
import shutil

import pytest
from sonyc_ust_world import (
  CLIPS,
  WAVS,
  Server,
  build,
  python,
  raw_records,
  wav,
  write_annotations,
  write_archive,
  write_folder,
)  # fmt: skip

import tfds_dcase.sonyc_ust as sonyc_ust
from tfds_dcase.sonyc_ust import availability, prepare


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


# --- Downloads ---------------------------------------------------------------


def test_download_then_build_then_reuse(tmp_path, server, logged):
  got = raw_records(build(tmp_path, base_url=server.url))
  reference = tmp_path / 'reference'
  write_folder(reference)
  write_annotations(reference / 'annotations.csv')
  assert got == raw_records(build(tmp_path, reference, 'other'))
  assert 'no checksum is published' in logged.text
  folder = availability.download_dir(tmp_path / 'data', 'v1')
  assert 'sha256' in (folder / 'checksums.json').read_text()
  # Prepared: nothing is needed, not even the downloads.
  shutil.rmtree(folder)
  server.log.clear()
  assert sonyc_ust.check_available(tmp_path / 'data') is None
  build(tmp_path)
  assert not server.log


def test_check_available_returns_what_would_be_used(tmp_path, server, manual):
  plan = sonyc_ust.check_available(tmp_path, 'v1', None, server.url)
  names = ['annotations.csv', 'audio-dev.tar.gz', 'audio-eval.tar.gz']
  assert [file.name for file in plan.missing] == names
  assert {r[0] for r in server.log} == {'HEAD'}
  write_archive(manual / 'audio.tar.gz')
  plan = sonyc_ust.check_available(tmp_path, 'v1', manual, NOWHERE)
  assert plan.missing == ()
  assert plan.archives == (manual / 'audio.tar.gz',)
  assert plan.annotations == manual / 'annotations.csv'


ARCHIVE = '3338310/files/audio-dev.tar.gz'


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
  write_folder(manual / 'audio')
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


# --- Full disk ---


def test_too_little_space_is_seen_before_decoding(
  tmp_path, manual, monkeypatch
):
  write_folder(manual / 'audio')
  usage = shutil.disk_usage(tmp_path)._replace(free=10)
  monkeypatch.setattr(prepare.shutil, 'disk_usage', lambda _: usage)
  monkeypatch.setattr(prepare.gather, 'gather', lambda *_: pytest.fail('read'))
  with pytest.raises(OSError, match=r'is full .*10 are free') as error:
    build(tmp_path, manual)
  assert 'takes about 2 GB' in str(error.value)


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
  done = python(_FULL, tmp_path / 'data', server.url, limit)
  assert done.returncode == 1
  message = done.stderr.strip().rpartition('Error: ')[2]
  full = tmp_path / 'data'
  if limit < 900_000:
    full /= 'downloads/sonyc_ust/3338310/audio-dev.tar.gz'
  assert f'The disk of {full} is full' in message
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
