"""What terms of the objective need of a teacher, by name.

A target is named `kind` (of the last frame embeddings) or `kind@layer` (of an
inner layer of the teacher, see `models.tagger.layer_names`). All but the
pairwise ones are a function of one clip, so that they can be computed once and
stored (`data.teacher_outputs`), one file a target.

  logits      [C]     of the clip
  frame_gram  [T, T]  inner products of its frames, divided by the largest, so
                      that float16 can hold them: a term must not depend on
                      their scale
  batch_gram  [B]     inner products with all clips of the global batch, each
                      clip as one vector of T·D numbers; pairwise
  num_frames  []      frames of the clip; of a teacher from elsewhere alone,
                      whose clips may have fewer than T
"""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp

from iusp_jax.objectives import similarity

FRAMES = 'frames'  # The name of the last frame embeddings.


def _scaled_gram(frames_TD: jax.Array) -> jax.Array:
  gram_TT = similarity.gram(frames_TD)
  largest = jnp.max(jnp.abs(gram_TT))
  return gram_TT / jnp.where(largest > 0, largest, 1.0)


# From logits [B, C] and frames [B, T, D] to one value a clip, float32.
PER_CLIP: Mapping[str, Callable] = {
  'logits': lambda logits_BC, frames_BTD: logits_BC,
  'frame_gram': lambda logits_BC, frames_BTD: jax.vmap(_scaled_gram)(
    frames_BTD
  ),
}
PAIRWISE = ('batch_gram',)
NUM_FRAMES = 'num_frames'  # Comes with the frames of a teacher from elsewhere.

# By kind, the output of the teacher that it is made of.
NEEDS: Mapping[str, str] = {
  'logits': 'logits',
  'frame_gram': 'frames',
  'batch_gram': 'frames',
}


def split_name(name: str) -> tuple[str, str]:
  """The kind and the layer of a target.

  Raises:
    ValueError: for an unknown kind, with the legal ones.
  """
  kind, _, layer = name.partition('@')
  if kind not in (*PER_CLIP, *PAIRWISE, NUM_FRAMES):
    raise ValueError(
      f'target {name!r} is unknown: expected one of '
      f'{", ".join([*PER_CLIP, *PAIRWISE])}, alone or followed by @layer'
    )
  return kind, layer or FRAMES


def is_pairwise(name: str) -> bool:
  """Whether a target compares the clips of a batch."""
  return split_name(name)[0] in PAIRWISE


def layers(names: Iterable[str]) -> tuple[str, ...]:
  """The inner layers that targets are made of, each once."""
  found = dict.fromkeys(split_name(name)[1] for name in names)
  return tuple(layer for layer in found if layer != FRAMES)


def compute(
  names: Iterable[str],
  logits_BC: jax.Array,
  frames: Mapping[str, jax.Array],
  gather: Callable[[jax.Array], jax.Array],
) -> dict[str, jax.Array]:
  """The targets of a batch, from a teacher's outputs.

  Args:
    names: of the targets.
    logits_BC: the teacher's.
    frames: `[B, T, D]` by layer.
    gather: joins the clips of all devices along the first axis.
  """
  found = {}
  for name in names:
    kind, layer = split_name(name)
    if kind in PER_CLIP:
      found[name] = PER_CLIP[kind](logits_BC, frames[layer])
    else:
      own = similarity.flatten_clips(frames[layer])
      found[name] = similarity.gram(own, gather(own))
  return found
