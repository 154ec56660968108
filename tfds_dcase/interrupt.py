"""A way to stop a preparation between two examples.

Whoever wants to stop it, on a signal or a deadline, appends a function to
`CHECKS` that raises (SystemExit, say). Every loop of the builders that may
take long calls `check` between two scenes, recordings, parts of a recording or
of a download, from several threads at once; what such an exception leaves
behind never counts as a finished data set.
"""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

_Result = TypeVar('_Result')

CHECKS: list[Callable[[], None]] = []
_PAUSE_SECONDS = 0.2


class _Helper(threading.Thread):
  """A thread that nobody may wait for any more."""

  abandoned = False


def check() -> None:
  """Calls every function of `CHECKS`; what they raise ends the preparation.

  Raises:
    SystemExit: in a thread that `wait_for` has left behind.
  """
  if getattr(threading.current_thread(), 'abandoned', False):
    raise SystemExit
  for function in CHECKS:
    function()


def wait_for(function: Callable[..., _Result], *args) -> _Result:
  """`function(*args)` in a thread, while `check` is called five times a second.

  For calls that may block for a minute, such as a read from a network. When
  `check` raises, the thread is left behind: it ends with the process, or where
  it calls `check` itself.
  """
  answers = queue.SimpleQueue()

  def run():
    try:
      answers.put((function(*args), None))
    except BaseException as error:  # handed over, whatever it is
      answers.put((None, error))

  thread = _Helper(target=run, daemon=True)
  thread.start()
  while True:
    try:
      check()
    except BaseException:
      thread.abandoned = True
      raise
    try:
      result, error = answers.get(timeout=_PAUSE_SECONDS)
    except queue.Empty:
      continue
    if error is not None:
      raise error
    return result
