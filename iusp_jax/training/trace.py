"""A trace of some train steps by JAX's profiler."""

import pathlib

import jax

from iusp_jax.runtime import logs


class Trace:
  """Traces some steps after those that compile.

  Attributes:
    steps_left: that are still to be traced.
  """

  def __init__(self, folder: pathlib.Path, num_steps: int):
    self._folder, self._num_steps = folder, num_steps
    self.steps_left, self._runs = num_steps, False

  def after(self, outputs, num_steps: int) -> None:
    """Called with the outputs of every chunk of steps that was dispatched."""
    if not self.steps_left:
      return
    if not self._runs:
      jax.block_until_ready(outputs)
      jax.profiler.start_trace(str(self._folder))
      self._runs = True
      return
    self.steps_left = max(0, self.steps_left - num_steps)
    if not self.steps_left:
      jax.block_until_ready(outputs)
      self.close()

  def close(self) -> None:
    """Writes the trace, also one shorter than was asked for."""
    if self._runs:
      jax.profiler.stop_trace()
      logs.log(
        f'A trace of {self._num_steps - self.steps_left} steps is in '
        f'{self._folder}: view it with https://ui.perfetto.dev or TensorBoard'
      )
    self._runs, self.steps_left = False, 0
