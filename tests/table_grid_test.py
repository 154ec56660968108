"""Which runs a table has, and what it refuses before any work is done."""

import dataclasses

import pytest
from experiments import load_dataset, table_config_of

from configs import base
from configs import table as table_config
from iusp_jax.experiment import fields, grid, identity


def check(config):
  """As a table does, before any work."""
  fields.check(identity.plain(config))
  grid.check_grid(config)


def test_grid_is_every_combination():
  config = table_config.get_config('clips')
  cells = [cell for group in grid.groups(config) for cell in group]
  assert len(cells) == len(set(cells)) == 2 * 3 * 5 * 5
  assert len({cell.name for cell in cells}) == len(cells)
  for group in grid.groups(config):
    assert len({(c.rotation, c.student, c.objective) for c in group}) == 1
  seeds = {cell.seed for cell in cells}
  assert not seeds & set(range(config.table.tune_seeds))


def test_shards_share_the_grid():
  config = table_config.get_config('')
  groups = grid.groups(config)
  parts = []
  for text in ('0/3', '1/3', '2/3'):
    number, count = grid.parse_shard(text)
    parts += groups[number::count]
  assert sorted(map(str, parts)) == sorted(map(str, groups))
  for text in ('3/3', 'a/b', '1', '1/0', '-1/2'):
    with pytest.raises(ValueError, match='--shard is'):
      grid.parse_shard(text)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('students', ('crnn_3',), 'crnn_32'),
    ('objectives', ('ipus',), 'iusp'),
    ('seeds', 0, 'a whole number from 1'),
    ('first_seed', 1, 'seeds of tuning'),
    ('rotations', ((4, 5),), 'has no folds'),
    ('students', ('crnn_32', 'cnn_4', 'crnn_32'), "'crnn_32' 2 times"),
    ('objectives', ('iusp', 'iusp'), "'iusp' 2 times"),
    ('leads', ('vic',), "'vic': expected some of baseline, kd"),
  ],
)
def test_impossible_grid_is_refused(field, value, expected):
  config = table_config.get_config('')
  config.table[field] = value
  with pytest.raises(ValueError, match=expected) as error:
    check(config)
  assert field in str(error.value)


def test_leads_are_compared_with_kd():
  config = table_config.get_config('')
  config.table.leads = ('iusp',)
  check(config)
  config.table.objectives = ('baseline', 'iusp')
  with pytest.raises(ValueError, match=r"leads is .*expected 'kd' among"):
    check(config)


@pytest.mark.parametrize(
  ('rotations', 'expected'),
  [
    (((4, 5), (4, 5)), r'\(4, 5\) 2 times'),
    (((4, 4),), 'two different folds'),
    (((1, 2, 3),), 'each a list of 2'),
  ],
)
def test_impossible_rotations_are_refused(rotations, expected):
  config = table_config.get_config('clips')
  config.table.rotations = rotations
  with pytest.raises(ValueError, match=expected):
    check(config)


@pytest.mark.parametrize(
  ('weights', 'expected'),
  [
    ({'iusp_wieght': 3.0}, "has 'iusp_wieght', .*did you mean 'iusp_weight'"),
    ({'iusp_weight': -1.0}, 'iusp_weight is -1.0: expected a number from 0'),
    ({'iusp_weight': float('nan')}, 'is nan: expected a number from 0'),
    ({'iusp_weight': float('inf')}, 'is inf: expected a number from 0'),
  ],
)
def test_impossible_weights_are_refused(weights, expected, tmp_path):
  config = table_config_of(tmp_path)
  with config.unlocked():
    config.table.weights.tiny.iusp = weights
  with pytest.raises(ValueError, match=expected) as error:
    check(config)
  assert 'config.table.weights.tiny.iusp' in str(error.value)


def test_ratios_that_nobody_tuned_are_known(monkeypatch):
  found = {'ratios': {'kd': 2.0, 'iusp': 5.0}}
  monkeypatch.setattr(base, 'TUNED', {'urban_scenes/procedural': found})
  config = table_config.get_config('')
  assert grid.untuned(config) == ['sp', 'iusp_sp']
  config = table_config.get_config('clips')
  assert grid.untuned(config) == ['kd', 'sp', 'iusp', 'iusp_sp']


@pytest.mark.parametrize('ratios', [(), (0.0, 1.0), (1.0, float('inf'))])
def test_impossible_ratios_are_refused(ratios, tmp_path):
  config = table_config_of(tmp_path)
  config.table.tune_ratios = ratios
  with pytest.raises(ValueError, match=r'config\.table\.tune_ratios is'):
    check(config)


def test_one_teacher_of_several_rotations_is_refused():
  config = table_config.get_config('clips')
  config.teacher.checkpoint = 'runs/teacher'
  with pytest.raises(ValueError, match='was trained on the test fold'):
    check(config)


def test_students_that_no_table_can_train_are_refused():
  """Before a teacher is trained for them."""
  config = table_config.get_config('')
  config.student.training.accumulate_steps = 2
  with pytest.raises(
    ValueError,
    match=r'config\.student\.training\.accumulate_steps is 2.*sp compares',
  ):
    check(config)


def test_batch_in_parts_is_fine_without_sp():
  config = table_config.get_config('')
  config.student.training.accumulate_steps = 2
  config.table.objectives = ('baseline', 'iusp')
  check(config)


def test_data_that_no_table_can_use_is_refused(tmp_path):
  config, whole = table_config_of(tmp_path), load_dataset('coarse')
  grid.check_dataset(config, whole)
  splits = {k: v for k, v in whole.splits.items() if k != 'test'}
  with pytest.raises(ValueError, match="no split 'test'"):
    grid.check_dataset(config, dataclasses.replace(whole, splits=splits))
  config.student.training.batch_size = 26
  with pytest.raises(
    ValueError, match=r'training\.batch_size is 26: expected at most 24'
  ):
    grid.check_dataset(config, whole)


@pytest.mark.parametrize(
  ('field', 'value', 'instead'),
  [
    ('seed', 3, 'first_seed'),
    ('objective.iusp_weight', 3.0, 'table.weights'),
    ('student.model.width', 3, 'table.models'),
    ('fit', 'teacher', '--mode=train'),
    ('keep_examples', 10, '--mode=train'),
  ],
)
def test_fields_that_a_table_does_not_look_at_are_refused(
  field, value, instead
):
  config = table_config.get_config('')
  config.update_from_flattened_dict({field: value})
  with pytest.raises(ValueError, match=instead) as error:
    check(config)
  assert 'config.' + field.removesuffix('.width') in str(error.value)


def test_models_of_a_table_may_be_changed():
  config = table_config.get_config('')
  config.table.models.crnn_64.hidden = 48
  check(config)


def test_arguments_of_a_table():
  config = table_config.get_config('clips,student=cnn_4')
  check(config)
  assert config.table.students == ('cnn_4',)
  assert config.bootstrap == 300
  assert table_config.get_config('smoke').bootstrap == 20


def test_a_cell_has_the_identity_and_the_config_of_its_run(tmp_path):
  config = table_config.get_config('clips')
  cell = grid.Cell((1, 2), 'cnn_4', 'iusp', 105)
  run = grid.run_of(config, cell, tmp_path)
  assert run.workdir == tmp_path / 'cells' / 'folds1-2-cnn_4-iusp-seed105'
  assert run.identity['seed'] == run.config['seed'] == 105
  objective = run.identity['objective']
  assert {name.split('_')[0] for name in objective} == {'iusp'}
  own = run.config['objective']
  assert own['iusp_ratio'] == objective['iusp_ratio'] > 0
  assert own['sp_ratio'] == own['iusp_centred_ratio'] == 0
  assert run.identity['student']['model']['width'] == 4
  assert run.identity['dataset']['builder']['test_fold'] == 2
  assert run.identity['teacher'] is not None
  other = dataclasses.replace(cell, objective='baseline')
  assert grid.run_of(config, other, tmp_path).identity['teacher'] is None


def test_rotation_sets_the_folds():
  config = table_config.get_config('clips')
  own = grid.config_of(config, (1, 2), 'cnn_8')
  assert own['dataset']['builder']['validate_fold'] == 1
  assert own['dataset']['builder']['test_fold'] == 2
  assert own['student']['model']['architecture'] == 'cnn'
  assert 'table' not in own
  assert config.dataset.builder.validate_fold == 4
