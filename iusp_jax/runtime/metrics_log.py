"""The rows of a run: metrics.jsonl (the source of truth) and TensorBoard."""

import json
import math
import os
import pathlib
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX
from tensorboardX.proto import event_pb2, summary_pb2

from iusp_jax.runtime import files, logs, processes

# Their classes are made at run time, which no type checker sees.
_EVENT: Any = event_pb2
_SUMMARY: Any = summary_pb2
_FLUSH_SECONDS = 10.0  # For who looks at TensorBoard meanwhile.


def read_metrics(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics.jsonl.

  A last line without its end, as a kill leaves it, is left out; any other
  damaged line is left out and logged.

  Args:
    path: of the file; without it there are no rows.

  Returns:
    One dict a row, with 'step'. A value that was not finite is NaN.
  """
  if not path.exists():
    return []
  with files.named_errors(path):
    lines = path.read_bytes().split(b'\n')
  rows = []
  for number, line in enumerate(lines, 1):
    if not line:
      continue
    try:
      row = json.loads(line)
      row['step'] += 0  # Raises where a line is JSON, but no row.
    except (ValueError, TypeError, KeyError):
      if number < len(lines):
        logs.log(f'{path}: line {number} is damaged: it is left out')
      continue
    rows.append({k: math.nan if v is None else v for k, v in row.items()})
  return rows


class MetricsWriter:
  """Appends rows of numbers to metrics.jsonl and to TensorBoard's events."""

  def __init__(self, workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]):
    """Starts with the rows that a checkpoint has, then appends."""
    self._writes = processes.is_primary()
    if not self._writes:
      return
    self._path = workdir / 'metrics.jsonl'
    step = int(rows[-1]['step']) if rows else 0
    text = ''.join(map(_line, rows))
    files.write_atomically(self._path, text)
    self._local = self._path
    if files.is_remote(workdir):  # Nothing can be appended to an object.
      workdir = pathlib.Path(tempfile.mkdtemp(prefix='iusp_jax_'))
      logs.log(f'TensorBoard: the events of this run are in {workdir}')
      self._local = workdir / self._path.name
      self._local.write_text(text)
    self._file = self._local.open('a')
    self._board = _Events(workdir / 'tensorboard', step)

  def write(self, row: Mapping[str, Any]) -> None:
    """One row: `step`, and numbers like `validate/coarse_micro_auprc`.

    Raises:
      OSError: naming the file, where it cannot be written.
    """
    if not self._writes:
      return
    with files.named_errors(self._local):
      self._file.write(_line(row))
      self._file.flush()
    self._board.add(row)
    if any(name.startswith('validate/') for name in row):
      self._publish()  # A checkpoint follows.

  def sync(self) -> None:
    """Makes sure that all rows are on the disk."""
    if not self._writes:
      return
    with files.named_errors(self._local):
      self._file.flush()
      os.fsync(self._file.fileno())
    self._board.flush()
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


class _Events:
  """TensorBoard's file of events.

  tensorboardX's own `SummaryWriter` writes from a thread: on a full disk that
  ends with a traceback, and the run waits for it for ever.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    """Begins a file; TensorBoard drops what others have after `step`."""
    folder.mkdir(parents=True, exist_ok=True)
    seconds, rest = divmod(time.time_ns(), 10**9)
    name = f'events.out.tfevents.{seconds}.{rest:09}.{socket.gethostname()}'
    self._path, self._flushed = folder / name, time.monotonic()
    with files.named_errors(self._path):
      self._records = tensorboardX.RecordWriter(str(self._path))
    self._write(file_version='brain.Event:2')
    start = _EVENT.SessionLog(status=_EVENT.SessionLog.START)
    self._write(step=step + 1, session_log=start)

  def add(self, row: Mapping[str, Any]) -> None:
    """One row, as `MetricsWriter.write` takes it."""
    values = [
      _SUMMARY.Summary.Value(tag=name, simple_value=float(value))
      for name, value in row.items()
      if name != 'step'
    ]
    self._write(step=row['step'], summary=_SUMMARY.Summary(value=values))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def _write(self, **what: Any) -> None:
    event = _EVENT.Event(wall_time=time.time(), **what)
    with files.named_errors(self._path):
      self._records.write(event.SerializeToString())

  def flush(self) -> None:
    with files.named_errors(self._path):
      self._records.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    with files.named_errors(self._path):
      self._records.close()


def _line(row: Mapping[str, float]) -> str:
  """JSON has no NaN or infinity: they become null."""
  finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
  return json.dumps(finite) + '\n'
