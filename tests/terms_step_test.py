"""Every term of the objective in the train step, with its targets.

All of them at once, since compiling is what takes the time.
"""

import dataclasses
import functools

import fits
import jax
import numpy as np
import pytest
from fakes import TINY, recipe
from fits import bits, fit, make_job

from iusp_jax import objectives
from iusp_jax.audio import augment
from iusp_jax.data import sources
from iusp_jax.experiment import check, gradient_units
from iusp_jax.models import tagger
from iusp_jax.objectives import targets, terms
from iusp_jax.training import step
from iusp_jax.training.recipe import Recipe

PLAN = {'epochs': 1.0, 'eval_every_epochs': 1.0}  # Three steps.
NAMES = tuple(terms.TERMS)
WEIGHTS = dict.fromkeys(NAMES, 1.0)


def job(weights=WEIGHTS, **fields):
  return make_job(weights, **PLAN | fields)


@functools.cache
def run_of_all():
  """With the outputs of the teacher stored; nothing in it may be changed."""
  (member,) = fit([job()])
  return member


def test_every_term_is_finite_and_more_than_zero():
  found = fits.losses(run_of_all())
  for name in NAMES:
    assert np.isfinite(found[name]).all(), name
    assert (found[name] > 0).all(), name
  total = found['tagging'] + sum(found[name] for name in NAMES)
  np.testing.assert_allclose(found['loss'], total, 1e-5)


def first_batch(made):
  """The clips of the first step with the teacher's targets, and the student's.

  In one place: what the devices share in the step.
  """
  clips = sources.Order(24, 8, (5,)).clips([0])['own'][0, 0]
  batch = sources.features(made.dataset.splits['train'], None)
  batch = {
    key: value[clips]
    for key, value in (batch | fits.stored(made.objective.targets)).items()
  }
  student = made.student()
  keys_B = augment.clip_keys(made.seed, 0, batch['index'])
  output, _ = tagger.forward(
    student,
    student.initialise(made.seed, fits.NUM_SAMPLES),
    tagger.log_mel(student, batch['wave']),
    train=True,
    keys_B=augment.subkeys(keys_B, 2),
    layers=made.objective.layers,
  )
  return batch, output


def test_step_agrees_with_the_public_losses_of_the_whole_batch():
  """All but the pairwise ones, which `step_test` has."""
  names = tuple(name for name in NAMES if name != 'sp')
  made = job(dict.fromkeys(names, 1.0))
  batch, own = first_batch(made)
  of_teacher = {
    key.removeprefix(sources.TARGET): x
    for key, x in batch.items()
    if key.startswith(sources.TARGET)
  }
  model, variables = fits.frozen()
  mel_BTF = tagger.log_mel(model, batch['wave'])
  teacher = tagger.apply(model, variables, mel_BTF, ['block_1'])
  mask_BT = targets.frame_mask(batch['length'], fits.NUM_SAMPLES, 13)
  logits = own.logits_BC, teacher.logits_BC
  frames = own.frame_logits_BTC, teacher.frame_logits_BTC
  of_terms = step.initial_term_params(made)
  mean_BD = (own.frames_BTD * mask_BT[..., None]).sum(1)
  mean_BD = mean_BD / mask_BT.sum(1)[:, None]
  invariance, variance, covariance = objectives.vic_parts(
    mean_BD @ of_terms['vic'], of_teacher['whitened']
  )
  instance, of_batch, of_class = objectives.multilevel_kd_parts(*logits, 2.0)
  expected = {
    'frame_kd': objectives.frame_kd_loss(*frames, 1.0, mask_BT),
    'emphasised_kd': objectives.emphasised_kd_loss(
      *logits, batch['tags'], batch['mask']
    ),
    'multilevel_kd': instance + 10 * of_batch + 10 * of_class,
    'clip_frame_kd': sum(
      objectives.clip_frame_kd_parts(
        logits[0], frames[0], logits[1], frames[1], mask_BT
      )
    ),
    # .56 s at 13 frames a second.
    'hard_frame_kd': objectives.hard_frame_kd_loss(*frames, 7, mask_BT),
    'dist_tags': objectives.dist_tags_loss(*logits, 1.0),
    'vic': invariance + variance + covariance / 25,
    'cluster_iusp': sum(
      objectives.cluster_iusp_loss(student_BTD, [teacher_BTD], mask_BT)
      for student_BTD, teacher_BTD in (
        (own.layers['block_1'], teacher.layers['block_1']),
        (own.frames_BTD, teacher.frames_BTD),
      )
    )
    / 2,
  }
  found = {name: x[0] for name, x in fits.losses(run_of_all()).items()}
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, 5e-5, err_msg=name)


def test_losses_do_not_depend_on_the_number_of_devices():
  with fits.num_devices(1):
    (one,) = fit([job()])
  fits.assert_same_losses(one, run_of_all())


@pytest.mark.slow
def test_losses_are_those_of_a_teacher_that_runs_in_every_step():
  (running,) = fit([job(teacher=True)])
  fits.assert_same_losses(running, run_of_all())


@pytest.mark.slow
def test_terms_of_weight_0_leave_the_student_as_it_is():
  """Also those with parameters of their own, to the last bit."""
  fields = {'clip_factor': 0.5, 'ema_decay': 0.9}
  (member,) = fit([job(dict.fromkeys(NAMES, 0.0), **fields)])
  (plain,) = fit([job({}, **fields)])
  for row in member.rows:
    for name in NAMES:
      row.pop(f'train/{name}', None)
  assert bits(member) == bits(plain)


# Where a run gets them -------------------------------------------------------

WITH_PARAMS = ('vic', 'span_alignment')


def test_shapes_and_fits_of_a_run_are_those_of_its_teacher(setup):
  """Stored or running in every step; the teacher has 16 axes."""
  objective = fits.objective(dict.fromkeys(WITH_PARAMS, 1.0))
  made = Recipe.from_config(recipe())
  stored = setup.job('stored', made, objective, 0)
  augmented = dataclasses.replace(
    made, augment=dataclasses.replace(made.augment, num_time_masks=1)
  )
  running = setup.job('running', augmented, objective, 0)
  assert stored.teacher is None
  assert running.teacher is not None
  assert stored.target_shapes == running.target_shapes
  (num_axes,) = stored.target_shapes['whitened']
  found = step.initial_term_params(stored)
  assert found['vic'].shape == (6, num_axes)
  assert found['span_alignment'].shape == (6, num_axes)
  fitted = setup.feed(running).of_teacher['fits']
  assert set(fitted) == {'whitened', 'frame_axes'}
  jax.tree.map(np.testing.assert_array_equal, fitted, setup.fits(fitted))


@pytest.mark.slow
def test_units_of_terms_with_parameters_and_fits_are_measured(setup):
  model = {'architecture': 'crnn', 'width': 4, 'hidden': 6}
  names = (*WITH_PARAMS, 'inter_kd', 'cluster_iusp')
  objective = fits.objective(dict.fromkeys(names, 1.0))
  made = Recipe.from_config(recipe(model, bands=8, epochs=2.0))
  units = gradient_units.measure(setup, made, objective)
  for name in names:
    assert 1e-4 < units[name] < 1e6


def test_no_gradient_of_inner_heads_reaches_the_last_head():
  """What comes after the inner layers is as it is without them."""
  made = job({'inter_kd': 1.0})
  student = made.student()
  variables = student.initialise(5, fits.NUM_SAMPLES)
  params = step.initial_term_params(made)
  clips = sources.features(made.dataset.splits['train'], None)
  batch = {key: x[:4] for key, x in clips.items()} | {
    key: x[:4] for key, x in fits.stored(made.objective.targets).items()
  }
  mel_BTF = tagger.log_mel(student, batch['wave'])

  def loss(own, of_term):
    output = tagger.apply(
      student, {**variables, 'params': own}, mel_BTF, made.objective.layers
    )
    x = step.term_inputs(made, 'inter_kd', output, batch, of_term['inter_kd'])
    return terms.TERMS['inter_kd'].per_clip(x).mean()

  own, of_term = jax.grad(loss, (0, 1))(variables['params'], params)
  assert abs(own['block_1']['kernel']).max() > 0
  for layer in ('block_2', 'tags'):
    assert not any(x.any() for x in jax.tree.leaves(own[layer]))
  assert set(of_term['inter_kd']) == {'block_1'}
  assert abs(of_term['inter_kd']['block_1']['kernel']).max() > 0


def test_models_without_inner_layers_are_refused():
  made = Recipe.from_config(recipe(TINY))
  check.check_recipe(made, fits.objective({'vic': 1.0}), fits.NUM_SAMPLES)
  message = 'expected one with layers before the last frame embedding, for int'
  objective = fits.objective({'inter_kd': 1.0})
  with pytest.raises(ValueError, match=message):
    check.check_recipe(made, objective, fits.NUM_SAMPLES)


@pytest.mark.parametrize(
  ('model', 'expected'),
  [
    ({'architecture': 'crnn'}, ('block_1',)),
    ({'architecture': 'cnn', 'num_blocks': 3}, ('block_1', 'block_2')),
    (
      {'architecture': 'mobilenet', 'num_stages': 3, 'depth_multiplier': 0.1},
      ('block_1', 'block_2', 'block_3', 'block_4'),
    ),
  ],
)
def test_inner_layers_are_those_before_the_last_frames(model, expected):
  made = tagger.build(recipe(model), 3)
  assert tagger.inner_layers(made) == expected
  assert tagger.expand(made, ('block_1', 'inner')) == expected
