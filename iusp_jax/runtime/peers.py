"""Processes of one run find each other, and notice when one is gone.

Process 0 listens; the others connect and say who they are. The run begins
when all are there; after a timeout every process that came is told who is
missing. The connections stay open: each side says something every few
seconds, so that a process that dies, stops or is cut off ends the others with
its name. Plain TCP and JSON lines; nothing of JAX, whose own runtime aborts
without naming anybody.
"""

import dataclasses
import json
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

PING_SECONDS = 2.0
SILENCE_SECONDS = 15.0  # After which a process counts as gone.
EXIT_CODE = os.EX_UNAVAILABLE  # 69: ended because another process did.
_RETRY_SECONDS = 0.3
_HELLO_SECONDS = 2.0


class Missing(OSError):
  """Not all processes of a run came."""


@dataclasses.dataclass
class Peer:
  """The other end of a connection."""

  process_id: int
  host: str
  connection: socket.socket
  unread: bytes = b''
  heard: float = 0.0  # When, by time.monotonic().
  sending: threading.Lock = dataclasses.field(default_factory=threading.Lock)

  def __str__(self) -> str:
    return f'process {self.process_id} ({self.host})'

  def send(self, **message: Any) -> None:
    """Sends a message; one that is gone does not hear it."""
    try:
      with self.sending:
        self.connection.sendall(json.dumps(message).encode() + b'\n')
    except OSError:
      pass

  def receive(self, seconds: float) -> dict[str, Any] | None:
    """The next message; None if none comes in time.

    Raises:
      EOFError: if the connection is closed.
    """
    deadline = time.monotonic() + seconds
    while b'\n' not in self.unread:
      left = max(0.0, deadline - time.monotonic())
      if not select.select([self.connection], [], [], left)[0]:
        return None
      try:
        received = self.connection.recv(65536)
      except OSError as error:
        raise EOFError from error
      if not received:
        raise EOFError
      self.unread += received
    line, _, self.unread = self.unread.partition(b'\n')
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f'not a message: {line!r}')
    return message

  def is_there(self) -> bool:
    """False where the connection has been closed."""
    try:
      if not select.select([self.connection], [], [], 0)[0]:
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


def meet(
  address: str,
  own_port: int,
  num_processes: int,
  process_id: int,
  timeout: float,
) -> 'Party':
  """Waits until all processes of a run are there.

  Args:
    address: `host:port` of process 0 for JAX.
    own_port: of process 0 for this rendezvous.
    num_processes: of the run.
    process_id: of this one.
    timeout: seconds to wait.

  Raises:
    Missing: after the timeout, with the numbers of the missing processes.
    ValueError: where two processes say they are the same one, or disagree
      on their number.
  """
  host, _, port = address.rpartition(':')
  deadline = time.monotonic() + timeout
  if process_id == 0:
    _listen(int(port)).close()  # JAX would crash where it is taken.
    peers = _await_all(own_port, num_processes, deadline, timeout)
  else:
    host = host.strip('[]')
    peers = {
      0: _go_to(host, own_port, num_processes, process_id, deadline, timeout)
    }
  return Party(process_id, peers)


def _await_all(port, num_processes, deadline, timeout):
  """Process 0: the connections of all others."""
  if num_processes == 1:
    return {}
  peers: dict[int, Peer] = {}
  with _listen(port) as listener:
    try:
      while len(peers) < num_processes - 1:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([listener], [], [], left)[0]:
          missing = sorted(set(range(1, num_processes)) - peers.keys())
          raise Missing(
            f'after {timeout:.0f} s {_name(missing)} missing of '
            f'{num_processes} at process 0 ({socket.gethostname()}, port '
            f'{port}): start it with the same --coordinator and '
            '--num_processes, see that it reaches that port, or raise '
            '--start_timeout'
          )
        _admit(listener.accept()[0], peers, num_processes)
    except (Missing, ValueError) as error:
      for peer in peers.values():
        peer.send(stop=str(error), missing=isinstance(error, Missing))
      raise
  for peer in peers.values():
    peer.send(go=True)
  return peers


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
  """Adds whoever connected; what is none of ours is sent away."""
  connection.settimeout(_HELLO_SECONDS)
  peer = Peer(-1, '', connection)
  try:
    hello = peer.receive(_HELLO_SECONDS) or {}
    peer.process_id, theirs = int(hello['process_id']), int(hello['of'])
    peer.host = str(hello['host'])
  except (EOFError, ValueError, KeyError, TypeError):
    connection.close()
    return
  problem = ''
  earlier = peers.get(peer.process_id)
  if theirs != num_processes:
    problem = (
      f'{peer} was started with --num_processes={theirs}, process 0 with '
      f'{num_processes}: expected the same number'
    )
  elif not 0 < peer.process_id < num_processes:
    problem = f'{peer} cannot join {num_processes} processes'
    if peer.process_id == 0:
      problem = (
        f'two processes have --process_id=0, one on {peer.host}: expected '
        f'0 to {num_processes - 1}, each once'
      )
  elif earlier is not None and earlier.is_there():
    problem = (
      f'two processes have --process_id={peer.process_id}, on {earlier.host} '
      f'and {peer.host}: expected 0 to {num_processes - 1}, each once'
    )
  if problem:
    peer.send(stop=problem, missing=False)
    raise ValueError(problem)
  peers[peer.process_id] = peer  # Also one that died and was started again.


def _go_to(host, port, num_processes, process_id, deadline, timeout):
  """Any other process: its connection to process 0."""
  peer = None
  reason = ''
  while peer is None:
    left = deadline - time.monotonic()
    if left <= 0:
      raise Missing(
        f'after {timeout:.0f} s process 0 of {num_processes} is missing: '
        f'process {process_id} ({socket.gethostname()}) cannot reach '
        f'{host}:{port} ({reason}). Start process 0 on that host, see that '
        'the port is open, or raise --start_timeout'
      )
    try:
      connection = socket.create_connection((host, port), min(left, 10.0))
      peer = Peer(0, host, connection)
    except OSError as error:
      reason = error.strerror or str(error)
      time.sleep(_RETRY_SECONDS)
  peer.connection.settimeout(10.0)
  peer.send(process_id=process_id, of=num_processes, host=socket.gethostname())
  # Process 0 began its own count later, perhaps: it has the last word.
  answer, end = None, time.monotonic() + timeout + 10
  try:
    while answer is None and time.monotonic() < end:
      answer = peer.receive(1.0)
  except (EOFError, ValueError) as error:
    raise Missing(f'{peer} ended while this one waited for the run') from error
  if answer is None:
    raise Missing(f'{peer} did not answer within {timeout + 10:.0f} s')
  if 'stop' in answer:
    raise (Missing if answer.get('missing') else ValueError)(answer['stop'])
  return peer


def _name(numbers):
  """'process 1 is' or 'processes 1, 2 are'."""
  listed = ', '.join(str(number) for number in numbers)
  return (
    f'process {listed} is' if len(numbers) == 1 else (f'processes {listed} are')
  )


def end_at_once(message: str) -> None:
  """Says why and ends this process, whatever its other threads wait for."""
  print(f'error: {message}', file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(EXIT_CODE)


class Party:
  """The open connections of a run: all to process 0, process 0 to all."""

  def __init__(self, process_id: int, peers: Mapping[int, Peer]):
    self._process_id, self._peers = process_id, peers
    self._leaving = threading.Event()
    self.lost = threading.Event()  # Somebody is gone.

  def watch(self, end: Callable[[str], None] = end_at_once) -> None:
    """Calls `end(message)` from a thread if another process is gone."""
    for peer in self._peers.values():
      peer.connection.settimeout(SILENCE_SECONDS)
      peer.heard = time.monotonic()
      threading.Thread(
        target=self._listen_to, args=(peer, end), daemon=True
      ).start()
    if self._peers:
      threading.Thread(target=self._ping, daemon=True).start()

  def leave(self, reason: str = '') -> None:
    """Says goodbye to all: because the run is complete, or why else."""
    self._leaving.set()
    for peer in self._peers.values():
      if reason:
        peer.send(stopped=reason, who=self._process_id)
      else:
        peer.send(bye=True)

  def _ping(self):
    while not self._leaving.wait(PING_SECONDS):
      for peer in self._peers.values():
        peer.send(ping=True)

  def _listen_to(self, peer, end):
    while True:
      try:
        message = peer.receive(PING_SECONDS)
      except (EOFError, ValueError):
        return self._lose(peer, f'{peer} is gone', end)
      now = time.monotonic()
      if message is not None:
        peer.heard = now
        if 'bye' in message:
          return None
        if 'stopped' in message:
          why = message['stopped']
          if message.get('who') == peer.process_id:
            why = f'{peer} stopped: {why}'
          return self._lose(peer, why, end)
      elif now - peer.heard > SILENCE_SECONDS:
        silence = f'{peer} has not been heard of for {SILENCE_SECONDS:.0f} s'
        return self._lose(peer, silence, end)

  def _lose(self, peer, why, end):
    """Tells the others, then ends this process."""
    if self._leaving.is_set():
      return
    self._leaving.set()
    self.lost.set()
    for other in self._peers.values():
      if other is not peer:
        other.send(stopped=why, who=peer.process_id)
    end(f'{why}; process {self._process_id} ends too')
