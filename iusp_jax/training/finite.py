"""NaN and infinity in training: found, reported, their batch kept."""

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets, sources
from iusp_jax.runtime import files, logs

# After so many batches it is not the batches' fault.
MAX_SKIPPED = 3

ON_NAN = ('stop', 'roll_back')


class NotFinite(FloatingPointError):
  """A loss, gradient, parameter or prediction that is NaN or infinite.

  Attributes:
    step: the first step that had it.
    values: that step's loss and terms.
  """

  def __init__(self, message: str, step: int, values: Mapping[str, float]):
    super().__init__(message)
    self.step, self.values = step, values


def first_bad_step(outputs_K: Mapping[str, np.ndarray]) -> int | None:
  """The first of K steps with an output that is not finite; None if none."""
  finite_K = np.all([np.isfinite(x) for x in outputs_K.values()], axis=0)
  return None if finite_K.all() else int(np.argmin(finite_K))


def bad_arrays(arrays: Any) -> str:
  """Names the arrays that hold NaN or infinity; empty if none does."""
  wrong = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    if not np.isfinite(leaf).all()
  ]
  if not wrong:
    return ''
  return f'NaN or infinity in {", ".join(wrong[:3])} ({len(wrong)} arrays)'


def save_batch(
  path: pathlib.Path,
  error: NotFinite,
  split: datasets.Split,
  order: sources.Order,
  number: int,
) -> None:
  """Writes the batch that an error came with, read again from the split.

  `nan_batch.npz` holds `step`, the batch's number in the run as `batch`, the
  loss and its terms as `loss/<term>`, the clips' names as `clip_id` (those
  mixed in as `partner_clip_id`), and the batch itself: `index`, `wave` …
  """
  batch = sources.read_batch(split, order, number)
  names = {
    f'{prefix}clip_id': np.asarray(
      datasets.clip_ids(split, batch[f'{prefix}index'])
    )
    for prefix in ('', sources.PARTNER)
    if f'{prefix}index' in batch
  }
  arrays = {
    **batch,
    **names,
    'step': np.asarray(error.step),
    'batch': np.asarray(number),
    **{f'loss/{name}': value for name, value in error.values.items()},
  }
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  files.write_atomically(path, content.getvalue())
  logs.log(f'The batch of step {error.step} is in {path}')
