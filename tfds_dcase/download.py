"""Downloads large files: progress, resume, and a checksum on every use.

The one module for all that is downloaded. A download goes to `NAME.part` and
is renamed when it is complete and verified, so that a file under its own name
is always complete. `NAME.part` is continued over connections and runs.
`checksums.json` beside it keeps size and checksum: where the publisher's
checksum is known it is compared with that, else with the one recorded at the
first download. Only one process at a time downloads to a folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import tqdm

from tfds_dcase import disk, interrupt
from tfds_dcase.notes import LOGGER

_CHUNK = 1 << 18
_RECEIPTS = 'checksums.json'
_LOCK = '.download.lock'
_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *_READ_ONLY)
_RETRIED = (408, 429, 500, 502, 503, 504)
_LOG_SECONDS = 30.0  # between progress lines where no terminal shows a bar


class DownloadError(ValueError):
  """A download that failed; the message has its state and what to do."""


def download(
  url: str,
  folder: str | os.PathLike,
  name: str | None = None,
  *,
  size: int | None = None,
  md5: str | None = None,
  sha256: str | None = None,
  attempts: int = 5,
  pause_seconds: float = 2.0,
  timeout_seconds: float = 60.0,
) -> pathlib.Path:
  """Downloads `url` to `folder / name`, continuing what an earlier call began.

  Args:
    url: http(s) address.
    folder: where the complete file goes; made if missing. `NAME.part` in it
      holds the incomplete one.
    name: of the file; None = the last part of the URL's path.
    size: the published size in bytes where known.
    md5: the published md5 where known.
    sha256: the published sha256 where known. Without any checksum, the sha256
      of the first download is recorded, and later uses are compared with it.
    attempts: how many connections in a row may bring no new byte.
    pause_seconds: wait before the second attempt, doubled every time.
    timeout_seconds: silence after which a connection counts as dead.

  Returns:
    The path. A file that is there already is verified, not downloaded.

  Raises:
    DownloadError: refused by the server, interrupted too often, a server that
      offers another size, or a wrong size or checksum.
    disk.FullDiskError: no space left; names the file.
    OSError: a folder that cannot be written.
  """
  path = pathlib.Path(folder).expanduser() / (name or _name(url))
  published = {'size': size, 'md5': md5, 'sha256': sha256}
  with disk.full_disk_named(path), _locked(path.parent):
    if not path.exists():
      part = path.with_name(f'{path.name}.part')
      _download_part(url, part, size, attempts, pause_seconds, timeout_seconds)
      _verify(part, path, published, url)
      part.rename(path)
    else:
      _verify(path, path, published, url)
  return path


def verify(
  path: str | os.PathLike,
  *,
  size: int | None = None,
  md5: str | None = None,
  sha256: str | None = None,
  url: str | None = None,
) -> None:
  """Compares a file with its published checksum or the one recorded earlier.

  Args:
    path: a complete file. One that fails is set aside as `NAME.bad`.
    size: the published size in bytes where known.
    md5: the published md5 where known.
    sha256: the published sha256 where known. Without any checksum the file's
      sha256 is recorded in `checksums.json`, and logged.
    url: where the file came from, for the record.

  Raises:
    DownloadError: size or checksum differ, or `checksums.json` is damaged.
  """
  path = pathlib.Path(path)
  published = {'size': size, 'md5': md5, 'sha256': sha256}
  with disk.full_disk_named(path), _locked(path.parent):
    _verify(path, path, published, url)


def probe(url: str, timeout_seconds: float = 10.0) -> int | None:
  """Asks for a file's size without downloading it.

  Returns:
    Bytes, None where the server does not report it.

  Raises:
    DownloadError: the server cannot be reached or does not have the file.
  """
  request = urllib.request.Request(url, method='HEAD')
  try:
    with urllib.request.urlopen(request, timeout=timeout_seconds) as answer:
      length = answer.headers.get('Content-Length')
  except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
    raise DownloadError(f'{url} cannot be reached: {error}') from error
  return int(length) if length else None


def file_digest(path: str | os.PathLike, algorithm: str = 'md5') -> str:
  """Checksum of a file in hexadecimal digits, read in pieces."""
  digest = hashlib.new(algorithm)
  with open(path, 'rb', buffering=0) as file:
    while chunk := file.read(_CHUNK):
      interrupt.check()
      digest.update(chunk)
  return digest.hexdigest()


def _name(url: str) -> str:
  """The last part of the URL's path."""
  path = urllib.parse.unquote(urllib.parse.urlsplit(url).path)
  name = path.rpartition('/')[2]
  if name in ('', '.', '..'):
    raise ValueError(f'{url!r} ends in no file name; give `name`')
  return name


def _download_part(url, part, size, attempts, pause_seconds, timeout_seconds):
  """Connects until `part` is complete, or nothing new comes any more."""
  idle, problem = 0, ''
  while idle < attempts:
    before = _size(part)
    try:
      total = interrupt.wait_for(_continue, url, part, size, timeout_seconds)
      if total is None or _size(part) == total:
        return
      problem = f'the connection ended at {_size(part)} of {total} bytes'
    except urllib.error.HTTPError as error:
      problem = f'the server answered {error.code} {error.reason}'
      if error.code not in _RETRIED:
        raise DownloadError(_message(url, part, problem)) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
      if getattr(error, 'errno', None) in _DISK:
        raise  # the disk's, not the network's
      problem = f'{type(error).__name__}: {error}'
    idle = 0 if _size(part) > before else idle + 1
    if idle < attempts:
      LOGGER.warning('%s: %s; trying again.', url, problem)
      _wait(min(pause_seconds * 2**idle, 60.0))
  raise DownloadError(_message(url, part, problem))


def _wait(seconds: float) -> None:
  end = time.monotonic() + seconds
  while (left := end - time.monotonic()) > 0:
    interrupt.check()
    time.sleep(min(left, 1.0))


def _continue(url, part, size, timeout_seconds) -> int | None:
  """Appends what is missing to `part`; returns the size of the whole.

  None where neither the server reports it nor the publisher did.
  """
  have = _size(part)
  if size is not None and have == size:
    return size
  tag_file = part.with_name(f'{part.name}.etag')
  headers = {'Accept-Encoding': 'identity'}
  if have:
    headers['Range'] = f'bytes={have}-'
    if tag_file.exists():
      # A file that was replaced meanwhile is then sent from its beginning.
      headers['If-Range'] = tag_file.read_text()
  request = urllib.request.Request(url, headers=headers)
  try:
    answer = urllib.request.urlopen(request, timeout=timeout_seconds)
  except urllib.error.HTTPError as error:
    if error.code != 416:  # "range not satisfiable": nothing is missing,
      raise
    total = error.headers.get('Content-Range', '').rpartition('/')[2]
    if total == str(have):
      return have
    part.unlink()  # or what we have is not this file.
    return have + 1
  with contextlib.closing(answer):
    etag = answer.headers.get('ETag', '')
    if etag and not etag.startswith('W/'):
      tag_file.write_text(etag)
    have, total = _offset_and_total(answer, have, size, url, part)
    _check_space(part, total, have)
    with open(part, 'ab' if have else 'wb') as file:
      _copy(answer, file, part.name.removesuffix('.part'), have, total)
  if total is None or _size(part) == total:
    tag_file.unlink(missing_ok=True)
  return total


def _offset_and_total(answer, have, size, url, part):
  """Where the answer's first byte belongs, and the size of the whole."""
  if answer.status != 206:
    have = 0
  else:
    found = re.match(r'bytes (\d+)-', answer.headers.get('Content-Range', ''))
    if found and int(found[1]) != have:
      raise http.client.HTTPException(
        f'asked for bytes from {have} on, the server sent those from {found[1]}'
      )
  length = answer.headers.get('Content-Length')
  total = size if length is None else have + int(length)
  if size is not None and total != size:
    raise DownloadError(
      f'{url}: the server offers {total} bytes, expected {size} (published). '
      f'The file at this address was replaced, or {part} is of another file: '
      'delete it and run again.'
    )
  return have, total


def _copy(answer, file, name, have, total):
  LOGGER.info('%s: downloading from byte %d of %s', name, have, total)
  with tqdm.tqdm(
    desc=name,
    initial=have,
    total=total,
    unit='B',
    unit_scale=True,
    disable=None,  # silent where no terminal shows it
  ) as bar:
    logged = time.monotonic()
    while chunk := answer.read1(_CHUNK):  # whatever has come, so not late
      interrupt.check()
      file.write(chunk)
      file.flush()  # so that a killed process leaves what has come
      bar.update(len(chunk))
      if bar.disable and time.monotonic() - logged > _LOG_SECONDS:
        logged = time.monotonic()
        LOGGER.info('%s: %d of %s bytes', name, file.tell(), total)


def _verify(path, final_path, published, url) -> None:
  """`verify` of `path`, which is or will be `final_path`; holds the lock."""
  receipts = _read_receipts(path.parent)
  recorded = receipts.get(final_path.name, {})
  is_published = bool(published['md5'] or published['sha256'])
  expected = {k: v for k, v in published.items() if v is not None}
  if not is_published:
    expected = recorded | expected
  kind = next((k for k in ('sha256', 'md5') if expected.get(k)), 'sha256')
  found = {'size': _size(path), kind: file_digest(path, kind)}
  source = 'published' if is_published else 'recorded at the first download'
  for key, value in found.items():
    if key in expected and value != expected[key]:
      bad = final_path.with_name(f'{final_path.name}.bad')
      path.replace(bad)
      raise DownloadError(
        f'{final_path}: {key} is {value}, expected {expected[key]} ({source}; '
        f'{found["size"]} bytes on disk). The file was set aside as '
        f'{bad.name}; run again to download it anew.'
      )
  if recorded:
    return
  if not is_published:
    LOGGER.warning(
      '%s: no checksum is published for this file. Recorded size %d and %s '
      '%s; later runs verify against these.',
      *(final_path, found['size'], kind, found[kind]),
    )
  receipts[final_path.name] = {
    **found,
    'source': 'published' if is_published else 'first download',
    **({'url': url} if url else {}),
  }
  _write_receipts(path.parent, receipts)


def _check_space(part, total, have):
  if total is None:
    return
  free = shutil.disk_usage(part.parent).free
  if total - have > free:
    raise DownloadError(
      f'{part}: {total - have} bytes are still to come, but only {free} are '
      f'free on that disk. Free some space and run again; what is there is '
      'kept.'
    )


def _message(url, part, problem):
  return (
    f'{url}: {problem}. {_size(part)} bytes are kept in {part}; run again to '
    'continue from there.'
  )


def _size(path) -> int:
  return path.stat().st_size if path.exists() else 0


def _read_receipts(folder) -> dict[str, dict]:
  path = folder / _RECEIPTS
  if not path.exists():
    return {}
  try:
    receipts = json.loads(path.read_text())
    if isinstance(receipts, dict) and all(
      isinstance(each, dict) for each in receipts.values()
    ):
      return receipts
    problem = 'expected an entry for each file'
  except ValueError as error:
    problem = str(error)
  raise DownloadError(
    f'{path} is damaged ({problem}). Delete it: the checksums that are not '
    'published are then recorded anew from the files that are there.'
  )


def _write_receipts(folder, receipts):
  temporary = folder / f'{_RECEIPTS}.part'
  try:
    temporary.write_text(json.dumps(receipts, indent=2, sort_keys=True))
    temporary.replace(folder / _RECEIPTS)
  except OSError as error:
    if error.errno not in _READ_ONLY:
      raise
    LOGGER.info('%s cannot be written: no checksum is recorded', folder)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Lets one process at a time work in a folder; others wait and log it.

  The lock is the kernel's: it ends with its process, however that ends.
  """
  folder.mkdir(parents=True, exist_ok=True)
  try:
    file = open(folder / _LOCK, 'a')  # noqa: SIM115
  except OSError as error:
    if error.errno not in _READ_ONLY:
      raise
    yield  # Nothing changes in a read-only folder: files are only verified.
    return
  with file:
    _lock(file, folder)
    yield


def _lock(file, folder) -> None:
  logged = False
  while True:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      return
    except BlockingIOError:
      if not logged:
        LOGGER.info('Waiting for another process that downloads to %s', folder)
      logged = True
      _wait(0.2)
    except OSError:  # A file system without locks.
      return
