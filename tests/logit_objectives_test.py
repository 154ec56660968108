"""Tagging and logit distillation: float64 references, and the laws of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from objective_references import (
  agree,
  draw,
  entropy,
  few,
  sigmoid,
  tagging,
  tagging_per_tag,
)

from iusp_jax.objectives import losses

# Tagging.

LOGITS_BC = hnp.arrays(
  np.float32, (4, 3), elements=st.floats(-50, 50, width=32)
)
TAGS_BC = hnp.arrays(np.float32, (4, 3), elements=st.floats(0, 1, width=32))
MASK_BC = hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 1.0]))


@given(LOGITS_BC, TAGS_BC, MASK_BC)
@settings(max_examples=20)
def test_tagging_is_the_mean_over_labelled_tags(logits_BC, tags_BC, mask_BC):
  value, gradient_BC = tagging(logits_BC, tags_BC, mask_BC)
  num_labelled = max(mask_BC.sum(), 1)
  agree(value, np.sum(entropy(logits_BC, tags_BC) * mask_BC) / num_labelled)
  expected_BC = (sigmoid(logits_BC) - tags_BC) * mask_BC / num_labelled
  np.testing.assert_allclose(gradient_BC, expected_BC, rtol=1e-4, atol=1e-7)
  per_tag_BC = tagging_per_tag(logits_BC, tags_BC, mask_BC)
  agree(per_tag_BC, entropy(logits_BC, tags_BC) * mask_BC)


@pytest.mark.parametrize('unknown', [np.nan, np.inf, -np.inf, -1.0, 1e30])
@pytest.mark.parametrize('where', ['tags', 'logits', 'both'])
def test_what_is_masked_has_no_influence(unknown, where):
  logits_BC, tags_BC = draw(0, 4, 3), sigmoid(draw(1, 4, 3)).astype('float32')
  mask_BC = np.ones((4, 3), np.float32)
  mask_BC[1, 2] = mask_BC[3] = 0
  expected, expected_BC = tagging(logits_BC, tags_BC, mask_BC)
  if where in ('tags', 'both'):
    tags_BC = np.where(mask_BC > 0, tags_BC, np.float32(unknown))
  if where in ('logits', 'both'):
    logits_BC = np.where(mask_BC > 0, logits_BC, np.float32(unknown))
  value, gradient_BC = tagging(logits_BC, tags_BC, mask_BC)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(gradient_BC, expected_BC)
  assert not np.asarray(gradient_BC)[mask_BC == 0].any()


def test_all_masked_gives_zero_and_no_gradient():
  tags_BC = np.full((4, 3), np.nan, np.float32)
  value, gradient_BC = tagging(draw(0, 4, 3), tags_BC, 0 * draw(0, 4, 3))
  assert value == 0
  assert not np.asarray(gradient_BC).any()


def test_no_mask_equals_a_mask_of_ones():
  logits_BC, tags_BC = draw(0, 4, 3), (draw(1, 4, 3) > 0).astype(np.int8)
  expected = np.mean(entropy(logits_BC, tags_BC))
  agree(tagging(logits_BC, tags_BC)[0], expected)
  for dtype in (bool, np.float32):
    mask_BC = np.ones((4, 3), dtype)
    agree(tagging(logits_BC, tags_BC, mask_BC)[0], expected)


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_tagging_and_kd_of_half_precision_are_float32(dtype):
  logits_BC, other_BC = draw(0, 64, 33), draw(1, 64, 33)
  logits_BC, other_BC = logits_BC.astype(dtype), other_BC.astype(dtype)
  tags_BC, mask_BC = (draw(2, 64, 33) > 0).astype(np.float32), np.ones((64, 33))
  value, gradient_BC = tagging(logits_BC, tags_BC, mask_BC)
  assert value.dtype == jnp.float32
  assert gradient_BC.dtype == dtype
  agree(value, np.mean(entropy(logits_BC, tags_BC)))
  value, gradient_BC = kd(logits_BC, other_BC, 2.0)
  assert value.dtype == jnp.float32
  assert gradient_BC.dtype == dtype
  agree(value, kd_reference(logits_BC, other_BC, 2.0))


# Logit distillation.


def kd_reference(student_BC, teacher_BC, temperature):
  teacher_BC = sigmoid(np.asarray(teacher_BC, np.float64) / temperature)
  student_BC = np.asarray(student_BC, np.float64) / temperature
  return temperature**2 * np.mean(entropy(student_BC, teacher_BC))


kd_per_clip = jax.jit(losses.kd_per_clip)
kd = jax.jit(jax.value_and_grad(losses.kd_loss))


@few
@given(LOGITS_BC, LOGITS_BC, st.floats(0.5, 20))
def test_kd_follows_the_formula(student_BC, teacher_BC, temperature):
  value, gradient_BC = kd(student_BC, teacher_BC, temperature)
  agree(value, kd_reference(student_BC, teacher_BC, temperature))
  expected_BC = temperature * (
    sigmoid(student_BC.astype(np.float64) / temperature)
    - sigmoid(teacher_BC.astype(np.float64) / temperature)
  )
  np.testing.assert_allclose(
    gradient_BC, expected_BC / 12, rtol=1e-4, atol=2e-6
  )
  agree(np.mean(kd_per_clip(student_BC, teacher_BC, temperature)), value)


@few
@given(LOGITS_BC, LOGITS_BC, st.sampled_from([1.0, 2.0, 4.0]))
def test_kd_is_least_at_equal_logits(teacher_BC, change_BC, temperature):
  least, gradient_BC = kd(teacher_BC, teacher_BC, temperature)
  np.testing.assert_allclose(gradient_BC, 0, atol=1e-7)
  more, _ = kd(teacher_BC + change_BC, teacher_BC, temperature)
  assert more >= least * (1 - 1e-6)


def test_kd_at_equal_logits_is_the_scaled_entropy_of_the_teacher():
  teacher_BC = draw(0, 4, 3)
  chance_BC = sigmoid(teacher_BC / 2)
  expected = -np.mean(
    chance_BC * np.log(chance_BC) + (1 - chance_BC) * np.log1p(-chance_BC)
  )
  agree(kd(teacher_BC, teacher_BC, 2.0)[0], 4 * expected)


def test_hot_kd_matches_logits():
  # τ to infinity: the gradient tends to that of the mean of (s − r)² / 8.
  student_BC, teacher_BC = draw(0, 4, 3), draw(1, 4, 3)
  _, gradient_BC = kd(student_BC, teacher_BC, 100.0)
  np.testing.assert_allclose(
    gradient_BC, (student_BC - teacher_BC) / 4 / 12, rtol=1e-3, atol=1e-6
  )


def test_cold_kd_is_tagging_with_the_teachers_decisions():
  # τ to 0: τ² · BCE(s/τ, step(r)) = τ · relu(∓s) for wrong signs.
  student_BC, teacher_BC = draw(0, 4, 3), draw(1, 4, 3)
  found = kd(student_BC, teacher_BC, 1e-3)[0] / np.float32(1e-3)
  wrong_BC = np.sign(student_BC) != np.sign(teacher_BC)
  np.testing.assert_allclose(
    found, np.mean(np.abs(student_BC) * wrong_BC), rtol=1e-3
  )


def test_kd_of_sure_logits_is_finite():
  student_BC, teacher_BC = np.full((4, 3), 1e4), np.full((4, 3), -1e4)
  value, gradient_BC = kd(student_BC, teacher_BC, 1.0)
  agree(value, 1e4)
  assert np.isfinite(gradient_BC).all()


# Refusals.


def test_logits_tags_and_masks_must_have_one_shape():
  logits_BC, narrow_BC = np.ones((2, 3)), np.ones((2, 1))
  with pytest.raises(ValueError, match=r'student.*\(2, 3\).*\(2, 1\)'):
    losses.kd_loss(logits_BC, narrow_BC)
  with pytest.raises(ValueError, match=r'tags.*\(2, 1\)'):
    losses.tagging_loss(logits_BC, narrow_BC)
  with pytest.raises(ValueError, match=r'mask.*\(2, 1\)'):
    losses.tagging_loss(logits_BC, logits_BC, narrow_BC)


@pytest.mark.parametrize('temperature', [0, -1.0, float('nan')])
def test_temperature_must_be_positive(temperature):
  with pytest.raises(ValueError, match=r'temperature is .*more than 0'):
    losses.kd_loss(np.ones((2, 3)), np.ones((2, 3)), temperature)
