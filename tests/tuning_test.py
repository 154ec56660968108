"""Weights found fairly, on students of a test's size."""

import json

import jax
import numpy as np
import pytest
from experiments import table_config_of

from configs import base, iusp
from configs import table as table_config
from iusp_jax.data import datasets, sources
from iusp_jax.experiment import tuning
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.runtime import processes
from iusp_jax.training import engine


@pytest.mark.slow
def test_units_make_gradients_equally_long(tiny, setup):
  """At ratio 1, the gradient of the weighted term is that of the tags.

  Against the public losses of waveforms that both models get.
  """
  config = table_config_of(tiny)
  job = tuning._job(config, setup, 'tiny', {}, 0)
  student = job.student()
  variables = engine.train_without_validation(job, setup.feed(job), 3)
  order = sources.Order(24, job.recipe.training.batch_size, (0,))
  clips_KB = order.clips(range(3, 7))['own'][0]
  whole = next(datasets.eval_batches(setup.dataset.splits['train'], 24))
  teacher = setup.teacher

  def all_losses(params, batch):
    output, _ = student.module.apply(
      {**variables, 'params': params},
      tagger.log_mel(student, batch['wave']),
      train=True,
      mutable=['batch_stats'],
    )
    mel_BTF = tagger.log_mel(teacher.model, batch['wave'])
    own = output
    theirs = tagger.apply(teacher.model, teacher.variables, mel_BTF)
    frames = own.frames_BTD, theirs.frames_BTD
    mask_BT = targets.frame_mask(
      batch['length'], 16_000, min(x.shape[1] for x in frames)
    )
    logits = own.logits_BC, theirs.logits_BC
    temperature = config.objective.kd_temperature
    tagging = own.logits_BC, batch['tags'], batch['mask']
    return {
      'tagging': losses.tagging_loss(*tagging),
      'kd': losses.kd_loss(*logits, temperature),
      'sp': losses.sp_loss(*frames),
      'iusp': losses.iusp_loss(*frames, mask_BT),
      'iusp_centred': losses.iusp_loss(*frames, mask_BT, centred=True),
    }

  names = ('kd', 'sp', 'iusp', 'iusp_centred')
  lengths = {term: [] for term in ('tagging', *names)}
  jacobian = jax.jit(jax.jacrev(all_losses))
  for clips_B in clips_KB:
    batch = {key: np.asarray(whole[key])[clips_B] for key in whole}
    for term, gradient in jacobian(variables['params'], batch).items():
      leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
      lengths[term].append(np.sqrt(sum(np.sum(x**2) for x in leaves)))
  units = tuning._units(config, setup, 'tiny', names)
  assert set(units) == set(names)
  for term, unit in units.items():
    ratio = np.mean(lengths['tagging']) / np.mean(lengths[term])
    np.testing.assert_allclose(unit, ratio, rtol=1e-3, err_msg=term)


def test_tuning_tries_every_ratio_with_every_seed(
  tiny, setup, monkeypatch, tmp_path
):
  seen = []

  def fit(jobs, *_, **__):
    seen.extend(jobs)
    return [
      engine.Member(job, best_score=job.objective.weights['sp'] % 7 / 10)
      for job in jobs
    ]

  monkeypatch.setattr(engine, 'fit', fit)
  config = table_config_of(tiny)
  units = {'kd': 1.0, 'sp': 20.0, 'iusp': 100.0}
  path = tmp_path / 'tuning.json'
  found = tuning.tune(config, setup, 'tiny', ('sp', 'iusp'), units, path)
  assert len(seen) == len(config.table.tune_ratios) * config.table.tune_seeds
  assert {job.seed for job in seen} == set(range(config.table.tune_seeds))
  # 0.3 and 3, shared by two terms: sp 3 and 30, of which 3 % 7 is the best.
  assert found['weights'] == {'sp_weight': 3.0, 'iusp_weight': 15.0}
  assert found['ratio'] == 0.3
  assert np.shape(found['validate']) == (2, 2)


def test_ratio_of_runs_that_diverged_is_never_the_best(
  tiny, setup, monkeypatch, tmp_path
):
  good = {30.0}

  def fit(jobs, *_, **__):
    return [
      engine.Member(job, best_score=0.5)
      if job.objective.weights['sp'] in good
      # The score before it diverged counts as little as none.
      else engine.Member(job, best_score=0.9, diverged='step 1 is nan')
      for job in jobs
    ]

  monkeypatch.setattr(engine, 'fit', fit)

  def tune():
    config, path = table_config_of(tiny), tmp_path / 'tuning.json'
    return tuning.tune(config, setup, 'tiny', ('sp',), {'sp': 10.0}, path)

  assert tune()['ratio'] == 3.0
  good.clear()
  with pytest.raises(FloatingPointError, match=r'all 4 runs diverged.*is nan'):
    tune()


@pytest.fixture
def tuned(monkeypatch):
  """Tuning in which SP diverges, without training; which pairs it tried."""
  tried = []

  def tune(config, setup, student, names, units, path):
    tried.append(names)
    if names == ('sp',):
      raise FloatingPointError('all 4 runs diverged')
    weights = {f'{term}_weight': 1.0 for term in names}
    ratio = 3.0 if names == ('kd',) else 1.0
    ratios, scores = [0.3, 1.0, 3.0], [[0.0], [0.1], [0.2]]
    return {
      'ratio': ratio, 'ratios': ratios, 'validate': scores, 'weights': weights,
    }  # fmt: skip

  monkeypatch.setattr(tuning, '_setup', lambda *_: object())
  monkeypatch.setattr(tuning, '_units', lambda *_: {'kd': 1.0})
  monkeypatch.setattr(tuning, 'tune', tune)
  return tried


def test_tuning_keeps_the_others_where_one_diverges(
  tuned, tiny, tmp_path, capsys
):
  with pytest.raises(FloatingPointError, match='tiny sp: all 4 runs diverged'):
    tuning.run(table_config_of(tiny), tmp_path)
  found = json.loads((tmp_path / 'tuned.json').read_text())
  assert set(found['urban_scenes/procedural']['tiny']) == {
    'kd', 'iusp', 'iusp_sp',
  }  # fmt: skip
  assert len(tuned) == 4
  printed = capsys.readouterr().out
  assert printed.count('at an edge of the grid') == 1
  assert 'tiny kd: the best ratio, 3, is at an edge' in printed
  assert '0.3: none' in printed


def test_tuning_goes_on_with_more_objectives_and_refuses_another_recipe(
  tuned, tiny, tmp_path
):
  config = table_config_of(tiny)
  config.table.objectives = ('kd', 'iusp')
  tuning.run(config, tmp_path)
  config.table.weights.tiny.kd.kd_weight = 7.0  # As found, and taken over.
  config.table.seeds, config.table.first_seed = 7, 200  # Not of the tuning's.
  config.bootstrap = 0
  tuning.run(config, tmp_path)
  assert len(tuned) == 2
  config.table.objectives = ('kd', 'iusp', 'iusp_sp')
  tuning.run(config, tmp_path)
  assert tuned[2:] == [('sp', 'iusp')]
  for fields, message in (
    ({'student.training.learning_rate': 0.1}, r'learning_rate: 0\.003 there'),
    ({'table.tune_ratios': (1.0,)}, r'tune_ratios: \[0.3, 3.0\] there'),
    ({'table.tune_seeds': 3}, r'seed: 2 there, 3 now'),
  ):
    other = table_config_of(tiny, **fields)
    other.table.objectives = ('kd',)
    with pytest.raises(ValueError, match=message) as error:
      tuning.run(other, tmp_path)
    assert 'tiny-kd.json was tuned otherwise' in str(error.value)


@pytest.mark.slow
def test_tuning_trains_and_goes_on(tiny, on_fakes, tmp_path, monkeypatch):
  """Killed in the second objective, it trains only that one again."""
  fields = {
    'table.objectives': ('baseline', 'kd', 'iusp'),
    'table.tune_seeds': 1,
    'table.tune_ratios': (0.3, 3.0),
  }
  config = table_config_of(tiny, **fields)
  fit, trained = engine.fit, []

  def fit_one(jobs, *rest, **named):
    trained.append(jobs[0].objective.terms)
    if len(trained) == 2:
      raise InterruptedError
    return fit(jobs, *rest, **named)

  monkeypatch.setattr(engine, 'fit', fit_one)
  with pytest.raises(InterruptedError):
    tuning.run(config, tmp_path)
  tuning.run(config, tmp_path)
  assert trained == [('kd',), ('iusp',), ('iusp',)]
  weights = json.loads((tmp_path / 'tuned.json').read_text())
  found = weights['urban_scenes/procedural']['tiny']
  assert found['kd'].keys() == {'kd_weight'}
  assert found['iusp'].keys() == {'iusp_weight'}
  assert not list((tmp_path / 'tuning').glob('*/training'))
  of = json.loads((tmp_path / 'tuning' / 'tiny-kd.json').read_text())
  best = int(np.argmax(np.mean(of['validate'], 1)))
  value = of['units']['kd'] * of['ratios'][best]
  assert found['kd']['kd_weight'] == terms.rounded(value)


def test_weights_are_those_of_process_0(tiny, setup, monkeypatch):
  """Processes may differ in the last bits of what they measure."""
  asked = []
  original = processes.by_primary

  def by_primary(call, *rest):
    asked.append(original(call, *rest))
    is_measured = isinstance(asked[-1], dict) and 'tagging' in asked[-1]
    return {'tagging': 2.0, 'kd': 0.5} if is_measured else asked[-1]

  monkeypatch.setattr(processes, 'by_primary', by_primary)
  found = tuning._units(table_config_of(tiny), setup, 'tiny', ['kd'])
  assert asked[-1].keys() == {'tagging', 'kd'}
  assert found == {'kd': 4.0}


def test_tuning_weights_are_what_configs_use(monkeypatch):
  tuned = {
    'urban_scenes/procedural': {'crnn_64': {'iusp': {'iusp_weight': 9.0}}}
  }
  monkeypatch.setattr(base, 'TUNED', tuned)
  assert iusp.get_config('').objective.iusp_weight == 9.0
  assert iusp.get_config('student=cnn_4').objective.iusp_weight == 300.0
  found = table_config.get_config('').table.weights
  assert found.crnn_64.iusp.iusp_weight == 9.0
  assert found.crnn_64.sp.sp_weight == 30.0


def test_every_term_can_be_tuned(tiny):
  config = table_config_of(tiny)
  assert set(terms.TERMS) <= set(config.table.weights.tiny)
