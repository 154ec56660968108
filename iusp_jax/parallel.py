"""The one place that knows about devices, and what processes do together.

A step is a pure function that reduces over the axis `AXIS`; `pmap` runs it on
every device of every host. The global batch is a fact of the config; here it
is only cut into equal parts. `hosts.py` starts a run of several processes.

What processes say to each other outside of a step goes through JAX's
coordination service and not through the devices: a barrier on devices would
have a time limit (30 s with gloo), and process 0 may prepare data for hours.
"""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax._src import distributed

AXIS = 'data'
_FOREVER_MS = 30 * 24 * 3600 * 1000  # `hosts.py` notices who is gone.
_NUMBERS = itertools.count()  # All processes call the same in one order.


def describe() -> str:
  """Who this process is, for the first line of a log."""
  return (
    f'process {jax.process_index()} of {jax.process_count()}, '
    f'backend {jax.default_backend()}, {jax.local_device_count()} local and '
    f'{jax.device_count()} global devices ({jax.devices()[0].device_kind})'
  )


def is_primary() -> bool:
  """Whether this process writes: process 0, or the only one."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def barrier() -> None:
  """Waits until all processes are here."""
  if jax.distributed.is_initialized():
    client = distributed.global_state.client
    assert client is not None
    client.wait_at_barrier(f'iusp/{next(_NUMBERS)}', _FOREVER_MS)


def by_primary(call: Callable[[], Any]) -> Any:
  """What a call gives in process 0, on all processes; the others wait.

  So all go the same way where they might see different files or times.

  Args:
    call: gives what JSON can hold; only process 0 calls it.
  """
  if not jax.distributed.is_initialized():
    return call()
  client = distributed.global_state.client
  assert client is not None
  key = f'iusp/{next(_NUMBERS)}'
  if is_primary():
    client.key_value_set(key, json.dumps(call()))
  return json.loads(client.blocking_key_value_get(key, _FOREVER_MS))


def primary_first(call: Callable[[], Any]) -> Any:
  """A call of every process, the others' after process 0's is done."""
  if is_primary():
    result = call()
    barrier()
    return result
  barrier()
  return call()


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
