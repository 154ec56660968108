"""SP and IUSP: float64 references in NumPy, and the laws of each.

Gradients are compared with finite differences of the references.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from objective_references import (
  REFERENCE,
  SCALES,
  SEEDS,
  VALUE_AND_GRADIENT,
  agree,
  both,
  draw,
  few,
  frame_grams,
  gradient,
  iusp_of_each,
  iusp_per_clip,
  loss,
  pair,
  rotated,
  slopes,
  slopes_agree,
  sp_per_clip,
  sp_reference,
  teacher_gram,
)

from iusp_jax.objectives import similarity

# SP and IUSP: values and gradients.


def test_iusp_worked_example():
  # Teacher: two unlike frames; student: two equal ones, rows (1, 1) / √2.
  teacher_BTD = np.eye(2)[None]
  student_BTD = np.ones((1, 2, 3))
  half = np.sqrt(0.5)
  expected = 2 * ((1 - half) ** 2 + half**2) / 4
  agree(loss('iusp', student_BTD, teacher_BTD), expected)
  # The same vectors as two clips of one frame are the same example for SP.
  teacher_BTD = np.eye(2)[:, None]
  student_BTD = np.ones((2, 1, 3))
  agree(loss('sp', student_BTD, teacher_BTD), expected)


@both
@few
@given(seed=SEEDS)
def test_value_and_gradient_follow_the_formula(name, seed):
  student_BTD, teacher_BTD = pair(seed)
  agree(
    loss(name, student_BTD, teacher_BTD),
    REFERENCE[name](student_BTD, teacher_BTD),
  )
  slopes_agree(
    gradient(name, student_BTD, teacher_BTD),
    slopes(lambda x: REFERENCE[name](x, teacher_BTD), student_BTD),
  )


@both
def test_formula_on_frames_as_models_give_them(name):
  # Positive, correlated, many: the sums are long and the loss is small.
  student_BTD = np.abs(draw(0, 4, 31, 64)) + 1
  teacher_BTD = np.abs(draw(1, 4, 31, 64)) + 1
  agree(
    loss(name, student_BTD, teacher_BTD),
    REFERENCE[name](student_BTD, teacher_BTD),
  )


@both
def test_below_the_floor_value_and_gradient_are_exact_too(name):
  student_BTD, teacher_BTD = pair(7)
  for frames in (student_BTD, teacher_BTD):
    frames[0, 1] *= 1e-2
    frames[1] *= 1e-2  # For SP, a quiet clip.
  reference = functools.partial(REFERENCE[name], floor=similarity.ROW_FLOOR)
  agree(
    loss(name, student_BTD, teacher_BTD), reference(student_BTD, teacher_BTD)
  )
  assert reference(student_BTD, teacher_BTD) != pytest.approx(
    REFERENCE[name](student_BTD, teacher_BTD), rel=1e-3
  )
  slopes_agree(
    gradient(name, student_BTD, teacher_BTD),
    slopes(lambda x: reference(x, teacher_BTD), student_BTD, 1e-6),
  )


@both
@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_half_precision_is_accumulated_in_float32(name, dtype):
  # Frames of length 300 and more have products that float16 cannot hold.
  student_BTD, teacher_BTD = (
    (300 * frames).astype(dtype) for frames in pair(4)
  )
  exact = [x.astype(np.float32) for x in (student_BTD, teacher_BTD)]
  value, gradient_BTD = VALUE_AND_GRADIENT[name](student_BTD, teacher_BTD)
  assert value.dtype == jnp.float32
  agree(value, REFERENCE[name](*exact))
  assert gradient_BTD.dtype == dtype
  np.testing.assert_allclose(
    np.asarray(gradient_BTD).astype(np.float32),
    gradient(name, *exact),
    rtol=1e-2,  # bfloat16 has 8 bits.
    atol=1e-7,  # float16 has nothing between 0 and 6e-8.
  )


# SP and IUSP: laws.


@both
@few
@given(seed=SEEDS, scale=SCALES)
def test_zero_where_the_similarities_agree(name, seed, scale):
  student_BTD, _ = pair(seed)
  wide_BTD = np.pad(student_BTD, ((0, 0), (0, 0), (0, 2)))
  teacher_BTD = rotated(wide_BTD, seed, scale)  # D_R = 6, D_S = 4.
  assert loss(name, student_BTD, teacher_BTD) < 1e-11
  assert np.abs(gradient(name, student_BTD, teacher_BTD)).max() < 1e-5


@both
@few
@given(seed=SEEDS, i=st.integers(0, 4), size=st.floats(0.5, 2))
def test_more_than_zero_where_they_do_not(name, seed, i, size):
  student_BTD = np.abs(pair(seed)[0])  # Nothing is orthogonal.
  teacher_BTD = np.pad(student_BTD, ((0, 0), (0, 0), (0, 2)))
  teacher_BTD[0, i, 5] += size  # Less similar to all others, and to itself.
  assert loss(name, student_BTD, teacher_BTD) > 1e-9


@both
@few
@given(seed=SEEDS, scale=SCALES, other=SCALES)
def test_rotation_and_scale_of_either_model_change_nothing(
  name, seed, scale, other
):
  student_BTD, teacher_BTD = pair(seed)
  np.testing.assert_allclose(
    loss(
      name,
      rotated(student_BTD, seed + 2, scale),
      rotated(teacher_BTD, seed, other),
    ),
    loss(name, student_BTD, teacher_BTD),
    rtol=2e-5,
  )
  # So a gradient shrinks as the frames grow, and is no longer along them.
  gradient_BTD = gradient(name, np.float32(scale) * student_BTD, teacher_BTD)
  expected_BTD = gradient(name, student_BTD, teacher_BTD)
  np.testing.assert_allclose(
    gradient_BTD * np.float32(scale),
    expected_BTD,
    rtol=1e-3,
    atol=2e-5 * np.abs(expected_BTD).max(),
  )
  along = np.sum(expected_BTD * student_BTD)
  assert abs(along) < 1e-4 * np.linalg.norm(expected_BTD) * np.linalg.norm(
    student_BTD
  )


@both
@given(
  student_BTD=hnp.arrays(
    np.float32, (3, 5, 4), elements=st.floats(-1e6, 1e6, width=32)
  ),
  teacher_BTD=hnp.arrays(
    np.float32, (3, 5, 6), elements=st.floats(-1e6, 1e6, width=32)
  ),
)
@settings(max_examples=20)
def test_any_frames_give_a_bounded_value_and_finite_gradient(
  name, student_BTD, teacher_BTD
):
  value = loss(name, student_BTD, teacher_BTD)
  # Two rows of length at most 1 are at most 2 apart, squared 4.
  assert 0 <= value <= 4 / (3 if name == 'sp' else 5) * (1 + 1e-5)
  assert np.isfinite(gradient(name, student_BTD, teacher_BTD)).all()


@few
@given(seed=SEEDS)
def test_iusp_has_no_cross_clip_term(seed):
  student_BTD, teacher_BTD = pair(seed)
  teacher_BTT = frame_grams(teacher_BTD)
  value_B = np.asarray(iusp_per_clip(student_BTD, teacher_BTT))
  agree(value_B, iusp_of_each(student_BTD, teacher_BTD))
  agree(np.mean(value_B), loss('iusp', student_BTD, teacher_BTD))
  order = np.array([2, 0, 1])
  shuffled_B = iusp_per_clip(student_BTD[order], teacher_BTT[order])
  np.testing.assert_allclose(shuffled_B, value_B[order], rtol=1e-6, atol=1e-9)
  student_BTD[1] = draw(seed + 3, 5, 4)
  changed_B = np.asarray(iusp_per_clip(student_BTD, teacher_BTT))
  np.testing.assert_array_equal(changed_B[[0, 2]], value_B[[0, 2]])
  assert abs(changed_B[1] - value_B[1]) > 1e-6


def test_a_teacher_that_pairs_clips_matters_to_sp_only():
  # The teacher's clips are rotated each by itself: IUSP cannot see it.
  student_BTD, teacher_BTD = pair(11)
  turned_BTD = np.stack(
    [rotated(clip, seed, 1) for seed, clip in enumerate(teacher_BTD)]
  )
  np.testing.assert_allclose(
    loss('iusp', student_BTD, turned_BTD),
    loss('iusp', student_BTD, teacher_BTD),
    rtol=1e-5,
  )
  change = loss('sp', student_BTD, turned_BTD) - loss(
    'sp', student_BTD, teacher_BTD
  )
  assert abs(change) > 1e-3


def test_sp_has_cross_clip_terms():
  student_BTD, teacher_BTD = pair(12)
  teacher_BB = teacher_gram(teacher_BTD)
  value_B = sp_per_clip(student_BTD, teacher_BB)
  assert value_B.shape == (3,)
  agree(np.mean(value_B), sp_reference(student_BTD, teacher_BTD))
  student_BTD[1] = draw(13, 5, 4)
  changed_B = sp_per_clip(student_BTD, teacher_BB)
  assert np.all(np.abs(np.asarray(changed_B) - np.asarray(value_B)) > 1e-6)


@few
@given(seed=SEEDS)
def test_sp_does_not_depend_on_the_order_of_clips_or_of_time(seed):
  student_BTD, teacher_BTD = pair(seed)
  expected = loss('sp', student_BTD, teacher_BTD)
  clips, frames = np.array([2, 0, 1]), np.array([4, 1, 0, 3, 2])
  for student, teacher in (
    (student_BTD[clips], teacher_BTD[clips]),
    (student_BTD[:, frames], teacher_BTD),
  ):
    np.testing.assert_allclose(
      loss('sp', student, teacher), expected, rtol=1e-5
    )


@pytest.mark.parametrize(
  ('name', 'shape', 'other'),
  [('iusp', (3, 1), (3, 1)), ('iusp', (3, 5), (3, 1)), ('sp', (1, 5), (1, 5))],
)
def test_one_frame_or_one_clip_is_zero_and_has_no_gradient(name, shape, other):
  one_BTD, other_BTD = draw(0, *shape, 4), draw(1, *other, 4)
  for student_BTD, teacher_BTD in (
    (one_BTD, other_BTD),
    (other_BTD, one_BTD),
    (0 * one_BTD, other_BTD),
    (one_BTD, 0 * other_BTD),
  ):
    assert loss(name, student_BTD, teacher_BTD) == 0
    assert not gradient(name, student_BTD, teacher_BTD).any()


# Refusals.


@both
def test_frames_must_have_three_axes(name):
  good, flat = np.ones((2, 3, 4)), np.ones((2, 12))
  with pytest.raises(ValueError, match=r'student.*\(2, 12\).*\[B, T, D\]'):
    loss(name, flat, good)
  with pytest.raises(ValueError, match=r'teacher.*\(2, 12\).*\[B, T, D\]'):
    loss(name, good, flat)


@both
def test_frames_must_be_of_the_same_clips(name):
  with pytest.raises(ValueError, match=r'of 2 clips.*1: expected the same'):
    loss(name, np.ones((2, 3, 4)), np.ones((1, 3, 4)))
