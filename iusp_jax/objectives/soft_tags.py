"""Distillation of the teacher's soft tags: of clips, of frames, and among tags.

All are sums of `KL(q ‖ p) = q log(q/p) + (1 − q) log((1 − q)/(1 − p))`, the
Bernoulli divergence of the teacher's probability q from the student's p, or of
differences of such probabilities: 0 where both models agree. Probabilities are
kept as the logarithms of p and of 1 − p, since float32 cannot tell σ(17) from
1; with these, all values and gradients are finite for any finite logits.

As in `losses`, `*_per_clip` gives one value a clip and `*_loss` or `*_parts`
their mean over a batch in one place. A clip without a frame counts as 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.objectives import similarity


class SoftTags(NamedTuple):
  """Logarithms of the probabilities that a tag is on, and that it is off."""

  on: jax.Array
  off: jax.Array


def soft_tags(logits: jax.Array, temperature: float = 1.0) -> SoftTags:
  """Of σ(logits / τ), float32, of any shape."""
  scaled = logits.astype(jnp.float32) / temperature
  return SoftTags(jax.nn.log_sigmoid(scaled), jax.nn.log_sigmoid(-scaled))


def _check(
  student: jax.Array, temperature: float = 1.0, **others: jax.Array
) -> None:
  """Raises ValueError unless all have the student's shape, and τ > 0."""
  shapes = {name: x.shape for name, x in others.items()}
  if any(shape != student.shape for shape in shapes.values()):
    raise ValueError(
      f'the student has logits of shape {student.shape}, others have {shapes}: '
      'expected one for all'
    )
  # Within jit it may be a traced number, of which nothing is known.
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f'temperature is {temperature}: expected more than 0')


def divergence(teacher: SoftTags, student: SoftTags) -> jax.Array:
  """`KL(q ‖ p)` of every tag."""
  on, off = jnp.exp(teacher.on), jnp.exp(teacher.off)
  return on * (teacher.on - student.on) + off * (teacher.off - student.off)


# Frames ----------------------------------------------------------------------


def align_soft_tags(tags: SoftTags, num_frames: int) -> SoftTags:
  """Average-pools the probabilities `[B, T, C]` in time to `num_frames`."""
  if tags.on.shape[1] == num_frames:
    return tags
  share_UT = similarity.pooling_matrix(tags.on.shape[1], num_frames)
  return _pool(tags, share_UT)


def _pool(tags: SoftTags, share_UT: Any) -> SoftTags:
  """Averages of probabilities with the shares of each row: `[B, U, C]`."""

  def pool(log_BTC):
    # Over logarithms: the pooled ones are no less exact than those of frames.
    return jax.nn.logsumexp(
      log_BTC[:, None], axis=2, b=jnp.asarray(share_UT)[None, :, :, None]
    )

  return SoftTags(pool(tags.on), pool(tags.off))


def pool_logits(logits_BTC: jax.Array, pool_UT: np.ndarray) -> jax.Array:
  """Logits of averages of the frames' probabilities: `[B, U, C]`, float32.

  Args:
    logits_BTC: of frames.
    pool_UT: rows of shares, see `alignment.pooling_by_time`; one of zeros, for
      which there is no frame, counts as the mean of all.
  """
  empty_U1 = pool_UT.sum(1, keepdims=True) == 0
  share_UT = np.where(empty_U1, 1 / pool_UT.shape[1], pool_UT)
  pooled = _pool(soft_tags(logits_BTC), share_UT)
  return pooled.on - pooled.off


def _of_recording(logits_BTC: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """Logits of frames with 0 in the padding, which may hold any number."""
  there_BT = similarity.finer_mask(mask_BT, logits_BTC.shape[1]) > 0
  return jnp.where(there_BT[..., None], logits_BTC, 0)


def _mask_of_coarser(
  student_BTC: jax.Array, teacher_BTC: jax.Array, mask_BT: jax.Array | None
) -> jax.Array:
  """The mask of the coarser model's frames, checked; all 1 for None."""
  for name, x in (('student', student_BTC), ('teacher', teacher_BTC)):
    if x.ndim != 3:
      raise ValueError(
        f'{name} frame logits have shape {x.shape}: expected [B, T, C]'
      )
  shapes = [(x.shape[0], x.shape[2]) for x in (student_BTC, teacher_BTC)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      f'frame logits of the student have clips and tags {shapes[0]}, of the '
      f'teacher {shapes[1]}: expected the same'
    )
  num_frames = min(student_BTC.shape[1], teacher_BTC.shape[1])
  expected = len(student_BTC), num_frames
  if mask_BT is None:
    return jnp.ones(expected)
  if mask_BT.shape != expected:
    raise ValueError(
      f'the frame mask has shape {mask_BT.shape}: expected {expected}, the '
      'clips and the frames of the coarser model'
    )
  return mask_BT.astype(jnp.float32)


def _mean_over_frames(value_BT: jax.Array, mask_BT: jax.Array) -> jax.Array:
  """Over those of the recording, `[B]`; 0 where there is none."""
  total_B = jnp.sum(jnp.where(mask_BT > 0, value_BT, 0.0), axis=1)
  return total_B / jnp.maximum(jnp.sum(mask_BT, axis=1), 1.0)


def frame_kd_per_clip(
  student_frame_logits_BTC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  temperature: float = 1.0,
  mask_BT: jax.Array | None = None,
  mask_C: jax.Array | None = None,
) -> jax.Array:
  """See `frame_kd_loss`; one value a clip, `[B]`."""
  student_BTC, teacher_BTC = student_frame_logits_BTC, teacher_frame_logits_BTC
  mask_BT = _mask_of_coarser(student_BTC, teacher_BTC, mask_BT)
  _check(student_BTC, temperature)
  student, teacher = (
    align_soft_tags(
      soft_tags(_of_recording(x, mask_BT), temperature), mask_BT.shape[1]
    )
    for x in (student_BTC, teacher_BTC)
  )
  value_BTC = divergence(teacher, student)
  if mask_C is None:
    mask_C = jnp.ones(value_BTC.shape[-1])
  count = jnp.maximum(jnp.sum(mask_C), 1.0)
  value_BT = jnp.sum(value_BTC * mask_C[None, None], axis=2) / count
  return temperature**2 * _mean_over_frames(value_BT, mask_BT)


def frame_kd_loss(
  student_frame_logits_BTC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  temperature: float = 1.0,
  mask_BT: jax.Array | None = None,
  mask_C: jax.Array | None = None,
) -> jax.Array:
  """Distillation of the teacher's soft tags frame by frame.

  `τ² · mean over clips, frames and tags of KL(σ(r_t/τ) ‖ σ(s_t/τ))`. Where the
  models differ in frame rate, the probabilities of the finer one are averaged
  in time to the coarser.

  Args:
    student_frame_logits_BTC: `[B, T_S, C]`.
    teacher_frame_logits_BTC: `[B, T_R, C]`.
    temperature: τ > 0.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.
    mask_C: 1 for the tags that count, `[C]`.

  Returns:
    A float32 scalar; 0 if and only if the probabilities agree.

  References:
    Frame-wise distillation of tags as such is common practice (Schmid et al.
    train sound event detectors by it); the Bernoulli form, the factor τ² and
    the pooling of probabilities are our choice.
  """
  return jnp.mean(
    frame_kd_per_clip(
      student_frame_logits_BTC,
      teacher_frame_logits_BTC,
      temperature,
      mask_BT,
      mask_C,
    )
  )


# Clips -----------------------------------------------------------------------


def _per_tag(student_logits_BC, teacher_logits_BC, temperature) -> jax.Array:
  """`τ² KL(σ(r/τ) ‖ σ(s/τ))` of every tag of clips, `[B, C]`."""
  value_BC = divergence(
    soft_tags(teacher_logits_BC, temperature),
    soft_tags(student_logits_BC, temperature),
  )
  return temperature**2 * value_BC


def kd_per_clip(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """`τ² · mean_c KL(σ(r_c/τ) ‖ σ(s_c/τ))`, `[B]`.

  `losses.kd_per_clip` less the teacher's entropy: the gradient is the same.
  """
  _check(student_logits_BC, temperature, teacher=teacher_logits_BC)
  value_BC = _per_tag(student_logits_BC, teacher_logits_BC, temperature)
  return jnp.mean(value_BC, axis=1)


def emphasised_kd_per_clip(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  tags_BC: jax.Array,
  mask_BC: jax.Array | None = None,
  gamma: float = 2.0,
  temperature: float = 1.0,
) -> jax.Array:
  """See `emphasised_kd_loss`; one value a clip, `[B]`."""
  if mask_BC is None:
    mask_BC = jnp.ones(tags_BC.shape)
  _check(
    student_logits_BC,
    temperature,
    teacher=teacher_logits_BC,
    tags=tags_BC,
    mask=mask_BC,
  )
  # An unknown tag may hold any number.
  absent_BC = jnp.where(mask_BC > 0, 1.0 - tags_BC.astype(jnp.float32), 0.0)
  weight_BC = 1.0 + (gamma - 1.0) * absent_BC
  value_BC = _per_tag(student_logits_BC, teacher_logits_BC, temperature)
  return jnp.mean(weight_BC * value_BC, axis=1)


def emphasised_kd_loss(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  tags_BC: jax.Array,
  mask_BC: jax.Array | None = None,
  gamma: float = 2.0,
  temperature: float = 1.0,
) -> jax.Array:
  """Logit distillation with more weight on the tags that are not there.

  `τ² · mean w_c KL(σ(r_c/τ) ‖ σ(s_c/τ))` with w = 1 for a tag that is labelled
  present, γ for one that is labelled absent, in between for a label in between,
  and 1 where the label is unknown.

  Args:
    student_logits_BC: `[B, C]`.
    teacher_logits_BC: `[B, C]`.
    tags_BC: labels in [0, 1], `[B, C]`.
    mask_BC: 1 where the label is known, `[B, C]`.
    gamma: γ, the emphasis; with 1 the gradient is that of `kd_loss`.
    temperature: τ > 0.

  Returns:
    A float32 scalar; 0 if and only if the probabilities agree.

  References:
    Emphasised non-target distillation, arXiv 2309.14838: γ = 2 and τ = 1 are
    those of its public code, where the non-target classes of a softmax share
    one divergence. Tags have no single target: the reweighting is ours.
  """
  return jnp.mean(
    emphasised_kd_per_clip(
      student_logits_BC,
      teacher_logits_BC,
      tags_BC,
      mask_BC,
      gamma,
      temperature,
    )
  )


def multilevel_kd_per_clip(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 2.0,
  axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """See `multilevel_kd_parts`; one value a clip, `[B]`, of each part.

  Args:
    student_logits_BC: of this device's clips.
    teacher_logits_BC: of this device's clips.
    temperature: τ > 0.
    axis_name: the mapped axis that the batch is spread over, if it is.
  """
  instance_B = kd_per_clip(student_logits_BC, teacher_logits_BC, temperature)
  (num_own, num_tags) = student_logits_BC.shape
  own = [
    jnp.exp(soft_tags(x, temperature).on)
    for x in (student_logits_BC, teacher_logits_BC)
  ]
  everyone = tuple(_everyone(x, axis_name) for x in own)
  num_clips = everyone[0].shape[0]
  of_clips = [similarity.gram(x, y) for x, y in zip(own, everyone, strict=True)]
  batch_B = jnp.mean(jnp.square(of_clips[1] - of_clips[0]), 1) / num_tags**2
  of_tags = [similarity.gram(x.T) for x in everyone]
  of_class = jnp.mean(jnp.square(of_tags[1] - of_tags[0])) / num_clips**2
  return instance_B, batch_B, jnp.broadcast_to(of_class, num_own)


def multilevel_kd_parts(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 2.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Distillation of soft tags at three levels: clip, batch and tag.

  With the probabilities p = σ(s/τ) and q = σ(r/τ), `[B, C]`, and p_i those of
  clip i, p_·c those of tag c:

    instance  `τ² · mean KL(q ‖ p)`
    batch     `mean_ij (⟨q_i, q_j⟩ − ⟨p_i, p_j⟩)² / C²`
    class     `mean_cd (⟨q_·c, q_·d⟩ − ⟨p_·c, p_·d⟩)² / B²`

  The batch part alone does not see which tag is which, the class part alone
  not which clip: neither stands without the instance part.

  Args:
    student_logits_BC: of the global batch, `[B, C]`.
    teacher_logits_BC: of the global batch, `[B, C]`.
    temperature: τ > 0.

  Returns:
    The three parts, float32 scalars; 0 at equal logits.

  References:
    After the abstract of IML-KD, arXiv 2409.09389, without its integrated
    gradients; levels as in Jin et al., CVPR 2023 (multi-level logit
    distillation). The Bernoulli form and the divisions are ours.
  """
  instance_B, batch_B, class_B = multilevel_kd_per_clip(
    student_logits_BC, teacher_logits_BC, temperature
  )
  return jnp.mean(instance_B), jnp.mean(batch_B), jnp.mean(class_B)


def _everyone(own: jax.Array, axis_name: str | None) -> jax.Array:
  """The clips of all devices, joined along the first axis."""
  if axis_name is None:
    return own
  return jax.lax.all_gather(own, axis_name, tiled=True)


# Clips and frames ------------------------------------------------------------


def linear_softmax(tags: SoftTags, mask_BT: jax.Array) -> SoftTags:
  """Of a clip from those of its frames: `Σ p² / Σ p` over time, `[B, C]`.

  Formed as a logit: from probabilities, its gradient is infinite at −40.
  """
  there_BTC = mask_BT[..., None] > 0

  def total(log_BTC):
    return jax.nn.logsumexp(jnp.where(there_BTC, log_BTC, -jnp.inf), axis=1)

  # logit(Σ p² / Σ p) = log Σ p² − log Σ p (1 − p).
  return soft_tags(total(2 * tags.on) - total(tags.on + tags.off))


def clip_frame_kd_per_clip(
  student_logits_BC: jax.Array,
  student_frame_logits_BTC: jax.Array,
  teacher_logits_BC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """See `clip_frame_kd_parts`; one value a clip, `[B]`, of each part."""
  student_BTC, teacher_BTC = student_frame_logits_BTC, teacher_frame_logits_BTC
  mask_BT = _mask_of_coarser(student_BTC, teacher_BTC, mask_BT)
  _check(student_logits_BC, teacher=teacher_logits_BC)
  none_B = jnp.sum(mask_BT, axis=1) == 0
  # A clip without a frame is computed as one that has them all, and left out.
  mask_BT = jnp.where(none_B[:, None], 1.0, mask_BT)
  frames_S, frames_R = (
    align_soft_tags(
      soft_tags(
        jnp.where(none_B[:, None, None], 0.0, _of_recording(x, mask_BT))
      ),
      mask_BT.shape[1],
    )
    for x in (student_BTC, teacher_BTC)
  )
  clip_S, clip_R = soft_tags(student_logits_BC), soft_tags(teacher_logits_BC)
  of_frames_BT = jnp.mean(divergence(frames_R, frames_S), axis=2)
  intra_B = jnp.mean(divergence(clip_R, clip_S), axis=1)
  intra_B += _mean_over_frames(of_frames_BT, mask_BT)
  inter_BC = divergence(clip_R, linear_softmax(frames_S, mask_BT))
  inter_BC += divergence(linear_softmax(frames_R, mask_BT), clip_S)
  return (
    jnp.where(none_B, 0.0, intra_B),
    jnp.where(none_B, 0.0, jnp.mean(inter_BC, axis=1)),
  )


def clip_frame_kd_parts(
  student_logits_BC: jax.Array,
  student_frame_logits_BTC: jax.Array,
  teacher_logits_BC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  mask_BT: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Distillation of clip tags and frame tags, of each kind and across them.

  With s, r the logits of clips, s_t, r_t those of frames, and m the pooling of
  frames by a linear softmax, `Σ p² / Σ p`:

    intra  `KL(σ(r) ‖ σ(s)) + mean_t KL(σ(r_t) ‖ σ(s_t))`
    inter  `KL(σ(r) ‖ m(s_t)) + KL(m(r_t) ‖ σ(s))`

  each a mean over clips and tags.

  Args:
    student_logits_BC: `[B, C]`.
    student_frame_logits_BTC: `[B, T_S, C]`.
    teacher_logits_BC: `[B, C]`.
    teacher_frame_logits_BTC: `[B, T_R, C]`.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.

  Returns:
    Both parts, float32 scalars; 0 for steady clips with equal logits.

  References:
    After the abstract of I²KD-SLU, arXiv 2310.02594: its intents are our clip
    tags, its slots our frame tags, its two languages teacher and student. The
    formula is ours; the pooling is that of Wang et al., ICASSP 2019.
  """
  intra_B, inter_B = clip_frame_kd_per_clip(
    student_logits_BC,
    student_frame_logits_BTC,
    teacher_logits_BC,
    teacher_frame_logits_BTC,
    mask_BT,
  )
  return jnp.mean(intra_B), jnp.mean(inter_B)


# Hard tags of frames ---------------------------------------------------------


def hard_frame_tags(
  logits_BTC: jax.Array, width: int, mask_BT: jax.Array
) -> jax.Array:
  """Which tags are on in which frames: 1[σ ≥ .5], by a median over time.

  Args:
    logits_BTC: of frames.
    width: of the median, in frames, `t − width // 2` being the first. At the
      edges and in padding over the frames there are; a tie is off.
    mask_BT: 1 for frames of the recording.

  Returns:
    float32 0 or 1, `[B, T, C]`.
  """
  num_frames = logits_BTC.shape[1]
  times = np.arange(num_frames)
  offset = times[None] - times[:, None] + width // 2
  near_TT = ((offset >= 0) & (offset < width)).astype(np.float32)
  mask_BTC = mask_BT[..., None]
  vote_BTC = jnp.where(logits_BTC >= 0, 1.0, -1.0) * mask_BTC
  # Small whole numbers: exact in any precision that a product is done in.
  sum_BTC = jnp.einsum('tu,buc->btc', near_TT, vote_BTC)
  return (sum_BTC > 0).astype(jnp.float32)


def hard_frame_kd_per_clip(
  student_frame_logits_BTC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  width: int,
  mask_BT: jax.Array | None = None,
) -> jax.Array:
  """See `hard_frame_kd_loss`; one value a clip, `[B]`."""
  student_BTC, teacher_BTC = student_frame_logits_BTC, teacher_frame_logits_BTC
  if width < 1:
    raise ValueError(f'width is {width}: expected at least 1 frame')
  mask_BT = _mask_of_coarser(student_BTC, teacher_BTC, mask_BT)
  num_frames = mask_BT.shape[1]
  hard_BTC = hard_frame_tags(
    _of_recording(teacher_BTC, mask_BT),
    width,
    similarity.finer_mask(mask_BT, teacher_BTC.shape[1]),
  )
  hard_BTC = jax.vmap(lambda x: similarity.align_frames(x, num_frames))(
    hard_BTC
  )
  student = align_soft_tags(
    soft_tags(_of_recording(student_BTC, mask_BT)), num_frames
  )
  entropy_BTC = -hard_BTC * student.on - (1.0 - hard_BTC) * student.off
  return _mean_over_frames(jnp.mean(entropy_BTC, axis=2), mask_BT)


def hard_frame_kd_loss(
  student_frame_logits_BTC: jax.Array,
  teacher_frame_logits_BTC: jax.Array,
  width: int,
  mask_BT: jax.Array | None = None,
) -> jax.Array:
  """Training on the teacher's decisions, frame by frame.

  `mean over clips, frames and tags of BCE(σ(s_t), h_t)`, with h the teacher's
  tags 1[σ(r_t) ≥ .5] after a median over time at its own rate; averaged over
  the student's frames where these are coarser (where they are finer, the
  student's probabilities are).

  Args:
    student_frame_logits_BTC: `[B, T_S, C]`.
    teacher_frame_logits_BTC: `[B, T_R, C]`.
    width: of the median, in frames of the teacher; 1 for none.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.

  Returns:
    A float32 scalar. Unchanged by any increasing map of the teacher's logits
    that keeps 0.

  Raises:
    ValueError: if the shapes do not fit, or for a width below 1.

  References:
    After the idea of sequence-level distillation (Kim & Rush, arXiv
    1606.07947; with audio, arXiv 2305.13899), to train on what the teacher
    decides and not on its probabilities. There are no sequences of tokens
    here: the median and the formula are ours.
  """
  return jnp.mean(
    hard_frame_kd_per_clip(
      student_frame_logits_BTC, teacher_frame_logits_BTC, width, mask_BT
    )
  )


# Correlation over clips ------------------------------------------------------

# A tag whose probabilities differ by less than this part of the largest, over
# a batch, is constant: what is left is rounding.
CONSTANT = 1e-5


def _standard(logits_BC: jax.Array, temperature: float):
  """Probabilities with mean 0 and length 1 over the clips; which are constant.

  Those of tags that are mostly on are taken less 1, as −σ(−s): the difference
  of two numbers near 1 would be rounding.
  """
  tags = soft_tags(logits_BC, temperature)
  mostly_on_C = jnp.mean(tags.on - tags.off, axis=0) > 0
  x_BC = jnp.where(mostly_on_C[None], -jnp.exp(tags.off), jnp.exp(tags.on))
  largest_C = jax.lax.stop_gradient(jnp.max(jnp.abs(x_BC), axis=0))
  # Within float32 when squared; correlation does not depend on the scale.
  x_BC = x_BC / jnp.maximum(largest_C, 1e-30)[None]
  x_BC = x_BC - jnp.mean(x_BC, axis=0, keepdims=True)
  constant_C = jnp.max(jnp.abs(x_BC), axis=0) <= CONSTANT
  square_C = jnp.sum(jnp.square(x_BC), axis=0)
  length_C = jnp.sqrt(jnp.where(constant_C, 1.0, square_C))
  return x_BC / length_C[None], constant_C


def dist_tags_parts(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
  """`dist_tags_loss`, and how many tags are left out."""
  _check(student_logits_BC, temperature, teacher=teacher_logits_BC)
  student_BC, same_C = _standard(student_logits_BC, temperature)
  teacher_BC, same_too_C = _standard(teacher_logits_BC, temperature)
  left_out_C = same_C | same_too_C
  correlation_C = jnp.sum(student_BC * teacher_BC, axis=0)
  distance_C = jnp.where(left_out_C, 0.0, 1.0 - correlation_C)
  count = jnp.sum(~left_out_C)
  return jnp.sum(distance_C) / jnp.maximum(count, 1), jnp.sum(left_out_C)


def dist_tags_per_clip(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 1.0,
  axis_name: str | None = None,
) -> jax.Array:
  """See `dist_tags_loss`; the loss of the global batch for each clip, `[B]`."""
  loss, _ = dist_tags_parts(
    _everyone(student_logits_BC, axis_name),
    _everyone(teacher_logits_BC, axis_name),
    temperature,
  )
  return jnp.broadcast_to(loss, len(student_logits_BC))


def dist_tags_loss(
  student_logits_BC: jax.Array,
  teacher_logits_BC: jax.Array,
  temperature: float = 1.0,
) -> jax.Array:
  """How far the clips that have a tag are from being ranked alike.

  `1 − mean_c Pearson(p_·c, q_·c)` over the clips of the batch, with the
  probabilities p = σ(s/τ) and q = σ(r/τ). A tag that is constant in the batch,
  in either model, has no correlation and is left out (`dist_tags_parts` counts
  these).

  Args:
    student_logits_BC: of the global batch, `[B, C]`.
    teacher_logits_BC: of the global batch, `[B, C]`.
    temperature: τ > 0; its square is no factor.

  Returns:
    A float32 scalar from 0 to 2; 0 if every tag is left out, as for one clip.
    Unchanged by a positive affine map of a tag's probabilities.

  References:
    Huang et al., NeurIPS 2022, arXiv 2205.10536 (DIST), its intra-class
    relation; for several tags by Bernoulli probabilities (ours).
  """
  return dist_tags_parts(student_logits_BC, teacher_logits_BC, temperature)[0]
