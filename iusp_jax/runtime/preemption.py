"""Requests to stop: SIGTERM, as clouds send it, and Ctrl-C (SIGINT).

The signal handler sets a flag and writes one line; it raises nothing, as an
exception may then come up in any line of any library. Whatever takes long
looks at the flag between two pieces of work: training saves its state and
raises `Preempted`, everything else calls `check`. The process exits with
`EXIT_CODE` (or `INTERRUPT_EXIT_CODE`), and the same command continues.
"""

import atexit
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: run the same again, later.
INTERRUPT_EXIT_CODE = 130  # After Ctrl-C, as shells report it: 128 + SIGINT.

_LINES = {
  signal.SIGTERM: b'SIGTERM: saves and stops; the same command continues\n',
  signal.SIGINT: b'Ctrl-C: saves and stops; the same command continues. '
  b'Ctrl-C again ends at once\n',
}
# A child of a process group that got the signal may end, and its error be
# raised here, shortly before the signal itself arrives.
_LATE_SECONDS = 0.5


class Preempted(SystemExit):
  """Ends the process with its exit code, past every `except Exception`."""

  def __init__(self):
    interrupted = _Request.signal_number == signal.SIGINT
    super().__init__(INTERRUPT_EXIT_CODE if interrupted else EXIT_CODE)


class _Request:
  """What the signal handler leaves for everyone else."""

  signal_number = 0  # The first that came; 0 for none.


def listen() -> None:
  """Handles SIGTERM and SIGINT from now on; from the main thread only.

  JAX's own runtime of several processes would take SIGTERM for itself:
  `hosts.py` switches that off.
  """
  for number in _LINES:
    signal.signal(number, _on_signal)
  atexit.register(_ignore)


def _on_signal(number, frame):
  del frame
  if number == signal.SIGINT == _Request.signal_number:
    _write(b'Ctrl-C: ends at once; the same command continues\n')
    os._exit(INTERRUPT_EXIT_CODE)
  if not _Request.signal_number:
    _Request.signal_number = number
    _write(_LINES[number])


def _write(line):
  """Past `print`, in the middle of which the signal may have come."""
  with contextlib.suppress(OSError):  # The terminal may be gone.
    os.write(2, line)


def _ignore():
  """At the end of the process there is nothing left to stop."""
  for number in _LINES:
    signal.signal(number, signal.SIG_IGN)


def requested() -> bool:
  """Whether this process has been asked to stop."""
  return bool(_Request.signal_number)


def check() -> None:
  """Raises Preempted if this process has been asked to stop."""
  if requested():
    raise Preempted


@contextlib.contextmanager
def stop_instead_of_errors() -> Iterator[None]:
  """Around all work: an error that follows a request to stop ends as one line.

  A signal to a whole process group also ends the children of libraries, which
  then raise: XLA a `JaxRuntimeError` where its assembler for GPUs was killed.

  Raises:
    Preempted: in place of any error that comes after the request.
  """
  try:
    yield
  except Exception as error:  # Any library's, whose child was ended.
    if not requested() and type(error).__name__ == 'JaxRuntimeError':
      time.sleep(_LATE_SECONDS)
    if not requested():
      raise
    lines = str(error).splitlines() or ['']
    sys.stdout.flush()
    print(
      f'stopped while it was at work ({type(error).__name__}: {lines[0]}); '
      'what was saved before is kept',
      file=sys.stderr,
    )
    raise Preempted from None
