"""One run on several processes and devices: the same result anywhere."""

import argparse
import json
import signal
import time

import hosts_worker
import numpy as np
import pytest
from experiments import assert_same_scores
from hosts_world import WORKER, finish, free_port, start, start_all, stop

from iusp_jax.data import sources
from iusp_jax.runtime import checkpoint, hosts, metrics_log, preemption

JOBS = (
  'predict',
  'all+stored',
  'all+members',
  'all+stream',
  'iusp+accumulated',
  'kd+uneven',
  *(f'{name}+augmented' for name in ('baseline', 'kd', 'sp', 'iusp')),
)


def members(folder, name):
  """Rows of every member, and the checksums of its last variables."""
  return json.loads((folder / name / 'rows.json').read_text())


def losses(folder, name):
  """By member and step, the parts of the loss."""
  return [
    [
      {key: row[key] for key in row if key.startswith('train/')}
      for row in rows
      if 'train/loss' in row
    ]
    for rows, _ in members(folder, name)
  ]


def assert_same(found, expected, num_steps, what):
  assert len(found) == len(expected), what
  for one, two in zip(found, expected, strict=True):
    assert len(one) == len(two) == num_steps, what
    for number, rows in enumerate(zip(one, two, strict=True)):
      assert rows[0].keys() == rows[1].keys()
      for key in rows[0]:
        tolerance = 1e-5 if number < 10 else 1e-4
        if key == 'train/gradient_norm':  # Clipped: it is no part of a loss.
          tolerance *= 10
        np.testing.assert_allclose(
          rows[0][key],
          rows[1][key],
          tolerance,
          1e-9,
          err_msg=f'{what} {number} {key}',
        )


def run(folder, jobs, num_processes=1, num_devices=2, **flags):
  """A run of the worker to its end."""
  named = [f'--{key}={value}' for key, value in flags.items()]
  command = [WORKER, folder, json.dumps(jobs), *named]
  finish(start_all(folder, command, num_processes, num_devices), 550)
  return folder


@pytest.fixture(scope='module')
def alone(make_once):
  """All jobs on one device of one process."""
  return make_once('hosts_alone', lambda folder: run(folder, JOBS, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('processes', 'num_devices'), [(1, 2), (1, 4), (1, 8), (2, 2), (4, 2)]
)
def test_same_result_on_any_devices_and_processes(
  processes, num_devices, alone, tmp_path
):
  """Every objective; stored outputs, parts of batches, 23 clips; scores."""
  model = alone / 'model'
  folder = run(tmp_path, JOBS, processes, num_devices, model=model)
  expected = np.load(alone / 'predicted.npz')
  predicted = np.load(folder / 'predicted.npz')
  for split in expected:
    np.testing.assert_allclose(
      logit(predicted[split]), logit(expected[split]), 0, 1e-5
    )
  assert_same_scores(*(read_scores(place) for place in (folder, alone)))
  for name in JOBS[1:]:
    steps = {'iusp+accumulated': 15, 'kd+uneven': 29}.get(name, 30)
    assert_same(losses(folder, name), losses(alone, name), steps, name)


def read_scores(folder):
  return json.loads((folder / 'scores.json').read_text())


@pytest.fixture(scope='module')
def two(make_once):
  """On two processes of one device each."""
  jobs = ['predict', 'all+augmented']
  return make_once('hosts_two', lambda folder: run(folder, jobs, 2, 1))


@pytest.fixture(scope='module')
def one(make_once, two):
  """The same in this process."""
  flags = argparse.Namespace(epochs=10.0, every=10.0, stop_after=0)

  def fill(folder):
    hosts_worker.predict(folder, two / 'model')
    hosts_worker.fit(folder, 'all+augmented', flags)

  return make_once('hosts_one', fill)


@pytest.mark.slow
def test_two_processes_train_and_predict_as_one_does(two, one):
  """Splits of 24, 11 and 13 clips in batches of 8: every clip once."""
  predicted, expected = (np.load(x / 'predicted.npz') for x in (two, one))
  assert len(expected) == 6
  for name in expected:
    np.testing.assert_allclose(
      logit(predicted[name]), logit(expected[name]), 1e-5, 1e-5
    )
  assert_same(*(losses(x, 'all+augmented') for x in (two, one)), 30, 'all')
  rows = metrics_log.read_metrics(two / 'all+augmented' / 'metrics.jsonl')
  assert rows == members(two, 'all+augmented')[0][0]


@pytest.mark.slow
def test_table_tuning_and_run_give_the_scores_of_one_process(tmp_path):
  """Members that are spread over devices, and batches that are."""
  places = {}
  for processes, num_devices in ((1, 1), (2, 2)):
    folder = tmp_path / str(processes)
    run(folder, ['experiments'], processes, num_devices)
    places[processes] = folder
    printed = (folder / 'process_0.txt').read_text()
    assert '1 groups of cells, 0 to run' in printed
    for k in range(1, processes):
      printed = (folder / f'process_{k}.txt').read_text()
      assert printed.startswith(f'process {k} of {processes}, backend cpu')
      for text in ('compiled', 'table:', 'Results', 'Plot'):
        assert text not in printed
  records = [f'cells/tiny-iusp_sp-seed{seed}' for seed in range(100, 105)]
  for name in [*(f'table/{name}' for name in records), 'run', 'run/baseline']:
    found, expected = (
      json.loads((places[k] / name / 'results.json').read_text())
      for k in (2, 1)
    )
    assert found['identity'] == expected['identity']
    assert_same_scores(found['student'], expected['student'])
    assert found['environment']['num_processes'] == 2
  for name in ('table.md', 'cells.json', 'similarities.png', 'table.csv'):
    assert (places[2] / 'table' / name).exists()
  weights, expected = (
    json.loads((places[k] / 'tuned' / 'tuned.json').read_text()) for k in (2, 1)
  )
  assert weights == expected


@pytest.mark.slow
@pytest.mark.parametrize(
  ('before', 'after'),
  [((2, 1), (1, 1)), ((1, 1), (2, 1)), ((1, 1), (1, 2))],
)
@pytest.mark.parametrize('name', ['all+augmented', 'all+members'])
def test_run_continues_on_another_number_of_processes(
  name, before, after, tmp_path
):
  """Six steps, then on to twelve elsewhere; against twelve in one go."""
  whole = run(tmp_path / 'whole', [name], 1, 2, epochs=4, every=2)
  parts = tmp_path / 'parts'
  command = [WORKER, parts, json.dumps([name]), '--epochs=4', '--every=2']
  children = start_all(parts, [*command, '--stop_after=6'], *before)
  try:
    for child in children:
      assert child.wait() == 75, child.said()
  finally:
    stop(children)
  assert checkpoint.steps(parts / name / 'training') == [6]
  finish(start_all(parts, command, *after))
  assert 'continues after step 6' in (parts / 'process_0.txt').read_text()
  assert_same(losses(parts, name), losses(whole, name), 12, name)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGSTOP])
def test_host_that_dies_ends_the_others(number, how, tmp_path):
  """By JAX's heartbeat, which aborts: no error of the step they were in."""
  command = [WORKER, tmp_path, '["baseline"]', '--epochs=100000']
  children = start_all(tmp_path, command, 2, 1)
  try:
    metrics = tmp_path / 'baseline' / 'metrics.jsonl'
    deadline = time.monotonic() + 150
    while not metrics.exists() or metrics.stat().st_size < 1000:
      assert time.monotonic() < deadline, children[0].said()
      assert children[0].process.poll() is None, children[0].said()
      time.sleep(0.1)
    children[number].process.send_signal(how)
    survivor = children[1 - number]
    assert survivor.wait(30) == -signal.SIGABRT  # 134 in a shell.
    assert 'Terminating process because the JAX' in survivor.said()
    assert 'Traceback' not in survivor.said()
    if how == signal.SIGKILL:
      assert f'process {number} (' in survivor.said()
      assert 'is gone without a message' in survivor.said()
  finally:
    stop(children)


@pytest.mark.slow
def test_processes_that_are_killed_continue_to_the_same_bits(tmp_path):
  """One of two is killed after a save; both are started again."""
  name = 'all+augmented'
  flags = [json.dumps([name]), '--epochs=4', '--every=1']
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  finish(start_all(whole, [WORKER, whole, *flags], 2, 1), 300)
  saved = parts / name / 'training' / f'{3:08d}'
  for number in (1, 0):
    children = start_all(parts, [WORKER, parts, *flags], 2, 1)
    try:
      deadline = time.monotonic() + 150
      while not saved.is_dir():
        assert time.monotonic() < deadline, children[0].said()
        assert children[0].process.poll() is None, children[0].said()
        time.sleep(0.002)
      children[number].process.send_signal(signal.SIGKILL)
      assert children[1 - number].wait(30) == -signal.SIGABRT
    finally:
      stop(children)
    saved = saved.with_name(f'{9:08d}')
  finish(start_all(parts, [WORKER, parts, *flags], 2, 1), 300)
  printed = (parts / 'process_0.txt').read_text()
  assert any(f'continues after step {k}' in printed for k in (9, 12))
  assert members(parts, name) == members(whole, name)
  rows, expected = (
    (folder / name / 'metrics.jsonl').read_text() for folder in (parts, whole)
  )
  assert rows == expected


@pytest.mark.slow
def test_batch_of_a_nan_is_kept_whole(tmp_path):
  """Process 0 writes it, before the first to stop ends the other."""
  children = start_all(
    tmp_path, [WORKER, tmp_path, '["baseline+spoilt"]'], 2, 1
  )
  try:
    codes = [child.wait(200) for child in children]
  finally:
    stop(children)
  assert 0 not in codes
  assert any('the loss of step' in child.said() for child in children)
  (path,) = (tmp_path / 'baseline+spoilt').glob('nan_batch*.npz')
  kept = np.load(path)
  clips_KB = sources.Order(24, 8, (5,)).clips(range(30))['own'][0]
  (first, *_) = [k for k, clips_B in enumerate(clips_KB) if 7 in clips_B]
  assert kept['step'] == first + 1
  np.testing.assert_array_equal(kept['index'], clips_KB[first])
  assert len(kept['clip_id']) == 8


@pytest.mark.slow
def test_notice_to_one_host_stops_all_and_they_continue(tmp_path):
  """SIGTERM of one process: all save the same step and exit with the code."""
  command = [
    'run.py',
    '--config=configs/teacher.py:smoke',
    '--config.teacher.training.epochs=5000',
    f'--config.cache_dir={tmp_path}/cache',
    f'--config.dataset.data_dir={tmp_path}/data',
    f'--workdir={tmp_path}/run',
  ]
  steps = []
  for noticed in (1, 0):
    children = start_all(tmp_path, command, 2, 1)
    try:
      children[0].wait_for('teacher: compiled', 200)
      time.sleep(2)
      children[noticed].process.send_signal(signal.SIGTERM)
      for child in children:
        assert child.wait(60) == preemption.EXIT_CODE, child.said()
        assert 'Traceback' not in child.said()
    finally:
      stop(children)
    (teacher,) = (tmp_path / 'cache' / 'teachers').iterdir()
    steps.append(checkpoint.steps(teacher / 'training')[-1])
    rows = metrics_log.read_metrics(teacher / 'metrics.jsonl')
    trained = [row['step'] for row in rows if 'train/loss' in row]
    assert trained == [*range(1, steps[-1] + 1)]
  assert 0 < steps[0] < steps[1]
  assert f'continues after step {steps[0]}' in children[0].said()


@pytest.mark.slow
def test_missing_host_is_named_by_the_command(tmp_path):
  command = ['run.py', '--config=configs/iusp.py:smoke', '--start_timeout=2']
  address = f'--coordinator=127.0.0.1:{free_port()}'
  child = start(
    tmp_path,
    [*command, address, '--num_processes=3', '--process_id=0'],
  )
  assert child.wait(60) == 1
  assert 'after 2 s processes 1, 2 are missing of 3' in child.said()
  assert 'Traceback' not in child.said()


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'coordinator': 'a:1'}, '--num_processes is missing'),
    ({'coordinator': 'a:1', 'num_processes': 2}, '--process_id is missing'),
    ({'process_id': 1}, '--process_id is 1, but --coordinator is missing'),
    ({'num_processes': 2}, '--num_processes is 2, but --coordinator'),
    (
      {'coordinator': 'a', 'num_processes': 2, 'process_id': 0},
      'expected host:port',
    ),
    (
      {'coordinator': 'a:1', 'num_processes': 2, 'process_id': 2},
      '--process_id is 2: expected 0 to 1',
    ),
    (
      {'coordinator': 'a:1', 'num_processes': 0, 'process_id': 0},
      '--num_processes is 0',
    ),
    ({'start_timeout': 0.0}, '--start_timeout is 0.0'),
    ({'mode': 'score', 'multihost': True}, '--mode=score is the work of one'),
    ({'multihost': True}, '--multihost finds no TPU pod, Slurm job'),
  ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message):
  with pytest.raises(ValueError, match=message), hosts.joined(**flags):
    pytest.fail('it began')


@pytest.mark.parametrize('number', [4094, 4095, 4096, 123_456])
def test_slurm_job_is_recognised(monkeypatch, number):
  """Two jobs in a row may share a host, and the last port has none after it."""
  job = {
    'SLURM_JOB_ID': str(number),
    'SLURM_STEP_NODELIST': 'node[07-09]',
    'SLURM_NTASKS': '3',
    'SLURM_PROCID': '2',
    'SLURM_LOCALID': '0',
    'SLURM_STEP_NUM_NODES': '3',
  }
  for name, value in job.items():
    monkeypatch.setenv(name, value)
  coordinator, num_processes, process_id, local_devices = hosts.detect(10)
  assert coordinator.startswith('node07:')
  assert (num_processes, process_id, local_devices) == (3, 2, [0])
  port, own = int(coordinator.partition(':')[2]), hosts.own_port(coordinator)
  monkeypatch.setenv('SLURM_JOB_ID', str(number + 1))
  following = hosts.detect(10)[0]
  used = [int(following.partition(':')[2]), hosts.own_port(following)]
  assert len({port, own, *used}) == 4
  assert all(1024 < number < 65536 for number in (port, own, *used))


def test_without_flags_nothing_is_started():
  with hosts.joined():
    assert not hosts.jax.distributed.is_initialized()


@pytest.mark.slow
def test_command_gives_the_scores_of_one_process(tmp_path):
  """`run.py` as it is typed on every host, from nothing to results.json."""
  found = {}
  for processes, num_devices in ((1, 1), (2, 2)):
    folder = tmp_path / str(processes)
    command = [
      'run.py',
      '--config=configs/iusp.py:smoke',
      f'--config.cache_dir={folder}/cache',
      f'--config.dataset.data_dir={folder}/data',
      f'--workdir={folder}/run',
    ]
    children = start_all(folder, command, processes, num_devices)
    finish(children, 400)
    said = [child.output.read_text() for child in children]
    for k, text in enumerate(said):
      first = f'process {k} of {processes}, backend cpu'
      assert text.splitlines()[0].startswith(first)
    assert 'prepares it in' in said[0]
    for text in said[1:]:
      assert 'compiled' not in text
      assert 'Results' not in text
      assert 'prepares it in' not in text
    found[processes] = json.loads((folder / 'run/results.json').read_text())
    left = {path.name for path in (folder / 'run').iterdir()}
    assert {'config.json', 'predictions_test.csv', 'similarities.png'} <= left
    assert len(list((folder / 'run' / 'tensorboard').iterdir())) == 1
  for name in ('teacher', 'student'):
    one, two = (dict(found[k][name]) for k in (1, 2))
    for own in (one, two):
      for key in ('workdir', 'weights', 'trained_in'):
        own.pop(key, None)
      for key in list(own['best']):
        own['best'][key]['coarse'].pop('micro_auprc_ci', None)
    assert_same_scores(two, one)
  assert found[2]['environment']['num_processes'] == 2


def logit(probability):
  return np.log(probability / (1 - probability))
