"""A step that takes its batch in parts, to need less memory.

Losses are sums over clips divided by counts over the whole batch, so the
parts' gradients add up to the batch's. Only BatchNorm notices: it normalises
each part by itself, and its averages move once a part.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from iusp_jax.runtime import devices
from iusp_jax.training.recipe import Training


def check(training: Training, compares_clips: Sequence[str]) -> None:
  """Raises ValueError unless a batch can be cut into `accumulate_steps`.

  Args:
    training: of a recipe.
    compares_clips: the terms that need the whole batch at a time.
  """
  num_parts = training.accumulate_steps
  if num_parts < 1:
    raise ValueError(f'accumulate_steps is {num_parts}: expected at least 1')
  devices.check_batch_size(training.batch_size, num_parts)
  if num_parts > 1 and compares_clips:
    name = compares_clips[0]
    raise ValueError(
      f'accumulate_steps is {num_parts}, but {name}_weight is not 0: {name} '
      'compares all clips of a batch, and would get parts of it. Set '
      'accumulate_steps to 1 (on more devices, if memory is short) or '
      f'{name}_weight to 0'
    )


def over_parts(part: Callable, batch_stats: Any, batch: Any, num_parts: int):
  """Sums what `part` gives for the parts of a batch, one after the other.

  Args:
    part: from statistics and a part of the batch to new statistics and
      anything to sum, parts of one whole.
    batch_stats: BatchNorm's, handed from part to part.
    batch: this device's.
    num_parts: 1 for the batch as it is.

  Returns:
    The last statistics and the sums.
  """
  if num_parts == 1:
    return part(batch_stats, batch)

  def split(x):  # Clip i to part i mod n, so on any number of devices.
    return jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)

  def add(carry, batch):
    batch_stats, total = carry
    batch_stats, more = part(batch_stats, batch)
    return (batch_stats, jax.tree.map(jnp.add, total, more)), None

  batch = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], batch)
  _, shapes = jax.eval_shape(part, batch_stats, first)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  return jax.lax.scan(add, (batch_stats, zeros), batch)[0]
