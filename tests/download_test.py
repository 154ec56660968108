"""Downloads: resumed over connections and runs, verified on every use."""

import hashlib
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import time

import pytest
from sonyc_ust_world import Server, python

from tfds_dcase import disk, download, interrupt

ARCHIVE = '3338310/files/audio-dev.tar.gz'
WHOLE = b''.join(hashlib.sha256(bytes([n])).digest() for n in range(256)) * 40


@pytest.fixture
def logged(caplog):
  """The records of the builders' logger."""
  caplog.set_level(logging.INFO, logger='tfds_dcase')
  return caplog


@pytest.fixture
def server(tmp_path):
  path = tmp_path / 'zenodo' / ARCHIVE
  path.parent.mkdir(parents=True)
  path.write_bytes(WHOLE)
  server = Server(tmp_path / 'zenodo')
  yield server
  server.http.shutdown()
  server.http.server_close()


def test_a_cut_connection_is_taken_up_within_one_call(tmp_path, server):
  whole = (server.root / ARCHIVE).read_bytes()
  server.cut_after = len(whole) // 3
  target = tmp_path / 'audio-dev.tar.gz'
  download.download(f'{server.url}/{ARCHIVE}', tmp_path, pause_seconds=0)
  assert target.read_bytes() == whole
  asked = [r[2] for r in server.gets('audio-dev.tar.gz')]
  assert asked == [None, f'bytes={len(whole) // 3}-']


def test_interrupted_download_continues_in_the_next_run(tmp_path, server):
  whole = (server.root / ARCHIVE).read_bytes()
  third = len(whole) // 3
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  server.cut_after, server.status_after_cut = third, 503
  with pytest.raises(download.DownloadError) as error:
    download.download(url, tmp_path, attempts=2, pause_seconds=0)
  assert 'the server answered 503' in str(error.value)
  assert f'{third} bytes are kept in {target}.part' in str(error.value)
  assert 'run again to continue' in str(error.value)
  assert not target.exists()

  server.status = None
  server.log.clear()
  download.download(url, tmp_path)
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
  download.download(f'{server.url}/{ARCHIVE}', tmp_path)
  assert target.read_bytes() == whole


@pytest.mark.parametrize('extra', [b'', b'too much'])
def test_a_part_that_is_whole_already(tmp_path, server, extra):
  whole = (server.root / ARCHIVE).read_bytes()
  target = tmp_path / 'audio-dev.tar.gz'
  target.with_name('audio-dev.tar.gz.part').write_bytes(whole + extra)
  download.download(f'{server.url}/{ARCHIVE}', tmp_path, pause_seconds=0)
  assert target.read_bytes() == whole


def test_wrong_published_md5(tmp_path, server):
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  with pytest.raises(download.DownloadError, match='published') as error:
    download.download(url, tmp_path, md5='0' * 32)
  whole = (server.root / ARCHIVE).read_bytes()
  found = hashlib.md5(whole).hexdigest()
  assert f'md5 is {found}, expected {"0" * 32}' in str(error.value)
  assert not target.exists()  # so that the next run downloads it anew
  assert download.download(url, tmp_path, md5=found).read_bytes() == whole


def test_changed_since_the_first_download(tmp_path, server):
  url, target = f'{server.url}/{ARCHIVE}', tmp_path / 'audio-dev.tar.gz'
  download.download(url, tmp_path)
  data = bytearray(target.read_bytes())
  data[100] ^= 1
  target.write_bytes(data)
  with pytest.raises(download.DownloadError, match='recorded at the first'):
    download.download(url, tmp_path)
  assert target.with_name('audio-dev.tar.gz.bad').exists()
  server.log.clear()
  download.download(url, tmp_path)
  assert len(server.gets('audio-dev.tar.gz')) == 1


def test_a_refusal_is_not_tried_again(tmp_path, server):
  url = f'{server.url}/3338310/files/nothing.tar.gz'
  with pytest.raises(download.DownloadError, match='404'):
    download.download(url, tmp_path)
  assert len(server.gets('nothing.tar.gz')) == 1


def test_too_little_space_for_the_download(tmp_path, server, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=10)
  monkeypatch.setattr(download.shutil, 'disk_usage', lambda _: usage)
  with pytest.raises(download.DownloadError, match='only 10 are free'):
    download.download(f'{server.url}/{ARCHIVE}', tmp_path)


@pytest.mark.parametrize('attempts', [1, 3])
def test_connections_without_a_new_byte_are_counted(tmp_path, server, attempts):
  server.cuts = [0] * 50
  with pytest.raises(download.DownloadError, match='connection ended at 0 of'):
    download.download(
      f'{server.url}/{ARCHIVE}', tmp_path, attempts=attempts, pause_seconds=0
    )
  assert len(server.gets(ARCHIVE)) == attempts


def test_a_new_byte_starts_the_count_anew(tmp_path, server):
  # Many connections that end early, and never two in a row without progress.
  server.cuts = [100, 0, 200, 0, 1, 0, 5, 6, 7, 0, 300]
  path = download.download(
    f'{server.url}/{ARCHIVE}', tmp_path, attempts=2, pause_seconds=0
  )
  assert path.read_bytes() == WHOLE
  assert len(server.gets(ARCHIVE)) == 12


def test_the_pause_grows_only_while_nothing_comes(
  tmp_path, server, monkeypatch
):
  pauses = []
  monkeypatch.setattr(download, '_wait', pauses.append)
  server.cuts = [100, 0, 0, 100, 0]
  download.download(f'{server.url}/{ARCHIVE}', tmp_path, pause_seconds=1)
  assert pauses == [1, 2, 4, 1, 2]


@pytest.mark.parametrize('right', [True, False])
@pytest.mark.parametrize('kind', ['md5', 'sha256'])
def test_published_checksums(tmp_path, server, logged, kind, right):
  url = f'{server.url}/{ARCHIVE}'
  digest = hashlib.new(kind, WHOLE).hexdigest()
  expected = digest if right else '0' * len(digest)
  published = {'size': len(WHOLE), kind: expected}
  if right:
    path = download.download(url, tmp_path, 'other.bin', **published)
    assert path == tmp_path / 'other.bin'
    assert path.read_bytes() == WHOLE
    download.verify(path, **published)
    assert 'no checksum is published' not in logged.text
    return
  with pytest.raises(download.DownloadError) as error:
    download.download(url, tmp_path, 'other.bin', **published)
  assert f'{kind} is {digest}, expected {expected} (published' in str(
    error.value
  )
  assert (tmp_path / 'other.bin.bad').read_bytes() == WHOLE
  assert not (tmp_path / 'other.bin').exists()


def test_another_size_is_refused_before_the_download(tmp_path, server):
  with pytest.raises(download.DownloadError) as error:
    download.download(f'{server.url}/{ARCHIVE}', tmp_path, size=7)
  assert f'offers {len(WHOLE)} bytes, expected 7' in str(error.value)
  assert not list(tmp_path.glob('audio-dev*.part'))


def test_an_answer_from_another_offset_is_not_appended(tmp_path, server):
  (tmp_path / 'audio-dev.tar.gz.part').write_bytes(WHOLE[:1000])
  server.shift = 5
  with pytest.raises(download.DownloadError, match='sent those from 1005'):
    download.download(
      f'{server.url}/{ARCHIVE}', tmp_path, attempts=2, pause_seconds=0
    )
  server.shift = 0
  path = download.download(f'{server.url}/{ARCHIVE}', tmp_path)
  assert path.read_bytes() == WHOLE


def test_an_address_without_a_file_name(tmp_path):
  with pytest.raises(ValueError, match='give `name`'):
    download.download('http://127.0.0.1:9/', tmp_path)


def test_damaged_checksums_are_named_and_can_be_deleted(tmp_path, server):
  url = f'{server.url}/{ARCHIVE}'
  download.download(url, tmp_path)
  receipts = tmp_path / 'checksums.json'
  whole = json.loads(receipts.read_text())
  for damaged in (receipts.read_text()[:40], '[]', ''):
    receipts.write_text(damaged)
    with pytest.raises(download.DownloadError) as error:
      download.download(url, tmp_path)
    assert f'{receipts} is damaged' in str(error.value)
    assert 'Delete it' in str(error.value)
  receipts.unlink()
  download.download(url, tmp_path)
  again = json.loads(receipts.read_text())['audio-dev.tar.gz']
  assert again['sha256'] == whole['audio-dev.tar.gz']['sha256']
  assert len(server.gets(ARCHIVE)) == 1


def test_a_read_only_folder_is_verified(tmp_path, server, monkeypatch):
  url = f'{server.url}/{ARCHIVE}'
  path = download.download(url, tmp_path)

  def refuse(name, mode='r', **options):
    if mode[0] in 'wa':
      raise PermissionError(13, 'Permission denied', str(name))
    return open(name, mode, **options)

  monkeypatch.setattr(download, 'open', refuse, raising=False)
  monkeypatch.setattr(pathlib.Path, 'write_text', lambda p, _: refuse(p, 'w'))
  assert download.download(url, tmp_path) == path
  (tmp_path / 'checksums.json').unlink()
  assert download.download(url, tmp_path) == path  # nothing can be recorded
  path.unlink()
  with pytest.raises(PermissionError, match='audio-dev'):
    download.download(url, tmp_path)


def test_a_wish_to_stop_ends_a_download_that_the_next_run_continues(
  tmp_path, server, monkeypatch
):
  class StopError(Exception):
    pass

  def check():
    if (tmp_path / 'audio-dev.tar.gz.part').exists():
      raise StopError

  url = f'{server.url}/{ARCHIVE}'
  server.cuts = [1000]
  with monkeypatch.context() as patch:
    patch.setattr(interrupt, 'CHECKS', [check])
    with pytest.raises(StopError):
      download.download(url, tmp_path)
  assert download.download(url, tmp_path).read_bytes() == WHOLE


_DOWNLOAD = """
  import resource, sys
  from tfds_dcase import download
  url, folder, limit = sys.argv[1:]
  if int(limit):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
  download.download(url, folder, pause_seconds=0)
"""


@pytest.mark.parametrize('limit', [1, 1000, 200_000])
def test_a_full_disk_is_named(tmp_path, server, limit):
  url, folder = f'{server.url}/{ARCHIVE}', tmp_path / 'full'
  done = python(_DOWNLOAD, url, folder, limit)
  assert done.returncode == 1
  message = done.stderr.strip().splitlines()[-1]
  assert f'The disk of {folder}/audio-dev.tar.gz is full' in message
  assert 'run again' in message
  server.log.clear()
  assert download.download(url, folder).read_bytes() == WHOLE
  assert server.gets(ARCHIVE)[0][2] in (None, f'bytes={limit}-')


def start(server, folder):
  root = pathlib.Path(__file__).resolve().parent.parent
  code = (
    'import sys; from tfds_dcase import download; '
    'download.download(sys.argv[1], sys.argv[2])'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code, f'{server.url}/{ARCHIVE}', str(folder)],
    env={**os.environ, 'PYTHONPATH': str(root)},
  )


def wait_for(condition):
  for _ in range(600):
    if condition():
      return
    time.sleep(0.1)
  pytest.fail('nothing happened within a minute')


@pytest.mark.parametrize('killed', [False, True])
def test_two_processes_download_a_file_once(tmp_path, server, killed):
  server.hold = threading.Event()
  part = tmp_path / 'audio-dev.tar.gz.part'
  half = len(WHOLE) // 2
  first = start(server, tmp_path)
  wait_for(lambda: part.exists() and part.stat().st_size == half)
  second = start(server, tmp_path)
  if killed:
    first.kill()
    wait_for(lambda: len(server.gets(ARCHIVE)) == 2)
    assert server.gets(ARCHIVE)[1][2] == f'bytes={half}-'
  server.hold.set()
  assert first.wait() == (-9 if killed else 0)
  assert second.wait() == 0
  assert (tmp_path / 'audio-dev.tar.gz').read_bytes() == WHOLE
  assert len(server.gets(ARCHIVE)) == 1 + killed


def test_full_disk_errors_of_every_writer():
  for error in (
    OSError(28, 'No space left on device'),
    RuntimeError('ArrayRecord: No space left on device'),
  ):
    with (
      pytest.raises(disk.FullDiskError, match='disk of /data is full') as found,
      disk.full_disk_named('/data', 'It takes 2 GB. '),
    ):
      raise error
    assert 'It takes 2 GB.' in str(found.value)
  with pytest.raises(RuntimeError, match='other'), disk.full_disk_named('/d'):
    raise RuntimeError('other')
