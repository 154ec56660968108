"""The rows of a run: metrics.jsonl (the source of truth) and TensorBoard."""

import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import tensorboardX

from iusp_jax.runtime import files, logs, processes


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


class MetricsWriter:
  """Appends rows of numbers to metrics.jsonl and to TensorBoard's events."""

  def __init__(self, workdir: pathlib.Path, rows: Sequence[Mapping[str, Any]]):
    """Starts with the rows that a checkpoint has, then appends."""
    self._writes = processes.is_primary()
    if not self._writes:
      return
    self._path = workdir / 'metrics.jsonl'
    step = int(rows[-1]['step']) if rows else 0
    text = ''.join(json.dumps(row) + '\n' for row in rows)
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
    """One row: `step`, and numbers like `validate/coarse_micro_auprc`."""
    if not self._writes:
      return
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()
    for name in row.keys() - {'step'}:
      self._board.add_scalar(name, row[name], row['step'])
    if any(name.startswith('validate/') for name in row):
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
