"""Starts and ends a run of several processes, one a host or GPU.

Every process runs the same command. `joined` finds out which of how many it
is, waits for the others by `rendezvous.py`, starts JAX's distributed runtime,
and sees to it that a process that fails or dies ends the others with a
message: none waits for ever. See docs/scaling.md.
"""

import atexit
import contextlib
import os
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import clusters

from iusp_jax.runtime import devices, peers, processes

# The connections of `rendezvous` notice first and say who is gone; this is
# how long JAX's own runtime waits, which aborts without a name.
_HEARTBEAT_SECONDS = 25
_NAME_SECONDS = 5.0  # For the name of a process that is gone to arrive.
_END_SECONDS = 20.0  # For all processes to end together.


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
    mode: of run.py; only 'train' is for several processes.
    multihost: find the rest out from the TPU pod, Slurm or Open MPI.
    coordinator: `host:port` of process 0, instead.
    num_processes: of the run, with `coordinator`.
    process_id: of this process, with `coordinator`.
    start_timeout: seconds to wait for all processes.

  Raises:
    ValueError: for flags that do not go together.
    OSError: where processes are missing after the timeout.
  """
  check(coordinator, num_processes, process_id, start_timeout)
  if mode != 'train' and (multihost or coordinator):
    raise ValueError(
      f'--mode={mode} is the work of one process: leave out --multihost and '
      '--coordinator; parts of a table run apart, as in --shard=0/4'
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
  party = start(
    coordinator, port, num_processes, process_id, local_devices, start_timeout
  )
  try:
    yield
  except BaseException as error:
    _leave_by(error, party)
    raise
  processes.barrier()
  party.leave()


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
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, int(timeout)
  )
  coordinator, num_processes, process_id, local_devices = found
  if coordinator is None or num_processes is None or process_id is None:
    raise ValueError(
      '--multihost finds no TPU pod, Slurm job or Open MPI run on '
      'this machine: give --coordinator=HOST:PORT --num_processes=N '
      '--process_id=I on every host'
    )
  return coordinator, num_processes, process_id, local_devices  # pyright: ignore


def own_port(coordinator: str) -> int:
  """The port of our rendezvous where JAX has chosen its own.

  Under Slurm and Open MPI JAX takes a number of the job from 61440 to 65535.
  The port after it may be that of the next job on the same host, or none.
  """
  port = int(coordinator.rpartition(':')[2])
  return port - 2**15 if port > 2**15 else port + 1


def start(
  coordinator: str,
  port: int,
  num_processes: int,
  process_id: int,
  local_devices: list[int] | None,
  timeout: float,
) -> peers.Party:
  """Waits for all processes and starts JAX's runtime over them.

  Args:
    coordinator: `host:port` of process 0 for JAX.
    port: of process 0 for our rendezvous.
    num_processes: of the run.
    process_id: of this one.
    local_devices: numbers of its devices; None for all of its host.
    timeout: seconds to wait.

  Raises:
    OSError: where processes are missing after the timeout.
    ValueError: where two claim the same number.
  """
  party = peers.meet(coordinator, port, num_processes, process_id, timeout)
  party.watch()
  # Of the runtime's two ends, gloo is for CPUs; others have their own.
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  # It would swallow SIGTERM, which is for the training loop to hear.
  jax.config.update('jax_enable_preemption_service', False)
  with _stdout_to_stderr():
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      local_device_ids=local_devices,
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
    )
    # The devices of all processes get to know each other now, while all are
    # here: gloo gives them 30 s, and the first step may find hosts far apart.
    ones = np.ones((jax.local_device_count(), 1), np.float32)
    total = devices.pmap(devices.gather)(ones)
    total.block_until_ready()  # Or gloo still speaks while we do.
    assert total.addressable_data(0).size == jax.device_count()
  return party


@contextlib.contextmanager
def _stdout_to_stderr():
  """For gloo, which would speak before the first line of our own."""
  sys.stdout.flush()
  stdout = os.dup(1)
  os.dup2(2, 1)
  try:
    yield
  finally:
    os.dup2(stdout, 1)
    os.close(stdout)


def _leave_by(error, party):
  """Ends a process that fails in a run of several.

  All together, where all end (by a signal to all); otherwise it tells the
  others, which then end as well.
  """
  code, reason = 1, f'{type(error).__name__}: {error}'
  if isinstance(error, jax.errors.JaxRuntimeError):
    # Perhaps since another process is gone; then its name is on the way.
    party.lost.wait(_NAME_SECONDS)
  if isinstance(error, SystemExit):
    code = error.code if isinstance(error.code, int) else 1
    reason = f'exit code {error.code}'
    if processes.end_together(_END_SECONDS):
      party.leave()
      return
  party.leave(reason)
  # JAX would wait for the others at the end, for minutes.
  atexit.register(_exit_now, code)


def _exit_now(code):
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
