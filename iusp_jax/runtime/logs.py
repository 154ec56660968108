"""What a run says: JSON lines (the source of truth), TensorBoard, progress.

Of several processes only process 0 says and writes anything.
"""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import absl.logging
import numpy as np
import tensorboardX
import tqdm
from etils import epath

from iusp_jax.runtime import processes


def say(message: str, everywhere: bool = False) -> None:
  """A line of the log, past a progress bar if there is one.

  Args:
    message: the line.
    everywhere: from all processes of a run, not only process 0.
  """
  if not (everywhere or processes.is_primary()):
    return
  tqdm.tqdm.write(message, file=sys.stdout)
  sys.stdout.flush()


_WALL_EVERY_SECONDS = 20.0


class _Say(logging.Handler):
  """Messages of a logger as lines of the log."""

  def emit(self, record: logging.LogRecord) -> None:
    say(record.getMessage())


def relay(name: str) -> None:
  """Says what a logger is told, and nothing of the other libraries'."""
  logger = logging.getLogger(name)
  logger.handlers, logger.propagate = [_Say()], False
  logger.setLevel(logging.INFO)


def mute(package: str) -> None:
  """Leaves out what the modules of a package tell absl's log, errors too."""
  absl.logging.get_absl_handler().addFilter(
    lambda record: package not in pathlib.Path(record.pathname).parts
  )


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


def place(path: str) -> Any:
  """Where a path of a config or flag is, with pathlib's methods.

  An address such as gs://bucket/run stays as it is; a local path becomes
  absolute.
  """
  if is_remote(path):
    return epath.Path(path)
  return pathlib.Path(path).expanduser().resolve()


def is_remote(path: Any) -> bool:
  """Whether it is an address such as gs://bucket/run, and no local path."""
  return '://' in str(path)


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
      say(f'{folder}: {busy}; waiting')
      fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def lock_for_all(
  folder: pathlib.Path, busy: str, wait: bool = True, name: str = ''
) -> Iterator[None]:
  """`lock` for all processes of this run together; process 0 holds it."""
  own = lock(folder, busy, wait, name)
  with own if processes.is_primary() else contextlib.nullcontext():
    processes.barrier()
    yield
    processes.barrier()


@contextlib.contextmanager
def wall_clock(
  folder: pathlib.Path, since: float
) -> Iterator[Callable[[], dict[str, float]]]:
  """Counts the seconds of all processes that work on a folder in turn.

  Kept in `wall_seconds.json`, now and then: a process may be killed.

  Args:
    folder: of a run.
    since: this process's start, of `time.monotonic`.

  Yields:
    A function that gives the seconds so far.
  """
  path = folder / 'wall_seconds.json'
  earlier = json.loads(path.read_text()) if path.exists() else []
  ended = threading.Event()

  def spent():
    own = round(time.monotonic() - since, 1)
    return {
      'this_process': own,
      'all_processes': round(sum(earlier) + own, 1),
      'num_processes': len(earlier) + 1,  # One after the other.
    }

  def note():
    with contextlib.suppress(OSError):  # A full disk is said by who matters.
      write_atomically(path, to_json([*earlier, spent()['this_process']]))

  def keep():
    while not ended.wait(_WALL_EVERY_SECONDS):
      note()

  thread = threading.Thread(target=keep, daemon=True)
  thread.start()
  try:
    yield spent
  finally:
    ended.set()
    thread.join()
    note()


def to_json(value: Any) -> str:
  """JSON with a newline at the end; NumPy numbers and arrays are fine."""
  return json.dumps(value, indent=1, default=_plain) + '\n'


def _plain(value):
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  return str(value)


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics.jsonl; a last line cut by a kill is left out."""
  if not path.exists():
    return []
  rows = []
  for line in path.read_text().splitlines():
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError:
      break
  return rows


class Metrics:
  """Appends rows of numbers to metrics.jsonl and to TensorBoard's events."""

  def __init__(self, workdir: pathlib.Path, step: int):
    """Cuts the file back to the rows up to `step`, then appends."""
    self._writes = processes.is_primary()
    if not self._writes:
      return
    self._path = workdir / 'metrics.jsonl'
    rows = [row for row in read_metrics(self._path) if row['step'] <= step]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    write_atomically(self._path, text)
    self._local = self._path
    if is_remote(workdir):  # Nothing can be appended to an object.
      workdir = pathlib.Path(tempfile.mkdtemp(prefix='iusp_jax_'))
      say(f'TensorBoard: the events of this run are in {workdir}')
      self._local = workdir / self._path.name
      self._local.write_text(text)
    self._file = self._local.open('a')
    self._board = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
    )

  def write(self, step: int, scalars: Mapping[str, float]) -> None:
    """One row; names are like `validate/coarse_micro_auprc`."""
    if not self._writes:
      return
    row = {'step': step, **{k: float(v) for k, v in scalars.items()}}
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    for name, value in scalars.items():
      self._board.add_scalar(name, float(value), step)
    if any(name.startswith('validate/') for name in scalars):
      self._publish()  # A checkpoint follows.

  def sync(self) -> None:
    """Makes sure that all rows are on the disk."""
    if not self._writes:
      return
    self._file.flush()
    os.fsync(self._file.fileno())
    self._publish()

  def close(self) -> None:
    """Makes sure that all is on the disk."""
    self.sync()
    if self._writes:
      self._file.close()
      self._board.close()

  def _publish(self) -> None:
    if self._local != self._path:
      self._path.write_text(self._local.read_text())


class Progress:
  """A bar on a terminal, a plain line now and then elsewhere."""

  def __init__(self, name: str, step: int, num_steps: int):
    self._name, self._num_steps = name, num_steps
    self._first, self._start = 0, 0.0
    self._bar = None
    self._said = time.monotonic()
    if sys.stderr.isatty() and processes.is_primary():
      self._bar = tqdm.tqdm(
        initial=step, total=num_steps, desc=name, unit='step', smoothing=0.1
      )

  def update(self, step: int, loss: float) -> None:
    """After `step` steps; the estimate starts at the second step seen."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
      return
    if not self._start:  # The first step compiles: it is no measure.
      self._first, self._start = step, now
      return
    if now - self._said < 20 and step < self._num_steps:
      return
    self._said = now
    rate = (step - self._first) / max(now - self._start, 1e-9)
    left = (self._num_steps - step) / max(rate, 1e-9)
    say(
      f'{self._name}: step {step}/{self._num_steps}, loss {loss:.4f}, '
      f'{rate:.2f} steps/s, {left:.0f} s to go'
    )

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()
