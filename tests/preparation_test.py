"""Data sets that several processes want at a time."""

import subprocess
import sys
import time

import pytest
from commands import ROOT, environment

from iusp_jax.runtime import wall_time

PREPARES = """
import sys
from configs import base
from iusp_jax.experiment import identity, setup, teacher
from iusp_jax.runtime import logs
logs.relay('tfds_dcase')
config = base.get_config('smoke')
config.dataset.data_dir = sys.argv[1]
config.teacher.train_scenes = 60
config = identity.plain(config)
own = teacher.own_dataset(config, setup.load_dataset(config['dataset']))
print(len(own.splits['train']), 'scenes for the teacher')
"""


@pytest.mark.slow
def test_data_sets_are_prepared_once_by_processes_that_start_together(tmp_path):
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', PREPARES, str(tmp_path)],
      cwd=ROOT,
      env=environment() | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for _ in range(3)
  ]
  printed = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0] * 3, printed
  assert ''.join(printed).count(': prepares it in ') == 2, printed
  assert sum('waiting' in text for text in printed) >= 1
  for text in printed:
    assert '60 scenes for the teacher' in text
    assert '48 train, 24 validate, 24 test clips' in text


def test_time_is_counted_over_the_processes_of_a_run(tmp_path):
  for number in (1, 2):
    with wall_time.wall_time(tmp_path, time.monotonic() - 5.0) as spent:
      seconds = spent()
    assert seconds['num_processes'] == number
    assert seconds['this_process'] == pytest.approx(5.0, abs=0.5)
    assert seconds['all_processes'] == pytest.approx(5.0 * number, abs=1.0)
