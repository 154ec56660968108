"""The frozen teacher: named by the config, found in the cache, or trained.

A teacher is known by the fingerprint of all that it depends on: architecture,
front end, training settings, augmentation, seed and data. Runs with the same
fingerprint share one teacher, so that comparisons have the same.
"""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from iusp_jax.data import (
  datasets,
  foreign_outputs,
  preparation,
  teacher_outputs,
)
from iusp_jax.experiment import feeds, identity, onnx_teacher, pretrained
from iusp_jax.models import trained
from iusp_jax.objectives import terms
from iusp_jax.runtime import files, logs, processes, wall_time
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe
from tfds_dcase import sonyc_ust

# Fields of `config.teacher` that name a teacher; without one it is trained.
SOURCES = ('checkpoint', 'outputs', 'onnx', 'pretrained')
_FOREIGN = ('outputs', 'onnx')  # Of which there are outputs and no model.


def metadata(
  recipe: Mapping[str, Any], seed: int, dataset: datasets.Dataset
) -> dict[str, Any]:
  """All that a teacher depends on, as `model.json` holds it."""
  of = {**recipe, 'seed': seed, 'dataset': dataset.fingerprint()}
  return model_metadata(of, dataset)


def model_metadata(
  of: Mapping[str, Any], dataset: datasets.Dataset
) -> dict[str, Any]:
  """What `model.json` holds: what a model was made from, and how to use it.

  Args:
    of: `model`, `frontend`, `training`, `augment`, `seed` and more.
    dataset: that it was trained on.
  """
  return {
    **of,
    'fingerprint': identity.fingerprint(of),
    'tags': list(dataset.tags),
    'num_samples': dataset.num_samples,
  }


def own_dataset(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> datasets.Dataset:
  """What the teacher is trained on: the student's data, or more scenes of it.

  Scene k of a split is the same however many scenes the split has, so that
  validate and test are the student's.
  """
  scenes = config['teacher']['train_scenes']
  if not scenes:
    return dataset
  check_scenes(config)
  settings = identity.plain(config['dataset'])
  settings['builder']['train_scenes'] = scenes
  return preparation.load(settings)


def check_scenes(config: Mapping[str, Any]) -> None:
  """Raises ValueError for scenes of a data set that is not mixed of them."""
  scenes, own = config['teacher']['train_scenes'], config['dataset']
  if scenes and 'train_scenes' not in own['builder']:
    raise ValueError(
      f'config.teacher.train_scenes is {scenes}, but {own["name"]} is not '
      'mixed from scenes: expected 0'
    )


def source(config: Mapping[str, Any]) -> str:
  """The field of `config.teacher` that names the teacher; '' where none does.

  Raises:
    ValueError: where several do, with their values.
  """
  own = config['teacher']
  named = [field for field in SOURCES if own.get(field)]
  if len(named) > 1:
    values = ' and '.join(
      f'config.teacher.{field} is {own[field]!r}' for field in named
    )
    raise ValueError(f'{values}: expected one teacher; leave out all but one')
  return named[0] if named else ''


def is_foreign(config: Mapping[str, Any]) -> bool:
  """Whether there will be a teacher's outputs and no model of it."""
  return source(config) in _FOREIGN


def recipe_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
  """`model` and `frontend` of the teacher, and more where it is trained."""
  own, named = config['teacher'], source(config)
  if named == 'checkpoint':
    return checkpoint_metadata(own['checkpoint'])
  if named == 'pretrained':
    return pretrained.recipe(config)
  if (size := own.get('ensemble_size', 1)) > 1:
    member = dict(own['model'])
    model = {'architecture': 'ensemble', 'member': member, 'size': size}
    return {**own, 'model': model}
  return own


def check_overrides(config: Mapping[str, Any], asked: Iterable[str]) -> None:
  """Holds what is asked of the teacher against the checkpoint that is named.

  Args:
    config: the whole config.
    asked: the fields that the command line sets, `teacher.model.width`.

  Raises:
    ValueError: for a field that the checkpoint's model does not meet, or that
      a teacher from elsewhere does not have.
  """
  if is_foreign(config):
    _check_no_recipe(config, asked)
  if source(config) == 'pretrained':
    pretrained.check_overrides(config['teacher'], asked)
  path = config['teacher']['checkpoint']
  if not path:
    return
  of = checkpoint_metadata(path)
  for field in asked:
    if not field.startswith(('teacher.model.', 'teacher.frontend.')):
      continue
    _, part, name = field.split('.')
    wanted, found = config['teacher'][part][name], of[part].get(name)
    if found != wanted:
      raise ValueError(
        f'config.{field} is {wanted}, but {found} in the model of {path}, '
        f'which config.teacher.checkpoint names: leave out --config.{field} '
        'to use that model, or --config.teacher.checkpoint to train another'
      )


def _check_no_recipe(config, asked: Iterable[str]) -> None:
  named = source(config)
  path = config['teacher'][named]
  parts = ('model', 'frontend', 'training', 'augment', 'seed', 'train_scenes')
  for field in asked:
    if field.startswith(tuple(f'teacher.{part}' for part in parts)):
      raise ValueError(
        f'config.{field} is set, and config.teacher.{named} is {path!r}: that '
        f'teacher is not made here; leave out --config.{field}'
      )


def checkpoint_metadata(path: str) -> dict[str, Any]:
  """What `model.json` says of the run that config.teacher.checkpoint names.

  Raises:
    ValueError: where there is none.
  """
  with _naming_checkpoint(path):
    return trained.read_metadata(files.resolve(path))


def identified(config: Mapping[str, Any]) -> dict[str, Any]:
  """A plain config that says which model `teacher.checkpoint` names.

  In `teacher.checkpoint_model`, by which configs are compared: the same model
  in another place, or under another spelling of its path, is no other teacher.
  Of `teacher.outputs` and `teacher.tag_map` so in `teacher.outputs_content`,
  of `teacher.onnx` in `teacher.onnx_content`, of `teacher.weights` in
  `teacher.weights_sha256`, with what `teacher.tag_map` holds in
  `teacher.tag_map_content`.

  Raises:
    ValueError: where the path holds no trained model, there are no outputs or
      no weights.
  """
  own, named = dict(config['teacher']), source(config)
  if named == 'checkpoint':
    path = own['checkpoint']
    with _naming_checkpoint(path):
      found = trained.load(files.resolve(path))
    own['checkpoint_model'] = f'{found.fingerprint} {found.weights()}'
  if named == 'outputs':
    own['outputs_content'] = processes.by_primary(lambda: _content(config))
  if named == 'onnx':
    own['onnx_content'] = processes.by_primary(lambda: _onnx_content(config))
  if named == 'pretrained':
    own['weights_sha256'] = processes.by_primary(
      lambda: pretrained.checksum(config)
    )
    if found := tag_map(config):
      own['tag_map_content'] = identity.plain(found)
  return {**config, 'teacher': own}


def contents(config: Mapping[str, Any]) -> foreign_outputs.Contents:
  """What the folder that config.teacher.outputs names says of itself.

  Of config.teacher.onnx what there will be, with empty arrays.

  Raises:
    ValueError: where there is no such folder or file, or its parts do not
      agree.
  """
  if source(config) == 'onnx':
    return onnx_teacher.promised(config)
  path = config['teacher']['outputs']
  if files.is_remote(path):
    raise ValueError(
      f'config.teacher.outputs is {path!r}: expected a folder of a file '
      'system, since its arrays are memory-mapped'
    )
  try:
    return foreign_outputs.inspect(files.resolve(path))
  except ValueError as error:
    raise ValueError(f'config.teacher.outputs is {path!r}: {error}') from error


def tag_map(config: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
  """What config.teacher.tag_map holds; nothing where it is empty.

  Raises:
    ValueError: where the file is not there, or no mapping.
  """
  path = config['teacher']['tag_map']
  if not path:
    return {}
  try:
    return foreign_outputs.read_tag_map(files.resolve(path))
  except ValueError as error:
    raise ValueError(f'config.teacher.tag_map is {path!r}: {error}') from error


def _content(config) -> str:
  """Names the outputs and the mapping of tags, wherever they are."""
  kept = files.resolve(config['cache_dir']) / 'outputs' / 'checksums'
  return foreign_outputs.fingerprint(contents(config), tag_map(config), kept)


def _onnx_content(config) -> str:
  """Names the file, what is asked of it and the mapping of tags."""
  mapped = {tag: list(theirs) for tag, theirs in tag_map(config).items()}
  of = {'onnx': onnx_teacher.content(config), 'tag_map': mapped}
  return identity.fingerprint(of)


def _foreign(config, dataset: datasets.Dataset) -> foreign_outputs.Foreign:
  """The teacher of config.teacher.outputs beside the tags of a data set.

  Of config.teacher.onnx after it has been run. `config` is one that
  `identified` has seen.
  """
  named = source(config)
  if named == 'onnx':
    found = onnx_teacher.contents(config, dataset)
  else:
    found = contents(config)
  foreign_outputs.check_extent(found, dataset.clip_seconds)
  columns = foreign_outputs.columns(found, dataset.tags, tag_map(config))
  content = config['teacher'][f'{named}_content']
  return foreign_outputs.Foreign(found, columns, content)


@contextlib.contextmanager
def _naming_checkpoint(path):
  """Errors say which field of the config names the run."""
  try:
    yield
  except ValueError as error:
    raise ValueError(
      f'config.teacher.checkpoint is {path!r}: {error}; or leave it empty, to '
      'train a teacher'
    ) from error


def load(
  workdir: pathlib.Path, dataset: datasets.Dataset, which: str = 'best'
) -> trained.Trained:
  """A trained tagger for a data set.

  Raises:
    ValueError: where there is none, or it has other tags, takes sound of
      another rate or was trained on what it would be scored on.
  """
  found = trained.load(workdir, which)
  check_leak(found.metadata['dataset']['name'], dataset.name)
  rate = found.model.frontend.sample_rate
  if rate != dataset.sample_rate:
    raise ValueError(
      f'the model in {workdir} takes sound of {rate} Hz: expected that of '
      f'{dataset.name}, {dataset.sample_rate} Hz'
    )
  if found.metadata['tags'] != list(dataset.tags):
    raise ValueError(
      f'the model in {workdir} has the tags {found.metadata["tags"]}: expected '
      f'those of {dataset.name} at level {dataset.level}, {list(dataset.tags)}'
    )
  return found


def check_leak(trained_on: str, scored_on: str) -> None:
  """Raises ValueError for a model that was trained on what it is scored on.

  SONYC-UST v1, its test set included, is inside v2's train and validate.
  """
  versions = [
    name.split('/')[1] if name.startswith('sonyc_ust/') else ''
    for name in (trained_on, scored_on)
  ]
  if all(versions):
    sonyc_ust.check_mixed_versions(*versions)


def get_or_train(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> teacher_outputs.Teacher:
  """The teacher that a config asks for; trains it if there is none yet.

  Args:
    config: the whole config: `teacher`, `cache_dir`, `on_nan` and
      `profile_steps` count.
    dataset: the student's.

  Raises:
    ValueError: if `config.teacher.checkpoint` is no run's workdir, or of
      other tags, or a cached teacher is damaged, or the files of
      `config.teacher.outputs` do not agree.
  """
  if is_foreign(config):
    return _foreign(config, dataset)
  if path := config['teacher']['checkpoint']:
    with _naming_checkpoint(path):
      return load(files.resolve(path), dataset)
  dataset = own_dataset(config, dataset)
  of, make = _asked(config, dataset)
  workdir = _cached(config, of)
  if _is_done(workdir):
    logs.log(f'teacher: found {of["fingerprint"]} in {workdir}')
    with contextlib.suppress(OSError):  # Of a cache that is read-only here.
      _remove_steps(workdir)
    return _load_cached(workdir, dataset, of)
  busy = 'the teacher is being trained by another run'
  cache = f'config.cache_dir is {config["cache_dir"]}'
  with files.lock_for_all_processes(workdir, busy, name=cache):
    if not _is_done(workdir):
      make(workdir)
  return _load_cached(workdir, dataset, of)


def find(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> teacher_outputs.Teacher | None:
  """The config's teacher if it has been trained already, else None."""
  if source(config) in ('checkpoint', 'outputs'):
    return get_or_train(config, dataset)
  if source(config) == 'onnx':
    there = onnx_teacher.is_done(config, dataset)
    return get_or_train(config, dataset) if there else None
  of, _ = _asked(config, own_dataset(config, dataset))
  done = _is_done(_cached(config, of))
  return get_or_train(config, dataset) if done else None


def _asked(config, dataset) -> tuple[dict[str, Any], Callable]:
  """What `model.json` will hold of a teacher, and what makes it in a folder."""
  own = config['teacher']
  if source(config) == 'pretrained':
    mapping = pretrained.map_tags(dataset.tags, tag_map(config))
    of = {**pretrained.made_from(config), 'tag_map': mapping}
    of = model_metadata({**of, 'dataset': dataset.fingerprint()}, dataset)
    return of, lambda folder: pretrained.make(config, of, dataset, folder)
  recipe = Recipe.from_config(recipe_of(config))
  of = metadata(recipe.plain(), own['seed'], dataset)
  if own.get('ensemble_size', 1) > 1:
    return of, lambda folder: _join(config, of, dataset, folder)
  return of, lambda folder: _train(recipe, of, dataset, folder, config)


def _join(config, of, dataset, workdir) -> None:
  """Makes an ensemble of teachers, which are found or trained."""
  own, members = config['teacher'], []
  with wall_time.wall_time(workdir, time.monotonic()) as spent:
    for number in range(own['ensemble_size']):
      changed = {'seed': own['seed'] + number, 'ensemble_size': 1}
      member = {**config, 'teacher': {**own, **changed}}
      found = get_or_train(member, dataset)
      assert isinstance(found, trained.Trained)
      members.append(found.workdir)
    variables = {
      which: _together([trained.load(m, which).variables for m in members])
      for which in trained.CHECKPOINTS
    }
    steps: dict[str, int] = dict.fromkeys(trained.CHECKPOINTS, 0)
    trained.save(workdir, of, variables, steps)
    _finish(workdir, spent())


def _together(variables: list) -> dict[str, Any]:
  """Variables of a `models.ensemble.Ensemble`, of those of its members."""
  return {
    kind: {f'member_{k}': own[kind] for k, own in enumerate(variables)}
    for kind in ('params', 'batch_stats')
  }


def _cached(config, of) -> pathlib.Path:
  """Where a teacher is kept."""
  cache = files.resolve(config['cache_dir'])
  return cache / 'teachers' / of['fingerprint']


def _is_done(workdir):
  """Whether a teacher is trained, as process 0 sees it."""
  return processes.by_primary(lambda: (workdir / 'done').exists())


def _load_cached(workdir, dataset, of) -> trained.Trained:
  """A teacher of the cache, which must be what its folder's name says."""
  try:
    found = load(workdir, dataset)
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f'the teacher in {workdir} is damaged ({error}): delete {workdir}, and '
      'the same command trains it again'
    ) from error
  if differing := identity.differences(found.metadata, of):
    raise ValueError(
      f'{workdir}/{trained.METADATA} has been changed: {"; ".join(differing)}. '
      f'Delete {workdir}, and the same command trains the teacher again'
    )
  return found


def _train(recipe, of, dataset, workdir, config):
  logs.log(f'teacher: trains in {workdir}')
  job = step.Job(
    'teacher', recipe, terms.Objective(), dataset, config['teacher']['seed']
  )
  with wall_time.wall_time(workdir, time.monotonic()) as spent:
    (member,) = engine.fit(
      [job],
      feeds.Features(dataset).feed(job),
      workdir,
      on_nan=config['on_nan'],
      metrics_dir=workdir,
      profile_steps=config['profile_steps'],
    )
    seconds = spent()
  save_member(member, workdir, of)
  _finish(workdir, seconds)
  _remove_steps(workdir)


def _finish(workdir, seconds) -> None:
  """Says that a teacher is done, and how long it took."""
  minutes = seconds['all_processes'] / 60
  files.write_atomically(workdir / 'done', f'{minutes:.1f} minutes\n')


def _remove_steps(workdir):
  """Of a finished teacher, perhaps one that was killed before it did this."""
  files.remove_folder(workdir / 'training')


def save_member(
  member: engine.Member, workdir: pathlib.Path, of: Mapping[str, Any]
) -> None:
  """Writes the trained model of a member, see `trained.save`."""
  last = int(member.rows[-1]['step'])
  trained.save(
    workdir,
    of,
    {'best': member.best, 'last': member.last},
    {'best': member.best_step, 'last': last},
  )
