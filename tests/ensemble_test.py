"""Members of an ensemble against runs by themselves."""

import dataclasses

import jax
import numpy as np
import pytest
from fakes import TINY, recipe
from train_test import fake, frozen, make_job

from iusp_jax.data import datasets, in_memory, store
from iusp_jax.experiment import teacher as teachers
from iusp_jax.models import tagger
from iusp_jax.runtime import checkpoint, devices, logs, metrics_log
from iusp_jax.training import ensemble, evaluate, train


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('outputs') / 'store'
  guide = teachers.Trained(frozen().model, frozen().variables, 'f', folder)
  store.build(folder, guide, fake().splits['train'], 'float32')
  return store.open_store(folder)


def residents(job, outputs):
  model = tagger.build(job.recipe, len(job.dataset.tags))
  splits = job.dataset.splits
  train_split = in_memory.features(model, splits['train'])
  return (
    in_memory.with_targets(train_split, outputs, job.terms()),
    in_memory.features(model, splits['validate']),
  )


def alone(job, outputs, workdir):
  """The same run by the main loop: rows of its log, last variables."""
  terms = job.terms()
  job = dataclasses.replace(
    job,
    workdir=workdir,
    targets=(lambda batch: outputs.lookup(batch, terms)) if terms else None,
  )
  train.fit(job)
  restored = checkpoint.restore_newest(workdir / 'checkpoints' / 'last')
  assert restored is not None
  return metrics_log.read_metrics(workdir / 'metrics.jsonl'), restored[1][
    'params'
  ]


@pytest.mark.parametrize('together', [1, 3])
def test_members_are_the_runs_by_themselves(tmp_path, outputs, together):
  """Other seed, other order, other dropout, other weights: same program."""
  epochs = 17.0  # 51 steps.
  first = make_job('all', augmented=False, epochs=epochs, log_every_steps=1)
  first.recipe['augment'] |= {'num_time_masks': 1, 'num_mel_masks': 1}
  second = dataclasses.replace(first, seed=6)
  third = dataclasses.replace(
    first, objective=first.objective | {'iusp_weight': 20.0}
  )
  jobs = [first, second, third]
  split, validate = residents(first, outputs)
  members = ensemble.fit(jobs, split, validate, together=together)
  assert any(member.best_step < 51 for member in members)
  for number, member in enumerate(members):
    if together == 3 and number != 1:
      continue
    # Masks change what is heard: the stored teacher is not told, either way.
    rows, params = alone(jobs[number], outputs, tmp_path / str(number))
    assert len(rows) == len(member.rows) == 51 + 17
    for own, other in zip(member.rows, rows, strict=True):
      assert own.keys() == other.keys()
      tolerance = 1e-5 if own['step'] <= 10 else 1e-4
      for name in own:
        loose = 10 if name == 'train/gradient_norm' else 1
        if name.startswith('validate'):
          continue
        np.testing.assert_allclose(
          own[name], other[name], tolerance * loose, 1e-7, err_msg=name
        )
    check_best(member, validate)
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 1e-2, 1e-3),
      dict(member.last['params']),
      dict(params),
    )


def check_best(member, validate):
  """The best variables give the best score, and are the first that did."""
  scores = {
    row['step']: row['validate/coarse_micro_auprc']
    for row in member.rows
    if 'validate/coarse_micro_auprc' in row
  }
  assert member.best_score == max(scores.values())
  assert member.best_step == max(scores, key=scores.__getitem__)
  job = member.job
  model = tagger.build(job.recipe, len(job.dataset.tags))
  logits_NC = ensemble.compile_predict(model)(member.best, validate['mel'])
  scores_NC = evaluate.probabilities(np.asarray(logits_NC))
  truth = datasets.truth(job.dataset.splits['validate'])
  found = evaluate.score_split(job.dataset, truth, scores_NC)
  rows = evaluate.scalars('validate', found)
  np.testing.assert_allclose(
    rows['validate/coarse_micro_auprc'], member.best_score, 1e-4
  )


@pytest.mark.parametrize('brought', [False, True])
def test_shorter_last_steps_share_the_program(outputs, monkeypatch, brought):
  """6 + 6 + 3 steps end as 5 times 3 do, and the step is traced once.

  Also where the clips are brought two steps at a time: 2 + 2 + 2, 2 + 1.
  """
  job = make_job('all', augmented=False, epochs=5.0, log_every_steps=1)
  split = residents(job, outputs)
  room = bytes_of(split[0]) - brought
  advance, traced = ensemble._advance, []

  def watched(step, member, shared):
    traced.append((*member[2].shape, len(shared[0]['index'])))
    return advance(step, member, shared)

  monkeypatch.setattr(ensemble, '_advance', watched)
  found = []
  for every in (1.0, 2.0):
    training = job.recipe['training'] | {'eval_every_epochs': every}
    own = dataclasses.replace(job, recipe=job.recipe | {'training': training})
    found += ensemble.fit([own], *split, room=room)
  # Steps and their clips; and the clips that stay on the device.
  expected = [(2, 8, 16)] * 2 if brought else [(3, 8, 24), (6, 8, 24)]
  assert traced == expected
  even, uneven = (
    [row['train/loss'] for row in member.rows if 'train/loss' in row]
    for member in found
  )
  assert len(even) == 15
  np.testing.assert_allclose(uneven, even, 1e-5)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-3, 1e-4),
    found[0].last['params'],
    found[1].last['params'],
  )


def bytes_of(resident):
  return sum(array.nbytes for array in resident.values())


def watch_parts(monkeypatch):
  """A list that gets the bytes of every part of a split that is made."""
  part, brought = in_memory.part, []

  def watched(*given):
    arrays, places = part(*given)
    brought.append(bytes_of(arrays))
    return arrays, places

  monkeypatch.setattr(in_memory, 'part', watched)
  return brought


def test_what_does_not_fit_on_a_device_is_brought_in_parts(
  outputs, monkeypatch
):
  """One step at a time, of two members at most, in the same numbers."""
  job = make_job('all', augmented=False, epochs=5.0, log_every_steps=1)
  # Centring takes like numbers from like: how a program of other shapes rounds
  # them shows in the sixth digit. It is brought what IUSP is brought.
  plain = job.objective | {'iusp_centred_weight': 0.0}
  job = dataclasses.replace(job, objective=plain)
  jobs = [dataclasses.replace(job, seed=seed) for seed in (5, 6, 7)]
  train_split, validate = residents(job, outputs)
  size = bytes_of(train_split)
  said, brought = [], watch_parts(monkeypatch)
  monkeypatch.setattr(logs, 'log', said.append)
  monkeypatch.setattr(ensemble, 'SECONDS_BETWEEN_LINES', np.inf)
  whole = ensemble.fit(jobs, train_split, validate, room=size)
  assert not said
  assert not brought
  monkeypatch.setattr(ensemble, 'SECONDS_BETWEEN_LINES', 0.0)
  parts = ensemble.fit(jobs, train_split, validate, room=size - 1)
  assert 'in 2 groups' in said[0]
  assert 'clips of 2 steps' in said[1]  # Of one member, ...
  assert sum('clips of 1 steps' in line for line in said) == 1  # ... of two.
  assert 'and 1 more, kd + sp + iusp: step 15/15' in said[-1]
  assert max(brought) < size
  for one, other in zip(whole, parts, strict=True):
    assert one.best_score == other.best_score
    for own, same in zip(one.rows, other.rows, strict=True):
      assert own.keys() == same.keys()
      for name in own:
        np.testing.assert_allclose(own[name], same[name], 1e-6, err_msg=name)


def test_a_part_has_the_batches_of_the_whole(outputs):
  job = make_job('all', augmented=False)
  resident, _ = residents(job, outputs)
  clips_MKB = np.array([[[3, 7, 7], [0, 3, 23]], [[7, 1, 0], [2, 2, 5]]])
  for chosen in (clips_MKB, clips_MKB[:, :1]):
    arrays, places = in_memory.part(resident, chosen, chosen.size)
    assert len(arrays['index']) == min(chosen.size, 24)
    for own, new in zip(
      chosen.reshape(-1, 3), places.reshape(-1, 3), strict=True
    ):
      expected, found = (
        in_memory.take(jax.tree.map(jax.numpy.asarray, dict(tree)), index_B)
        for tree, index_B in ((resident, own), (arrays, new))
      )
      assert expected.keys() == found.keys()
      jax.tree.map(np.testing.assert_array_equal, expected, found)


def test_first_epoch_keeps_to_the_room(monkeypatch):
  job = dataclasses.replace(
    make_job('baseline'), recipe=recipe(TINY, bands=8, log_every_steps=1)
  )
  model = tagger.build(job.recipe, len(job.dataset.tags))
  split = in_memory.features(model, job.dataset.splits['train'])
  brought = watch_parts(monkeypatch)
  expected, order_KB = ensemble.first_epoch(job, split)
  assert not brought
  room = bytes_of(split) // 2
  monkeypatch.setattr(in_memory, 'device_room', lambda: room)
  found, same_KB = ensemble.first_epoch(job, split)
  assert len(brought) == 3
  assert max(brought) <= room
  np.testing.assert_array_equal(order_KB, same_KB)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, 1e-5, 1e-6), expected, found
  )


def test_members_share_the_room_of_a_device():
  jobs = [
    dataclasses.replace(make_job('baseline'), seed=seed) for seed in range(5)
  ]
  split = {'mel': np.zeros((24, 99), np.float32), 'index': np.arange(24)}
  clip = bytes_of(split) // 24

  def seeds(room):
    groups = ensemble.groups(jobs, split, room)
    return [[job.seed for job in group] for group in groups]

  assert seeds(24 * clip) == [[0, 1, 2, 3, 4]]
  assert seeds(24 * clip - 1) == [[0], [1, 2], [3, 4]]  # Batches of 8.
  assert seeds(8 * clip) == [[0], [1], [2], [3], [4]]
  with pytest.raises(ValueError, match='batch_size is 8, and the features'):
    seeds(8 * clip - 1)


@pytest.mark.parametrize(
  ('objective', 'training', 'message'),
  [
    (
      'baseline',
      {'batch_size': 26},
      "26 exceeds the 24 clips of split 'train'",
    ),
    ('baseline', {'batch_size': 8, 'accumulate_steps': 3}, 'is 8: expected a'),
    ('sp', {'accumulate_steps': 2}, 'accumulate_steps is 2, but sp_weight'),
  ],
)
def test_what_the_loop_refuses_is_refused(objective, training, message):
  job = make_job(objective, **training)
  for call in (train.fit, lambda job: ensemble.fit([job], {}, {})):
    with pytest.raises(ValueError, match=message):
      call(job)


def test_first_step_that_is_not_finite_ends_a_member(monkeypatch):
  """Be it logged or not, and whatever comes after it."""
  job = make_job('baseline', log_every_steps=2, eval_every_epochs=4.0)
  run = ensemble.Run([job] * 4, 1)
  ones = np.ones((4, 12), np.float32)
  outputs = {'loss': ones, 'tagging': ones, 'gradient_norm': ones}
  outputs = {name: value.copy() for name, value in outputs.items()}
  outputs['loss'][0, 2:] = np.nan
  outputs['loss'][1, 4] = np.inf
  outputs['gradient_norm'][2, 7] = np.inf
  monkeypatch.setattr(run, 'take_steps', lambda *_: outputs)
  split = job.dataset.splits['validate']
  shape = 4, len(split), len(job.dataset.tags)
  monkeypatch.setattr(run, 'predict', lambda *_: np.zeros(shape))
  none = {'mel': np.zeros(1)}
  members = run.train(none, none, room=none['mel'].nbytes)
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


@pytest.mark.parametrize(
  ('members', 'devices', 'shape'),
  [(1, 4, (1, 1)), (5, 4, (3, 2)), (8, 3, (3, 3)), (6, 2, (2, 3))],
)
def test_devices_share_any_number_of_members(
  monkeypatch, members, devices, shape
):
  shapes = []

  def fake_pmap(function, in_axes):
    def call(x, shared):
      shapes.append(x.shape)
      return jax.vmap(function, in_axes)(x, shared)

    return call

  monkeypatch.setattr(jax, 'local_device_count', lambda: devices)
  monkeypatch.setattr(jax, 'pmap', fake_pmap)
  double = devices.map_members(lambda x, shared: x * shared, 2)
  given = np.arange(members, dtype=np.float32)
  np.testing.assert_array_equal(double(given, 2.0), 2 * given)
  assert shapes == [shape]


@pytest.mark.parametrize('members', [3, 4])
def test_members_come_back_in_order_and_may_go_again(members):
  """On the two devices of every test."""
  double = devices.map_members(lambda x, shared: x * shared, 2)
  given = np.arange(2.0 * members, dtype=np.float32).reshape(-1, 2)
  found = given
  for _ in range(2):  # From the host, then from the devices.
    found = double(found, np.float32(2.0))
  np.testing.assert_array_equal(found, 4 * given)
