"""Weights of terms in units of the labels' gradient, measured once and kept.

At ratio 1 the gradient of a term is as long as that of the labels' term, after
one epoch without distillation. A ratio can be carried from one teacher, student
or data set to another; a weight cannot: the terms are of many sizes.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, sources, teacher_outputs
from iusp_jax.experiment import identity
from iusp_jax.experiment.setup import Setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.runtime import devices, files, logs, processes
from iusp_jax.training import engine, optim, step
from iusp_jax.training.recipe import Recipe

_SEED = 0  # Of the student that is measured.
_NUM_BATCHES = 4


def weigh(
  setup: Setup, recipe: Recipe, objective: terms.Objective
) -> terms.Objective:
  """An objective with weights in place of ratios.

  A unit is measured once for each student, data set, teacher and term, and
  kept in `config.cache_dir`, so that all seeds have the same weights.

  Args:
    setup: data and teacher.
    recipe: of the student.
    objective: perhaps with ratios.
  """
  if not objective.ratios:
    return objective
  names = list(objective.ratios)
  places = {name: _place(setup, recipe, objective, name) for name in names}
  units = processes.by_primary(
    lambda: {
      name: files.read_json(path)['unit']
      for name, path in places.items()
      if path.exists()
    }
  )
  if missing := [name for name in names if name not in units]:
    wanted = dataclasses.replace(
      objective, weights={}, ratios=dict.fromkeys(missing, 1.0)
    )
    units |= measure(setup, recipe, wanted)
    for name in missing:
      text = files.to_json({'term': name, 'unit': units[name]})
      files.write_atomically(places[name], text)
  weighed = objective.with_units(units)
  for name in names:
    logs.log(
      f'{terms.TERMS[name].title}: weight {weighed.weights[name]:g}, for the '
      f'ratio {objective.ratios[name]:g}'
    )
  return weighed


def _place(setup: Setup, recipe: Recipe, objective, name: str):
  """The file of one unit."""
  assert setup.teacher is not None
  of = {
    'term': name,
    'settings': dict(objective.settings[name]),
    'student': recipe.plain(),
    'dataset': setup.dataset.fingerprint(),
    'teacher': [setup.teacher.fingerprint, setup.teacher.weights()],
  }
  folder = files.resolve(setup.cache_dir) / 'gradient_units'
  return folder / f'{identity.fingerprint(of)}.json'


def measure(
  setup: Setup, recipe: Recipe, objective: terms.Objective
) -> dict[str, float]:
  """By term, how many times longer the gradient of the labels' term is.

  Measured on four batches, after an epoch without distillation. Where no clip
  of these has a label, the gradient of the labels' term counts as 1 long.

  Args:
    setup: data and teacher.
    recipe: of the student.
    objective: its terms are measured, whatever their weights.
  """
  product_NKK = products(setup, recipe, objective)
  mean_K = np.sqrt(np.diagonal(product_NKK, axis1=1, axis2=2)).mean(0)
  # Weights follow from it, so that processes must have the same bits.
  of_labels, *of_terms = processes.by_primary(mean_K.tolist)
  return {
    name: (of_labels or 1.0) / max(length, 1e-12)
    for name, length in zip(
      objective.without_weights().terms, of_terms, strict=True
    )
  }


def products(
  setup: Setup, recipe: Recipe, objective: terms.Objective, epochs: float = 1.0
) -> np.ndarray:
  """Inner products of the gradients of the labels' term and of every other.

  For the student that was trained for some epochs without distillation.

  Args:
    setup: data and teacher.
    recipe: of the student.
    objective: its K - 1 terms, whatever their weights.
    epochs: of training.

  Returns:
    `[N, K, K]` of N batches: labels first, then `objective.terms` in order.
  """
  plain = setup.job('units', recipe, terms.Objective(), _SEED)
  job = setup.job('units', recipe, objective.without_weights(), _SEED)
  split = setup.dataset.splits['train']
  plan = optim.Plan.of(recipe.training, len(split))
  steps = max(1, round(epochs * plan.steps_per_epoch))
  variables = engine.train_without_validation(plain, setup.feed(plain), steps)
  order = sources.Order(len(split), recipe.training.batch_size, (_SEED,))
  numbers = range(steps, steps + _NUM_BATCHES)
  batches = _batches(setup, job, order.clips(numbers)['own'][0])
  of_batch = jax.jit(functools.partial(_products, job))
  return np.stack([of_batch(variables, batch) for batch in batches])


def _batches(
  setup: Setup, job: step.Job, clips_KB: np.ndarray
) -> Iterator[dict]:
  """Batches of these clips, with the teacher's outputs for them."""
  student, split = job.student(), setup.dataset.splits['train']
  for clips_B in clips_KB:
    found = [datasets.read_clip(split, k) for k in clips_B]
    batch = {key: np.stack([clip[key] for clip in found]) for key in found[0]}
    wave_BS = jnp.asarray(batch.pop('wave'))
    of_teacher = _targets(setup, job, wave_BS, batch['length'], clips_B)
    batch |= {sources.TARGET + name: x for name, x in of_teacher.items()}
    yield batch | {'mel': tagger.log_mel(student, wave_BS)}


def _targets(setup, job, wave_BS, length_B, clips_B) -> dict[str, Any]:
  """What terms need of the teacher for a batch of clips, by name."""
  found, names = setup.teacher, job.objective.targets
  if isinstance(found, trained.Trained):
    x = teacher_outputs.apply(
      found.model,
      found.variables,
      tagger.log_mel(found.model, wave_BS),
      jnp.asarray(length_B),
      job.dataset.num_samples,
      names,
    )
    return targets.compute(names, x, lambda array: array, setup.fits(names))
  rows = {name: x[clips_B] for name, x in setup.outputs('train', names).items()}
  return {
    name: (x[:, clips_B] if targets.is_pairwise(name) else x).astype('float32')
    for name, x in rows.items()
  }


def _products(job: step.Job, variables, batch) -> jax.Array:
  """Inner products of the gradients of the tags and of every term, [K, K]."""
  model, params_of = job.student(), step.initial_term_params(job)

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
    inputs = step.term_inputs(job, name, output, batch, params_of.get(name))
    return jnp.mean(terms.TERMS[name].per_clip(inputs))

  def gradient(name):
    # The batch is in one place: an axis of one device for SP's gather.
    one = jax.tree.map(lambda x: x[None], batch)
    found = jax.vmap(
      lambda batch: jax.grad(loss)(variables['params'], name, batch),
      axis_name=devices.AXIS,
    )(one)
    return jax.flatten_util.ravel_pytree(found)[0]

  names = 'tagging', *job.objective.terms
  gradient_KP = jnp.stack([gradient(name) for name in names])
  return jnp.matmul(gradient_KP, gradient_KP.T, precision='highest')
