"""Does the input keep up? Clips per second of the loader, of the step, of both.

PYTHONPATH=. .venv/bin/python benchmarks/input.py --config=configs/iusp.py:demo

The student is timed without a teacher, as with stored teacher outputs: the
fastest step, and so the hardest to feed. `waits` is the share of the time of
a training loop (no logs, no validation) that goes by in `next(stream)`.
"""

import time

import jax
import numpy as np
from absl import app, flags, logging
from ml_collections import config_flags

from iusp_jax.data import datasets
from iusp_jax.experiment import experiment, teacher
from iusp_jax.models import tagger
from iusp_jax.runtime import devices
from iusp_jax.training import optim, step

_CONFIG = config_flags.DEFINE_config_file('config', 'configs/iusp.py:demo')
_SECONDS = flags.DEFINE_float('seconds', 10.0, 'Of every measurement.')


def stream_of(split, recipe):
  """The stream that training reads."""
  return datasets.train_stream(
    split,
    recipe['training']['batch_size'],
    0,
    mixup_alpha=recipe['augment']['mixup_alpha'],
  )


def prepare(recipe, dataset):
  """The compiled step, its state and its weights, on the devices."""
  job = step.Job('it', recipe, {}, dataset, 0, None)  # pyright: ignore
  student = tagger.build(recipe, len(dataset.tags), devices.AXIS)
  optimizer = optim.optimizer(
    recipe['training'], optim.schedule(recipe['training'], 10_000, 100.0)
  )
  state = step.initial_state(student, optimizer, job)
  train_step = devices.pmap(step.make_step(student, optimizer, job), (0,))
  return train_step, *devices.replicate((state, job.settings()))


def repeat(take) -> tuple[int, float]:
  """Calls `take` for some seconds; the number of calls, and the time."""
  started, count = time.monotonic(), 0
  while time.monotonic() - started < _SECONDS.value:
    take()
    count += 1
  return count, time.monotonic() - started


def measure(recipe, dataset) -> dict[str, float]:
  """Clips per second of the loader, the step and both; the share it waits."""
  size = recipe['training']['batch_size']
  stream = stream_of(dataset.splits['train'], recipe)
  batch = next(stream)  # Threads have started.
  count, seconds = repeat(lambda: next(stream))
  result = {'loader': count * size / seconds}

  train_step, state, settings = prepare(recipe, dataset)
  held, before, waited = [state], [], [0.0]

  def advance(batch):
    held[0], outputs = train_step(held[0], {}, settings, devices.shard(batch))
    if before:  # As in training: step n - 1 is fetched while step n runs.
      np.asarray(before.pop()['loss'].addressable_data(0))
    before.append(outputs)

  advance(batch)
  jax.block_until_ready(held[0])
  count, seconds = repeat(lambda: advance(batch))
  result['step'] = count * size / seconds

  def both():
    started = time.monotonic()
    batch = next(stream)
    waited[0] += time.monotonic() - started
    advance(batch)

  count, seconds = repeat(both)
  return result | {'both': count * size / seconds, 'waits': waited[0] / seconds}


def main(argv):
  """Prints one table."""
  del argv
  logging.set_verbosity(logging.ERROR)  # The libraries' own chatter.
  config = _CONFIG.value
  dataset = experiment.load_dataset(config)
  print(f'{devices.describe()}\n')
  print('| clips/s | loader alone | step alone | both | step waits |')
  print('|---|---|---|---|---|')
  for part in ('teacher', 'student'):
    recipe = teacher.plain(config[part])
    found = measure(recipe, dataset)
    print(
      f'| {part}, {recipe["model"]["architecture"]} | {found["loader"]:.0f} '
      f'| {found["step"]:.0f} | {found["both"]:.0f} | {found["waits"]:.1%} |',
      flush=True,
    )


if __name__ == '__main__':
  app.run(main)
