"""The engine: chunks, sources, members, devices, checkpoints, divergence."""

import dataclasses
import json
import pathlib
import subprocess
import sys
from unittest import mock

import fits
import jax
import numpy as np
import pytest
from fits import PLAN, WEIGHTS, bits, fit, make_feed, make_job

from iusp_jax.data import datasets
from iusp_jax.experiment import feeds
from iusp_jax.runtime import devices, logs
from iusp_jax.training import engine, evaluate

# SpecAugment of log-mel in memory.
MASKS = {'num_time_masks': 2, 'num_mel_masks': 2}


def job(weights=WEIGHTS, seed=5, **fields):
  return make_job(weights, seed, **{'augment': MASKS} | PLAN | fields)


def group():
  """Three that differ in seed and weights."""
  other = {**WEIGHTS, 'iusp': 20.0}
  return [job(), job(seed=6), job(other, seed=7)]


@pytest.fixture(scope='module')
def whole():
  """A run of one that nothing disturbs."""
  (member,) = fit([job()])
  return member


@pytest.fixture(scope='module')
def members():
  """A group of three that nothing disturbs."""
  return fit(group())


@pytest.fixture
def lines(monkeypatch):
  found = []
  monkeypatch.setattr(logs, 'log', found.append)
  return found


def chunks_of(sizes):
  """Lets the engine take chunks of these sizes; the last one repeats."""
  left = list(sizes)

  def next_chunk(self):
    size = left.pop(0) if len(left) > 1 else left[0]
    room = self.plan.next_milestone(self._step) - self._step
    return min(size, room, self.source.max_steps)

  return mock.patch.object(engine.Group, '_next_chunk', next_chunk)


# Chunks ---------------------------------------------------------------------


@pytest.mark.parametrize('sizes', [[1], [5], [6], [2, 4, 3]])
def test_number_of_steps_in_a_chunk_changes_no_bits(whole, sizes):
  with chunks_of(sizes):
    (member,) = fit([job()])
  assert bits(member) == bits(whole)


def test_chunks_of_a_group_change_no_bits(members):
  with chunks_of([4]):
    found = fit(group())
  assert list(map(bits, found)) == list(map(bits, members))


class Device:
  """A clock, and a device that works while the host goes on."""

  def __init__(self, seconds):
    self.now, self.ready, self.done = 100.0, 0.0, {}
    self.seconds, self.sizes = seconds, []

  def monotonic(self):
    return self.now

  def watch(self, group):
    """Has the steps of a group take time; the first chunk is compiled."""
    advance, get = group.advance, group.layout.get

    def dispatch(members, shared):
      self.now += 0.0 if self.sizes else 60.0
      count = int(shared[2].addressable_data(0)[0])
      self.sizes.append(count)
      self.ready = max(self.ready, self.now) + self.seconds * count
      state, outputs = advance(members, shared)
      self.done[id(outputs['loss'])] = self.ready, outputs
      return state, outputs

    def fetch(tree):
      if isinstance(tree, dict) and 'loss' in tree:
        self.now = max(self.now, self.done[id(tree['loss'])][0])
      return get(tree)

    group.advance, group.layout.get = dispatch, fetch


@pytest.mark.parametrize(
  ('seconds', 'sizes'),
  [
    # Two seconds of steps; until their time is known one at a time; a chunk
    # ends at a validation, after six and twelve.
    (5.0, [1] * 12),
    (0.9, [1, 1, 1, 2, 1, 2, 2, 2]),
    (0.1, [1, 1, 1, 3, 6]),
  ],
)
def test_chunks_take_about_so_many_seconds(monkeypatch, seconds, sizes):
  """By a clock; the chunk that compiles, of a minute, is no measure."""
  device = Device(seconds)
  monkeypatch.setattr(engine, 'time', device)
  monkeypatch.setattr(engine, 'CHUNK_SECONDS', 2.0)
  made = engine.Group([job()], make_feed(job()), None)
  device.watch(made)
  made.run(set(), None, 0)
  assert device.sizes == sizes


def test_chunk_steps_is_the_most_of_a_chunk(monkeypatch, whole):
  """And a chunk ends at a validation."""
  monkeypatch.setattr(engine, 'CHUNK_SECONDS', 1e9)
  sizes, found = [], []
  original = engine.Group._next_chunk

  def watched(self):
    sizes.append(original(self))
    return sizes[-1]

  monkeypatch.setattr(engine.Group, '_next_chunk', watched)
  for most in (2, 0):
    sizes.clear()
    (member,) = fit([job()], chunk_steps=most)
    found.append(list(sizes))
    assert bits(member) == bits(whole)
  assert found == [[1, 1, 1, 2, 1, 2, 2, 2], [1, 1, 1, 3, 6]]


def test_step_is_traced_once_for_all_chunks(monkeypatch):
  """Whether the state comes from the host or is the step's own output."""
  original, traced, after = engine.make_step, [], []

  def watched(*args):
    step = original(*args)
    return lambda *given: traced.append(1) or step(*given)

  monkeypatch.setattr(engine, 'make_step', watched)
  original_log = engine.Group._log

  def log(self, *args):
    after.append(len(traced))
    return original_log(self, *args)

  monkeypatch.setattr(engine.Group, '_log', log)
  fit([job({})])
  assert len(after) > 4
  assert len(set(after)) == 1


# Sources --------------------------------------------------------------------


def size_of(made):
  """Bytes of the arrays of the training clips of a job."""
  config = None if made.teacher else made.recipe.frontend
  arrays = fits.features(made.dataset).get(config, 'train')
  outputs = {} if made.teacher else fits.stored(made.objective.targets)
  return sum(x.nbytes for x in (*arrays.values(), *outputs.values()))


def test_stream_and_parts_agree_with_what_is_resident(whole, lines):
  """For every term; each is a row of its own."""
  (streamed,) = fit([job()], stream=True)
  assert any('read from the disk in every step' in line for line in lines)
  fits.assert_same_losses(streamed, whole)
  lines.clear()
  # Two steps of 8 clips at a time, of 24.
  (parts,) = fit([job()], budget=size_of(job()) * 17 // 24)
  assert any('the clips of 2 steps at a time' in line for line in lines)
  fits.assert_same_losses(parts, whole)


def test_group_of_members_streams(members):
  for one, other in zip(fit(group(), stream=True), members, strict=True):
    fits.assert_same_losses(one, other)


def test_augmented_clips_are_the_same_from_every_source():
  """With mixup, roll and masks, and the teacher in every step."""
  (whole,) = fit([fits.augmented_job()])
  (streamed,) = fit([fits.augmented_job()], stream=True)
  fits.assert_same_losses(streamed, whole)


def test_stored_teacher_gives_the_losses_of_the_running_one(whole):
  """Without masks, of which what is stored knows nothing."""
  (running,) = fit([job(teacher=True, augment={})])
  (stored,) = fit([job(augment={})])
  fits.assert_same_losses(running, stored)
  apart = fits.losses(whole)['loss'] - fits.losses(stored)['loss']
  assert abs(apart).min() > 1e-3  # They do something.
  half = {
    key: x.astype('float16') if 'frame_gram' in key else x
    for key, x in fits.stored(job().objective.targets).items()
  }
  feed = fits.features(fits.fake()).feed(job(), half)
  (rounded,) = fit([job(augment={})], feed=feed)
  fits.assert_same_losses(rounded, stored, 3e-3, 3e-2)
  assert (fits.losses(rounded)['iusp'] != fits.losses(stored)['iusp']).any()


def test_steps_without_validation_are_those_of_the_run(whole):
  """Also where a device gets the clips of two steps at a time."""
  for budget in (fits.PLENTY, size_of(job()) * 17 // 24):
    with mock.patch.object(feeds.memory, 'device_budget', return_value=budget):
      found = engine.train_without_validation(job(), make_feed(job()), 12)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 1e-4, 1e-5),
      found,
      whole.last,
    )


# Members --------------------------------------------------------------------


def test_members_are_the_runs_by_themselves(members, whole):
  """Other seed, other order, other dropout, other weights: one program."""
  for number in (0, 2):
    alone = whole if number == 0 else fit([group()[2]])[0]
    member = members[number]
    fits.assert_same_losses(member, alone)
    assert [r.keys() for r in member.rows] == [r.keys() for r in alone.rows]
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 1e-2, 1e-3),
      member.last,
      alone.last,
    )
  first, other, last = (fits.losses(member)['loss'] for member in members)
  assert abs(first - other).min() > 1e-3  # A seed of its own,
  assert abs(first - last).min() > 1e-3  # and weights.


def test_members_under_one_vmap_are_the_same(members, monkeypatch):
  """As on a GPU; on a CPU they are computed one after the other."""
  assert devices.best_vmap_size() == 1
  monkeypatch.setattr(devices, 'best_vmap_size', lambda: 64)
  evaluate.compile_map.cache_clear()
  for one, other in zip(fit(group()), members, strict=True):
    fits.assert_same_losses(one, other)
    np.testing.assert_allclose(one.best_score, other.best_score, 1e-3)
  evaluate.compile_map.cache_clear()


@pytest.fixture(scope='module')
def learned():
  """Two runs without a teacher that learn, and go too far."""
  fields = {'epochs': 8.0, 'eval_every_epochs': 1.0, 'learning_rate': 5e-2}
  return fit([job({}, seed, **fields) for seed in (1, 2)])


def test_best_variables_give_the_best_score(learned):
  """And are the first that did; the last are another thing."""
  assert any(member.best_step < 24 for member in learned)
  for member in learned:
    scores = {
      row['step']: row['validate/coarse_micro_auprc']
      for row in member.rows
      if 'validate/coarse_micro_auprc' in row
    }
    assert list(scores) == [3, 6, 9, 12, 15, 18, 21, 24]
    assert member.best_score == max(scores.values())
    assert member.best_step == max(scores, key=scores.__getitem__)
    again = score(member.job, member.best)
    np.testing.assert_allclose(again, member.best_score, 1e-4)
    last = score(member.job, member.last)
    np.testing.assert_allclose(last, scores[24], 1e-4)


def test_best_of_equal_scores_is_the_first(monkeypatch):
  scores_MNC = np.zeros((1, 11, len(fits.fake().tags)))
  monkeypatch.setattr(engine.evaluate, 'predict', lambda *_, **__: scores_MNC)
  (member,) = fit([job()])
  assert member.best_step == 6
  assert bits(member)[4] != bits(member)[5]  # The last is another.


def score(of, variables):
  """Of variables of one model, for the validation split."""
  layout = devices.Layout(1)
  scores_MNC = evaluate.predict(
    of.student(),
    layout.put(jax.tree.map(lambda x: x[None], variables)),
    evaluate.Clips(of.dataset.splits['validate']),
    layout,
  )
  truth = datasets.truth(of.dataset.splits['validate'])
  found = evaluate.score_split(of.dataset, truth, scores_MNC[0])
  return found['coarse']['micro_auprc']


def test_runs_learn(learned):
  for member in learned:
    found = fits.losses(member)['tagging']
    assert np.mean(found[-6:]) < 0.9 * np.mean(found[:6])


def test_members_of_two_programs_are_refused():
  for other in (
    job(batch_size=4),
    job({'kd': 1.0}),
    dataclasses.replace(job(), dataset=fits.dataset('both')),
    dataclasses.replace(job(), teacher=fits.frozen()[0]),
  ):
    with pytest.raises(ValueError, match='differ in more than seed and weig'):
      fit([job(), dataclasses.replace(other, name='other')])


@pytest.mark.parametrize(
  ('weights', 'training', 'message'),
  [
    ({}, {'batch_size': 7}, 'multiple of the 2 devices'),
    ({}, {'batch_size': 26}, "26 exceeds the 24 clips of split 'train'"),
    ({}, {'accumulate_steps': 3}, 'batch_size is 8: expected a'),
    ({'sp': 1.0}, {'accumulate_steps': 2}, 'accumulate_steps is 2, but sp_we'),
  ],
)
def test_batches_that_cannot_be_are_refused(weights, training, message):
  for jobs in ([job(weights, **training)], [job(weights, **training)] * 3):
    with pytest.raises(ValueError, match=message):
      fit(jobs)


# Devices --------------------------------------------------------------------

# On four devices, which this process does not have.
FOUR = """
import os, sys, xla
os.environ['XLA_FLAGS'] = xla.flags(4)
import conftest, jax, json
from engine_test import jobs_on
import fits
assert jax.device_count() == 4
found = {name: [fits.plain(m) for m in fits.fit(jobs)]
         for name, jobs in jobs_on().items()}
open(sys.argv[1], 'w').write(json.dumps(found))
"""


def jobs_on():
  """Fewer members than four devices, and more."""
  five = [*group(), job(seed=8), job(seed=9)]
  return {'one': [fits.augmented_job()], 'three': five[:3], 'five': five}


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_devices(tmp_path, members):
  """Batches are spread where there are fewer members, members else."""
  path = tmp_path / 'found.json'
  root = pathlib.Path(__file__).resolve().parent
  child = subprocess.Popen(
    [sys.executable, '-c', FOUR, str(path)],
    cwd=root.parent,
    env={**fits.environ(), 'PYTHONPATH': f'{root.parent}:{root}'},
    stderr=subprocess.PIPE,
    stdout=subprocess.DEVNULL,
    text=True,
  )
  expected = {'one': fit(jobs_on()['one']), 'three': members}
  with fits.num_devices(1):
    on_one = {'one': fit(jobs_on()['one'])}
  _, errors = child.communicate(timeout=240)
  assert child.returncode == 0, errors
  on_four = json.loads(path.read_text())
  assert list(map(len, on_four.values())) == [1, 3, 5]
  for name, found in on_four.items():
    own = expected['three' if name == 'five' else name]
    for member, four in zip(own, found, strict=name != 'five'):
      assert_alike(member, **four)
  for name, found in on_one.items():
    for member, one in zip(expected[name], found, strict=True):
      assert_alike(member, one.rows, one.last)


def assert_alike(member, rows, last):
  fits.assert_same_losses(dataclasses.replace(member, rows=rows), member)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-2, 1e-3),
    member.last,
    last,
  )
