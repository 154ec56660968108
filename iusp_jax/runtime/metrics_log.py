"""The rows of a run: metrics.jsonl (the source of truth) and TensorBoard."""

import json
import math
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX

from iusp_jax.runtime import files, logs, processes


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
    self._board = tensorboardX.SummaryWriter(
      str(workdir / 'tensorboard'), purge_step=step + 1 if step else None
    )

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
    for name in row.keys() - {'step'}:
      self._board.add_scalar(name, row[name], row['step'])
    if any(name.startswith('validate/') for name in row):
      self._publish()  # A checkpoint follows.

  def sync(self) -> None:
    """Makes sure that all rows are on the disk."""
    if not self._writes:
      return
    with files.named_errors(self._local):
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


def _line(row: Mapping[str, float]) -> str:
  """JSON has no NaN or infinity: they become null."""
  finite = {k: v if math.isfinite(v) else None for k, v in row.items()}
  return json.dumps(finite) + '\n'
