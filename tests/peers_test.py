"""Processes find each other; those that are missing or stop are named."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hosts_world import ROOT, free_port

from iusp_jax.runtime import peers, preemption


def join_all(port, ids, of, timeout=10.0):
  """What every process gets: a group, or the error."""
  found = {}

  def join(process_id):
    try:
      found[process_id] = peers.join(
        f'127.0.0.1:{port}', port + 1, of, process_id, timeout
      )
    except (OSError, ValueError) as error:
      found[process_id] = error

  threads = [threading.Thread(target=join, args=(k,)) for k in ids]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return found


def test_all_join_whoever_comes_first():
  port, found = free_port(), {}
  late = threading.Timer(0.5, lambda: found.update(join_all(port, [0], 3)))
  late.start()
  found.update(join_all(port, [1, 2], 3))
  late.join()
  assert all(isinstance(k, peers.PeerGroup) for k in found.values())
  for group in found.values():
    group.close()


def test_one_process_waits_for_nobody():
  group = peers.join('127.0.0.1:1234', 1235, 1, 0, 1.0)
  group.watch()
  group.close()


def test_missing_processes_are_named_to_those_who_came():
  found = join_all(free_port(), [0, 2], 4, timeout=1.0)
  for error in found.values():
    assert isinstance(error, peers.Missing)
    assert 'after 1 s processes 1, 3 are missing of 4' in str(error)
    assert '--start_timeout' in str(error)


def test_missing_process_0_is_named():
  found = join_all(free_port(), [1], 2, timeout=1.0)
  assert 'process 0 is missing: process 1 of 2' in str(found[1])
  assert 'cannot reach 127.0.0.1' in str(found[1])


def test_number_that_is_given_twice_is_refused():
  port = free_port()
  found = []
  threads = [
    threading.Thread(target=lambda k=k: found.append(join_all(port, [k], 3)))
    for k in (0, 1)
  ]
  for thread in threads:
    thread.start()
  time.sleep(0.3)
  found.append(join_all(port, [1], 3))
  for thread in threads:
    thread.join()
  errors = [str(error) for each in found for error in each.values()]
  assert len(errors) == 3
  assert all('two processes have --process_id=1' in error for error in errors)


def test_different_numbers_of_processes_are_refused():
  port, found = free_port(), {}
  other = threading.Thread(target=lambda: found.update(join_all(port, [1], 3)))
  other.start()
  found.update(join_all(port, [0], 2))
  other.join()
  for error in found.values():
    assert isinstance(error, ValueError)
    assert '--num_processes=3, process 0 with 2' in str(error)


def test_strangers_do_not_disturb():
  port, found = free_port(), {}
  first = threading.Thread(target=lambda: found.update(join_all(port, [0], 2)))
  first.start()
  for sent in (b'GET / HTTP/1.0\r\n\r\n', b'[1]\n', b'{"host": 1}\n', b''):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
      with contextlib.suppress(ConnectionRefusedError):
        with socket.create_connection(('127.0.0.1', port + 1)) as stranger:
          stranger.sendall(sent)
        break
  found.update(join_all(port, [1], 2))
  first.join()
  assert all(isinstance(k, peers.PeerGroup) for k in found.values())


@pytest.mark.parametrize('offset', [0, 1])
def test_port_in_use_is_reported(offset):
  port = free_port()
  with socket.create_server(('127.0.0.1', port + offset)):
    error = join_all(port, [0], 2)[0]
  assert f'cannot listen on port {port + offset}' in str(error)
  assert 'choose another' in str(error)


PROGRAM = """
import sys, time
from iusp_jax.runtime import peers
port, process_id, then = int(sys.argv[1]), *sys.argv[2:]
group = peers.join(f'127.0.0.1:{port}', port + 1, 3, int(process_id), 20)
group.watch()
if then == 'rely':
  group.rely_on_heartbeat()
print('here', flush=True)
sys.stdin.readline()
if then == 'fail':
  group.close('ValueError: no such clip')
  sys.exit(1)
if then == 'complete':
  group.close()
  sys.exit(0)
time.sleep(30)
"""


@contextlib.contextmanager
def three(number, then, others='wait'):
  """Three processes; one, told by a line, does something else."""
  port = free_port()
  children = []
  for k in range(3):
    does = then if k == number else others
    children.append(
      subprocess.Popen(
        [sys.executable, '-c', PROGRAM, str(port), str(k), does],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  try:
    for child in children:
      assert child.stdout.readline() == 'here\n'
    yield children
  finally:
    for child in children:
      child.kill()
      child.communicate()


def others(children, number):
  return [(k, child) for k, child in enumerate(children) if k != number]


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(
  ('then', 'message'),
  [
    ('kill', 'is gone without a message'),
    ('fail', 'stopped: ValueError: no such clip'),
  ],
)
def test_process_that_ends_ends_the_others_with_its_name(number, then, message):
  with three(number, then) as children:
    if then == 'kill':
      children[number].kill()
    else:
      children[number].stdin.write('now\n')
      children[number].stdin.flush()
    for k, child in others(children, number):
      _, printed = child.communicate(timeout=20)
      assert child.returncode == peers.EXIT_CODE == 69
      assert f'error: process {number} (' in printed
      assert message in printed
      assert f'process {k} ends too' in printed


@pytest.mark.parametrize('number', [0, 1])
def test_killed_process_is_named_and_left_to_the_heartbeat(number):
  """JAX's, which is not there: the others are still running afterwards."""
  with three(number, 'wait', others='rely') as children:
    children[number].kill()
    for k, child in others(children, number):
      line = child.stderr.readline()
      assert f'process {number} (' in line
      assert f'perhaps killed; JAX ends process {k} within seconds' in line
    for _, child in others(children, number):
      assert child.poll() is None


def test_process_that_is_complete_ends_nobody():
  with three(1, 'complete') as children:
    children[1].stdin.write('now\n')
    children[1].stdin.flush()
    assert children[1].wait(20) == 0
    for child in (children[0], children[2]):
      with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.5)


def test_process_that_was_asked_to_stop_keeps_its_exit_code():
  """Another one's error, which a signal to all may cause, does not hide it."""
  program = (
    'from iusp_jax.runtime import peers, preemption\n'
    'import os, signal\n'
    'preemption.listen()\n'
    'os.kill(os.getpid(), signal.SIGTERM)\n'
    "peers.end_at_once('process 1 (a) stopped')\n"
  )
  ended = subprocess.run([sys.executable, '-c', program], cwd=ROOT)
  assert ended.returncode == preemption.EXIT_CODE


def test_request_to_stop_ends_the_wait_for_missing_processes(listening):
  port = free_port()
  for process_id in (0, 1):
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(preemption.Preempted):
      peers.join(f'127.0.0.1:{port}', port + 1, 2, process_id, 60.0)


@pytest.mark.parametrize('address', ['host', 'host:', ':1', 'h:0', 'h:65535'])
def test_wrong_address_is_refused(address):
  with pytest.raises(ValueError, match='expected host:port'):
    peers.split_address(address)


def test_address_may_be_of_either_kind():
  assert peers.split_address('[::1]:80') == ('::1', 80)
  assert peers.split_address('10.0.0.1:1234') == ('10.0.0.1', 1234)
