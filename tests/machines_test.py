"""Commands on machines that lack something, killed, or two at a time."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
from commands import ROOT, command, environment, execute, finish

from iusp_jax.runtime import memory

# Imported by every Python process, before all else.
WITHOUT_AFFINITY = """
import os
del os.sched_getaffinity, os.sched_setaffinity
"""
TABLE = (
  '--mode=table',
  '--jobs=2',
  "--config.table.objectives=('baseline','iusp')",
)


@pytest.fixture
def without_affinity(tmp_path):
  """Variables for a process on a system like macOS."""
  (tmp_path / 'site').mkdir()
  (tmp_path / 'site' / 'sitecustomize.py').write_text(WITHOUT_AFFINITY)
  return environment() | {'PYTHONPATH': str(tmp_path / 'site')}


def start(words, **named):
  return subprocess.Popen(
    words,
    cwd=named.pop('cwd', ROOT),
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **named,
  )


def until(process, text):
  """Reads what a process prints until some text; gives all lines."""
  lines = []
  for line in process.stdout:
    lines.append(line)
    if text in line:
      return lines
  raise AssertionError(f'{text!r} not in {"".join(lines)}')


def ended_within(processes, seconds):
  _, alive = psutil.wait_procs(processes, timeout=seconds)
  return not alive


@pytest.mark.slow
@pytest.mark.skipif(
  (os.cpu_count() or 1) < 2, reason='--jobs=2 needs two cores'
)
def test_jobs_end_with_a_killed_parent_and_a_table_needs_no_affinity(
  without_affinity, tmp_path
):
  """Killed, the workers end within 5 s; the same command then finishes."""
  words = command(
    tmp_path,
    *TABLE,
    f'--workdir={tmp_path}/table',
    config='configs/table.py:smoke',
  )
  process = start(words, env=without_affinity)
  lines = until(process, 'cannot keep a process to some of its')
  assert any('groups of cells, 2 to run' in line for line in lines)
  parent, workers = psutil.Process(process.pid), []
  while len(workers) < 2:
    time.sleep(0.2)
    workers = parent.children(recursive=True)
  time.sleep(8.0)  # They import JAX before they can look for their parent.
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert ended_within(workers, 5.0)
  done = subprocess.run(
    words,
    cwd=ROOT,
    env=without_affinity,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  cells = json.loads((tmp_path / 'table' / 'cells.json').read_text())['cells']
  assert [cell['status'] for cell in cells] == ['done'] * 4


def copy_of_the_program(folder: pathlib.Path) -> pathlib.Path:
  """Without its .git, as of a source archive."""
  folder.mkdir(parents=True)
  for name in ('configs', 'iusp_jax', 'tfds_dcase', 'run.py'):
    source = ROOT / name
    copy = shutil.copytree if source.is_dir() else shutil.copy
    copy(source, folder / name)
  return folder


@pytest.mark.slow
def test_run_from_another_folder_without_git_and_affinity(
  without_affinity, tmp_path
):
  """From a source archive in a folder with brackets; configs/ is found."""
  program = copy_of_the_program(tmp_path / 'my [tagger] runs')
  here = tmp_path / 'here [a]\\b'
  here.mkdir()
  words = command(
    'files', '--workdir=run', config='configs/baseline.py:smoke,student=cnn_4'
  )
  words[1] = str(program / 'run.py')
  (tmp_path / 'bin').mkdir()

  def run():
    return subprocess.run(
      words,
      cwd=here,
      env=without_affinity | {'PATH': str(tmp_path / 'bin')},
      capture_output=True,
      text=True,
      check=False,
    )

  done = run()
  assert done.returncode == 0, done.stdout + done.stderr
  record = json.loads((here / 'run' / 'results.json').read_text())
  assert record['environment']['git_commit'] == 'unknown'
  done = run()
  assert 'This run is complete' in done.stdout
  words[2] = '--config=configs/isup.py'
  done = run()
  assert done.returncode == 1
  assert f'no such file in {here} or {program}' in done.stderr
  assert "did you mean 'configs/iusp.py'?" in done.stderr


@pytest.mark.slow
def test_run_goes_on_where_another_at_the_same_teacher_is_killed(
  smoke, tmp_path
):
  """Two are started together with one cache and one data folder."""
  names, processes = ('a', 'b'), {}
  for name in names:
    with (tmp_path / f'{name}.txt').open('w') as file:
      processes[name] = subprocess.Popen(
        command(tmp_path, f'--workdir={tmp_path}/{name}'),
        cwd=ROOT,
        env=environment(),
        stdout=file,
        stderr=subprocess.STDOUT,
      )
  printed = {name: tmp_path / f'{name}.txt' for name in names}
  # One has trained the teacher for some steps; the other one waits.
  while not list(tmp_path.glob('cache/teachers/*/metrics.jsonl')):
    assert all(process.poll() is None for process in processes.values())
    time.sleep(0.2)
  (trains,) = [
    name for name in names if 'teacher: trains in' in printed[name].read_text()
  ]
  processes[trains].kill()
  processes[trains].wait()
  (other,) = set(names) - {trains}
  code = processes[other].wait()
  assert code == 0, printed[other].read_text()
  folder, _ = smoke
  expected = json.loads((folder / 'run' / 'results.json').read_text())
  found = json.loads((tmp_path / other / 'results.json').read_text())
  for name in ('curve', 'weights'):
    assert found[name] == expected[name]
  assert found['student']['best'] == expected['student']['best']


LIMITED = """
import os, resource, sys
size = int(sys.argv[2])
resource.setrlimit(getattr(resource, sys.argv[1]), (size, size))
os.execv(sys.argv[3], sys.argv[3:])
"""


def limited(kind, size, words):
  """A command that may not have more of something.

  Not by `preexec_fn`, which forks: JAX warns where a process has threads.
  """
  return [sys.executable, '-c', LIMITED, kind, str(size), *words]


@pytest.mark.slow
def test_small_disk_is_one_line_and_the_same_command_continues(smoke, tmp_path):
  """Files of at most some bytes: records, config, checkpoint, outputs."""
  folder, _ = smoke
  words = command(tmp_path, f'--workdir={tmp_path}/run')
  for size, named in (
    (0, str(tmp_path)),
    (10_000, f'{tmp_path}/data'),
    (1_000_000, f'{tmp_path}/data'),
    (1_000, f'{tmp_path}/run/'),
    (3_000, str(tmp_path)),
    (20_000, f'{tmp_path}/cache/teachers/'),
    (50_000, str(tmp_path)),
    (100_000, str(tmp_path)),
    (200_000, f'{tmp_path}/cache/'),
    (400_000, f'{tmp_path}/cache/outputs/'),
  ):
    done = execute(limited('RLIMIT_FSIZE', size, words))
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stderr.count('\n') == 1, f'{size}: {done.stderr}'
    assert done.stderr.startswith('error: ')
    assert named in done.stderr
    if size == 1_000_000:  # Records need the room; the rest is tried below.
      shutil.copytree(folder / 'data', tmp_path / 'data', dirs_exist_ok=True)
  finish(words)
  expected = json.loads((folder / 'run' / 'results.json').read_text())
  found = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert found['student']['best'] == expected['student']['best']


@pytest.mark.slow
def test_too_little_address_space_is_one_line(tmp_path):
  words = command(tmp_path, f'--workdir={tmp_path}/run')
  done = execute(limited('RLIMIT_AS', 1_500_000_000, words))
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: the limit on memory is 1.5 GB')
  assert 'ulimit -v' in line


@pytest.mark.parametrize(
  ('error', 'exhausted'),
  [
    (MemoryError(), True),
    (MemoryError('Unable to allocate 9. GiB'), True),
    (RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 9 B'), True),
    (RuntimeError("can't start new thread"), True),
    (RuntimeError('something else'), False),
  ],
)
def test_errors_of_memory_are_told_from_others(error, exhausted):
  assert bool(memory.is_exhausted(error)) == exhausted


READ_ONLY = """
import os, sys
from configs import base
from iusp_jax.data import preparation
from iusp_jax.experiment import identity
config = identity.plain(base.get_config('smoke').dataset)
config['data_dir'] = sys.argv[1]
config['builder'] |= {f'{x}_scenes': 2 for x in ('train', 'validate', 'test')}
preparation.load(config)
os.seteuid(65534)  # A user who may read the folder.
dataset = preparation.load(config)
print(len(dataset.splits['train']), 'clips', dataset.num_samples)
config['builder']['seed'] = 1  # Has to be prepared.
preparation.load(config)
"""


@pytest.mark.skipif(os.getuid() != 0, reason='only root can be another user')
@pytest.mark.slow
def test_prepared_data_are_used_where_they_cannot_be_written():
  """By a user who may read them: root itself may write everywhere."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    done = subprocess.run(
      [sys.executable, '-c', READ_ONLY, f'{folder}/data'],
      cwd=ROOT,
      env=environment(),
      capture_output=True,
      text=True,
      check=False,
    )
    assert '2 clips 160000' in done.stdout, done.stderr
    assert f'config.dataset.data_dir is {folder}/data' in done.stderr
    assert 'cannot be written (Permission denied' in done.stderr
