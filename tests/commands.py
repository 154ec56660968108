"""run.py as a user types it, in processes of their own."""

import os
import pathlib
import subprocess
import sys

import xla

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(folder, *flags, config='configs/iusp.py:smoke'):
  """A command whose data and teachers are in a folder."""
  return [
    sys.executable,
    'run.py',
    f'--config={config}',
    f'--config.cache_dir={folder}/cache',
    f'--config.dataset.data_dir={folder}/data',
    *flags,
  ]


def environment():
  """One device, as a user's machine has; the tests themselves have two."""
  return os.environ | {'XLA_FLAGS': xla.flags(), 'PYTHONUNBUFFERED': '1'}


def execute(arguments, **named):
  """Runs a command to its end, however that is."""
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
    **named,
  )


def finish(arguments):
  """Runs a command to its good end; gives what it printed."""
  done = execute(arguments)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout
