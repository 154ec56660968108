"""What the flags say: where a run goes, what it traces."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Flags are parsed once a process: a process for every command.
PROGRAM = """
import json, sys
from iusp_jax import command_line
command_line.parse(sys.argv)
config = command_line.config()
print(json.dumps([command_line.workdir(), config.seed, config.profile_steps]))
"""


def said(*flags):
  """--workdir, the seed and the steps to trace, by the flags of a command."""
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


@pytest.mark.parametrize(
  ('flags', 'workdir', 'seed'),
  [
    (['--config=configs/iusp.py'], 'runs/iusp', 0),
    (['--config=configs/kd.py:'], 'runs/kd', 0),
    (
      [f'--config={ROOT}/configs/sp.py:clips,seed=3,student=cnn_4'],
      'runs/sp-clips-seed=3-student=cnn_4',
      3,
    ),
    (['--config', 'configs/iusp.py:demo,,seed=5'], 'runs/iusp-demo-seed=5', 5),
    # Fields that are set one by one have no part in the name.
    (['--config=configs/iusp.py:demo', '--config.seed=4'], 'runs/iusp-demo', 4),
    (['--config=configs/iusp.py:demo', '--workdir=/mine/a'], '/mine/a', 0),
  ],
)
def test_workdir_is_named_after_config_and_arguments(flags, workdir, seed):
  assert said(*flags)[:2] == [workdir, seed]


@pytest.mark.parametrize(
  ('flags', 'steps'),
  [
    ([], 0),
    (['--profile=7'], 7),
    (['--config.profile_steps=3'], 3),
    (['--config.profile_steps=3', '--profile=7'], 7),
  ],
)
def test_profile_is_the_number_of_steps_to_trace(flags, steps):
  assert said('--config=configs/iusp.py:smoke', *flags)[2] == steps


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--mode=table', '--config=configs/iusp.py'], '--config=configs/table.py'),
    (['--mode=tune', '--config=configs/kd.py'], '--config=configs/table.py'),
    (['--config=configs/table.py'], '--mode=table'),
    (['--config=configs/iusp.py', '--jobs=2'], '--mode=table'),
    (
      ['--mode=tune', '--config=configs/table.py', '--shard=0/2'],
      '--mode=table',
    ),
  ],
)
def test_mode_and_config_that_do_not_go_together_are_refused(flags, expected):
  with pytest.raises(subprocess.CalledProcessError) as error:
    said(*flags)
  assert f'expected {expected}' in error.value.stderr
