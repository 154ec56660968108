"""What watches the loop: losses that are no numbers, and a profiler's trace."""

import dataclasses
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.runtime import files, logs

# After so many batches it is not the batches' fault.
MAX_SKIPPED = 3

ON_NAN = ('stop', 'roll_back')


@dataclasses.dataclass(frozen=True)
class Done:
  """A step that has been dispatched.

  Attributes:
    step: steps done with it.
    batch: number of its batch in the stream, from 0.
    stream: state of the stream before that batch.
    outputs: of the step, on the devices.
  """

  step: int
  batch: int
  stream: Any
  outputs: Mapping[str, Any]

  def values(self) -> dict[str, float]:
    """The outputs as numbers; waits for the step."""
    return {
      name: float(np.asarray(value.addressable_data(0))[0])
      for name, value in self.outputs.items()
    }


class NotFinite(FloatingPointError):
  """A loss, gradient, parameter or prediction that is NaN or infinite.

  Attributes:
    done: the first step that had it.
    values: that step's parts of the loss.
  """

  def __init__(self, message: str, done: Done):
    super().__init__(message)
    self.done, self.values = done, done.values()


class Watch:
  """Finds the first step since the last look whose numbers are not finite.

  Every step is held until it has been looked at, so that the step is found
  that began it and not the one that was logged.
  """

  def __init__(self):
    self._unseen: list[Done] = []

  def add(self, done: Done) -> None:
    """Remembers a step to look at."""
    self._unseen.append(done)

  def look(self, name: str, up_to: int, remedy: str) -> None:
    """Raises NotFinite for the first bad step up to number `up_to`."""
    while self._unseen and self._unseen[0].step <= up_to:
      done = self._unseen.pop(0)
      values = done.values()
      if np.isfinite(list(values.values())).all():
        continue
      raise NotFinite(
        f'{name}: the loss of step {done.step} is {values["loss"]}, its '
        f'gradient_norm {values["gradient_norm"]} (all: {values}): {remedy}',
        done,
      )


def save_batch(
  path: pathlib.Path, error: NotFinite, stream, split: datasets.Split
) -> None:
  """Writes the batch that an error came with, read again from the stream.

  `nan_batch.npz` holds `step`, every part of the loss as `loss/<part>`, the
  clips' names as `clip_id` (those mixed in as `partner_clip_id`), and the batch
  itself: `index`, `wave`, `tags` …
  """
  stream.set_state(error.done.stream)
  batch = next(stream)
  arrays = {
    **batch,
    'step': np.asarray(error.done.step),
    'batch': np.asarray(error.done.batch),
    **{
      f'{whose}clip_id': np.asarray(datasets.clip_ids(split, batch[key]))
      for whose, key in (('', 'index'), ('partner_', 'partner'))
      if key in batch
    },
    **{f'loss/{name}': value for name, value in error.values.items()},
  }
  if jax.process_index():
    path = path.with_stem(f'{path.stem}_{jax.process_index()}')
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  files.write_atomically(path, content.getvalue(), everywhere=True)
  logs.log(f'The batch of step {error.done.step} is in {path}')


def refuse_not_finite(
  arrays: Any, name: str, remedy: str, done: Done | None
) -> None:
  """Raises NotFinite, naming them, if arrays hold NaN or infinity."""
  wrong = [
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    if not np.isfinite(leaf).all()
  ]
  if not wrong:
    return
  message = (
    f'{name}: NaN or infinity in {", ".join(wrong[:3])} ({len(wrong)} arrays)'
  )
  if done is None:  # Restored a moment ago: no batch is to blame.
    raise FloatingPointError(f'{message}: {remedy}')
  raise NotFinite(f'{message} after step {done.step}: {remedy}', done)


class Trace:
  """A trace by JAX's profiler of some steps after the one that compiles."""

  def __init__(self, folder: pathlib.Path, num_steps: int):
    self._folder, self._left = folder, num_steps
    self._num_steps, self._runs = num_steps, False

  def after(self, outputs: Any) -> None:
    """Is told of every step that has been dispatched."""
    if not self._left:
      return
    if not self._runs:
      jax.block_until_ready(outputs)
      jax.profiler.start_trace(str(self._folder))
      self._runs = True
      return
    self._left -= 1
    if not self._left:
      jax.block_until_ready(outputs)
      self.close()

  def close(self) -> None:
    """Writes the trace, be it shorter than was asked for."""
    if self._runs:
      jax.profiler.stop_trace()
      steps = self._num_steps - self._left
      logs.log(
        f'A trace of {steps} steps is in {self._folder}: '
        'see it with https://ui.perfetto.dev or TensorBoard'
      )
    self._runs, self._left = False, 0
