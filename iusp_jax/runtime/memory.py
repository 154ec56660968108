"""How much memory there is, and may be taken by what is kept in memory."""

import pathlib
import resource
import sys

import psutil

# Where a container says how much it may use: cgroup version 2, then 1.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


# Address space that the smallest run takes: JAX's threads wait for ever for
# memory that they do not get.
_ADDRESS_SPACE = 5_000_000_000


def check() -> None:
  """Raises ValueError where the system allows too little address space."""
  limit, _ = resource.getrlimit(resource.RLIMIT_AS)
  if 0 <= limit < _ADDRESS_SPACE:
    raise ValueError(
      f'the limit on memory is {limit / 1e9:.1f} GB of address space: expected '
      f'at least {_ADDRESS_SPACE / 1e9:.0f} GB; raise it with ulimit -v'
    )


def is_exhausted(error: BaseException) -> str:
  """What an error says of memory that ran out; empty for another one."""
  text = str(error).partition('\n')[0]
  if isinstance(error, MemoryError):
    return text or 'MemoryError'
  signs = ('RESOURCE_EXHAUSTED', "can't start new thread", 'Out of memory')
  return text if any(sign in text for sign in signs) else ''


def host_budget() -> int:
  """Bytes of a host: half of what is free, in a container of its limit."""
  free = psutil.virtual_memory().available
  for name in _LIMITS:
    try:
      limit = int(pathlib.Path(name).read_text())
    except (OSError, ValueError):  # Not there, or 'max'.
      continue
    free = min(free, limit - psutil.Process().memory_info().rss)
  return free // 2


def device_budget() -> int:
  """Bytes of a device: half of its memory; on a CPU the host's is meant."""
  import jax

  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit', 2 * sys.maxsize) // 2
