"""IUSP with clusters of a teacher's layers instead of its last one.

Layers whose similarities between frames are alike make a cluster, which the
mean of their Gram matrices stands for. Clusters are found once for a teacher
and its training clips (`cluster_gram` of `targets`).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.objectives import losses, similarity

NUM_CLUSTERS = 2
MAX_CLIPS = 256  # That clusters are found on.


def _gram(frames_TD: jax.Array, mask_T: jax.Array) -> jax.Array:
  """Of a layer's frames at the rate of the mask, 0 where either is padding."""
  fine_T = similarity.finer_mask(mask_T[None], len(frames_TD))[0]
  frames_TD = jnp.where(fine_T[:, None] > 0, frames_TD, 0.0)
  frames_TD = similarity.align_frames(frames_TD, len(mask_T))
  frames_TD = jnp.where(mask_T[:, None] > 0, frames_TD, 0.0)
  return similarity.gram(frames_TD)


def layer_grams(layers: Sequence[jax.Array], mask_BT: jax.Array) -> jax.Array:
  """A Gram matrix a layer, of trace 1 (0 for a silent one): `[B, L, T, T]`.

  Args:
    layers: frames `[B, T_l, D_l]`, no coarser than the mask.
    mask_BT: 1 for frames of the recording.
  """
  found = []
  for frames_BTD in layers:
    gram_BTT = jax.vmap(_gram)(frames_BTD, mask_BT)
    # Within float32 before the sum: a trace adds up the squares of a clip.
    largest_B = jnp.max(jnp.abs(gram_BTT), axis=(1, 2))
    largest_B = jnp.where(largest_B > 0, largest_B, 1.0)
    gram_BTT = gram_BTT / largest_B[:, None, None]
    trace_B = jnp.trace(gram_BTT, axis1=1, axis2=2)
    trace_B = jnp.where(trace_B > 0, trace_B, 1.0)
    found.append(gram_BTT / trace_B[:, None, None])
  return jnp.stack(found, axis=1)


def alignment(grams_LTT: jax.Array, mask_T: jax.Array) -> jax.Array:
  """Linear CKA of a clip's Gram matrices, `[L, L]`.

  `⟨H G H, H G' H⟩ / (‖H G H‖ ‖H G' H‖)` with H the centring; 0 where a layer
  does not change over the clip (to rounding).

  References:
    Kornblith et al., ICML 2019, arXiv 1905.00414.
  """
  centred_LTT = jax.vmap(similarity.centre_gram, (0, None))(grams_LTT, mask_T)
  flat = centred_LTT.reshape(len(grams_LTT), -1)
  size_L = jnp.linalg.norm(flat, axis=1)
  whole_L = jnp.linalg.norm(grams_LTT.reshape(len(grams_LTT), -1), axis=1)
  changes_L = size_L > similarity.STEADY * whole_L
  flat = jnp.where(
    changes_L[:, None], flat / jnp.maximum(size_L, 1e-30)[:, None], 0.0
  )
  return similarity.gram(flat)


def average_linkage(similarity_LL: np.ndarray, count: int) -> list[list[int]]:
  """Joins layers to clusters, the most alike two at a time.

  Args:
    similarity_LL: of layers; of clusters it is the mean over their pairs.
    count: of clusters at most.

  Returns:
    Numbers of layers by cluster, in the order of their last layers.
  """
  found = [[layer] for layer in range(len(similarity_LL))]
  while len(found) > count:
    pairs = [
      (np.mean(similarity_LL[np.ix_(found[i], found[j])]), -i, -j)
      for i in range(len(found))
      for j in range(i + 1, len(found))
    ]
    _, i, j = max(pairs)  # The first ones of a tie.
    found[-i] = sorted(found[-i] + found.pop(-j))
  return sorted(found, key=max)


def assignment(similarity_LL: np.ndarray, num_clips: int = 0) -> np.ndarray:
  """The share of each layer in each cluster: float32 `[K, L]`, rows of sum 1.

  Args:
    similarity_LL: the mean of `alignment` over clips.
    num_clips: not looked at.
  """
  del num_clips
  found = average_linkage(similarity_LL, NUM_CLUSTERS)
  share_KL = np.zeros((len(found), len(similarity_LL)), np.float32)
  for k, members in enumerate(found):
    share_KL[k, members] = 1.0 / len(members)
  return share_KL


def student_layers(names: Sequence[str], count: int) -> list[str]:
  """Which layer of a student is held against which cluster.

  Evenly spaced in depth; the last one for the last cluster, so that half of the
  layers come before the one for the first of two.

  Args:
    names: of the student's layers, from the first to the last frames.
    count: of clusters.
  """
  places = [-(-(k + 1) * len(names) // count) - 1 for k in range(count)]
  return [names[place] for place in places]


def cluster_iusp_loss(
  student_BTD: jax.Array,
  teacher_layers: Sequence[jax.Array],
  mask_BT: jax.Array | None = None,
) -> jax.Array:
  """IUSP with one cluster of a teacher's layers.

  `IUSP(student, mean_l G_l / tr G_l)` with G_l the Gram matrix of the frames of
  layer l, averaged in time to the coarsest of them; a layer of zeros counts as
  a matrix of zeros. With one layer it is `iusp_loss`.

  Args:
    student_BTD: `[B, T_S, D_S]`, in time order.
    teacher_layers: frames of the cluster's layers, `[B, T_l, D_l]`.
    mask_BT: 1 for frames of the recording, 0 for padding, `[B, min(T)]`.

  Returns:
    A float32 scalar. Unchanged by a rotation and a positive scale of a layer.

  References:
    After the abstract of SKILL, arXiv 2402.16830: similar layers of a teacher
    are clustered, and the mean of their representations is distilled. Gram
    matrices in place of representations are ours, so that no map is needed.
  """
  num_frames = min(x.shape[1] for x in teacher_layers)
  coarse = min(num_frames, student_BTD.shape[1])
  if mask_BT is None:
    mask_BT = jnp.ones((len(student_BTD), coarse))
  fine_BT = similarity.finer_mask(mask_BT, num_frames)
  gram_BTT = jnp.mean(layer_grams(teacher_layers, fine_BT), axis=1)
  return jnp.mean(losses.iusp_per_clip(student_BTD, gram_BTT, mask_BT))
