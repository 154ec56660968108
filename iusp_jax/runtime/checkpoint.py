"""Checkpoints: arrays and metadata in one folder, written whole or not at all.

Orbax writes beside the final name and renames, so a kill leaves no half
checkpoint. It restores a flipped bit without an error, though, so every
checkpoint carries a manifest of our own with checksums of its arrays and
metadata. A checkpoint that is written anew is put aside until the new one is
whole.

The state is the same on all processes of a run, as NumPy: process 0 writes it
alone, and every process reads it, on any number of devices and processes.
"""

import contextlib
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from iusp_jax.runtime import files, processes

Tree = Mapping[str, Any]


# What a checkpoint is called while it is written anew.
_ASIDE = '.aside'
# In a run's folder, the one that holds its series of checkpoints.
_SERIES = 'checkpoints'


class DamagedCheckpoint(ValueError):
  """A checkpoint that cannot be read, or is not what was written."""


def save(
  folder: pathlib.Path,
  step: int,
  arrays: Tree,
  metadata: Mapping[str, Any],
  keep: int,
) -> None:
  """Writes `folder/<step>` and deletes all but the newest `keep`.

  Also those of later steps: they are of a run that was taken back to an
  earlier step. All processes of a run call this together; process 0 writes.

  Args:
    folder: of one series of checkpoints, such as 'last' or 'best'.
    step: number of the checkpoint; one that exists is written anew.
    arrays: nested dicts of NumPy arrays.
    metadata: what JSON can hold.
    keep: checkpoints to keep, at least 1.

  Raises:
    OSError: where it cannot be written; older checkpoints are still there.
  """
  if processes.is_primary():
    _save(folder, step, arrays, metadata, keep)
  processes.barrier(interruptible=False)


def _save(folder, step, arrays, metadata, keep):
  """`save` in the process that writes."""
  arrays = jax.tree.map(np.asarray, arrays)
  path = _absolute(folder) / f'{step:08d}'
  try:
    if path.exists():
      _delete(_aside(path))
      path.rename(_aside(path))
    manifest = {
      'metadata': dict(metadata),
      'checksums': checksums(arrays),
      'metadata_checksum': _metadata_checksum(metadata),
    }
    with _checkpointer(path) as (checkpointer, place):
      checkpointer.save(
        place,
        ocp.args.Composite(
          arrays=ocp.args.StandardSave(arrays),
          manifest=ocp.args.JsonSave(manifest),
        ),
      )
  except Exception as error:  # Of a full disk Orbax raises several types.
    older, reason = steps(folder), str(error).partition('\n')[0]
    raise OSError(
      f'checkpoint {path} could not be written ({reason}); '
      + (f'the last good one is {older[-1]}' if older else 'there is no older')
      + ': free some space or choose another --workdir, then run again'
    ) from error
  earlier = [old for old in steps(folder) if old <= step]
  unwanted = set(steps(folder)) - set(earlier[-keep:])
  leftovers = [find(folder, old) for old in unwanted]
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


def restore(path: pathlib.Path) -> tuple[Tree, dict[str, Any]]:
  """Reads one checkpoint and holds it against its manifest.

  Returns:
    Nested dicts of NumPy arrays, and the metadata.

  Raises:
    DamagedCheckpoint: naming the arrays that differ from what was written.
  """
  if (path / 'facts').exists():
    raise DamagedCheckpoint(
      f'checkpoint {path} is of an earlier version of this program, which '
      'wrote another format'
    )
  try:
    with _checkpointer(_absolute(path)) as (checkpointer, place):
      restored = checkpointer.restore(
        place,
        ocp.args.Composite(
          arrays=ocp.args.StandardRestore(), manifest=ocp.args.JsonRestore()
        ),
      )
    arrays, manifest = restored['arrays'], restored['manifest']
    metadata, expected = manifest['metadata'], manifest['checksums']
  except Exception as error:  # What is damaged decides the type.
    reason = str(error).partition('\n')[0]
    raise DamagedCheckpoint(
      f'checkpoint {path} cannot be read ({type(error).__name__}: {reason})'
    ) from error
  if manifest.get('metadata_checksum') != _metadata_checksum(metadata):
    raise DamagedCheckpoint(
      f'checkpoint {path} is damaged: its metadata differ from what was '
      f'written ({", ".join(metadata)})'
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
  return arrays, metadata


def restore_newest(
  folder: pathlib.Path,
) -> tuple[int, Tree, dict[str, Any]] | None:
  """The newest checkpoint that is whole; None if there is no checkpoint.

  Args:
    folder: of one series, such as `<workdir>/checkpoints/last`.

  Returns:
    The step, and what `restore` gives.

  Raises:
    DamagedCheckpoint: if there are checkpoints and all are damaged.
  """
  damaged: list[str] = []
  for step in reversed(steps(folder)):
    try:
      return step, *restore(find(folder, step))
    except DamagedCheckpoint as error:
      damaged.append(str(error))
      logging.error('%s; trying the one before', error)
  if damaged:
    # Not the series alone: what else the run left, such as its best
    # checkpoint or a note that it is complete, would be of another training.
    whole = folder.parent.parent if folder.parent.name == _SERIES else folder
    raise DamagedCheckpoint(
      'no checkpoint is whole: '
      + '; '.join(damaged)
      + f'. Delete {whole} to start over'
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


def other_shapes(found: Tree, wanted: Tree) -> str:
  """How arrays differ from those that are wanted; empty if only in values."""

  def shapes(tree):
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): np.shape(leaf)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }

  own, other = shapes(found), shapes(wanted)
  wrong = sorted(
    name
    for name in own.keys() | other.keys()
    if own.get(name) != other.get(name)
  )
  if not wrong:
    return ''
  name = wrong[0]
  return (
    f'{len(wrong)} arrays differ, {name} is {own.get(name)}, expected '
    f'{other.get(name)}'
  )


def _metadata_checksum(metadata: Mapping[str, Any]) -> str:
  text = json.dumps(metadata, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


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


@contextlib.contextmanager
def _checkpointer(path):
  """Orbax, and what to call a path for it.

  Without its own barriers, as this process saves or restores alone, and
  without OCDBT, which takes `[` and `]` in a path for a pattern. TensorStore
  takes a backslash for a slash: there a link without one stands in.
  """
  own = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=own,
    active_processes={own},
    barrier_sync_key_prefix=f'process_{own}',
  )
  handler = ocp.CompositeCheckpointHandler(
    arrays=ocp.StandardCheckpointHandler(
      use_ocdbt=False, multiprocessing_options=alone
    ),
    manifest=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
    composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
  )
  with contextlib.ExitStack() as stack:
    if '\\' in str(path) and not files.is_remote(path):
      links = stack.enter_context(tempfile.TemporaryDirectory())
      link = pathlib.Path(links) / 'checkpoints'
      path.parent.mkdir(parents=True, exist_ok=True)
      link.symlink_to(path.parent)
      path = link / path.name
    checkpointer = ocp.Checkpointer(handler, multiprocessing_options=alone)
    yield stack.enter_context(checkpointer), path
