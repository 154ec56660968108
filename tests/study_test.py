"""The studies are tables of the objectives that they are about."""

import importlib

import pytest

from configs import base, study_centred, study_leads, study_related, table
from iusp_jax.experiment import grid, identity, tuning
from iusp_jax.objectives import terms
from iusp_jax.objectives.terms import TERMS
from iusp_jax.reporting.table import objectives


def test_the_paper_s_table_has_the_five_objectives():
  config = table.get_config('')
  assert config.table.objectives == ('baseline', 'kd', 'sp', 'iusp', 'iusp_sp')


@pytest.mark.parametrize('arg', ['', 'smoke', 'student=cnn_8'])
def test_related_systems_are_rows_of_a_table(arg):
  found = {}
  for study in (study_related, study_leads):
    config = study.get_config(arg)
    grid.check_grid(identity.plain(config))
    if 'student=' in arg:
      assert config.table.students == ('cnn_8',)
    found |= {
      name: grid.objective(config, config.table.students[0], name)
      for name in config.table.objectives
    }
  assert set(found) >= set(TERMS)
  assert found['kd_iusp'].terms == ('kd', 'iusp')
  assert found['frame_kd_iusp_centred'].terms == ('iusp_centred', 'frame_kd')
  assert found['iusp_decay'].schedules == {'iusp': 'decay_to_half'}
  assert found['iusp_two_step'].schedules == {
    'iusp': 'off_at_half',
    'tagging': 'on_at_half',
  }
  own = objectives.from_weights({k: x.ratios for k, x in found.items()})
  assert len({x.title for x in own.values()}) == len(found)
  assert len({x.colour for x in own.values()}) == len(found)


def test_leads_are_stated_for_both_data_sets():
  street, clips = (study_leads.get_config(arg) for arg in ('', 'clips'))
  assert len(street.table.leads) == 6
  assert set(street.table.leads) < set(street.table.objectives)
  assert clips.table.leads == street.table.leads
  cells = grid.groups(identity.plain(clips))
  assert len(cells) == 3 * 3 * len(clips.table.objectives)
  assert all(pair != (2, 3) for pair in clips.table.rotations)


def test_every_row_has_a_config_of_its_own():
  for name in base.OBJECTIVES:
    module = importlib.import_module(f'configs.{name}')
    config = identity.plain(module.get_config('smoke'))
    found = terms.Objective.from_config(config['objective'])
    assert config['name'] == name
    assert set(found.terms) == set(base.OBJECTIVES[name])
    for field, value in base.fields_of(name, config['dataset']['name']).items():
      assert config['objective'][field] == value


def test_tuned_ratios_keep_the_schedules(monkeypatch):
  tuned = {'ratios': {'iusp_decay': 7.0}}
  monkeypatch.setattr(base, 'TUNED', {'urban_scenes/procedural': tuned})
  found = base.fields_of('iusp_decay', 'urban_scenes/procedural')
  assert found['iusp_ratio'] == 7.0
  assert found['iusp_schedule'] == 'decay_to_half'
  config = identity.plain(study_related.get_config(''))
  search = tuning.Search('crnn_64', 'iusp_decay', None)
  own = tuning._with_value(config, search, 10.0)['objective']
  assert own['iusp_schedule'] == 'decay_to_half'
  assert own['iusp_ratio'] == 10.0


@pytest.mark.parametrize('arg', ['', 'clips', 'smoke', 'student=cnn_8'])
@pytest.mark.slow
def test_centred_study_trains_the_centred_term(arg):
  config = study_centred.get_config(arg)
  grid.check_grid(config)
  for student in config.table.students:
    for name in ('iusp_centred', 'iusp'):
      assert grid.objective(config, student, name).terms == (name,)
  names = {cell.objective for group in grid.groups(config) for cell in group}
  assert names == {'baseline', 'iusp', 'iusp_centred'}
  if arg == 'student=cnn_8':
    assert config.table.students == ('cnn_8',)
  assert base.get_config(arg).objective.iusp_centred_weight == 0.0
