"""The processor cores that this process may use.

Systems without `os.sched_getaffinity` and `os.sched_setaffinity`, such as
macOS, cannot keep a process to some of the cores: it uses all of them.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator, Sequence


def own_cores() -> list[int]:
  """Numbers of the cores that the system lets this process run on."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def num_schedulable_cores() -> int:
  """How many cores XLA sees; it decides how sums are rounded on a CPU."""
  return len(own_cores())


def num_cores() -> int:
  """How many cores' worth of time this process gets, at least 1.

  A container may be given the time of two cores and still see all of them.
  """
  return math.ceil(max(1, min(num_schedulable_cores(), _quota())))


def _quota(root: pathlib.Path = pathlib.Path('/sys/fs/cgroup')) -> float:
  """Cores' worth of time that a container allows; infinite without a limit."""
  try:
    if (root / 'cpu.max').exists():  # Version 2 of Linux's control groups.
      quota, period = (root / 'cpu.max').read_text().split()
    else:
      quota = (root / 'cpu' / 'cpu.cfs_quota_us').read_text()
      period = (root / 'cpu' / 'cpu.cfs_period_us').read_text()
    if quota == 'max' or int(quota) <= 0:
      return math.inf
    return int(quota) / int(period)
  except (OSError, ValueError, ZeroDivisionError):  # Another system.
    return math.inf


def can_pin() -> bool:
  """Whether the system can keep a process to some of the cores."""
  return hasattr(os, 'sched_setaffinity')


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
  """Inside, this thread and the processes that it starts use these cores.

  Without effect where `can_pin` is false.
  """
  if not can_pin():
    yield
    return
  before = own_cores()
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)
