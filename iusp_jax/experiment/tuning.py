"""Finds the weights of the objectives, as fairly for one as for another.

Every objective of every student gets the same number of grid points over the
same decades, in units that the gradients give: at ratio 1 the gradient of a
term is as long as that of the tags, measured after one epoch without
distillation. Scored on validate only, with seeds that the table never uses.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.experiment import check, gradient_units, grid, identity, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.objectives import terms
from iusp_jax.reporting import formatting
from iusp_jax.runtime import devices, files, logs, processes
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe


def run(config: Any, workdir: pathlib.Path) -> None:
  """Tunes every student of a table; prints what configs/tuned.json may hold.

  Leaves `tuning/<student>-<objective>.json` for each pair, kept when the run
  goes on after a kill, and `tuned.json`. With rotations, the first one.

  Args:
    config: as configs/table.py makes it.
    workdir: for the results.

  Raises:
    ValueError: for a config or a workdir that cannot be right.
    FloatingPointError: naming students and objectives of which every run
      diverged; when all others have their results.
  """
  config = identity.plain(config)
  check.check(config)
  grid.check_grid(config)
  config = teacher.identified(config)
  logs.log(devices.describe(), everywhere=True)
  setup: Setup | None = None
  tuned, failures = {}, []
  lines = [('student', 'objective', 'weights', 'ratio', 'validate by ratio')]
  for student in config['table']['students']:
    tuned[student] = {}
    units = None
    names = [
      name
      for name in config['table']['objectives']
      if grid.objective(config, student, name).terms
    ]
    for name in names:
      path = workdir / 'tuning' / f'{student}-{name}.json'
      own = _identity(config, student, name)
      found = processes.by_primary(lambda p=path, o=own: _earlier(p, o))
      if found is None:
        setup = setup or _setup(config)
        needed = grid.objective(config, student, name).terms
        of_name = grid.without_weights(config, student, name)
        if units is None:
          units = _units(config, setup, student, names)
        try:
          found = tune(of_name, setup, student, needed, units, path)
        except FloatingPointError as error:
          failures.append(f'{student} {name}: {error}')
          logs.log(failures[-1])
          continue
        found['identity'] = own
        files.write_atomically(path, files.to_json(found))
      tuned[student][name] = found['weights']
      lines.append(_line(student, name, found))
      logs.log(formatting.align(lines[-1:]))
      _log_edge(student, name, found)
  logs.log(formatting.align(lines))
  name = config['dataset']['name']
  path = workdir / 'tuned.json'
  teachers = {name: teacher.name(config)}
  text = files.to_json({name: tuned, 'teachers': teachers})
  files.write_atomically(path, text)
  logs.log(f'Weights: {path}; configs/tuned.json holds those in use')
  if failures:
    raise FloatingPointError('; '.join(failures))


def _setup(config) -> Setup:
  """Of the first rotation."""
  setup = Setup(grid.config_of(config, grid.rotations(config)[0]))
  grid.check_dataset(config, setup.dataset)
  setup.get_teacher(required=True)
  return setup


def _identity(config, student: str, name: str) -> dict[str, Any]:
  """What the tuning of one objective of a student depends on.

  Of its weights only which terms there are: their values are looked for.
  """
  of_name = grid.without_weights(config, student, name)
  own = grid.config_of(of_name, grid.rotations(config)[0], student)
  weights = dict.fromkeys(
    (f'{t}_weight' for t in grid.objective(config, student, name).terms), 1.0
  )
  own['objective'] = grid.with_weights(own, weights)
  recipe = Recipe.from_config(own['student']).plain()
  table = {k: list(config['table'][k]) for k in ('tune_ratios',)}
  return {
    **identity.of_student(own, recipe, config['table']['tune_seeds']),
    **table,
  }


def _earlier(path: pathlib.Path, own: Mapping[str, Any]):
  """What an earlier command found; None if nothing.

  Raises:
    ValueError: where it was looked for otherwise.
  """
  if not path.exists():
    return None
  found = files.read_json(path)
  if differing := identity.differences(found.get('identity', {}), own):
    raise ValueError(
      f'{path} was tuned otherwise: {"; ".join(differing)}. Choose another '
      '--workdir, or delete the file'
    )
  return found


def _log_edge(student: str, name: str, found: Mapping[str, Any]) -> None:
  ratio, low, high = found['ratio'], min(found['ratios']), max(found['ratios'])
  if ratio in (low, high):
    logs.log(
      f'{student} {name}: the best ratio, {ratio:g}, is at an edge of the grid '
      f'from {low:g} to {high:g}: one beyond it may be better, see '
      'config.table.tune_ratios'
    )


def _line(student, name, found):
  weights = ', '.join(
    f'{k.removesuffix("_weight")} {v:g}' for k, v in found['weights'].items()
  )
  scores = '  '.join(
    f'{ratio:g}: {np.mean(scores):.4f}' if any(scores) else f'{ratio:g}: none'
    for ratio, scores in zip(found['ratios'], found['validate'], strict=True)
  )
  return student, name, weights, f'{found["ratio"]:g}', scores


def tune(
  config: Mapping[str, Any],
  setup: Setup,
  student: str,
  names: Sequence[str],
  units: Mapping[str, float],
  path: pathlib.Path,
) -> dict[str, Any]:
  """Trains one objective of a student at every ratio, with every seed.

  A ratio of several terms is shared equally among them.

  Args:
    config: plain, of the table.
    setup: data and teacher.
    student: name of its model.
    names: terms of the objective.
    units: from `gradient_units.measure`.
    path: of the result; checkpoints are kept beside it.

  Returns:
    `ratios`, `validate` (best score by ratio and seed; 0 for a run that
    diverged), and the best `ratio` with its `weights`.

  Raises:
    FloatingPointError: if every run diverged: no ratio is the best.
  """
  ratios = list(config['table']['tune_ratios'])
  seeds = range(config['table']['tune_seeds'])
  points = [
    {f'{t}_weight': terms.rounded(ratio * units[t] / len(names)) for t in names}
    for ratio in ratios
  ]
  jobs = [
    _job(config, setup, student, point, seed)
    for point in points
    for seed in seeds
  ]
  folder = path.with_suffix('')
  prints = [identity.fingerprint(job.objective.weights) for job in jobs]
  members = engine.fit(jobs, setup.feed(jobs[0]), folder, identities=prints)
  files.remove_folder(folder)
  devices.forget_programs()
  if all(member.diverged for member in members):
    raise FloatingPointError(
      f'all {len(members)} runs diverged, the first since '
      f'{members[0].diverged}: expected a finite one at some of '
      f'config.table.tune_ratios, {ratios}'
    )
  scores = np.array(
    [0.0 if m.diverged else m.best_score or 0.0 for m in members]
  ).reshape(len(ratios), len(seeds))
  best = int(scores.mean(1).argmax())
  assert setup.teacher is not None
  return {
    'ratios': ratios,
    'units': {term: units[term] for term in names},
    'validate': scores.tolist(),
    'ratio': ratios[best],
    'weights': points[best],
    'teacher': setup.teacher.fingerprint,
    'dataset': setup.dataset.name,
  }


def _job(config, setup: Setup, student: str, weights, seed: int) -> step.Job:
  """A run of a student with some weights, fields of `config.objective`."""
  own = grid.config_of(config, grid.rotations(config)[0], student)
  recipe = Recipe.from_config(own['student'])
  fields = grid.with_weights(config, weights)
  objective = terms.Objective.from_config(fields)
  return setup.job(f'{student} seed {seed}', recipe, objective, seed)


def _units(
  config: Mapping[str, Any],
  setup: Setup,
  student: str,
  objectives: Sequence[str],
) -> dict[str, float]:
  """Of every term of some objectives, see `gradient_units.measure`."""
  needed = {
    f'{t}_weight': 1.0
    for name in objectives
    for t in grid.objective(config, student, name).terms
  }
  job = _job(config, setup, student, needed, 0)
  return gradient_units.measure(setup, job.recipe, job.objective)
