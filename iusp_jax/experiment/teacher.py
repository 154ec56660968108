"""The frozen teacher: named by the config, found in the cache, or trained.

A teacher is known by the fingerprint of all that it depends on: architecture,
front end, training settings, augmentation, seed and data. Runs with the same
fingerprint share one teacher, so that comparisons have the same.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax

from iusp_jax.data import datasets, preparation
from iusp_jax.models import tagger
from iusp_jax.runtime import checkpoint, files, logs, processes, wall_time
from iusp_jax.training import step, train
from tfds_dcase import sonyc_ust

RECIPE = ('model', 'frontend', 'training', 'augment')

# Fields of `training` that older runs do not have, and what these did.
LATER_FIELDS = {'accumulate_steps': 1, 'compute_dtype': 'float32'}


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained tagger and where it came from."""

  model: tagger.Tagger
  variables: tagger.Variables
  fingerprint: str
  workdir: pathlib.Path

  def weights(self) -> str:
    """12 hexadecimal digits that name the arrays.

    `fingerprint` names the recipe, by which machines of other cores, or an
    older version, come to other arrays.
    """
    text = json.dumps(checkpoint.checksums(self.variables), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def facts(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> dict[str, Any]:
  """All that a teacher depends on; plain JSON."""
  recipe = plain({key: config['teacher'][key] for key in RECIPE})
  return {
    **recipe,
    'seed': config['teacher']['seed'],
    'dataset': dataset.fingerprint(),
  }


def plain(config: Any) -> Any:
  """A config as nested dicts and lists, as JSON would give it back."""
  return json.loads(json.dumps(config, default=lambda part: part.to_dict()))


def fingerprint(of: Mapping[str, Any]) -> str:
  """12 hexadecimal digits that name the facts.

  A field that came later changes the name only where it changes the model.
  """
  if 'training' in of:
    training = {
      name: value
      for name, value in of['training'].items()
      if LATER_FIELDS.get(name) != value
    }
    of = {**of, 'training': training}
  text = json.dumps(of, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


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
  settings = plain(config['dataset'])
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


def refuse_other_model(config: Mapping[str, Any], asked: Iterable[str]) -> None:
  """Holds wishes for the teacher against the checkpoint that is named.

  Args:
    config: the whole config.
    asked: the fields that the command line sets, `teacher.model.width`.

  Raises:
    ValueError: for a wish that the checkpoint's model does not meet.
  """
  path = config['teacher']['checkpoint']
  if not path:
    return
  of = facts_of(path)
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


def facts_of(path: str) -> dict[str, Any]:
  """What `model.json` says of the run that config.teacher.checkpoint names.

  Raises:
    ValueError: where there is none.
  """
  with _naming_checkpoint(path):
    return _read_facts(files.resolve(path))


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


def _read_facts(workdir):
  path = workdir / 'model.json'
  if not path.is_file():
    results = workdir / 'results.json'
    hint = ''
    if results.is_file():  # Of a run that stopped after the teacher.
      place = json.loads(results.read_text())['teacher']['workdir']
      hint = f'; the teacher of this run is in {place}'
    raise ValueError(
      f'{workdir} holds no trained model: expected a workdir of run.py, with '
      f'{path.name} and checkpoints{hint}'
    )
  return json.loads(path.read_text())


def obtain(config: Mapping[str, Any], dataset: datasets.Dataset) -> Trained:
  """The teacher that a config asks for; trains it if there is none yet.

  Args:
    config: the whole config: `teacher` and `cache_dir` count.
    dataset: the student's.

  Raises:
    ValueError: if `config.teacher.checkpoint` is no run's workdir, or of
      other tags.
  """
  if config['teacher']['checkpoint']:
    path = config['teacher']['checkpoint']
    with _naming_checkpoint(path):
      return load(files.resolve(path), dataset)
  dataset = own_dataset(config, dataset)
  of = facts(config, dataset)
  name = fingerprint(of)
  workdir = files.resolve(config['cache_dir']) / 'teachers' / name
  if _is_done(workdir):
    logs.log(f'teacher: found {name} in {workdir}')
    return load(workdir, dataset)
  busy = 'the teacher is being trained by another run'
  cache = f'config.cache_dir is {config["cache_dir"]}'
  with files.lock_for_all_processes(workdir, busy, name=cache):
    if not _is_done(workdir):
      _train(of, dataset, workdir, config)
  return load(workdir, dataset)


def _is_done(workdir):
  """Whether a teacher is trained, as process 0 sees it."""
  return processes.by_primary(lambda: (workdir / 'done').exists())


def _train(of, dataset, workdir, config):
  logs.log(f'teacher: trains in {workdir}')
  save_facts(workdir, of, dataset)
  job = step.Job(
    name='teacher',
    recipe=of,
    objective={},
    dataset=dataset,
    seed=of['seed'],
    workdir=workdir,
    on_nan=config['on_nan'],
    profile_steps=config['profile_steps'],
  )
  with wall_time.wall_time(workdir, time.monotonic()) as spent:
    train.fit(job)
    minutes = spent()['all_processes'] / 60
  files.write_atomically(workdir / 'done', f'{minutes:.1f} minutes\n')


def save_facts(
  workdir: pathlib.Path, of: Mapping[str, Any], dataset: datasets.Dataset
) -> None:
  """Writes `model.json`: what is needed to use the checkpoints of a run."""
  files.write_atomically(
    workdir / 'model.json',
    files.to_json({**of, 'tags': list(dataset.tags)}),
  )


def load(
  workdir: pathlib.Path, dataset: datasets.Dataset, which: str = 'best'
) -> Trained:
  """The tagger of a run.

  Args:
    workdir: of a run of this project.
    dataset: whose tags it must have.
    which: 'best' by validation, or 'last'.

  Raises:
    ValueError: if there is no trained model, or it has other tags.
  """
  of = _read_facts(workdir)
  refuse_leak(of['dataset']['name'], dataset.name)
  if of['tags'] != list(dataset.tags):
    raise ValueError(
      f'the model in {workdir} has the tags {of["tags"]}: expected those of '
      f'{dataset.name} at level {dataset.level}, {list(dataset.tags)}'
    )
  restored = checkpoint.restore_newest(workdir / 'checkpoints' / which)
  if restored is None:
    raise ValueError(
      f'{workdir}/checkpoints/{which} has no checkpoint: the run stopped '
      'before its first validation; run it again'
    )
  model = tagger.build(of, len(dataset.tags))
  _, arrays, _ = restored
  variables = _evaluated(arrays)
  _check_architecture(model, variables, workdir, dataset)
  identity = {key: of[key] for key in of if key != 'tags'}
  return Trained(model, variables, fingerprint(identity), workdir)


def refuse_leak(trained_on: str, scored_on: str) -> None:
  """Raises ValueError for a model that has heard what it is scored on.

  SONYC-UST v1, its test set included, is inside v2's train and validate.
  """
  versions = [
    name.split('/')[1] if name.startswith('sonyc_ust/') else ''
    for name in (trained_on, scored_on)
  ]
  if all(versions):
    sonyc_ust.check_mixed_versions(*versions)


def find(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> Trained | None:
  """The config's teacher if it has been trained already, else None."""
  if config['teacher']['checkpoint']:
    return obtain(config, dataset)
  name = fingerprint(facts(config, own_dataset(config, dataset)))
  workdir = files.resolve(config['cache_dir']) / 'teachers' / name
  return obtain(config, dataset) if _is_done(workdir) else None


def _evaluated(arrays):
  """The variables to evaluate from a checkpoint of 'best' or 'last'."""
  if arrays.get('average'):
    return arrays['average']
  return {
    'params': arrays['params'],
    'batch_stats': arrays.get('batch_stats') or {},
  }


def _check_architecture(model, variables, workdir, dataset):
  """Raises unless the arrays are those of the model, shape by shape."""
  num_samples = dataset.num_samples
  expected = model.shapes(num_samples)

  def shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
      jax.tree_util.keystr(path, simple=True, separator='/'): leaf.shape
      for path, leaf in leaves
    }

  found, wanted = shapes(variables), shapes(expected)
  wrong = sorted(
    name
    for name in found.keys() | wanted.keys()
    if found.get(name) != wanted.get(name)
  )
  if wrong:
    name = wrong[0]
    raise ValueError(
      f'the checkpoint in {workdir} is of another architecture than its '
      f'model.json: {len(wrong)} arrays differ, {name} is '
      f'{found.get(name)}, expected {wanted.get(name)}'
    )
