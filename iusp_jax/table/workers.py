"""Several processes on one machine that share a table's groups of cells.

On a CPU a student is too small to keep many cores busy, and processes that all
use all cores are in each other's way: each gets cores of its own.
"""

import os
import pathlib
import subprocess
import sys

import jax

from iusp_jax import logs

_WORKER = '--jobs=0'


def check(jobs: int, workdir: pathlib.Path) -> None:
  """Raises ValueError where there cannot be so many processes."""
  if jobs <= 1:
    return
  backend, num_cores = jax.default_backend(), len(os.sched_getaffinity(0))
  if backend != 'cpu':
    raise ValueError(
      f'--jobs is {jobs} and the backend {backend}: one process uses all the '
      'devices that it sees; expected --jobs=1'
    )
  if jobs > num_cores:
    raise ValueError(
      f'--jobs is {jobs} and there are {num_cores} cores: expected at most one '
      'process a core'
    )
  if logs.is_remote(workdir):
    raise ValueError(
      f'--jobs is {jobs} and --workdir {workdir}: processes share a table by '
      'locks, which object stores lack; expected a folder of this machine, or '
      '--shard=i/n for each process'
    )


def run(jobs: int) -> list[int]:
  """Runs this process's command in several, each on its share of the cores.

  Args:
    jobs: how many.

  Returns:
    Their exit codes, when all have ended.
  """
  cores = sorted(os.sched_getaffinity(0))
  processes: list[subprocess.Popen] = []
  try:
    for number in range(jobs):
      # A process inherits the cores of the thread that starts it; XLA makes as
      # many threads as it finds there.
      os.sched_setaffinity(0, cores[number::jobs])
      command = [sys.executable, *sys.argv, _WORKER]
      processes.append(subprocess.Popen(command))
    os.sched_setaffinity(0, cores)
    return [process.wait() for process in processes]
  finally:
    os.sched_setaffinity(0, cores)
    for process in processes:
      process.terminate()  # No-op for one that has ended.
    for process in processes:
      process.wait()


def command() -> list[str]:
  """The command that a person typed, in this process and in a worker."""
  return [word for word in sys.argv if word != _WORKER]
