"""The table's commands as they are typed, from nothing to the report."""

import json
import os

import pytest
from commands import command, execute, finish


@pytest.mark.slow
def test_table_is_tuned_run_and_reported(smoke, tmp_path):
  folder, _ = smoke  # Its data, and its teacher.
  table = command(
    folder,
    '--config.bootstrap=9',
    "--config.table.objectives=('baseline','kd','iusp_sp')",
    config='configs/table.py:smoke',
  )
  finish([*table, '--mode=tune', f'--workdir={tmp_path}/tune'])
  tuned = json.loads((tmp_path / 'tune' / 'tuned.json').read_text())
  found = tuned['urban_scenes/procedural']
  assert set(found['ratios']) == {'kd', 'iusp_sp'}
  assert set(found['training']) == {'crnn_32'}

  place = tmp_path / 'table'
  table += ['--mode=table', f'--workdir={place}']
  jobs = min(2, len(os.sched_getaffinity(0)))
  for flag, left in (('--shard=0/2', 2), (f'--jobs={jobs}', 0)):
    printed = finish([*table, flag])
    cells = json.loads((place / 'cells.json').read_text())['cells']
    assert [c['status'] for c in cells].count('missing') == left
    assert 'ended with exit code' not in printed
  for name, share in (('baseline', 1), ('kd', jobs)):  # Of which command.
    found = place / 'cells' / f'crnn_32-{name}-seed100' / 'results.json'
    environment = json.loads(found.read_text())['environment']
    assert environment['num_cores'] == len(os.sched_getaffinity(0)) // share
  commands = json.loads((place / 'grid.json').read_text())['command']
  assert [line.split()[-1] for line in commands.splitlines()] == [
    '--shard=0/2',
    f'--jobs={jobs}',
  ]
  assert '3 groups of cells, 0 to run' in finish(table)
  wrong = execute([*table, '--config.student.training.epochs=3'])
  assert wrong.returncode == 1
  assert 'epochs: 2.0 there, 3.0 now' in wrong.stderr
  assert 'Traceback' not in wrong.stderr

  before = json.loads((place / 'table.json').read_text())
  (place / 'table.json').unlink()
  (place / 'similarities.png').unlink()
  printed = finish([*table[:2], '--mode=report', str(place)])
  assert 'crnn_32' in printed
  assert json.loads((place / 'table.json').read_text()) == before
  names = {path.name for path in place.iterdir()}
  assert {'table.md', 'table.csv', 'similarities.png'} <= names
  assert {'score_against_cost.png', 'learning_curves.png'} <= names
