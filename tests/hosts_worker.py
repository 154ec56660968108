"""What one process of a test does; the flags of a run, then what to do."""

import argparse
import json
import pathlib

import numpy as np

from iusp_jax import (
  checkpoint,
  evaluate,
  hosts,
  parallel,
  processes,
  store,
  train,
)
from iusp_jax import teacher as teachers


def fit(folder, name, epochs, every, stop_after):
  """Trains the job of a name: an objective, perhaps with '+' and a variant."""
  import dataclasses

  from train_test import frozen, make_job

  objective, _, variant = name.partition('+')
  job = make_job(
    objective,
    folder / name,
    augmented=variant == 'augmented',
    epochs=epochs,
    eval_every_epochs=every,
    log_every_steps=1,
  )
  if variant == 'stored':
    place = folder / 'store'
    guide = teachers.Trained(frozen().model, frozen().variables, 'f', folder)
    split = job.dataset.splits['train']
    store.build(place, guide, split, 'float32', batch_size=10)
    terms, outputs = job.terms(), store.open_store(place)
    job = dataclasses.replace(
      job, targets=lambda batch: outputs.lookup(batch, terms)
    )
  if stop_after:
    save = checkpoint.save

    def stopping(saved_in, at, *rest, **named):
      save(saved_in, at, *rest, **named)
      if saved_in.name == 'last' and at >= stop_after:
        raise SystemExit(75)

    checkpoint.save = stopping
  train.fit(job)


def predict(folder):
  """Probabilities of every split by one model, whatever shares the clips."""
  from train_test import fake, frozen

  model = frozen().model
  variables = parallel.replicate(frozen().variables)
  predict = evaluate.compile_predict(model)
  found = {
    name: evaluate.predict_split(predict, variables, split, 8)
    for name, split in fake().splits.items()
  }
  if processes.is_primary():
    np.savez(folder / 'predicted.npz', **found)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('jobs')  # JSON: names.
  parser.add_argument('--epochs', type=float, default=10.0)
  parser.add_argument('--every', type=float, default=10.0)
  parser.add_argument('--stop_after', type=int, default=0)
  parser.add_argument('--coordinator', default='')
  parser.add_argument('--num_processes', type=int)
  parser.add_argument('--process_id', type=int)
  parser.add_argument('--start_timeout', type=float, default=100.0)
  flags = parser.parse_args()
  with hosts.joined(
    coordinator=flags.coordinator,
    num_processes=flags.num_processes,
    process_id=flags.process_id,
    start_timeout=flags.start_timeout,
  ):
    print(parallel.describe(), flush=True)
    flags.folder.mkdir(parents=True, exist_ok=True)
    for name in json.loads(flags.jobs):
      if name == 'predict':
        predict(flags.folder)
      else:
        fit(flags.folder, name, flags.epochs, flags.every, flags.stop_after)


if __name__ == '__main__':
  main()
