"""Examples made by threads or processes: order, errors, an early end."""

import math
import os
import pathlib
import subprocess
import sys
import threading

import pytest

import tfds_dcase.urban_scenes.urban_scenes as scenes
from tfds_dcase import urban_scenes, worker
from tfds_dcase.in_order import by_processes, in_order

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize('count', [0, 1, 64, 65, 200])
def test_gives_the_map_in_order(count):
  found = list(in_order(lambda k: k * k, range(count), 4))
  assert found == [k * k for k in range(count)]


def test_makes_a_bounded_number_ahead():
  made = []
  results = in_order(lambda k: made.append(k) or k, range(1000), 4)
  assert next(results) == 0
  assert len(made) <= 64
  results.close()


def test_an_error_comes_where_it_belongs():
  def make(k):
    if k == 70:
      raise ValueError('record 70')
    return k

  results = in_order(make, range(100), 3)
  assert [next(results) for _ in range(70)] == list(range(70))
  with pytest.raises(ValueError, match='record 70'):
    next(results)


def test_may_be_closed_by_one_of_its_own_threads():
  """As the interpreter does with a generator that a signal left unfinished."""
  suspended, errors, closed = threading.Event(), [], threading.Event()

  def make(k):
    if k == 5:
      suspended.wait(5)
      try:
        results.close()  # A pool that is waited for cannot join this thread.
      except RuntimeError as error:
        errors.append(error)
      closed.set()
    return k

  results = in_order(make, range(200), 2)
  assert next(results) == 0
  suspended.set()
  assert closed.wait(5)
  assert not errors


def test_the_next_are_made_while_one_is_used():
  """Threads do not wait for whoever writes a result."""
  made = threading.Event()
  results = in_order(lambda k: made.set() if k == 100 else None, range(200), 2)
  for _ in range(38):
    next(results)
  assert made.wait(20)  # 64 at a time: up to 100 while the 38th is in use
  results.close()


# --- Processes ----------------------------------------------------------------


def test_processes_give_the_same_and_end_with_their_context(monkeypatch):
  """In order; an error is the caller's, and what made it goes on."""
  started = []
  popen = subprocess.Popen

  def start(*args, **named):
    started.append(popen(*args, **named))
    return started[-1]

  monkeypatch.setattr(subprocess, 'Popen', start)
  with by_processes(math.factorial, 2) as make:
    found = list(in_order(make, range(100), 2))
    assert found == [math.factorial(k) for k in range(100)]
    results = in_order(make, [4, 3, -1, 5], 2)
    assert [next(results), next(results)] == [24, 6]
    with pytest.raises(ValueError, match='not defined for negative'):
      next(results)
    assert make(5) == 120
    assert [process.poll() for process in started] == [None, None]
  assert [process.poll() for process in started] == [0, 0]


@pytest.mark.slow
def test_scenes_of_processes_are_those_of_threads(tmp_path, monkeypatch):
  audio = []
  for many in (1, 10**9):
    monkeypatch.setattr(scenes, '_MANY_SCENES', many)
    builder = urban_scenes.make_builder(
      tmp_path / str(many),
      workers=2,
      train_scenes=5,
      validate_scenes=2,
      test_scenes=1,
    )
    builder.download_and_prepare()
    audio.append(
      [
        (each['clip_id'], each['audio'].tobytes(), each['votes'].tobytes())
        for split in builder.as_data_source().values()  # pyright: ignore
        for each in split
      ]
    )
  assert audio[0] == audio[1]
  assert len(audio[0]) == 8


def test_a_process_that_ends_is_named():
  named = pytest.raises(worker.WorkerError, match=r'exit code 3.*workers=1')
  with by_processes(os._exit, 1) as make, named:
    make(3)


_PARENT = """
import time
from tfds_dcase import in_order
print('imported', flush=True)
with in_order.by_processes(time.sleep, 2) as make:
  make(0)
  print('at work', flush=True)
  time.sleep(60)
"""


@pytest.mark.slow
def test_processes_end_with_a_parent_that_is_killed(tmp_path):
  """And a script needs no `__main__` guard: it is not imported by them."""
  script = tmp_path / 'script.py'
  script.write_text(_PARENT)
  process = subprocess.Popen(
    [sys.executable, script],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'imported\n'
  assert process.stdout.readline() == 'at work\n'  # not imported again
  process.kill()
  # They hold the other end of its standard error until they end.
  process.communicate(timeout=20)
