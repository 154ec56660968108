"""Similarity matrices: between the frames of a clip, between clips of a batch.

Both are rows of a Gram matrix, each row divided by its own length (Tung &
Mori, ICCV 2019, arXiv 1907.09682, Eq. 2 and 3: the rows of the *product* are
normalised; normalising the features before the product is another loss).
Everything after the Gram matrix depends on it alone, so that a stored,
unnormalised Gram matrix of a teacher serves as well as its frames.

Computed in float32 with float32 accumulation, whatever the input.
"""

import jax
import jax.numpy as jnp
import numpy as np

# A row shorter than this part of the root-mean-square row is divided by that
# floor instead of its own length. An all-zero frame (silence, ReLU, padding)
# so keeps a bounded gradient; a constant floor such as 1e-12 gives 1e10.
# Relative, so that a similarity does not depend on the scale of the frames.
ROW_FLOOR = 0.1

# A clip whose frames differ by less than a hundredth of their length is steady:
# in squares, as Gram matrices are.
STEADY = 1e-4


def gram(rows_ND: jax.Array, columns_MD: jax.Array | None = None) -> jax.Array:
  """Inner products of every row with every column.

  Args:
    rows_ND: vectors, `[N, D]`.
    columns_MD: vectors, `[M, D]`; the rows themselves by default.

  Returns:
    float32 `[N, M]`, not normalised.
  """
  rows_ND = rows_ND.astype(jnp.float32)
  if columns_MD is None:
    columns_MD = rows_ND
  return jnp.einsum(
    'nd,md->nm',
    rows_ND,
    columns_MD.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )


def normalise_rows(
  gram_NM: jax.Array,
  mask_N: jax.Array | None = None,
  axis_name: str | None = None,
  least: jax.Array | float = 0.0,
) -> jax.Array:
  """Divides every row by its Euclidean length, or by the floor if longer.

  Args:
    gram_NM: unnormalised similarities, `[N, M]`.
    mask_N: 1 for the rows that count in the floor, `[N]`; all by default.
    axis_name: the pmapped axis over which the rows of one matrix are spread,
      if they are.
    least: a root-mean-square row length; a matrix whose own is shorter has
      rows shorter than 1.

  Returns:
    float32 `[N, M]`. Rows at or above `ROW_FLOOR` times the root-mean-square
    row length have length 1; a matrix of zeros stays zeros.
  """
  gram_NM = gram_NM.astype(jnp.float32)
  # The result does not depend on the scale, so neither does its gradient:
  # taking the scale out beforehand keeps the squares within float32.
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(gram_NM)))
  if axis_name is not None:
    scale = jax.lax.pmax(scale, axis_name)
  scale = jnp.maximum(scale, jax.lax.stop_gradient(least))
  scale = jnp.where(scale > 0, scale, 1.0)
  gram_NM = gram_NM / scale
  square_N = jnp.sum(jnp.square(gram_NM), axis=1)
  weight_N = jnp.ones_like(square_N) if mask_N is None else mask_N
  total, count = jnp.sum(square_N * weight_N), jnp.sum(weight_N)
  if axis_name is not None:
    total, count = jax.lax.psum((total, count), axis_name)
  mean_square = total / jnp.maximum(count, 1.0)
  mean_square = jnp.maximum(mean_square, jnp.square(least / scale))
  floor = ROW_FLOOR**2 * jnp.where(mean_square > 0, mean_square, 1.0)
  return gram_NM * jax.lax.rsqrt(jnp.maximum(square_N, floor))[:, None]


def frame_similarity(
  frames_TD: jax.Array, mask_T: jax.Array | None = None
) -> jax.Array:
  """How similar every frame of one clip is to every other (IUSP).

  A function of a single clip: `jax.vmap` it over a batch.

  Args:
    frames_TD: frame embeddings in time order, `[T, D]`.
    mask_T: 1 for frames of the recording, 0 for padding, `[T]`.

  Returns:
    float32 `[T, T]`, rows of length 1 (see `normalise_rows`), 0 where either
    frame is padding. Unchanged by a rotation of D and by a positive scale.

  Raises:
    ValueError: if the frames are not those of one clip.

  References:
    Chang et al., Interspeech 2020, arXiv 2009.01759.
  """
  if frames_TD.ndim != 2:
    raise ValueError(
      f'frames have shape {frames_TD.shape}: expected [T, D] of one clip; '
      'use jax.vmap for a batch'
    )
  if mask_T is not None:
    # `where` and not a product: padding may hold any number, NaN included.
    frames_TD = jnp.where(mask_T[:, None] > 0, frames_TD, 0)
  return normalise_rows(gram(frames_TD), mask_T)


def centre_gram(gram_TT: jax.Array, mask_T: jax.Array) -> jax.Array:
  """The Gram matrix of the frames less their mean, from that of the frames.

  Args:
    gram_TT: of a clip's frames, float32 `[T, T]`; 0 where either is padding.
    mask_T: 1 for frames of the recording, 0 for padding, `[T]`.

  Returns:
    float32 `[T, T]`; 0 where either frame is padding.
  """
  count = jnp.maximum(jnp.sum(mask_T), 1.0)
  mean_T = jnp.sum(gram_TT, axis=1) / count  # Of each frame with all frames.
  mean = jnp.sum(mean_T) / count
  centred_TT = gram_TT - mean_T[:, None] - mean_T[None] + mean
  return mask_T[:, None] * mask_T[None] * centred_TT


def centred_similarity(gram_TT: jax.Array, mask_T: jax.Array) -> jax.Array:
  """How alike frames are in what they do not share with all of their clip.

  What all frames share, a steady background or the mean of a ReLU's positive
  outputs, makes all pairs alike; what is left says how the clip changes.

  Args:
    gram_TT: of a clip's frames, float32 `[T, T]`; 0 where either is padding.
    mask_T: 1 for frames of the recording, 0 for padding, `[T]`.

  Returns:
    float32 `[T, T]`: rows of the centred Gram matrix, normalised as those of
    `frame_similarity`. Of a clip that hardly changes (`STEADY`) they are
    shorter than 1: else rounding would be blown up to a similarity.
  """
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(gram_TT)))
  scale = jnp.where(scale > 0, scale, 1.0)  # Squares stay within float32.
  gram_TT = gram_TT / scale
  count = jnp.maximum(jnp.sum(mask_T), 1.0)
  row = jnp.sqrt(jnp.sum(jnp.square(gram_TT)) / count)
  return normalise_rows(
    centre_gram(gram_TT, mask_T),
    mask_T,
    least=jax.lax.stop_gradient(STEADY * row),
  )


def batch_similarity(frames_BTD: jax.Array) -> jax.Array:
  """How similar every clip of a batch is to every other (SP).

  Args:
    frames_BTD: frame embeddings, `[B, T, D]`; a clip is its `T·D` numbers.

  Returns:
    float32 `[B, B]`, rows of length 1 (see `normalise_rows`).

  Raises:
    ValueError: if the frames are not those of a batch.

  References:
    Tung & Mori, ICCV 2019, arXiv 1907.09682, Eq. 2.
  """
  if frames_BTD.ndim != 3:
    raise ValueError(
      f'frames have shape {frames_BTD.shape}: expected [B, T, D]'
    )
  return normalise_rows(gram(flatten_clips(frames_BTD)))


def flatten_clips(frames_BTD: jax.Array) -> jax.Array:
  """Each clip as one vector: `[B, T, D]` to `[B, T·D]`."""
  return frames_BTD.reshape(frames_BTD.shape[0], -1)


def pooling_matrix(num_in: int, num_out: int) -> np.ndarray:
  """Average pooling over time from `num_in` to `num_out` equal spans.

  Returns:
    float32 `[num_out, num_in]`; row t holds the share of each input frame in
    the t-th of `num_out` equal parts of the clip, and sums to 1. Also right
    where the numbers do not divide each other.

  Raises:
    ValueError: if `num_out` exceeds `num_in` (that would invent frames).
  """
  if not 1 <= num_out <= num_in:
    raise ValueError(
      f'cannot pool {num_in} frames into {num_out}: expected 1 to {num_in}'
    )
  edges = np.linspace(0, num_in, num_out + 1)
  starts, ends = edges[:-1, None], edges[1:, None]
  frames = np.arange(num_in)[None]
  overlap = np.minimum(ends, frames + 1) - np.maximum(starts, frames)
  overlap = np.maximum(overlap, 0)
  return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)


def align_frames(frames_TD: jax.Array, num_frames: int) -> jax.Array:
  """Average-pools `[T, D]` frames in time to `[num_frames, D]`."""
  if frames_TD.shape[0] == num_frames:
    return frames_TD
  return pool_frames(frames_TD, pooling_matrix(frames_TD.shape[0], num_frames))


def finer_mask(mask_BT: jax.Array, num_frames: int) -> jax.Array:
  """The mask of `num_frames` finer frames: 1 for all that a 1 is pooled of."""
  if mask_BT.shape[1] == num_frames:
    return mask_BT
  share = pooling_matrix(num_frames, mask_BT.shape[1])
  touched_BT = jnp.matmul((mask_BT > 0).astype(jnp.float32), share > 0)
  return (touched_BT > 0).astype(jnp.float32)


def align_gram(gram_TT: jax.Array, num_frames: int) -> jax.Array:
  """The Gram matrix of the average-pooled frames, from that of the frames."""
  if gram_TT.shape[0] == num_frames:
    return gram_TT
  return pool_gram(gram_TT, pooling_matrix(gram_TT.shape[0], num_frames))


def pool_frames(frames_TD: jax.Array, pool_UT: np.ndarray) -> jax.Array:
  """Sums of `[T, D]` frames with the weights of each row: `[U, D]`."""
  return jnp.matmul(
    pool_UT, frames_TD.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
  )


def pool_gram(gram_TT: jax.Array, pool_UT: np.ndarray) -> jax.Array:
  """The Gram matrix `[U, U]` of `pool_frames`, from that of the frames."""
  product = jnp.matmul(pool_UT, gram_TT, precision=jax.lax.Precision.HIGHEST)
  return jnp.matmul(product, pool_UT.T, precision=jax.lax.Precision.HIGHEST)


def linear_cka(gram_TT: np.ndarray, other_TT: np.ndarray) -> float:
  """How alike two sets of frames change over a clip, from 0 to 1.

  Args:
    gram_TT: inner products of the frames of one model.
    other_TT: of another model's frames at the same times.

  Returns:
    The cosine of the two centred Gram matrices; 0 where one does not change.

  References:
    Kornblith et al., ICML 2019, arXiv 1905.00414, Sec. 3.
  """
  centred = [
    (gram - gram.mean(0) - gram.mean(1, keepdims=True) + gram.mean()).ravel()
    for gram in (np.asarray(x, np.float64) for x in (gram_TT, other_TT))
  ]
  lengths = [np.linalg.norm(x) for x in centred]
  if not all(lengths):
    return 0.0
  return float(centred[0] @ centred[1] / (lengths[0] * lengths[1]))
