"""Files written whole or not at all, JSON, paths, and locks on folders.

Of several processes only process 0 writes.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from iusp_jax.runtime import logs, preemption, processes

_LOCK_POLL_SECONDS = 0.2
_BLOCK = 1 << 24  # Bytes that are read at a time.


def write_atomically(
  path: pathlib.Path, content: str | bytes, everywhere: bool = False
) -> None:
  """Replaces a file in one step: it is never seen half written.

  Args:
    path: the file.
    content: all of it.
    everywhere: from all processes of a run, not only process 0.

  Raises:
    OSError: naming the file, where it cannot be written.
  """
  if not (everywhere or processes.is_primary()):
    return
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):  # An object appears whole.
    path.write_bytes(content)
    return
  with named_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=path.name, dir=path.parent)
    try:
      with os.fdopen(descriptor, 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
      os.chmod(name, 0o644)
      os.replace(name, path)
    except BaseException:
      os.unlink(name)
      raise


@contextlib.contextmanager
def named_errors(path: Any) -> Iterator[None]:
  """Around reading or writing a file: its name is in every OSError.

  The system names a file that cannot be opened, but not one that is already
  open: a full disk is '[Errno 28] No space left on device' and no more.
  """
  try:
    yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    strerror = error.strerror or os.strerror(error.errno)
    raise OSError(error.errno, strerror, str(path)) from error


def resolve(path: str) -> Any:
  """The path that a config field or flag names, with pathlib's methods.

  An address such as gs://bucket/run stays as it is; a local path becomes
  absolute, and `~` the user's own folder.

  Raises:
    ValueError: for `~name` of an unknown user.
  """
  if is_remote(path):
    return epath.Path(path)
  try:
    return pathlib.Path(path).expanduser().resolve()
  except RuntimeError as error:
    raise ValueError(
      f'{path}: expected a path, or ~ or ~user of a user of this machine '
      f'({error})'
    ) from error


def is_remote(path: Any) -> bool:
  """Whether it is an address such as gs://bucket/run, and no local path."""
  return '://' in str(path)


def to_json(value: Any) -> str:
  """JSON with a newline at the end.

  NumPy numbers and arrays are fine; NaN and infinity, which JSON does not
  have, become null.
  """
  return json.dumps(_plain(value), indent=1, allow_nan=False) + '\n'


def _plain(value):
  """What JSON can hold."""
  if isinstance(value, Mapping):
    return {
      key if isinstance(key, str) else _plain(key): _plain(part)
      for key, part in value.items()
    }
  if isinstance(value, list | tuple):
    return [_plain(part) for part in value]
  if isinstance(value, np.generic | np.ndarray):
    return _plain(value.tolist())
  if isinstance(value, float):
    return value if math.isfinite(value) else None
  return value if isinstance(value, str | int | None) else str(value)


def read_json(path: pathlib.Path, remedy: str = '') -> Any:
  """What a JSON file holds.

  Args:
    path: of a file that is there.
    remedy: what to do where it is damaged; to delete it, where this is empty.

  Raises:
    ValueError: naming the file and the remedy, where it is damaged.
    OSError: naming the file, where it cannot be read.
  """
  with named_errors(path):
    content = path.read_bytes()
  try:
    return json.loads(content)
  except ValueError as error:  # No JSON, or no UTF-8.
    remedy = remedy or 'delete it and run the same command again'
    raise ValueError(
      f'{path}: expected JSON, found {len(content)} bytes that are damaged or '
      f'cut short ({error}); {remedy}'
    ) from error


def checksum(path: pathlib.Path) -> str:
  """SHA-256 of a file."""
  digest = hashlib.sha256()
  with path.open('rb') as file:
    while block := file.read(_BLOCK):
      preemption.check()
      digest.update(block)
  return digest.hexdigest()


def remove_folder(path: Any) -> None:
  """Deletes a folder and what is in it, where it is there."""
  if not processes.is_primary() or not path.exists():
    return
  with contextlib.suppress(FileNotFoundError):  # Another run does it, too.
    if is_remote(path):
      path.rmtree()
    else:
      shutil.rmtree(path)


class Busy(ValueError):
  """Another process holds a lock."""


@contextlib.contextmanager
def lock(
  folder: pathlib.Path, busy: str, wait: bool = True, name: str = ''
) -> Iterator[None]:
  """Holds a folder against other processes; ends with this one, however.

  Args:
    folder: made if it is not there.
    busy: the message where another process holds it.
    wait: until it is free; otherwise Busy is raised at once.
    name: what to call it where it cannot be written, '--workdir is runs/a'.

  Raises:
    ValueError: where it cannot be written, or, as Busy, is held.
    preemption.Preempted: for a request to stop while it waits.
  """
  if is_remote(folder):  # Object stores have no locks.
    yield
    return
  try:
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / '.lock').open('a')
  except OSError as error:
    raise ValueError(
      f'{name or folder}: cannot be written ({error.strerror}: '
      f'{error.filename}): choose another'
    ) from error
  with file:
    if not _try_lock(file):
      if not wait:
        raise Busy(f'{folder}: {busy}')
      logs.log(f'{folder}: {busy}; waiting')
      while not _try_lock(file):
        preemption.check()
        time.sleep(_LOCK_POLL_SECONDS)
    yield


def _try_lock(file):
  """Whether the lock is ours now."""
  try:
    with named_errors(file.name):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  return True


@contextlib.contextmanager
def lock_for_all_processes(
  folder: pathlib.Path, busy: str, wait: bool = True, name: str = ''
) -> Iterator[None]:
  """`lock` for all processes of this run together; process 0 holds it.

  Where another run holds it and `wait` is off, all raise Busy.
  """
  with contextlib.ExitStack() as stack:

    def take() -> str:
      try:
        stack.enter_context(lock(folder, busy, wait, name))
      except Busy as error:
        return str(error)
      return ''

    if problem := processes.by_primary(take):
      raise Busy(problem)
    yield
    processes.barrier()
