"""Processes that share the cores, told by scripts in run.py's place."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from etils import epath

from iusp_jax.experiment import workers

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.fixture
def command(monkeypatch, tmp_path):
  """Sets the command that this process seems to have been started with."""

  def put(text, *words):
    script = tmp_path / 'script.py'
    script.write_text(text)
    monkeypatch.setattr(sys, 'argv', [str(script), *words])
    monkeypatch.setattr(workers, '_SECONDS_BETWEEN_LOOKS', 0.01)

  return put


TELL = """
import os, pathlib, sys
cores = sorted(os.sched_getaffinity(0))
place = pathlib.Path(sys.argv[1], str(os.getpid()))
place.write_text(f'{cores} {sys.argv[2:]}')
sys.exit(3)
"""


def test_processes_have_equal_shares_of_the_cores(command, tmp_path):
  cores = os.sched_getaffinity(0)
  jobs = min(2, len(cores))
  place = tmp_path / 'told'
  place.mkdir()
  command(TELL, str(place), f'--jobs={jobs}')
  assert workers.run(jobs) == [3] * jobs
  assert os.sched_getaffinity(0) == cores
  each, ordered = len(cores) // jobs, sorted(cores)
  assert sorted(path.read_text() for path in place.iterdir()) == sorted(
    f'{ordered[k * each : (k + 1) * each]} {[f"--jobs={jobs}", "--jobs=0"]}'
    for k in range(jobs)
  )


def test_shares_are_equal_where_cores_are_left_over(command, monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1, 2, 5, 7})
  given = []
  monkeypatch.setattr(os, 'sched_setaffinity', lambda _, c: given.append(c))
  command('')
  assert workers.run(2) == [0, 0]
  every = [0, 1, 2, 5, 7]
  assert [sorted(c) for c in given] == [[0, 1], every, [2, 5], every]


def test_process_that_fails_is_told_of(command, capsys):
  command('')
  assert workers.run(1) == [0]
  assert 'ended' not in capsys.readouterr().out
  command('import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n')
  assert workers.run(1) == [-signal.SIGKILL]
  said = capsys.readouterr().out
  assert 'process 1 of 1 ended with exit code -9; 0 go on' in said


PARENT = """
import sys
from iusp_jax.runtime import preemption
from iusp_jax.experiment import workers
preemption.listen()
sys.argv = sys.argv[1:]
workers.run(1)
"""
CHILD = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
time.sleep(60)
"""


def test_notice_to_stop_ends_the_processes_too(tmp_path):
  child, told = tmp_path / 'child.py', tmp_path / 'told'
  child.write_text(CHILD)
  parent = subprocess.Popen(
    [sys.executable, '-c', PARENT, str(child), str(told)], cwd=ROOT
  )
  try:
    while not (told.exists() and told.read_text()):
      assert parent.poll() is None
      time.sleep(0.02)
    parent.terminate()
    assert parent.wait() == 75
  finally:
    parent.kill()
  with pytest.raises(ProcessLookupError):
    os.kill(int(told.read_text()), 0)


def test_process_of_a_table_starts_no_others(command):
  command('', '--jobs=0')
  with pytest.raises(ValueError, match='asks for --jobs=2: expected --jobs=0'):
    workers.run(2)


def test_command_is_as_it_was_typed(command):
  command('', '--mode=table', '--jobs=2', '--jobs=0')
  assert workers.command()[1:] == ['--mode=table', '--jobs=2']


def test_jobs_of_a_run_on_several_processes_are_refused(monkeypatch):
  monkeypatch.setattr(workers.jax, 'process_count', lambda: 2)
  with pytest.raises(ValueError, match=r'--jobs is 2 and --num_processes 2'):
    workers.check(2, epath.Path('runs/a'))
  workers.check(1, epath.Path('runs/a'))


@pytest.mark.parametrize(
  ('jobs', 'workdir', 'backend', 'message'),
  [
    (2, 'runs/a', 'gpu', r'--jobs is 2 and the backend gpu'),
    (3, 'runs/a', 'cpu', r'--jobs is 3, and 2 is the number of cores'),
    (2, 'gs://bucket/a', 'cpu', r'--workdir gs:/.*: processes share a table'),
    (2, 'runs/a', 'cpu', ''),
    (1, 'gs://bucket/a', 'gpu', ''),
    (0, 'gs://bucket/a', 'gpu', ''),
  ],
)
def test_jobs_that_cannot_be_are_refused(
  monkeypatch, jobs, workdir, backend, message
):
  monkeypatch.setattr(workers.jax, 'default_backend', lambda: backend)
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1})
  if not message:
    workers.check(jobs, epath.Path(workdir))
    return
  with pytest.raises(ValueError, match=message):
    workers.check(jobs, epath.Path(workdir))
