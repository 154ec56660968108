"""NaN and infinity: found, reported, masked, rolled back, never saved."""

import dataclasses
from unittest import mock

import fits
import jax
import numpy as np
import pytest
from fits import bits, fit, make_feed, make_job

from iusp_jax.data import sources
from iusp_jax.runtime import checkpoint, logs, metrics_log, preemption
from iusp_jax.training import engine, finite

PLAN = {'epochs': 3.0, 'eval_every_epochs': 1.0}  # Of three steps each.


@pytest.fixture
def lines(monkeypatch):
  found = []
  monkeypatch.setattr(logs, 'log', found.append)
  return found


def job(weights=None, seed=5, data=None, **fields):
  return make_job(weights, seed, data, **PLAN | fields)


# Members ---------------------------------------------------------------------


def test_member_that_diverges_changes_no_other(lines):
  """Against a group with a good one in its place, to the last bit."""
  good = [job({'kd': 1.0}), job({'kd': 2.0}, 7)]
  bad, other = job({'kd': float('nan')}, 6), job({'kd': 1.0}, 6)
  found = fit([good[0], bad, good[1]])
  expected = fit([good[0], other, good[1]])
  assert [bool(member.diverged) for member in found] == [False, True, False]
  for m in (0, 2):
    assert bits(found[m]) == bits(expected[m])
  assert found[1].diverged.startswith('the loss of step 1 is nan, its gradien')
  assert found[1].rows == []
  assert found[1].best is None
  (line,) = [line for line in lines if 'diverged' in line]
  assert line == f'seed 6: diverged, {found[1].diverged}; the others go on'
  # Its scores count in no mean.
  assert not any('nan' in line for line in lines if 'step 3/9' in line)


def test_group_of_which_all_diverge_ends():
  bad = [job({'kd': float('nan')}, seed) for seed in (6, 7)]
  taken = []
  original = sources.Resident.take

  def take(self, numbers):
    taken.extend(numbers)
    return original(self, numbers)

  with mock.patch.object(sources.Resident, 'take', take):
    found = fit(bad)
  assert [bool(member.diverged) for member in found] == [True, True]
  assert len(taken) <= 3  # The steps that were under way.


def test_first_step_with_nan_or_infinity_is_reported(monkeypatch):
  """Logged or not, and whatever comes after it."""
  jobs = [
    job(seed=k, log_every_steps=2, epochs=4.0, eval_every_epochs=4.0)
    for k in range(4)
  ]
  ones = np.ones((4, 12), np.float32)
  outputs = {name: ones.copy() for name in ('loss', 'tagging', 'gradient_norm')}
  outputs['loss'][0, 2:] = np.nan
  outputs['loss'][1, 4] = np.inf
  outputs['gradient_norm'][2, 7] = np.inf
  group = engine.Group(jobs, make_feed(jobs[0]), None, 'mask')
  done = [0]

  def advance(members, shared):
    first, count = done[0], int(shared[2].addressable_data(0)[0])
    done[0] += count
    chunk = {name: x[:, first : first + 12] for name, x in outputs.items()}
    return members[0], group.layout.put(chunk)

  group.advance = advance
  shape = 4, 11, len(jobs[0].dataset.tags)
  monkeypatch.setattr(
    engine.evaluate, 'predict', lambda *_, **__: np.zeros(shape)
  )
  members = group.run(set(), None, 0)
  assert [member.diverged for member in members] == [
    'the loss of step 3 is nan, its gradient_norm 1.0',
    'the loss of step 5 is inf, its gradient_norm 1.0',
    'the loss of step 8 is 1.0, its gradient_norm inf',
    '',
  ]
  assert [[row['step'] for row in member.rows] for member in members] == [
    [2],
    [2, 4],
    [2, 4, 6],
    [2, 4, 6, 8, 10, 12, 12],
  ]


def test_member_whose_predictions_are_not_finite_diverges(monkeypatch):
  original = engine.evaluate.predict

  def spoil(*args, **named):
    scores_MNC = original(*args, **named)
    scores_MNC[0, 3] = np.nan
    return scores_MNC

  expected = fit([job(), job(seed=6)])
  monkeypatch.setattr(engine.evaluate, 'predict', spoil)
  bad, good = fit([job(), job(seed=6)])
  assert bad.diverged == (
    'predictions for validation clips after step 3 are not finite'
  )
  assert bits(good) == bits(expected[1])


# Runs of one -----------------------------------------------------------------


def spoilt(clip):
  """The data set with one training clip that holds NaN, others as floats."""
  made = fits.dataset('coarse')
  examples = [
    example | {'audio': example['audio'].astype(np.float32) / 2**15}
    for example in made.splits['train'].source
  ]
  if clip is not None:
    examples[clip]['audio'][100] = np.nan
  split = dataclasses.replace(made.splits['train'], source=examples)
  return dataclasses.replace(made, splits={**made.splits, 'train': split})


def batches_with(clip, of):
  """The numbers of the batches of a run that hold a clip."""
  order = sources.Order(24, 8, (of.seed,))
  own_KB = order.clips(range(9))['own'][0]
  return [k for k in range(9) if clip in own_KB[k]], own_KB


@pytest.mark.parametrize('every', [1, 3])
@pytest.mark.parametrize(('clip', 'first'), [(0, 1), (2, 2), (7, 3)])
def test_nan_stops_a_run_and_its_batch_is_kept(tmp_path, every, clip, first):
  """The step that began it is named, whether it is one that is logged or not.

  The reference is the order of clips: the first batch that holds the clip.
  """
  # A validation looks at all steps before it: none is near.
  made = job(data=spoilt(clip), log_every_steps=every, eval_every_epochs=3.0)
  held, own_KB = batches_with(clip, made)
  assert held[0] + 1 == first
  taken = []
  original = sources.Resident.take

  def take(self, numbers):
    taken.extend(numbers)
    return original(self, numbers)

  with (
    mock.patch.object(sources.Resident, 'take', take),
    pytest.raises(finite.NotFinite, match=f'loss of step {held[0] + 1} is nan'),
  ):
    fit([made], tmp_path, on_nan='stop', metrics_dir=tmp_path, chunk_steps=1)
  assert len(taken) <= first + 1  # The next chunk was under way.
  kept = np.load(tmp_path / 'nan_batch.npz')
  assert kept['step'] == held[0] + 1
  assert kept['batch'] == held[0]
  np.testing.assert_array_equal(kept['index'], own_KB[held[0]])
  source = made.dataset.splits['train'].source
  waves = np.stack([source[k]['audio'] for k in own_KB[held[0]]])
  np.testing.assert_array_equal(kept['wave'], waves)
  assert f'{clip:02d}_{clip:06d}.wav' in kept['clip_id']
  assert np.isnan(kept['loss/tagging'])
  rows = metrics_log.read_metrics(tmp_path / 'metrics.jsonl')
  assert np.isfinite([value for row in rows for value in row.values()]).all()


def test_kept_batch_names_the_clips_that_were_mixed_in(tmp_path):
  made = job(data=spoilt(7), augment={'mixup_alpha': 0.5})
  with pytest.raises(finite.NotFinite):
    fit([made], tmp_path, on_nan='stop')
  kept = np.load(tmp_path / 'nan_batch.npz')
  order = sources.Order(24, 8, (5,), 0.5)
  clips = order.clips([int(kept['batch'])])
  for name, prefix in (('own', ''), ('partner', 'partner_')):
    np.testing.assert_array_equal(kept[f'{prefix}index'], clips[name][0, 0])
    assert kept[f'{prefix}clip_id'][0] == (
      f'{clips[name][0, 0, 0]:02d}_{clips[name][0, 0, 0]:06d}.wav'
    )
  assert 7 in {*kept['index'], *kept['partner_index']}


def test_loss_that_is_not_finite_says_what_to_do(tmp_path):
  made = job(learning_rate=1e30, clip_factor=0.0)
  with pytest.raises(finite.NotFinite, match='lower the learning_rate'):
    fit([made], on_nan='stop')


def skips_of(rows):
  return [row for row in rows if 'train/skipped_batch' in row]


CHUNK = engine.Group, '_next_chunk'


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.slow
def test_roll_back_is_training_without_the_batch(tmp_path, monkeypatch, stream):
  """Against an order that never had the batches; also stopped and killed."""
  monkeypatch.setattr(engine, 'CHUNK_SECONDS', 0.0)
  clip, named = 7, {'on_nan': 'roll_back', 'stream': stream}
  made = job(data=spoilt(clip), epochs=2.0)
  held, _ = batches_with(clip, made)
  assert held == [2, 3, 7]  # Before any checkpoint, and after one.
  whole = tmp_path / 'whole'
  (found,) = fit([made], whole, metrics_dir=whole, **named)
  skips = skips_of(found.rows)
  assert [row['train/skipped_batch'] for row in skips] == held
  assert metrics_log.read_metrics(whole / 'metrics.jsonl') == found.rows

  parts = tmp_path / 'parts'
  for at in (2, 3, 4, 2):
    stop_at(monkeypatch, made, parts, at, **named)
  kill_at_save(monkeypatch, made, parts, 1, **named)
  (again,) = fit([made], parts, **named)
  assert bits(again) == bits(found)

  clips = sources.Order.clips

  def without(self, numbers):
    kept = [k for k in range(20) if k not in held]
    return clips(self, [kept[k] for k in numbers])

  monkeypatch.setattr(sources.Order, 'clips', without)
  (plain,) = fit([dataclasses.replace(made, dataset=spoilt(None))], **named)
  kept = [row for row in found.rows if 'train/skipped_batch' not in row]
  assert plain.rows == kept
  assert bits(plain)[1:] == bits(found)[1:]


def stop_at(monkeypatch, made, workdir, at, **named):
  """Fits until a request to stop that comes with the `at`-th chunk."""
  calls, original = [], engine.Group._next_chunk

  def counted(self):
    calls.append(1)
    return original(self)

  with monkeypatch.context() as patch:
    patch.setattr(engine.Group, '_next_chunk', counted)
    patch.setattr(preemption, 'requested', lambda: len(calls) >= at)
    with pytest.raises(preemption.Preempted):
      fit([made], workdir, **named)


def kill_at_save(monkeypatch, made, workdir, at, **named):
  save, calls = checkpoint.save, []

  def cut(*args, **kwargs):
    calls.append(1)
    if len(calls) == at:
      raise KeyboardInterrupt
    save(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'save', cut)
    with pytest.raises(KeyboardInterrupt):
      fit([made], workdir, **named)


def test_roll_backs_end_where_it_is_not_the_batch(lines):
  made = job(learning_rate=1e30, clip_factor=0.0)
  with pytest.raises(finite.NotFinite, match='lower the learning_rate'):
    fit([made], on_nan='roll_back')
  assert sum('rolls back' in line for line in lines) == finite.MAX_SKIPPED


def test_checkpoint_is_never_written_of_nan(tmp_path, monkeypatch):
  """Losses and predictions are finite and the parameters are not."""
  get = engine.devices.Layout.get

  def spoil(self, tree):
    found = get(self, tree)
    if not hasattr(found, 'opt_state'):
      return found
    params = {**found.params}
    name = next(iter(params))
    params[name] = jax.tree.map(lambda x: np.full_like(x, np.nan), params[name])
    return dataclasses.replace(found, params=params)

  monkeypatch.setattr(engine.devices.Layout, 'get', spoil)
  with pytest.raises(finite.NotFinite, match=r'params/.* after step 3'):
    fit([job()], tmp_path, on_nan='stop')
  assert checkpoint.steps(tmp_path / 'training') == []
  # In a group it is left out.
  found = fit([job(), job(seed=6)], tmp_path)
  assert all('NaN or infinity in params/' in m.diverged for m in found)


def test_first_bad_step():
  fine = {'loss': np.ones(4), 'kd': np.zeros(4)}
  assert finite.first_bad_step(fine) is None
  fine['kd'][2:] = np.inf
  fine['loss'][3] = np.nan
  assert finite.first_bad_step(fine) == 2


def test_batch_numbers_pass_over_those_that_are_left_out():
  found = [engine.batch_number(k, {2, 3, 7}) for k in range(7)]
  assert found == [0, 1, 4, 5, 6, 8, 9]


# A trace ---------------------------------------------------------------------


def test_trace_of_some_steps_is_written(tmp_path, lines):
  fit([job()], tmp_path, profile_steps=2)
  (found,) = (tmp_path / 'profile').rglob('*.xplane.pb')
  assert found.stat().st_size > 1000
  assert any(f'A trace of 2 steps is in {tmp_path}' in line for line in lines)
