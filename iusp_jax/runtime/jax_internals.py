"""What JAX has no public function for; nothing else imports `jax._src`.

- `detect_cluster`: `jax.distributed.initialize` finds out by itself which
  cluster it runs in, but gives no answer before it waits for all processes,
  and aborts without naming the missing ones. `peers.py` has to know first.
- `coordination_client`: JAX has no public barrier between processes that is
  not a computation on the devices, whose transports have time limits of half
  a minute; process 0 may prepare data for hours.

`jax>=0.10,<0.13` in pyproject.toml are the versions that have both.
"""

import sys
from typing import Any


def coordination_client() -> Any:
  """The client of JAX's coordination service; None where it does not run.

  It does not import JAX: without several processes nobody needs it.
  """
  module = sys.modules.get('jax._src.distributed')
  return None if module is None else module.global_state.client


def detect_cluster(
  timeout: float,
) -> tuple[str | None, int | None, int | None, list[int] | None]:
  """Coordinator, number of processes, own number and own devices.

  Args:
    timeout: seconds to wait for the names of other hosts.

  Returns:
    As JAX finds them for a TPU pod, Slurm or Open MPI; None where it does not.
  """
  from jax._src import clusters

  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
    None, None, None, None, None, int(timeout)
  )
  coordinator, num_processes, process_id, devices = found
  own = None if devices is None else list(devices)
  return coordinator, num_processes, process_id, own
