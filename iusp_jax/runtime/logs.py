"""Lines of the log, and progress; of several processes only process 0 logs."""

import logging
import pathlib
import sys
import time

import absl.logging
import tqdm

from iusp_jax.runtime import processes


def log(message: str, everywhere: bool = False) -> None:
  """A line of the log, past a progress bar if there is one.

  Args:
    message: the line.
    everywhere: from all processes of a run, not only process 0.
  """
  if not (everywhere or processes.is_primary()):
    return
  tqdm.tqdm.write(message, file=sys.stdout)
  sys.stdout.flush()


class _Relay(logging.Handler):
  """A handler that passes a logger's messages to `log`."""

  def emit(self, record: logging.LogRecord) -> None:
    log(record.getMessage())


def relay(name: str) -> None:
  """Logs the messages of one of our own loggers."""
  logger = logging.getLogger(name)
  logger.handlers, logger.propagate = [_Relay()], False
  logger.setLevel(logging.INFO)


def mute(package: str) -> None:
  """Drops what the modules of a package write to absl's log, errors too."""
  absl.logging.get_absl_handler().addFilter(
    lambda record: package not in pathlib.Path(record.pathname).parts
  )


def mute_closed_loop() -> None:
  """Drops tracebacks of threads that report to Orbax's closed event loop.

  TensorStore's do so after a write that failed, a traceback for each array; the
  failure itself is raised where the checkpoint was saved.
  """
  report = sys.unraisablehook

  def hook(found):
    if str(found.exc_value) != 'Event loop is closed':
      report(found)

  sys.unraisablehook = hook


class Progress:
  """A bar on a terminal, a plain line now and then elsewhere."""

  def __init__(self, name: str, step: int, num_steps: int):
    self._name, self._num_steps = name, num_steps
    self._first, self._start = 0, 0.0
    self._bar = None
    self._last_line = time.monotonic()
    if sys.stderr.isatty() and processes.is_primary():
      self._bar = tqdm.tqdm(
        initial=step, total=num_steps, desc=name, unit='step', smoothing=0.1
      )

  def update(self, step: int, loss: float) -> None:
    """After `step` steps; the estimate starts at the second step seen."""
    now = time.monotonic()
    if self._bar is not None:
      self._bar.update(step - self._bar.n)
      self._bar.set_postfix(loss=f'{loss:.4f}', refresh=False)
      return
    if not self._start:  # The first step compiles: it is no measure.
      self._first, self._start = step, now
      return
    if now - self._last_line < 20 and step < self._num_steps:
      return
    self._last_line = now
    rate = (step - self._first) / max(now - self._start, 1e-9)
    left = (self._num_steps - step) / max(rate, 1e-9)
    log(
      f'{self._name}: step {step}/{self._num_steps}, loss {loss:.4f}, '
      f'{rate:.2f} steps/s, {left:.0f} s to go'
    )

  def close(self) -> None:
    """Ends the bar's line."""
    if self._bar is not None:
      self._bar.close()
