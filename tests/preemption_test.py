"""The notice to stop: wherever it comes, the process ends in order."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from iusp_jax.runtime import checkpoint, preemption


def test_notice_outside_of_training_ends_at_once(listening):
  with pytest.raises(preemption.Preempted):
    os.kill(os.getpid(), signal.SIGTERM)


def test_notice_in_the_last_moment_of_training_still_ends_the_process(
  listening,
):
  reached = []

  def training():
    with preemption.deferred():
      os.kill(os.getpid(), signal.SIGTERM)
      reached.append(preemption.asked())

  with pytest.raises(preemption.Preempted):
    training()
  assert reached == [True]
  assert not issubclass(preemption.Preempted, Exception)  # `except Exception`


LOST = """
import gc, signal, sys, time, weakref
from iusp_jax.runtime import preemption

def notice(*args):
  gc.callbacks.clear()
  signal.raise_signal(signal.SIGTERM)
  signal.getsignal(signal.SIGTERM)  # Python calls the handler between calls.

class Dying:
  __del__ = notice

preemption.listen()
if sys.argv[1] == 'collector':
  gc.callbacks.append(notice)
  gc.collect()
elif sys.argv[1] == 'destructor':
  Dying()
else:
  dying = type('Empty', (), {})()
  reference = weakref.ref(dying, notice)
  del dying
time.sleep(10)
"""


@pytest.mark.parametrize('callback', ['collector', 'destructor', 'reference'])
def test_notice_in_a_callback_ends_the_run_all_the_same(callback):
  """Python throws away what is raised there."""
  ended = subprocess.run(
    [sys.executable, '-c', LOST, callback], capture_output=True, text=True
  )
  assert ended.returncode == preemption.EXIT_CODE, ended
  assert 'Traceback' not in ended.stderr
  assert 'SIGTERM: stops' in ended.stderr


ENDED = """
import atexit, signal, sys, time
from iusp_jax.runtime import preemption

class Slow:
  def __del__(self):
    time.sleep(0.1)

sys.slow = Slow()  # Goes when all else has ended.
preemption.listen()
atexit.register(signal.raise_signal, signal.SIGTERM)
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize('code', [0, preemption.EXIT_CODE])
def test_notice_at_the_very_end_changes_no_exit_code(code):
  """A cloud may send two: the second finds a process whose work has ended."""
  ended = subprocess.run(
    [sys.executable, '-c', ENDED, str(code)], capture_output=True, text=True
  )
  assert ended.returncode == code, ended


@pytest.mark.parametrize('name', ['save', 'restore'])
def test_notice_in_a_checkpoint_waits_for_its_end(
  name, tmp_path, monkeypatch, listening, capfd
):
  """Orbax has threads, which would complain of a loop that is gone."""
  arrays = {'a': np.arange(3)}
  checkpoint.save(tmp_path, 1, arrays, {}, keep=2)
  original, ended = getattr(checkpoint.ocp.Checkpointer, name), []

  def noticed(*args, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    found = original(*args, **named)
    ended.append(1)
    return found

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, name, noticed)
  work = {
    'save': lambda: checkpoint.save(tmp_path, 2, arrays, {}, keep=2),
    'restore': lambda: checkpoint.restore(tmp_path / f'{1:08d}'),
  }
  with pytest.raises(preemption.Preempted):
    work[name]()
  assert ended == [1]
  assert 'a checkpoint and stops' in capfd.readouterr().err
  assert checkpoint.steps(tmp_path) == ([1, 2] if name == 'save' else [1])


def test_notice_waits_for_the_outermost_end(listening, capfd):
  done = []

  @preemption.deferred('ends the outer part')
  def work():
    with preemption.deferred('ends the inner part'):
      os.kill(os.getpid(), signal.SIGTERM)
    done.append('outer')

  with pytest.raises(preemption.Preempted):
    work()
  assert done == ['outer']
  assert 'SIGTERM: ends the outer part and stops' in capfd.readouterr().err
