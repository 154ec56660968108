"""Finds the weights of the objectives, as fairly for one as for another.

Every objective of every student gets the same number of grid points over the
same decades, in units that the gradients give: at ratio 1 the gradient of a
term is as long as that of the tags, measured after one epoch without
distillation. Scored on validate only, with seeds that the table never uses.
"""

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.data import in_memory
from iusp_jax.experiment import experiment, grid, teacher
from iusp_jax.experiment.world import World
from iusp_jax.models import tagger
from iusp_jax.objectives import losses
from iusp_jax.reporting import formatting
from iusp_jax.runtime import devices, files, logs
from iusp_jax.training import ensemble, step


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
  experiment.check(config)
  grid.check(config)
  logs.log(devices.describe())
  grid.keep_config(_settings(config), workdir / 'tuning', _OF_CELLS)
  world, tuned, failures = None, {}, []
  lines = [('student', 'objective', 'weights', 'ratio', 'validate by ratio')]
  for student in config['table']['students']:
    tuned[student] = {}
    units = None
    for name in config['table']['objectives']:
      terms = grid.terms(config, student, name)
      if not terms:
        continue
      path = workdir / 'tuning' / f'{student}-{name}.json'
      if not path.exists():
        world = world or World(config, grid.rotations(config)[0])
        units = units or gradient_units(world, student)
        try:
          found = tune(world, student, terms, units)
        except FloatingPointError as error:
          failures.append(f'{student} {name}: {error}')
          logs.log(failures[-1])
          continue
        files.write_atomically(path, files.to_json(found))
      found = json.loads(path.read_text())
      tuned[student][name] = found['weights']
      lines.append(_line(student, name, found))
      logs.log(formatting.align(lines[-1:]))
      _say_edge(student, name, found)
  logs.log(formatting.align(lines))
  name = config['dataset']['name']
  path = workdir / 'tuned.json'
  files.write_atomically(path, files.to_json({name: tuned}))
  logs.log(f'Weights: {path}; configs/tuned.json holds those in use')
  if failures:
    raise FloatingPointError('; '.join(failures))


def _settings(config: Any) -> dict[str, Any]:
  """The config as far as tuning depends on it.

  Of the weights only which terms there are: their values are what is looked
  for, and other ones once configs/tuned.json has what was found.
  """
  own = teacher.plain(config)
  table = own['table']
  table['weights'] = {
    student: {
      name: list(grid.terms(config, student, name))
      for name in table['objectives']
    }
    for student in table['students']
  }
  return own


_OF_CELLS = ('bootstrap', 'table.seeds', 'table.first_seed')  # None is run.


def _say_edge(student: str, name: str, found: Mapping[str, Any]) -> None:
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
  world: World,
  student: str,
  terms: Sequence[str],
  units: Mapping[str, float],
) -> dict[str, Any]:
  """Trains one objective of a student at every ratio, with every seed.

  A ratio of several terms is shared equally among them.

  Returns:
    `ratios`, `validate` (best score by ratio and seed; 0 for a run that
    diverged), and the best `ratio` with its `weights`.

  Raises:
    FloatingPointError: if every run diverged: no ratio is the best.
  """
  ratios = list(world.config['table']['tune_ratios'])
  seeds = range(world.config['table']['tune_seeds'])
  points = [
    {
      f'{term}_weight': rounded(ratio * units[term] / len(terms))
      for term in terms
    }
    for ratio in ratios
  ]
  jobs = [
    world.job(student, grid.with_weights(world.config, point), seed)
    for point in points
    for seed in seeds
  ]
  members = world.fit(jobs)
  if all(member.diverged for member in members):
    raise FloatingPointError(
      f'all {len(members)} runs diverged, the first since '
      f'{members[0].diverged}: expected a finite one at some of '
      f'config.table.tune_ratios, {ratios}'
    )
  scores = np.array(
    [0.0 if m.diverged else m.best_score for m in members]
  ).reshape(len(ratios), len(seeds))
  best = int(scores.mean(1).argmax())
  return {
    'ratios': ratios,
    'units': {term: units[term] for term in terms},
    'validate': scores.tolist(),
    'ratio': ratios[best],
    'weights': points[best],
    'teacher': world.guide.fingerprint,
    'dataset': world.dataset.name,
  }


def rounded(value: float) -> float:
  """To two significant digits: a weight is no more exact than that."""
  return float(f'{value:.2g}')


def gradient_units(world: World, student: str) -> dict[str, float]:
  """By term, how many times longer the gradient of the tags is.

  Measured on four batches, after an epoch without distillation.
  """
  job = world.job(student, grid.with_weights(world.config, {}), 0)
  model = tagger.build(job.recipe, len(world.dataset.tags))
  resident = world.features(model, 'train')
  variables, order_KB = ensemble.first_epoch(job, resident)
  # Of these few clips alone: the split may have no room on a device.
  clips_MKB = order_KB[None, :4]
  targets = in_memory.with_targets(
    resident, world.outputs['train'], step.DISTILLATION_TERMS
  )
  few, places_MKB = in_memory.part(targets, clips_MKB, clips_MKB.size)
  few = jax.device_put(few)
  norms = jax.jit(functools.partial(_gradient_norms, model, job))
  found = [
    norms(variables, in_memory.take(few, index_B)) for index_B in places_MKB[0]
  ]
  mean = {name: np.mean([row[name] for row in found]) for name in found[0]}
  return {
    term: float(mean['tagging'] / max(mean[term], 1e-12))
    for term in step.DISTILLATION_TERMS
  }


def _gradient_norms(model, job, variables, batch):
  """Lengths of the gradients of the tags and of every term."""

  def loss(params, name, batch):
    output, _ = model.module.apply(
      {**variables, 'params': params},
      batch['mel'],
      train=True,
      mutable=['batch_stats'],
    )
    if name == 'tagging':
      return losses.tagging_loss(output.logits_BC, batch['tags'], batch['mask'])
    values = step.distillation_per_clip(output, batch, job, (name,))
    return jnp.mean(values[name])

  def norm(name):
    # The batch is in one place: an axis of one device for SP's gather.
    one = jax.tree.map(lambda x: x[None], batch)
    gradient = jax.vmap(
      lambda batch: jax.grad(loss)(variables['params'], name, batch),
      axis_name=devices.AXIS,
    )(one)
    return optax.global_norm(gradient)

  return {name: norm(name) for name in ('tagging', *step.DISTILLATION_TERMS)}
