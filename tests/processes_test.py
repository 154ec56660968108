"""Real processes of one run: they wait for each other, and end each other."""

import signal
import time

import pytest
from hosts_world import start_all, stop

from iusp_jax.runtime import peers, preemption

slow = pytest.mark.slow

PROGRAM = """
import signal, sys, time
import jax
from iusp_jax.runtime import devices, hosts, preemption, processes

preemption.listen()
what, number = sys.argv[1], int(sys.argv[2])
flags = dict(word.removeprefix('--').split('=') for word in sys.argv[3:])
own = int(flags['process_id'])
with preemption.stop_instead_of_errors(), hosts.joined(
  coordinator=flags['coordinator'], num_processes=2, process_id=own
):
  print('joined', flush=True)
  if what == 'talk':
    found = processes.by_primary(lambda: {'from': own, 'list': [1, None]})
    processes.barrier()
    first = processes.primary_first(lambda: time.monotonic())
    print(found, processes.is_primary(), flush=True)
    print(first, flush=True)
  elif what == 'fail':
    if own == number:
      raise ValueError('no such clip')
    if flags.get('wait') == 'barrier':
      processes.barrier()
    else:
      devices.any_host(False)
  elif what == 'die' and own == number:
    time.sleep(100)
  elif what == 'die':
    wait = {'barrier': processes.barrier}.get(flags['wait'])
    wait() if wait else devices.any_host(False)
  elif what == 'compile' and own == number:
    signal.raise_signal(signal.SIGTERM)
    raise jax.errors.JaxRuntimeError('INTERNAL: ptxas exited with 15')
  elif own == number:  # Prepares data, say.
    while True:
      time.sleep(0.1)
      preemption.check()
  else:
    processes.barrier()
"""


def start(folder, what, number=0, **flags):
  """Two processes; gives them once both have joined."""
  named = [f'--{name}={value}' for name, value in flags.items()]
  children = start_all(folder, ['-c', PROGRAM, what, number, *named], 2, 1)
  for child in children:
    deadline = time.monotonic() + 100
    while 'joined' not in child.said():
      assert time.monotonic() < deadline, child.said()
      time.sleep(0.05)
  return children


def test_processes_wait_for_each_other_and_agree(tmp_path):
  children = start(tmp_path, 'talk')
  try:
    for child in children:
      assert child.wait(60) == 0, child.said()
  finally:
    stop(children)
  lines = [child.output.read_text().splitlines() for child in children]
  for k, (_, found, _) in enumerate(lines):
    assert found == f"{{'from': 0, 'list': [1, None]}} {k == 0}"
  first, second = (float(line[-1]) for line in lines)
  assert first < second  # One clock, as on one machine.


@pytest.mark.parametrize(
  ('number', 'wait'),
  [
    (0, 'barrier'),
    (1, 'devices'),
    pytest.param(1, 'barrier', marks=slow),
    pytest.param(0, 'devices', marks=slow),
  ],
)
@pytest.mark.slow
def test_error_of_one_ends_the_other_with_its_message(number, wait, tmp_path):
  children = start(tmp_path, 'fail', number, wait=wait)
  try:
    assert children[number].wait(60) == 1
    other = children[1 - number]
    assert other.wait(60) == peers.EXIT_CODE, other.said()
    assert 'stopped: ValueError: no such clip' in other.said()
    assert f'error: process {number} (' in other.said()
    assert 'Traceback' not in other.said()
  finally:
    stop(children)


@pytest.mark.parametrize(
  ('signalled', 'busy'),
  [
    ([0, 1], 0),
    pytest.param([1], 0, marks=slow),
    pytest.param([0], 0, marks=slow),
    pytest.param([0], 1, marks=slow),
    pytest.param([1], 1, marks=slow),
    pytest.param([0, 1], 1, marks=slow),
  ],
)
@pytest.mark.slow
def test_request_to_stop_is_noticed_at_work_and_while_waiting(
  signalled, busy, tmp_path
):
  """Within 10 s each; a process that got none is ended by the other."""
  children = start(tmp_path, 'work', busy)
  try:
    time.sleep(1)  # The other one waits for the busy one.
    for number in signalled:
      children[number].process.send_signal(signal.SIGTERM)
    for number, child in enumerate(children):
      asked = number in signalled
      expected = preemption.EXIT_CODE if asked else peers.EXIT_CODE
      assert child.wait(30) == expected, child.said()
      assert 'Traceback' not in child.said()
      if not asked:
        assert 'stopped: exit code 75' in child.said()
  finally:
    stop(children)


@pytest.mark.slow
def test_error_that_a_request_to_stop_causes_has_its_exit_code(tmp_path):
  children = start(tmp_path, 'compile', 1)
  try:
    assert children[1].wait(60) == preemption.EXIT_CODE, children[1].said()
    assert 'Traceback' not in children[1].said()
    assert children[0].wait(60) == peers.EXIT_CODE, children[0].said()
    assert 'stopped: exit code 75' in children[0].said()
  finally:
    stop(children)


@pytest.mark.slow
@pytest.mark.parametrize('wait', ['barrier', 'devices'])
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize('number', [0, 1])
def test_killed_process_ends_the_other_by_the_heartbeat(
  number, how, wait, tmp_path
):
  """JAX aborts; the computation that fails before prints no error."""
  children = start(tmp_path, 'die', number, wait=wait)
  try:
    time.sleep(1)  # The other one waits.
    children[number].process.send_signal(how)
    other = children[1 - number]
    assert other.wait(30) == -signal.SIGABRT, other.said()  # 134 in a shell.
    assert 'Terminating process because the JAX' in other.said()
    assert 'Traceback' not in other.said()
    if how == signal.SIGKILL and number == 1:
      # Process 0's end takes JAX's service with it: JAX may be the first.
      assert 'process 1 (' in other.said()
      assert 'is gone without a message' in other.said()
  finally:
    stop(children)
