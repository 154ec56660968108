"""The notebook: clean as it is committed, and its cells run in order."""

import json
import math
import os
import subprocess
import sys

import pytest
from commands import ROOT

NOTEBOOK = ROOT / 'docs/tutorial/first_student.ipynb'
CELLS = json.loads(NOTEBOOK.read_text())['cells']


def source(cell):
  return ''.join(cell['source'])


def test_the_notebook_is_committed_without_outputs():
  for cell in CELLS:
    if cell['cell_type'] == 'code':
      assert not cell['outputs']
      assert cell['execution_count'] is None
      compile(source(cell), NOTEBOOK.name, 'exec')


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path):
  """As a notebook program does, in the notebook's folder, in small."""
  code = '\n\n'.join(source(c) for c in CELLS if c['cell_type'] == 'code')
  for old, new in (
    ("RUNS = root / 'runs'", f'RUNS = pathlib.Path({str(tmp_path)!r})'),
    ("SIZE = 'demo'", "SIZE = 'smoke'"),
  ):
    assert code.count(old) == 1
    code = code.replace(old, new)
  code += """
import json
found = {'difference': difference, 'figures': len(plt.get_fignums())}
found['distances'] = [
  float(iusp_loss(x, frames['teacher'])) for x in frames.values()
]
(RUNS / 'found.json').write_text(json.dumps(found))
"""
  (tmp_path / 'cells.py').write_text(code)
  done = subprocess.run(
    [sys.executable, str(tmp_path / 'cells.py')],
    cwd=NOTEBOOK.parent,
    env=os.environ | {'MPLBACKEND': 'Agg'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  found = json.loads((tmp_path / 'found.json').read_text())
  assert found['figures'] == 2
  assert found['distances'][0] == 0
  assert all(0 < x < 1 for x in found['distances'][1:])
  difference = found['difference']
  assert difference['low'] <= difference['high']
  assert math.isfinite(difference['difference'])
  assert done.stdout.count('student alone') == 2
  # The picture of the run has all three models.
  rows = (tmp_path / 'tutorial/iusp-smoke/similarities.txt').read_text()
  shown = {row.split()[1] for row in rows.splitlines()[1:-1]}
  assert shown == {'teacher', 'student', 'baseline-smoke'}
