"""Weights that are given as ratios of gradients."""

import dataclasses
import json

import experiments
import pytest

from iusp_jax.experiment import gradient_units, identity, run, table
from iusp_jax.objectives import terms
from iusp_jax.training.recipe import Recipe

UNITS = {'kd': 2.04, 'iusp': 333.3}


@pytest.fixture
def measured(monkeypatch):
  """What is measured, in place of it; the terms that were asked for."""
  asked = []

  def measure(setup, recipe, objective):
    asked.append(objective.terms)
    return {name: UNITS[name] for name in objective.terms}

  monkeypatch.setattr(gradient_units, 'measure', measure)
  return asked


@pytest.fixture
def place(setup, tmp_path, monkeypatch):
  """The set-up of a tiny table, with a cache of its own."""
  monkeypatch.setattr(setup, 'cache_dir', str(tmp_path))
  return setup


def objective(**fields):
  return terms.Objective.from_config(terms.config_fields() | fields)


def recipe(tiny, **fields):
  config = identity.plain(experiments.run_config(tiny, **fields))
  return Recipe.from_config(config['student'])


def test_ratio_becomes_a_weight_of_two_digits(tiny, place, measured):
  own = objective(kd_ratio=3.0, iusp_ratio=0.5, sp_weight=7.0)
  assert own.terms == ('kd', 'sp', 'iusp')
  found = gradient_units.weigh(place, recipe(tiny), own)
  assert found.weights == {'kd': 6.1, 'sp': 7.0, 'iusp': 170.0}
  assert not found.ratios
  assert found.settings == own.settings


def test_unit_is_measured_once_for_all_that_it_depends_on(
  tiny, place, measured, monkeypatch
):
  own = objective(iusp_ratio=2.0)
  for ratio in (2.0, 3.0):
    own = dataclasses.replace(own, ratios={'iusp': ratio})
    gradient_units.weigh(place, recipe(tiny), own)
  assert measured == [('iusp',)]
  both = objective(iusp_ratio=2.0, kd_ratio=1.0)
  gradient_units.weigh(place, recipe(tiny), both)
  assert measured[1:] == [('kd',)]
  warmer = objective(kd_ratio=1.0, kd_temperature=3.0)
  gradient_units.weigh(place, recipe(tiny), warmer)
  faster = recipe(tiny, **{'student.training.learning_rate': 0.5})
  gradient_units.weigh(place, faster, both)
  other = dataclasses.replace(place.teacher, metadata={'fingerprint': '1'})
  monkeypatch.setattr(place, 'teacher', other)
  gradient_units.weigh(place, recipe(tiny), own)
  assert measured[2:] == [('kd',), ('kd', 'iusp'), ('iusp',)]


def test_weights_alone_measure_nothing(tiny, place, measured):
  own = objective(kd_weight=1.0)
  assert gradient_units.weigh(place, recipe(tiny), own) is own
  assert not measured


def test_weight_and_ratio_are_refused():
  message = 'iusp_weight is 3 and config.objective.iusp_ratio is 2: expected'
  with pytest.raises(ValueError, match=message):
    objective(iusp_weight=3.0, iusp_ratio=2.0)


def test_ratio_of_0_changes_no_identity_and_another_does(tiny):
  config = identity.plain(experiments.run_config(tiny))
  without = {
    key: value
    for key, value in config['objective'].items()
    if not key.endswith('_ratio')
  }
  old = run.run_identity({**config, 'objective': without})
  new = run.run_identity(config)
  assert identity.fingerprint(old) == identity.fingerprint(new)
  config['objective'] |= {'iusp_weight': 0.0, 'iusp_ratio': 3.0}
  assert run.run_identity(config)['objective']['iusp_ratio'] == 3.0
  fields = {'teacher', 'student', 'objective', 'seed', 'dataset'}
  assert run.run_identity(config).keys() == fields


@pytest.mark.slow
def test_run_and_table_with_a_ratio_are_those_with_its_weight(
  tiny, setup, on_fakes, tmp_path
):
  """Really measured: the run's weight is the table's, from one file."""
  cell = {'table.weights': {'tiny': {'iusp': {'iusp_ratio': 2.0}}}}
  cache = {'cache_dir': str(tmp_path / 'cache')}
  config = experiments.one_cell_config(tiny, **cache)
  with config.unlocked():
    config.table.weights = cell['table.weights']
  table.run(config, tmp_path / 'table')
  (path,) = tmp_path.glob('table/cells/*/results.json')
  of_cell = json.loads(path.read_text())
  fields = {'objective.iusp_weight': 0.0, 'objective.iusp_ratio': 2.0}
  own = experiments.run_config(tiny, seed=100, **cache, **fields)
  of_run = run.run(own, tmp_path / 'run')
  (unit,) = (tmp_path / 'cache' / 'gradient_units').iterdir()
  expected = terms.rounded(2 * json.loads(unit.read_text())['unit'])
  assert of_cell['weights'] == of_run['weights'] == {'iusp': expected}
  assert of_cell['curve'] == of_run['curve']
  assert of_cell['fingerprint'] == of_run['fingerprint']
