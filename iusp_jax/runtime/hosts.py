"""Starts and ends a run of several processes, one a host or GPU.

Every process runs the same command. `joined` finds out which of how many it
is, waits for the others (`peers.py`) and starts JAX's distributed runtime. A
process that stops by an error ends the others with its message; one that was
killed ends them by JAX's heartbeat: none waits for ever. See
docs/howto/several_hosts.md.
"""

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Iterator

import jax
import numpy as np

from iusp_jax.runtime import (
  devices,
  jax_internals,
  peers,
  preemption,
  processes,
)

MODES = ('train', 'table', 'tune')  # That train.
# After so long without a sign of life of a process, JAX aborts all others,
# with exit code 134.
HEARTBEAT_SECONDS = 10
# For the news of a killed process to arrive where a computation has failed.
_NEWS_SECONDS = 2.0
_END_SECONDS = 3.0  # For all processes to end together.


@contextlib.contextmanager
def joined(
  mode: str = 'train',
  multihost: bool = False,
  coordinator: str = '',
  num_processes: int | None = None,
  process_id: int | None = None,
  start_timeout: float = 300.0,
) -> Iterator[None]:
  """Within it, this process is one of a run; without arguments, the only one.

  Args:
    mode: of run.py; one of `MODES`, where there are several processes.
    multihost: find the rest out from the TPU pod, Slurm or Open MPI.
    coordinator: `host:port` of process 0, instead.
    num_processes: of the run, with `coordinator`.
    process_id: of this process, with `coordinator`.
    start_timeout: seconds to wait for all processes.

  Raises:
    ValueError: for flags that do not go together.
    OSError: where processes are missing after the timeout.
    preemption.Preempted: for a request to stop while it waits.
  """
  check(coordinator, num_processes, process_id, start_timeout)
  if mode not in MODES and (multihost or coordinator):
    raise ValueError(
      f'--mode={mode} is the work of one process: leave out --multihost and '
      '--coordinator'
    )
  if not (multihost or coordinator):
    yield
    return
  local_devices = None
  port = peers.split_address(coordinator)[1] + 1 if coordinator else 0
  if not coordinator:
    found = detect(start_timeout)
    coordinator, num_processes, process_id, local_devices = found
    port = own_port(coordinator)
  assert num_processes is not None
  assert process_id is not None
  group = peers.join(
    coordinator, port, num_processes, process_id, start_timeout
  )
  group.watch()
  try:
    with preemption.stop_instead_of_errors():
      start(
        coordinator, num_processes, process_id, local_devices, start_timeout
      )
      group.rely_on_heartbeat()
      yield
      processes.barrier()
  except BaseException as error:
    _close_after_error(error, group)
    raise
  group.close()


def check(
  coordinator: str,
  num_processes: int | None,
  process_id: int | None,
  start_timeout: float,
) -> None:
  """Raises ValueError, naming the flag, for values that cannot be right."""
  explicit = {'num_processes': num_processes, 'process_id': process_id}
  if not start_timeout > 0:
    raise ValueError(
      f'--start_timeout is {start_timeout}: expected seconds, > 0'
    )
  for name, value in explicit.items():
    if coordinator and value is None:
      raise ValueError(
        f'--coordinator is {coordinator!r}, but --{name} is missing: give '
        'both numbers, as in --num_processes=2 --process_id=0'
      )
    if value is not None and not coordinator:
      raise ValueError(
        f'--{name} is {value}, but --coordinator is missing: give the '
        'host:port of process 0, or --multihost alone on a TPU pod, Slurm or '
        'Open MPI'
      )
  if not coordinator:
    return
  assert num_processes is not None
  assert process_id is not None
  peers.split_address(coordinator)
  if num_processes < 1:
    raise ValueError(f'--num_processes is {num_processes}: expected >= 1')
  if not 0 <= process_id < num_processes:
    raise ValueError(
      f'--process_id is {process_id}: expected 0 to {num_processes - 1}, as '
      f'--num_processes is {num_processes}'
    )


def detect(timeout: float) -> tuple[str, int, int, list[int] | None]:
  """Coordinator, number of processes, own number, own devices, by JAX.

  Raises:
    ValueError: where there is no cluster that JAX knows.
  """
  found = jax_internals.detect_cluster(timeout)
  coordinator, num_processes, process_id, local_devices = found
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(
      '--multihost finds no TPU pod, Slurm job or Open MPI run on '
      'this machine: give --coordinator=HOST:PORT --num_processes=N '
      '--process_id=I on every host'
    )
  return coordinator, num_processes, process_id, local_devices


def own_port(coordinator: str) -> int:
  """The port of our handshake where JAX has chosen its own.

  Under Slurm and Open MPI JAX takes a number of the job from 61440 to 65535.
  The port after it may be that of the next job on the same host, or none.
  """
  port = int(coordinator.rpartition(':')[2])
  return port - 2**15 if port > 2**15 else port + 1


def start(
  coordinator: str,
  num_processes: int,
  process_id: int,
  local_devices: list[int] | None,
  timeout: float,
) -> None:
  """Starts JAX's runtime over all processes, which have to be there.

  Args:
    coordinator: `host:port` of process 0 for JAX.
    num_processes: of the run.
    process_id: of this one.
    local_devices: numbers of its devices; None for all of its host.
    timeout: seconds to wait.

  Raises:
    ValueError: where JAX_PLATFORMS names a backend that is not installed.
  """
  # Of the runtime's two ends, gloo is for CPUs; others have their own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It would take SIGTERM for itself, which `preemption.py` handles.
  jax.config.update('jax_enable_preemption_service', False)
  with _stdout_to_stderr():
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      local_device_ids=local_devices,
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
    processes.configure(process_id, num_processes)
    devices.check_backend()
    # The devices of all processes get to know each other now, while all are
    # here: gloo gives them 30 s, and the first step may find hosts far apart.
    ones = np.ones((jax.local_device_count(), 1), np.float32)
    total = devices.pmap(devices.gather)(ones)
    total.block_until_ready()  # Or gloo still prints while we do.
    assert total.addressable_data(0).size == jax.device_count()


@contextlib.contextmanager
def _stdout_to_stderr():
  """For gloo, which would print before the first line of our own."""
  sys.stdout.flush()
  stdout = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    os.dup2(stdout, 1)
    os.close(stdout)


def _close_after_error(error, group):
  """Ends a process that stops in a run of several.

  Together with the others where all were asked to stop; otherwise they get
  its message, and end as well. Where a computation failed since another
  process was killed, this one is not to blame: JAX's heartbeat ends it.
  """
  if isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
    if processes.end_together(_END_SECONDS):
      group.close()
      return
    group.close(f'exit code {code}' if code == error.code else str(error))
  else:
    code = 1
    if group.lost.wait(_NEWS_SECONDS):
      time.sleep(3 * HEARTBEAT_SECONDS)  # JAX aborts before it is over.
    group.close(f'{type(error).__name__}: {error}')
  # JAX would wait for the others at the end, for minutes.
  atexit.register(_exit_now, code)


def _exit_now(code):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
