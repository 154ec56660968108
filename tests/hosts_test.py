"""One run on several processes and devices: the same result anywhere."""

import json

import numpy as np
import pytest
from hosts_world import WORKER, finish, start_all

from iusp_jax import logs

OBJECTIVES = ('baseline', 'kd', 'sp', 'iusp', 'all')


def losses(folder, name):
  """By step, the parts of the loss that a run wrote down."""
  rows = logs.read_metrics(folder / name / 'metrics.jsonl')
  return [
    {key: row[key] for key in row if key.startswith('train/')}
    for row in rows
    if 'train/loss' in row
  ]


def assert_same(found, expected, num_steps, what):
  assert len(found) == len(expected) == num_steps, what
  for number, (one, two) in enumerate(zip(found, expected, strict=True)):
    assert one.keys() == two.keys()
    for key in one:
      tolerance = 1e-5 if number < 10 else 1e-4
      if key == 'train/gradient_norm':  # Clipped: it is no part of a loss.
        tolerance *= 10
      np.testing.assert_allclose(
        one[key], two[key], tolerance, 1e-9, err_msg=f'{what} {number} {key}'
      )


def run(folder, jobs, num_processes=1, devices=2, **flags):
  """A run of the worker to its end."""
  named = [f'--{key}={value}' for key, value in flags.items()]
  command = [WORKER, folder, json.dumps(jobs), *named]
  finish(start_all(folder, command, num_processes, devices))
  return folder


@pytest.mark.slow
def test_same_result_on_any_devices_and_processes(tmp_path):
  """Every objective, augmentation on; and stored teacher outputs."""
  jobs = ['predict', 'all+stored']
  jobs += [f'{name}+augmented' for name in OBJECTIVES]
  folders = {
    (processes, devices): run(
      tmp_path / f'{processes}x{devices}', jobs, processes, devices
    )
    for processes, devices in ((1, 1), (1, 2), (1, 4), (1, 8), (2, 2), (4, 2))
  }
  whole = folders.pop((1, 1))
  expected = np.load(whole / 'predicted.npz')
  for layout, folder in folders.items():
    predicted = np.load(folder / 'predicted.npz')
    for split in expected:
      np.testing.assert_allclose(
        logit(predicted[split]), logit(expected[split]), 1e-5, 1e-5
      )
    for name in jobs[1:]:
      found = losses(folder, name)
      assert_same(found, losses(whole, name), 30, f'{layout} {name}')


def logit(probability):
  return np.log(probability / (1 - probability))
