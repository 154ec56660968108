"""One run: teacher, student, scores, and all that a run leaves behind."""

import functools
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from iusp_jax.data import datasets, preparation, store
from iusp_jax.experiment import outcome, teacher
from iusp_jax.models import tagger
from iusp_jax.runtime import (
  devices,
  environment,
  files,
  logs,
  processes,
  wall_time,
)
from iusp_jax.training import accumulate, step, train, watch

# What may differ between two runs of one workdir without changing the result.
FREE_FIELDS = ('cache_dir', 'compare_with', 'on_nan', 'profile_steps')

# Fields that older runs do not have, and what these did.
LATER_FIELDS = {
  'dataset.builder.snr_db': [-6.0, 12.0],
  'dataset.builder.sources': [1, 4],
  'dataset.builder.split_by': 'auto',
  'dataset.builder.hear_half_db': -2.0,
  'dataset.builder.confusion': 0.1,
  'objective.iusp_centred_weight': 0.0,
  **{
    f'{part}.training.{name}': value
    for part in ('student', 'teacher')
    for name, value in teacher.LATER_FIELDS.items()
  },
}

# A network file system may show a file late to another host.
SEEN_AFTER_SECONDS = 60.0


def run(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and reports what a config asks for.

  Continues a run that was stopped; says so if the run is complete.

  Args:
    config: as configs/base.py makes it.
    workdir: for everything that the run leaves.

  Returns:
    What results.json holds.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right.
  """
  started = time.monotonic()
  check(config)
  logs.log(devices.describe(), everywhere=True)
  busy = 'another run works in this --workdir'
  name = f'--workdir is {workdir}'
  with files.lock_for_all_processes(workdir, busy, wait=False, name=name):
    refuse_other_config(config, workdir)
    results = processes.by_primary(lambda: earlier_results(workdir))
    if results is not None:
      logs.log(f'This run is complete; delete {workdir} to repeat it.')
      outcome.announce(results, workdir)
      return results
    dataset = load_dataset(config)
    check_batches(config, dataset)
    others = named_runs(config, dataset)
    # Not before: a command that was wrong about its data is typed again.
    keep_config(config, workdir)
    environment.record(workdir)
    with wall_time.wall_time(workdir, started) as spent:
      results = _run(config, dataset, others, workdir)
      results['wall_seconds'] = spent()
    if not processes.is_primary():
      return results
    files.write_atomically(workdir / 'results.json', files.to_json(results))
  outcome.announce(results, workdir)
  return results


def _run(config, dataset, others, workdir) -> dict[str, Any]:
  """Everything that takes long; gives what results.json holds."""
  guide, student = models(config, dataset, workdir)
  results: dict[str, Any] = {
    'config': teacher.plain(config),
    'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
    'seed': config['seed'],
    'environment': environment.collect(),
  }
  measured = {}
  for name, trained in (('teacher', guide), ('student', student)):
    if trained is not None:
      results[name], measured[name] = outcome.measure(config, dataset, trained)
  if processes.is_primary():
    subject = 'teacher' if student is None else 'student'
    outcome.write_predictions(dataset, measured[subject], workdir)
    outcome.draw(dataset, guide, student, others, results, workdir)
  return results


def check(config: Mapping[str, Any]) -> None:
  """Facts across fields, before any work is done.

  Raises:
    ValueError: naming both fields and both values.
  """
  if config['fit'] not in ('student', 'teacher'):
    raise ValueError(
      f"config.fit is {config['fit']!r}: expected 'student' or 'teacher'"
    )
  for name, value in config['objective'].items():
    if not value >= 0 or value == float('inf'):
      raise ValueError(
        f'config.objective.{name} is {value}: expected a finite number >= 0'
      )
  if config['objective']['kd_temperature'] <= 0:
    raise ValueError(
      'config.objective.kd_temperature is '
      f'{config["objective"]["kd_temperature"]}: expected > 0'
    )
  if config['bootstrap'] < 0:
    raise ValueError(
      f'config.bootstrap is {config["bootstrap"]}: expected >= 0 resamples'
    )
  if config['on_nan'] not in watch.ON_NAN:
    raise ValueError(
      f'config.on_nan is {config["on_nan"]!r}: expected one of {watch.ON_NAN}'
    )
  store.check(config['teacher']['store'])
  for part in ('student', 'teacher'):
    terms = distillation_terms(config) if part == 'student' else []
    try:
      accumulate.check(config[part]['training'], terms)
    except ValueError as error:
      raise ValueError(f'config.{part}.training.{error}') from error
    found = config[part]['frontend']['sample_rate']
    if found != 16_000:
      raise ValueError(
        f'config.{part}.frontend.sample_rate is {found}: expected 16000, the '
        'rate that every data set is stored at'
      )
    tagger.build(config[part], num_tags=1)  # Raises for a wrong field.
    for field in ('epochs', 'learning_rate', 'eval_every_epochs'):
      value = config[part]['training'][field]
      if not value > 0:
        raise ValueError(
          f'config.{part}.training.{field} is {value}: expected > 0'
        )


def check_batches(config: Mapping[str, Any], dataset: datasets.Dataset) -> None:
  """Whether a batch of what will be trained has enough clips.

  Raises:
    ValueError: naming the field, or `config.teacher.train_scenes`.
  """
  num_clips = len(dataset.splits['train'])
  clips = {'student': num_clips} if config['fit'] == 'student' else {}
  if not config['teacher']['checkpoint']:
    teacher.check_scenes(config)
    if config['fit'] == 'teacher' or distillation_terms(config):
      clips['teacher'] = config['teacher']['train_scenes'] or num_clips
  for part, num_clips in clips.items():
    found = config[part]['training']['batch_size']
    if found > num_clips:
      raise ValueError(
        f'config.{part}.training.batch_size is {found}: expected at most '
        f'{num_clips}, the clips that the {part} is trained on'
      )


def named_runs(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> dict[str, teacher.Trained]:
  """The runs that the config names: a wrong one is said before any training.

  Returns:
    The one to compare with, by the name of its workdir.

  Raises:
    ValueError: naming the field.
  """
  if config['teacher']['checkpoint']:
    teacher.obtain(config, dataset)
  path = config['compare_with']
  if not path:
    return {}
  try:
    return {
      files.resolve(path).name: teacher.load(files.resolve(path), dataset)
    }
  except ValueError as error:
    raise ValueError(
      f'config.compare_with is {path!r}: {error}; or leave it empty'
    ) from error


def earlier_results(workdir: pathlib.Path) -> dict[str, Any] | None:
  """What a complete run left; None where there is none."""
  path = workdir / 'results.json'
  return json.loads(path.read_text()) if path.exists() else None


def config_path(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run keeps the config that it was started with."""
  return workdir / 'config.json'


def keep_config(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes down the config, and holds that of every process against it.

  Raises:
    ValueError: where a process cannot see it: its workdir is another one; or
      has another config.
  """
  path = config_path(workdir)
  if processes.is_primary() and not path.exists():
    files.write_atomically(path, files.to_json(teacher.plain(config)))
  processes.barrier()
  deadline = time.monotonic() + SEEN_AFTER_SECONDS
  while not path.exists():
    if time.monotonic() > deadline:
      raise ValueError(
        f'process {jax.process_index()} does not see {path}, which process 0 '
        'has written: expected a --workdir and config.cache_dir on storage '
        'that all processes share; see docs/scaling.md'
      )
    time.sleep(1.0)
  refuse_other_config(config, workdir)


def refuse_other_config(
  config: Mapping[str, Any], workdir: pathlib.Path, free: Sequence[str] = ()
) -> None:
  """Holds the config against that of an earlier run in the same place.

  Args:
    config: of now.
    workdir: of the earlier run, if there was one.
    free: dotted names of fields that may differ, beside `FREE_FIELDS`.

  Raises:
    ValueError: listing the fields that differ.
  """
  path = config_path(workdir)
  if not path.exists():
    return
  own = flat(teacher.plain(config))
  earlier = flat(json.loads(path.read_text()))
  for key in own.keys() - earlier.keys():
    if key in LATER_FIELDS:
      earlier[key] = LATER_FIELDS[key]
  differing = [
    f'{key}: '
    + (f'{earlier[key]} there' if key in earlier else 'unknown there')
    + ', '
    + (f'{own[key]} now' if key in own else 'unknown to this version')
    for key in sorted(earlier.keys() | own.keys())
    if earlier.get(key) != own.get(key) and key not in {*FREE_FIELDS, *free}
  ]
  if differing:
    raise ValueError(
      f'{workdir} holds a run of another config: choose another --workdir, or '
      'delete it to start over. It differs in ' + '; '.join(differing)
    )


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one, with dotted names."""
  result = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      result |= flat(value, f'{prefix}{key}.')
    else:
      result[f'{prefix}{key}'] = value
  return result


def load_dataset(config: Mapping[str, Any]) -> datasets.Dataset:
  """The prepared data set of a config; says what is in it."""
  started = time.monotonic()
  dataset = preparation.load(config['dataset'])
  sizes = ', '.join(
    f'{len(split)} {name}' for name, split in dataset.splits.items()
  )
  logs.log(
    f'data set {dataset.name}: {sizes} clips; {len(dataset.tags)} '
    f'{dataset.level} tags ({time.monotonic() - started:.0f} s)'
  )
  return dataset


def models(
  config: Mapping[str, Any], dataset: datasets.Dataset, workdir: pathlib.Path
) -> tuple[teacher.Trained | None, teacher.Trained | None]:
  """The teacher, where there is one, and the trained student."""
  named = config['teacher']['checkpoint']
  recipe = teacher.facts_of(named) if named else config['teacher']
  logs.log(
    f'teacher: {describe_model(recipe, dataset)}'
    + (f', from {named}' if named else '')
  )
  if config['fit'] == 'student':
    logs.log(f'student: {describe_model(config["student"], dataset)}')
  if config['fit'] == 'teacher':
    return teacher.obtain(config, dataset), None
  terms = distillation_terms(config)
  # Without distillation a teacher is of use for the pictures only.
  guide = (teacher.obtain if terms else teacher.find)(config, dataset)
  recipe = teacher.plain(
    {key: config['student'][key] for key in teacher.RECIPE}
  )
  frozen, targets = None, None
  if terms:
    assert guide is not None
    frozen = step.Teacher(guide.model, guide.variables)
    outputs = store.obtain(config, guide, dataset)
    if outputs is not None:
      targets = functools.partial(outputs.lookup, terms=tuple(terms))
  job = step.Job(
    name='student',
    recipe=recipe,
    objective=teacher.plain(config['objective']),
    dataset=dataset,
    seed=config['seed'],
    workdir=workdir,
    teacher=frozen,
    targets=targets,
    on_nan=config['on_nan'],
    profile_steps=config['profile_steps'],
  )
  teacher.save_facts(workdir, identity(job, guide if terms else None), dataset)
  train.fit(job)
  return guide, teacher.load(workdir, dataset)


def distillation_terms(config: Mapping[str, Any]) -> list[str]:
  """The terms that the student's objective has beside the tags."""
  return [
    term
    for term in step.DISTILLATION_TERMS
    if config['objective'][f'{term}_weight']
  ]


def identity(job: step.Job, guide: teacher.Trained | None) -> dict[str, Any]:
  """All that a student depends on; plain JSON."""
  return {
    **job.recipe,
    'seed': job.seed,
    'objective': dict(job.objective),
    'dataset': job.dataset.fingerprint(),
    'teacher': guide.fingerprint if guide else None,
  }


def describe_model(recipe: Mapping[str, Any], dataset: datasets.Dataset) -> str:
  """Architecture and size in words."""
  model = tagger.build(recipe, len(dataset.tags))
  num_samples = dataset.num_samples
  variables = model.shapes(num_samples)
  return (
    f'{recipe["model"]["architecture"]}, '
    f'{model.num_parameters(variables):,} parameters, '
    f'{model.num_macs(num_samples) / 1e6:.1f} M '
    'multiply-accumulates a clip'
  )
