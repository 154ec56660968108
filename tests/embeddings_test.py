"""Distillation of embeddings and of clusters of layers: loops, and laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objective_references import SCALES, SEEDS, draw, few, pair, rotated
from scipy.cluster import hierarchy
from scipy.spatial import distance

from iusp_jax import objectives
from iusp_jax.objectives import clusters, embeddings, losses, similarity


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# VIC -------------------------------------------------------------------------


def vic(student_BD, teacher_BD):
  """The formula in float64, number by number."""
  z, y = np.asarray(student_BD, np.float64), np.asarray(teacher_BD, np.float64)
  num_clips, num_axes = z.shape
  invariance = sum((z[i] - y[i]) @ (z[i] - y[i]) for i in range(num_clips))
  invariance /= num_clips
  if num_clips == 1:
    return invariance, 0.0, 0.0
  mean = [sum(z[:, d]) / num_clips for d in range(num_axes)]

  def covariance(d, e):
    found = sum(
      (z[i, d] - mean[d]) * (z[i, e] - mean[e]) for i in range(num_clips)
    )
    return found / (num_clips - 1)

  variance = sum(
    max(0, 1 - np.sqrt(covariance(d, d) + 1e-4)) for d in range(num_axes)
  )
  others = sum(
    covariance(d, e) ** 2
    for d in range(num_axes)
    for e in range(num_axes)
    if d != e
  )
  return invariance, variance / num_axes, others / num_axes


vic_parts = jax.jit(objectives.vic_parts)


@pytest.mark.parametrize('shape', [(5, 4), (2, 3), (4, 1), (1, 3)])
@pytest.mark.parametrize('scale', [0.1, 3.0])
def test_vic_follows_its_formula(shape, scale):
  student_BD, teacher_BD = scale * draw(0, *shape), draw(1, *shape)
  close(vic_parts(student_BD, teacher_BD), vic(student_BD, teacher_BD))


@few
@given(seed=SEEDS, shift=st.floats(-5, 5), scale=st.floats(0.2, 5))
def test_laws_of_variance_and_covariance(seed, shift, scale):
  z, y = draw(seed, 5, 4), draw(seed + 1, 5, 4)
  parts = vic_parts(z, y)
  np.testing.assert_allclose(
    vic_parts(z + np.float32(shift), y)[1:], parts[1:], 1e-4, 1e-5
  )
  scaled = vic_parts(np.float32(scale) * z, y)
  np.testing.assert_allclose(scaled[2], scale**4 * parts[2], 1e-3)
  assert vic_parts(y, y)[0] == 0


@pytest.mark.parametrize('num_clips', [1, 3])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_vic_of_equal_clips_has_a_finite_gradient(num_clips, dtype):
  z = jnp.zeros((num_clips, 4), dtype)

  def loss(z):
    return sum(objectives.vic_parts(z, 1.0 + 0 * z))

  value, gradient = jax.jit(jax.value_and_grad(loss))(z)
  assert value.dtype == jnp.float32
  assert np.isfinite(np.asarray(gradient, np.float32)).all()


def moments_of(rows_ND):
  one = np.concatenate([np.ones((len(rows_ND), 1)), rows_ND], axis=1)
  return one.T @ one / len(rows_ND)


@pytest.mark.parametrize(('shape', 'num_axes'), [((50, 6), 4), ((3, 6), 2)])
def test_whitened_axes_have_mean_0_and_variance_1(shape, num_axes):
  rows_ND = draw(0, *shape) @ draw(1, 6, 6) + 3 * draw(2, 1, 6)
  map_DK = embeddings.whitening(moments_of(rows_ND), len(rows_ND), 4)
  found = rows_ND @ map_DK[1:] + map_DK[:1]
  assert found.shape == (shape[0], num_axes)
  np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
  np.testing.assert_allclose(np.cov(found.T), np.eye(num_axes), atol=1e-3)


def test_axes_that_hold_nothing_are_not_stretched():
  rows_ND = draw(0, 20, 4)
  rows_ND[:, 2:] = 1.5
  for rows in (rows_ND, 0 * rows_ND):
    map_DK = embeddings.whitening(moments_of(rows), 20, 4)
    assert np.isfinite(map_DK).all()
    assert abs(rows @ map_DK[1:] + map_DK[:1]).max() < 10


def test_axes_of_frames_hold_the_most_of_their_squares():
  rows_ND = draw(0, 40, 5) * np.array([[1, 9, 1, 4, 0.1]], np.float32)
  axes_DK = embeddings.axes_of_moments(moments_of(rows_ND), 40, 2)
  close(axes_DK.T @ axes_DK, np.eye(2))
  _, sizes, _ = np.linalg.svd(rows_ND.astype(np.float64))
  np.testing.assert_allclose(
    np.linalg.norm(rows_ND @ axes_DK, axis=0), sizes[:2], 1e-4
  )


def test_weighted_moments_are_those_of_the_rows():
  rows_ND, weight_N = draw(0, 5, 3), abs(draw(1, 5))
  one = np.concatenate([np.ones((5, 1)), rows_ND], axis=1)
  found = embeddings.second_moments(jnp.asarray(rows_ND), jnp.asarray(weight_N))
  close(found, one.T @ (weight_N[:, None] * one))


# Span alignment --------------------------------------------------------------


def cosine(x, y):
  size = np.linalg.norm(x) * np.linalg.norm(y)
  return x @ y / size if size else 0.0


def span_alignment(student_BTD, teacher_BTD, reach, weights_BT):
  num_frames = min(student_BTD.shape[1], teacher_BTD.shape[1])
  values = []
  for b in range(len(student_BTD)):
    x, y = (
      np.repeat(frames[b].astype(np.float64), num_frames, axis=0)
      .reshape(num_frames, frames.shape[1], -1)
      .mean(1)
      for frames in (student_BTD, teacher_BTD)
    )
    w = np.ones(num_frames) if weights_BT is None else weights_BT[b]
    total = 0.0
    for t in range(num_frames):
      near = [
        cosine(x[u], y[t])
        for u in range(num_frames)
        if abs(u - t) <= reach and w[u] > 0
      ]
      if w[t] > 0:
        total += w[t] * (1 - max(near))
    values.append(total / sum(w) if sum(w) else 0.0)
  return np.mean(values)


@functools.cache
def aligned(reach):
  loss = functools.partial(objectives.span_alignment_loss, reach=reach)
  return jax.jit(lambda x, y, w: loss(x, y, weights_BT=w))


@pytest.mark.parametrize('frames', [(6, 6), (6, 3), (4, 6), (1, 1)])
@pytest.mark.parametrize('reach', [0, 1, 2])
@pytest.mark.parametrize('weighted', [False, True])
def test_span_alignment_follows_its_formula(frames, reach, weighted):
  x, y = draw(0, 3, frames[0], 4), draw(1, 3, frames[1], 4)
  weights_BT = None
  if weighted:
    weights_BT = abs(draw(2, 3, min(frames)))
    weights_BT[0, -2:], weights_BT[1] = 0, 0
  close(
    aligned(reach)(x, y, weights_BT), span_alignment(x, y, reach, weights_BT)
  )


@few
@given(seed=SEEDS, scale=SCALES)
def test_laws_of_span_alignment(seed, scale):
  x, y = draw(seed, 2, 6, 4), draw(seed + 1, 2, 6, 4)
  values = [aligned(reach)(x, y, None) for reach in (0, 1, 2)]
  assert values[0] >= values[1] >= values[2]
  scaled = np.array(x)
  scaled[0, 2] *= scale
  close(aligned(1)(scaled, y, None), values[1])
  for reach in (0, 1):
    close(aligned(reach)(np.float32(scale) * y, y, None), 0)


@few
@given(seed=SEEDS, scale=SCALES)
def test_global_part_does_not_see_one_scale_a_clip(seed, scale):
  x, y, mask = draw(seed, 2, 6, 4), draw(seed + 1, 2, 6, 4), np.ones((2, 6))
  found = embeddings.mean_alignment_per_clip(x, y, mask, mask)
  means = x.mean(1), y.mean(1)
  close(found, [1 - cosine(means[0][b], means[1][b]) for b in range(2)])
  close(
    embeddings.mean_alignment_per_clip(np.float32(scale) * x, y, mask, mask),
    found,
  )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_alignment_of_silence_and_padding_has_a_bounded_gradient(dtype):
  x, y = draw(0, 3, 5, 4), draw(1, 3, 5, 4)
  x[0], x[1, 2:], y[1, :2] = 0.0, np.nan, 0.0
  x[2] *= 1e-20
  mask_BT = np.array([[1] * 5, [1, 1, 0, 0, 0], [1] * 5], np.float32)

  def loss(x):
    return (
      objectives.span_alignment_loss(x, y, weights_BT=mask_BT)
      + embeddings.mean_alignment_per_clip(x, y, mask_BT, mask_BT).sum()
    )

  value, gradient = jax.jit(jax.value_and_grad(loss))(jnp.asarray(x, dtype))
  gradient = np.asarray(gradient, np.float32)
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()
  assert not gradient[1, 2:].any()
  assert abs(gradient).max() < 2e4


def test_shapes_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r'the weights have shape \(2, 5\)'):
    objectives.span_alignment_loss(
      draw(0, 2, 6, 4), draw(0, 2, 6, 4), weights_BT=np.ones((2, 5))
    )
  with pytest.raises(ValueError, match=r'\(2, 3\) and \(2, 4\)'):
    objectives.vic_parts(draw(0, 2, 3), draw(0, 2, 4))


# Clusters of layers ----------------------------------------------------------


def cluster_iusp(student_BTD, layers, mask_BT):
  """For equal frame rates: IUSP with the scaled concatenation of the layers."""
  whole = []
  for b in range(len(student_BTD)):
    keep = mask_BT[b] > 0
    parts = [frames[b].astype(np.float64) * keep[:, None] for frames in layers]
    sizes = [np.sqrt(np.sum(part**2)) for part in parts]
    whole.append(
      np.concatenate(
        [
          part / (size if size else 1.0)
          for part, size in zip(parts, sizes, strict=True)
        ],
        axis=1,
      )
      / np.sqrt(len(layers))
    )
  teacher_BTD = np.stack(whole).astype(np.float32)
  return losses.iusp_loss(student_BTD, teacher_BTD, mask_BT)


def layers_of(seed, sizes=(6, 3, 2)):
  return [draw(seed + k, 3, 5, size) for k, size in enumerate(sizes)]


cluster_loss = jax.jit(objectives.cluster_iusp_loss)
ALL = np.ones((3, 5), np.float32)


@pytest.mark.parametrize('masked', [False, True])
def test_a_cluster_is_the_scaled_concatenation_of_its_layers(masked):
  student_BTD, layers, mask_BT = draw(9, 3, 5, 4), layers_of(0), np.array(ALL)
  layers[1][0] = 0.0  # Silent.
  if masked:
    mask_BT[0, 3:] = 0
    student_BTD[0, 3:] = np.nan
  close(
    cluster_loss(student_BTD, layers, mask_BT),
    cluster_iusp(student_BTD, layers, mask_BT),
  )


@few
@given(seed=SEEDS, scale=SCALES)
def test_laws_of_cluster_iusp(seed, scale):
  student_BTD, teacher_BTD = pair(seed)
  np.testing.assert_allclose(
    cluster_loss(student_BTD, [teacher_BTD], ALL),
    losses.iusp_loss(student_BTD, teacher_BTD, ALL),
    1e-5,
    1e-9,
  )
  layers = layers_of(seed)
  moved = [rotated(layers[0], seed, scale), *layers[1:]]
  np.testing.assert_allclose(
    cluster_loss(student_BTD, moved, ALL),
    cluster_loss(student_BTD, layers, ALL),
    1e-4,
    1e-7,
  )


def test_finer_layers_are_averaged_in_time():
  student_BTD, layers = draw(9, 3, 5, 4), layers_of(0, (6, 3))
  fine = np.repeat(layers[1], 2, axis=1)
  fine[:, ::2] += 1.0
  fine[:, 1::2] -= 1.0
  close(
    objectives.cluster_iusp_loss(student_BTD, [layers[0], fine]),
    objectives.cluster_iusp_loss(student_BTD, layers),
  )
  # A student that is coarser than both.
  coarse = draw(8, 3, 2, 4)
  single = objectives.cluster_iusp_loss(coarse, layers[:1])
  close(single, losses.iusp_loss(coarse, layers[0]))


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_silence_of_all_has_a_finite_gradient(dtype):
  student_BTD, layers = jnp.zeros((3, 5, 4), dtype), layers_of(0)
  for teacher in (layers, [0 * layer for layer in layers]):
    value, gradient = jax.jit(jax.value_and_grad(objectives.cluster_iusp_loss))(
      student_BTD, teacher, ALL
    )
    assert np.isfinite(value)
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def test_alignment_is_linear_cka():
  layers, mask_T = layers_of(0, (6, 3, 2)), np.ones(5, np.float32)
  layers[2][:] = 1.0  # A layer that does not change.
  grams = jnp.stack([similarity.gram(layer[0]) for layer in layers])
  found = clusters.alignment(grams, mask_T)
  x, y = (layer[0].astype(np.float64) for layer in layers[:2])
  x, y = x - x.mean(0), y - y.mean(0)
  cka = np.sum((x.T @ y) ** 2)
  cka /= np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  close(found, [[1, cka, 0], [cka, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize('seed', range(4))
def test_average_linkage_is_that_of_scipy(seed):
  half = draw(seed, 6, 6)
  alike = 1 / (1 + (half - half.T) ** 2)
  apart = distance.squareform(1 - alike, checks=False)
  expected = hierarchy.fcluster(
    hierarchy.linkage(apart, 'average'), 2, 'maxclust'
  )
  found = clusters.average_linkage(alike, 2)
  assert len(found) == 2
  for members in found:
    assert len(set(expected[members])) == 1
  assert 5 in found[1]  # The last layer is of the last cluster.


def test_few_layers_make_few_clusters():
  np.testing.assert_array_equal(clusters.assignment(np.eye(1)), [[1]])
  np.testing.assert_array_equal(clusters.assignment(np.eye(2)), np.eye(2))
  three = np.array([[1, 0.9, 0.1], [0.9, 1, 0.2], [0.1, 0.2, 1]])
  np.testing.assert_allclose(
    clusters.assignment(three), [[0.5, 0.5, 0], [0, 0, 1]]
  )


def test_a_students_layers_are_spread_in_depth():
  assert clusters.student_layers(['1', '2', '3', 'frames'], 2) == [
    '2',
    'frames',
  ]
  assert clusters.student_layers(['1', 'frames'], 2) == ['1', 'frames']
  assert clusters.student_layers(['1', '2', 'frames'], 2) == ['2', 'frames']
  assert clusters.student_layers(['1', 'frames'], 1) == ['frames']
