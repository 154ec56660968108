"""A process that makes examples for another one.

Not `multiprocessing`: that imports the main script again, which has to be
written for it. The process ends when its parent does, however that ends, as
its standard input then ends.
"""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

_PROGRAM = (
  'import sys; sys.path[:] = sys.argv[1:]; '
  'from tfds_dcase import worker; worker.main()'
)
_END_SECONDS = 5.0


class WorkerError(RuntimeError):
  """A process that makes examples has ended, or could not be started."""


class Worker:
  """One process; used as a context, and by one thread at a time."""

  def __init__(self, make):
    """Starts it.

    Args:
      make: a function that can be pickled.
    """
    try:
      self._process = subprocess.Popen(
        [sys.executable, '-c', _PROGRAM, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        # Each has a core of its own; more threads would only be in the way.
        env={**os.environ, 'OPENBLAS_NUM_THREADS': '1'},
      )
    except OSError as error:
      raise WorkerError(
        f'no further process can be started ({error}): set workers=1'
      ) from error
    self._send(make)

  def __call__(self, *args) -> Any:
    """`make(*args)`.

    Raises:
      WorkerError: the process has ended.
      Exception: what `make` raises.
    """
    self._send(args)
    try:
      result, error = pickle.load(self._process.stdout)  # pyright: ignore
    except (EOFError, pickle.UnpicklingError, OSError) as problem:
      raise self._ended() from problem
    if error is not None:
      raise error
    return result

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *unused) -> None:
    with contextlib.suppress(OSError):
      self._process.stdin.close()  # pyright: ignore
    try:
      self._process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._process.stdout.close()  # pyright: ignore

  def _send(self, value) -> None:
    stdin = self._process.stdin
    assert stdin is not None
    try:
      pickle.dump(value, stdin, pickle.HIGHEST_PROTOCOL)
      stdin.flush()
    except OSError as error:
      raise self._ended() from error

  def _ended(self) -> WorkerError:
    code = None
    with contextlib.suppress(subprocess.TimeoutExpired):
      code = self._process.wait(_END_SECONDS)
    return WorkerError(
      f'a process that makes examples has ended (exit code {code}); was there '
      'too little memory? Run again, with workers=1 if it happens again'
    )


def main() -> None:
  """Answers what comes on standard input until it ends."""
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)  # the parent decides
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what libraries print is no answer
  requests = sys.stdin.buffer
  with contextlib.suppress(EOFError, BrokenPipeError):
    make = pickle.load(requests)
    while True:
      args = pickle.load(requests)
      try:
        answer = make(*args), None
      except Exception as error:
        answer = None, error
      pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
      answers.flush()
