"""What one process of a test does; the flags of a run, then what to do."""

import argparse
import dataclasses
import json
import pathlib

import numpy as np

from iusp_jax.data import datasets, store
from iusp_jax.experiment import teacher as teachers
from iusp_jax.runtime import checkpoint, devices, files, hosts, processes
from iusp_jax.training import evaluate, train


def fit(folder, name, epochs, every, stop_after):
  """Trains the job of a name: an objective, perhaps with '+' and a variant."""
  from fakes import TINY, dataset
  from faults_test import spoilt
  from train_test import frozen, make_job

  objective, _, variant = name.partition('+')
  training = {'epochs': epochs, 'eval_every_epochs': every}
  if variant == 'accumulated':  # 16 clips: two parts of one on 8 devices.
    training |= {'batch_size': 16, 'accumulate_steps': 2}
  job = make_job(
    objective,
    folder / name,
    augmented=variant == 'augmented',
    log_every_steps=1,
    **training,
  )
  if variant == 'accumulated':  # BatchNorm sees which clips share a part.
    job = dataclasses.replace(job, recipe={**job.recipe, 'model': TINY})
  if variant == 'uneven':
    job = dataclasses.replace(job, dataset=dataset(sizes=(23, 11, 13)))
  if variant == 'spoilt':
    job = dataclasses.replace(job, dataset=spoilt(7, 'both'))
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


def predict(folder, model):
  """Probabilities and scores of every split by one checkpoint."""
  from train_test import fake, frozen

  if not model.exists():
    checkpoint.save(model, 1, frozen().variables, {}, keep=1)
  restored = checkpoint.restore_newest(model)
  assert restored is not None
  variables = devices.replicate(restored[1])
  predict = evaluate.compile_predict(frozen().model)
  found, scores = {}, {}
  for name, split in fake().splits.items():
    found[name] = evaluate.predict_split(predict, variables, split, 8)
    truth = datasets.truth(split)
    scores[name] = evaluate.score_split(fake(), truth, found[name])
  if processes.is_primary():
    np.savez(folder / 'predicted.npz', **found)
    text = files.to_json(scores)
    (folder / 'scores.json').write_text(text)


def main():
  parser = argparse.ArgumentParser()
  parser.add_argument('folder', type=pathlib.Path)
  parser.add_argument('jobs')  # JSON: names.
  parser.add_argument('--epochs', type=float, default=10.0)
  parser.add_argument('--every', type=float, default=10.0)
  parser.add_argument('--model', type=pathlib.Path)  # A checkpoint.
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
    print(devices.describe(), flush=True)
    flags.folder.mkdir(parents=True, exist_ok=True)
    for name in json.loads(flags.jobs):
      if name == 'predict':
        predict(flags.folder, flags.model or flags.folder / 'model')
      else:
        fit(flags.folder, name, flags.epochs, flags.every, flags.stop_after)


if __name__ == '__main__':
  main()
