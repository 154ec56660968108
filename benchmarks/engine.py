"""What a step costs: one member or many, clips from memory or from the disk.

  PYTHONPATH=. .venv/bin/python benchmarks/engine.py [student ...]

Milliseconds for one step of one student, best of the rounds, side by side in
one process, and how many times as fast as the first way: a run by itself whose
teacher runs in every step. `stored`: teacher outputs are stored, the term is
IUSP. `stream`: the clips are read in every step.
"""

import sys
import time

import jax
import numpy as np

from configs import base
from iusp_jax.data import datasets, sources
from iusp_jax.experiment import identity
from iusp_jax.models import tagger
from iusp_jax.objectives import terms
from iusp_jax.runtime import devices
from iusp_jax.training import engine, evaluate, step
from iusp_jax.training.recipe import Recipe
from tfds_dcase import taxonomy

NUM_CLIPS, STEPS, ROUNDS = 256, 4, 3
WAYS = {
  'teacher in every step': (1, 1, 'teacher'),
  'stored': (1, 1, 'stored'),
  'stored, stream': (1, 1, 'stream'),
  '8 members, stored': (8, 1, 'stored'),
  '8 members, vmap': (8, 8, 'stored'),
}


def make_dataset() -> datasets.Dataset:
  """Noise in the shape of real clips."""
  rng = np.random.default_rng(0)
  clips = [
    {
      'audio': rng.integers(-9999, 9999, 160_000).astype(np.int16),
      'num_samples': np.int32(160_000),
      'clip_id': f'{k}.wav'.encode(),
      'coarse': rng.integers(0, 2, len(taxonomy.COARSE)).astype(np.int8),
    }
    for k in range(NUM_CLIPS)
  ]
  names = ('train', 'validate')
  splits = {
    name: datasets.Split(name, clips, 'coarse', 'any') for name in names
  }
  return datasets.Dataset('noise', 'coarse', taxonomy.COARSE, (), splits)


def milliseconds(dataset, student, features, way) -> float:
  """Best time for one step of one member."""
  num_members, vmap_size, kind = way
  recipe = Recipe.from_config(
    identity.plain(base.recipe(base.STUDENTS[student], 20))
  )
  objective = terms.Objective(
    {'iusp': 300.0}, {'iusp': 'constant'}, {'iusp': {}}
  )
  teacher, variables = None, {}
  if kind == 'teacher':
    made = identity.plain(base.teacher(''))
    teacher = tagger.build(made, len(dataset.tags))
    variables = teacher.initialise(0, dataset.num_samples)
  jobs = [
    step.Job(student, recipe, objective, dataset, seed, teacher)
    for seed in range(num_members)
  ]
  gram = np.random.default_rng(0).random((NUM_CLIPS, 125, 125), np.float32)
  outputs = {} if teacher else {f'{sources.TARGET}frame_gram': gram}

  def source(order, layout, max_steps):
    if kind == 'stream':
      return sources.Stream(dataset.splits['train'], outputs, order, layout)
    own = features['wave' if teacher else 'mel']
    return sources.Resident(
      {**own, **outputs}, order, layout, sys.maxsize, max_steps
    )

  usual = devices.best_vmap_size
  devices.best_vmap_size = lambda: vmap_size
  validate = evaluate.Clips(dataset.splits['validate'])
  group = engine.Group(jobs, engine.Feed(source, validate, variables), None)
  devices.best_vmap_size = usual
  return _best(group, variables) / num_members


def _best(group, variables) -> float:
  """Best time for a step of a whole group."""
  states = [step.initial_state(job, group.plan) for job in group.jobs]
  settings = [job.settings() for job in group.jobs]
  put = group.layout.put
  state, settings = (
    put(jax.tree.map(lambda *x: np.stack(x), *tree))
    for tree in (states, settings)
  )
  variables = group.layout.share(variables)
  count = min(STEPS, group.source.max_steps)
  best, number = np.inf, 0
  for k in range(ROUNDS * STEPS // count + 1):
    started = time.monotonic()
    arrays, places = group.source.take(range(number, number + count))
    number += count
    shared = arrays, variables, group.layout.share(np.int32(count))
    jax.block_until_ready(group.advance((state, settings, places), shared))
    if k:  # The first one compiles.
      best = min(best, time.monotonic() - started)
  return 1000 * best / count


def main():
  """Prints the table."""
  print(f'{devices.describe()}, batch 32')
  dataset = make_dataset()
  split = dataset.splits['train']
  mel = Recipe.from_config(
    identity.plain(base.get_config()['student'])
  ).frontend
  features = {
    'wave': sources.features(split, None),
    'mel': sources.features(split, mel),
  }
  for student in sys.argv[1:] or base.STUDENTS:
    first = None
    for name, way in WAYS.items():
      found = milliseconds(dataset, student, features, way)
      first = first or found
      print(
        f'{student:15} {name:22} {found:8.2f} ms {first / found:7.2f}',
        flush=True,
      )


if __name__ == '__main__':
  main()
