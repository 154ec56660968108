"""Objectives: float64 references in NumPy, and the laws of each.

The references follow the papers' formulas and share no code with the package;
gradients are compared with finite differences of the references.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iusp_jax import objectives, similarity

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(1e-3, 1e3)
few = settings(max_examples=10, deadline=None)
both = pytest.mark.parametrize('name', ['sp', 'iusp'])

# One program a loss and shape gives value and gradient: compiling is what
# takes the time here, so student [3, 5, 4] and teacher [3, 5, 6] are the rule.
VALUE_AND_GRADIENT = {
  'sp': jax.jit(jax.value_and_grad(objectives.sp_loss)),
  'iusp': jax.jit(jax.value_and_grad(objectives.iusp_loss)),
}


def loss(name, *arguments):
  return VALUE_AND_GRADIENT[name](*arguments)[0]


def gradient(name, *arguments):
  return np.asarray(VALUE_AND_GRADIENT[name](*arguments)[1])


iusp_per_clip = jax.jit(objectives.iusp_per_clip)
sp_per_clip = jax.jit(objectives.sp_per_clip)
frame_grams = jax.jit(jax.vmap(similarity.gram))
tagging_per_tag = jax.jit(objectives.tagging_per_tag)
tagging = jax.jit(jax.value_and_grad(objectives.tagging_loss))


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pair(seed, num_clips=3, num_frames=5):
  """Frames of a student and a teacher; no row is near the floor."""
  return tuple(
    unit(draw(part, num_clips, num_frames, size))
    for part, size in ((seed, 4), (seed + 1, 6))
  )


def unit(frames):
  """Frames of length between 1 and 2."""
  length = np.linalg.norm(frames, axis=-1, keepdims=True)
  return frames * (1 + np.tanh(length)) / np.maximum(length, 1e-6)


def rotated(frames, seed, scale):
  size = frames.shape[-1]
  normal = np.random.default_rng(seed).normal(size=(size, size))
  return (scale * frames @ np.linalg.qr(normal)[0]).astype(np.float32)


def teacher_gram(teacher_BTD):
  """Unnormalised similarities of clips, as a teacher hands them over."""
  flat = teacher_BTD.reshape(len(teacher_BTD), -1)
  return flat @ flat.T


# The references, float64.


def rows_of_length_one(vectors, floor=0.0):
  """Gram matrix with normalised rows; shorter ones over a relative floor."""
  vectors = np.asarray(vectors, np.float64)
  gram = vectors @ vectors.T
  length = np.sqrt(np.sum(gram**2, axis=1))
  least = floor * np.sqrt(np.mean(length**2))
  return gram / np.maximum(length, least)[:, None]


def sp_reference(student_BTD, teacher_BTD, floor=0.0):
  num_clips = len(student_BTD)
  student_BB, teacher_BB = (
    rows_of_length_one(frames.reshape(num_clips, -1), floor)
    for frames in (student_BTD, teacher_BTD)
  )
  return np.sum((teacher_BB - student_BB) ** 2) / num_clips**2


def iusp_of_each(student_BTD, teacher_BTD, floor=0.0):
  values = []
  for student_TD, teacher_TD in zip(student_BTD, teacher_BTD, strict=True):
    num_frames = min(len(student_TD), len(teacher_TD))
    student_TT, teacher_TT = (
      rows_of_length_one(pooled(frames, num_frames), floor)
      for frames in (student_TD, teacher_TD)
    )
    values.append(np.sum((teacher_TT - student_TT) ** 2) / num_frames**2)
  return np.array(values)


def iusp_reference(student_BTD, teacher_BTD, floor=0.0):
  return np.mean(iusp_of_each(student_BTD, teacher_BTD, floor))


REFERENCE = {'sp': sp_reference, 'iusp': iusp_reference}


def pooled(frames_TD, num_out):
  cut_TD = np.repeat(np.asarray(frames_TD, np.float64), num_out, axis=0)
  return cut_TD.reshape(num_out, len(frames_TD), -1).mean(1)


def entropy(logits, tags):
  """Bernoulli cross-entropy, float64, from log(1 + e^x)."""
  logits, tags = np.asarray(logits, np.float64), np.asarray(tags, np.float64)
  return np.logaddexp(0, logits) - tags * logits


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def slopes(function, x, step=1e-5):
  """Central differences in every number of x, float64."""
  x = np.asarray(x, np.float64)
  found = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    moved = np.zeros_like(x)
    moved[i] = step
    found[i] = (function(x + moved) - function(x - moved)) / (2 * step)
  return found


def agree(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def slopes_agree(found, expected):
  size = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * size)


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
@settings(max_examples=40, deadline=None)
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


# Silence.


def silenced(frames_BTD, case):
  frames_BTD = frames_BTD.copy()
  num_frames = frames_BTD.shape[1]
  match case:
    case 'one frame':
      frames_BTD[0, 1] = 0
    case 'faint frame':
      frames_BTD[0, 1] *= 1e-6
    case 'half':
      frames_BTD[:, num_frames // 2 :] = 0
    case 'all but one frame':
      frames_BTD[0, 1:] = 0
    case 'one clip':
      frames_BTD[1] = 0
    case 'everything':
      frames_BTD[:] = 0
    case 'identical frames':
      frames_BTD[:] = frames_BTD[:1, :1]
    case 'one loud frame':
      frames_BTD[0, 1] *= 1e4
  return frames_BTD


SILENCES = [
  'one frame',
  'faint frame',
  'half',
  'all but one frame',
  'one clip',
  'everything',
  'identical frames',
  'one loud frame',
]


def frame_norms(name, student_BTD, teacher_BTD):
  """Of the gradient; the value must be finite."""
  assert np.isfinite(loss(name, student_BTD, teacher_BTD))
  norm_BT = np.linalg.norm(gradient(name, student_BTD, teacher_BTD), axis=-1)
  assert np.isfinite(norm_BT).all()
  return norm_BT


@both
@pytest.mark.parametrize('case', SILENCES)
@pytest.mark.parametrize('activation', ['none', 'relu'])
def test_silence_pulls_at_most_100_times_as_hard(name, case, activation):
  for seed in range(5):
    student_BTD, teacher_BTD = draw(seed, 4, 15, 6), draw(seed + 9, 4, 15, 8)
    if activation == 'relu':
      student_BTD = np.maximum(student_BTD, 0)
      teacher_BTD = np.maximum(teacher_BTD, 0)
    ordinary_BT = frame_norms(name, student_BTD, teacher_BTD)
    for student, teacher in (
      (silenced(student_BTD, case), teacher_BTD),
      (student_BTD, silenced(teacher_BTD, case)),
      (silenced(student_BTD, case), silenced(teacher_BTD, case)),
    ):
      norm_BT = frame_norms(name, student, teacher)
      assert norm_BT.max() <= 100 * np.median(ordinary_BT)


@both
def test_pull_of_silence_is_bounded_where_all_frames_are_alike(name):
  # There both losses, and so an ordinary gradient, are next to nothing, and a
  # ratio to it says little: this is the bound itself, on a vector (a frame,
  # for SP a clip) of typical length among N. Its row, once divided, moves by
  # 1 / (ROW_FLOOR · length) a unit at most, and a row is at most 2 from its
  # target, so that ‖·‖² / N² moves by 2 · 2 / N² times that.
  student_BTD = np.abs(draw(0, 4, 31, 64)) + 1
  teacher_BTD = np.abs(draw(1, 4, 31, 64)) + 1
  case = {'iusp': 'one frame', 'sp': 'one clip'}[name]
  gradient_BTD = gradient(name, silenced(student_BTD, case), teacher_BTD)
  shape = {'iusp': (4, 31, 64), 'sp': (1, 4, 31 * 64)}[name]
  num_matrices, num_rows, _ = shape
  length = np.sqrt(np.mean(np.sum(student_BTD.reshape(shape) ** 2, -1)))
  steepest = np.linalg.norm(gradient_BTD.reshape(shape), axis=-1).max()
  bound = 4 / (similarity.ROW_FLOOR * length) / num_rows**2 / num_matrices
  assert bound / 100 < steepest < bound


@both
def test_silence_under_vmap(name):
  # An axis of experiments before the batch; the silent one spoils no other.
  students, teachers = draw(0, 3, 3, 5, 4), draw(1, 3, 3, 5, 6)
  students[1] = 0
  value_N, gradient_N = jax.vmap(VALUE_AND_GRADIENT[name])(students, teachers)
  assert np.isfinite(gradient_N).all()
  for n in range(3):
    agree(value_N[n], loss(name, students[n], teachers[n]))
    slopes_agree(gradient_N[n], gradient(name, students[n], teachers[n]))


def test_zero_gradient_only_where_all_is_silent():
  # A silent frame is pulled towards the teacher's similarities.
  student_BTD, teacher_BTD = pair(3)
  student_BTD[0, 1] = 0
  gradient_BTD = gradient('iusp', student_BTD, teacher_BTD)
  assert np.linalg.norm(gradient_BTD[0, 1]) > 1e-3
  student_BTD[:] = 0
  assert not gradient('iusp', student_BTD, teacher_BTD).any()


# Alignment.


@pytest.mark.parametrize(
  ('num_student', 'num_teacher'), [(8, 4), (5, 7), (7, 5)]
)
def test_iusp_of_different_frame_rates(num_student, num_teacher):
  student_BTD = draw(0, 2, num_student, 4) + 1
  teacher_BTD = draw(1, 2, num_teacher, 6) + 1
  agree(
    loss('iusp', student_BTD, teacher_BTD),
    iusp_reference(student_BTD, teacher_BTD),
  )
  slopes_agree(
    gradient('iusp', student_BTD, teacher_BTD),
    slopes(lambda x: iusp_reference(x, teacher_BTD), student_BTD),
  )


def test_sp_aligns_nothing():
  student_BTD, teacher_BTD = draw(0, 3, 7, 4), draw(1, 3, 4, 6)
  agree(
    loss('sp', student_BTD, teacher_BTD),
    sp_reference(student_BTD, teacher_BTD),
  )


def test_a_stored_gram_serves_as_well_as_frames():
  student_BTD, teacher_BTD = draw(0, 3, 4, 4) + 1, draw(1, 3, 9, 6) + 1
  stored_BTT = np.einsum('btd,bsd->bts', teacher_BTD, teacher_BTD)
  agree(
    jnp.mean(iusp_per_clip(student_BTD, stored_BTT)),
    iusp_reference(student_BTD, teacher_BTD),
  )


# Padding.


@pytest.mark.parametrize('padding', [0.0, 1e4, np.nan, np.inf])
def test_padding_frames_have_no_influence(padding):
  student_BTD, teacher_BTD = pair(5)
  mask_BT = np.ones((3, 5), np.float32)
  mask_BT[0, 3:] = 0
  student_BTD[0, 3:] = padding
  teacher_BTD[0, 3:] = padding

  def reference(student_BTD):
    return np.mean(
      [
        iusp_reference(student_BTD[:1, :3], teacher_BTD[:1, :3]),
        iusp_reference(student_BTD[1:2], teacher_BTD[1:2]),
        iusp_reference(student_BTD[2:], teacher_BTD[2:]),
      ]
    )

  agree(loss('iusp', student_BTD, teacher_BTD, mask_BT), reference(student_BTD))
  gradient_BTD = gradient('iusp', student_BTD, teacher_BTD, mask_BT)
  assert not gradient_BTD[0, 3:].any()
  slopes_agree(gradient_BTD, slopes(reference, student_BTD))


def test_mask_of_ones_equals_no_mask():
  student_BTD, teacher_BTD = pair(6)
  mask_BT = np.ones((3, 5), np.float32)
  agree(
    loss('iusp', student_BTD, teacher_BTD, mask_BT),
    loss('iusp', student_BTD, teacher_BTD),
  )
  slopes_agree(
    gradient('iusp', student_BTD, teacher_BTD, mask_BT),
    gradient('iusp', student_BTD, teacher_BTD),
  )


@pytest.mark.parametrize('silent', ['nobody', 'student', 'teacher'])
def test_a_clip_of_one_frame_or_none_besides_padding_is_zero(silent):
  student_BTD, teacher_BTD = pair(7)
  if silent == 'student':
    student_BTD[:] = 0
  if silent == 'teacher':
    teacher_BTD[:] = 0
  mask_BT = np.zeros((3, 5), np.float32)
  mask_BT[0, 0] = mask_BT[1, 4] = 1
  assert loss('iusp', student_BTD, teacher_BTD, mask_BT) == 0
  assert not gradient('iusp', student_BTD, teacher_BTD, mask_BT).any()


def test_mask_is_of_the_coarser_frames():
  student_BTD, teacher_BTD = draw(0, 2, 8, 4), draw(1, 2, 4, 6)
  mask_BT = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
  value = loss('iusp', student_BTD, teacher_BTD, mask_BT)
  halves_BTD = np.stack([pooled(clip, 4) for clip in student_BTD])
  expected = (
    iusp_reference(halves_BTD[:1, :3], teacher_BTD[:1, :3])
    + iusp_reference(halves_BTD[1:], teacher_BTD[1:])
  ) / 2
  agree(value, expected)
  with pytest.raises(ValueError, match=r'\(2, 8\): expected \(2, 4\)'):
    loss('iusp', student_BTD, teacher_BTD, np.ones((2, 8)))


# SP over several devices.


def test_sp_does_not_depend_on_the_number_of_devices():
  if jax.device_count() < 2:
    pytest.skip('needs two devices')
  student_BTD, teacher_BTD = pair(8, num_clips=6)
  student_BTD[1] = 0  # So that floor and scale, too, must be global.
  teacher_BTD[4] *= 1e-2
  expected, expected_BTD = VALUE_AND_GRADIENT['sp'](student_BTD, teacher_BTD)
  teacher_BB = teacher_gram(teacher_BTD)

  def share(student_bTD, teacher_bB):
    value_b = objectives.sp_per_clip(student_bTD, teacher_bB, 'data')
    return jnp.sum(value_b) / 6, value_b

  gradient_bB, value_bB = jax.pmap(
    jax.grad(share, has_aux=True),
    axis_name='data',
    devices=jax.devices()[:2],
  )(student_BTD.reshape(2, 3, 5, 4), teacher_BB.reshape(2, 3, 6))
  np.testing.assert_allclose(
    value_bB.reshape(6),
    sp_per_clip(student_BTD, teacher_BB),
    rtol=1e-5,
    atol=1e-9,
  )
  agree(np.mean(value_bB), expected)
  slopes_agree(gradient_bB.reshape(6, 5, 4), expected_BTD)


def test_sp_of_one_clip_a_device_is_not_sp_of_one_clip():
  if jax.device_count() < 2:
    pytest.skip('needs two devices')
  student_BTD, teacher_BTD = pair(9, num_clips=2)
  teacher_BB = teacher_gram(teacher_BTD)
  value_bB = jax.pmap(
    lambda student, teacher: objectives.sp_per_clip(student, teacher, 'data'),
    axis_name='data',
    devices=jax.devices()[:2],
  )(student_BTD[:, None], teacher_BB[:, None])
  agree(np.mean(value_bB), sp_reference(student_BTD, teacher_BTD))
  assert np.mean(value_bB) > 1e-4


# Tagging.

LOGITS_BC = hnp.arrays(
  np.float32, (4, 3), elements=st.floats(-50, 50, width=32)
)
TAGS_BC = hnp.arrays(np.float32, (4, 3), elements=st.floats(0, 1, width=32))
MASK_BC = hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 1.0]))


@given(LOGITS_BC, TAGS_BC, MASK_BC)
@settings(max_examples=40, deadline=None)
def test_tagging_is_the_mean_over_known_tags(logits_BC, tags_BC, mask_BC):
  value, gradient_BC = tagging(logits_BC, tags_BC, mask_BC)
  known = max(mask_BC.sum(), 1)
  agree(value, np.sum(entropy(logits_BC, tags_BC) * mask_BC) / known)
  expected_BC = (sigmoid(logits_BC) - tags_BC) * mask_BC / known
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


kd_per_clip = jax.jit(objectives.kd_per_clip)
kd = jax.jit(jax.value_and_grad(objectives.kd_loss))


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


def test_logits_tags_and_masks_must_have_one_shape():
  logits_BC, narrow_BC = np.ones((2, 3)), np.ones((2, 1))
  with pytest.raises(ValueError, match=r'student.*\(2, 3\).*\(2, 1\)'):
    objectives.kd_loss(logits_BC, narrow_BC)
  with pytest.raises(ValueError, match=r'tags.*\(2, 1\)'):
    objectives.tagging_loss(logits_BC, narrow_BC)
  with pytest.raises(ValueError, match=r'mask.*\(2, 1\)'):
    objectives.tagging_loss(logits_BC, logits_BC, narrow_BC)


@pytest.mark.parametrize('temperature', [0, -1.0, float('nan')])
def test_temperature_must_be_positive(temperature):
  with pytest.raises(ValueError, match=r'temperature is .*more than 0'):
    objectives.kd_loss(np.ones((2, 3)), np.ones((2, 3)), temperature)
