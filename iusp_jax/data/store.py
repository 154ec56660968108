"""The frozen teacher's outputs for a split, computed once and looked up.

Without random augmentation a frozen teacher says the same of a clip in every
epoch. What the objectives need of it is small: logits `[N, C]`, the frame
similarities of each clip `[N, T, T]`, and the similarities of all clips to
all `[N, N]`, of which a batch's are a part. Gram matrices are kept
unnormalised: alignment pools frames before the rows are normalised, and a
batch's rows are normalised over the batch.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.experiment import teacher
from iusp_jax.models import tagger
from iusp_jax.objectives import similarity
from iusp_jax.runtime import devices, files, logs, processes
from iusp_jax.training import step

# Above this many clips the [N, N] matrix (4 N² bytes) is not worth its place.
MAX_CLIPS = 20_000

PRECISIONS = ('float32', 'float16')


@dataclasses.dataclass(frozen=True)
class Store:
  """A split's teacher outputs, memory-mapped.

  Attributes:
    logits: `[N, C]`.
    frame_gram: `[N, T, T]`, each clip's divided by `frame_scale`.
    frame_scale: `[N]`, so that no entry exceeds 1 and float16 is enough.
    batch_gram: `[N, N]` float32.
  """

  logits: np.ndarray
  frame_gram: np.ndarray
  frame_scale: np.ndarray
  batch_gram: np.ndarray

  def lookup(
    self, batch: Mapping[str, np.ndarray], terms: tuple[str, ...]
  ) -> dict[str, np.ndarray]:
    """What `step.teacher_outputs` would give for a batch, float32."""
    index_B = batch['index']
    columns = batch.get('global_index', index_B)  # Of all hosts.
    wanted, found = {step.TARGETS[term] for term in terms}, {}
    if 'teacher_logits' in wanted:
      found['teacher_logits'] = self.logits[index_B]
    if 'teacher_frame_gram' in wanted:
      # The scale of a clip's matrix is lost on its normalised rows.
      found['teacher_frame_gram'] = self.frame_gram[index_B].astype(np.float32)
    if 'teacher_batch_gram' in wanted:
      found['teacher_batch_gram'] = self.batch_gram[index_B][:, columns]
    return found


def check(wanted: str) -> None:
  """Raises ValueError unless it is a legal `config.teacher.store`."""
  legal = ('auto', 'off', *PRECISIONS)
  if wanted not in legal:
    raise ValueError(
      f'config.teacher.store is {wanted!r}: expected one of {legal}'
    )


def obstacle(config: Mapping[str, Any], num_clips: int) -> str:
  """Why the teacher has to run in every step; empty if it need not."""
  hearing = config['student']['augment']
  random = [
    name
    for name in (
      'mixup_alpha',
      'time_roll_seconds',
      'num_time_masks',
      'num_mel_masks',
    )
    if hearing[name]
  ]
  if random:
    return (
      f'config.student.augment.{random[0]} is {hearing[random[0]]}: an '
      'augmented clip sounds different every time'
    )
  if num_clips > MAX_CLIPS:
    return f'{num_clips} clips are more than {MAX_CLIPS}'
  if files.is_remote(config['cache_dir']):
    return f'config.cache_dir is {config["cache_dir"]}, not a file system'
  return ''


def obtain(
  config: Mapping[str, Any],
  trained: teacher.Trained,
  dataset: datasets.Dataset,
  split_name: str = 'train',
) -> Store | None:
  """The store of a split, made if it is not in the cache.

  Args:
    config: the whole config; `teacher.store` and `cache_dir` count.
    trained: the frozen teacher.
    dataset: whose outputs are stored.
    split_name: of the split.

  Returns:
    None where `config.teacher.store` is 'off', or is 'auto' and the teacher
    has to run in every step (the reason is said).

  Raises:
    ValueError: where a store is demanded and cannot be right.
  """
  wanted = config['teacher']['store']
  check(wanted)
  if wanted == 'off':
    return None
  split = dataset.splits[split_name]
  reason = obstacle(config, len(split))
  if reason and wanted == 'auto':
    logs.log(f'teacher: runs in every step, since {reason}')
    return None
  if reason:
    raise ValueError(
      f'config.teacher.store is {wanted!r}, but the outputs of the teacher '
      f"cannot be stored: {reason}. Set it to 'auto' or switch that off"
    )
  precision = 'float32' if wanted == 'auto' else wanted
  key = teacher.fingerprint(
    {
      'teacher': [trained.fingerprint, trained.weights()],
      'dataset': dataset.fingerprint(),
      'precision': precision,
      'split': split_name,
    }
  )
  folder = files.resolve(config['cache_dir']) / 'outputs' / key
  if not processes.by_primary(folder.exists):  # It appears whole.
    busy = 'another run stores teacher outputs'
    name = f'config.cache_dir is {config["cache_dir"]}'
    with files.lock_for_all_processes(folder.parent, busy, name=name):
      if not processes.by_primary(folder.exists):
        build(folder, trained, split, precision)
  return open_store(folder)


def open_store(folder: pathlib.Path) -> Store:
  """A finished store, memory-mapped."""
  return Store(
    **{
      field.name: np.load(folder / f'{field.name}.npy', mmap_mode='r')
      for field in dataclasses.fields(Store)
    }
  )


def build(
  folder: pathlib.Path,
  trained: teacher.Trained,
  split: datasets.Split,
  precision: str,
  batch_size: int = 32,
) -> None:
  """One pass of the teacher over a split; the folder appears when it is done.

  All processes of a run call this together: each hears its share of the
  clips, process 0 writes.

  Raises:
    OSError: where it cannot be written; nothing is left then.
  """
  outputs = _outputs(trained, split, batch_size)
  if not processes.is_primary():
    for _ in outputs:
      pass
    processes.barrier()
    return
  partial = folder.with_name(folder.name + '.partial')
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    _write(partial, outputs, len(split), precision)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise
  partial.rename(folder)
  processes.barrier()


def _outputs(trained, split, batch_size):
  """Logits, Gram matrices and flattened frames, batch by global batch."""
  predict = _compile(trained)
  variables = devices.replicate(trained.variables)
  left = len(split)
  batch_size = max(1, batch_size // jax.device_count()) * jax.device_count()
  for batch in datasets.eval_batches(
    split,
    batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  ):
    outputs = predict(variables, devices.shard({'wave': batch['wave']}))
    yield tuple(x[:left] for x in devices.unreplicate(outputs))
    left -= batch_size


def _write(partial, outputs, num_clips, precision):
  done = 0
  arrays, clips = {}, None
  for logits, gram, flat in outputs:
    count = len(logits)
    scale = np.abs(gram).max((1, 2))
    scale = np.where(scale > 0, scale, 1.0)
    if clips is None:
      arrays = {
        'logits': _create(partial, 'logits', (num_clips, *logits.shape[1:])),
        'frame_gram': _create(
          partial, 'frame_gram', (num_clips, *gram.shape[1:]), precision
        ),
        'frame_scale': _create(partial, 'frame_scale', (num_clips,)),
        'batch_gram': _create(partial, 'batch_gram', (num_clips, num_clips)),
      }
      clips = _create(partial, 'clips', (num_clips, flat.shape[1]))
    own = slice(done, done + count)
    arrays['logits'][own] = logits
    arrays['frame_gram'][own] = gram / scale[:, None, None]
    arrays['frame_scale'][own] = scale
    clips[own] = flat
    done += count
  assert clips is not None
  for start in range(0, num_clips, 256):
    rows = slice(start, start + 256)
    arrays['batch_gram'][rows] = clips[rows] @ clips.T
  for array in arrays.values():
    array.flush()
  del clips
  (partial / 'clips.npy').unlink()  # Large, and no longer needed.


def _create(partial, name, shape, dtype='float32'):
  """A file that has all its room: a full disk is an error here.

  Of a file with holes it would be found by a write into the map, which ends
  the process without a word.
  """
  path = partial / f'{name}.npy'
  array = np.lib.format.open_memmap(path, mode='w+', dtype=dtype, shape=shape)
  if hasattr(os, 'posix_fallocate'):  # Not on a Mac.
    with path.open('r+b') as file:
      os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
  return array


def _compile(trained: teacher.Trained) -> Callable:
  def predict(variables, batch):
    mel_BTF = tagger.log_mel(trained.model, batch['wave'])
    output = tagger.apply(trained.model, variables, mel_BTF)
    gram_BTT = jax.vmap(similarity.gram)(output.frames_BTD)
    flat = similarity.flatten_clips(output.frames_BTD).astype('float32')
    return tuple(devices.gather(x) for x in (output.logits_BC, gram_BTT, flat))

  return devices.pmap(predict)
