"""What one process of a test does; the flags of a run, then what to do."""

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np

from iusp_jax.data import datasets, sources, teacher_outputs
from iusp_jax.models import trained
from iusp_jax.runtime import checkpoint, devices, files, hosts, processes
from iusp_jax.training import evaluate


def make_job(name, epochs, every):
  """The job of a name: an objective, perhaps with '+' and a variant."""
  import fits

  objective, _, variant = name.partition('+')
  weights = {k: v for k, v in fits.WEIGHTS.items() if objective in (k, 'all')}
  fields = {'epochs': epochs, 'eval_every_epochs': every}
  data = fits.fake()
  augmented = variant == 'augmented'
  if augmented:
    fields['augment'] = fits.AUGMENT
  if variant == 'accumulated':  # 16 clips: two parts of one on 8 devices.
    # BatchNorm sees which clips share a part, dropout does not.
    fields |= {'batch_size': 16, 'accumulate_steps': 2}
    fields['model'] = {'batch_norm': False}
  if variant == 'uneven':
    data = fits.dataset('both', sizes=(23, 11, 13))
  if variant == 'spoilt':
    data = spoilt(7)
  teacher = bool(weights) and variant not in ('stored', 'members')
  return fits.make_job(weights, 5, data, teacher, **fields)


def spoilt(clip):
  """The data set with one training clip that holds NaN, others as floats."""
  import fits

  made = fits.dataset('both')
  examples = [
    example | {'audio': example['audio'].astype(np.float32) / 2**15}
    for example in made.splits['train'].source
  ]
  examples[clip]['audio'][100] = np.nan
  split = dataclasses.replace(made.splits['train'], source=examples)
  return dataclasses.replace(made, splits={**made.splits, 'train': split})


def fit(folder, name, flags):
  """Trains a job, or a group; leaves `rows.json`."""
  import fits

  job = make_job(name, flags.epochs, flags.every)
  workdir, variant = folder / name, name.partition('+')[2]
  workdir.mkdir(parents=True, exist_ok=True)
  outputs, jobs = {}, [job]
  if job.objective.terms and job.teacher is None:
    model, variables = fits.frozen()
    of = trained.Trained(model, variables, {'fingerprint': 'f'}, folder)
    split = job.dataset.splits['train']
    place = teacher_outputs.Folder(folder / 'outputs', of, split)
    found = place.get_or_build(job.objective.targets)
    outputs = {sources.TARGET + key: x for key, x in found.items()}
  feed = fits.make_feed(job)
  if outputs:
    feed = fits.features(job.dataset).feed(job, outputs, {})
  if variant == 'members':
    jobs = [dataclasses.replace(job, seed=seed) for seed in range(5, 10)]
  if flags.stop_after:
    save = checkpoint.save

    def stopping(saved_in, at, *rest, **named):
      save(saved_in, at, *rest, **named)
      if at >= flags.stop_after:
        raise SystemExit(75)

    checkpoint.save = stopping
  members = fits.fit(
    jobs,
    workdir,
    feed,
    stream=variant in ('stream', 'uneven'),
    on_nan='mask' if jobs[1:] else 'stop',
    metrics_dir=None if jobs[1:] else workdir,
  )
  content = [
    [member.rows, checkpoint.checksums(member.last)] for member in members
  ]
  files.write_atomically(workdir / 'rows.json', json.dumps(content))


def predict(folder, model):
  """Probabilities and scores of every split by one checkpoint."""
  import fits

  tagger, variables = fits.frozen()
  if not processes.by_primary(model.exists):
    checkpoint.save(model, 1, variables, {}, keep=1)
  restored = checkpoint.restore_newest(model)
  assert restored is not None
  layout, found, scores = devices.Layout(1), {}, {}
  variables = dict(restored[1])
  placed = layout.put(jax.tree.map(lambda x: np.asarray(x)[None], variables))
  features = fits.features(fits.fake())
  for name, split in fits.fake().splits.items():
    for place, clips in (
      ('memory', features.clips(tagger.frontend, name)),
      ('disk', evaluate.Clips(split)),
    ):
      probabilities = evaluate.predict(tagger, placed, clips, layout)[0]
      found[f'{name} {place}'] = probabilities
    truth = datasets.truth(split)
    scores[name] = evaluate.score_split(fits.fake(), truth, probabilities)
  if processes.is_primary():
    np.savez(folder / 'predicted.npz', **found)
    (folder / 'scores.json').write_text(files.to_json(scores))


def experiments(folder):
  """A table, its tuning and a run with its baseline, on the fake data."""
  import experiments
  import pytest

  from iusp_jax.experiment import run, table, tuning

  experiments.save_teacher(folder / 'teacher')
  processes.barrier()
  of_table = {'table.objectives': ('iusp_sp',), 'table.seeds': 5}
  of_tuning = {'table.objectives': ('kd',), 'table.tune_seeds': 1}
  with pytest.MonkeyPatch.context() as patch:
    experiments.use_fakes(patch)
    config = experiments.table_config_of(folder, **of_table)
    table.run(config, folder / 'table')
    table.run(config, folder / 'table')  # Finds all of it.
    config = experiments.table_config_of(folder, **of_tuning)
    tuning.run(config, folder / 'tuned')
    config = experiments.run_config(folder, train_baseline=True)
    run.run(config, folder / 'run')


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
    mode='table',
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
      elif name == 'experiments':
        experiments(flags.folder)
      else:
        fit(flags.folder, name, flags)


if __name__ == '__main__':
  main()
