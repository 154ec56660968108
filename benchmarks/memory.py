"""Does memory stay flat? Resident memory over 10,000 steps of a tiny student.

PYTHONPATH=. .venv/bin/python benchmarks/memory.py

It is the real loop: metrics, TensorBoard, a validation and two
checkpoints every 1,000 steps. Flat means that the last 5,000 steps add less
than `--allowed_mb`; the exit code is 1 otherwise.
"""

import pathlib
import sys
import tempfile

import numpy as np
from absl import app, flags, logging

from configs import base
from iusp_jax.data import datasets
from iusp_jax.experiment import feeds, identity
from iusp_jax.objectives import terms
from iusp_jax.runtime import metrics_log
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe
from tfds_dcase import taxonomy

_STEPS = flags.DEFINE_integer('steps', 10_000, 'Train steps.')
_ALLOWED = flags.DEFINE_float('allowed_mb', 20.0, 'Growth in the second half.')

NUM_SAMPLES = 4_000
NUM_CLIPS = 64


def dataset() -> datasets.Dataset:
  """Noise of a quarter of a second, with random tags, in memory."""
  rng = np.random.default_rng(0)
  clips = [
    {
      'audio': rng.integers(-999, 999, NUM_SAMPLES).astype(np.int16),
      'num_samples': np.int32(NUM_SAMPLES),
      'clip_id': f'{k}.wav'.encode(),
      'coarse': rng.integers(0, 2, len(taxonomy.COARSE)).astype(np.int8),
    }
    for k in range(NUM_CLIPS)
  ]
  splits = {
    name: datasets.Split(name, clips, 'coarse', 'any')
    for name in ('train', 'validate')
  }
  return datasets.Dataset('noise', 'coarse', taxonomy.COARSE, (), splits)


def resident_mb() -> float:
  """Resident memory of this process."""
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * 4096 / 2**20


def main(argv):
  """Trains, and prints the memory at every validation."""
  del argv
  logging.set_verbosity(logging.ERROR)  # The libraries' own chatter.
  model = {'architecture': 'crnn', 'width': 4, 'hidden': 4}
  recipe = identity.plain(base.recipe(model, num_mel_bands=8))
  recipe['training'] |= {
    'batch_size': 4,
    'epochs': _STEPS.value * 4 / NUM_CLIPS,
    'eval_every_epochs': _STEPS.value / 10 * 4 / NUM_CLIPS,
  }
  found = []
  write = metrics_log.MetricsWriter.write

  def watched(self, row):
    write(self, row)
    if any(name.startswith('validate/') for name in row):
      found.append(resident_mb())
      print(f'step {row["step"]}: {found[-1]:.1f} MB', flush=True)

  metrics_log.MetricsWriter.write = watched
  with tempfile.TemporaryDirectory() as folder:
    of = Recipe.from_config(recipe)
    job = step.Job('tiny', of, terms.Objective(), dataset(), 0)
    feed = feeds.Features(job.dataset).feed(job)
    workdir = pathlib.Path(folder)
    engine.fit([job], feed, workdir, metrics_dir=workdir)
  growth = found[-1] - found[len(found) // 2 - 1]
  print(f'the second half added {growth:.1f} MB (allowed {_ALLOWED.value})')
  sys.exit(growth > _ALLOWED.value)


if __name__ == '__main__':
  app.run(main)
