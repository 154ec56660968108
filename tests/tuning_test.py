"""Weights found fairly, on students of a test's size."""

import json

import jax
import numpy as np
import pytest
from tables import tiny_config

from configs import base
from configs import table as table_config
from iusp_jax.data import datasets
from iusp_jax.experiment import grid, tuning
from iusp_jax.models import tagger
from iusp_jax.training import ensemble, step


def test_units_make_gradients_equally_long(world):
  """At ratio 1, the gradient of the weighted term is that of the tags.

  Against the public losses of waveforms that both models hear.
  """
  job = world.job('tiny', grid.with_weights(world.config, {}), 0)
  student = tagger.build(job.recipe, len(world.dataset.tags))
  variables, order_KB = ensemble.first_epoch(
    job, world.features(student, 'train')
  )
  whole = next(datasets.eval_batches(world.dataset.splits['train'], 24))
  guide = world.guide

  def losses(params, batch):
    output, _ = student.module.apply(
      {**variables, 'params': params},
      tagger.log_mel(student, batch['wave']),
      train=True,
      mutable=['batch_stats'],
    )
    heard = tagger.log_mel(guide.model, batch['wave'])
    own, theirs = output, tagger.apply(guide.model, guide.variables, heard)
    frames = own.frames_BTD, theirs.frames_BTD
    mask_BT = step.frame_mask(
      batch['length'], 16_000, min(x.shape[1] for x in frames)
    )
    logits = own.logits_BC, theirs.logits_BC
    temperature = world.config.objective.kd_temperature
    tagging = own.logits_BC, batch['tags'], batch['mask']
    return {
      'tagging': losses.tagging_loss(*tagging),
      'kd': losses.kd_loss(*logits, temperature),
      'sp': losses.sp_loss(*frames),
      'iusp': losses.iusp_loss(*frames, mask_BT),
      'iusp_centred': losses.iusp_loss(*frames, mask_BT, centred=True),
    }

  lengths = {term: [] for term in ('tagging', *step.DISTILLATION_TERMS)}
  jacobian = jax.jit(jax.jacrev(losses))
  for index_B in order_KB[:4]:
    batch = {key: np.asarray(whole[key])[index_B] for key in whole}
    for term, gradient in jacobian(variables['params'], batch).items():
      leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
      lengths[term].append(np.sqrt(sum(np.sum(x**2) for x in leaves)))
  units = tuning.gradient_units(world, 'tiny')
  assert set(units) == set(step.DISTILLATION_TERMS)
  for term, unit in units.items():
    ratio = np.mean(lengths['tagging']) / np.mean(lengths[term])
    np.testing.assert_allclose(unit, ratio, rtol=1e-3)


def test_tuning_tries_every_ratio_with_every_seed(world, monkeypatch):
  seen = []

  def fit(jobs):
    seen.extend(jobs)
    return [
      ensemble.Member(job, best_score=job.objective['sp_weight'] % 7 / 10)
      for job in jobs
    ]

  monkeypatch.setattr(world, 'fit', fit)
  units = {'kd': 1.0, 'sp': 20.0, 'iusp': 100.0}
  found = tuning.tune(world, 'tiny', ('sp', 'iusp'), units)
  config = world.config.table
  assert len(seen) == len(config.tune_ratios) * config.tune_seeds
  assert {job.seed for job in seen} == set(range(config.tune_seeds))
  # 0.3 and 3, shared by two terms: sp 3 and 30, of which 3 % 7 is the best.
  assert found['weights'] == {'sp_weight': 3.0, 'iusp_weight': 15.0}
  assert found['ratio'] == 0.3
  assert np.shape(found['validate']) == (2, 2)


def test_ratio_of_runs_that_diverged_is_never_the_best(world, monkeypatch):
  def fit(jobs, good):
    return [
      ensemble.Member(job, best_score=0.5)
      if job.objective['sp_weight'] in good
      # The score before it diverged counts as little as none.
      else ensemble.Member(job, best_score=0.9, diverged='step 1 is nan')
      for job in jobs
    ]

  units = {'sp': 10.0}
  monkeypatch.setattr(world, 'fit', lambda jobs: fit(jobs, {30.0}))
  assert tuning.tune(world, 'tiny', ('sp',), units)['ratio'] == 3.0
  monkeypatch.setattr(world, 'fit', lambda jobs: fit(jobs, {}))
  with pytest.raises(FloatingPointError, match=r'all 4 runs diverged.*is nan'):
    tuning.tune(world, 'tiny', ('sp',), units)


@pytest.fixture
def tuned(monkeypatch):
  """Tuning in which SP diverges, without training; which pairs it tried."""
  tried = []

  def tune(world, student, terms, units):
    tried.append(terms)
    if terms == ('sp',):
      raise FloatingPointError('all 4 runs diverged')
    weights = {f'{term}_weight': 1.0 for term in terms}
    ratio = 3.0 if terms == ('kd',) else 1.0
    ratios, scores = [0.3, 1.0, 3.0], [[0.0], [0.1], [0.2]]
    return {
      'ratio': ratio, 'ratios': ratios, 'validate': scores, 'weights': weights,
    }  # fmt: skip

  monkeypatch.setattr(tuning, 'World', lambda *_: object())
  monkeypatch.setattr(tuning, 'gradient_units', lambda *_: {'kd': 1.0})
  monkeypatch.setattr(tuning, 'tune', tune)
  return tried


def test_tuning_keeps_the_others_where_one_diverges(tuned, tmp_path, capsys):
  with pytest.raises(FloatingPointError, match='tiny sp: all 4 runs diverged'):
    tuning.run(tiny_config(), tmp_path)
  found = json.loads((tmp_path / 'tuned.json').read_text())
  assert set(found['urban_scenes/procedural']['tiny']) == {
    'kd', 'iusp', 'iusp_sp',
  }  # fmt: skip
  assert len(tuned) == 4
  said = capsys.readouterr().out
  assert said.count('at an edge of the grid') == 1
  assert 'tiny kd: the best ratio, 3, is at an edge' in said
  assert '0.3: none' in said


def test_tuning_of_another_config_is_refused(tuned, tmp_path):
  config = tiny_config()
  config.table.objectives = ('kd', 'iusp')
  tuning.run(config, tmp_path)
  config.table.weights.tiny.kd.kd_weight = 7.0  # As found, and taken over.
  config.table.seeds, config.table.first_seed = 7, 200  # Not of the tuning's.
  config.bootstrap = 0
  tuning.run(config, tmp_path)
  assert len(tuned) == 2
  config.student.training.learning_rate = 0.1
  with pytest.raises(ValueError, match=r'learning_rate: 0\.003 there'):
    tuning.run(config, tmp_path)


def test_tuning_weights_are_what_configs_use(tmp_path, monkeypatch):
  from configs import iusp

  tuned = {
    'urban_scenes/procedural': {'crnn_64': {'iusp': {'iusp_weight': 9.0}}}
  }
  monkeypatch.setattr(base, 'TUNED', tuned)
  assert iusp.get_config('').objective.iusp_weight == 9.0
  assert iusp.get_config('student=cnn_4').objective.iusp_weight == 300.0
  found = table_config.get_config('').table.weights
  assert found.crnn_64.iusp.iusp_weight == 9.0
  assert found.crnn_64.sp.sp_weight == 30.0
