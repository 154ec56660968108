"""Batches in parts, and bfloat16."""

import dataclasses
import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import TINY, fake, recipe

from configs import sp
from iusp_jax import models
from iusp_jax.data import datasets
from iusp_jax.experiment import experiment
from iusp_jax.models import tagger
from iusp_jax.objectives import similarity
from iusp_jax.runtime import checkpoint, devices, metrics_log
from iusp_jax.training import optim, step, train


# As small as a model can be: compiling it is most of a test's time.
class Plain(nn.Module):
  """A model without BatchNorm."""

  num_tags: int

  @nn.compact
  def __call__(self, mel_BTF, train=False, keys_B=None):
    frames_BTD = jnp.tanh(nn.Dense(6)(mel_BTF[:, ::8]))
    logits_BTC = nn.Dense(self.num_tags)(frames_BTD)
    return models.TaggerOutput(logits_BTC.mean(1), frames_BTD, logits_BTC)


@functools.cache
def frozen():
  model = tagger.build(recipe(TINY, bands=8), len(fake().tags))
  return step.Teacher(model, model.initialise(3, 16_000))


def states(parts, num_devices=2, plain=True, num_steps=10, **weights):
  """Losses and parameters after the steps, from the train step alone."""
  none = {f'{term}_weight': 0.0 for term in step.DISTILLATION_TERMS}
  weights = none | weights
  job = step.Job(
    name='student',
    recipe=recipe(TINY, bands=8, accumulate_steps=parts),
    objective=weights | {'kd_temperature': 2.0},
    dataset=fake(),
    seed=5,
    workdir=pathlib.Path(),
    teacher=frozen() if any(weights.values()) else None,
  )
  student = tagger.build(job.recipe, len(fake().tags), devices.AXIS)
  if plain:
    student = dataclasses.replace(student, module=Plain(len(fake().tags)))
  rates = optim.schedule(job.recipe['training'], num_steps, 3.0)
  optimizer = optim.optimizer(job.recipe['training'], rates)
  mapped = jax.pmap(
    step.make_step(student, optimizer, job),
    axis_name=devices.AXIS,
    devices=jax.devices()[:num_devices],
  )

  def copy(tree):
    shape = (num_devices,)
    return jax.tree.map(lambda x: np.broadcast_to(x, shape + np.shape(x)), tree)

  state = copy(step.initial_state(student, optimizer, job))
  variables = copy(frozen().variables) if job.teacher else {}
  settings = copy(job.settings())
  stream = datasets.train_stream(fake().splits['train'], 8, 5)
  rows = []
  for _ in range(num_steps):
    batch = {
      k: v.reshape(num_devices, -1, *v.shape[1:])
      for k, v in next(stream).items()
    }
    state, outputs = mapped(state, variables, settings, batch)
    rows.append([float(outputs[name][0]) for name in sorted(outputs)])
  return rows, jax.tree.map(lambda x: np.asarray(x[0]), state)


def assert_alike(one, two, tolerance):
  np.testing.assert_allclose(one[0], two[0], tolerance)
  for own, other in zip(
    jax.tree.leaves(one[1].params), jax.tree.leaves(two[1].params), strict=True
  ):
    np.testing.assert_allclose(own, other, 10 * tolerance, 10 * tolerance)


def test_parts_add_up_to_the_batch():
  """Against the step that takes the batch whole, on a model without BatchNorm.

  The fake data has masked tags in unequal numbers, so that a mean of the
  parts' means would differ.
  """
  weights = {'kd_weight': 1.0, 'iusp_weight': 10.0}
  whole = states(1, **weights)
  assert_alike(states(4, **weights), whole, 1e-5)


def test_parts_are_the_same_on_any_number_of_devices():
  """With BatchNorm: the same clips are in a part, wherever they are."""
  one, two = states(2, 1, plain=False), states(2, 2, plain=False)
  assert_alike(one, two, 1e-4)
  np.testing.assert_allclose(
    *(jax.tree.leaves(end[1].batch_stats)[0] for end in (one, two)), 1e-4, 1e-6
  )


def test_batch_norm_takes_each_part_by_itself():
  """The averages after one step, by the rule for two batches of 4."""
  _, state = states(2, 1, plain=False, num_steps=1)
  batch = next(datasets.train_stream(fake().splits['train'], 8, 5))
  model = tagger.build(recipe(TINY, bands=8), len(fake().tags))
  mel_BTF = np.asarray(tagger.log_mel(model, batch['wave']))
  expected = np.zeros(8)
  for part in (mel_BTF[::2], mel_BTF[1::2]):
    expected = 0.9 * expected + 0.1 * part.mean((0, 1))
  found = state.batch_stats['input_norm']['mean']
  np.testing.assert_allclose(found, expected, 1e-4)
  whole = states(1, 1, plain=False, num_steps=1)[1]
  assert not np.allclose(whole.batch_stats['input_norm']['mean'], found, 1e-2)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'accumulate_steps': 0}, 'accumulate_steps is 0'),
    ({'accumulate_steps': 3}, '2 devices times accumulate_steps 3'),
    ({'accumulate_steps': 2}, 'but sp_weight is not 0'),
    ({'compute_dtype': 'float16'}, 'bfloat16'),
  ],
)
def test_parts_and_dtypes_that_cannot_be_are_refused_at_the_start(
  fields, message
):
  config = sp.get_config('smoke')
  with config.unlocked():
    config.student.training.update(fields)
  with pytest.raises(ValueError, match=message):
    experiment.check(config)


# bfloat16.


@functools.cache
def one_step_ahead(dtype, architecture):
  model = {
    'cnn': TINY,
    'crnn': {'architecture': 'crnn', 'width': 4, 'hidden': 6},
    'mobilenet': {
      'architecture': 'mobilenet',
      'width_multiplier': 0.1,
      'num_stages': 3,
    },
  }[architecture]
  made = recipe(model, bands=16, compute_dtype=dtype)
  return tagger.build(made, len(fake().tags))


def dtypes(tree):
  return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize(
  'architecture',
  ['cnn', 'crnn', pytest.param('mobilenet', marks=pytest.mark.slow)],
)
def test_bfloat16_keeps_what_must_be_exact_in_float32(architecture):
  model = one_step_ahead('bfloat16', architecture)
  variables = model.initialise(0, 16_000)
  assert dtypes(variables) == {'float32'}
  wave_BS = np.stack(
    [fake().splits['train'].source[k]['audio'] for k in (0, 1)]
  )
  mel_BTF = tagger.log_mel(model, wave_BS)
  output, updates = model.module.apply(
    variables, mel_BTF, train=True, mutable=['batch_stats']
  )
  assert dtypes((output, updates)) == {'float32'}
  gram = jax.vmap(similarity.frame_similarity)(output.frames_BTD)
  assert gram.dtype == np.float32
  # It is bfloat16 that was computed with, in convolutions.
  text = str(
    jax.make_jaxpr(lambda mel: model.module.apply(variables, mel))(mel_BTF)
  )
  assert 'bf16' in text
  exact = one_step_ahead('float32', architecture)
  plain = str(
    jax.make_jaxpr(lambda mel: exact.module.apply(variables, mel))(mel_BTF)
  )
  assert 'bf16' not in plain


def test_bfloat16_trains_like_float32(tmp_path):
  """Loss near that of float32 at the start; it falls; all saved in float32."""
  losses = {}
  for dtype in ('float32', 'bfloat16'):
    made = recipe(
      TINY,
      bands=8,
      compute_dtype=dtype,
      epochs=12.0,
      eval_every_epochs=12.0,
      log_every_steps=1,
      ema_decay=0.5,
      learning_rate=3e-2,
    )
    workdir = tmp_path / dtype
    workdir.mkdir()
    train.fit(step.Job('student', made, {}, fake(), 5, workdir))
    rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
    losses[dtype] = [r['train/loss'] for r in rows if 'train/loss' in r]
    restored = checkpoint.restore_newest(workdir / 'checkpoints' / 'last')
    assert restored is not None
    assert dtypes(restored[1]) == {'float32', 'int32'}
  exact, rough = losses['float32'], losses['bfloat16']
  assert rough != exact
  np.testing.assert_allclose(rough[:3], exact[:3], 2e-2)
  assert np.mean(rough[-6:]) < 0.8 * np.mean(rough[:6])
