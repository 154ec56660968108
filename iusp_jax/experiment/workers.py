"""Several processes on one machine that share the work of a table or tuning.

On a CPU a student is too small to keep many cores busy, and processes that all
use all cores are in each other's way: each gets cores of its own.
"""

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import jax

from iusp_jax.runtime import cores, files, logs, parent, preemption

_WORKER = '--jobs=0'
_SECONDS_BETWEEN_LOOKS = 0.5

Task = TypeVar('Task')


def check(jobs: int, workdir: pathlib.Path) -> None:
  """Raises ValueError where there cannot be so many processes."""
  if jobs <= 1:
    return
  if jax.process_count() > 1:
    raise ValueError(
      f'--jobs is {jobs} and --num_processes {jax.process_count()}: the '
      'processes of a run train every group together; expected --jobs=1'
    )
  backend = jax.default_backend()
  num_cores = cores.num_schedulable_cores()
  if backend != 'cpu':
    raise ValueError(
      f'--jobs is {jobs} and the backend {backend}: one process uses all the '
      'devices that it sees; expected --jobs=1'
    )
  if jobs > num_cores:
    raise ValueError(
      f'--jobs is {jobs}, and {num_cores} is the number of cores: expected at '
      'most one process a core'
    )
  if files.is_remote(workdir):
    raise ValueError(
      f'--jobs is {jobs} and --workdir {workdir}: processes share a table by '
      'locks, which object stores lack; expected a folder of this machine, or '
      '--shard=i/n for each process'
    )


def run(jobs: int) -> list[int]:
  """Runs this process's command in several, each on its share of the cores.

  The shares are equal, since the number of cores decides how sums are rounded;
  cores that are left over stay idle.

  Args:
    jobs: how many.

  Returns:
    Their exit codes, when all have ended.

  Raises:
    ValueError: in a process that is one of such.
  """
  if _WORKER in sys.argv:
    raise ValueError(f'{sys.argv} asks for --jobs={jobs}: expected {_WORKER}')
  processes: list[subprocess.Popen] = []
  try:
    _start(jobs, processes)
    return _wait(processes)
  finally:
    for process in processes:
      process.terminate()  # Nothing, for one that has ended.
    for process in processes:
      process.wait()


def _start(jobs: int, processes: list[subprocess.Popen]) -> None:
  """Adds processes, one by one, to those that have begun."""
  own = cores.own_cores()
  each = len(own) // jobs
  if not cores.can_pin():
    logs.log(
      f'this system cannot keep a process to some of its {len(own)} '
      f'cores: the {jobs} processes share all of them, and are slower'
    )
  for number in range(jobs):
    # A process inherits the cores of the thread that starts it; XLA makes as
    # many threads as it finds there.
    with cores.pinned(own[number * each : (number + 1) * each]):
      words = [sys.executable, *sys.argv, _WORKER]
      child = subprocess.Popen(words, env=parent.environment())
      processes.append(child)


def _wait(processes: list[subprocess.Popen]) -> list[int]:
  """Exit codes of all; logs at once where one has failed."""
  codes: dict[int, int] = {}
  while len(codes) < len(processes):
    preemption.check()
    for number, process in enumerate(processes):
      code = process.poll()
      if code is None or number in codes:
        continue
      codes[number] = code
      if code:
        logs.log(
          f'process {number + 1} of {len(processes)} ended with exit '
          f'code {code}; {len(processes) - len(codes)} go on with its work'
        )
    preemption.check()
    time.sleep(_SECONDS_BETWEEN_LOOKS)
  return [codes[number] for number in range(len(processes))]


def command() -> list[str]:
  """The command that a person typed, here and in the processes of `run`."""
  return [word for word in sys.argv if word != _WORKER]


def attempt_all(
  tasks: Iterable[Task], attempt: Callable[[Task, bool], None]
) -> None:
  """Does tasks that several processes share, first those that are free.

  Args:
    tasks: all of them.
    attempt: does a task under its lock, for which it waits or not; raises
      `files.Busy` where another process holds it. A task that is done is left
      as it is.
  """
  busy = []
  for task in tasks:
    try:
      attempt(task, False)
    except files.Busy:
      busy.append(task)
  for task in busy:  # In case the process that was at it has died.
    attempt(task, True)
