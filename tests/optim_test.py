"""Length, schedule and optimiser against closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import fake, recipe

from iusp_jax.data import datasets
from iusp_jax.models import tagger
from iusp_jax.runtime import devices
from iusp_jax.training import optim, step

PEAK = 0.02


def schedule(num_steps=40, warmup_epochs=2.0, steps_per_epoch=4.0):
  training = {'learning_rate': PEAK, 'warmup_epochs': warmup_epochs}
  return optim.schedule(training, num_steps, steps_per_epoch)


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
  training = {'batch_size': 8, 'epochs': epochs, 'eval_every_epochs': every}
  plan = optim.Plan.of(training, num_clips)
  assert (
    plan.num_steps,
    plan.eval_every_steps,
    plan.steps_per_epoch,
  ) == expected


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
  rates = [0.01, 0.02, 0.005][:num_steps]
  training = {'clip_norm': clip, 'weight_decay': 0.1}
  optimizer = optim.optimizer(
    training, lambda count: jnp.asarray([0.01, 0.02, 0.005])[count]
  )

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
  training = {'clip_norm': 1.0, 'weight_decay': 0.1}
  optimizer = optim.optimizer(training, lambda count: 0.5)

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


def test_moving_average_after_two_steps():
  """decay^2 of the first, then what each step adds; the statistics as well."""
  made = recipe(ema_decay=0.9, warmup_epochs=0.0)
  job = step.Job('student', made, {}, fake(), 5, None)
  model = tagger.build(made, len(job.dataset.tags), devices.AXIS)
  rates = optim.schedule(made['training'], 4, 3.0)
  optimizer = optim.optimizer(made['training'], rates)
  mapped = devices.pmap(step.make_step(model, optimizer, job))
  state = step.initial_state(model, optimizer, job)
  own = [{'params': state.params, 'batch_stats': state.batch_stats}]
  stream = datasets.train_stream(job.dataset.splits['train'], 8, 5)
  state, settings = devices.replicate((state, job.settings()))
  for _ in range(2):
    state, _ = mapped(state, {}, settings, devices.shard(next(stream)))
    now = devices.unreplicate(state)
    own.append({'params': now.params, 'batch_stats': now.batch_stats})
  expected = jax.tree.map(
    lambda *x: np.tensordot([0.81, 0.09, 0.1], np.stack(x, dtype=float), 1),
    *own,
  )
  average = devices.unreplicate(state).variables()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), average, expected
  )
  # Far enough from the first and the last for any other weights to be seen.
  for other in (own[0], own[2]):
    apart = jax.tree.map(lambda a, b: abs(a - b).max(), average, other)
    assert max(jax.tree.leaves(apart)) > 1e-3
