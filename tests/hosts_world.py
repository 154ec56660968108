"""Runs of several real processes on this machine."""

import dataclasses
import os
import pathlib
import socket
import subprocess
import sys
import time

import xla

ROOT = pathlib.Path(__file__).resolve().parent.parent
WORKER = 'tests/hosts_worker.py'


def free_port():
  """A port that is free, and so is the one after it."""
  while True:
    with socket.socket() as first, socket.socket() as second:
      first.bind(('127.0.0.1', 0))
      port = first.getsockname()[1]
      try:
        second.bind(('127.0.0.1', port + 1))
      except (OSError, OverflowError):
        continue
      return port


@dataclasses.dataclass
class Child:
  """A process, and the files of what it writes to stdout and stderr."""

  process: subprocess.Popen
  output: pathlib.Path
  errors: pathlib.Path

  def said(self):
    paths = self.output, self.errors
    return ''.join(path.read_text(errors='replace') for path in paths)

  def wait(self, seconds=180):
    """Its exit code; kills it if it does not end in time."""
    try:
      return self.process.wait(seconds)
    except subprocess.TimeoutExpired:
      self.process.kill()
      raise AssertionError(f'it does not end: {self.said()}') from None

  def wait_for(self, text, seconds=120):
    deadline = time.monotonic() + seconds
    while text not in self.said():
      assert self.process.poll() is None, self.said()
      assert time.monotonic() < deadline, self.said()
      time.sleep(0.05)


def start(folder, arguments, devices=2, number=0, **variables):
  """A Python process with so many CPU devices."""
  folder.mkdir(parents=True, exist_ok=True)
  output = folder / f'process_{number}.txt'
  errors = folder / f'process_{number}_errors.txt'
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': xla.flags(devices),
    'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
  }
  with output.open('w') as stdout, errors.open('w') as stderr:
    process = subprocess.Popen(
      [sys.executable, *map(str, arguments)],
      cwd=ROOT,
      env=environment | variables,
      stdout=stdout,
      stderr=stderr,
    )
  return Child(process, output, errors)


def start_all(folder, arguments, num_processes, devices=2, port=None):
  """Processes 0 to num_processes - 1 of one run."""
  port = port or free_port()
  flags = []
  if num_processes > 1:
    flags = [
      f'--coordinator=127.0.0.1:{port}',
      f'--num_processes={num_processes}',
    ]
  return [
    start(
      folder,
      [*arguments, *flags, *([f'--process_id={k}'] if flags else [])],
      devices,
      k,
    )
    for k in range(num_processes)
  ]


def finish(children, seconds=180):
  """Waits for all to end well."""
  deadline = time.monotonic() + seconds
  try:
    for child in children:
      code = child.wait(max(1.0, deadline - time.monotonic()))
      assert code == 0, child.said()
  finally:
    stop(children)


def stop(children):
  """Ends what is still running."""
  for child in children:
    if child.process.poll() is None:
      child.process.kill()
      child.process.wait()
