"""How much memory features and stored teacher outputs may take."""

import pathlib
import sys

import jax
import psutil

# Where a container says how much it may use: cgroup version 2, then 1.
_LIMITS = (
  '/sys/fs/cgroup/memory.max',
  '/sys/fs/cgroup/memory/memory.limit_in_bytes',
)


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
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get('bytes_limit', 2 * sys.maxsize) // 2
