"""One run: teacher, student, scores, and all that a run leaves behind."""

import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from iusp_jax.data import datasets
from iusp_jax.experiment import (
  check,
  gradient_units,
  identity,
  plots,
  results,
  teacher,
)
from iusp_jax.experiment.setup import Setup, describe_model
from iusp_jax.models import trained
from iusp_jax.objectives import terms
from iusp_jax.reporting import formatting
from iusp_jax.runtime import (
  devices,
  environment,
  files,
  logs,
  processes,
  wall_time,
)
from iusp_jax.scoring import statistics
from iusp_jax.training import engine, evaluate
from iusp_jax.training.recipe import Recipe

BASELINE = 'baseline'  # The folder of the student without distillation.

# A network file system may show a file late to another host.
SEEN_AFTER_SECONDS = 60.0


def run(
  config: Any, workdir: pathlib.Path, continue_anyway: bool = False
) -> dict[str, Any]:
  """Trains, evaluates and reports what a config asks for.

  Continues a run that was stopped; logs so if the run is complete.

  Args:
    config: as configs/base.py makes it.
    workdir: for everything that the run leaves.
    continue_anyway: also where settings that change bits differ from those
      that the run was started with.

  Returns:
    What results.json holds.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right.
  """
  started, config = time.monotonic(), identity.plain(config)
  check.check(config)
  config = teacher.identified(config)
  logs.log(devices.describe(), everywhere=True)
  busy = 'another run works in this --workdir'
  name = f'--workdir is {workdir}'
  with files.lock_for_all_processes(workdir, busy, wait=False, name=name):
    check_workdir(config, workdir)
    record = processes.by_primary(lambda: results.read(workdir))
    if record is not None:
      files.remove_folder(workdir / 'training')  # Killed before it did.
      logs.log(f'This run is complete; delete {workdir} to repeat it.')
      log_results(record, workdir)
      return record
    record = _run(config, workdir, started, continue_anyway)
  log_results(record, workdir)
  return record


def _run(config, workdir, started, continue_anyway) -> dict[str, Any]:
  """Everything that takes long."""
  objective = terms.Objective.from_config(config['objective'])
  alone = config['fit'] == 'teacher'
  setup = Setup(config)
  check.check_batches(config, setup.dataset, bool(objective.terms))
  check.check_labels(config, setup.dataset)
  others = named_runs(config, setup.dataset)
  keep_config(config, workdir)
  environment.record(workdir, continue_anyway)
  with wall_time.wall_time(workdir, started) as spent:
    extra: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    found = setup.get_teacher(required=alone or bool(objective.terms))
    if found is not None:
      extra['teacher'], scores = results.measure_trained(
        setup, found, config['bootstrap']
      )
    if alone:
      record = _teacher_record(config, setup, extra, scores, workdir)
    else:
      compared = config['train_baseline'] and bool(objective.terms)
      if compared:
        own = _student(without_terms(config), setup, workdir / BASELINE, {})
        others[BASELINE] = trained.load(workdir / BASELINE)
        extra[BASELINE] = own.get('student')
      record = _student(config, setup, workdir, extra)
      if compared and 'test' in setup.dataset.splits:
        found = _difference(setup, workdir, config['bootstrap'])
        if processes.is_primary():
          record['difference'] = found
    of_teacher = plots.teacher_shown(setup)
    if processes.is_primary():
      _log_weak_teacher(record)
      shown = {**of_teacher, **others}
      if not alone:
        shown['student'] = trained.load(workdir)
      plots.draw(setup.dataset, shown, record, workdir)
      record['wall_seconds'] = spent()
      results.finish(workdir, record)
    processes.barrier()
  return record


def _student(config, setup: Setup, workdir, extra) -> dict[str, Any]:
  """Trains and scores one student; gives its record."""
  recipe = Recipe.from_config(config['student'])
  objective = terms.Objective.from_config(config['objective'])
  name = BASELINE if workdir.name == BASELINE else 'student'
  logs.log(f'{name}: {describe_model(config["student"], setup.dataset)}')
  objective = gradient_units.weigh(setup, recipe, objective)
  started = time.monotonic()
  job = setup.job(name, recipe, objective, config['seed'])
  of = identity.of_student(config, recipe.plain(), config['seed'])
  complete = results.complete_identity(of, setup)
  if name == BASELINE and (found := results.read(workdir)):
    _check_same(workdir, found['identity'], complete)
    return found  # Of a run that was stopped after it.
  members = engine.fit(
    [job],
    setup.feed(job),
    workdir,
    on_nan=config['on_nan'],
    metrics_dir=workdir,
    profile_steps=config['profile_steps'],
    identities=[identity.fingerprint(complete)],
  )
  seconds = {'seconds': time.monotonic() - started}  # Of its training.
  runs = [results.Run(workdir, config, of)]
  (record,) = results.write(setup, members, runs, extra | seconds)
  if name == BASELINE:
    results.finish(workdir, record)
  return record


def _log_weak_teacher(record: Mapping[str, Any]) -> None:
  """Warns where the distilled student does better than its teacher."""
  name, metric = 'validate', 'micro_auprc'
  found = [
    record[of]['best'][name]['coarse'][metric]
    for of in ('teacher', 'student')
    # Outputs may lack a split, and a split labels.
    if 'coarse' in record.get(of, {}).get('best', {}).get(name, {})
  ]
  if len(found) == 2 and any(record.get('weights', {}).values()):
    weak, own = found
    if weak is not None and own is not None and weak < own:
      logs.log(
        f'warning: the teacher is weaker than the student on {name} (micro-'
        f'AUPRC {weak:.3f}, {own:.3f}): another teacher may help more, see '
        'docs/howto/distil_from_a_pretrained_teacher.md'
      )


def _difference(setup: Setup, workdir, bootstrap: int) -> dict[str, Any]:
  """How much more the student scores than the one without distillation."""
  split, scores = 'test', []
  for folder in (workdir, workdir / BASELINE):
    found = trained.load(folder)
    scores_NC = results.predict(setup, found.model, found.variables, split)
    scores.append(evaluate.by_level(setup.dataset, scores_NC)['coarse'])
  truth = datasets.truth(setup.dataset.splits[split])['coarse']
  return statistics.clip_difference(truth, *scores, resamples=bootstrap)


def without_terms(config: Mapping[str, Any]) -> dict[str, Any]:
  """A config with every term of its objective off."""
  objective = {
    key: 0.0 if key.endswith(('_weight', '_ratio')) else value
    for key, value in config['objective'].items()
  }
  objective[f'{terms.TAGGING}_schedule'] = 'constant'
  return {**config, 'objective': objective, 'name': BASELINE}


def _teacher_record(config, setup, extra, scores, workdir) -> dict[str, Any]:
  """The record of a run that stops after the teacher."""
  if not processes.is_primary():
    return {}
  results.write_predictions(setup.dataset, scores, workdir)
  dataset = setup.dataset
  return {
    'status': 'done',
    'config': config,
    'identity': run_identity(config),
    'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
    'seed': config['seed'],
    'environment': environment.collect(),
    **extra,
  }


def run_identity(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a run's config says of what it makes."""
  if config['fit'] == 'teacher':
    return {
      'teacher': identity.of_teacher(config),
      'dataset': identity.of_data(config),
    }
  recipe = Recipe.from_config(config['student']).plain()
  return identity.of_student(config, recipe, config['seed'])


def check_workdir(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Refuses a workdir that holds another run.

  One in which nothing has been trained yet holds none: a command that was wrong
  is typed again, perhaps under other settings of JAX.

  Raises:
    ValueError: listing the fields that differ.
  """
  path = results.config_path(workdir)
  begun = any(
    place.exists()
    for folder in (workdir, workdir / BASELINE)
    for place in (results.path_of(folder), folder / 'training')
  )
  if not begun and processes.is_primary():
    environment.path_of(workdir).unlink(missing_ok=True)
  if not (begun and path.exists()):
    return
  there = files.read_json(path)
  try:
    of_there = run_identity(there)
  except (KeyError, TypeError) as error:
    raise ValueError(
      f'{path} is of another version of this program ({error}): choose another '
      '--workdir, or delete it to start over'
    ) from error
  _check_same(workdir, of_there, run_identity(config))


def _check_same(workdir, there, now) -> None:
  """Raises ValueError where what a workdir holds was made from something else.

  `there` and `now` are identities.
  """
  if differing := identity.differences(there, now):
    raise ValueError(
      f'{workdir} holds a run of another config: choose another --workdir, or '
      'delete it to start over. It differs in ' + '; '.join(differing)
    )


def keep_config(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes down the config, and holds that of every process against it.

  Raises:
    ValueError: where a process cannot see it: its workdir is another one; or
      has another config.
  """
  path = results.config_path(workdir)
  files.write_atomically(path, files.to_json(config))
  processes.barrier()
  deadline = time.monotonic() + SEEN_AFTER_SECONDS
  while not path.exists():
    if time.monotonic() > deadline:
      raise ValueError(
        f'process {jax.process_index()} does not see {path}, which process 0 '
        'has written: expected a --workdir and config.cache_dir on storage '
        'that all processes share; see docs/howto/several_hosts.md'
      )
    time.sleep(1.0)
  there = files.read_json(path)
  own = run_identity(config)
  if differing := identity.differences(run_identity(there), own):
    raise ValueError(
      f'process {jax.process_index()} has another config than process 0: '
      + '; '.join(differing)
    )


def named_runs(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> dict[str, trained.Trained]:
  """Trained models that the config names: a wrong one is reported early.

  Returns:
    The one to compare with, by the name of its workdir.

  Raises:
    ValueError: naming the field.
  """
  path = config['compare_with']
  if not path:
    return {}
  other = files.resolve(path)
  try:
    return {other.name: teacher.load(other, dataset)}
  except ValueError as error:
    raise ValueError(
      f'config.compare_with is {path!r}: {error}; or leave it empty'
    ) from error


def log_results(record: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Logs the table of scores, and where everything is."""
  models = {title: record[name] for name, title in plots.titles(record).items()}
  logs.log(formatting.score_table(models))
  if 'difference' in record:
    scores = {
      title: model['best']['test']['coarse']
      for title, model in models.items()
      if 'test' in model['best']  # Not of every teacher from elsewhere.
    }
    table = 'docs/findings/table.md'
    logs.log(formatting.comparison(scores, record['difference'], table))
  logs.log(f'Results: {workdir}/results.json')
  for name in plots.NAMES:
    if (workdir / name).exists():  # Not of what could not be measured.
      logs.log(f'Plot: {workdir}/{name}')
