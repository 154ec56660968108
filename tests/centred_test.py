"""IUSP on frames less their clip's mean: against float64, and by its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objective_references import (
  SCALES,
  SEEDS,
  draw,
  few,
  frame_grams,
  rotated,
  rows_of_length_one,
  unit,
)

from iusp_jax.objectives import losses, similarity

MASK_BT = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], 'f4')
MASKS = st.sampled_from([np.ones((3, 5), np.float32), MASK_BT])


def _loss(student_BTD, teacher_BTD, mask_BT, centred=True):
  return losses.iusp_loss(student_BTD, teacher_BTD, mask_BT, centred)


value_and_gradient = jax.jit(jax.value_and_grad(_loss), static_argnums=3)


def loss(student_BTD, teacher_BTD, mask_BT=MASK_BT, centred=True):
  return value_and_gradient(student_BTD, teacher_BTD, mask_BT, centred)[0]


def pair(seed):
  return unit(draw(seed, 3, 5, 4)), unit(draw(seed + 1, 3, 5, 6))


def reference(student_BTD, teacher_BTD, mask_BT):
  """The formula, clip by clip over its real frames alone."""
  found = []
  clips = zip(student_BTD, teacher_BTD, mask_BT, strict=True)
  for student_TD, teacher_TD, mask_T in clips:
    own, other = (
      rows_of_length_one(x - x.mean(0), similarity.ROW_FLOOR)
      for x in (
        np.asarray(frames_TD, np.float64)[mask_T > 0]
        for frames_TD in (student_TD, teacher_TD)
      )
    )
    found.append(np.mean((own - other) ** 2))
  return np.mean(found)


@few
@given(seed=SEEDS, mask_BT=MASKS)
def test_as_the_formula_in_float64(seed, mask_BT):
  student_BTD, teacher_BTD = pair(seed)
  np.testing.assert_allclose(
    loss(student_BTD, teacher_BTD, mask_BT),
    reference(student_BTD, teacher_BTD, mask_BT),
    rtol=1e-4,
    atol=1e-6,
  )


@few
@given(seed=SEEDS, mask_BT=MASKS, size=st.floats(0, 3))
def test_the_gram_matrix_is_that_of_the_centred_frames(seed, mask_BT, size):
  mask_BT1 = mask_BT[..., None]
  frames_BTD = mask_BT1 * (pair(seed)[1] + np.float32(size))
  mean_BTD = frames_BTD.sum(1, keepdims=True) / mask_BT1.sum(1, keepdims=True)
  centred_BTD = mask_BT1 * (frames_BTD - mean_BTD).astype(np.float64)
  np.testing.assert_allclose(
    jax.vmap(similarity.centre_gram)(frame_grams(frames_BTD), mask_BT),
    centred_BTD @ centred_BTD.swapaxes(1, 2),
    atol=1e-5 * (1 + size) ** 2,
  )


@few
@given(seed=SEEDS, size=st.floats(0.2, 3))
def test_what_all_frames_share_changes_nothing(seed, size):
  student_BTD, teacher_BTD = pair(seed)
  moved = student_BTD + np.float32(size) * unit(draw(seed + 2, 3, 1, 4))
  other = teacher_BTD + np.float32(size) * unit(draw(seed + 3, 3, 1, 6))
  expected = loss(student_BTD, teacher_BTD)
  np.testing.assert_allclose(loss(moved, other), expected, rtol=1e-3)
  plain = loss(student_BTD, teacher_BTD, centred=False)
  assert abs(loss(moved, other, centred=False) - plain) > 1e-4


@few
@given(seed=SEEDS, scale=SCALES, other=SCALES)
def test_rotation_and_scale_of_either_model_change_nothing(seed, scale, other):
  student_BTD, teacher_BTD = pair(seed)
  np.testing.assert_allclose(
    loss(
      rotated(student_BTD, seed, scale), rotated(teacher_BTD, seed + 1, other)
    ),
    loss(student_BTD, teacher_BTD),
    rtol=1e-4,
    atol=1e-6,
  )


def test_zero_where_the_centred_similarities_agree():
  student_BTD = pair(4)[0]
  teacher_BTD = rotated(student_BTD, 5, 2.0) + np.float32(1)
  assert loss(student_BTD, teacher_BTD) < 1e-10


def test_padding_is_not_looked_at():
  student_BTD, teacher_BTD = pair(6)
  expected = value_and_gradient(student_BTD, teacher_BTD, MASK_BT, True)
  padding = MASK_BT[..., None] == 0
  found = value_and_gradient(
    np.where(padding, np.nan, student_BTD),
    np.where(padding, np.nan, teacher_BTD),
    MASK_BT,
    True,
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert np.all(np.asarray(found[1])[MASK_BT == 0] == 0)


@pytest.mark.parametrize('steady', [0.0, 0.1, 1e3])
@pytest.mark.parametrize('change', [0.0, 1e-5])
def test_a_clip_that_hardly_changes_has_a_bounded_gradient(steady, change):
  student_BTD, teacher_BTD = pair(7)
  ordinary = value_and_gradient(student_BTD, teacher_BTD, MASK_BT, True)[1]
  student_BTD[1] = steady * (1 + change * student_BTD[1])
  value, gradient = value_and_gradient(student_BTD, teacher_BTD, MASK_BT, True)
  assert np.isfinite(value)
  # A gradient is inverse to the frames' scale, and rows to their size.
  bound = jnp.abs(ordinary).max() / max(steady, 1e-3) / similarity.STEADY
  assert jnp.abs(gradient).max() < bound


def test_rows_of_a_steady_clip_are_short():
  steady = np.ones((1, 5, 4), np.float32)
  rows = []
  for change in (1e-4, 1e-1):
    gram_BTT = frame_grams(steady + change * draw(8, 1, 5, 4))
    found_TT = similarity.centred_similarity(gram_BTT[0], np.ones(5, 'f4'))
    rows.append(np.linalg.norm(found_TT, axis=1).max())
  assert rows[0] < 0.05
  np.testing.assert_allclose(rows[1], 1.0, rtol=1e-5)
