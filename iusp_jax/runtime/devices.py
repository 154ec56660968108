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


# What pip installs for each backend; a CPU needs nothing.
_PLUGINS = {'cuda': 'jax[cuda13]', 'gpu': 'jax[cuda13]', 'tpu': 'jax[tpu]'}


def check_backend() -> None:
  """Starts JAX's backend, the first time that devices are asked for.

  Raises:
    ValueError: where JAX_PLATFORMS names one that does not start here.
  """
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:
    reason = str(error).partition(' (set JAX_PLATFORMS')[0].partition('\n')[0]
    wanted = jax.config.jax_platforms or ''  # pyright: ignore
    remedy = 'set JAX_PLATFORMS=cpu'
    for name in set(wanted.split(',')) & _PLUGINS.keys():
      remedy = (
        f'install its plugin (pip install "{_PLUGINS[name]}") on a machine '
        f'with such a device, or {remedy}'
      )
    raise ValueError(
      f'JAX_PLATFORMS is {wanted!r}: JAX starts no such backend here '
      f'({reason or "no such device, or no plugin for it"}); {remedy}'
    ) from error


def check_batch_size(batch_size: int, num_parts: int = 1) -> None:
  """Raises ValueError unless every device gets the same number of clips.

  Args:
    batch_size: clips in the global batch.
    num_parts: that a step takes the batch in, `accumulate_steps`.
  """
  num_devices = jax.device_count()
  if batch_size < 1 or batch_size % (num_devices * num_parts):
    parts = f' times accumulate_steps {num_parts}' if num_parts > 1 else ''
    raise ValueError(
      f'batch_size is {batch_size}: expected a multiple of the '
      f'{num_devices} devices{parts}, so that each gets as many clips'
    )


def pmap(step: Callable, donate: tuple[int, ...] = ()) -> Callable:
  """Compiles a step for all devices; every argument has a device axis."""
  return jax.pmap(step, axis_name=AXIS, donate_argnums=donate)


def map_members(function: Callable, together: int) -> Callable:
  """Maps `function(member, shared)` over members of one shape.

  Args:
    function: pure; each of its arguments is a tree.
    together: members that a device computes under one `vmap`; it goes through
      the others one after the other.

  Returns:
    A compiled function of trees with a member axis in front of `member` and
    of its results, and none in `shared`. The local devices get an equal share
    each: where the members do not divide, the last one is computed again.
  """

  def share(members, shared):
    return jax.lax.map(
      lambda member: function(member, shared), members, batch_size=together
    )

  mapped = jax.pmap(share, in_axes=(0, None))

  def call(members, shared):
    count = jax.tree.leaves(members)[0].shape[0]
    each = -(-count // jax.local_device_count())
    num_devices = -(-count // each)  # 5 on 4: 2, 2, 1, and none for the last.
    again = num_devices * each - count

    # Uneven members pass by the host: on the devices, adding one would leave
    # arrays that are not shared out as pmap expects.
    def cut(x):
      if again:
        x = np.asarray(x)
        x = np.concatenate([x, *[x[-1:]] * again])
      return x.reshape(num_devices, each, *x.shape[1:])

    def join(x):
      x = x.reshape(num_devices * each, *x.shape[2:])
      return np.asarray(x)[:count] if again else x

    return jax.tree.map(join, mapped(jax.tree.map(cut, members), shared))

  return call


def replicate(tree: Any) -> Any:
  """Puts a copy of every array on every local device: adds a device axis."""
  if not jax.tree.leaves(tree):
    return tree
  num_devices = jax.local_device_count()
  copies = jax.tree.map(
    lambda x: np.broadcast_to(x, (num_devices, *np.shape(x))), tree
  )
  # The name counts: arrays of another axis are another type to a compiled
  # step, which would be compiled again for its own output.
  return jax.pmap(lambda x: x, axis_name=AXIS)(copies)


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


def any_host(value: bool) -> bool:
  """Whether it is true on any host; all hosts must ask, and get one answer."""
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.asarray(value)).any())
