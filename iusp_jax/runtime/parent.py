"""A process that ends when the one that started it is gone.

A parent hands signals on to its children, but nothing can be handed on by one
that was killed: its children would go on by themselves.
"""

import os
import threading
import time

from iusp_jax.runtime import peers

_POLL_SECONDS = 1.0


def end_with(parent_id: int) -> None:
  """Ends this process within 5 s after its parent, with `peers.EXIT_CODE`.

  Everything is written whole or not at all, so that it may end at any moment.

  Args:
    parent_id: the parent's process id, handed down by itself: it may be gone
      before this process can ask for it.
  """
  threading.Thread(target=_watch, args=(parent_id,), daemon=True).start()


def _watch(parent_id):
  # A process whose parent is gone is given another one, on every Unix.
  while os.getppid() == parent_id:
    time.sleep(_POLL_SECONDS)
  peers.end_at_once(
    f'process {parent_id}, which started this one ({os.getpid()}), is gone; '
    'this one ends too'
  )
