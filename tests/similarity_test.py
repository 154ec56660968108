"""Similarity matrices: the paper's formula in float64, and its laws."""

# Shapes in quotes are jaxtyping's, not Python.
# ruff: noqa: F722

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from beartype import beartype
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Array, Float, Float32, jaxtyped

from iusp_jax.objectives import similarity

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(1e-3, 1e3)
# Few shapes: each is compiled once.
SHAPES_TD = st.sampled_from([(1, 3), (2, 1), (5, 7), (12, 4)])
few = settings(max_examples=8)

frame_similarity = jax.jit(similarity.frame_similarity)
batch_similarity = jax.jit(similarity.batch_similarity)


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def rotation(seed, size):
  """An orthogonal matrix, float64."""
  normal = np.random.default_rng(seed).normal(size=(size, size))
  return np.linalg.qr(normal)[0]


def by_the_formula(rows_ND):
  """Gram matrix with rows of length 1, float64; no floor."""
  rows_ND = np.asarray(rows_ND, np.float64)
  gram_NN = rows_ND @ rows_ND.T
  return gram_NN / np.sqrt(np.sum(gram_NN**2, axis=1, keepdims=True))


def no_row_below_floor(rows_ND):
  rows_ND = np.asarray(rows_ND, np.float64)
  length_N = np.linalg.norm(rows_ND @ rows_ND.T, axis=1)
  mean_square = np.mean(length_N**2)
  return length_N.min() >= 1.001 * similarity.ROW_FLOOR * np.sqrt(mean_square)


def above_floor(seed, *shape_TD):
  """Normal frames, none so short that the floor takes its row."""
  frames_TD = draw(seed, *shape_TD)
  if not no_row_below_floor(frames_TD):
    length_T = np.linalg.norm(frames_TD, axis=1, keepdims=True)
    frames_TD = frames_TD / length_T
  assert no_row_below_floor(frames_TD)
  return frames_TD


# The formula.


def test_worked_example():
  frames_TD = jnp.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
  root10, root2, root14 = np.sqrt([10.0, 2.0, 14.0])
  expected_TT = [
    [3 / root10, 0, 1 / root10],
    [0, 1 / root2, 1 / root2],
    [3 / root14, 1 / root14, 2 / root14],
  ]
  found_TT = frame_similarity(frames_TD)
  np.testing.assert_allclose(found_TT, expected_TT, rtol=1e-6)


@few
@given(SEEDS, SHAPES_TD)
def test_frames_follow_the_formula(seed, shape_TD):
  frames_TD = above_floor(seed, *shape_TD)
  found_TT = frame_similarity(frames_TD)
  np.testing.assert_allclose(
    found_TT, by_the_formula(frames_TD), rtol=1e-5, atol=1e-6
  )
  np.testing.assert_allclose(np.linalg.norm(found_TT, axis=1), 1, rtol=1e-6)


@few
@given(SEEDS)
def test_clips_follow_the_formula(seed):
  frames_BTD = above_floor(seed, 4, 15).reshape(4, 3, 5)
  np.testing.assert_allclose(
    batch_similarity(frames_BTD),
    by_the_formula(frames_BTD.reshape(4, 15)),
    rtol=1e-5,
    atol=1e-6,
  )


def test_rows_of_the_product_are_normalised_not_the_features():
  frames_TD = np.array([[4.0, 0.0], [1.0, 1.0]], np.float32)
  unit_TD = frames_TD / np.linalg.norm(frames_TD, axis=1, keepdims=True)
  found_TT = np.asarray(frame_similarity(frames_TD))
  assert np.abs(found_TT - unit_TD @ unit_TD.T).max() > 0.1
  assert abs(found_TT[0, 1] - found_TT[1, 0]) > 0.1  # Not symmetric.


def test_shapes_and_type_under_a_type_checker():
  @jaxtyped(typechecker=beartype)
  def frames(frames_TD: Float[Array, 'T D']) -> Float32[Array, 'T T']:
    return similarity.frame_similarity(frames_TD)

  @jaxtyped(typechecker=beartype)
  def clips(frames_BTD: Float[Array, 'B T D']) -> Float32[Array, 'B B']:
    return similarity.batch_similarity(frames_BTD)

  for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
    jax.eval_shape(frames, jnp.ones((3, 2), dtype))
    jax.eval_shape(clips, jnp.ones((4, 3, 2), dtype))


# Invariance.


@few
@given(SEEDS, SCALES)
def test_rotation_and_scale_change_nothing(seed, scale):
  frames_TD = draw(seed, 6, 4)
  turned_TD = (scale * frames_TD @ rotation(seed + 1, 4)).astype(np.float32)
  np.testing.assert_allclose(
    frame_similarity(turned_TD), frame_similarity(frames_TD), atol=3e-6
  )
  clips_BTD = frames_TD.reshape(3, 2, 4)
  turned_BTD = turned_TD.reshape(3, 2, 4)
  np.testing.assert_allclose(
    batch_similarity(turned_BTD), batch_similarity(clips_BTD), atol=3e-6
  )


@few
@given(SEEDS, SCALES)
def test_scale_changes_nothing_below_the_floor_either(seed, scale):
  frames_TD = draw(seed, 6, 4)
  frames_TD[1] = 0
  frames_TD[2] *= 1e-3
  assert not no_row_below_floor(frames_TD)
  np.testing.assert_allclose(
    frame_similarity(np.float32(scale) * frames_TD),
    frame_similarity(frames_TD),
    atol=3e-6,
  )


@few
@given(SEEDS)
def test_order_of_frames_is_the_order_of_rows_and_columns(seed):
  frames_TD = draw(seed, 6, 4)
  order = np.random.default_rng(seed).permutation(6)
  np.testing.assert_allclose(
    frame_similarity(frames_TD[order]),
    np.asarray(frame_similarity(frames_TD))[order][:, order],
    atol=1e-6,
  )


def test_vmap_over_a_batch_equals_clip_after_clip():
  frames_BTD = draw(0, 3, 5, 4)
  mapped_BTT = jax.jit(jax.vmap(similarity.frame_similarity))(frames_BTD)
  for frames_TD, alone_TT in zip(frames_BTD, mapped_BTT, strict=True):
    np.testing.assert_allclose(frame_similarity(frames_TD), alone_TT, atol=1e-6)


# The floor, and silence.


def test_short_rows_are_divided_by_the_floor():
  frames_TD = draw(1, 6, 4)
  frames_TD[2] *= 1e-3
  frames_TD[4] = 0
  gram_TT = frames_TD.astype(np.float64) @ frames_TD.T.astype(np.float64)
  length_T = np.linalg.norm(gram_TT, axis=1)
  floor = similarity.ROW_FLOOR * np.sqrt(np.mean(length_T**2))
  found_TT = np.asarray(frame_similarity(frames_TD))
  np.testing.assert_allclose(
    found_TT, gram_TT / np.maximum(length_T, floor)[:, None], rtol=1e-5
  )
  assert 0 < np.linalg.norm(found_TT[2]) < 0.1
  assert not found_TT[4].any()
  assert not found_TT[:, 4].any()


@pytest.mark.parametrize('value', [0.0, 1e-12, 1e-3, 1.0, 1e3])
def test_identical_frames_are_equally_similar(value):
  found_TT = frame_similarity(np.full((5, 3), value, np.float32))
  expected = 0.0 if value == 0 else 1 / np.sqrt(5)
  np.testing.assert_allclose(found_TT, np.full((5, 5), expected), rtol=1e-5)


@few
@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_frames_give_finite_rows_of_at_most_length_one(frames_TD):
  found_TT = np.asarray(frame_similarity(frames_TD))
  assert np.isfinite(found_TT).all()
  assert np.linalg.norm(found_TT, axis=1).max() <= 1 + 1e-5


# Padding.


def test_padding_holds_any_number_and_counts_for_nothing():
  frames_TD = draw(3, 7, 4)
  frames_TD[2] *= 1e-3  # Below the floor, which padding must not move.
  mask_T = jnp.arange(7) < 5
  expected_TT = np.zeros((7, 7))
  expected_TT[:5, :5] = frame_similarity(frames_TD[:5])
  for padding in (0.0, 1e4, np.nan, np.inf):
    frames_TD[5:] = padding
    for mask in (mask_T, mask_T.astype(jnp.float32)):
      found_TT = frame_similarity(jnp.asarray(frames_TD), mask)
      np.testing.assert_allclose(found_TT, expected_TT, atol=1e-6)


def test_mask_of_ones_equals_no_mask():
  frames_TD = jnp.asarray(draw(4, 5, 4))
  np.testing.assert_array_equal(
    frame_similarity(frames_TD, jnp.ones(5)),
    frame_similarity(frames_TD),
  )


# Precision.


@pytest.mark.parametrize('dtype', [jnp.float16, jnp.bfloat16])
def test_half_precision_is_accumulated_in_float32(dtype):
  # 4096 products of 20 · 20 would overflow float16 and stall in bfloat16.
  frames_TD = jnp.asarray(20 * draw(5, 4, 4096), dtype)
  exact_TD = np.asarray(frames_TD, np.float64)
  gram_TT = similarity.gram(frames_TD)
  assert gram_TT.dtype == jnp.float32
  np.testing.assert_allclose(
    gram_TT, exact_TD @ exact_TD.T, rtol=1e-5, atol=1e-5 * np.max(gram_TT)
  )
  np.testing.assert_allclose(
    frame_similarity(frames_TD), by_the_formula(exact_TD), atol=1e-6
  )
  clips_BTD = frames_TD.reshape(4, 64, 64)
  np.testing.assert_allclose(
    batch_similarity(clips_BTD), by_the_formula(exact_TD), atol=1e-6
  )
  pooled_TD = similarity.align_frames(frames_TD, 3)
  assert pooled_TD.dtype == jnp.float32
  np.testing.assert_allclose(
    pooled_TD, pooled(exact_TD, 3), rtol=1e-5, atol=1e-4
  )


# Alignment in time.


def pooled(frames_TD, num_out):
  """Means over equal spans of time: every frame cut into `num_out` parts."""
  cut_TD = np.repeat(np.asarray(frames_TD, np.float64), num_out, axis=0)
  return cut_TD.reshape(num_out, len(frames_TD), -1).mean(1)


RATIOS = [(8, 4), (9, 3), (5, 1), (7, 5), (125, 62), (125, 31), (6, 6), (3, 2)]


@pytest.mark.parametrize(('num_in', 'num_out'), RATIOS)
def test_align_frames_takes_means_over_equal_spans(num_in, num_out):
  frames_TD = draw(num_in, num_in, 3)
  found_TD = similarity.align_frames(jnp.asarray(frames_TD), num_out)
  assert found_TD.shape == (num_out, 3)
  np.testing.assert_allclose(
    found_TD, pooled(frames_TD, num_out), rtol=1e-5, atol=1e-6
  )


@given(st.integers(1, 150), st.integers(1, 150))
def test_pooling_is_a_mean_that_uses_every_frame_alike(a, b):
  num_in, num_out = max(a, b), min(a, b)
  pool = similarity.pooling_matrix(num_in, num_out)
  assert pool.shape == (num_out, num_in)
  assert pool.dtype == np.float32
  assert pool.min() >= 0
  np.testing.assert_allclose(pool.sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(pool.sum(0), num_out / num_in, rtol=1e-5)
  assert (np.diff(pool @ np.arange(num_in, dtype=np.float32)) > 0).all()


@pytest.mark.parametrize(('num_in', 'num_out'), RATIOS)
def test_constant_frames_stay_constant(num_in, num_out):
  frames_TD = jnp.tile(jnp.array([[2.0, -3.0]]), (num_in, 1))
  found_TD = similarity.align_frames(frames_TD, num_out)
  np.testing.assert_allclose(found_TD, frames_TD[:num_out], rtol=1e-6)


@pytest.mark.parametrize(('num_in', 'num_out'), RATIOS)
def test_align_gram_is_the_gram_of_aligned_frames(num_in, num_out):
  frames_TD = draw(num_out, num_in, 3)
  found_TT = similarity.align_gram(
    similarity.gram(jnp.asarray(frames_TD)), num_out
  )
  pooled_TD = pooled(frames_TD, num_out)
  np.testing.assert_allclose(
    found_TT, pooled_TD @ pooled_TD.T, rtol=1e-5, atol=1e-5
  )


# Refusals.


@pytest.mark.parametrize('num_out', [0, 6])
def test_pooling_never_invents_frames(num_out):
  with pytest.raises(ValueError, match=f'5 frames into {num_out}.*1 to 5'):
    similarity.align_frames(jnp.ones((5, 2)), num_out)


@pytest.mark.parametrize('shape', [(3,), (2, 3, 4)])
def test_frame_similarity_wants_one_clip(shape):
  with pytest.raises(ValueError, match=r'expected \[T, D\].*vmap'):
    similarity.frame_similarity(jnp.ones(shape))


@pytest.mark.parametrize('shape', [(3, 4), (2, 3, 4, 5)])
def test_batch_similarity_wants_a_batch(shape):
  with pytest.raises(ValueError, match=r'expected \[B, T, D\]'):
    similarity.batch_similarity(jnp.ones(shape))
