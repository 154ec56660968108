"""Length, schedule and optimiser against closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import recipe

from iusp_jax.models import tagger
from iusp_jax.training import optim
from iusp_jax.training.recipe import Recipe

PEAK = 0.02


def training(**fields):
  """Of a recipe: as `Training`, whose other fields do not count here."""
  return Recipe.from_config(recipe(**fields)).training


def schedule(num_steps=40, warmup_epochs=2.0, steps_per_epoch=4.0):
  made = training(learning_rate=PEAK, warmup_epochs=warmup_epochs)
  return optim.schedule(made, optim.Plan(num_steps, 1, steps_per_epoch))


@pytest.mark.parametrize(
  ('done', 'expected'),
  [
    (0, 0.0),
    (2, PEAK / 4),
    (8, PEAK),  # 2 epochs of 4 steps.
    (16, PEAK * 0.5 * (1 + math.cos(math.pi / 4))),
    (24, PEAK / 2),  # Half of the way from 8 to 40.
    (39, PEAK * 0.5 * (1 + math.cos(math.pi * 31 / 32))),  # The last step.
    (40, 0.0),
  ],
)
def test_schedule_rises_on_a_line_and_falls_on_half_a_cosine(done, expected):
  np.testing.assert_allclose(schedule()(done), expected, 1e-5, 1e-8)


def test_schedule_without_warm_up_begins_at_its_peak():
  rates = schedule(warmup_epochs=0.0)
  np.testing.assert_allclose(rates(0), PEAK, 1e-6)
  np.testing.assert_allclose(rates(20), PEAK / 2, 1e-5)


def test_warm_up_that_is_longer_than_the_run_ends_before_it():
  rates = schedule(num_steps=5, warmup_epochs=100.0)
  np.testing.assert_allclose(
    [rates(k) for k in range(5)], PEAK * np.arange(5) / 4, 1e-6
  )


@pytest.mark.parametrize(
  ('epochs', 'every', 'num_clips', 'expected'),
  [
    (4.0, 1.0, 24, (12, 3, 3.0)),
    (1.5, 0.5, 30, (6, 2, 3.75)),
    (0.1, 0.1, 8, (2, 1, 1.0)),
  ],
)
def test_plan_counts_epochs_in_steps(epochs, every, num_clips, expected):
  made = training(batch_size=8, epochs=epochs, eval_every_epochs=every)
  plan = optim.Plan.of(made, num_clips)
  assert (
    plan.num_steps,
    plan.eval_every_steps,
    plan.steps_per_epoch,
  ) == expected


@pytest.mark.parametrize(
  ('step', 'expected'), [(0, 3), (2, 3), (3, 6), (11, 12), (13, 14)]
)
def test_milestones_are_validations_and_the_end(step, expected):
  assert optim.Plan(14, 3, 3.0).next_milestone(step) == expected


def adamw(params, gradients, rates, clip, decay, decaying):
  """Loshchilov & Hutter's algorithm 2 after clipping, in float64."""
  params = {k: np.asarray(v, np.float64) for k, v in params.items()}
  first = {k: np.zeros_like(v) for k, v in params.items()}
  second = {k: np.zeros_like(v) for k, v in params.items()}
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    norm = math.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    share = min(1.0, clip / norm) if clip else 1.0
    for k, g in gradient.items():
      first[k] = 0.9 * first[k] + 0.1 * share * g
      second[k] = 0.999 * second[k] + 0.001 * np.square(share * g)
      mean, square = first[k] / (1 - 0.9**t), second[k] / (1 - 0.999**t)
      change = mean / (np.sqrt(square) + 1e-8)
      if k in decaying:
        change = change + decay * params[k]
      params[k] = params[k] - rate * change
  return params


@pytest.mark.parametrize('clip', [0.0, 1.0])
@pytest.mark.parametrize('num_steps', [1, 3])
def test_steps_are_those_of_adamw_after_clipping(clip, num_steps):
  rng = np.random.default_rng(0)
  shapes = {'kernel': (3, 4), 'recurrent': (2, 2, 3), 'bias': (4,), 'gain': ()}
  params = {k: rng.normal(size=shape) for k, shape in shapes.items()}
  # The first is longer than 1 and is clipped, the second is not: the moments
  # of a clipped gradient are not those of the gradient.
  gradients = [
    {k: size * rng.normal(size=shape) for k, shape in shapes.items()}
    for size in (3.0, 0.05, 0.3)
  ][:num_steps]
  # The rates of the first steps: the first of a warm-up would be 0.
  made = training(
    clip_norm=clip, weight_decay=0.1, learning_rate=PEAK, warmup_epochs=0.0
  )
  plan = optim.Plan(4, 1, 3.0)
  rates = [PEAK * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(num_steps)]
  optimizer = optim.optimizer(made, plan)

  def to_float32(tree):
    return {k: np.asarray(x, np.float32) for k, x in tree.items()}

  found = to_float32(params)
  state, update = optimizer.init(found), jax.jit(optimizer.update)
  for gradient in gradients:
    changes, state = update(to_float32(gradient), state, found)
    found = {k: found[k] + changes[k] for k in found}
  expected = adamw(params, gradients, rates, clip, 0.1, {'kernel', 'recurrent'})
  for k in shapes:
    np.testing.assert_allclose(found[k], expected[k], 2e-6, 5e-7, err_msg=k)


@pytest.mark.parametrize('architecture', ['cnn', 'crnn', 'mobilenet'])
def test_only_matrices_and_kernels_decay(architecture):
  """With no gradient, what changes is what decays: by rate times decay."""
  sizes = {
    'cnn': {'width': 2},
    'crnn': {'width': 2, 'hidden': 3},
    'mobilenet': {'width_multiplier': 0.05, 'num_stages': 3},
  }
  made = recipe({'architecture': architecture, **sizes[architecture]})
  shapes = tagger.build(made, 4).shapes(16_000)['params']
  params = jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes)
  rates = {'learning_rate': 0.5, 'warmup_epochs': 0.0}
  optimizer = optim.optimizer(
    training(clip_norm=1.0, weight_decay=0.1, **rates), optim.Plan(4, 1, 3.0)
  )

  @jax.jit
  def change(params):
    zeros = jax.tree.map(jnp.zeros_like, params)
    return optimizer.update(zeros, optimizer.init(params), params)[0]

  changes = change(params)
  seen = set()
  for path, change in jax.tree.leaves_with_path(changes):
    name = path[-1].key
    seen.add(name)
    # By name, where the code goes by number of axes.
    decays = {'kernel': True, 'recurrent': True, 'bias': False, 'scale': False}
    np.testing.assert_allclose(change, -0.05 * decays[name], 1e-6, err_msg=name)
  assert {'kernel', 'bias', 'scale'} <= seen
