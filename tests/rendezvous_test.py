"""Processes find each other; those that do not come, or die, are named."""

import contextlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from hosts_world import ROOT, free_port

from iusp_jax.runtime import peers


def meet_all(port, ids, of, timeout=10.0):
  """What every process gets: a party, or the error."""
  found = {}

  def meet(process_id):
    try:
      found[process_id] = peers.meet(
        f'127.0.0.1:{port}', port + 1, of, process_id, timeout
      )
    except (OSError, ValueError) as error:
      found[process_id] = error

  threads = [threading.Thread(target=meet, args=(k,)) for k in ids]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  return found


def test_all_meet_whoever_comes_first():
  port, found = free_port(), {}
  late = threading.Timer(0.5, lambda: found.update(meet_all(port, [0], 3)))
  late.start()
  found.update(meet_all(port, [1, 2], 3))
  late.join()
  assert all(isinstance(k, peers.Party) for k in found.values())
  for party in found.values():
    party.leave()


def test_one_process_waits_for_nobody():
  party = peers.meet('127.0.0.1:1234', 1235, 1, 0, 1.0)
  party.watch()
  party.leave()


def test_missing_processes_are_named_to_those_who_came():
  found = meet_all(free_port(), [0, 2], 4, timeout=1.0)
  for error in found.values():
    assert isinstance(error, peers.Missing)
    assert 'after 1 s processes 1, 3 are missing of 4' in str(error)
    assert '--start_timeout' in str(error)


def test_missing_process_0_is_named():
  found = meet_all(free_port(), [1], 2, timeout=1.0)
  assert 'process 0 of 2 is missing' in str(found[1])
  assert 'cannot reach 127.0.0.1' in str(found[1])


def test_number_that_is_given_twice_is_refused():
  port = free_port()
  found = []
  threads = [
    threading.Thread(target=lambda k=k: found.append(meet_all(port, [k], 3)))
    for k in (0, 1)
  ]
  for thread in threads:
    thread.start()
  time.sleep(0.3)
  found.append(meet_all(port, [1], 3))
  for thread in threads:
    thread.join()
  errors = [str(error) for each in found for error in each.values()]
  assert len(errors) == 3
  assert all('two processes have --process_id=1' in error for error in errors)


def test_different_numbers_of_processes_are_refused():
  port, found = free_port(), {}
  other = threading.Thread(target=lambda: found.update(meet_all(port, [1], 3)))
  other.start()
  found.update(meet_all(port, [0], 2))
  other.join()
  for error in found.values():
    assert isinstance(error, ValueError)
    assert '--num_processes=3, process 0 with 2' in str(error)


def test_strangers_do_not_disturb():
  port, found = free_port(), {}
  first = threading.Thread(target=lambda: found.update(meet_all(port, [0], 2)))
  first.start()
  for said in (b'GET / HTTP/1.0\r\n\r\n', b'[1]\n', b'{"host": 1}\n', b''):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
      with contextlib.suppress(ConnectionRefusedError):
        with socket.create_connection(('127.0.0.1', port + 1)) as stranger:
          stranger.sendall(said)
        break
  found.update(meet_all(port, [1], 2))
  first.join()
  assert all(isinstance(k, peers.Party) for k in found.values())


@pytest.mark.parametrize('offset', [0, 1])
def test_port_in_use_is_said(offset):
  port = free_port()
  with socket.create_server(('127.0.0.1', port + offset)):
    error = meet_all(port, [0], 2)[0]
  assert f'cannot listen on port {port + offset}' in str(error)
  assert 'choose another' in str(error)


PROGRAM = """
import sys, time
from iusp_jax.runtime import peers
port, process_id, then = int(sys.argv[1]), *sys.argv[2:]
peers.SILENCE_SECONDS = 1.5
peers.PING_SECONDS = 0.3
party = peers.meet(f'127.0.0.1:{port}', port + 1, 3, int(process_id), 20)
party.watch()
print('here', flush=True)
time.sleep(1)
if then == 'fail':
  party.leave('ValueError: no such clip')
  sys.exit(1)
if then == 'leave':
  party.leave()
  sys.exit(0)
time.sleep(30)
"""


def three(number, then):
  """Three processes, one of which does something after a second."""
  port = free_port()
  return [
    subprocess.Popen(
      [
        sys.executable,
        '-c',
        PROGRAM,
        str(port),
        str(k),
        then if k == number else 'wait',
      ],
      cwd=ROOT,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for k in range(3)
  ]


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize(
  ('how', 'message'),
  [
    ('SIGKILL', 'is gone'),
    ('SIGSTOP', 'has not been heard of for'),
    ('fail', 'stopped: ValueError: no such clip'),
  ],
)
def test_process_that_ends_ends_the_others_with_its_name(number, how, message):
  children = three(number, how)
  try:
    for child in children:
      assert child.stdout.readline() == 'here\n'
    started = time.monotonic()
    if how.startswith('SIG'):
      children[number].send_signal(signal.Signals[how])
    for k, child in enumerate(children):
      if k != number:
        _, said = child.communicate(timeout=20)
        assert child.returncode == peers.EXIT_CODE
        assert f'error: process {number} (' in said
        assert message in said
        assert f'process {k} ends too' in said
    assert time.monotonic() - started < 10
  finally:
    for child in children:
      child.kill()
      child.communicate()


@pytest.mark.parametrize('address', ['host', 'host:', ':1', 'h:0', 'h:65535'])
def test_wrong_address_is_refused(address):
  with pytest.raises(ValueError, match='expected host:port'):
    peers.split_address(address)


def test_address_may_be_of_either_kind():
  assert peers.split_address('[::1]:80') == ('::1', 80)
  assert peers.split_address('10.0.0.1:1234') == ('10.0.0.1', 1234)
