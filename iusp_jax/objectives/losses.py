"""What the student is trained on: tags, soft tags, and similarities.

Every objective is a mean over clips, and is written twice: `*_per_clip` gives
one value a clip, from which the train step takes the mean over the global
batch, wherever its clips are; `*_loss` is that mean for a batch in one place.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.objectives import similarity


def tagging_per_tag(
  logits_BC: jax.Array, tags_BC: jax.Array, mask_BC: jax.Array
) -> jax.Array:
  """Binary cross-entropy of every tag, `[B, C]`, 0 where masked."""
  _same_shape(logits=logits_BC, tags=tags_BC, mask=mask_BC)
  # An unknown tag may hold any number. It is replaced before the entropy:
  # afterwards would do for the value, but the gradient would be 0 · NaN.
  known_BC = mask_BC > 0
  entropy_BC = optax.sigmoid_binary_cross_entropy(
    jnp.where(known_BC, logits_BC.astype(jnp.float32), 0.0),
    jnp.where(known_BC, tags_BC, 0).astype(jnp.float32),
  )
  return jnp.where(known_BC, entropy_BC * mask_BC, 0.0)


def tagging_loss(
  logits_BC: jax.Array, tags_BC: jax.Array, mask_BC: jax.Array | None = None
) -> jax.Array:
  """Masked binary cross-entropy, the mean over the known tags.

  Args:
    logits_BC: the student's, `[B, C]`.
    tags_BC: targets in [0, 1], `[B, C]`.
    mask_BC: 1 where the tag is known, 0 where not, `[B, C]`.

  Returns:
    A float32 scalar; 0 if no tag is known.

  Raises:
    ValueError: if the shapes differ.
  """
  if mask_BC is None:
    mask_BC = jnp.ones_like(logits_BC, jnp.float32)
  entropy_BC = tagging_per_tag(logits_BC, tags_BC, mask_BC)
  return jnp.sum(entropy_BC) / jnp.maximum(jnp.sum(mask_BC), 1.0)


def kd_per_clip(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float,
  mask_C: jax.Array | np.ndarray | None = None,
) -> jax.Array:
  """See `kd_loss`; one value a clip, `[B]`.

  Args:
    student_logits_BC: `[B, C]`.
    teacher_logits_BC: `[B, C]`; finite also where the mask is 0.
    temperature: τ > 0.
    mask_C: 1 for the tags that the teacher has, over which the mean is, `[C]`;
      all by default.
  """
  _same_shape(student=student_logits_BC, teacher=teacher_logits_BC)
  # Within jit it may be a traced number, of which nothing is known.
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f'temperature is {temperature}: expected more than 0')
  student_BC = student_logits_BC.astype(jnp.float32) / temperature
  teacher_BC = teacher_logits_BC.astype(jnp.float32) / temperature
  # With 1 − σ(r) as σ(−r): float32 cannot tell σ(17) from 1.
  entropy_BC = jax.nn.sigmoid(teacher_BC) * jax.nn.softplus(-student_BC)
  entropy_BC += jax.nn.sigmoid(-teacher_BC) * jax.nn.softplus(student_BC)
  if mask_C is None:
    return temperature**2 * jnp.mean(entropy_BC, axis=1)
  total_B = jnp.sum(entropy_BC * mask_C[None], axis=1)
  return temperature**2 * total_B / jnp.maximum(jnp.sum(mask_C), 1.0)


def kd_loss(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """Logit distillation for several tags a clip: BCE with the teacher's tags.

  `τ² · mean BCE(σ(s/τ), σ(r/τ))`. The Bernoulli form and the factor are our
  choice; the idea is Hinton et al., arXiv 1503.02531.

  Args:
    student_logits_BC: `[B, C]`.
    teacher_logits_BC: `[B, C]`.
    temperature: τ > 0.

  Returns:
    A float32 scalar; its minimum, at equal logits, is τ² times the teacher's
    mean entropy at that temperature.

  Raises:
    ValueError: if the shapes differ or the temperature is not positive.
  """
  return jnp.mean(
    kd_per_clip(student_logits_BC, teacher_logits_BC, temperature)
  )


def sp_per_clip(
  student_BTD: jax.Array,
  teacher_gram_BB: jax.Array,
  axis_name: str | None = None,
) -> jax.Array:
  """See `sp_loss`; one value a clip, `[B]`, whose mean is the loss.

  Args:
    student_BTD: frames of this device's clips, `[b, T, D]`.
    teacher_gram_BB: the teacher's unnormalised similarities of this device's
      clips to all clips of the global batch, `[b, B]`.
    axis_name: the pmapped axis that the batch is spread over, if it is.
  """
  own = similarity.flatten_clips(student_BTD)
  everyone = own
  if axis_name is not None:
    everyone = jax.lax.all_gather(own, axis_name, tiled=True)
  num_clips = everyone.shape[0]
  if num_clips == 1:  # A single similarity is 1, whatever the model.
    return jnp.zeros(1)
  student_BB = similarity.normalise_rows(
    similarity.gram(own, everyone), axis_name=axis_name
  )
  teacher_BB = similarity.normalise_rows(teacher_gram_BB, axis_name=axis_name)
  return jnp.sum(jnp.square(teacher_BB - student_BB), axis=1) / num_clips


def sp_loss(student_BTD: jax.Array, teacher_BTD: jax.Array) -> jax.Array:
  """Similarity-preserving distillation, `‖G_R − G_S‖² / B²`.

  Args:
    student_BTD: `[B, T_S, D_S]`.
    teacher_BTD: `[B, T_R, D_R]`; other T and D are fine, nothing is aligned.

  Returns:
    A float32 scalar; 0 for one clip.

  Raises:
    ValueError: if the frames are not `[B, T, D]` of as many clips.

  References:
    Tung & Mori, ICCV 2019, arXiv 1907.09682, Eq. 4 for one layer pair.
  """
  _same_batch(student_BTD, teacher_BTD)
  teacher_BB = similarity.gram(similarity.flatten_clips(teacher_BTD))
  return jnp.mean(sp_per_clip(student_BTD, teacher_BB))


def iusp_per_clip(
  student_BTD: jax.Array,
  teacher_gram_BTT: jax.Array,
  mask_BT: jax.Array | None = None,
  centred: bool = False,
) -> jax.Array:
  """See `iusp_loss`; from the teacher's unnormalised `[B, T_R, T_R]`."""
  num_frames = min(student_BTD.shape[1], teacher_gram_BTT.shape[1])
  expected = (student_BTD.shape[0], num_frames)
  if mask_BT is not None and mask_BT.shape != expected:
    raise ValueError(
      f'the frame mask has shape {mask_BT.shape}: expected {expected}, the '
      'clips and the frames of the coarser model'
    )
  if mask_BT is None:
    mask_BT = jnp.ones(expected)
  of_clip = functools.partial(_iusp_of_clip, centred)
  return jax.vmap(of_clip)(student_BTD, teacher_gram_BTT, mask_BT)


def _iusp_of_clip(centred, student_TD, teacher_gram_TT, mask_T):
  num_frames = min(student_TD.shape[0], teacher_gram_TT.shape[0])
  if num_frames == 1:  # A single similarity is 1, whatever the model.
    return jnp.zeros(())
  student_TD = similarity.align_frames(student_TD, num_frames)
  teacher_TT = similarity.align_gram(teacher_gram_TT, num_frames)
  mask_T = mask_T.astype(jnp.float32)
  pair_TT = mask_T[:, None] * mask_T[None]
  # `where` and not a product: padding may hold any number, NaN included.
  teacher_TT = jnp.where(pair_TT > 0, teacher_TT, 0.0)
  student_TD = jnp.where(mask_T[:, None] > 0, student_TD, 0.0)
  student_TT = similarity.gram(student_TD)
  normalise = similarity.normalise_rows
  if centred:
    normalise = similarity.centred_similarity
  difference_TT = normalise(teacher_TT, mask_T) - normalise(student_TT, mask_T)
  mean = jnp.sum(jnp.square(difference_TT)) / jnp.maximum(jnp.sum(pair_TT), 1)
  return jnp.where(jnp.sum(mask_T) > 1, mean, 0.0)  # As for T = 1 above.


def iusp_loss(
  student_BTD: jax.Array,
  teacher_BTD: jax.Array,
  mask_BT: jax.Array | None = None,
  centred: bool = False,
) -> jax.Array:
  """Intra-utterance similarity preserving distillation.

  `mean_i ‖G_R[i] − G_S[i]‖² / T²`, with G[i] the similarities between the
  frames of clip i. Where the models differ in frame rate, the finer frames
  are averaged in time to the coarser (our choice).

  Args:
    student_BTD: `[B, T_S, D_S]`, in time order.
    teacher_BTD: `[B, T_R, D_R]`.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.
    centred: whether each clip's mean frame is taken off beforehand (our
      variant, see `similarity.centred_similarity`; not the paper's).

  Returns:
    A float32 scalar; a clip of one frame, padding aside, counts as 0.

  Raises:
    ValueError: if the frames are not `[B, T, D]` of as many clips, or the
      mask is not of the coarser model's frames.

  References:
    Chang et al., Interspeech 2020, arXiv 2009.01759; the division by T² is
    the transposition of Tung & Mori's B² (our choice).
  """
  _same_batch(student_BTD, teacher_BTD)
  teacher_BTT = jax.vmap(similarity.gram)(teacher_BTD)
  return jnp.mean(iusp_per_clip(student_BTD, teacher_BTT, mask_BT, centred))


def attention_transfer_per_clip(
  student_BTD: jax.Array,
  teacher_gram_BTT: jax.Array,
  mask_BT: jax.Array | None = None,
) -> jax.Array:
  """Attention transfer over time: how a clip's energy is spread over frames.

  `mean_t (a_S / ‖a_S‖ − a_R / ‖a_R‖)²` with `a_t` the sum of the squares of
  frame t. The paper's maps are over the two axes of an image; here they are
  over time alone (our adaptation).

  Args:
    student_BTD: `[B, T_S, D]`, in time order.
    teacher_gram_BTT: the teacher's unnormalised similarities of frames, of any
      scale, `[B, T_R, T_R]`; their diagonal is its energy.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.

  Returns:
    float32 `[B]`; 0 where both models spread it alike.

  References:
    Zagoruyko & Komodakis, ICLR 2017, arXiv 1612.03928, Eq. 2.
  """
  num_frames = min(student_BTD.shape[1], teacher_gram_BTT.shape[1])
  if mask_BT is None:
    mask_BT = jnp.ones((len(student_BTD), num_frames))

  def of_clip(student_TD, teacher_TT, mask_T):
    student_TD = similarity.align_frames(student_TD, num_frames)
    energy_T = jnp.sum(jnp.square(student_TD.astype(jnp.float32)), axis=1)
    teacher_T = jnp.diagonal(similarity.align_gram(teacher_TT, num_frames))
    # `where` and not a product: padding may hold any number, NaN included.
    energy_T, teacher_T = (
      _unit(jnp.where(mask_T > 0, x, 0.0)) for x in (energy_T, teacher_T)
    )
    count = jnp.maximum(jnp.sum(mask_T), 1.0)
    return jnp.sum(jnp.square(energy_T - teacher_T)) / count

  return jax.vmap(of_clip)(student_BTD, teacher_gram_BTT, mask_BT)


def _unit(x_T: jax.Array) -> jax.Array:
  """A vector of length 1; zeros stay zeros, with a finite gradient."""
  square = jnp.sum(jnp.square(x_T))
  return x_T * jax.lax.rsqrt(jnp.maximum(square, 1e-12))


def _same_batch(student_BTD, teacher_BTD):
  for name, frames in (('student', student_BTD), ('teacher', teacher_BTD)):
    if frames.ndim != 3:
      raise ValueError(
        f'{name} frames have shape {frames.shape}: expected [B, T, D]'
      )
  if student_BTD.shape[0] != teacher_BTD.shape[0]:
    raise ValueError(
      f'student frames of {student_BTD.shape[0]} clips, teacher frames of '
      f'{teacher_BTD.shape[0]}: expected the same clips'
    )


def _same_shape(**arrays):
  shapes = {name: array.shape for name, array in arrays.items()}
  if len(set(shapes.values())) > 1:
    raise ValueError(f'shapes differ: {shapes}; expected one [B, C] for all')
