"""Finds the weights of the objectives, as fairly for one as for another.

Every objective of every student gets the same number of grid points over the
same decades, in units that the gradients give: at ratio 1 the gradient of a
term is as long as that of the tags, measured after one epoch without
distillation. Scored on validate only, with seeds that the table never uses.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.data import datasets, sources
from iusp_jax.experiment import check, grid, identity, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.reporting import formatting
from iusp_jax.runtime import devices, files, logs, processes
from iusp_jax.training import engine, optim, step
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
        if units is None:
          units = gradient_units(config, setup, student, names)
        try:
          found = tune(config, setup, student, needed, units, path)
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
  own = grid.config_of(config, grid.rotations(config)[0], student)
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
    units: from `gradient_units`.
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
    {f'{t}_weight': rounded(ratio * units[t] / len(names)) for t in names}
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


def rounded(value: float) -> float:
  """To two significant digits: a weight is no more exact than that."""
  return float(f'{value:.2g}')


def gradient_units(
  config: Mapping[str, Any],
  setup: Setup,
  student: str,
  objectives: Sequence[str],
) -> dict[str, float]:
  """By term, how many times longer the gradient of the tags is.

  Measured on four batches, after an epoch without distillation.

  Args:
    config: plain, of the table.
    setup: data and teacher.
    student: name of its model.
    objectives: whose terms are measured.
  """
  needed = [
    t
    for name in objectives
    for t in grid.objective(config, student, name).terms
  ]
  names = tuple(name for name in terms.TERMS if name in needed)
  plain = _job(config, setup, student, {}, 0)
  weights = {f'{name}_weight': 1.0 for name in names}
  job = _job(config, setup, student, weights, 0)
  split = setup.dataset.splits['train']
  plan = optim.Plan.of(job.recipe.training, len(split))
  steps = max(1, round(plan.steps_per_epoch))
  variables = engine.train_without_validation(plain, setup.feed(plain), steps)
  order = sources.Order(len(split), job.recipe.training.batch_size, (0,))
  numbers = range(steps, steps + 4)
  batches = _batches(setup, job, order.clips(numbers)['own'][0])
  norms = jax.jit(functools.partial(_gradient_norms, job))
  found = [norms(variables, batch) for batch in batches]
  mean = {n: float(np.mean([row[n] for row in found])) for n in found[0]}
  # Weights follow from it, so that processes must have the same bits.
  mean = processes.by_primary(lambda: mean)
  return {name: mean['tagging'] / max(mean[name], 1e-12) for name in names}


def _batches(setup: Setup, job: step.Job, clips_KB: np.ndarray):
  """Batches of these clips, with the teacher's outputs for them."""
  student, split = job.student(), setup.dataset.splits['train']
  for clips_B in clips_KB:
    found = [datasets.read_clip(split, k) for k in clips_B]
    batch = {key: np.stack([clip[key] for clip in found]) for key in found[0]}
    wave_BS = jnp.asarray(batch.pop('wave'))
    of_teacher = _targets(setup, job.objective.targets, wave_BS, clips_B)
    batch |= {sources.TARGET + name: x for name, x in of_teacher.items()}
    yield batch | {'mel': tagger.log_mel(student, wave_BS)}


def _targets(setup: Setup, names, wave_BS, clips_B) -> dict[str, Any]:
  """What terms need of the teacher for a batch of clips, by name."""
  found = setup.teacher
  if isinstance(found, trained.Trained):
    mel_BTF = tagger.log_mel(found.model, wave_BS)
    output = tagger.apply(
      found.model, found.variables, mel_BTF, targets.layers(names)
    )
    frames = {targets.FRAMES: output.frames_BTD, **output.layers}
    return targets.compute(names, output.logits_BC, frames, lambda x: x)
  rows = {name: x[clips_B] for name, x in setup.outputs('train', names).items()}
  return {
    name: (x[:, clips_B] if targets.is_pairwise(name) else x).astype('float32')
    for name, x in rows.items()
  }


def _gradient_norms(job: step.Job, variables, batch):
  """Lengths of the gradients of the tags and of every term."""
  model = job.student()

  def loss(params, name, batch):
    output, _ = tagger.forward(
      model,
      {**variables, 'params': params},
      batch['mel'],
      train=True,
      layers=job.objective.layers,
    )
    if name == 'tagging':
      return losses.tagging_loss(output.logits_BC, batch['tags'], batch['mask'])
    own = job.objective.settings[name]
    num_samples = job.dataset.num_samples
    params_of = step.initial_term_params(job).get(name)
    inputs = step.term_inputs(
      output, batch, num_samples, own, params_of, job.beside
    )
    return jnp.mean(terms.TERMS[name].per_clip(inputs))

  def norm(name):
    # The batch is in one place: an axis of one device for SP's gather.
    one = jax.tree.map(lambda x: x[None], batch)
    gradient = jax.vmap(
      lambda batch: jax.grad(loss)(variables['params'], name, batch),
      axis_name=devices.AXIS,
    )(one)
    return optax.global_norm(gradient)

  return {name: norm(name) for name in ('tagging', *job.objective.terms)}
