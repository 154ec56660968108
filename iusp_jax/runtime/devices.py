"""The one place that maps over devices.

Students of one shape that are trained together are the *members* of a group; a
single run is a group of one. `Layout` spreads a group over all devices of all
processes by one rule. A step is a pure function that reduces over `AXIS`, the
axis that the global batch is spread over; it does not know how many devices
there are.
"""

import contextlib
import functools
import hashlib
import pathlib
import platform
import warnings
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


def keep_compiled(cache_dir: Any) -> None:
  """Keeps compiled programs in a cache, in a folder for this kind of machine.

  Programs are loaded again to the same bits. Another CPU may lack instructions
  that they use: it has a folder of its own. JAX_COMPILATION_CACHE_DIR names
  another cache, which is taken as it is.
  """
  set_already = jax.config.jax_compilation_cache_dir  # pyright: ignore
  if set_already or '://' in str(cache_dir):
    return
  kind = f'{jax.devices()[0].device_kind} {platform.processor()}'
  with contextlib.suppress(OSError):  # Linux names what the CPU can do.
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
    kind += ''.join(sorted({x for x in lines if x.startswith('flags')}))
  name = hashlib.sha256(kind.encode()).hexdigest()[:12]
  jax.config.update('jax_compilation_cache_dir', f'{cache_dir}/compiled/{name}')
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 1.0)
  # What a full disk or a kill has cut short is compiled again; the run itself
  # says where a disk is full.
  warnings.filterwarnings(
    'ignore', r'Error (reading|writing) persistent compilation cache'
  )


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


class Layout:
  """How a group of members and their batches are spread over the devices.

  With at least as many members as devices, every device has members of its own
  and their whole batches (the last member is computed again where they do not
  divide). With fewer, every device has all members and an equal part of each
  batch. The results are the same up to rounding.

  On the devices every array has two leading axes, `[local devices, members of
  a device, ...]`, or one, `[local devices, ...]`, if all members share it.

  Attributes:
    num_members: M, of the group.
    by_member: whether devices have members of their own.
    each: members of a device.
  """

  def __init__(self, num_members: int):
    self.num_members = num_members
    self.by_member = num_members >= jax.device_count()
    self.each = num_members
    if self.by_member:
      self.each = -(-num_members // jax.device_count())
    self._axis = 'members' if self.by_member else AXIS

  def _pad(self, array_M: np.ndarray) -> np.ndarray:
    again = self.each * jax.device_count() - self.num_members
    if not again:
      return array_M
    return np.concatenate([array_M, *[array_M[-1:]] * again])

  def _local(self, array_D: np.ndarray) -> np.ndarray:
    """This process's part of an array with an axis of all devices."""
    count = jax.local_device_count()
    first = jax.process_index() * count
    return array_D[first : first + count]

  def put(self, tree: Any) -> Any:
    """Members' arrays `[M, ...]`, on the devices that have them."""

    def spread(array):
      array = np.asarray(array)
      if not self.by_member:
        return np.broadcast_to(array, (jax.local_device_count(), *array.shape))
      array = self._pad(array)
      return self._local(array.reshape(-1, self.each, *array.shape[1:]))

    return _on_devices(jax.tree.map(spread, tree), self._axis)

  def get(self, tree: Any) -> Any:
    """The members' arrays `[M, ...]` as NumPy, on every process."""
    if not self.by_member:
      return unreplicate(tree)
    if jax.process_count() > 1:
      from jax.experimental import multihost_utils

      tree = multihost_utils.process_allgather(
        jax.tree.map(_local_values, tree)
      )
      tree = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    def join(array):
      array = np.asarray(array)
      return array.reshape(-1, *array.shape[2:])[: self.num_members]

    return jax.tree.map(join, tree)

  def batch_parts(self, clips_MKB: np.ndarray) -> np.ndarray:
    """What each local device computes of batches: `[D, each, K, b]`."""
    if self.by_member:
      return self.whole_batches(clips_MKB)
    M, K = clips_MKB.shape[:2]
    parts = clips_MKB.reshape(M, K, jax.device_count(), -1)
    return self._local(np.moveaxis(parts, 2, 0))

  def whole_batches(self, clips_MKB: np.ndarray) -> np.ndarray:
    """The whole batches of each local device's members, `[D, each, K, B]`."""
    if self.by_member:
      clips_MKB = self._pad(clips_MKB)
      return self._local(clips_MKB.reshape(-1, self.each, *clips_MKB.shape[1:]))
    count = jax.local_device_count()
    return np.broadcast_to(clips_MKB, (count, *clips_MKB.shape))

  def share_clips(self, batch: Any) -> Any:
    """Clips that all members see: whole on each device, or cut into parts.

    Args:
      batch: arrays `[n, ...]` of the global batch, n a multiple of
        `num_parts`.
    """
    if self.by_member:
      return self.share(batch)
    num_devices = jax.device_count()
    parts = jax.tree.map(
      lambda x: self._local(x.reshape(num_devices, -1, *x.shape[1:])), batch
    )
    return _on_devices(parts, self._axis)

  def share(self, tree: Any) -> Any:
    """Arrays that all members share, whole on every local device."""
    count = jax.local_device_count()
    copies = jax.tree.map(
      lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree
    )
    return _on_devices(copies, self._axis)

  def put_local(self, tree: Any) -> Any:
    """Arrays with an axis of the local devices in front, on these."""
    return _on_devices(tree, self._axis)

  @property
  def num_parts(self) -> int:
    """Parts that `share_clips` cuts a batch into."""
    return 1 if self.by_member else jax.device_count()

  def map(self, function: Callable, vmap_size: int) -> Callable:
    """Compiles `function(member, shared)` for all members on all devices.

    Args:
      function: pure; may reduce over `AXIS` if `over_batch` or `gather` has
        been told of this layout.
      vmap_size: members that a device computes under one `vmap`; it goes
        through the others one after the other.

    Returns:
      A function of what `put`, `batch_parts` and the like give.
    """

    def of_device(members, shared):
      return jax.lax.map(
        lambda member: function(member, shared), members, batch_size=vmap_size
      )

    return jax.pmap(of_device, axis_name=self._axis)

  def over_batch(self, step: Callable) -> Callable:
    """A step whose last argument is the batch, with `AXIS` bound."""
    if not self.by_member:
      return step

    # The batch is in one place: an axis of one device for the collectives. Only
    # the batch has it: convolutions with mapped kernels are twice as slow.
    def alone(*args):
      batch = jax.tree.map(lambda x: x[None], args[-1])
      in_axes = (None,) * (len(args) - 1) + (0,)
      mapped = jax.vmap(step, in_axes, out_axes=None, axis_name=AXIS)
      return mapped(*args[:-1], batch)

    return alone

  def gather(self, array_bX: jax.Array) -> jax.Array:
    """Inside `map`: the clips of all devices, joined along the first axis."""
    return array_bX if self.by_member else gather(array_bX)


def best_vmap_size() -> int:
  """How many members share a `vmap`; see benchmarks/engine.py."""
  return 1 if jax.default_backend() == 'cpu' else 64


def replicate(tree: Any) -> Any:
  """Puts a copy of every array on every local device: adds a device axis."""
  count = jax.local_device_count()
  copies = jax.tree.map(
    lambda x: np.broadcast_to(x, (count, *np.shape(x))), tree
  )
  return _on_devices(copies, AXIS)


def unreplicate(tree: Any) -> Any:
  """One copy of replicated arrays, on the host, as NumPy."""
  return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)


def pmap(function: Callable) -> Callable:
  """Compiles a function for all devices; every argument has a device axis."""
  return jax.pmap(function, axis_name=AXIS)


def shard(batch: Any) -> Any:
  """Cuts this host's batch into equal parts, one a local device."""
  count = jax.local_device_count()
  return jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)


def gather(array_bX: jax.Array) -> jax.Array:
  """Inside a mapped step: the parts of all devices, joined along one axis."""
  return jax.lax.all_gather(array_bX, AXIS, tiled=True)


def forget_programs() -> None:
  """Gives up compiled programs, to be called where most are done with.

  One takes a hundred memory maps, of which Linux gives a process 65530: beyond
  that it is aborted. What is used again is read from the cache on the disk.
  """
  jax.clear_caches()


def any_host(value: bool) -> bool:
  """Whether it is true on any host; all hosts must ask, and get one answer."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.asarray(value)).any())


def _local_values(array: jax.Array) -> np.ndarray:
  """The local devices' rows of an array that is spread over processes."""
  shards = sorted(array.addressable_shards, key=lambda s: s.index[0].start or 0)
  return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.cache
def _identity(axis: str) -> Callable:
  return jax.pmap(lambda tree: tree, axis_name=axis)


def _on_devices(tree: Any, axis: str) -> Any:
  """Arrays with a leading device axis, where a mapped function has them.

  The name of the axis counts: arrays of another one are another type to a
  compiled step, which would be compiled again for its own output.
  """
  if not jax.tree.leaves(tree):
    return tree
  if jax.process_count() > 1:
    return _identity(axis)(tree)
  mesh = jax.sharding.Mesh(np.array(jax.local_devices()), (axis,))
  spec = jax.sharding.PartitionSpec(axis)
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))
