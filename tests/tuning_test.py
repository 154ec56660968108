"""Values found fairly, on students of a test's size."""

import json

import jax
import numpy as np
import pytest
from experiments import table_config_of
from fakes import TINY, recipe

from configs import base, iusp
from configs import table as table_config
from iusp_jax.data import datasets, sources
from iusp_jax.experiment import gradient_units, tuning
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.objectives.terms import config_fields
from iusp_jax.runtime import processes
from iusp_jax.training import engine
from iusp_jax.training.recipe import Recipe


def job_of(setup, names=()):
  """A student's run, with terms at weight 1."""
  fields = config_fields() | {f'{name}_weight': 1.0 for name in names}
  objective = terms.Objective.from_config(fields)
  return setup.job('tiny', Recipe.from_config(recipe(TINY)), objective, 0)


@pytest.mark.slow
def test_units_make_gradients_equally_long(setup):
  """At ratio 1, the gradient of the weighted term is that of the tags.

  Against the public losses of waveforms that both models get.
  """
  job = job_of(setup)
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
    temperature = config_fields()['kd_temperature']
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
  products = []
  jacobian = jax.jit(jax.jacrev(all_losses))
  for clips_B in clips_KB:
    batch = {key: np.asarray(whole[key])[clips_B] for key in whole}
    found = {
      term: np.concatenate(
        [np.asarray(x, np.float64).reshape(-1) for x in jax.tree.leaves(tree)]
      )
      for term, tree in jacobian(variables['params'], batch).items()
    }
    for term, gradient_P in found.items():
      lengths[term].append(np.linalg.norm(gradient_P))
    products.append([found['tagging'] @ found[term] for term in names])
  units = gradient_units.measure(
    setup, job.recipe, job_of(setup, names).objective
  )
  assert set(units) == set(names)
  for term, unit in units.items():
    ratio = np.mean(lengths['tagging']) / np.mean(lengths[term])
    np.testing.assert_allclose(unit, ratio, rtol=1e-3, err_msg=term)
  objective = job_of(setup, names).objective
  found_NKK = gradient_units.products(setup, job.recipe, objective)
  order = [names.index(term) for term in objective.terms]
  np.testing.assert_allclose(
    found_NKK[:, 0, 1:],
    np.array(products)[:, order],
    atol=1e-3 * abs(found_NKK).max(),
  )


@pytest.fixture
def looked(monkeypatch):
  """Tuning without training; the looks, and what a look scores.

  Replaces what trains: a score is a function of search, value and seed.
  """
  looks = []

  class Looked:
    """By search, value and seed; 0 is a run that diverged."""

    score = staticmethod(lambda search, value, seed: 0.5)
    looks: list

  def train(config, search, setup, values, seeds, folder):
    assert setup.rotation == search.rotation
    looks.extend(
      (search.name, value, seed) for value in values for seed in seeds
    )
    return [[Looked.score(search, v, seed) for seed in seeds] for v in values]

  class OfRotation:
    def __init__(self, config, rotation):
      del config
      self.rotation = rotation

  monkeypatch.setattr(tuning, '_setup', OfRotation)
  monkeypatch.setattr(tuning, '_train', train)
  Looked.looks = looks
  return Looked


def config_of(folder, *objectives, **fields):
  """A table that tunes five values of some objectives."""
  config = table_config_of(folder)
  config.table.objectives = objectives
  config.table.tune_ratios = (0.3, 1.0, 3.0, 10.0, 30.0)
  config.table.tune_learning_rates = (1e-3, 2e-3, 4e-3)
  config.table.tune_seeds = 3
  for name, value in fields.items():
    config.table[name] = value
  config.student.training.learning_rate = config.table.learning_rates.tiny
  return config


@pytest.mark.parametrize(
  ('peak', 'nearest', 'best'),
  [(3.0, (1.0, 3.0, 10.0), 3.0), (30.0, (10.0, 30.0, 90.0), 30.0)],
)
def test_best_and_its_neighbours_are_looked_at_with_all_seeds(
  looked, tiny, tmp_path, peak, nearest, best
):
  """Eleven looks, wherever the best one is."""
  looked.score = lambda search, value, seed: 1 / (1 + abs(value - peak))
  tuning.run(config_of(tiny, 'kd'), tmp_path)
  first = [('tiny-kd', x, 0) for x in (0.3, 1.0, 3.0, 10.0, 30.0)]
  second = [('tiny-kd', x, seed) for x in nearest for seed in (1, 2)]
  assert looked.looks == first + second
  tuned = json.loads((tmp_path / 'tuned.json').read_text())
  assert tuned == {'urban_scenes/procedural': {'ratios': {'kd': best}}}


def test_other_seeds_may_overrule_the_first(looked, tiny, tmp_path, capsys):
  """And what is beyond the edge counts with the seeds that all have."""
  scores = {
    10.0: [0.1, 0.8, 0.8],
    30.0: [0.9, 0.7, 0.7],
    90.0: [None, 0.9, 0.8],
  }
  looked.score = lambda search, value, seed: scores.get(value, [0.1])[seed]
  config = config_of(tiny, 'kd')
  tuning.run(config, tmp_path)
  found = json.loads((tmp_path / 'tuning' / 'tiny-kd.json').read_text())
  assert found['best'] == 90.0
  assert 'the best value, 90, is beyond the ladder' in capsys.readouterr().out
  scores[90.0] = [None, 0.1, 0.1]  # Seeds 1 and 2 of 10 beat those of 30.
  tuning.run(config, tmp_path / 'other')
  path = tmp_path / 'other' / 'tuning' / 'tiny-kd.json'
  assert json.loads(path.read_text())['best'] == 10.0


def test_value_whose_runs_diverged_is_never_the_best(looked, tiny, tmp_path):
  looked.score = lambda search, value, seed: max(0.0, 0.3 - abs(value - 0.3))
  tuning.run(config_of(tiny, 'kd'), tmp_path)
  found = json.loads((tmp_path / 'tuning' / 'tiny-kd.json').read_text())
  assert found['best'] == 0.3
  looked.score = lambda search, value, seed: float(search.objective != 'sp')
  config = config_of(tiny, 'kd', 'sp', 'iusp')
  with pytest.raises(FloatingPointError, match='tiny-sp: all 5 runs diverged'):
    tuning.run(config, tmp_path / 'other')
  tuned = json.loads((tmp_path / 'other' / 'tuned.json').read_text())
  ratios = tuned['urban_scenes/procedural']['ratios']
  assert ratios.keys() == {'kd', 'iusp'}


def test_learning_rate_is_of_the_student_and_all_its_objectives(
  looked, tiny, tmp_path
):
  looked.score = lambda search, value, seed: 1 / (1 + abs(value - 4e-3))
  config = config_of(tiny, 'baseline', 'kd')
  tuning.run(config, tmp_path)
  assert [look for look in looked.looks if look[0] == 'tiny-baseline'] == [
    *(('tiny-baseline', rate, 0) for rate in (1e-3, 2e-3, 4e-3)),
    *(
      ('tiny-baseline', rate, seed)
      for rate in (2e-3, 4e-3, 8e-3)
      for seed in (1, 2)
    ),
  ]
  tuned = json.loads((tmp_path / 'tuned.json').read_text())
  of_data = tuned['urban_scenes/procedural']
  assert of_data['training'] == {'tiny': {'learning_rate': 4e-3}}
  of_kd = json.loads((tmp_path / 'tuning' / 'tiny-kd.json').read_text())
  training = of_kd['identity']['student']['training']
  assert training['learning_rate'] == 4e-3


def test_learning_rates_need_no_teacher(tiny, on_fakes, tmp_path, monkeypatch):
  asked = []

  class Setup(tuning.Setup):
    def get_teacher(self, required):
      asked.append(required)

  def train(config, search, setup, values, seeds, folder):
    del config, search, setup, folder
    return [[value for _ in seeds] for value in values]

  monkeypatch.setattr(tuning, 'Setup', Setup)
  monkeypatch.setattr(tuning, '_train', train)
  tuning.run(config_of(tiny, 'baseline'), tmp_path)
  assert not asked
  tuned = json.loads((tmp_path / 'tuned.json').read_text())
  rate = {'tiny': {'learning_rate': 8e-3}}  # One beyond the edge.
  assert tuned['urban_scenes/procedural'] == {'ratios': {}, 'training': rate}
  tuning.run(config_of(tiny, 'baseline', 'kd'), tmp_path)
  assert asked == [True]


def test_median_over_students_and_rotations_is_kept(looked, tmp_path):
  best = {'crnn_32': 1.0, 'cnn_4': 3.0, 'cnn_8': 30.0}
  looked.score = lambda search, value, seed: (
    1 / (1 + abs(value - best[search.student] * search.rotation[0]))
  )
  config = table_config.get_config('clips')
  config.table.objectives, config.table.students = ('kd',), tuple(best)
  config.table.rotations = ((1, 2), (3, 4))
  tuning.run(config, tmp_path)
  tuned = json.loads((tmp_path / 'tuned.json').read_text())
  names = {path.stem for path in (tmp_path / 'tuning').glob('*.json')}
  assert 'folds3-4-cnn_4-kd' in names
  assert len(names) == 6
  # Of 1, 3, 3, 10, 30 and 90 (the value nearest to each): the lower median.
  assert tuned['urban_scenes/clips']['ratios'] == {'kd': 3.0}


def test_what_is_found_is_merged(looked, tiny, tmp_path):
  path = tmp_path / 'tuned_file.json'
  there = {
    'folder': {'ratios': {'kd': 1.0}},
    'urban_scenes/procedural': {
      'ratios': {'kd': 1.0, 'sp': 2.0},
      'training': {'crnn_32': {'learning_rate': 1.0}},
    },
  }
  path.write_text(json.dumps(there))
  looked.score = lambda search, value, seed: 1 / (1 + abs(value - 3.0))
  config = config_of(tiny, 'baseline', 'kd', tuned_file=str(path))
  tuning.run(config, tmp_path)
  of_data = there['urban_scenes/procedural']
  of_data['ratios']['kd'] = 3.0
  of_data['training']['tiny'] = {'learning_rate': 4e-3}
  found = json.loads(path.read_text())
  rate = found['urban_scenes/procedural']['training']['tiny']
  assert rate['learning_rate'] in (4e-3, 8e-3)
  of_data['training']['tiny'] = rate
  assert found == there


def test_tuning_goes_on_with_more_objectives_and_refuses_another_recipe(
  looked, tiny, tmp_path
):
  config = config_of(tiny, 'kd', 'iusp')
  tuning.run(config, tmp_path)
  count = len(looked.looks)
  config.table.weights.tiny.kd.kd_weight = 7.0  # As found, and taken over.
  config.table.seeds, config.table.first_seed = 7, 200  # Not of the tuning's.
  config.bootstrap = 0
  tuning.run(config, tmp_path)
  assert len(looked.looks) == count
  config.table.objectives = ('kd', 'iusp', 'iusp_sp')
  tuning.run(config, tmp_path)
  assert {name for name, *_ in looked.looks[count:]} == {'tiny-iusp_sp'}
  for fields, message in (
    ({'learning_rates': {'tiny': 0.1}}, f'rate: {base.LEARNING_RATE} there'),
    ({'tune_ratios': (1.0,)}, r'ladder: \[0.3, 1.0.*\] there, \[1.0\] now'),
    ({'tune_seeds': 5}, r'seeds: 3 there, 5 now'),
  ):
    with pytest.raises(ValueError, match=message) as error:
      tuning.run(config_of(tiny, 'kd', **fields), tmp_path)
    assert 'tiny-kd.json was tuned otherwise' in str(error.value)


@pytest.mark.slow
def test_tuning_trains_and_goes_on(tiny, on_fakes, tmp_path, monkeypatch):
  """Killed in the second stage of the second objective, it repeats that one."""
  config = table_config_of(tiny)
  config.table.objectives = ('baseline', 'kd', 'iusp')
  config.table.tune_seeds, config.table.tune_ratios = 2, (0.3, 3.0)
  config.table.tune_learning_rates = (3e-3,)
  fit, trained = engine.fit, []

  def fit_one(jobs, *rest, **named):
    trained.append((jobs[0].objective.terms, [job.seed for job in jobs]))
    if len(trained) == 4:
      raise InterruptedError
    return fit(jobs, *rest, **named)

  monkeypatch.setattr(engine, 'fit', fit_one)
  with pytest.raises(InterruptedError):
    tuning.run(config, tmp_path)
  tuning.run(config, tmp_path)
  assert [names for names, _ in trained] == [
    (), (), ('kd',), ('kd',), ('kd',), ('iusp',), ('iusp',),
  ]  # fmt: skip
  assert trained[2][1] == [0, 0]  # Two ratios.
  assert trained[3][1] == trained[4][1] == [1, 1, 1]
  tuned = json.loads((tmp_path / 'tuned.json').read_text())
  found = tuned['urban_scenes/procedural']
  assert found['training'] == {'tiny': {'learning_rate': 3e-3}}
  for name in ('kd', 'iusp'):
    of = json.loads((tmp_path / 'tuning' / f'tiny-{name}.json').read_text())
    assert found['ratios'][name] == of['best']
    assert len(of['looks']) == 5
    assert all(0 < score <= 1 for _, _, score in of['looks'])
  assert not list((tmp_path / 'tuning').glob('*/*/training'))


@pytest.mark.slow
def test_units_are_those_of_process_0(setup, monkeypatch):
  """Processes may differ in the last bits of what they measure."""
  asked = []
  original = processes.by_primary

  def by_primary(call, *rest):
    asked.append(original(call, *rest))
    return [2.0, 0.5] if isinstance(asked[-1], list) else asked[-1]

  monkeypatch.setattr(processes, 'by_primary', by_primary)
  job = job_of(setup, ['kd'])
  found = gradient_units.measure(setup, job.recipe, job.objective)
  assert len(asked[-1]) == 2
  assert found == {'kd': 4.0}


def test_configs_use_what_tuning_found(monkeypatch):
  tuned = {
    'ratios': {'iusp': 9.0},
    'training': {'crnn_64': {'learning_rate': 0.5}},
  }
  monkeypatch.setattr(base, 'TUNED', {'urban_scenes/procedural': tuned})
  own = iusp.get_config('')
  assert own.objective.iusp_ratio == 9.0
  assert own.student.training.learning_rate == 0.5
  other = iusp.get_config('student=cnn_4')
  assert other.objective.iusp_ratio == 9.0
  assert other.student.training.learning_rate == base.LEARNING_RATE
  assert iusp.get_config('clips').objective.iusp_ratio == base.UNTUNED
  table = table_config.get_config('').table
  assert table.weights.crnn_64.iusp.iusp_ratio == 9.0
  assert table.weights.crnn_64.sp.sp_ratio == base.UNTUNED
  assert table.learning_rates.crnn_64 == 0.5
  assert table.learning_rates.cnn_4 == base.LEARNING_RATE


def test_every_term_can_be_tuned(tiny):
  config = table_config_of(tiny)
  assert set(terms.TERMS) <= set(config.table.weights.tiny)
