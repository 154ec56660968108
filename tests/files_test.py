"""Files, JSON, locks, rows and wall time, also damaged or on a full disk."""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hosts_world import ROOT

from iusp_jax.runtime import files, metrics_log, processes, wall_time


@pytest.mark.parametrize(
  'content', [b'', b'{"a": 1', b'[1, 2', b'{"a": "\xff"}', b'{"a": 1}}']
)
def test_damaged_json_names_its_file_and_the_remedy(content, tmp_path):
  path = tmp_path / 'results.json'
  path.write_bytes(content)
  with pytest.raises(ValueError, match='expected JSON') as error:
    files.read_json(path)
  assert not isinstance(error.value, json.JSONDecodeError)
  assert str(error.value).startswith(f'{path}: ')
  assert str(error.value).endswith('delete it and run the same command again')
  with pytest.raises(ValueError, match=r'; prepare the data again$'):
    files.read_json(path, 'prepare the data again')


def test_json_is_written_and_read(tmp_path):
  value = {
    'a': np.float32(0.5),
    'b': [np.int64(1), np.array([True])],
    'c': {'nan': np.nan, 'inf': [-np.inf], 'of arrays': np.array([np.nan, 1])},
    'path': pathlib.Path('x'),
    'none': None,
  }
  text = files.to_json(value)
  files.write_atomically(tmp_path / 'a.json', text)
  assert files.read_json(tmp_path / 'a.json') == {
    'a': 0.5,
    'b': [1, [True]],
    'c': {'nan': None, 'inf': [None], 'of arrays': [None, 1.0]},
    'path': 'x',
    'none': None,
  }
  assert 'NaN' not in text
  assert 'Infinity' not in text


def test_home_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert files.resolve('~') == tmp_path
  assert files.resolve('~/runs/a') == tmp_path / 'runs' / 'a'
  assert files.resolve('a~b').name == 'a~b'
  with pytest.raises(ValueError, match=r'^~nobody-here/a: expected a path'):
    files.resolve('~nobody-here/a')


def test_system_errors_name_the_file(tmp_path):
  with (
    pytest.raises(OSError, match=r'No space left on device.*some/file'),
    files.named_errors('some/file'),
  ):
    raise OSError(errno.ENOSPC, 'No space left on device')
  with (
    pytest.raises(FileNotFoundError, match='other'),
    files.named_errors('some/file'),
  ):
    (tmp_path / 'other').open()


FULL = """
import resource, signal, sys
from pathlib import Path
from iusp_jax.runtime import files, metrics_log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
what, folder, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
try:
  if what == 'rows':
    writer = metrics_log.MetricsWriter(folder, [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    for step in range(300):
      writer.write({'step': step} | {f'train/{k}': 0.1 for k in range(5)})
    writer.close()
  else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    files.write_atomically(folder / 'metrics.jsonl', 'x' * 30_000)
except OSError as error:
  sys.exit(f'error: {error}')
"""


@pytest.mark.parametrize(
  ('what', 'size', 'name'),
  [
    ('rows', 3_000, 'metrics.jsonl'),
    ('rows', 30_000, 'tensorboard/events.out.tfevents'),  # These are longer.
    ('file', 3_000, 'metrics.jsonl'),
  ],
)
def test_full_disk_is_one_line_with_the_file(what, size, name, tmp_path):
  """And no thread that waits for ever; a limit on files stands in for it."""
  done = subprocess.run(
    [sys.executable, '-c', FULL, what, str(tmp_path), str(size)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert 'File too large' in line
  assert f"'{tmp_path}/{name}" in line


def test_lock_that_the_file_system_refuses_names_its_file(
  tmp_path, monkeypatch
):
  def refuse(file, how):
    raise OSError(errno.ENOLCK, 'No locks available')

  monkeypatch.setattr(fcntl, 'flock', refuse)
  with (
    pytest.raises(OSError, match=rf'No locks available.*{tmp_path}/\.lock'),
    files.lock(tmp_path, 'busy'),
  ):
    pytest.fail('it is locked')


def test_lock_is_waited_for_and_refused(tmp_path, capsys):
  program = (
    'import sys, pathlib\n'
    'from iusp_jax.runtime import files\n'
    'with files.lock(pathlib.Path(sys.argv[1]), "busy"):\n'
    '  print("locked", flush=True)\n'
    '  sys.stdin.readline()\n'
  )
  child = subprocess.Popen(
    [sys.executable, '-c', program, str(tmp_path)],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == 'locked\n'
  with (
    pytest.raises(files.Busy, match='another run works here'),
    files.lock(tmp_path, 'another run works here', wait=False),
  ):
    pytest.fail('it is locked')
  os.kill(child.pid, signal.SIGKILL)  # It ends with its holder, however.
  with files.lock(tmp_path, 'another run works here'):
    assert child.wait(30) == -signal.SIGKILL
  child.communicate()


def test_damaged_row_is_reported_and_the_later_ones_kept(tmp_path, capsys):
  path = tmp_path / 'metrics.jsonl'
  rows = [{'step': step, 'train/loss': 1 / step} for step in range(1, 5)]
  lines = [json.dumps(row).encode() for row in rows]
  damaged = lines[1].replace(b'train', b'tra\xffin')
  for wrong in (damaged, lines[1][:9], b'12', b'"step"', b'{"train/loss": 1}'):
    path.write_bytes(b'\n'.join([lines[0], wrong, *lines[2:], b'']))
    assert metrics_log.read_metrics(path) == [rows[0], *rows[2:]]
    printed = capsys.readouterr().out
    assert printed == f'{path}: line 2 is damaged: it is left out\n'


def test_row_cut_by_a_kill_is_left_out(tmp_path, capsys):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "a": 2.0}\n{"step": 2, "a"')
  assert metrics_log.read_metrics(path) == [{'step': 1, 'a': 2.0}]
  assert capsys.readouterr().out == ''


def test_rows_that_are_not_finite_are_json_all_the_same(tmp_path):
  writer = metrics_log.MetricsWriter(tmp_path, [])
  writer.write({'step': 1, 'a': np.nan, 'b': np.inf, 'c': 1.5})
  writer.close()
  path = tmp_path / 'metrics.jsonl'
  assert json.loads(path.read_text()) == {
    'step': 1,
    'a': None,
    'b': None,
    'c': 1.5,
  }
  (row,) = metrics_log.read_metrics(path)
  assert np.isnan(row['a'])
  assert row['c'] == 1.5


def test_wall_time_is_written_at_the_end(tmp_path):
  """Of one process after the other; long before the first periodic write."""
  path = tmp_path / 'wall_seconds.json'
  with wall_time.wall_time(tmp_path, time.monotonic() - 100) as seconds:
    assert not path.exists()
    assert seconds()['num_processes'] == 1
  (first,) = json.loads(path.read_text())
  assert first >= 100
  with (
    contextlib.suppress(ZeroDivisionError),  # Also where a run fails.
    wall_time.wall_time(tmp_path, time.monotonic() - 50) as seconds,
  ):
    assert seconds()['all_processes'] >= first + 50
    raise ZeroDivisionError
  before, second = json.loads(path.read_text())
  assert before == first
  assert second >= 50


@pytest.mark.parametrize('content', ['', '[1, 2', '{"a": 1}', '3', '["x"]'])
def test_damaged_wall_time_ends_no_run(content, tmp_path, capsys):
  path = tmp_path / 'wall_seconds.json'
  path.write_text(content)
  with wall_time.wall_time(tmp_path, time.monotonic() - 7) as seconds:
    assert seconds()['num_processes'] == 1
  assert f'{path}: damaged' in capsys.readouterr().out
  assert len(json.loads(path.read_text())) == 1


def test_lock_that_is_held_is_reported_to_all_processes(tmp_path, monkeypatch):
  """Process 0 alone asks for it; the others would wait for ever."""
  with files.lock(tmp_path, ''):
    asked = []

    def by_primary(call):
      asked.append(call())
      return asked[-1]

    monkeypatch.setattr(processes, 'by_primary', by_primary)
    for _ in range(2):
      with (
        pytest.raises(files.Busy, match='another run is at it'),
        files.lock_for_all_processes(tmp_path, 'another run is at it', False),
      ):
        pytest.fail('it is held')
    assert len(asked) == 2
    # Another process gets the answer, and asks for no lock of its own.
    monkeypatch.setattr(processes, 'by_primary', lambda call: 'is busy')
    with (
      pytest.raises(files.Busy, match='is busy'),
      files.lock_for_all_processes(tmp_path, 'another run is at it', False),
    ):
      pytest.fail('it is held')
  monkeypatch.setattr(processes, 'by_primary', lambda call: call())
  with files.lock_for_all_processes(tmp_path, '', False):
    pass
