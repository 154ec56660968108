"""Groups that are stopped and continued, and what their checkpoints hold."""

import shutil

import fits
import jax
import numpy as np
import pytest
from fits import bits, fit, make_job

from iusp_jax.runtime import checkpoint, metrics_log, preemption
from iusp_jax.training import engine, optim, step

PLAN = {'epochs': 3.0, 'eval_every_epochs': 1.0}  # Of three steps each.
BAD = {'kd': float('nan')}


def job(weights=None, seed=5, **fields):
  return make_job(weights, seed, **PLAN | fields)


def group():
  """One that diverges in its first step, and two good ones."""
  return [job({'kd': 1.0}), job(BAD, 6), job({'kd': 2.0}, 7)]


@pytest.fixture(autouse=True)
def one_step_chunks(monkeypatch):
  """So that a request to stop may come after any step."""
  monkeypatch.setattr(engine, 'CHUNK_SECONDS', 0.0)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """The end of a group that nothing disturbs, and its workdir."""
  workdir = tmp_path_factory.mktemp('whole')
  return fit(group(), workdir), workdir


CHUNK = engine.Group, '_next_chunk'
VALIDATION = engine.evaluate, 'predict'


def stop_at(monkeypatch, jobs, workdir, where, at, **named):
  """Fits until the request that comes at the `at`-th call of a function."""
  owner, name = where
  original, calls = getattr(owner, name), []

  def counted(*args, **kwargs):
    calls.append(1)
    return original(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(owner, name, counted)
    patch.setattr(preemption, 'requested', lambda: len(calls) >= at)
    with pytest.raises(preemption.Preempted):
      fit(jobs, workdir, **named)


def test_group_that_is_stopped_ends_in_the_same_bits(
  tmp_path, monkeypatch, whole
):
  """In the first step, between validations, at one, and in one."""
  folder = tmp_path / 'training'
  for where, at, saved in (
    (CHUNK, 1, 1),
    (CHUNK, 1, 2),
    (CHUNK, 1, 3),  # The request comes before the validation of step 3,
    (VALIDATION, 1, 3),  # in it, where it is made up for,
    (CHUNK, 2, 5),  # between
    (VALIDATION, 2, 9),  # and in the last one.
  ):
    stop_at(monkeypatch, group(), tmp_path, where, at)
    assert checkpoint.steps(folder)[-1] == saved
  assert list(map(bits, fit(group(), tmp_path))) == list(map(bits, whole[0]))
  # Finished as it is, it is given once more.
  assert list(map(bits, fit(group(), tmp_path))) == list(map(bits, whole[0]))


def test_group_that_is_killed_loses_the_steps_since_its_validation(
  tmp_path, monkeypatch, whole
):
  save, calls = checkpoint.save, []

  def cut(*args, **named):
    calls.append(1)
    if len(calls) == 2:
      raise KeyboardInterrupt
    save(*args, **named)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'save', cut)
    with pytest.raises(KeyboardInterrupt):
      fit(group(), tmp_path)
  assert checkpoint.steps(tmp_path / 'training') == [3]
  assert list(map(bits, fit(group(), tmp_path))) == list(map(bits, whole[0]))


def test_checkpoint_holds_all_of_every_member(whole):
  members, workdir = whole
  restored = checkpoint.restore_newest(workdir / 'training')
  assert restored is not None
  number, arrays, metadata = restored
  assert number == 9
  assert checkpoint.steps(workdir / 'training') == [6, 9]
  assert metadata['validated'] is True
  for of, member in zip(metadata['members'], members, strict=True):
    assert of == {
      'rows': member.rows,
      'best_step': member.best_step,
      'best_score': member.best_score,
      'diverged': member.diverged,
    }
  assert [bool(member.diverged) for member in members] == [False, True, False]
  plan = optim.Plan.of(members[0].job.recipe.training, 24)
  one = step.initial_state(members[0].job, plan)
  expected = jax.tree.map(lambda x: (3, *np.shape(x)), vars(one))
  found = jax.tree.map(np.shape, arrays['state'])
  assert sorted(map(str, jax.tree.leaves(found))) == sorted(
    map(str, jax.tree.leaves(expected))
  )
  for m in (0, 2):
    for name, variables in (('best', arrays['best']), ('last', None)):
      if variables is None:
        own = {k: arrays['state'][k] for k in ('params', 'batch_stats')}
      else:
        own = variables
      own = jax.tree.map(lambda x, m=m: x[m], dict(own))
      assert checkpoint.checksums(own) == checkpoint.checksums(
        dict(getattr(members[m], name))
      )
  np.testing.assert_array_equal(arrays['state']['step'], [9, 9, 9])


@pytest.mark.slow
def test_metrics_of_a_run_that_is_stopped_are_those_of_the_whole(
  tmp_path, monkeypatch
):
  """With augmentation, a moving average and every term; also cut off."""
  made, texts, ends = fits.augmented_job(), [], []
  for name in ('whole', 'parts'):
    workdir = tmp_path / name
    workdir.mkdir()
    if name == 'parts':
      stop_at(monkeypatch, [made], workdir, CHUNK, 8, metrics_dir=workdir)
      with (workdir / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 9, "train/loss": 1.0}\n{"step": 10, "tr')
    (member,) = fit([made], workdir, metrics_dir=workdir)
    texts.append((workdir / 'metrics.jsonl').read_text())
    ends.append(bits(member))
    assert metrics_log.read_metrics(workdir / 'metrics.jsonl') == member.rows
    assert list((workdir / 'tensorboard').iterdir())
  assert texts[0] == texts[1]
  assert ends[0] == ends[1]


@pytest.mark.slow
def test_stream_continues_where_it_was_stopped(tmp_path, monkeypatch):
  made = job(augment={'mixup_alpha': 0.5})
  (whole,) = fit([made], stream=True)
  for at in (2, 3):
    stop_at(monkeypatch, [made], tmp_path, CHUNK, at, stream=True)
  (member,) = fit([made], tmp_path, stream=True)
  assert bits(member) == bits(whole)


# What is refused -------------------------------------------------------------


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('finished')
  fit([job(epochs=1.0)], workdir, identities=['a'])
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  shutil.copytree(finished, tmp_path / 'copy')
  return tmp_path / 'copy'


@pytest.mark.parametrize('identities', [['b'], ['a', 'b'], []])
def test_checkpoint_of_other_identities_is_refused(finished, identities):
  with pytest.raises(
    ValueError, match=r'step 3 in .* made from another recipe'
  ):
    fit([job(epochs=1.0)], finished, identities=identities)
  fit([job(epochs=1.0)], finished, identities=['a'])


@pytest.mark.parametrize(
  'fields',
  [
    {'model': {'batch_norm': False}},
    {'model': {'width': 4}},  # The same arrays, of other shapes.
    {'ema_decay': 0.9},
  ],
)
def test_checkpoint_of_another_model_is_refused(finished, fields):
  with pytest.raises(ValueError, match=r'of another model.*other --workdir'):
    fit([job(epochs=1.0, **fields)], finished, identities=['a'])


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_damaged_checkpoint_is_passed_over(tmp_path):
  (whole,) = fit([job(epochs=2.0)], tmp_path)
  folder = tmp_path / 'training'
  older, newest = checkpoint.steps(folder)
  largest = max(
    (path for path in (folder / f'{newest:08d}').rglob('*') if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(bytes(content))
  with pytest.raises(checkpoint.DamagedCheckpoint):
    checkpoint.restore(folder / f'{newest:08d}')
  assert checkpoint.restore_newest(folder)[0] == older
  (again,) = fit([job(epochs=2.0)], tmp_path)
  assert bits(again) == bits(whole)


def test_checkpoints_that_processes_do_not_share_are_refused(
  workdir, monkeypatch
):
  monkeypatch.setattr(engine.processes, 'by_primary', lambda function: 2)
  with pytest.raises(
    ValueError, match=r'finds the checkpoint of step 3 .*of st'
  ):
    fit([job(epochs=1.0)], workdir, identities=['a'])
