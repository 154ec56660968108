"""Downloads large files: progress, resume, and a checksum on every use.

A download goes to `NAME.part` and is renamed when it is whole, so that a file
under its own name is always complete. `checksums.json` beside it keeps size
and md5: where the publisher's md5 is known it is compared with that, else with
the one recorded at the first download.
"""

import contextlib
import errno
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import time
import urllib.error
import urllib.request

import tqdm

from tfds_dcase.notes import LOGGER

_CHUNK = 1 << 20
_RECEIPTS = 'checksums.json'
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
_RETRIED = (408, 429, 500, 502, 503, 504)


class DownloadError(ValueError):
  """A file could not be had whole; says how far it came and what to do."""


def fetch(
  url: str,
  path: str | os.PathLike,
  md5: str | None = None,
  attempts: int = 5,
  pause_seconds: float = 2.0,
  timeout_seconds: float = 60.0,
) -> pathlib.Path:
  """Downloads `url` to `path`, continuing what an earlier call began.

  Args:
    url: http(s) address.
    path: where the whole file goes; `path.part` holds the unfinished one.
    md5: the published md5 where known.
    attempts: how often in a row a connection may bring nothing new.
    pause_seconds: wait before the second attempt, doubled every time.
    timeout_seconds: silence after which a connection counts as dead.

  Returns:
    `path`. A file that is there already is verified, not downloaded.

  Raises:
    DownloadError: refused by the server, interrupted too often, or a wrong
      size or md5.
    OSError: no space left.
  """
  path = pathlib.Path(path)
  if path.exists():
    verify(path, md5)
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  idle = 0
  while idle < attempts:
    before = _size(part)
    try:
      total = _continue(url, part, timeout_seconds)
      problem = f'the connection ended at {_size(part)} of {total} bytes'
      if total is None or _size(part) == total:
        part.rename(path)
        verify(path, md5, url)
        return path
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
      time.sleep(min(pause_seconds * 2**idle, 60.0))
  raise DownloadError(_message(url, part, problem))


def verify(
  path: str | os.PathLike, md5: str | None = None, url: str | None = None
) -> str:
  """Compares a file with its published md5 or the one recorded earlier.

  Args:
    path: a whole file. One that fails is set aside as `NAME.bad`.
    md5: the published md5 where known.
    url: where the file came from, for the record.

  Returns:
    Its md5. An unknown one is recorded in `checksums.json`, and this is said.

  Raises:
    DownloadError: size or md5 differ.
  """
  path = pathlib.Path(path)
  found = {'size': _size(path), 'md5': file_md5(path)}
  receipts = _read_receipts(path.parent)
  recorded = receipts.get(path.name, {})
  expected = {'md5': md5} if md5 else recorded
  for key in ('size', 'md5'):
    if key in expected and found[key] != expected[key]:
      bad = path.with_name(path.name + '.bad')
      path.replace(bad)
      whose = 'published' if md5 else 'recorded at the first download'
      raise DownloadError(
        f'{path}: {key} is {found[key]}, expected {expected[key]} ({whose}; '
        f'{found["size"]} bytes on disk). The file was set aside as '
        f'{bad.name}; run again to download it anew.'
      )
  if not md5 and not recorded:
    LOGGER.warning(
      '%s: no md5 is published for this file. Recorded size %d and md5 %s; '
      'later runs verify against these.',
      path,
      found['size'],
      found['md5'],
    )
  if not recorded:
    source = 'published' if md5 else 'first download'
    receipts[path.name] = {**found, 'md5_source': source}
    if url:
      receipts[path.name]['url'] = url
    _write_receipts(path.parent, receipts)
  return found['md5']


def probe(url: str, timeout_seconds: float = 10.0) -> int | None:
  """Asks for a file's size without downloading it.

  Returns:
    Bytes, None where the server does not say.

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


def file_md5(path: str | os.PathLike) -> str:
  """md5 of a file, read in pieces."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'md5').hexdigest()


def _continue(url, part, timeout_seconds) -> int | None:
  """Appends what is missing to `part`; the whole's size, None if not said."""
  have = _size(part)
  tag_file = part.with_name(part.name + '.etag')
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
    resumed = answer.status == 206
    have = have if resumed else 0
    length = answer.headers.get('Content-Length')
    total = None if length is None else have + int(length)
    _check_space(part, total, have)
    with open(part, 'ab' if resumed else 'wb') as file:
      _copy(answer, file, url, have, total)
  if total is None or _size(part) == total:
    tag_file.unlink(missing_ok=True)
  return total


def _copy(answer, file, url, have, total):
  name = url.rpartition('/')[2]
  LOGGER.info('%s: downloading from byte %d of %s', name, have, total)
  with tqdm.tqdm(
    desc=name,
    initial=have,
    total=total,
    unit='B',
    unit_scale=True,
    disable=None,  # silent where no terminal shows it
  ) as bar:
    said = time.monotonic()
    while chunk := answer.read(_CHUNK):
      file.write(chunk)
      bar.update(len(chunk))
      if bar.disable and time.monotonic() - said > 30:
        said = time.monotonic()
        LOGGER.info('%s: %d of %s bytes', name, file.tell(), total)


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
  return json.loads(path.read_text()) if path.exists() else {}


def _write_receipts(folder, receipts):
  temporary = folder / (_RECEIPTS + '.part')
  temporary.write_text(json.dumps(receipts, indent=2, sort_keys=True))
  temporary.replace(folder / _RECEIPTS)
