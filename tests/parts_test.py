"""Parts of a table: joined where they belong together, refused otherwise."""

import json
import pathlib

import pytest
from tables import cells_of, tiny_config

from iusp_jax.experiment import grid, parts, runner
from iusp_jax.runtime import files

ROOT = pathlib.Path(__file__).resolve().parent.parent


def part(world, folder, objective, dataset='d', cell=None, teacher_facts=None):
  """A table of which one group is done."""
  facts = {'dataset': dataset, 'tags': ['x'], 'command': objective}
  facts['environment'] = {'num_cores': 2, 'git_commit': objective}
  parts.start(world.config, folder, facts)
  guide = {'rotation': '', 'fingerprint': 'f', 'weights': 'w', 'dataset': 'd_1'}
  guide |= {'repetitiveness': {'x': 0.5}, **(teacher_facts or {})}
  files.write_atomically(folder / 'teachers' / 'a.json', json.dumps(guide))
  changes = cell or {}
  for cell in cells_of(world, objective):
    text = json.dumps(cell.facts() | {'status': 'done'} | changes)
    files.write_atomically(grid.folder(folder, cell) / 'cell.json', text)
  return folder


def test_collect_merges_parts_and_names_what_is_missing(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(world, tmp_path / 'b', 'sp')
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


def test_parts_of_two_rotations_are_one_table(world, tmp_path):
  """Builders name data sets of other folds by other numbers."""
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(
    world,
    tmp_path / 'b',
    'sp',
    teacher_facts={'rotation': 'r', 'dataset': 'd_2'},
  )
  found = parts.collect([first, second])
  assert [facts['dataset'] for facts in found['teachers']] == ['d_1', 'd_2']


@pytest.mark.parametrize('field', ['weights', 'dataset'])
def test_one_rotation_has_one_teacher_and_one_data_set(world, tmp_path, field):
  first = part(world, tmp_path / 'a', 'baseline')
  other = part(world, tmp_path / 'b', 'sp', teacher_facts={field: 'g'})
  with pytest.raises(ValueError, match=r'has the .* g, a part before it'):
    parts.collect([first, other])


def test_students_of_one_name_and_two_models_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline', cell={'model': {'width': 1}})
  other = part(world, tmp_path / 'b', 'sp', cell={'model': {'width': 2}})
  with pytest.raises(ValueError, match=r"tiny with model \{'width': 2\}"):
    parts.collect([first, other])


def test_parts_that_do_not_belong_together_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline')
  other = part(world, tmp_path / 'b', 'sp', teacher_facts={'fingerprint': 'g'})
  with pytest.raises(ValueError, match='cannot be compared'):
    parts.collect([first, other])
  other = part(world, tmp_path / 'c', 'sp', dataset='e')
  with pytest.raises(ValueError, match='parts of one table'):
    parts.collect([first, other])
  with pytest.raises(ValueError, match='holds no table'):
    parts.collect([tmp_path])
  with pytest.raises(ValueError, match='needs the --workdir'):
    runner.report([], tmp_path)
  with pytest.raises(ValueError, match='tabel is not there: expected'):
    runner.report([tmp_path / 'tabel'], None)
  assert not (tmp_path / 'tabel').exists()
  for content, message in (
    ('{"dataset": "d", "tags": []}', 'has no command, environment, cells'),
    ('"dataset tags command environment teachers cells"', 'has no dataset'),
    ('null', 'has no dataset, tags'),
    ('student,objective', 'is no JSON'),
  ):
    (tmp_path / 'table.json').write_text(content)
    with pytest.raises(ValueError, match=message):
      runner.report([tmp_path / 'table.json'], tmp_path)
  with pytest.raises(ValueError, match='needs a folder for the report'):
    runner.report([first, other], None)


def test_parts_of_students_trained_otherwise_are_refused(world, tmp_path):
  """A field that one part lacks, as those of older versions do, is none."""
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(world, tmp_path / 'b', 'sp')
  keep_config(world.config, first)
  parts.collect([first, second])
  other = tiny_config()
  other.student.training.compute_dtype = 'bfloat16'
  other.objective.kd_temperature = 3.0
  keep_config(other, second)
  with pytest.raises(ValueError, match='expected parts of one') as error:
    parts.collect([first, second])
  for text in ('compute_dtype bfloat16, not float32', 'temperature 3.0, not 2'):
    assert text in str(error.value)
  (tmp_path / 'one.json').write_text(json.dumps(parts.collect([first])))
  with pytest.raises(ValueError, match='expected parts of one'):
    parts.collect([tmp_path / 'one.json', second])
  old = json.loads((second / 'config.json').read_text())
  del old['student']['training']['compute_dtype']  # It was float32.
  old['objective']['kd_temperature'] = 2.0
  (second / 'config.json').write_text(json.dumps(old))
  parts.collect([first, second])


def keep_config(config, folder):
  (folder / 'config.json').unlink(missing_ok=True)
  grid.keep_config(config, folder)


def test_cells_of_one_name_and_two_weights_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'iusp', cell={'weights': {'iusp': 3.0}})
  same = part(world, tmp_path / 'b', 'iusp', cell={'weights': {'iusp': 3.0}})
  other = part(world, tmp_path / 'c', 'iusp', cell={'weights': {'iusp': 4.0}})
  parts.collect([first, same])
  with pytest.raises(ValueError, match=r'tiny iusp seed 100 .*4.0.*3.0'):
    parts.collect([first, other])


def test_shards_of_one_workdir_are_all_named(world, tmp_path):
  part(world, tmp_path, 'baseline')
  part(world, tmp_path, 'sp')
  found = parts.collect([tmp_path])
  assert found['command'].splitlines() == ['baseline', 'sp']
  assert found['environment']['git_commit'] == ['baseline', 'sp']
  assert found['environment']['num_cores'] == 2


def test_committed_results_can_be_read():
  files = sorted((ROOT / 'docs' / 'results').glob('*.json'))
  assert files
  for file in files:
    assert parts.collect([file])['cells']
