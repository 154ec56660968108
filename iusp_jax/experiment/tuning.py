"""Finds ratios of the objectives and learning rates, as fairly for all.

Every objective of every student gets the same number of looks over the same
decades, in units that the gradients give (see `gradient_units`), and so does
the undistilled student's learning rate, which all its objectives then have. A
look is one run, scored on validate only, with a seed that the table never uses.
First each value of a ladder with one seed; then the best and its two neighbours
with the other seeds, one beyond the edge where the best is there.
"""

import dataclasses
import functools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.experiment import (
  check,
  gradient_units,
  grid,
  identity,
  teacher,
  workers,
)
from iusp_jax.experiment.setup import Setup
from iusp_jax.objectives import terms
from iusp_jax.reporting import formatting
from iusp_jax.runtime import devices, files, logs, processes
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe

BASELINE = 'baseline'  # Its learning rate is looked for.

# By value, then by seed: scores on validate, 0 for a run that diverged.
Looks = dict[float, dict[int, float]]


@dataclasses.dataclass(frozen=True)
class Search:
  """One value to find: of an objective and a student, in a rotation."""

  student: str
  objective: str
  rotation: grid.Rotation | None

  @property
  def name(self) -> str:
    """Of its file."""
    parts = [self.student, self.objective]
    if self.rotation:
      parts = ['folds{}-{}'.format(*self.rotation), *parts]
    return '-'.join(parts)


def run(config: Any, workdir: pathlib.Path, jobs: int = 1) -> None:
  """Tunes every student and objective of a table.

  Leaves `tuning/<student>-<objective>.json` for each search, kept when the run
  goes on after a kill or with more students and objectives; `tuned.json`, with
  the median over students and rotations of each objective's best ratio; and
  merges that into `config.table.tuned_file`.

  Args:
    config: as configs/table.py makes it.
    workdir: for the results.
    jobs: processes at a time, see `table.run`.

  Raises:
    ValueError: for a config or a workdir that cannot be right.
    FloatingPointError: naming students and objectives of which every run
      diverged; when all others have their results.
  """
  config = identity.plain(config)
  check.check(config)
  grid.check_grid(config)
  config = teacher.identified(config)
  workers.check(jobs, workdir)
  logs.log(devices.describe(), everywhere=True)
  setup_of = functools.cache(functools.partial(_setup, config))
  if jobs > 1:
    for rotation in grid.rotations(config):
      setup_of(rotation)  # Its teacher is trained with all the cores.
    workers.run(jobs)
  failures: list[str] = []
  config = _tune_learning_rates(config, workdir, setup_of, failures)
  found = _find_all(config, workdir, setup_of, _distilled(config), failures)
  if not jobs:  # One of several, and the first of them reports.
    return
  if processes.is_primary():
    _report(config, workdir, found)
  processes.barrier()
  if failures:
    raise FloatingPointError('; '.join(failures))


def _setup(config, rotation) -> Setup:
  setup = Setup(grid.config_of(config, rotation))
  grid.check_dataset(config, setup.dataset)
  if _distilled(config):
    setup.get_teacher(required=True)
  return setup


def _distilled(config) -> list[str]:
  """The objectives with terms, whose ratios are looked for."""
  table = config['table']
  return [
    name
    for name in table['objectives']
    if grid.objective(config, table['students'][0], name).terms
  ]


def _tune_learning_rates(config, workdir, setup_of, failures):
  """The config with the undistilled students' rates, where they are tuned."""
  if BASELINE not in config['table']['objectives']:
    return config
  found = _find_all(config, workdir, setup_of, [BASELINE], failures)
  rates = dict(config['table']['learning_rates'])
  for student in config['table']['students']:
    best = [
      f['best'] for search, f in found.items() if search.student == student
    ]
    if best:
      rates[student] = statistics.median_low(best)
  return {**config, 'table': {**config['table'], 'learning_rates': rates}}


def _find_all(
  config, workdir, setup_of, names: Sequence[str], failures: list[str]
) -> dict[Search, dict[str, Any]]:
  """What is found for some objectives of all students, in all rotations.

  Searches that another process is at come last.
  """
  searches = [
    Search(student, name, rotation)
    for rotation in grid.rotations(config)
    for student in config['table']['students']
    for name in names
  ]
  found = {}

  def attempt(search: Search, wait: bool) -> None:
    folder = workdir / 'tuning' / search.name
    message = 'another process looks for this'
    with files.lock_for_all_processes(folder, message, wait):
      try:
        found[search] = find(config, search, setup_of, folder)
      except FloatingPointError as error:
        failures.append(f'{search.name}: {error}')
        logs.log(failures[-1])

  workers.attempt_all(searches, attempt)
  return found


def find(config, search: Search, setup_of, folder: pathlib.Path):
  """One value; what an earlier command found of it is used.

  Args:
    config: plain, of the table.
    search: what to look for.
    setup_of: gives data and teacher of a rotation.
    folder: for checkpoints; the file of the looks is beside it.

  Returns:
    What the file holds: `ladder`, `looks` (value, seed and score on validate
    of each run), `best` and `identity`.

  Raises:
    FloatingPointError: if every run diverged: no value is the best.
    ValueError: where an earlier command looked otherwise.
  """
  path = folder.with_suffix('.json')
  own = _identity(config, search)
  found = processes.by_primary(lambda: _earlier(path, own))
  if 'best' in found:
    return found
  looks: Looks = {}
  for value, seed, score in found['looks']:
    looks.setdefault(value, {})[seed] = score
  ladder, seeds = found['ladder'], range(config['table']['tune_seeds'])
  setup = setup_of(search.rotation)

  def look(values: Sequence[float], seeds: Sequence[int], stage: str):
    todo = [v for v in values if not set(seeds) <= looks.get(v, {}).keys()]
    for some in _groups(search, todo):
      scores = _train(config, search, setup, some, seeds, folder / stage)
      for value, of_seeds in zip(some, scores, strict=True):
        known = looks.setdefault(value, {})
        known.update(zip(seeds, of_seeds, strict=True))
      found['looks'] = [[v, s, x] for v in looks for s, x in looks[v].items()]
      files.write_atomically(path, files.to_json(found))

  look(ladder, seeds[:1], 'first')
  nearest = neighbours(ladder, best_of(looks, ladder))
  if len(seeds) > 1:
    look(nearest, seeds[1:], 'second')
    _log_edge(search, best_of(looks, nearest), ladder)
  found['best'] = best_of(looks, nearest if len(seeds) > 1 else ladder)
  files.write_atomically(path, files.to_json(found))
  files.remove_folder(folder)
  logs.log(formatting.align([_line(search, found)]))
  return found


def best_of(looks: Looks, values: Sequence[float]) -> float:
  """The value with the best mean over the seeds that all of these have.

  Raises:
    FloatingPointError: if every run of these diverged.
  """
  seeds = set.intersection(*(set(looks[value]) for value in values))
  means = [np.mean([looks[value][s] for s in seeds]) for value in values]
  if not any(means):
    raise FloatingPointError(
      f'all {len(values) * len(seeds)} runs diverged, with '
      f'{", ".join(f"{value:g}" for value in values)}: expected a finite one'
    )
  return values[int(np.argmax(means))]


def neighbours(ladder: Sequence[float], best: float) -> list[float]:
  """A value and those beside it; beyond the edge by the same factor."""
  if len(ladder) == 1:
    return list(ladder)
  below = terms.rounded(ladder[0] ** 2 / ladder[1])
  above = terms.rounded(ladder[-1] ** 2 / ladder[-2])
  longer = [below, *ladder, above]
  k = longer.index(best)
  return longer[k - 1 : k + 2]


def _groups(search: Search, values: Sequence[float]) -> list[list[float]]:
  """Values that one program serves: learning rates are part of a program."""
  if search.objective == BASELINE:
    return [[value] for value in values]
  return [list(values)] if values else []


def _train(config, search, setup, values, seeds, folder) -> list[list[float]]:
  """Scores on validate by value and seed; 0 for a run that diverged."""
  jobs = [
    job
    for value in values
    for job in _jobs(config, search, setup, value, seeds)
  ]
  prints = [
    identity.fingerprint({'value': value, 'seed': seed})
    for value in values
    for seed in seeds
  ]
  place = folder / f'{values[0]:g}'
  members = engine.fit(jobs, setup.feed(jobs[0]), place, identities=prints)
  files.remove_folder(place)
  devices.forget_programs()
  scores = [0.0 if m.diverged else m.best_score or 0.0 for m in members]
  return np.reshape(scores, (len(values), len(seeds))).tolist()


def _jobs(config, search, setup, value, seeds) -> list[step.Job]:
  """Runs of a student with one value."""
  own = _with_value(config, search, value)
  recipe = Recipe.from_config(own['student'])
  objective = terms.Objective.from_config(own['objective'])
  if objective.terms:
    objective = gradient_units.weigh(setup, recipe, objective)
  name = f'{search.student} {search.objective} {value:g}'
  return [
    setup.job(f'{name} seed {seed}', recipe, objective, seed) for seed in seeds
  ]


def _with_value(config, search: Search, value: float) -> dict[str, Any]:
  """The config of a run with one value of what is looked for."""
  own = grid.config_of(config, search.rotation, search.student)
  if search.objective == BASELINE:
    own['student']['training']['learning_rate'] = value
    own['objective'] = grid.with_weights(own, {})
    return own
  objective = grid.objective(config, search.student, search.objective)
  fields = config['table']['weights'][search.student][search.objective]
  kept = {k: v for k, v in fields.items() if not grid.is_weight(k)}
  ratios = {f'{term}_ratio': value for term in objective.terms}
  own['objective'] = grid.with_weights(own, kept | ratios)
  return own


def _identity(config, search: Search) -> dict[str, Any]:
  """What a search depends on: of the value only that it is looked for."""
  own = _with_value(config, search, 1.0)
  recipe = Recipe.from_config(own['student']).plain()
  of = identity.of_student(own, recipe, 0)
  table = config['table']
  return {**of, 'ladder': _ladder(config, search), 'seeds': table['tune_seeds']}


def _ladder(config, search: Search) -> list[float]:
  kind = 'learning_rates' if search.objective == BASELINE else 'ratios'
  return sorted(config['table'][f'tune_{kind}'])


def _earlier(path: pathlib.Path, own: Mapping[str, Any]) -> dict[str, Any]:
  """What an earlier command found, perhaps in part; else a beginning.

  Raises:
    ValueError: where it was looked for otherwise.
  """
  if not path.exists():
    return {'identity': own, 'ladder': own['ladder'], 'looks': []}
  found = files.read_json(path)
  if differing := identity.differences(found.get('identity', {}), own):
    raise ValueError(
      f'{path} was tuned otherwise: {"; ".join(differing)}. Choose another '
      '--workdir, or delete the file'
    )
  return found


def _log_edge(search: Search, best: float, ladder: Sequence[float]) -> None:
  if not ladder[0] <= best <= ladder[-1]:
    logs.log(
      f'{search.name}: the best value, {best:g}, is beyond the ladder from '
      f'{ladder[0]:g} to {ladder[-1]:g}: one further may be better, see '
      'config.table.tune_ratios and tune_learning_rates'
    )


def _line(search: Search, found: Mapping[str, Any]) -> tuple[str, ...]:
  by_value: dict[float, list[float]] = {}
  for value, _, score in found['looks']:
    by_value.setdefault(value, []).append(score)
  scores = '  '.join(
    f'{value:g}: {np.mean(of):.4f} ({len(of)})'
    for value, of in sorted(by_value.items())
  )
  return search.name, f'{found["best"]:g}', scores


def _report(config, workdir, found) -> None:
  """Writes what was found, merges and logs it."""
  table, name = config['table'], config['dataset']['name']
  ratios = {
    objective: statistics.median_low(
      f['best'] for s, f in found.items() if s.objective == objective
    )
    for objective in dict.fromkeys(search.objective for search in found)
  }
  tuned = {'ratios': ratios}
  if BASELINE in table['objectives']:
    rates = table['learning_rates']
    tuned['training'] = {
      student: {'learning_rate': rates[student]}
      for student in table['students']
      if student in rates
    }
  text = files.to_json({name: tuned})
  files.write_atomically(workdir / 'tuned.json', text)
  lines = [('search', 'best', 'mean score on validate (seeds) by value')]
  logs.log(formatting.align(lines + [_line(*item) for item in found.items()]))
  logs.log(f'Ratios and learning rates: {workdir / "tuned.json"}')
  if table['tuned_file']:
    _merge(table['tuned_file'], name, tuned)


def _merge(file: str, name: str, tuned: Mapping[str, Any]) -> None:
  """Adds what was found for a data set to a file that configs read."""
  path = files.resolve(file)
  there = files.read_json(path) if path.exists() else {}
  of_data = there.setdefault(name, {})
  for kind, values in tuned.items():
    of_data.setdefault(kind, {}).update(values)
  files.write_atomically(path, files.to_json(there))
  logs.log(f'Merged into {path}, which the configs take them from')
