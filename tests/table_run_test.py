"""The table's commands as they are typed, from nothing to the report."""

import json
import os

import pytest
from run_test import command, run


@pytest.mark.slow
def test_table_is_tuned_run_and_reported(tmp_path):
  table = command(
    tmp_path, '--config.bootstrap=9', config='configs/table.py:smoke'
  )
  tune = run([*table, '--mode=tune', f'--workdir={tmp_path}/tune'])
  assert tune.returncode == 0, tune.stdout + tune.stderr
  tuned = json.loads((tmp_path / 'tune' / 'tuned.json').read_text())
  weights = tuned['urban_scenes/procedural']['crnn_32']
  assert set(weights) == {'kd', 'sp', 'iusp', 'iusp_sp'}
  assert set(weights['iusp_sp']) == {'iusp_weight', 'sp_weight'}

  place = tmp_path / 'table'
  table += ['--mode=table', f'--workdir={place}']
  jobs = min(2, len(os.sched_getaffinity(0)))
  for flag, left in (('--shard=0/2', 4), (f'--jobs={jobs}', 0)):
    done = run([*table, flag])
    assert done.returncode == 0, done.stdout + done.stderr
    cells = json.loads((place / 'cells.json').read_text())['cells']
    assert [c['status'] for c in cells].count('missing') == left
    assert 'ended with exit code' not in done.stdout
  for name, share in (('baseline', 1), ('kd', jobs)):  # Of which command.
    found = place / 'cells' / f'crnn_32-{name}-seed100' / 'results.json'
    environment = json.loads(found.read_text())['environment']
    assert environment['num_cores'] == len(os.sched_getaffinity(0)) // share
  commands = json.loads((place / 'grid.json').read_text())['command']
  assert [line.split()[-1] for line in commands.splitlines()] == [
    '--shard=0/2',
    f'--jobs={jobs}',
  ]
  again = run(table)
  assert '5 groups of cells, 0 to run' in again.stdout
  other = run([*table, '--config.table.seeds=3'])
  assert other.returncode == 1
  assert 'table.seeds: 2 there, 3 now' in other.stderr

  before = json.loads((place / 'table.json').read_text())
  (place / 'table.json').unlink()
  (place / 'similarities.png').unlink()
  report = run([*table[:2], '--mode=report', str(place)])
  assert report.returncode == 0, report.stdout + report.stderr
  assert 'crnn_32' in report.stdout
  assert json.loads((place / 'table.json').read_text()) == before
  names = {path.name for path in place.iterdir()}
  assert {'table.md', 'table.csv', 'similarities.png'} <= names
  assert {'score_against_cost.png', 'learning_curves.png'} <= names
