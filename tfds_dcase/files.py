"""Files of a data folder: which may be opened at all, and their checksums."""

import concurrent.futures
import hashlib
import os
import pathlib
import stat
import time
from collections.abc import Iterator, Sequence

from tfds_dcase import interrupt

_CHUNK = 1 << 20  # bytes
_TICK_SECONDS = 3.0
_digests: dict[tuple[int, int, int, int], str] = {}
_KINDS = (
  (stat.S_ISDIR, 'a folder'),
  (stat.S_ISFIFO, 'a pipe (FIFO)'),
  (stat.S_ISSOCK, 'a socket'),
  (stat.S_ISCHR, 'a device'),
  (stat.S_ISBLK, 'a device'),
)


def why_unusable(path) -> str | None:
  """Why a path cannot be read as a file; None where it can.

  Links are followed. Nothing is opened: a pipe or a device may never end.
  """
  try:
    mode = os.stat(path).st_mode
  except FileNotFoundError:
    if os.path.islink(path):
      return f'a link to {os.readlink(path)!r}, which does not exist'
    return 'no such file'
  except (OSError, ValueError) as error:
    return f'cannot be looked at ({getattr(error, "strerror", error)})'
  for is_kind, kind in _KINDS:
    if is_kind(mode):
      return f'is {kind}, not a regular file'
  if not os.access(path, os.R_OK):
    return 'no permission to read it'
  return None


def below(folder, hidden: bool = True) -> Iterator[pathlib.Path]:
  """Every file below a folder, whatever it is.

  Links to folders are followed, wherever they lead, but each folder is visited
  once, by its own name where it has one below `folder`.

  Args:
    folder: where to begin.
    hidden: whether names that begin with '.', and folders that begin with
      '__', count.

  Raises:
    ValueError: for a folder that cannot be listed.
  """
  visited, tops = set(), [os.fspath(folder)]
  while tops:
    links = []
    for root, folders, names in os.walk(tops.pop(0), onerror=_fail):
      real = os.path.realpath(root)
      if real in visited:
        folders.clear()
        continue
      visited.add(real)
      if not hidden:
        folders[:] = [f for f in folders if not f.startswith(('.', '__'))]
        names = [name for name in names if not name.startswith('.')]
      folders.sort()
      paths = [os.path.join(root, name) for name in folders]
      links += [path for path in paths if os.path.islink(path)]
      yield from (pathlib.Path(root, name) for name in sorted(names))
    tops += links


def _fail(error: OSError):
  raise ValueError(
    f'{error.filename}: cannot be listed ({error.strerror}); allow it, or move '
    'the folder away'
  ) from error


def digest(path) -> str:
  """A checksum of the whole content; '' for what cannot be read.

  Computed once a process, as long as the file is not touched.
  """
  if why_unusable(path) is not None:
    return ''
  try:
    with open(path, 'rb', buffering=0) as file:
      state = os.fstat(file.fileno())
      key = (state.st_dev, state.st_ino, state.st_size, state.st_ctime_ns)
      if key in _digests:
        return _digests[key]
      checksum = hashlib.sha256()
      while chunk := file.read(_CHUNK):
        interrupt.check()
        checksum.update(chunk)
  except OSError:
    return ''
  result = checksum.hexdigest()[:16]
  # Clocks of file systems tick slowly: what has just been written may be
  # written again in the same tick.
  if time.time() - state.st_ctime > _TICK_SECONDS:
    _digests[key] = result
  return result


def digests(paths: Sequence) -> list[str]:
  """`digest` of many files, several at once."""
  workers = min(len(paths), os.cpu_count() or 1)
  if workers < 2:
    return [digest(path) for path in paths]
  with concurrent.futures.ThreadPoolExecutor(workers) as pool:
    results = []
    try:
      for result in pool.map(digest, paths):
        interrupt.check()
        results.append(result)
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise
  return results


def size(path) -> int:
  """Size in bytes; -1 for what cannot be looked at."""
  try:
    return os.stat(path).st_size
  except (OSError, ValueError):
    return -1
