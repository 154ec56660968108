"""A process ends when the one that started it was killed."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from hosts_world import ROOT

from iusp_jax.runtime import parent

CHILD = """
import os, sys, time
from iusp_jax.runtime import parent
if sys.argv[1] == 'late':  # The parent is gone before it is watched.
  sys.stdin.readline()
parent.watch()
assert 'IUSP_JAX_PARENT' not in os.environ
print('watches', flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys, time
from iusp_jax.runtime import parent
child = subprocess.Popen(
  [sys.executable, '-c', sys.argv[1], sys.argv[2]],
  env=parent.environment(),
  stdin=sys.stdin,
)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize('when', ['early', 'late'])
def test_child_of_a_killed_parent_ends(when):
  killed = subprocess.Popen(
    [sys.executable, '-c', PARENT, CHILD, when],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  child = int(killed.stdout.readline())
  if when == 'early':
    assert killed.stdout.readline() == 'watches\n'
    os.kill(child, 0)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  # This waits until the child has closed its ends, too: 60 s if it goes on.
  _, errors = killed.communicate('now\n', timeout=20)
  assert f'process {killed.pid}, which started this one ({child})' in errors


def test_process_without_such_a_parent_watches_nobody(monkeypatch):
  monkeypatch.delenv('IUSP_JAX_PARENT', raising=False)
  before = threading.active_count()
  parent.watch()
  assert threading.active_count() == before
