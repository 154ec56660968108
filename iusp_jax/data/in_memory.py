"""A split as arrays in memory: what many runs of a table read over and over.

Log-mel and tags, and the stored outputs of the teacher; on the host, or on a
device as far as there is room.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.data import datasets, store
from iusp_jax.models import tagger
from iusp_jax.training.step import TARGETS

Resident = Mapping[str, Any]


def features(
  model: tagger.Tagger, split: datasets.Split
) -> dict[str, np.ndarray]:
  """Log-mel, tags and masks of a whole split.

  Args:
    model: whose front end hears.
    split: to read.

  Returns:
    float32 `mel` `[N, T, F]`, `tags` and `mask` `[N, C]`; int32 `length` and
    `index` `[N]`.
  """
  hear = _compile_hear(model.frontend)
  batches = [
    {
      'mel': hear(batch['wave']),
      **{key: batch[key] for key in ('tags', 'mask', 'length', 'index')},
    }
    for batch in datasets.eval_batches(split, min(32, len(split)))
  ]
  return {
    key: np.concatenate([np.asarray(b[key]) for b in batches])[: len(split)]
    for key in batches[0]
  }


@functools.cache
def _compile_hear(config: frontend.FrontendConfig) -> Callable:
  return jax.jit(lambda wave_BS: frontend.log_mel(wave_BS, config))


def with_targets(
  resident: Resident, outputs: store.Store, terms: Sequence[str]
) -> dict[str, Any]:
  """Features and what the terms need of the teacher's outputs.

  Args:
    resident: from `features`.
    outputs: of the same split.
    terms: of the objective.

  Returns:
    `resident` and, by the names of `step.TARGETS`, logits `[N, C]`, frame
    similarities `[N, T, T]`, clip similarities `[N, N]`.
  """
  stored = {
    'teacher_logits': outputs.logits,
    'teacher_batch_gram': outputs.batch_gram,
    'teacher_frame_gram': outputs.frame_gram,
  }
  wanted = {TARGETS[term] for term in terms}
  added = {key: np.asarray(stored[key]) for key in stored if key in wanted}
  return {**resident, **added}


def take(resident: Resident, index_B: jax.Array) -> dict[str, jax.Array]:
  """One batch of what stays on the device; `[B, B]` of clip similarities."""
  batch = {key: array[index_B] for key, array in resident.items()}
  if 'teacher_batch_gram' in batch:
    batch['teacher_batch_gram'] = batch['teacher_batch_gram'][:, index_B]
  if 'teacher_frame_gram' in batch:
    gram = batch['teacher_frame_gram']
    batch['teacher_frame_gram'] = gram.astype(jnp.float32)
  return batch


def part(
  resident: Resident, clips_MKB: np.ndarray, num_clips: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """What some steps need of a split, and their clips by its new numbers.

  Args:
    resident: a split on the host, from `with_targets`.
    clips_MKB: by their places in the split.
    num_clips: at least as many as are needed.

  Returns:
    Arrays as in `resident` for `num_clips` clips, or for as many as the split
    has, whichever needed (one program is compiled for all parts), and the
    places among them, `[M, K, B]`.
  """
  needed = np.unique(clips_MKB)
  num_kept = min(num_clips, len(resident['index']))
  kept_U = np.pad(needed, (0, num_kept - len(needed)), mode='edge')
  arrays = {key: np.asarray(array[kept_U]) for key, array in resident.items()}
  if 'teacher_batch_gram' in arrays:
    gram_UN = arrays['teacher_batch_gram']
    arrays['teacher_batch_gram'] = gram_UN[:, kept_U]
  places = np.searchsorted(needed, clips_MKB).astype(np.int32)
  return arrays, places


def device_room() -> int:
  """Bytes of a device that may hold what stays there."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit', 2 * sys.maxsize) // 2


def size(resident: Resident) -> int:
  """Bytes of a split."""
  return sum(array.nbytes for array in resident.values())


def clips_in(resident: Resident, room: int) -> int:
  """How many clips of a split have room."""
  return room * len(resident['index']) // size(resident)
