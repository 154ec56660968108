"""Requests to stop, SIGTERM and Ctrl-C: the process ends in order."""

import os
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest
from hosts_world import ROOT

from iusp_jax.runtime import checkpoint, files, preemption, processes

CODES = {signal.SIGTERM: 75, signal.SIGINT: 130}


def run(program, *arguments):
  """A Python program to its end."""
  return subprocess.run(
    [sys.executable, '-c', program, *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=60,
  )


@pytest.mark.parametrize('number', CODES)
def test_signal_raises_nothing_until_somebody_checks(number, listening, capfd):
  assert not preemption.requested()
  preemption.check()
  os.kill(os.getpid(), number)
  signal.raise_signal(number if number == signal.SIGTERM else signal.SIGTERM)
  assert preemption.requested()
  with pytest.raises(preemption.Preempted) as stop:
    preemption.check()
  assert stop.value.code == CODES[number]  # Of the first signal.
  assert not isinstance(stop.value, Exception)  # `except Exception`.
  lines = capfd.readouterr().err.splitlines()
  assert len(lines) == 1
  assert lines[0].startswith(
    'SIGTERM: ' if number == signal.SIGTERM else 'Ctrl-C: '
  )
  assert 'saves and stops; the same command continues' in lines[0]


STOPPED = """
import sys, time
from iusp_jax.runtime import preemption
preemption.listen()
print('here', flush=True)
while True:
  time.sleep(0.01)
  if sys.argv[1] == 'checks':
    preemption.check()
"""


def start(*arguments):
  """`STOPPED` as a process, once it listens."""
  child = subprocess.Popen(
    [sys.executable, '-c', STOPPED, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert child.stdout.readline() == 'here\n'
  return child


@pytest.mark.parametrize('number', CODES)
def test_process_that_checks_exits_with_its_code(number):
  child = start('checks')
  child.send_signal(number)
  _, printed = child.communicate(timeout=20)
  assert child.returncode == CODES[number]
  assert len(printed.splitlines()) == 1, printed


@pytest.mark.parametrize('number', CODES)
def test_second_interrupt_alone_ends_a_process_that_does_not_check(number):
  """A cloud may send SIGTERM several times."""
  child = start('never')
  child.send_signal(number)
  assert 'saves and stops' in child.stderr.readline()
  child.send_signal(number)
  if number == signal.SIGTERM:
    with pytest.raises(subprocess.TimeoutExpired):
      child.wait(0.5)
    child.kill()
    child.communicate()
    return
  _, printed = child.communicate(timeout=20)
  assert child.returncode == 130
  assert printed == 'Ctrl-C: ends at once; the same command continues\n'


ENDED = """
import atexit, signal, sys, time
from iusp_jax.runtime import preemption

class Slow:
  def __del__(self):
    time.sleep(0.1)

sys.slow = Slow()  # Goes when all else has ended.
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGINT):
  atexit.register(signal.raise_signal, number)  # The last one runs first.
preemption.listen()
sys.exit(int(sys.argv[1]))
"""


@pytest.mark.parametrize('code', [0, preemption.EXIT_CODE])
def test_signal_at_the_very_end_changes_no_exit_code(code):
  """The second Ctrl-C, say, finds a process whose work has ended."""
  ended = run(ENDED, code)
  assert ended.returncode == code, ended
  assert ended.stderr == ''


COMPILATION = """
import os, signal, sys
import jax
from iusp_jax.runtime import preemption

preemption.listen()
with preemption.stop_instead_of_errors():
  if sys.argv[1] == 'before':
    os.kill(os.getpid(), signal.SIGTERM)
  if sys.argv[1] == 'after':  # The child was killed first.
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(15))
    signal.setitimer(signal.ITIMER_REAL, 0.1)
  raise jax.errors.JaxRuntimeError('INTERNAL: ptxas exited with 15\\nmore')
"""


@pytest.mark.parametrize('when', ['before', 'after'])
def test_error_that_a_signal_to_the_group_causes_is_one_line(when):
  """As XLA's, whose assembler for GPUs is a child and was ended as well."""
  ended = run(COMPILATION, when)
  assert ended.returncode == preemption.EXIT_CODE, ended
  first, second = ended.stderr.splitlines()
  assert sorted((first[:7], second[:7])) == ['SIGTERM', 'stopped']
  assert '(JaxRuntimeError: INTERNAL: ptxas exited with 15)' in ended.stderr


def test_error_without_a_signal_stays_what_it_is(listening, monkeypatch):
  with (
    pytest.raises(jax.errors.JaxRuntimeError, match='out of memory'),
    preemption.stop_instead_of_errors(),
  ):
    raise jax.errors.JaxRuntimeError('out of memory')
  with (
    pytest.raises(ValueError, match='wrong field'),
    preemption.stop_instead_of_errors(),
  ):
    raise ValueError('wrong field')


@pytest.mark.parametrize('name', ['save', 'restore'])
def test_checkpoint_is_finished_first(name, tmp_path, monkeypatch, listening):
  arrays = {'a': np.arange(3)}
  checkpoint.save(tmp_path, 1, arrays, {}, keep=2)
  original = getattr(checkpoint.ocp.Checkpointer, name)

  def signalled(*args, **named):
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **named)

  monkeypatch.setattr(checkpoint.ocp.Checkpointer, name, signalled)
  if name == 'save':
    checkpoint.save(tmp_path, 2, arrays, {}, keep=2)
    assert checkpoint.steps(tmp_path) == [1, 2]
  else:
    restored, _ = checkpoint.restore(tmp_path / f'{1:08d}')
    np.testing.assert_array_equal(restored['a'], np.arange(3))
  assert preemption.requested()


def test_wait_for_a_lock_ends(tmp_path, listening):
  held, release = threading.Event(), threading.Event()

  def hold():  # Locks are of open files, so that a thread is as good.
    with files.lock(tmp_path, 'busy'):
      held.set()
      release.wait(30)

  holder = threading.Thread(target=hold)
  holder.start()
  held.wait(30)
  try:
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(preemption.Preempted), files.lock(tmp_path, 'is held'):
      pytest.fail('the lock is held by another')
  finally:
    release.set()
    holder.join()


class Coordination:
  """JAX's coordination service with nobody else in it."""

  def __init__(self, **values):
    self.values, self.count = values, 0

  def key_value_increment(self, key, amount):
    self.count += amount
    return self.count

  def key_value_set(self, key, value):
    self.values[key] = value

  def blocking_key_value_get(self, key, timeout_ms):
    if key in self.values:
      return self.values[key]
    time.sleep(timeout_ms / 1000)
    raise jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED: GetKeyValue()')


@pytest.fixture
def second_of_two(monkeypatch):
  """This process is the second of two, the first of which never comes."""
  client = Coordination()
  monkeypatch.setattr(
    processes.jax_internals, 'coordination_client', lambda: client
  )
  monkeypatch.setattr(processes, '_PATIENCE_SECONDS', 0.2)
  monkeypatch.setattr(processes, '_POLL_MS', 50)
  processes.configure(1, 2)
  yield client
  processes.configure(0, 1)


@pytest.mark.parametrize(
  'wait',
  [
    processes.barrier,
    lambda: processes.by_primary(lambda: 1),
    lambda: processes.primary_first(lambda: 1),
  ],
)
def test_wait_for_other_processes_ends(wait, second_of_two, listening):
  threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
  with pytest.raises(preemption.Preempted):
    wait()


def test_request_is_not_noticed_where_the_others_come(second_of_two, listening):
  """So that all that train together save after the same step."""
  os.kill(os.getpid(), signal.SIGTERM)
  second_of_two.count = 1  # The other one is there; this is the last.
  processes.barrier()
  second_of_two.count = 0
  assert not processes.end_together(0.1)  # But not at the end.
  second_of_two.count = 1
  assert processes.end_together(0.1)


def test_wait_for_a_save_is_not_interrupted(second_of_two, listening):
  os.kill(os.getpid(), signal.SIGTERM)

  def saved():
    for key in [f'iusp/{number}/all' for number in range(1000)]:
      second_of_two.values[key] = ''

  threading.Timer(0.6, saved).start()  # Longer than others have patience.
  processes.barrier(interruptible=False)
  assert second_of_two.values
