"""The train step: its loss, its terms, schedules, and what a term owns."""

import dataclasses
import functools
import subprocess
import sys

import commands
import fits
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fits import WEIGHTS, fit, make_feed, make_job

from iusp_jax.audio import augment
from iusp_jax.data import sources
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.runtime import checkpoint
from iusp_jax.training import engine, evaluate, optim, step

PLAN = {'epochs': 2.0, 'eval_every_epochs': 1.0}  # Six steps.


def job(weights=None, seed=5, **fields):
  return make_job(weights, seed, **PLAN | fields)


@functools.cache
def run_of(names=()):
  """A run with terms of `WEIGHTS`; nothing in it may be changed."""
  (member,) = fit([job({name: WEIGHTS[name] for name in names})])
  return member


@pytest.fixture
def add_term(monkeypatch):
  """Puts a term into the list of all."""

  def add(name, per_clip, **fields):
    fields = {'targets': ()} | fields
    term = terms.Term('T', '#123456', 'v', per_clip=per_clip, **fields)
    monkeypatch.setitem(terms.TERMS, name, term)

  return add


# The loss --------------------------------------------------------------------


def test_total_is_the_weighted_sum_of_its_terms():
  found = fits.losses(run_of(tuple(WEIGHTS)))
  expected = found['tagging'] + sum(
    weight * found[name] for name, weight in WEIGHTS.items()
  )
  np.testing.assert_allclose(found['loss'], expected, 1e-5)


def test_step_agrees_with_the_objectives_of_the_whole_batch():
  """The sharded step against the public losses, computed in one place."""
  found = {k: v[0] for k, v in fits.losses(run_of(tuple(WEIGHTS))).items()}
  made = job(WEIGHTS)
  clips = sources.Order(24, 8, (5,)).clips([0])['own'][0, 0]
  batch = {
    key: value[clips]
    for key, value in sources.features(
      made.dataset.splits['train'], None
    ).items()
  }
  student = made.student()
  keys_B = augment.clip_keys(made.seed, 0, batch['index'])
  own, _ = student.module.apply(
    student.initialise(made.seed, 16_000),
    tagger.log_mel(student, batch['wave']),
    train=True,
    keys_B=augment.subkeys(keys_B, 2),
    mutable=['batch_stats'],
  )
  model, variables = fits.frozen()
  teacher = model.module.apply(variables, tagger.log_mel(model, batch['wave']))
  mask_BT = targets.frame_mask(batch['length'], 16_000, own.frames_BTD.shape[1])
  expected = {
    'tagging': losses.tagging_loss(own.logits_BC, batch['tags'], batch['mask']),
    'kd': losses.kd_loss(own.logits_BC, teacher.logits_BC, 2.0),
    'sp': losses.sp_loss(own.frames_BTD, teacher.frames_BTD),
    'iusp': losses.iusp_loss(own.frames_BTD, teacher.frames_BTD, mask_BT),
    'iusp_centred': losses.iusp_loss(
      own.frames_BTD, teacher.frames_BTD, mask_BT, centred=True
    ),
  }
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, 2e-5, err_msg=name)


def test_frame_mask_marks_the_padding():
  mask = targets.frame_mask(np.array([160, 81, 80, 0]), 160, 4)
  np.testing.assert_array_equal(
    mask, [[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
  )


def test_settings_of_a_term_come_from_the_objective():
  made = job({'kd': 1.0})
  settings = {'kd': {'temperature': 5.0}}
  warmer = dataclasses.replace(made.objective, settings=settings)
  (found,) = fit([dataclasses.replace(made, objective=warmer)])
  first = fits.losses(found)['kd'][0]
  assert abs(first - fits.losses(run_of(('kd',)))['kd'][0]) > 0.1
  assert not made.shares_program(dataclasses.replace(made, objective=warmer))


# Moving average --------------------------------------------------------------


def test_moving_average_after_two_steps():
  """decay^2 of the first, then what each step adds; the statistics as well."""
  fields = {'warmup_epochs': 0.0, 'learning_rate': 0.05}

  def after(num_steps, **more):
    made = job(**fields, **more)
    return engine.train_without_validation(made, make_feed(made), num_steps)

  first = job().student().initialise(5, 16_000)
  own = [dict(jax.tree.map(np.asarray, first)), after(1), after(2)]
  expected = jax.tree.map(
    lambda *x: np.tensordot([0.81, 0.09, 0.1], np.stack(x, dtype=float), 1),
    *own,
  )
  average = after(2, ema_decay=0.9)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-7), average, expected
  )
  # Far enough from the first and the last for any other weights to be seen.
  for other in (own[0], own[2]):
    apart = jax.tree.map(lambda a, b: abs(a - b).max(), average, other)
    assert max(jax.tree.leaves(apart)) > 1e-3


# Schedules -------------------------------------------------------------------

FACTORS = {
  'constant': [1, 1, 1, 1, 1, 1],
  'ramp': [0, 1, 1, 1, 1, 1],  # Whole after 2/15, which is before 1/6.
  'decay': [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6],
  'decay_to_half': [1, 4 / 6, 2 / 6, 0, 0, 0],
  'off_at_half': [1, 1, 1, 0, 0, 0],
  'on_at_half': [0, 0, 0, 1, 1, 1],
}


@pytest.mark.parametrize('name', FACTORS)
def test_schedule_multiplies_the_weight_in_every_step(name):
  made = job({'kd': 4.0})
  scheduled = dataclasses.replace(made.objective, schedules={'kd': name})
  (member,) = fit([dataclasses.replace(made, objective=scheduled)])
  found = fits.losses(member)
  factor = (found['loss'] - found['tagging']) / (4.0 * found['kd'])
  np.testing.assert_allclose(factor, FACTORS[name], 1e-5, 1e-6)


def test_schedule_of_the_labels_multiplies_the_cross_entropy():
  made = job({'kd': 4.0})
  schedules = {'kd': 'off_at_half', 'tagging': 'on_at_half'}
  scheduled = dataclasses.replace(made.objective, schedules=schedules)
  (member,) = fit([dataclasses.replace(made, objective=scheduled)])
  found = fits.losses(member)
  expected = np.concatenate([4.0 * found['kd'][:3], found['tagging'][3:]])
  np.testing.assert_allclose(found['loss'], expected, 1e-5)
  assert not made.shares_program(dataclasses.replace(made, objective=scheduled))


def test_schedules_of_all_are_here():
  assert terms.SCHEDULES.keys() == FACTORS.keys()


# Parameters of a term --------------------------------------------------------


def hint(x):
  """A projection of the student's frames onto the teacher's logits."""
  projected_BC = x.frames['frames'].mean(1) @ x.params['kernel']
  return jnp.square(projected_BC - x.targets['logits']).mean(1)


def hint_params(key, x):
  shape = x.frames['frames'].shape[-1], x.logits_BC.shape[-1]
  return {'kernel': jax.random.normal(key, shape)}


def test_parameters_of_a_term_are_no_part_of_the_student(add_term, tmp_path):
  add_term('hint', hint, targets=('logits',), init=hint_params)
  plain, made = job({'kd': 1.0}), job({'kd': 1.0, 'hint': 3.0})
  (member,) = fit([made], tmp_path)
  restored = checkpoint.restore_newest(tmp_path / 'training')
  assert restored is not None
  state = restored[1]['state']
  assert state['term_params']['hint']['kernel'].shape == (1, 5, 31)
  shapes = made.student().shapes(16_000)
  for variables in (member.best, member.last):
    assert jax.tree.map(np.shape, dict(variables)) == jax.tree.map(
      lambda x: x.shape, dict(shapes)
    )
  student = made.student()
  assert student.num_parameters(member.last) == student.num_parameters(
    plain.student().shapes(16_000)
  )
  assert student.num_macs(16_000) == plain.student().num_macs(16_000)
  # They are trained, and the student with them.
  plan = optim.Plan.of(made.recipe.training, 24)
  first = step.initial_state(made, plan)
  kernel = first.term_params['hint']['kernel']
  assert abs(kernel - state['term_params']['hint']['kernel'][0]).max() > 1e-3
  found = fits.losses(member)
  np.testing.assert_allclose(
    found['loss'],
    found['tagging'] + found['kd'] + 3.0 * found['hint'],
    1e-5,
  )
  # The initial values of the student are what they were.
  other = step.initial_state(plain, plan)
  assert checkpoint.checksums(first.params) == checkpoint.checksums(
    other.params
  )
  assert other.term_params == {}


def test_parameters_of_a_term_depend_on_the_seed_and_its_name(add_term):
  for name in ('hint', 'other_hint'):
    add_term(name, hint, targets=('logits',), init=hint_params)

  def kernels(seed, *names):
    found = step.initial_term_params(job(dict.fromkeys(names, 1.0), seed))
    return [np.asarray(found[name]['kernel']) for name in names]

  (alone,) = kernels(5, 'hint')
  both = kernels(5, 'hint', 'other_hint')
  np.testing.assert_array_equal(alone, both[0])
  assert abs(both[0] - both[1]).min() > 0
  assert abs(alone - kernels(6, 'hint')[0]).min() > 0


def test_term_of_weight_0_leaves_the_student_as_it_is():
  """To the last bit; compiled as for users, which `xla.flags` does not do."""
  done = subprocess.run(
    [sys.executable, 'tests/weight_0_worker.py'],
    cwd=commands.ROOT,
    env=commands.environment() | {'PYTHONPATH': str(commands.ROOT)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout.splitlines()[-2:] == ['long: True', 'same: True'], (
    done.stdout + done.stderr
  )


def test_gradient_of_a_terms_parameters_clips_no_step_of_the_student(add_term):
  """A term that moves its own parameters alone, by a long way."""
  add_term(
    'apart',
    lambda x: 1e6 * jnp.square(x.params).sum() * jnp.ones(len(x.logits_BC)),
    init=lambda key, x: jax.random.normal(key, (3,)),
  )
  fields = {'clip_factor': 0.5}
  (member,) = fit([job({'apart': 1.0}, **fields)])
  (plain,) = fit([job(**fields)])
  one, two = fits.losses(member), fits.losses(plain)
  for name in ('tagging', 'gradient_norm'):
    np.testing.assert_allclose(one[name], two[name], 1e-5, err_msg=name)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-6),
    member.last,
    plain.last,
  )
  assert one['apart'][-1] < one['apart'][1]  # The first rate is 0.


def test_objective_ten_times_as_long_gives_the_same_student(monkeypatch):
  """Clipping and Adam leave no second knob in the scale of the loss."""
  make_loss = step._make_loss

  def longer(job, plan):
    loss_part = make_loss(job, plan)

    def ten_times(*arguments):
      loss, rest = loss_part(*arguments)
      return 10 * loss, rest

    return ten_times

  made = job({'kd': 3.0}, clip_factor=0.5)
  (plain,) = fit([made])
  monkeypatch.setattr(step, '_make_loss', longer)
  (other,) = fit([made])
  one, two = fits.losses(plain), fits.losses(other)
  np.testing.assert_allclose(
    two['gradient_norm'], 10 * one['gradient_norm'], 1e-3
  )
  np.testing.assert_allclose(one['loss'], two['loss'], 1e-4)
  assert one['clipped_share'][-1] > 0
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-3, 1e-5),
    plain.last,
    other.last,
  )


def test_terms_parameters_are_the_same_on_one_device(add_term):
  add_term('hint', hint, targets=('logits',), init=hint_params)
  (two,) = fit([job({'hint': 3.0})])
  with fits.num_devices(1):
    (one,) = fit([job({'hint': 3.0})])
  fits.assert_same_losses(one, two)


# Inner layers ----------------------------------------------------------------


def inner(x):
  """The frame similarities of the first blocks of both."""
  student_BTD = x.frames['block_1']
  return losses.iusp_per_clip(student_BTD, x.targets['frame_gram@block_1'])


INNER = {'targets': ('frame_gram@block_1',), 'layers': ('block_1',)}


def test_target_of_an_inner_layer_is_computed_right(add_term):
  """In the step, and held against the layer itself."""
  add_term('inner', inner, **INNER)
  made = job({'inner': 1.0}, teacher=True)
  (member,) = fit([made])
  found = fits.losses(member)['inner'][0]
  clips = sources.Order(24, 8, (5,)).clips([0])['own'][0, 0]
  waves = np.stack(
    [made.dataset.splits['train'].source[k]['audio'] for k in clips]
  )
  frames = []
  for (model, variables), train in (
    ((made.student(), made.student().initialise(5, 16_000)), True),
    (fits.frozen(), False),
  ):
    _, stored = model.module.apply(
      variables,
      tagger.log_mel(model, waves),
      train=train,
      capture_intermediates=True,
      mutable=['intermediates', 'batch_stats'],
    )
    frames.append(stored['intermediates']['block_1']['__call__'][0])
  np.testing.assert_allclose(found, losses.iusp_loss(*frames), 2e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'layers': ('block_9',)}, r"layer: 'block_9'.*'block_2', 'frames'"),
    ({'targets': ('frame_gram@lstm',)}, r"layer: 'lstm'.*'block_2', 'frames'"),
    ({'targets': ('gram',)}, "target 'gram' is unknown: expected one of logi"),
  ],
)
def test_unknown_layers_and_targets_list_the_legal_ones(
  add_term, fields, message
):
  add_term('inner', lambda x: x.logits_BC[:, 0], **fields)
  with pytest.raises(ValueError, match=message):
    fit([job({'inner': 1.0}, teacher=True)])


def kept_layers(monkeypatch, made):
  """What student and teacher are asked for while a step is traced."""
  asked = []
  forward = tagger.forward

  def watched(model, *args, layers=(), **named):
    output, statistics = forward(model, *args, layers=layers, **named)
    asked.append((model.module.width, tuple(layers), tuple(output.layers)))
    return output, statistics

  monkeypatch.setattr(tagger, 'forward', watched)
  evaluate.compile_map.cache_clear()  # So that it is traced as well.
  fit([made])
  return set(asked)


def test_nothing_is_computed_for_layers_that_nobody_names(
  add_term, monkeypatch
):
  add_term('inner', inner, **INNER)
  named = ('block_1',)
  assert kept_layers(monkeypatch, job({'inner': 1.0}, teacher=True)) == {
    (5, named, named),  # The student,
    (7, named, named),  # the teacher,
    (5, (), ()),  # and the student as it is scored.
  }
  assert kept_layers(monkeypatch, job(WEIGHTS, teacher=True)) == {
    (5, (), ()),
    (7, (), ()),
  }
