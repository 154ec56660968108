"""Parts of a table: joined where they belong together, refused otherwise."""

import json
import pathlib

import pytest
from experiments import cells_of, table_config_of

from iusp_jax.experiment import grid, parts, results, table
from iusp_jax.runtime import files

ROOT = pathlib.Path(__file__).resolve().parent.parent


SCORES = dict.fromkeys(('micro_auprc', 'macro_auprc', 'map', 'lwlrap'), 0.5)
SCORES |= {'class_auprc': [0.5, 0.0, 0.0], 'undefined': [2]}


def record(cell, weights=None, model=None):
  """As much of a cell's results.json as the report looks at."""
  return {
    'status': 'done',
    'reason': '',
    'weights': weights or {},
    'frame_distance': None,
    'seconds': 1.0,
    'curve': [[3, 0.5]],
    'resampled': [0.4, 0.6],
    'identity': {'student': {'model': model or {'width': 1}}},
    'seed': cell.seed,
    'student': {
      'parameters': 46,
      'macs': 7000,
      'best': {'test': {'coarse': SCORES}},
      'last': {'test': {'coarse': SCORES}},
    },
  }


@pytest.fixture
def part(tmp_path):
  """Makes a table of which one group is done."""

  def make(name, objective, dataset='d', cell=None, teacher=None, config=None):
    folder = tmp_path / name
    config = config or table_config_of(tmp_path)
    metadata = {'dataset': dataset, 'tags': ['x'], 'command': objective}
    metadata['environment'] = {'num_cores': 2, 'git_commit': objective}
    parts.start(config, folder, metadata)
    of = {'rotation': '', 'fingerprint': 'f', 'weights': 'w', 'dataset': 'd_1'}
    of |= {'repetitiveness': {'x': 0.5}, **(teacher or {})}
    files.write_atomically(folder / 'teachers' / 'a.json', json.dumps(of))
    for one in cells_of(config, objective):
      path = results.path_of(grid.folder(folder, one))
      files.write_atomically(path, json.dumps(record(one, **(cell or {}))))
    return folder

  return make


def test_collect_merges_parts_and_names_what_is_missing(part, tmp_path):
  first = part('a', 'baseline')
  second = part('b', 'sp')
  one = parts.collect([first])
  (tmp_path / 'one.json').write_text(json.dumps(one))
  for paths in ([first, second], [second, tmp_path / 'one.json']):
    found = parts.collect(paths)
    status = [cell['status'] for cell in found['cells']]
    assert status.count('done') == 4
    assert status.count('missing') == len(status) - 4 == 6
    assert found['repetitiveness'] == {'x': 0.5}
    assert sorted(found['command'].splitlines()) == ['baseline', 'sp']
    assert found['environment']['num_cores'] == 2
    assert sorted(found['environment']['git_commit']) == ['baseline', 'sp']


def test_parts_of_two_rotations_are_one_table(part, tmp_path):
  """Builders name data sets of other folds by other numbers."""
  first = part('a', 'baseline')
  second = part(
    'b',
    'sp',
    teacher={'rotation': 'r', 'dataset': 'd_2'},
  )
  found = parts.collect([first, second])
  assert [of['dataset'] for of in found['teachers']] == ['d_1', 'd_2']


@pytest.mark.parametrize('field', ['weights', 'dataset'])
def test_one_rotation_has_one_teacher_and_one_data_set(part, tmp_path, field):
  first = part('a', 'baseline')
  other = part('b', 'sp', teacher={field: 'g'})
  with pytest.raises(ValueError, match=r'has the .* g, a part before it'):
    parts.collect([first, other])


def test_students_of_one_name_and_two_models_are_refused(part, tmp_path):
  first = part('a', 'baseline', cell={'model': {'width': 1}})
  other = part('b', 'sp', cell={'model': {'width': 2}})
  with pytest.raises(ValueError, match=r"tiny with model \{'width': 2\}"):
    parts.collect([first, other])


def test_parts_that_do_not_belong_together_are_refused(part, tmp_path):
  first = part('a', 'baseline')
  other = part('b', 'sp', teacher={'fingerprint': 'g'})
  with pytest.raises(ValueError, match='cannot be compared'):
    parts.collect([first, other])
  other = part('c', 'sp', dataset='e')
  with pytest.raises(ValueError, match='parts of one table'):
    parts.collect([first, other])
  with pytest.raises(ValueError, match='holds no table'):
    parts.collect([tmp_path])
  with pytest.raises(ValueError, match='needs the --workdir'):
    table.report([], tmp_path)
  with pytest.raises(ValueError, match='tabel is not there: expected'):
    table.report([tmp_path / 'tabel'], None)
  assert not (tmp_path / 'tabel').exists()
  for content, message in (
    ('{"dataset": "d", "tags": []}', 'has no command, environment, cells'),
    ('"dataset tags command environment teachers cells"', 'has no dataset'),
    ('null', 'has no dataset, tags'),
    ('student,objective', 'is no JSON'),
  ):
    (tmp_path / 'table.json').write_text(content)
    with pytest.raises(ValueError, match=message):
      table.report([tmp_path / 'table.json'], tmp_path)
  with pytest.raises(ValueError, match='needs a folder for the report'):
    table.report([first, other], None)


def test_parts_of_students_trained_otherwise_are_refused(part, tmp_path):
  """A field that one part lacks, as those of older versions do, is none."""
  first = part('a', 'baseline')
  parts.collect([first, part('b', 'sp')])
  fields = {
    'student.training.compute_dtype': 'bfloat16',
    'objective.kd_temperature': 3.0,
    'objective.sp_schedule': 'ramp',
    'teacher.store': 'float16',
  }
  second = part('c', 'sp', config=table_config_of(tmp_path, **fields))
  with pytest.raises(ValueError, match='expected parts of one') as error:
    parts.collect([first, second])
  assert 'temperature 3.0, not 2' in str(error.value)
  assert 'teacher.store float16, not float32' in str(error.value)
  (tmp_path / 'one.json').write_text(json.dumps(parts.collect([first])))
  with pytest.raises(ValueError, match='expected parts of one'):
    parts.collect([tmp_path / 'one.json', second])
  for path in (first, second):
    grid_json = json.loads((path / 'grid.json').read_text())
    del grid_json['recipe']
    (path / 'grid.json').write_text(json.dumps(grid_json))
    parts.collect([first, second])


def test_schedule_or_type_of_one_part_alone_is_refused(part, tmp_path):
  """Fields whose default is left out of what is compared."""
  first = part('a', 'baseline')
  for fields in (
    {'student.training.compute_dtype': 'bfloat16'},
    {'objective.sp_schedule': 'ramp'},
  ):
    config = table_config_of(tmp_path, **fields)
    second = part(next(iter(fields)), 'sp', config=config)
    with pytest.raises(ValueError, match='expected parts of one table'):
      parts.collect([first, second])
    with pytest.raises(ValueError, match='expected parts of one table'):
      parts.collect([second, first])


def test_cells_of_one_name_and_two_weights_are_refused(part, tmp_path):
  first = part('a', 'iusp', cell={'weights': {'iusp': 3.0}})
  same = part('b', 'iusp', cell={'weights': {'iusp': 3.0}})
  other = part('c', 'iusp', cell={'weights': {'iusp': 4.0}})
  parts.collect([first, same])
  with pytest.raises(ValueError, match=r'tiny iusp seed 100 .*4.0.*3.0'):
    parts.collect([first, other])


def test_shards_of_one_workdir_are_all_named(part):
  part('a', 'baseline')
  found = parts.collect([part('a', 'sp')])
  assert found['command'].splitlines() == ['baseline', 'sp']
  assert found['environment']['git_commit'] == ['baseline', 'sp']
  assert found['environment']['num_cores'] == 2


def test_tag_that_no_clip_has_has_no_score():
  found = parts.scores_of({'best': {'test': {'coarse': SCORES}}})
  assert found['test']['class_auprc'] == [0.5, 0.0, None]


def test_committed_results_can_be_read():
  files = sorted((ROOT / 'docs' / 'results').glob('*.json'))
  assert files
  for file in files:
    assert parts.collect([file])['cells']
