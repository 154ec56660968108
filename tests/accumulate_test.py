"""Batches in parts, and bfloat16."""

import functools

import fits
import jax
import numpy as np
import pytest
from fakes import TINY, fake, recipe
from fits import fit, make_feed, make_job

from configs import sp
from iusp_jax.data import sources
from iusp_jax.experiment import check, feeds, identity
from iusp_jax.models import tagger
from iusp_jax.objectives import similarity, terms
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe

PLAN = {'epochs': 10 / 3, 'eval_every_epochs': 10.0}  # Ten steps.


def fit_in_parts(parts, weights=None, batch_norm=True, **fields):
  made = make_job(
    weights,
    model={'batch_norm': batch_norm},
    accumulate_steps=parts,
    **PLAN | fields,
  )
  return fit([made])[0]


def assert_alike(one, two, tolerance):
  fits.assert_same_losses(one, two, tolerance, tolerance)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      x, y, 10 * tolerance, 10 * tolerance
    ),
    one.last,
    two.last,
  )


def test_parts_add_up_to_the_batch():
  """Against the step that takes the batch whole, on a model without BatchNorm.

  The fake data has masked tags in unequal numbers, so that a mean of the
  parts' means would differ.
  """
  weights = {'kd': 1.0, 'iusp': 10.0}
  whole = fit_in_parts(1, weights, batch_norm=False)
  assert_alike(fit_in_parts(4, weights, batch_norm=False), whole, 1e-5)


def test_parts_are_the_same_on_any_number_of_devices():
  """With BatchNorm: the same clips are in a part, wherever they are."""
  two = fit_in_parts(2)
  with fits.num_devices(1):
    assert_alike(fit_in_parts(2), two, 1e-4)


def test_members_take_parts_as_runs_do():
  """Whole batches on a device of their own."""
  jobs = [make_job(seed=k, accumulate_steps=2, **PLAN) for k in (5, 6)]
  assert_alike(fit(jobs)[0], fit_in_parts(2), 1e-4)


def test_batch_norm_takes_each_part_by_itself():
  """The averages after one step, by the rule for two batches of 4."""
  made = make_job(accumulate_steps=2, **PLAN)
  arrays = fits.features(made.dataset).get(made.recipe.frontend, 'train')
  mel_BTF = arrays['mel'][sources.Order(24, 8, (5,)).clips([0])['own'][0, 0]]
  expected = np.zeros(16)
  for part in (mel_BTF[::2], mel_BTF[1::2]):
    expected = 0.9 * expected + 0.1 * part[:, ::8].mean((0, 1))
  with fits.num_devices(1):
    found, whole = (
      engine.train_without_validation(one, make_feed(one), 1)
      for one in (made, make_job(**PLAN))
    )
  mean = found['batch_stats']['norm']['mean']
  np.testing.assert_allclose(mean, expected, 1e-4)
  assert not np.allclose(whole['batch_stats']['norm']['mean'], mean, 1e-2)


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
    check.check(identity.plain(config))


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

  def train(mel_BTF):
    output, updates = model.module.apply(
      variables, mel_BTF, train=True, mutable=['batch_stats']
    )
    gram_BTT = jax.vmap(similarity.frame_similarity)(output.frames_BTD)
    return output, updates, gram_BTT

  assert dtypes(jax.eval_shape(train, mel_BTF)) == {'float32'}
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


def test_bfloat16_trains_like_float32():
  """Loss near that of float32 at the start; it falls; all saved in float32."""
  found = {}
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
    none = terms.Objective()
    job = step.Job('student', Recipe.from_config(made), none, fake(), 5)
    (member,) = engine.fit([job], feeds.Features(fake()).feed(job), None)
    found[dtype] = fits.losses(member)['loss']
    assert dtypes((member.best, member.last)) == {'float32'}
  exact, rough = found['float32'], found['bfloat16']
  assert (rough != exact).any()
  np.testing.assert_allclose(rough[:3], exact[:3], 2e-2)
  assert np.mean(rough[-6:]) < 0.8 * np.mean(rough[:6])
