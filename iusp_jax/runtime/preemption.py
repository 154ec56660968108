"""A notice to stop, SIGTERM, as clouds send it before they take a machine.

Training finishes its step, saves state and stream, and ends. All else ends
at once, but for checkpoints (Orbax has threads that would go on without us):
what it writes appears whole or not at all. Either way the process
exits with `EXIT_CODE`, and the same command continues where it stopped.
"""

import atexit
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: the same again, later.


class Preempted(SystemExit):
  """Ends the process with `EXIT_CODE`, past every `except Exception`."""

  def __init__(self):
    super().__init__(EXIT_CODE)


class _Notice:
  """What the signal handler and the loop tell each other."""

  asked = False
  deferred = ''  # What is done before the process ends.


def listen() -> None:
  """Handles SIGTERM from now on; from the main thread only.

  JAX's own runtime of several hosts would take the signal for itself:
  `hosts.py` tells it not to.
  """
  signal.signal(signal.SIGTERM, _on_notice)
  signal.signal(signal.SIGALRM, _on_notice)
  sys.unraisablehook = functools.partial(_on_unraisable, sys.unraisablehook)
  atexit.register(_no_more)


def _on_unraisable(otherwise, lost):
  """Gives the notice again where the signal came in a callback.

  Python throws away what is raised in a callback of its garbage collector
  (JAX has one) or in a `__del__`: without this, the run would go on.
  """
  if issubclass(lost.exc_type, Preempted):
    signal.setitimer(signal.ITIMER_REAL, 0.01)
  else:
    otherwise(lost)


def _no_more():
  """At the end nothing is left to stop: the alarm would kill the process."""
  signal.setitimer(signal.ITIMER_REAL, 0)
  signal.signal(signal.SIGALRM, signal.SIG_IGN)


def _on_notice(signum, frame):
  del signum, frame
  _Notice.asked = True
  # Not `print`: the signal may have come in the middle of one.
  if _Notice.deferred:
    os.write(2, f'SIGTERM: {_Notice.deferred} and stops\n'.encode())
    return
  os.write(2, b'SIGTERM: stops; the same command continues\n')
  raise Preempted


def asked() -> bool:
  """Whether the notice has come."""
  return _Notice.asked


@contextlib.contextmanager
def deferred(what: str = 'finishes the step, saves') -> Iterator[None]:
  """Inside, a notice is only remembered: see `asked`; it acts at the end.

  Args:
    what: is done first, for who gave the notice. Inside another `deferred`
      the outer one speaks, and the notice acts at its end.
  """
  outer = _Notice.deferred
  _Notice.deferred = outer or what
  try:
    yield
  finally:
    _Notice.deferred = outer
  if not outer:
    check()


def check() -> None:
  """Raises Preempted if the notice has come."""
  if _Notice.asked:
    raise Preempted
