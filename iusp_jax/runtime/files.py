"""Files written whole or not at all, JSON, paths, and locks on folders.

Of several processes only process 0 writes.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from iusp_jax.runtime import logs, processes


def write_atomically(
  path: pathlib.Path, content: str | bytes, everywhere: bool = False
) -> None:
  """Replaces a file in one step: it is never seen half written.

  Args:
    path: the file.
    content: all of it.
    everywhere: from all processes of a run, not only process 0.
  """
  if not (everywhere or processes.is_primary()):
    return
  if isinstance(content, str):
    content = content.encode()
  if is_remote(path):  # An object appears whole.
    path.write_bytes(content)
    return
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


def resolve(path: str) -> Any:
  """The path that a config field or flag names, with pathlib's methods.

  An address such as gs://bucket/run stays as it is; a local path becomes
  absolute.
  """
  if is_remote(path):
    return epath.Path(path)
  return pathlib.Path(path).expanduser().resolve()


def is_remote(path: Any) -> bool:
  """Whether it is an address such as gs://bucket/run, and no local path."""
  return '://' in str(path)


def to_json(value: Any) -> str:
  """JSON with a newline at the end; NumPy numbers and arrays are fine."""
  return json.dumps(value, indent=1, default=_plain) + '\n'


def _plain(value):
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  return str(value)


def remove_folder(path: Any) -> None:
  """Deletes a folder and what is in it, where it is there."""
  if not processes.is_primary() or not path.exists():
    return
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
    busy: what to say where another process holds it.
    wait: until it is free; otherwise Busy is raised at once.
    name: what to call it where it cannot be written, '--workdir is runs/a'.

  Raises:
    ValueError: where it cannot be written, or, as Busy, is held.
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
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      if not wait:
        raise Busy(f'{folder}: {busy}') from None
      logs.log(f'{folder}: {busy}; waiting')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def lock_for_all_processes(
  folder: pathlib.Path, busy: str, wait: bool = True, name: str = ''
) -> Iterator[None]:
  """`lock` for all processes of this run together; process 0 holds it."""
  own = lock(folder, busy, wait, name)
  with own if processes.is_primary() else contextlib.nullcontext():
    processes.barrier()
    yield
    processes.barrier()
