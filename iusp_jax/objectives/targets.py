"""What terms of the objective need of a teacher, by name.

A target is named `kind` (of the last frame embeddings) or `kind@layer` (of an
inner layer of the teacher, see `models.tagger.layer_names`). All but the
pairwise ones are a function of one clip, so that they can be computed once and
stored (`data.teacher_outputs`), one file a target. Frames of padding count in
none of those that say 'of the recording'.

  logits        [C]     of the clip
  frame_logits  [T, C]  of its frames
  frame_gram    [T, T]  inner products of its frames, divided by the largest, so
                        that float16 can hold them: a term must not depend on
                        their scale
  batch_gram    [B]     inner products with all clips of the global batch, each
                        clip as one vector of T·D numbers; pairwise
  num_frames    []      frames of the clip; of a teacher from elsewhere alone,
                        whose clips may have fewer than T

Fitted ones depend on the training split as well, by an array that is found once
in a pass of the teacher over it (`Fit`) and handed to every later use:

  whitened      [K]     the mean frame of the recording along the K largest
                        principal axes of the split, with variance 1 along each
  frame_axes    [T, K]  frames along the K axes that hold most of the split's
                        (not centred), divided by the clip's largest number
  cluster_gram  [K, T, T]  a Gram matrix a cluster of like layers, see
                        `clusters`; over the last frames and all inner layers
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.objectives import clusters, embeddings, similarity

FRAMES = 'frames'  # The name of the last frame embeddings.
INNER = 'inner'  # Stands for all layers before them, see `models.tagger`.
MAX_AXES = 32  # Of whitened embeddings and of frames.

# Whose numbers float16 holds closely enough.
HALF = ('frame_gram', 'frame_logits', 'frame_axes', 'cluster_gram')


class Outputs(NamedTuple):
  """What a teacher gives for a batch.

  Attributes:
    logits_BC: of clips.
    frame_logits_BTC: of the last frames.
    frames: `[B, T, D]` by layer.
    inner: names of its inner layers, from the first on, where they were asked
      for.
    frame_mask: gives, for a number of frames T, `[B, T]` that is 1 for frames
      of the recording and 0 for padding.
  """

  logits_BC: jax.Array
  frame_logits_BTC: jax.Array
  frames: Mapping[str, jax.Array]
  inner: tuple[str, ...]
  frame_mask: Callable[[int], jax.Array]


def frame_mask(
  length_B: jax.Array,
  num_samples: int,
  num_frames: int,
  starts_T: np.ndarray | None = None,
) -> jax.Array:
  """1 for the frames of the recording, 0 for those of padding, `[B, T]`.

  Args:
    length_B: samples of each clip without its padding.
    num_samples: of a clip with it.
    num_frames: T.
    starts_T: where frames begin, as fractions of the clip; by default they are
      equal parts of it.
  """
  if starts_T is None:
    starts_T = np.arange(num_frames) / num_frames
  samples_T = jnp.asarray(starts_T * num_samples, jnp.float32)
  return (samples_T[None] < length_B[:, None]).astype(jnp.float32)


def _scaled(array: jax.Array) -> jax.Array:
  """Divided by its largest number; zeros stay zeros."""
  largest = jnp.max(jnp.abs(array))
  return array / jnp.where(largest > 0, largest, 1.0)


def _scaled_gram(frames_TD: jax.Array) -> jax.Array:
  return _scaled(similarity.gram(frames_TD))


# From what the teacher gives and the frames [B, T, D] of the layer to one value
# a clip, float32.
PER_CLIP: Mapping[str, Callable[[Outputs, jax.Array], jax.Array]] = {
  'logits': lambda x, frames_BTD: x.logits_BC,
  'frame_logits': lambda x, frames_BTD: x.frame_logits_BTC,
  'frame_gram': lambda x, frames_BTD: jax.vmap(_scaled_gram)(frames_BTD),
}
PAIRWISE = ('batch_gram',)
NUM_FRAMES = 'num_frames'  # Comes with the frames of a teacher from elsewhere.

# By kind, the output of the teacher that it is made of.
NEEDS: Mapping[str, str] = {
  'logits': 'logits',
  'frame_logits': 'frame_logits',
  'frame_gram': 'frames',
  'batch_gram': 'frames',
}


@dataclasses.dataclass(frozen=True)
class Fit:
  """A target that depends on the training split.

  Attributes:
    statistic: one array a clip; from what a function of `PER_CLIP` gets.
    solve: from the mean of the statistic over the clips, float64, and their
      number to the fitted array, float32.
    per_clip: the target, from outputs, frames and the fitted array.
    max_clips: over how many clips of the split the mean is taken.
  """

  statistic: Callable[[Outputs, jax.Array], jax.Array]
  solve: Callable[[np.ndarray, int], np.ndarray]
  per_clip: Callable[[Outputs, jax.Array, jax.Array], jax.Array]
  max_clips: int = 1_000_000_000


def _moments_of_clips(x: Outputs, frames_BTD: jax.Array) -> jax.Array:
  mean_BD = embeddings.mean_frame(frames_BTD, x.frame_mask(frames_BTD.shape[1]))
  one = jnp.ones(1)
  return jax.vmap(lambda x_D: embeddings.second_moments(x_D[None], one))(
    mean_BD
  )


def _moments_of_frames(x: Outputs, frames_BTD: jax.Array) -> jax.Array:
  mask_BT = x.frame_mask(frames_BTD.shape[1])
  share_BT = mask_BT / jnp.maximum(jnp.sum(mask_BT, axis=1, keepdims=True), 1.0)
  return jax.vmap(embeddings.second_moments)(frames_BTD, share_BT)


def _whitened(x: Outputs, frames_BTD: jax.Array, map_DK: jax.Array):
  mean_BD = embeddings.mean_frame(frames_BTD, x.frame_mask(frames_BTD.shape[1]))
  return embeddings.project(mean_BD, map_DK[1:]) + map_DK[:1]


def _frame_axes(x: Outputs, frames_BTD: jax.Array, axes_DK: jax.Array):
  return jax.vmap(_scaled)(embeddings.project(frames_BTD, axes_DK))


def _layer_grams(x: Outputs, frames_BTD: jax.Array) -> jax.Array:
  layers = [x.frames[name] for name in x.inner] + [frames_BTD]
  return clusters.layer_grams(layers, x.frame_mask(frames_BTD.shape[1]))


def _layer_alignment(x: Outputs, frames_BTD: jax.Array) -> jax.Array:
  mask_BT = x.frame_mask(frames_BTD.shape[1])
  return jax.vmap(clusters.alignment)(_layer_grams(x, frames_BTD), mask_BT)


def _cluster_gram(x: Outputs, frames_BTD: jax.Array, share_KL: jax.Array):
  grams_BLTT = _layer_grams(x, frames_BTD)
  # Of a few layers: a sum and no product, which would be one in low precision.
  mean_BKTT = jnp.sum(
    share_KL[None, :, :, None, None] * grams_BLTT[:, None], axis=2
  )
  return jax.vmap(jax.vmap(_scaled))(mean_BKTT)


FITTED: Mapping[str, Fit] = {
  'whitened': Fit(
    _moments_of_clips,
    functools.partial(embeddings.whitening, most=MAX_AXES),
    _whitened,
  ),
  'frame_axes': Fit(
    _moments_of_frames,
    functools.partial(embeddings.axes_of_moments, most=MAX_AXES),
    _frame_axes,
  ),
  'cluster_gram': Fit(
    _layer_alignment, clusters.assignment, _cluster_gram, clusters.MAX_CLIPS
  ),
}


def kinds() -> tuple[str, ...]:
  """All kinds of targets."""
  return (*PER_CLIP, *FITTED, *PAIRWISE)


def split_name(name: str) -> tuple[str, str]:
  """The kind and the layer of a target.

  Raises:
    ValueError: for an unknown kind, with the legal ones.
  """
  kind, _, layer = name.partition('@')
  if kind not in (*kinds(), NUM_FRAMES):
    raise ValueError(
      f'target {name!r} is unknown: expected one of '
      f'{", ".join(kinds())}, alone or followed by @layer'
    )
  return kind, layer or FRAMES


def is_pairwise(name: str) -> bool:
  """Whether a target compares the clips of a batch."""
  return split_name(name)[0] in PAIRWISE


def fitted(names: Iterable[str]) -> tuple[str, ...]:
  """Those of the targets that depend on the training split."""
  return tuple(name for name in names if split_name(name)[0] in FITTED)


def fit_of(name: str) -> Fit:
  """How a fitted target is made."""
  return FITTED[split_name(name)[0]]


def layers(names: Iterable[str]) -> tuple[str, ...]:
  """The inner layers that targets are made of, each once."""
  found: dict[str, None] = {}
  for name in names:
    kind, layer = split_name(name)
    found[INNER if kind == 'cluster_gram' else layer] = None
  return tuple(layer for layer in found if layer != FRAMES)


def statistic(name: str, x: Outputs) -> jax.Array:
  """What a fitted target is solved from, one array a clip."""
  return fit_of(name).statistic(x, x.frames[split_name(name)[1]])


def compute(
  names: Iterable[str],
  x: Outputs,
  gather: Callable[[jax.Array], jax.Array],
  fits: Mapping[str, Any],
) -> dict[str, jax.Array]:
  """The targets of a batch, from a teacher's outputs.

  Args:
    names: of the targets.
    x: the teacher's, with the layers that the targets are made of.
    gather: joins the clips of all devices along the first axis.
    fits: the arrays of the fitted ones, by target.
  """
  found = {}
  for name in names:
    kind, layer = split_name(name)
    if kind in PER_CLIP:
      found[name] = PER_CLIP[kind](x, x.frames[layer])
    elif kind in FITTED:
      found[name] = FITTED[kind].per_clip(x, x.frames[layer], fits[name])
    else:
      own = similarity.flatten_clips(x.frames[layer])
      found[name] = similarity.gram(own, gather(own))
  return found
