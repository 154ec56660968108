"""A process ends when the one that started it was killed."""

import os
import signal
import subprocess
import sys

import pytest

from hosts_world import ROOT

CHILD = """
import sys, time
from iusp_jax.runtime import parent
if sys.argv[2] == 'late':  # The parent is gone before it is watched.
  sys.stdin.readline()
parent.end_with(int(sys.argv[1]))
print('watches', flush=True)
time.sleep(60)
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen(
  [sys.executable, '-c', sys.argv[1], str(os.getpid()), sys.argv[2]],
  stdin=sys.stdin,
)
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize('when', ['early', 'late'])
def test_child_of_a_killed_parent_ends(when):
  parent = subprocess.Popen(
    [sys.executable, '-c', PARENT, CHILD, when],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  child = int(parent.stdout.readline())
  if when == 'early':
    assert parent.stdout.readline() == 'watches\n'
    os.kill(child, 0)
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  # This waits until the child has closed its ends, too: 60 s if it goes on.
  _, errors = parent.communicate('now\n', timeout=20)
  assert f'process {parent.pid}, which started this one ({child})' in errors
