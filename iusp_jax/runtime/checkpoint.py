"""Checkpoints: arrays and facts in one folder, written whole or not at all.

Orbax writes beside the final name and renames, so a kill leaves no half
checkpoint. It restores a flipped bit without a word, though, so every
checkpoint carries a manifest of checksums of our own, of its arrays and facts.
A checkpoint that is written anew is put aside until the new one is whole.

The state is the same on all processes of a run, as NumPy: process 0 writes it
alone, and every process reads it, on any number of devices and processes.
"""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from iusp_jax.runtime import files, preemption, processes

Tree = Mapping[str, Any]


# What a checkpoint is called while it is written anew.
_ASIDE = '.aside'


class DamagedCheckpoint(ValueError):
  """A checkpoint that cannot be read, or is not what was written."""


def save(
  folder: pathlib.Path,
  step: int,
  arrays: Tree,
  facts: Mapping[str, Any],
  keep: int,
) -> None:
  """Writes `folder/<step>` and deletes all but the newest `keep`.

  All processes of a run call this together; process 0 writes.

  Args:
    folder: of one series of checkpoints, such as 'last' or 'best'.
    step: number of the checkpoint; one that exists is written anew.
    arrays: nested dicts of NumPy arrays.
    facts: what JSON can hold.
    keep: checkpoints to keep, at least 1.

  Raises:
    OSError: where it cannot be written; older checkpoints are still there.
  """
  if processes.is_primary():
    _save(folder, step, arrays, facts, keep)
  processes.barrier()


@preemption.deferred('writes a checkpoint')
def _save(folder, step, arrays, facts, keep):
  """`save` in the process that writes."""
  arrays = jax.tree.map(np.asarray, arrays)
  path = _absolute(folder) / f'{step:08d}'
  try:
    if path.exists():
      _delete(_aside(path))
      path.rename(_aside(path))
    with _checkpointer() as checkpointer:
      checkpointer.save(
        path,
        ocp.args.Composite(
          arrays=ocp.args.StandardSave(arrays),
          facts=ocp.args.JsonSave(
            {
              'facts': dict(facts),
              'checksums': checksums(arrays),
              'facts_checksum': _facts_checksum(facts),
            }
          ),
        ),
      )
  except Exception as error:  # Of a full disk Orbax raises several types.
    older = steps(folder)
    raise OSError(
      f'checkpoint {path} could not be written ({error}); '
      + (f'the last good one is {older[-1]}' if older else 'there is no older')
      + ': make room or choose another --workdir, then run again'
    ) from error
  leftovers = [find(folder, old) for old in steps(folder)[:-keep]]
  leftovers += folder.glob(f'*{_ASIDE}')
  leftovers += folder.glob('*.orbax-checkpoint-tmp*')  # Of a kill.
  for leftover in leftovers:
    _delete(leftover)


def steps(folder: pathlib.Path) -> list[int]:
  """The steps of the finished checkpoints of a series, in order."""
  if not folder.is_dir():
    return []
  names = {
    path.name.removesuffix(_ASIDE) for path in folder.iterdir() if path.is_dir()
  }
  return sorted(int(name) for name in names if name.isdigit())


def find(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where the checkpoint of a step is."""
  path = folder / f'{step:08d}'
  return path if path.exists() else _aside(path)


def _aside(path):
  return path.with_name(path.name + _ASIDE)


@preemption.deferred('reads a checkpoint')
def restore(path: pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Reads one checkpoint and holds it against its manifest.

  Returns:
    Nested dicts of NumPy arrays, and the facts.

  Raises:
    DamagedCheckpoint: naming the arrays that differ from what was written.
  """
  try:
    with _checkpointer() as checkpointer:
      restored = checkpointer.restore(
        _absolute(path),
        ocp.args.Composite(
          arrays=ocp.args.StandardRestore(), facts=ocp.args.JsonRestore()
        ),
      )
    arrays, stored = restored['arrays'], restored['facts']
    facts, expected = stored['facts'], stored['checksums']
  except Exception as error:  # What is damaged decides the type.
    raise DamagedCheckpoint(
      f'checkpoint {path} cannot be read ({type(error).__name__}: {error})'
    ) from error
  # Checkpoints of the first version have no checksum of their facts.
  if stored.get('facts_checksum') not in (None, _facts_checksum(facts)):
    raise DamagedCheckpoint(
      f'checkpoint {path} is damaged: its facts differ from what was written '
      f'({", ".join(facts)})'
    )
  arrays = jax.tree.map(np.asarray, arrays or {})
  found = checksums(arrays)
  wrong = sorted(
    name
    for name in found.keys() | expected.keys()
    if found.get(name) != expected.get(name)
  )
  if wrong:
    raise DamagedCheckpoint(
      f'checkpoint {path} is damaged: {len(wrong)} of {len(expected)} arrays '
      f'differ from what was written ({", ".join(wrong[:3])} …)'
    )
  return arrays, facts


def restore_newest(
  folder: pathlib.Path,
) -> tuple[int, Tree, dict[str, Any]] | None:
  """The newest checkpoint that is whole; None if there is no checkpoint.

  Raises:
    DamagedCheckpoint: if there are checkpoints and all are damaged.
  """
  damaged: list[str] = []
  for step in reversed(steps(folder)):
    try:
      arrays, facts = restore(find(folder, step))
    except DamagedCheckpoint as error:
      damaged.append(str(error))
      logging.error('%s; trying the one before', error)
      continue
    return step, arrays, facts
  if damaged:
    raise DamagedCheckpoint(
      'no checkpoint is whole: '
      + '; '.join(damaged)
      + f'. Delete {folder} to start over'
    )
  return None


def checksums(arrays: Tree) -> dict[str, str]:
  """SHA-256 of every array with its type and shape, by its path."""

  def checksum(array):
    array = np.ascontiguousarray(array)
    kind = f'{array.dtype}{array.shape}'.encode()
    return hashlib.sha256(kind + array.tobytes()).hexdigest()

  leaves = jax.tree_util.tree_leaves_with_path(arrays)
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): checksum(leaf)
    for path, leaf in leaves
  }


def _facts_checksum(facts: Mapping[str, Any]) -> str:
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _delete(path):
  if not path.exists():
    return
  if files.is_remote(path):
    path.rmtree()
  else:
    shutil.rmtree(path)


def _absolute(path):
  """As Orbax wants it; an address like gs://bucket/run is so already."""
  return path if files.is_remote(path) else path.resolve()


def _checkpointer():
  """Orbax without its own barriers: this process saves or restores alone."""
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process_{own}',
  )
  handler = ocp.CompositeCheckpointHandler(
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone)
  )
  return ocp.Checkpointer(handler, multiprocessing_options=alone)
