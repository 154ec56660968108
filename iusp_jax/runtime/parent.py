"""A process that ends when the one that started it is gone.

A parent hands signals on to its children, but nothing can be handed on by one
that was killed: its children would go on by themselves. A parent starts them
with `environment()`, and they call `watch()` first.
"""

import os
import threading
import time

from iusp_jax.runtime import peers

_VARIABLE = 'IUSP_JAX_PARENT'
_POLL_SECONDS = 1.0


def environment() -> dict[str, str]:
  """Variables for a child, which tell it the process id of this process.

  The child cannot ask for it: its parent may be gone by then.
  """
  return os.environ | {_VARIABLE: str(os.getpid())}


def watch() -> None:
  """Ends this process within 5 s after its parent, with `peers.EXIT_CODE`.

  Without effect in a process that was not started with `environment()`.
  Everything is written whole or not at all, so that it may end at any moment.
  """
  # Not for children of this process, whose parent is another one.
  if parent_id := os.environ.pop(_VARIABLE, ''):
    threading.Thread(target=_watch, args=(int(parent_id),), daemon=True).start()


def _watch(parent_id):
  # A process whose parent is gone is given another one, on every Unix.
  while os.getppid() == parent_id:
    time.sleep(_POLL_SECONDS)
  peers.end_at_once(
    f'process {parent_id}, which started this one ({os.getpid()}), is gone; '
    'this one ends too'
  )
