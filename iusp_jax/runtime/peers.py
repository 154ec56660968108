"""Processes of one run find each other, and hand on why one of them stopped.

Process 0 listens; the others connect and introduce themselves. The run begins
when all are there; after a timeout every process that came is told who is
missing. The connections stay open: a process that stops by an error sends its
message, and the others end with it. A process that is killed sends none; JAX's
own heartbeat ends the others then (see `hosts.py`). Plain TCP and JSON lines,
nothing of JAX, whose runtime aborts without naming who is missing.
"""

import contextlib
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from iusp_jax.runtime import preemption

EXIT_CODE = os.EX_UNAVAILABLE  # 69: ended because another process did.
_RETRY_SECONDS = 0.3
_HELLO_SECONDS = 2.0
_HANG_UP_SECONDS = 3.0  # For the others to end after a message.


class Missing(OSError):
  """Not all processes of a run came."""


class Peer:
  """The other end of a connection, over which JSON lines go."""

  def __init__(self, connection: socket.socket, process_id: int, host: str):
    self.connection, self._lines = connection, connection.makefile('rb')
    self.process_id, self.host = process_id, host
    self._sending = threading.Lock()
    self.ended = threading.Event()  # Set by `PeerGroup.watch`.

  def __str__(self) -> str:
    return f'process {self.process_id} ({self.host})'

  def send(self, **message: Any) -> None:
    """Sends a message, if the peer is still there."""
    with contextlib.suppress(OSError), self._sending:
      self.connection.sendall(json.dumps(message).encode() + b'\n')

  def receive(self, seconds: float | None = None) -> dict[str, Any]:
    """The next message.

    Args:
      seconds: to wait for a part of it; None for as long as the connection is
        open.

    Raises:
      EOFError: if it is closed, or nothing or something else comes.
    """
    try:
      self.connection.settimeout(seconds)
      return dict(json.loads(self._lines.readline(65536)))
    except (OSError, ValueError, TypeError) as error:
      raise EOFError from error

  def waits_to_be_read(self, seconds: float) -> bool:
    """Whether a message, or the end of the connection, comes in time."""
    return bool(select.select([self.connection], [], [], seconds)[0])

  def is_there(self) -> bool:
    """False where the connection has been closed."""
    try:
      if not self.waits_to_be_read(0):
        return True
      return bool(self.connection.recv(1, socket.MSG_PEEK))
    except OSError:
      return False


def split_address(address: str) -> tuple[str, int]:
  """Host and port.

  Raises:
    ValueError: for anything but `host:port`, the port below 65535.
  """
  host, colon, port = address.rpartition(':')
  if not (colon and host and port.isdigit() and 0 < int(port) < 65535):
    raise ValueError(
      f'--coordinator is {address!r}: expected host:port of process 0 with a '
      'port from 1 to 65534, such as 10.0.0.1:1234 (the port after it is used '
      'as well)'
    )
  return host.strip('[]'), int(port)


def join(
  address: str,
  own_port: int,
  num_processes: int,
  process_id: int,
  timeout: float,
) -> 'PeerGroup':
  """Waits until all processes of a run are there.

  Args:
    address: `host:port` of process 0 for JAX.
    own_port: of process 0 for this handshake.
    num_processes: of the run.
    process_id: of this one.
    timeout: seconds to wait.

  Raises:
    Missing: after the timeout, with the numbers of the missing processes.
    ValueError: where two processes claim the same number, or disagree on how
      many there are.
    preemption.Preempted: where a request to stop comes.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + timeout
  if process_id == 0:
    _listen(int(port)).close()  # JAX would crash where it is taken.
    peers = _await_all(own_port, num_processes, deadline, timeout)
  else:
    host = host.strip('[]')
    place = f'process {process_id} of {num_processes}'
    peer = _connect(host, own_port, place, deadline, timeout)
    _await_start(peer, process_id, num_processes, timeout)
    peers = {0: peer}
  return PeerGroup(process_id, peers)


def _await_all(port, num_processes, deadline, timeout):
  """Process 0: the connections of all others."""
  if num_processes == 1:
    return {}
  peers: dict[int, Peer] = {}
  with _listen(port) as listener:
    try:
      while len(peers) < num_processes - 1:
        preemption.check()
        if select.select([listener], [], [], _RETRY_SECONDS)[0]:
          _admit(listener.accept()[0], peers, num_processes)
        elif time.monotonic() > deadline:
          raise _missing(peers, num_processes, port, timeout)
    except (Missing, ValueError) as error:
      for peer in peers.values():
        peer.send(refused=str(error), missing=isinstance(error, Missing))
      raise
  for peer in peers.values():
    peer.send(start=True)
  return peers


def _missing(peers, num_processes, port, timeout):
  """The error that names who did not come."""
  missing = sorted(set(range(1, num_processes)) - peers.keys())
  listed = ', '.join(str(number) for number in missing)
  are = f'processes {listed} are' if missing[1:] else f'process {listed} is'
  return Missing(
    f'after {timeout:.0f} s {are} missing of {num_processes} at process 0 '
    f'({socket.gethostname()}, port {port}): start it with the same '
    '--coordinator and --num_processes, see that it reaches that port, or '
    'raise --start_timeout'
  )


def _listen(port):
  """A listening socket, for IPv6 and IPv4 where the machine has both."""
  try:
    dual = socket.has_dualstack_ipv6()
    return socket.create_server(
      ('', port),
      family=socket.AF_INET6 if dual else socket.AF_INET,
      dualstack_ipv6=dual,
      backlog=1024,
    )
  except OSError as error:
    raise OSError(
      f'process 0 cannot listen on port {port}: {error.strerror or error}. '
      '--coordinator takes its port and the one after it: choose another'
    ) from error


def _admit(connection, peers, num_processes):
  """Adds whoever connected; a stranger's connection is closed.

  Raises:
    ValueError: where the process does not fit to the others.
  """
  peer = Peer(connection, -1, '')
  try:
    hello = peer.receive(_HELLO_SECONDS)
    peer.process_id, theirs = int(hello['process_id']), int(hello['of'])
    peer.host = str(hello['host'])
  except (EOFError, ValueError, KeyError, TypeError):
    connection.close()
    return
  problem = _problem(peer, theirs, peers.get(peer.process_id), num_processes)
  if problem:
    peer.send(refused=problem, missing=False)
    raise ValueError(problem)
  peers[peer.process_id] = peer  # Also one that died and was started again.


def _problem(peer, theirs, earlier, num_processes):
  """Why a process cannot join; empty where it can."""
  if theirs != num_processes:
    return (
      f'{peer} was started with --num_processes={theirs}, process 0 with '
      f'{num_processes}: expected the same number'
    )
  if peer.process_id == 0:
    return (
      f'two processes have --process_id=0, one on {peer.host}: expected 0 to '
      f'{num_processes - 1}, each once'
    )
  if not 0 < peer.process_id < num_processes:
    return f'{peer} cannot join {num_processes} processes'
  if earlier is not None and earlier.is_there():
    return (
      f'two processes have --process_id={peer.process_id}, on {earlier.host} '
      f'and {peer.host}: expected 0 to {num_processes - 1}, each once'
    )
  return ''


def _connect(host, port, place, deadline, timeout):
  """Any other process: its connection to process 0."""
  reason = ''
  while (left := deadline - time.monotonic()) > 0:
    preemption.check()
    try:
      connection = socket.create_connection((host, port), min(left, 5.0))
      return Peer(connection, 0, host)
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(_RETRY_SECONDS)
  raise Missing(
    f'after {timeout:.0f} s process 0 is missing: {place} '
    f'({socket.gethostname()}) cannot reach {host}:{port} ({reason}). Start '
    'process 0 on that host, see that the port is open, or '
    'raise --start_timeout'
  )


def _await_start(peer, process_id, num_processes, timeout):
  """Introduces this process to process 0, and waits for its answer."""
  peer.send(process_id=process_id, of=num_processes, host=socket.gethostname())
  # Process 0 began its own count later, perhaps: it has the last word.
  seconds = timeout + 10
  end = time.monotonic() + seconds
  while not peer.waits_to_be_read(_RETRY_SECONDS):
    preemption.check()
    if time.monotonic() > end:
      raise Missing(f'{peer} did not answer within {seconds:.0f} s')
  try:
    answer = peer.receive(_HELLO_SECONDS)
  except EOFError as error:
    raise Missing(f'{peer} ended while this one waited for the run') from error
  if 'refused' in answer:
    kind = Missing if answer.get('missing') else ValueError
    raise kind(answer['refused'])


def end_at_once(message: str) -> None:
  """Ends this process with a message, whatever its other threads wait for.

  With the exit code of a request to stop, where it got one itself.
  """
  print(f'error: {message}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(preemption.EXIT_CODE if preemption.requested() else EXIT_CODE)


class PeerGroup:
  """The open connections of a run: all to process 0, process 0 to all."""

  def __init__(self, process_id: int, peers: Mapping[int, Peer]):
    self._process_id, self._peers = process_id, peers
    self._closing = threading.Event()
    self._heartbeat = False
    self.lost = threading.Event()  # A peer ended without a message.

  def watch(self) -> None:
    """Ends this process when a peer stops by an error.

    Until `rely_on_heartbeat` also when one goes without a message.
    """
    for peer in self._peers.values():
      threading.Thread(
        target=self._listen_to, args=(peer,), daemon=True
      ).start()

  def rely_on_heartbeat(self) -> None:
    """From now on JAX's heartbeat ends this process where a peer is killed."""
    self._heartbeat = True

  def close(self, reason: str = '') -> None:
    """Tells all peers that this process ends.

    Args:
      reason: of an error; empty where the run is complete. With one, the
        others end: they get a moment to do so before process 0, with JAX's
        coordination service, goes.
    """
    self._closing.set()
    if reason:
      message = {'stopped': reason, 'process_id': self._process_id}
      self._tell(self._peers.values(), message)
    else:
      for peer in self._peers.values():
        peer.send(complete=True)

  def _tell(self, peers, message):
    """Sends why the run stops, and waits until they have hung up."""
    deadline = time.monotonic() + _HANG_UP_SECONDS
    for peer in peers:
      peer.send(**message)
    for peer in peers:
      peer.ended.wait(max(0.0, deadline - time.monotonic()))

  def _listen_to(self, peer):
    """Handles one peer's messages, until its connection is closed."""
    complete = False
    try:
      while True:
        message = peer.receive()
        complete = complete or 'complete' in message
        if 'stopped' in message:
          why = message['stopped']
          if message['process_id'] == peer.process_id:
            why = f'{peer} stopped: {why}'
          self._stop(peer, why, message['process_id'])
        if 'lost' in message:
          self._lose(peer, message['lost'])
    except EOFError:
      peer.ended.set()
    if complete or self._closing.is_set():
      return
    why = f'{peer} is gone without a message, perhaps killed'
    if self._heartbeat:
      self._lose(peer, why)
    else:  # JAX would wait for the peer to come.
      self._stop(peer, why, peer.process_id)

  def _stop(self, peer, why, origin):
    """Hands on why a peer stopped, then ends this process."""
    if self._closing.is_set():
      return
    self._closing.set()
    self._tell(self._others(peer), {'stopped': why, 'process_id': origin})
    end_at_once(f'{why}; process {self._process_id} ends too')

  def _lose(self, peer, why):
    """Hands on that a peer is gone; JAX's heartbeat ends this process."""
    self.lost.set()
    print(
      f'{why}; JAX ends process {self._process_id} within seconds',
      file=sys.stderr,
      flush=True,
    )
    for other in self._others(peer):
      other.send(lost=why)

  def _others(self, peer):
    return [other for other in self._peers.values() if other is not peer]
