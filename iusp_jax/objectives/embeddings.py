"""Distillation of embeddings, through a linear map of the student's.

The map is a parameter of the term and no part of the student. Its target is a
few principal axes of the teacher's embeddings, so that it is as wide for every
teacher. As in `losses`, `*_per_clip` gives one value a clip.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.objectives import similarity

# Frames shorter than this are divided by it instead of by their length, so that
# their gradient is bounded; one of zeros has none.
LEAST_LENGTH = 1e-4


def mean_frame(frames_BTD: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """The mean over the frames of the recording, `[B, D]`; 0 for none."""
  frames_BTD = frames_BTD.astype(jnp.float32)
  kept_BTD = jnp.where(mask_BT[..., None] > 0, frames_BTD, 0.0)
  count_B = jnp.maximum(jnp.sum(mask_BT, axis=1), 1.0)
  return jnp.sum(kept_BTD, axis=1) / count_B[:, None]


def project(x: jax.Array, kernel_DK: jax.Array) -> jax.Array:
  """A linear map of the last axis, in float32."""
  return jnp.matmul(
    x.astype(jnp.float32), kernel_DK, precision=jax.lax.Precision.HIGHEST
  )


# Axes of the teacher ---------------------------------------------------------


def second_moments(rows_ND: jax.Array, weight_N: jax.Array) -> jax.Array:
  """`Σ w x xᵀ` of the rows with a 1 before each, `[D + 1, D + 1]`."""
  rows_ND = jnp.pad(rows_ND, ((0, 0), (1, 0)), constant_values=1.0)
  return similarity.gram((rows_ND * weight_N[:, None]).T, rows_ND.T)


def whitening(moments: np.ndarray, num_clips: int, most: int) -> np.ndarray:
  """The map from `[1, x]` to principal axes with mean 0 and variance 1.

  Args:
    moments: the mean of `second_moments` over clips, `[D + 1, D + 1]`.
    num_clips: N.
    most: axes at most; there are no more than D, nor than N − 1.

  Returns:
    float32 `[D + 1, K]`, the axis of the largest variance first. An axis that
    has less than a millionth of that variance is not stretched any further.
  """
  mean_D = moments[0, 1:]
  covariance = moments[1:, 1:] - np.outer(mean_D, mean_D)
  covariance = covariance * (num_clips / max(1, num_clips - 1))
  num_axes = max(1, min(most, len(mean_D), num_clips - 1))
  values, axes = _largest(covariance, num_axes)
  least = max(1e-6 * values[0], 1e-12)
  map_DK = axes / np.sqrt(np.maximum(values, least))
  return np.concatenate([-(mean_D @ map_DK)[None], map_DK]).astype(np.float32)


def axes_of_moments(
  moments: np.ndarray, num_clips: int, most: int
) -> np.ndarray:
  """The axes with most of `mean x xᵀ`, not centred: float32 `[D, K]`.

  Args:
    moments: the mean of `second_moments`, `[D + 1, D + 1]`.
    num_clips: not looked at.
    most: axes at most.
  """
  del num_clips
  found = _largest(moments[1:, 1:], min(most, len(moments) - 1))[1]
  return found.astype(np.float32)


def _largest(symmetric: np.ndarray, count: int):
  """The largest eigenvalues, and their vectors `[D, count]`.

  A vector's sign is that of its largest number: it is the same on any machine.
  """
  values, vectors = np.linalg.eigh(np.asarray(symmetric, np.float64))
  values, vectors = values[::-1][:count], vectors[:, ::-1][:, :count]
  places = np.abs(vectors).argmax(axis=0)
  return values, vectors * np.sign(vectors[places, np.arange(count)])


# Of clips --------------------------------------------------------------------


def vic_per_clip(
  student_BD: jax.Array,
  teacher_BD: jax.Array,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `vic_parts`; one value a clip, `[B]`, of each part.

  Args:
    student_BD: of this device's clips.
    teacher_BD: of this device's clips.
    axis_name: the mapped axis that the batch is spread over, if it is.
  """
  if student_BD.shape != teacher_BD.shape:
    raise ValueError(
      f'embeddings have shapes {student_BD.shape} and {teacher_BD.shape}: '
      'expected one, [B, D]'
    )
  student_BD = student_BD.astype(jnp.float32)
  distance_BD = student_BD - teacher_BD.astype(jnp.float32)
  invariance_B = jnp.sum(jnp.square(distance_BD), axis=1)
  everyone = student_BD
  if axis_name is not None:
    everyone = jax.lax.all_gather(student_BD, axis_name, tiled=True)
  num_clips, num_axes = everyone.shape
  if num_clips == 1:  # One clip has no variance.
    return invariance_B, jnp.zeros(1), jnp.zeros(1)
  everyone = everyone - jnp.mean(everyone, axis=0, keepdims=True)
  covariance_DD = similarity.gram(everyone.T) / (num_clips - 1)
  deviation_D = jnp.sqrt(jnp.diagonal(covariance_DD) + 1e-4)
  variance = jnp.mean(jnp.maximum(0.0, 1.0 - deviation_D))
  others_DD = covariance_DD * (1.0 - jnp.eye(num_axes))
  covariance = jnp.sum(jnp.square(others_DD)) / num_axes
  size = len(student_BD)
  return (
    invariance_B,
    jnp.broadcast_to(variance, size),
    jnp.broadcast_to(covariance, size),
  )


def vic_parts(
  student_BD: jax.Array, teacher_BD: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Invariance, variance and covariance of embeddings of clips.

    invariance  `mean_i ‖z_i − y_i‖²`, the squares summed over the axes
    variance    `mean_d max(0, 1 − √(Var z_d + 1e-4))`
    covariance  `Σ_{d≠e} Cov(z_d, z_e)² / D`

  with z of the student, y of the teacher, and moments over the clips of the
  batch, divided by B − 1.

  Args:
    student_BD: of the global batch, mapped to the teacher's axes, `[B, D]`.
    teacher_BD: whitened, `[B, D]`.

  Returns:
    Float32 scalars; the last two are 0 for one clip.

  References:
    Bardes et al., ICLR 2022, arXiv 2105.04906 (VICReg); for distillation after
    the abstract of VIC-KD, arXiv 2309.12914. Whitened targets are ours: without
    them the variance part would fight the invariance part.
  """
  parts = vic_per_clip(student_BD, teacher_BD)
  invariance, variance, covariance = (jnp.mean(part) for part in parts)
  return invariance, variance, covariance


# Of frames -------------------------------------------------------------------


def _directions(rows: jax.Array) -> jax.Array:
  """Vectors of length 1 along the last axis; zeros stay zeros."""
  rows = rows.astype(jnp.float32)
  # Lengths of what is very large or small, within float32.
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), -1, keepdims=True))
  rows = rows / jnp.maximum(scale, LEAST_LENGTH)
  square = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
  # Below 1 only where the least length has been divided by.
  return jnp.where(scale > 0, rows * jax.lax.rsqrt(jnp.maximum(square, 1)), 0)


def span_alignment_per_clip(
  projected_BTD: jax.Array,
  teacher_BTD: jax.Array,
  reach: int = 1,
  weights_BT: jax.Array | None = None,
) -> jax.Array:
  """See `span_alignment_loss`; one value a clip, `[B]`."""
  student_BTD = projected_BTD
  num_frames = min(student_BTD.shape[1], teacher_BTD.shape[1])
  if weights_BT is None:
    weights_BT = jnp.ones((len(student_BTD), num_frames))
  if weights_BT.shape != (len(student_BTD), num_frames):
    raise ValueError(
      f'the weights have shape {weights_BT.shape}: expected '
      f'{(len(student_BTD), num_frames)}, the clips and the frames of the '
      'coarser model'
    )

  def cleaned(x_BTD):  # Padding may hold any number, NaN included.
    there_BT = similarity.finer_mask(weights_BT, x_BTD.shape[1]) > 0
    return jnp.where(there_BT[..., None], x_BTD, 0)

  of_clip = jax.vmap(functools.partial(_span_alignment_of_clip, reach))
  return of_clip(cleaned(student_BTD), cleaned(teacher_BTD), weights_BT)


def _span_alignment_of_clip(reach, student_TD, teacher_TD, weight_T):
  num_frames = len(weight_T)
  there_T = weight_T > 0
  student_TD, teacher_TD = (
    _directions(similarity.align_frames(x_TD, num_frames))
    for x_TD in (student_TD, teacher_TD)
  )
  cosine_TT = similarity.gram(teacher_TD, student_TD)
  times = np.arange(num_frames)
  near_TT = np.abs(times[:, None] - times[None]) <= reach
  near_TT = jnp.asarray(near_TT) & there_T[None]
  best_T = jnp.max(jnp.where(near_TT, cosine_TT, -1.0), axis=1)
  total = jnp.sum(jnp.where(there_T, weight_T * (1.0 - best_T), 0.0))
  return total / jnp.maximum(jnp.sum(weight_T), 1e-12)


def span_alignment_loss(
  projected_BTD: jax.Array,
  teacher_BTD: jax.Array,
  reach: int = 1,
  weights_BT: jax.Array | None = None,
) -> jax.Array:
  """The local part of span alignment: each frame with its like nearby.

  `Σ_t w_t (1 − max_{|u − t| ≤ k} cos(P x_u, y_t))`, with w of sum 1 over the
  frames of a clip; the mean over clips.

  Args:
    projected_BTD: the student's frames mapped to the teacher's axes,
      `[B, T_S, D]`.
    teacher_BTD: `[B, T_R, D]`. The frames of the finer model are averaged in
      time to the coarser.
    reach: k, in frames.
    weights_BT: w, of any positive scale; 0 marks padding, `[B, min(T)]`. All
      equal by default.

  Returns:
    A float32 scalar; 0 where P x and y are parallel. Unchanged by positive
    scales of single frames.

  References:
    After the abstract of Ni et al., arXiv 2303.03600, where a span is a word
    of speech and of text, and priors weight the spans. Only the idea of a
    local and a global alignment is theirs; the formula is ours.
  """
  return jnp.mean(
    span_alignment_per_clip(projected_BTD, teacher_BTD, reach, weights_BT)
  )


def mean_alignment_per_clip(
  projected_BTD: jax.Array,
  teacher_BTD: jax.Array,
  projected_mask_BT: jax.Array,
  teacher_mask_BT: jax.Array,
) -> jax.Array:
  """The global part of span alignment, `1 − cos(P x̄, ȳ)`, of mean frames.

  0 for a clip without a frame; unchanged by a positive scale of a clip.
  """
  student_BD = _directions(mean_frame(projected_BTD, projected_mask_BT))
  teacher_BD = _directions(mean_frame(teacher_BTD, teacher_mask_BT))
  distance_B = 1.0 - jnp.sum(student_BD * teacher_BD, axis=1)
  return jnp.where(jnp.sum(teacher_mask_BT, axis=1) > 0, distance_B, 0.0)
