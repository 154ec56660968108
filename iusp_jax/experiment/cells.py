"""Scores the members of a group and leaves each as a run's workdir."""

import functools
import json
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.experiment import experiment, grid, outcome, teacher
from iusp_jax.experiment.grid import Cell
from iusp_jax.experiment.world import World
from iusp_jax.models import tagger
from iusp_jax.objectives import losses
from iusp_jax.runtime import checkpoint, environment, files
from iusp_jax.scoring import metrics
from iusp_jax.training import ensemble, evaluate, step, train

_SCORES = ('micro_auprc', 'macro_auprc', 'map', 'lwlrap', 'class_auprc')


def scores_of(result: Mapping[str, Any]) -> dict[str, Any]:
  """What the report wants of a results.json's model.

  A tag without a clip that has it has no AUPRC: None.
  """
  found = {}
  for split, scores in result['best'].items():
    coarse = scores['coarse']
    found[split] = {name: coarse[name] for name in _SCORES}
    found[split]['class_auprc'] = [
      None if k in coarse['undefined'] else value
      for k, value in enumerate(coarse['class_auprc'])
    ]
  return found


def score_members(world: World, model: tagger.Tagger, members):
  """Probabilities by checkpoint and split, and the frame distance on test."""
  mel = {
    split: jnp.asarray(world.features(model, split)['mel'])
    for split in ('validate', 'test')
  }
  gram_NTT = jnp.asarray(world.outputs['test'].frame_gram)
  length_N = jnp.asarray(world.features(model, 'test')['length'])
  predict = ensemble.compile_predict(model)
  distance = compile_distance(model, world.dataset.num_samples)
  for member in members:
    if member.diverged:
      yield {}, None
      continue
    scores = {
      which: {
        split: evaluate.probabilities(np.asarray(predict(variables, mel_NTF)))
        for split, mel_NTF in mel.items()
      }
      for which, variables in (('best', member.best), ('last', member.last))
    }
    distances_N = distance(member.best, mel['test'], gram_NTT, length_N)
    yield scores, float(np.mean(distances_N))


@functools.cache
def compile_distance(model: tagger.Tagger, num_samples: int) -> Callable:
  """A function of variables, mel `[N, T, F]`, the teacher's frame Gram
  matrices `[N, T, T]` and lengths `[N]`: the IUSP term of each clip, `[N]`.
  """

  def of_clip(variables, mel_TF, gram_TT, length):
    frames_BTD = tagger.apply(model, variables, mel_TF[None]).frames_BTD
    num_frames = min(frames_BTD.shape[1], gram_TT.shape[0])
    mask_BT = step.frame_mask(length[None], num_samples, num_frames)
    gram_TT = gram_TT.astype(jnp.float32)
    return losses.iusp_per_clip(frames_BTD, gram_TT[None], mask_BT)[0]

  def of_split(variables, mel_NTF, gram_NTT, length_N):
    return jax.lax.map(
      lambda clip: of_clip(variables, *clip),
      (mel_NTF, gram_NTT, length_N),
      batch_size=32,
    )

  return jax.jit(of_split)


def write_cell(
  world: World,
  cell: Cell,
  member: ensemble.Member,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  facts: Mapping[str, Any],
  folder: pathlib.Path,
) -> None:
  """Leaves a run's workdir; `cell.json` appears when all else is there."""
  shutil.rmtree(folder, ignore_errors=True)  # Of a killed table.
  job = member.job
  record = {
    **cell.facts(),
    'model': job.recipe['model'],
    'weights': {
      name.removesuffix('_weight'): value
      for name, value in job.objective.items()
      if name.endswith('_weight') and value
    },
    **facts,
    'status': 'diverged' if member.diverged else 'done',
    'reason': member.diverged,
  }
  name = train.selection_metric(job.dataset)
  record['curve'] = [
    [row['step'], row[name]] for row in member.rows if name in row
  ]
  if not member.diverged:
    record |= _write_run(world, cell, member, scores, folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in member.rows)
  files.write_atomically(folder / 'metrics.jsonl', text)
  files.write_atomically(folder / 'cell.json', files.to_json(record))


def _write_run(world, cell, member, scores, folder) -> dict[str, Any]:
  """Config, checkpoints, scores, predictions; gives the record's scores."""
  job, dataset = member.job, world.dataset
  config = grid.config_of(world.config, cell.rotation)
  config['student']['model'] = job.recipe['model']
  config |= {'name': cell.objective, 'seed': cell.seed}
  config |= {'objective': dict(job.objective)}
  files.write_atomically(experiment.config_path(folder), files.to_json(config))
  of = experiment.identity(job, world.guide if job.terms() else None)
  teacher.save_facts(folder, of, dataset)
  for which, variables, at in (
    ('best', member.best, member.best_step),
    ('last', member.last, member.rows[-1]['step']),
  ):
    arrays = flax.serialization.to_state_dict(variables)
    facts = {'score': member.best_score}
    checkpoint.save(folder / 'checkpoints' / which, at, arrays, facts, keep=1)
  model = tagger.build(job.recipe, len(dataset.tags))
  trained = teacher.Trained(model, member.best, teacher.fingerprint(of), folder)
  result = outcome.describe(trained, dataset, scores, bootstrap=0)
  outcome.write_predictions(dataset, scores['best'], folder)
  results = {
    'config': config,
    'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
    'seed': cell.seed,
    'environment': environment.collect(),
    'student': result,
  }
  files.write_atomically(folder / 'results.json', files.to_json(results))
  return {
    **{key: result[key] for key in ('parameters', 'macs')},
    **scores_of(result),
    'last_test_micro_auprc': result['last']['test']['coarse']['micro_auprc'],
    'resampled': _resampled(world, scores['best']['test']),
  }


def _resampled(world: World, scores_NC: np.ndarray) -> list[float]:
  """Micro-AUPRC on resamples of the test clips; empty without bootstrap."""
  if not (count := world.config['bootstrap']):
    return []
  drawn = metrics.resample(
    datasets.truth(world.dataset.splits['test'])['coarse'],
    evaluate.by_level(world.dataset, scores_NC)['coarse'],
    bootstrap=count,
  )
  return drawn['micro_auprc'].round(5).tolist()
