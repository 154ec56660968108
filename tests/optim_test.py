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


def adamw(params, gradients, rates, factor, decay, decaying):
  """Loshchilov & Hutter's algorithm 2 after clipping, in float64."""
  params = {k: np.asarray(v, np.float64) for k, v in params.items()}
  first = {k: np.zeros_like(v) for k, v in params.items()}
  second = {k: np.zeros_like(v) for k, v in params.items()}
  norms, num_clipped = [], 0
  for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
    norm = math.sqrt(sum(np.square(g).sum() for g in gradient.values()))
    share = 1.0
    if factor and norms:
      # The last counts most; their weights add up to 1.
      weights = 0.98 ** np.arange(len(norms))[::-1]
      limit = factor * np.exp(np.average(np.log(norms), weights=weights))
      share = min(1.0, limit / norm)
    num_clipped += share < 1
    norms.append(norm)
    for k, g in gradient.items():
      first[k] = 0.9 * first[k] + 0.1 * share * g
      second[k] = 0.999 * second[k] + 0.001 * np.square(share * g)
      mean, square = first[k] / (1 - 0.9**t), second[k] / (1 - 0.999**t)
      change = mean / (np.sqrt(square) + 1e-8)
      if k in decaying:
        change = change + decay * params[k]
      params[k] = params[k] - rate * change
  return params, num_clipped


SHAPES = {'kernel': (3, 4), 'recurrent': (2, 2, 3), 'bias': (4,), 'gain': ()}


def steps_of(factor, gradients, params):
  """The package's steps; the first rates of a schedule without a warm-up."""
  made = training(
    clip_factor=factor, weight_decay=0.1, learning_rate=PEAK, warmup_epochs=0.0
  )
  optimizer = optim.optimizer(made, optim.Plan(8, 1, 3.0))

  def to_float32(tree):
    return {k: np.asarray(x, np.float32) for k, x in tree.items()}

  found = to_float32(params)
  state, update = optimizer.init(found), jax.jit(optimizer.update)
  for gradient in gradients:
    changes, state = update(to_float32(gradient), state, found)
    found = {k: found[k] + changes[k] for k in found}
  return found, optim.clipped_share(state)


def drawn(sizes, seed=0):
  """Parameters, and gradients that are about so long."""
  rng = np.random.default_rng(seed)
  params = {k: rng.normal(size=shape) for k, shape in SHAPES.items()}
  gradients = [
    {k: size * rng.normal(size=shape) for k, shape in SHAPES.items()}
    for size in sizes
  ]
  return params, gradients


@pytest.mark.parametrize('factor', [0.0, 0.4, 1.0, 2.0])
@pytest.mark.parametrize('num_steps', [1, 6])
def test_steps_are_those_of_adamw_after_clipping(factor, num_steps):
  # Some are clipped, others not: the moments of a clipped gradient are not
  # those of the gradient, nor is a clipped norm part of the mean.
  sizes = (0.3, 3.0, 0.05, 0.3, 9.0, 0.4)[:num_steps]
  params, gradients = drawn(sizes)
  rates = [PEAK * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(num_steps)]
  found, share = steps_of(factor, gradients, params)
  expected, num_clipped = adamw(
    params, gradients, rates, factor, 0.1, {'kernel', 'recurrent'}
  )
  for k in SHAPES:
    np.testing.assert_allclose(found[k], expected[k], 2e-6, 5e-7, err_msg=k)
  np.testing.assert_allclose(share, num_clipped / num_steps, 1e-6)
  assert (num_clipped > 0) == (factor > 0 and num_steps > 1)


@pytest.mark.parametrize('scale', [0.1, 10.0, 1e4])
def test_scale_of_the_loss_changes_no_step(scale):
  """A term makes the gradient longer: that alone is to change no student."""
  params, gradients = drawn((0.3, 3.0, 0.05, 0.3, 9.0, 0.4))
  longer = [{k: scale * g for k, g in row.items()} for row in gradients]
  found, share = steps_of(1.0, gradients, params)
  other, other_share = steps_of(1.0, longer, params)
  assert share == other_share > 0
  for k in SHAPES:
    np.testing.assert_allclose(found[k], other[k], 1e-5, 1e-6, err_msg=k)


def test_gradient_of_length_0_moves_no_limit():
  params, gradients = drawn((0.3, 0.0, 3.0))
  del gradients[1]['gain']
  gradients[1]['gain'] = np.zeros(())
  one, _ = steps_of(1.0, gradients, params)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(one))
  clip = optim.clip_by_running_norm(1.0)
  state = clip.init(None)
  _, state = clip.update({'a': jnp.full(4, 2.0)}, state)
  _, zero = clip.update({'a': jnp.zeros(4)}, state)
  for here, there in zip(state, zero, strict=True):
    assert here == there
  clipped, _ = clip.update({'a': jnp.full(4, 4.0)}, zero)
  np.testing.assert_allclose(clipped['a'], 2.0, 1e-5)


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
    training(clip_factor=1.0, weight_decay=0.1, **rates), optim.Plan(4, 1, 3.0)
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
