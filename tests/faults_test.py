"""What goes wrong in a long run: notices to stop, NaN, old workdirs."""

import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from fakes import TINY, dataset, fake, recipe

from configs import sp
from iusp_jax.data import datasets
from iusp_jax.experiment import experiment, teacher
from iusp_jax.runtime import checkpoint, metrics_log, preemption
from iusp_jax.training import step, train, watch


# As small as a model can be: compiling it is most of a test's time.
def make_job(workdir, on_nan='stop', data_set=None, **training):
  """Three steps an epoch, a row a step."""
  workdir.mkdir(exist_ok=True)
  training = {'epochs': 3.0, 'log_every_steps': 1} | training
  return step.Job(
    name='student',
    recipe=recipe(TINY, bands=8, **training),
    objective={},
    dataset=data_set or fake(),
    seed=5,
    workdir=workdir,
    on_nan=on_nan,
  )


def end(workdir):
  """All that a run must leave alike: arrays, facts, rows."""
  restored = checkpoint.restore_newest(workdir / 'checkpoints' / 'last')
  assert restored is not None
  number, arrays, facts = restored
  rows = (workdir / 'metrics.jsonl').read_text()
  return number, checkpoint.checksums(arrays), facts, rows


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The end of a run that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('whole')
  train.fit(make_job(workdir))
  return end(workdir)


def with_notice(monkeypatch, job, where, at):
  """Fits until the notice that comes at the `at`-th call of a function."""
  owner, name = where
  original, calls = getattr(owner, name), []

  def noticed(*args, **named):
    calls.append(1)
    if len(calls) == at:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(*args, **named)

  with monkeypatch.context() as patch:
    patch.setattr(owner, name, noticed)
    with pytest.raises(SystemExit) as stop:
      train.fit(job)
  preemption._Request.signal_number = 0
  assert stop.value.code == preemption.EXIT_CODE == 75


STEP = (train.Loop, '_next_batch')
VALIDATION = (train.evaluate, 'predict_split')


def test_notice_saves_the_step_and_the_run_ends_in_the_same_bits(
  tmp_path, monkeypatch, listening, whole
):
  """In the first step, between validations, at one, and in one."""
  job = make_job(tmp_path / 'parts')
  folder = job.workdir / 'checkpoints' / 'last'
  for where, at, saved in (
    (STEP, 1, 1),
    (STEP, 1, 2),
    (STEP, 1, 3),  # The notice comes before the validation of step 3,
    (VALIDATION, 1, 3),  # in it, where it is made up for,
    (STEP, 2, 5),  # between
    (VALIDATION, 2, 9),  # and in the last one.
  ):
    with_notice(monkeypatch, job, where, at)
    assert checkpoint.steps(folder)[-1] == saved
  train.fit(job)
  assert end(job.workdir) == whole


# NaN.


def spoilt(clip, level='coarse'):
  """The data set with one training clip that holds NaN, others as floats."""
  made = dataset(level)
  examples = [
    example | {'audio': example['audio'].astype(np.float32) / 2**15}
    for example in made.splits['train'].source
  ]
  if clip is not None:
    examples[clip]['audio'][100] = np.nan
  split = dataclasses.replace(made.splits['train'], source=examples)
  return dataclasses.replace(made, splits={**made.splits, 'train': split})


class WithoutClip:
  """A stream that leaves out the batches that hold a clip."""

  def __init__(self, stream, clip):
    self._stream, self._clip = stream, clip
    self.get_state, self.set_state = stream.get_state, stream.set_state

  def __next__(self):
    batch = next(self._stream)
    while self._clip in batch['index']:
      batch = next(self._stream)
    return batch


def batches_with(clip, job, count):
  """The numbers of the first batches that hold a clip, and the first."""
  stream = datasets.train_stream(job.dataset.splits['train'], 8, job.seed)
  batches = [next(stream) for _ in range(count)]
  held = [k for k, batch in enumerate(batches) if clip in batch['index']]
  return held, batches[held[0]]


def without_skips(rows):
  return [row for row in rows if 'train/skipped_batch' not in row]


@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize(('clip', 'first'), [(0, 1), (2, 2), (7, 3)])
def test_nan_stops_and_its_batch_is_kept(
  tmp_path, monkeypatch, every, clip, first
):
  """The step that began it is named, whether it is one that is logged or not.

  The reference is the stream itself: the first batch that holds the clip.
  """
  # A validation looks at all steps before it: none is near.
  job = make_job(
    tmp_path / 'run',
    data_set=spoilt(clip),
    log_every_steps=every,
    eval_every_epochs=3.0,
  )
  held, batch = batches_with(clip, job, 9)
  assert held[0] + 1 == first
  taken = []
  next_batch = train.Loop._next_batch
  monkeypatch.setattr(
    train.Loop,
    '_next_batch',
    lambda *args: taken.append(1) or next_batch(*args),
  )
  with pytest.raises(FloatingPointError, match=f'loss of step {held[0] + 1} '):
    train.fit(job)
  assert len(taken) <= first + every + 1
  kept = np.load(job.workdir / 'nan_batch.npz')
  assert kept['step'] == held[0] + 1
  np.testing.assert_array_equal(kept['index'], batch['index'])
  np.testing.assert_array_equal(kept['wave'], batch['wave'])
  assert f'{clip:02d}_{clip:06d}.wav' in kept['clip_id']
  assert np.isnan(kept['loss/tagging'])
  rows = metrics_log.read_metrics(job.workdir / 'metrics.jsonl')
  assert np.isfinite([value for row in rows for value in row.values()]).all()


@pytest.mark.slow
def test_roll_back_is_training_without_the_batch(
  tmp_path, monkeypatch, listening
):
  """Against a stream that never had the batches; also killed and resumed."""
  clip = 7
  job = make_job(
    tmp_path / 'run', on_nan='roll_back', data_set=spoilt(clip), epochs=2.0
  )
  held, _ = batches_with(clip, job, 9)
  assert held == [2, 3, 7]  # Before any checkpoint, and after one.
  train.fit(job)
  rows = metrics_log.read_metrics(job.workdir / 'metrics.jsonl')
  skips = [row for row in rows if 'train/skipped_batch' in row]
  assert [row['train/skipped_batch'] for row in skips] == held
  found = end(job.workdir)

  parts = dataclasses.replace(job, workdir=tmp_path / 'parts')
  parts.workdir.mkdir()
  for at in (2, 3, 4):
    with_notice(monkeypatch, parts, STEP, at)
  train.fit(parts)
  assert end(parts.workdir) == found

  plain = dataclasses.replace(
    job, workdir=tmp_path / 'plain', dataset=spoilt(None)
  )
  plain.workdir.mkdir()
  make = datasets.train_stream
  monkeypatch.setattr(
    datasets,
    'train_stream',
    lambda *args, **named: WithoutClip(make(*args, **named), clip),
  )
  train.fit(plain)
  expected = end(plain.workdir)
  assert found[:2] == expected[:2]
  assert without_skips(rows) == metrics_log.read_metrics(
    plain.workdir / 'metrics.jsonl'
  )


def test_roll_backs_end_where_it_is_not_the_batch(tmp_path, capsys):
  job = make_job(
    tmp_path / 'run', on_nan='roll_back', learning_rate=1e30, clip_norm=0.0
  )
  with pytest.raises(FloatingPointError, match='lower the learning_rate'):
    train.fit(job)
  assert capsys.readouterr().out.count('rolls back') == watch.MAX_SKIPPED


def test_checkpoint_is_never_written_of_nan(tmp_path, monkeypatch):
  """Losses are finite and the parameters are not: the save refuses."""
  job = make_job(tmp_path / 'run')
  original = train.evaluate.predict_split

  def hide(*args):
    return np.nan_to_num(original(*args))

  monkeypatch.setattr(train.evaluate, 'predict_split', hide)
  unreplicate = train.parallel.unreplicate

  def spoil(state):
    state = unreplicate(state)
    params = {**state.params}
    name = next(iter(params))
    spoiled = {k: np.full_like(v, np.nan) for k, v in params[name].items()}
    return dataclasses.replace(state, params=params | {name: spoiled})

  monkeypatch.setattr(train.parallel, 'unreplicate', spoil)
  with pytest.raises(FloatingPointError, match=r'params/.* after step 3'):
    train.fit(job)
  assert checkpoint.steps(job.workdir / 'checkpoints' / 'last') == []


def test_trace_of_some_steps_is_written(tmp_path, capsys):
  job = dataclasses.replace(make_job(tmp_path / 'run'), profile_steps=2)
  train.fit(job)
  (trace,) = (job.workdir / 'profile').rglob('*.xplane.pb')
  assert trace.stat().st_size > 1000
  assert f'A trace of 2 steps is in {job.workdir}' in capsys.readouterr().out


# Older workdirs.


def test_older_config_is_continued_or_says_what_differs(tmp_path):
  """Fields that came later mean what was done before; others are named."""
  config = sp.get_config('smoke')
  earlier = teacher.plain(config)
  del earlier['on_nan']
  for part in ('student', 'teacher'):
    del earlier[part]['training']['accumulate_steps']
    del earlier[part]['training']['compute_dtype']
  path = experiment.config_path(tmp_path)
  path.write_text(json.dumps(earlier))
  experiment.refuse_other_config(config, tmp_path)
  config.student.training.accumulate_steps = 2
  with pytest.raises(ValueError, match='accumulate_steps: 1 there, 2 now'):
    experiment.refuse_other_config(config, tmp_path)
  config.student.training.accumulate_steps = 1
  del earlier['bootstrap']
  earlier['student']['training']['momentum'] = 0.9
  path.write_text(json.dumps(earlier))
  with pytest.raises(ValueError, match='holds a run of another') as error:
    experiment.refuse_other_config(config, tmp_path)
  said = str(error.value)
  assert 'bootstrap: unknown there, 20 now' in said
  assert 'student.training.momentum: 0.9 there, unknown to this version' in said


def test_fields_that_came_later_do_not_rename_older_teachers():
  of = {'seed': 0, 'training': {'epochs': 2.0}}
  later = {'epochs': 2.0, 'accumulate_steps': 1, 'compute_dtype': 'float32'}
  name = teacher.fingerprint(of)
  assert teacher.fingerprint(of | {'training': later}) == name
  # By hand: what the first version hashed.
  text = json.dumps(of, sort_keys=True).encode()
  assert hashlib.sha256(text).hexdigest().startswith(name)
  other = later | {'compute_dtype': 'bfloat16'}
  assert teacher.fingerprint(of | {'training': other}) != name


def test_unknown_answer_to_nan_is_refused():
  config = sp.get_config('smoke')
  config.on_nan = 'ignore'
  with pytest.raises(ValueError, match=r"on_nan is 'ignore'"):
    experiment.check(config)


# Damage.


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('damage', 'said'),
  [
    ('flip', 'is damaged: 1 of 2 arrays'),
    ('flipped metadata', 'is damaged: its metadata'),
    ('truncate', 'cannot be read'),
    ('delete', 'cannot be read'),
    ('cut metadata', 'cannot be read'),
  ],
)
def test_damaged_newest_checkpoint_is_said_and_passed_over(
  tmp_path, damage, said, caplog
):
  """A flipped bit of an array or fact is what only the manifest finds."""
  noise = np.random.default_rng(0).normal(size=20_000)  # Not to be compressed.
  arrays = {'a': noise, 'b': {'c': np.ones((3, 4), np.float32)}}
  for number in (1, 2):
    checkpoint.save(tmp_path, number, arrays, {'number': number}, keep=2)
  newest = tmp_path / f'{2:08d}'
  path = newest / 'arrays' / 'a' / '0'
  assert path.stat().st_size > 100_000
  content = bytearray(path.read_bytes())
  manifest = newest / 'manifest' / 'metadata'
  match damage:
    case 'flip':
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
    case 'flipped metadata':
      manifest.write_text(
        manifest.read_text().replace('"number": 2', '"number": 3')
      )
    case 'truncate':
      path.write_bytes(content[: len(content) // 2])
    case 'delete':
      path.unlink()
    case 'cut metadata':
      manifest.write_text(manifest.read_text()[:-5])
  with pytest.raises(checkpoint.DamagedCheckpoint, match=f'{newest} {said}'):
    checkpoint.restore(newest)
  caplog.clear()
  restored = checkpoint.restore_newest(tmp_path)
  assert f'{newest} {said}' in caplog.text
  assert 'trying the one before' in caplog.text
  assert restored is not None
  assert restored[0] == restored[2]['number'] == 1
  assert checkpoint.checksums(restored[1]) == checkpoint.checksums(arrays)


# A process of its own, since the limit is one of a process.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from iusp_jax.runtime import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, step = Path(sys.argv[1]), int(sys.argv[2])
small, large = ({'a': np.random.default_rng(0).normal(size=size)}
                for size in (1_000, 200_000))
checkpoint.save(folder, 1, small, {'is': 'good'}, keep=2)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
  checkpoint.save(folder, step, large, {'is': 'too large'}, keep=2)
except OSError as error:
  sys.exit(f'error: {error}')
"""


@pytest.mark.parametrize('step', [2, 1])
def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, step):
  """For a new step, and for one that is written anew."""
  done = subprocess.run(
    [sys.executable, '-c', FULL_DISK, str(tmp_path), str(step)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1, done.stderr
  assert f'{step:08d} could not be written' in done.stderr
  assert 'the last good one is 1: free some' in done.stderr
  assert checkpoint.steps(tmp_path) == [1]
  restored = checkpoint.restore_newest(tmp_path)
  assert restored is not None
  assert restored[2] == {'is': 'good'}
  checkpoint.save(tmp_path, step, {'a': np.ones(3)}, {'is': 'new'}, keep=1)
  restored = checkpoint.restore_newest(tmp_path)
  assert restored is not None
  assert restored[2] == {'is': 'new'}
  assert [path.name for path in tmp_path.iterdir()] == [f'{step:08d}']
