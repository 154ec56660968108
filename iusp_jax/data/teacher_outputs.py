"""The frozen teacher's outputs for a split, computed once and looked up.

Without random augmentation a frozen teacher gives the same for a clip in every
epoch. What terms need of it (`objectives.targets`) is kept one file a target,
`<target>.npy`, beside `<target>.json` with its name, shape, type, checksum and
format version, so that a new target leaves the finished ones as they are. What
is fitted to the training split stands beside them, `fit-<target>.npy`.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import augment
from iusp_jax.data import datasets, foreign_outputs
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import similarity, targets
from iusp_jax.runtime import devices, files, logs, preemption, processes

FORMAT = 1
PRECISIONS = ('float32', 'float16')

# One that runs here, or one whose outputs were computed elsewhere.
Teacher = trained.Trained | foreign_outputs.Foreign

# Above this many clips a pairwise target (4 N² bytes) is not worth its disk.
MAX_PAIRWISE_CLIPS = 20_000

_FIT = 'fit-'  # Before a fitted target: the array that it is made with.
_FLAT = 'flat'  # Before the layer of vectors that a pairwise target is made of.


@dataclasses.dataclass(frozen=True)
class Versions:
  """Augmentations of each clip that outputs are stored of; hashable.

  Version k of a clip is what `changes` makes of it with
  `augment.stored_keys`, for every student and front end.

  Attributes:
    count: of the versions of a clip.
    changes: that make them.
  """

  count: int
  changes: augment.ClipAugment

  def check(self, names: Iterable[str]) -> None:
    """Raises ValueError for targets that compare clips."""
    for name in names:
      if targets.is_pairwise(name):
        raise ValueError(
          f'{name} compares all clips with each other, and each has '
          f'{self.count} versions: expected targets of one clip'
        )


@dataclasses.dataclass(frozen=True)
class Folder:
  """Where a split's outputs of one teacher are kept.

  Attributes:
    path: of the folder.
    teacher: the frozen one, or what there is of it.
    split: of the data set.
    precision: of frame similarities, 'float32' or 'float16'.
    place: what to call the folder where it cannot be written.
    versions: what the outputs are of, in place of the clips as they are.
  """

  path: pathlib.Path
  teacher: Teacher
  split: datasets.Split
  precision: str = 'float32'
  place: str = ''
  versions: 'Versions | None' = None

  def get_or_build(self, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Memory-mapped outputs `[N, ...]`, by target; makes what is not there.

    With `versions` of each clip they are `[N, K, ...]`.

    All processes of a run call this together: each computes its part of the
    clips, process 0 writes. A file that is damaged is reported and made anew.

    Raises:
      OSError: where a file cannot be written; finished ones are kept.
    """
    missing = processes.by_primary(lambda: self._missing(names))[0]
    if missing:
      busy = 'another run stores teacher outputs'
      with files.lock_for_all_processes(self.path, busy, name=self.place):
        missing, problems = processes.by_primary(lambda: self._missing(names))
        for problem in problems:
          logs.log(f'teacher: {problem}; it is made anew')
        if missing:
          of = f'{self.versions.count} versions of ' if self.versions else ''
          logs.log(
            f'teacher: stores {", ".join(missing)} of {of}{len(self.split)} '
            f'{self.split.name} clips in {self.path}'
          )
          build(self, missing)
    return {name: np.load(self.file(name), mmap_mode='r') for name in names}

  def file(self, name: str) -> pathlib.Path:
    """Of a target."""
    return self.path / f'{name}.npy'

  def dtype(self, name: str) -> str:
    """Of a target's file."""
    half = name.partition('@')[0] in targets.HALF
    return self.precision if half else 'float32'

  def fits(self, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of fitted targets, by target; makes what is not there.

    As `get_or_build`, to be called by all processes together.
    """
    names = targets.fitted(names)
    if names:
      self.get_or_build([_FIT + name for name in names])
    return {name: np.load(self.file(_FIT + name)) for name in names}

  def _missing(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Targets that are not there or damaged, and what is wrong with these."""
    problems = {name: verify(self.file(name)) for name in names}
    missing = [
      name
      for name, problem in problems.items()
      if problem or not self.file(name).exists()
    ]
    return missing, [problem for problem in problems.values() if problem]


_verified: set[tuple[str, float]] = set()  # Files, when they were written.


def verify(path: pathlib.Path) -> str:
  """What is wrong with a stored output; empty for a whole one or none.

  Read once a process: a flipped bit would change every student in silence.
  """
  if not path.exists():
    return ''
  key = str(path), path.stat().st_mtime
  if key in _verified:
    return ''
  try:
    expected = json.loads(path.with_suffix('.json').read_text())
    if expected['format'] != FORMAT:
      return f'{path} has format {expected["format"]}, expected {FORMAT}'
    if files.checksum(path) != expected['sha256']:
      return (
        f'{path} is damaged: its checksum is not the one it was written with'
      )
  except (OSError, ValueError, KeyError, TypeError) as error:
    return f'{path} cannot be checked ({type(error).__name__}: {error})'
  _verified.add(key)
  return ''


def build(folder: Folder, names: Sequence[str], batch_size: int = 32) -> None:
  """One pass of the teacher over a split; a file appears when it is whole.

  And one before it for each fitted target that has no array yet.

  Raises:
    ValueError: where arrays of a teacher from elsewhere cannot be right.
  """
  if isinstance(folder.teacher, foreign_outputs.Foreign):
    outputs = _foreign_outputs(folder.teacher, folder.split, names)
  else:
    own = [name.removeprefix(_FIT) for name in names]
    fits = {n: _fit(folder, n, batch_size) for n in targets.fitted(own)}
    names = [name for name in names if not name.startswith(_FIT)]
    if not names:
      return
    outputs = _outputs(folder, folder.teacher, names, fits, batch_size)
  if not processes.is_primary():
    for _ in outputs:
      pass
    processes.barrier()
    return
  partial = {}
  try:
    _write(folder, outputs, partial)
    for name in names:
      _finish(folder, name, *partial[name])
  except BaseException:
    for _, path in partial.values():
      path.unlink(missing_ok=True)
    raise
  processes.barrier()


def _finish(folder, name, array, path) -> None:
  """Gives a whole file its name, after its metadata."""
  metadata = {
    'format': FORMAT,
    'target': name,
    'shape': list(array.shape),
    'dtype': folder.dtype(name),
    'sha256': files.checksum(path),
    'teacher': folder.teacher.fingerprint,
  }
  target = folder.file(name)
  files.write_atomically(target.with_suffix('.json'), files.to_json(metadata))
  path.rename(target)


def _fit(folder: Folder, name: str, batch_size: int) -> np.ndarray:
  """The array of a fitted target, from its file or solved and written."""
  path = folder.file(_FIT + name)
  if processes.by_primary(lambda: path.exists() and not verify(path)):
    return np.load(path)
  assert isinstance(folder.teacher, trained.Trained)
  found = solve_fit(folder.teacher, folder.split, name, batch_size)
  if processes.is_primary():
    array, partial = _create(folder, _FIT + name, found.shape)
    array[...] = found
    array.flush()
    _finish(folder, _FIT + name, array, partial)
  processes.barrier()
  return found


def solve_fit(
  teacher: trained.Trained,
  split: datasets.Split,
  name: str,
  batch_size: int = 32,
) -> np.ndarray:
  """The array of a fitted target, from a pass of the teacher over a split."""
  fit, num_clips = targets.fit_of(name), len(split)
  if num_clips > fit.max_clips:  # Spread over the whole split.
    places = np.linspace(0, num_clips - 1, fit.max_clips).round().astype(int)
    source = [split.source[k] for k in places]
    split = dataclasses.replace(split, source=source)
  predict = _compile_statistic(teacher.model, name)
  variables = devices.replicate(teacher.variables)
  total = np.zeros(())
  for found_B in _over_clips(
    split, lambda b: predict(variables, b), batch_size
  ):
    total = total + np.sum(found_B, axis=0, dtype=np.float64)

  def solve():
    return fit.solve(total / len(split), num_clips).tolist()

  # Processes must have the same bits, and eigenvectors may differ in the last.
  return np.array(processes.by_primary(solve), np.float32)


def _foreign_outputs(
  teacher: foreign_outputs.Foreign,
  split: datasets.Split,
  names: Sequence[str],
) -> Iterator[dict[str, np.ndarray]]:
  """As `_outputs`, from arrays; process 0 alone reads them."""
  if not processes.is_primary():
    return
  compute = _compile_targets(tuple(names))
  wanted = list(dict.fromkeys(targets.NEEDS.get(n, n) for n in names))
  for batch in foreign_outputs.batches(teacher, split, wanted):
    preemption.check()
    yield jax.tree.map(np.asarray, compute(batch))


@functools.cache
def _compile_targets(names: tuple[str, ...]) -> Callable:
  def of_outputs(batch):
    num_clips = len(next(iter(batch.values())))
    x = targets.Outputs(
      logits_BC=batch.get('logits'),
      frame_logits_BTC=batch.get('frame_logits'),
      frames={targets.FRAMES: batch.get('frames')},
      inner=(),
      frame_mask=lambda num_frames: jnp.ones((num_clips, num_frames)),
    )
    made = [name for name in names if name != targets.NUM_FRAMES]
    found = _targets(made, x, lambda array: array, {})
    given = [name for name in names if name == targets.NUM_FRAMES]
    return found | {name: batch[name] for name in given}

  return jax.jit(of_outputs)


def _outputs(
  folder, teacher, names, fits, batch_size
) -> Iterator[dict[str, np.ndarray]]:
  """Per-clip targets, and flattened frames for the pairwise ones."""
  if folder.versions:
    folder.versions.check(names)
  predict = _compile(teacher.model, tuple(names), folder.versions)
  shared = devices.replicate((teacher.variables, fits))
  return _over_clips(folder.split, lambda b: predict(*shared, b), batch_size)


def _over_clips(
  split: datasets.Split, predict: Callable, batch_size: int
) -> Iterator[Any]:
  """What a mapped function gives for the waves of a split's clips."""
  left = len(split)
  batch_size = max(1, batch_size // jax.device_count()) * jax.device_count()
  for batch in datasets.eval_batches(
    split,
    batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  ):
    if jax.process_count() == 1:  # Other hosts would wait for this one.
      preemption.check()
    own = {key: batch[key] for key in ('wave', 'length', 'index')}
    found = devices.unreplicate(predict(devices.shard(own)))
    yield jax.tree.map(lambda x, n=left: x[:n], found)
    left -= batch_size


def _write(folder, outputs, partial) -> None:
  """Fills files beside the final ones; `partial` tells which, by name."""
  num_clips, done = len(folder.split), 0
  for batch in outputs:
    count = len(next(iter(batch.values())))
    for name, values in batch.items():
      if name not in partial:
        shape = (num_clips, *values.shape[1:])
        partial[name] = _create(folder, name, shape)
      partial[name][0][done : done + count] = values
    done += count
  for name in [name for name in partial if name.startswith(_FLAT)]:
    flat_NX, path = partial[name]
    target = name.removeprefix(_FLAT)
    gram_NN, _ = partial[target] = _create(folder, target, (num_clips,) * 2)
    for start in range(0, num_clips, 256):
      preemption.check()
      gram_NN[start : start + 256] = flat_NX[start : start + 256] @ flat_NX.T
    del partial[name], flat_NX
    path.unlink()  # Large, and no longer needed.
  for array, _ in partial.values():
    array.flush()


def _create(folder, name, shape):
  """A file that has all its space: a full disk is an error here.

  Of a file with holes it would be found by a write into the map, which ends
  the process without a message.
  """
  path = folder.path / f'{name}.partial'
  with path.open('wb') as file:
    dtype = np.dtype(folder.dtype(name))
    header = {'descr': dtype.str, 'fortran_order': False, 'shape': shape}
    np.lib.format.write_array_header_1_0(file, header)
    offset = file.tell()
    if hasattr(os, 'posix_fallocate'):  # Not on a Mac.
      try:
        size = dtype.itemsize * int(np.prod(shape))
        os.posix_fallocate(file.fileno(), 0, offset + size)
      except OSError as error:
        path.unlink()
        raise OSError(
          error.errno, f'no space for {(offset + size) / 1e6:.0f} MB', str(path)
        ) from error
  array = np.memmap(path, dtype, 'r+', offset, shape)
  return array, path


@functools.cache
def _compile(
  model: tagger.Tagger, names: tuple[str, ...], versions: Versions | None
) -> Callable:

  def of_clips(variables, fits, batch, keys_B=None, changes=None):
    mel_BTF = tagger.log_mel(model, batch['wave'], keys_B, changes)
    num_samples = batch['wave'].shape[1]
    x = apply(model, variables, mel_BTF, batch['length'], num_samples, names)
    found = _targets(names, x, devices.gather, fits)
    return jax.tree.map(devices.gather, found)

  def predict(variables, fits, batch):
    if versions is None:
      return of_clips(variables, fits, batch)
    changes = versions.changes

    def of_version(version):
      index_B = batch['index']
      keys_B = augment.stored_keys(index_B, jnp.full_like(index_B, version))
      return of_clips(variables, fits, batch, keys_B, changes)

    # One version at a time: the memory of the clips as they are.
    found = jax.lax.map(of_version, jnp.arange(versions.count))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), found)

  return devices.pmap(predict)


@functools.cache
def _compile_statistic(model: tagger.Tagger, name: str) -> Callable:
  def predict(variables, batch):
    mel_BTF = tagger.log_mel(model, batch['wave'])
    num_samples = batch['wave'].shape[1]
    x = apply(model, variables, mel_BTF, batch['length'], num_samples, [name])
    return devices.gather(targets.statistic(name, x))

  return devices.pmap(predict)


def apply(
  teacher: tagger.Tagger,
  variables: tagger.Variables,
  mel_BTF: jax.Array,
  length_B: jax.Array,
  num_samples: int,
  names: Iterable[str],
) -> targets.Outputs:
  """What the targets of a batch are computed from.

  Args:
    teacher: the frozen model.
    variables: its own.
    mel_BTF: log-mel of its front end.
    length_B: samples of each clip without its padding.
    num_samples: of a clip with it.
    names: of the targets.
  """
  output = tagger.apply(teacher, variables, mel_BTF, targets.layers(names))
  return targets.Outputs(
    logits_BC=output.logits_BC,
    frame_logits_BTC=output.frame_logits_BTC,
    frames={targets.FRAMES: output.frames_BTD, **output.layers},
    inner=tagger.inner_layers(teacher),
    frame_mask=functools.partial(targets.frame_mask, length_B, num_samples),
  )


def _targets(names, x: targets.Outputs, gather, fits) -> dict[str, jax.Array]:
  """Per-clip targets, and flattened frames for the pairwise ones."""
  per_clip = [name for name in names if not targets.is_pairwise(name)]
  found = targets.compute(per_clip, x, gather, fits)
  for name in names:
    if targets.is_pairwise(name):
      layer = targets.split_name(name)[1]
      flat = similarity.flatten_clips(x.frames[layer]).astype('float32')
      found[_FLAT + name] = flat
  return found


def shapes(
  teacher: trained.Trained,
  names: Sequence[str],
  num_samples: int,
  fits: Mapping[str, np.ndarray],
) -> dict[str, jax.ShapeDtypeStruct]:
  """Of the targets of a batch of one clip, by target."""
  model = teacher.model

  def of_clip(variables, wave_BS):
    mel_BTF, length_B = tagger.log_mel(model, wave_BS), jnp.full(1, num_samples)
    x = apply(model, variables, mel_BTF, length_B, num_samples, names)
    return targets.compute(names, x, lambda array: array, fits)

  wave_BS = jax.ShapeDtypeStruct((1, num_samples), jnp.int16)
  return jax.eval_shape(of_clip, teacher.variables, wave_BS)


def folder_name(
  teacher: Teacher,
  dataset: Mapping[str, Any],
  split: str,
  versions: Versions | None = None,
):
  """The name of a folder: of the teacher's arrays, the data and the split."""
  of = [teacher.fingerprint, teacher.weights(), dataset, split, FORMAT]
  if versions:
    of.append(dataclasses.asdict(versions))
  text = json.dumps(of, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]
