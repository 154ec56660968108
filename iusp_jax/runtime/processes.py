"""What the processes of one run do together, outside of a step.

They talk through JAX's coordination service and not through the devices,
whose transports have time limits: process 0 may prepare data for hours.
`hosts.py` starts such a run. Without it a process is alone, and nothing here
waits or loads JAX.

Whoever waits looks for a request to stop (see `preemption`) twice a second,
and ends after `_PATIENCE_SECONDS` of waiting: not at once, so that processes
that train together still reach the step after which all of them save.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from iusp_jax.runtime import jax_internals, preemption

_PATIENCE_SECONDS = 3.0
_POLL_MS = 500
_NUMBERS = itertools.count()  # All processes call the same in one order.


class _Own:
  """This process's place in the run."""

  process_id, num_processes = 0, 1


def configure(process_id: int, num_processes: int) -> None:
  """Makes this process one of several; `hosts.py` calls it."""
  _Own.process_id, _Own.num_processes = process_id, num_processes


def is_primary() -> bool:
  """Whether this process writes: process 0, or the only one."""
  return _Own.process_id == 0


def barrier(interruptible: bool = True) -> None:
  """Waits until all processes are here.

  Args:
    interruptible: by a request to stop. Not while process 0 saves.

  Raises:
    preemption.Preempted: where a request to stop comes and the others do not.
  """
  if _Own.num_processes > 1:
    key = f'iusp/{next(_NUMBERS)}'
    _arrive(key)
    _wait_for(f'{key}/all', interruptible)


def end_together(seconds: float) -> bool:
  """Whether all processes come here within some time."""
  if _Own.num_processes == 1:
    return True
  try:
    _arrive('iusp/end')
    _wait_for('iusp/end/all', False, seconds)
  except Exception:  # Too late, or process 0 is gone: no type tells which.
    return False
  return True


def by_primary(call: Callable[[], Any], interruptible: bool = True) -> Any:
  """What a call gives in process 0, on all processes; the others wait.

  So all go the same way where they might see different files or times.

  Args:
    call: gives what JSON can hold; only process 0 calls it.
    interruptible: by a request to stop. Not in training, whose processes
      agree on the step to save and stop after.

  Raises:
    preemption.Preempted: where a request to stop comes and the others do not.
  """
  if _Own.num_processes == 1:
    return call()
  key = f'iusp/{next(_NUMBERS)}'
  if is_primary():
    text = json.dumps(call())
    jax_internals.coordination_client().key_value_set(key, text)
    return json.loads(text)
  return json.loads(_wait_for(key, interruptible))


def primary_first(call: Callable[[], Any]) -> Any:
  """A call of every process, the others' after process 0's is done."""
  if is_primary():
    result = call()
    barrier()
    return result
  barrier()
  return call()


def _arrive(key: str) -> None:
  """Counts this process; the last one to arrive sets `<key>/all`.

  JAX's own barrier cannot be waited for in short turns: one that timed out is
  broken for all.
  """
  client = jax_internals.coordination_client()
  if client.key_value_increment(f'{key}/count', 1) == _Own.num_processes:
    client.key_value_set(f'{key}/all', '')


def _wait_for(
  key: str, interruptible: bool, seconds: float = float('inf')
) -> str:
  """The value of a key that another process sets.

  Raises:
    preemption.Preempted: where it is interrupted.
    jax.errors.JaxRuntimeError: after the time, or where process 0 is gone.
  """
  client, started = jax_internals.coordination_client(), time.monotonic()
  while True:
    try:
      return client.blocking_key_value_get(key, _POLL_MS)
    except Exception as error:  # Of the service: one type for all reasons.
      waited = time.monotonic() - started
      if 'DEADLINE_EXCEEDED' not in str(error) or waited > seconds:
        raise
    if interruptible and waited > _PATIENCE_SECONDS:
      preemption.check()
