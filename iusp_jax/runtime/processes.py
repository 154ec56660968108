"""What the processes of one run do together, outside of a step.

They talk through JAX's coordination service and not through the devices,
whose barriers may have a time limit: process 0 may prepare data for hours.
`hosts.py` starts such a run. Without it a process is alone, and nothing here
waits or loads JAX.
"""

import itertools
import json
import sys
from collections.abc import Callable
from typing import Any

_FOREVER_MS = 30 * 24 * 3600 * 1000  # `hosts.py` notices who is gone.
_NUMBERS = itertools.count()  # All processes call the same in one order.


def _runtime() -> Any:
  """The state of JAX's distributed runtime; None where it is not started."""
  module = sys.modules.get('jax._src.distributed')
  if module is None or module.global_state.client is None:
    return None
  return module.global_state


def is_primary() -> bool:
  """Whether this process writes: process 0, or the only one."""
  runtime = _runtime()
  return runtime is None or runtime.process_id == 0


def barrier() -> None:
  """Waits until all processes are here."""
  if runtime := _runtime():
    key = f'iusp/{next(_NUMBERS)}'
    runtime.client.wait_at_barrier(key, _FOREVER_MS)


def end_together(seconds: float) -> bool:
  """Whether all processes come here within some time."""
  runtime = _runtime()
  if runtime is None:
    return True
  try:
    runtime.client.wait_at_barrier('iusp/end', int(1000 * seconds))
  except Exception:  # Too late, or process 0 is gone: no type tells which.
    return False
  return True


def by_primary(call: Callable[[], Any]) -> Any:
  """What a call gives in process 0, on all processes; the others wait.

  So all go the same way where they might see different files or times.

  Args:
    call: gives what JSON can hold; only process 0 calls it.
  """
  runtime = _runtime()
  if runtime is None:
    return call()
  key = f'iusp/{next(_NUMBERS)}'
  if is_primary():
    runtime.client.key_value_set(key, json.dumps(call()))
  return json.loads(runtime.client.blocking_key_value_get(key, _FOREVER_MS))


def primary_first(call: Callable[[], Any]) -> Any:
  """A call of every process, the others' after process 0's is done."""
  if is_primary():
    result = call()
    barrier()
    return result
  barrier()
  return call()
