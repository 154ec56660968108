"""The one place that knows about devices.

A step is a pure function that reduces over the axis `AXIS`; `pmap` runs it on
every device of every host. The global batch is a fact of the config; here it
is only cut into equal parts.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

AXIS = 'data'


def describe() -> str:
  """Who this process is, for the first line of a log."""
  return (
    f'process {jax.process_index()} of {jax.process_count()}, '
    f'backend {jax.default_backend()}, {jax.local_device_count()} local and '
    f'{jax.device_count()} global devices ({jax.devices()[0].device_kind})'
  )


def check_batch_size(batch_size: int) -> None:
  """Raises ValueError unless every device gets the same number of clips."""
  if batch_size < 1 or batch_size % jax.device_count():
    raise ValueError(
      f'batch_size is {batch_size}: expected a multiple of the '
      f'{jax.device_count()} devices, so that each gets as many clips'
    )


def pmap(step: Callable, donate: tuple[int, ...] = ()) -> Callable:
  """Compiles a step for all devices; every argument has a device axis."""
  return jax.pmap(step, axis_name=AXIS, donate_argnums=donate)


def replicate(tree: Any) -> Any:
  """Puts a copy of every array on every local device: adds a device axis."""
  if not jax.tree.leaves(tree):
    return tree
  num_devices = jax.local_device_count()
  copies = jax.tree.map(
    lambda x: np.broadcast_to(x, (num_devices, *np.shape(x))), tree
  )
  return jax.pmap(lambda x: x)(copies)


def unreplicate(tree: Any) -> Any:
  """One copy of replicated arrays, on the host, as NumPy."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)


def shard(batch: Any) -> Any:
  """Cuts this host's batch into equal parts, one a local device."""
  num_devices = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), batch)


def gather(array_bX: jax.Array) -> jax.Array:
  """Inside a step: the parts of all devices, joined along the first axis."""
  return jax.lax.all_gather(array_bX, AXIS, tiled=True)
