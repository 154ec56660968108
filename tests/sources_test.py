"""Which clips a step gets, from memory or from disk, on any devices."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
from devices_test import machine
from fakes import dataset
from fits import fake

from iusp_jax.audio import frontend
from iusp_jax.data import datasets, sources
from iusp_jax.runtime import devices
from iusp_jax.training import step

CONFIG = frontend.FrontendConfig(num_mel_bands=16)
GRAM = sources.TARGET + 'batch_gram'
LOGITS = sources.TARGET + 'logits'


def order(seeds=(3,), num_clips=23, batch_size=8, alpha=0.0):
  return sources.Order(num_clips, batch_size, seeds, alpha)


# Order -----------------------------------------------------------------------


@pytest.mark.parametrize('name', ['own', 'partner'])
def test_every_clip_is_seen_once_an_epoch(name):
  """Batches of 8 straddle the epochs of 23 clips; none is lost or doubled."""
  found = order(alpha=0.5).clips(range(23))[name]
  epochs = found.reshape(8, 23)
  np.testing.assert_array_equal(np.sort(epochs), [np.arange(23)] * 8)
  assert len({tuple(epoch) for epoch in epochs}) == 8  # Each in a new order.


def test_order_depends_on_the_seed_and_the_number_alone():
  whole = order((1, 2), alpha=0.5)
  found, shares = whole.clips(range(9)), whole.shares(range(9))
  for m, seed in enumerate((1, 2)):
    alone = order((seed,), alpha=0.5)
    for name in found:
      np.testing.assert_array_equal(
        found[name][m], alone.clips(range(9))[name][0]
      )
    np.testing.assert_array_equal(shares[m], alone.shares(range(9))[0])
    for k in (7, 2):  # In any order.
      np.testing.assert_array_equal(
        found['own'][m, k], alone.clips([k])['own'][0, 0]
      )
      np.testing.assert_array_equal(shares[m, k], alone.shares([k])[0, 0])
  assert not np.array_equal(found['own'][0], found['own'][1])
  assert not np.array_equal(found['own'], found['partner'])
  assert not np.array_equal(shares[0], shares[1])


def test_shares_of_mixes_are_at_least_a_half():
  """And of the law of the beta distribution, folded."""
  shares = order(alpha=0.5, batch_size=16).shares(range(40)).reshape(-1)
  assert shares.dtype == np.float32
  assert shares.min() >= 0.5
  assert shares.max() <= 1.0
  own = np.random.default_rng(0).beta(0.5, 0.5, 100_000)
  expected = np.quantile(np.maximum(own, 1 - own), [0.25, 0.5, 0.75])
  np.testing.assert_allclose(
    np.quantile(shares, [0.25, 0.5, 0.75]), expected, atol=0.05
  )


def test_order_of_a_large_split_is_the_same(monkeypatch):
  """One that is not kept in memory an epoch at a time."""
  kept = order().clips(range(7))
  monkeypatch.setattr(sources, '_CACHED_CLIPS', 22)
  np.testing.assert_array_equal(order().clips(range(7))['own'], kept['own'])
  assert 'partner' not in kept


# What a step gets ------------------------------------------------------------


class Counted:
  """A source that notes which records are read."""

  def __init__(self, source):
    self.source, self.read = source, []

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.read.append(index)
    return self.source[index]


def arrays_of(split):
  """All clips, and outputs of a teacher in which every number is another."""
  size = len(split)
  return sources.features(split, None) | {
    GRAM: np.arange(size * size, dtype=np.float32).reshape(size, size),
    LOGITS: 1e4 + np.arange(size * 2, dtype=np.float32).reshape(size, 2),
  }


def outputs_of(arrays):
  return {key: x for key, x in arrays.items() if key.startswith('target/')}


def batches(source, layout, numbers):
  """What every member of every local device gets: `[K][D][each]`."""
  given, places = source.take(numbers)
  return [
    [
      [
        sources.take(
          {key: jax.numpy.asarray(x[d]) for key, x in given.items()},
          {name: x[d, e, k] for name, x in places.items()},
        )
        for e in range(layout.each)
      ]
      for d in range(jax.local_device_count())
    ]
    for k in range(len(numbers))
  ]


def expected_batch(arrays, wanted, layout, number, device, e):
  """By definition: clips of one batch, a device's part of them."""
  m = e
  if layout.by_member:
    m = min(device * layout.each + e, layout.num_members - 1)
  clips = {k: x[m, 0] for k, x in wanted.clips([number]).items()}
  whole = clips['own']
  parts = slice(None)
  if not layout.by_member:
    size = len(whole) // jax.device_count()
    parts = slice(device * size, (device + 1) * size)
  own = clips['own'][parts]
  batch = {}
  for key, x in arrays.items():
    if key == GRAM:
      batch[key] = x[own][:, whole]
    else:
      batch[key] = x[own]
      if 'partner' in clips and not key.startswith('target/'):
        batch['partner_' + key] = x[clips['partner'][parts]]
  if 'partner' in clips:
    batch['share'] = wanted.shares([number])[m, 0][parts]
  return batch


@contextlib.contextmanager
def first_of(kind, arrays, split, wanted, layout):
  size = sum(x.nbytes for x in arrays.values())
  if kind == 'stream':
    yield sources.Stream(split, outputs_of(arrays), wanted, layout)
    return
  clips = len(wanted.seeds) * wanted.batch_size
  clips *= 2 if wanted.mixup_alpha else 1
  budget = size if kind == 'whole' else size * (2 * clips + 1) // len(split)
  yield sources.Resident(arrays, wanted, layout, min(budget, size), 3)


@pytest.mark.parametrize('kind', ['whole', 'parts', 'stream'])
@pytest.mark.parametrize('alpha', [0.0, 0.5])
@pytest.mark.parametrize(
  ('members', 'local', 'hosts'), [(1, 1, 1), (1, 2, 2), (2, 4, 1), (3, 2, 1)]
)
def test_every_device_gets_its_part_of_every_batch(
  kind, alpha, members, local, hosts
):
  split = dataset('both', sizes=(60, 1, 1)).splits['train']
  wanted = order(tuple(range(5, 5 + members)), len(split), 8, alpha)
  with machine(1):
    arrays = arrays_of(split)
  for process in range(hosts):
    with machine(local, hosts, process):
      layout = devices.Layout(members)
      with first_of(kind, arrays, split, wanted, layout) as source:
        most = source.max_steps
        assert most == (1 if kind == 'stream' else most)
        for numbers in ([0, 1, 2][:most], [7, 9][:most], [20]):
          found = batches(source, layout, numbers)
          for k, number in enumerate(numbers):
            for d in range(local):
              for e in range(layout.each):
                expected = expected_batch(
                  arrays, wanted, layout, number, process * local + d, e
                )
                jax.tree.map(
                  np.testing.assert_array_equal, found[k][d][e], expected
                )


@pytest.mark.parametrize('hosts', [1, 2, 4])
def test_hosts_read_their_own_clips_alone(hosts):
  """Of a stream: every clip once an epoch by all of them together."""
  split = dataset('coarse', sizes=(24, 1, 1)).splits['train']
  wanted, seen = order((3,), 24), []
  for process in range(hosts):
    counted = Counted(split.source)
    own = dataclasses.replace(split, source=counted)
    with machine(2, hosts, process):
      source = sources.Stream(own, {}, wanted, devices.Layout(1), 1)
      for number in range(3):
        given, _ = source.take([number])
        read = np.unique(given['index'][0])
        assert len(read) == 8 // hosts
        seen.append(read)
    # And what is read before it is asked for.
    assert 24 // hosts <= len(counted.read) <= (3 + 4) * 8
  np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(24))


def test_stream_goes_back_and_passes_over_batches():
  split, wanted = fake().splits['train'], order((3,), 24)
  source = sources.Stream(split, {}, wanted, devices.Layout(1))
  for number in (0, 1, 5, 2, 2, 3, 0):
    given, places = source.take([number])
    found = np.asarray(given['index'])[0][np.asarray(places['own'])[:, 0, 0]]
    np.testing.assert_array_equal(
      found.reshape(-1), wanted.clips([number])['own'][0, 0]
    )


def test_parts_keep_to_the_budget():
  """And are of one shape, so that one program is compiled."""
  split = fake().splits['train']
  arrays = arrays_of(split)
  size = sum(x.nbytes for x in arrays.values())
  with machine(2):
    layout = devices.Layout(1)
    budget = size * 17 // 24
    source = sources.Resident(arrays, order((3,), 24), layout, budget, 3)
    assert source.max_steps == 2
    assert 'the clips of 2 steps at a time' in source.notice
    shapes = []
    for numbers in ([0, 1], [2], [4, 5]):
      given, places = source.take(numbers)
      assert sum(x[0].nbytes for x in given.values()) <= budget
      shapes.append({k: x.shape for k, x in (given | places).items()})
    assert shapes[0] == shapes[1] == shapes[2]
    assert (
      sources.Resident(arrays, order((3,), 24), layout, size, 3).notice == ''
    )


@pytest.mark.parametrize(
  ('members', 'alpha', 'clips'), [(1, 0.0, 8), (2, 0.0, 16), (1, 0.5, 16)]
)
def test_batch_that_does_not_fit_is_refused(members, alpha, clips):
  split = fake().splits['train']
  arrays = arrays_of(split)
  size = sum(x.nbytes for x in arrays.values())
  wanted = order(tuple(range(members)), 24, 8, alpha)
  with machine(2):
    layout = devices.Layout(members)
    fits_ = -(-size * clips // 24)
    assert sources.Resident(arrays, wanted, layout, fits_, 3).max_steps == 1
    message = f'batch_size is 8 and the group has {members} members'
    with pytest.raises(ValueError, match=message):
      sources.Resident(arrays, wanted, layout, fits_ - 2, 3)


def test_mixup_mixes_waves_and_tags_in_one_proportion():
  """The clips and shares of the order, whichever source they come from."""
  split = fake().splits['train']
  wanted = order((3,), 24, 8, 1.0)
  with machine(1):
    layout = devices.Layout(1)
    source = sources.Stream(split, {}, wanted, layout)
    (((batch,),),) = batches(source, layout, [4])
  mixed = step._mixed(batch)
  clips, share_B = wanted.clips([4]), wanted.shares([4])[0, 0]
  own, partner = (clips[name][0, 0] for name in ('own', 'partner'))
  np.testing.assert_array_equal(mixed['index'], own)
  for k in range(8):
    share = float(share_B[k])
    one, two = (datasets.read_clip(split, i) for i in (own[k], partner[k]))
    wave = share * one['wave'].astype(float) + (1 - share) * two['wave']
    np.testing.assert_allclose(mixed['wave'][k], wave, atol=0.51)
    tags = share * one['tags'] + (1 - share) * two['tags']
    np.testing.assert_allclose(mixed['tags'][k], tags, atol=1e-6)


def test_batch_is_read_again_for_inspection():
  split, wanted = fake().splits['train'], order((3, 4), 24, 8, 0.5)
  found = sources.read_batch(split, wanted, 5)
  for name, prefix in (('own', ''), ('partner', 'partner_')):
    clips = wanted.clips([5])[name][0, 0]
    np.testing.assert_array_equal(found[f'{prefix}index'], clips)
    waves = [split.source[k]['audio'] for k in clips]
    np.testing.assert_array_equal(found[f'{prefix}wave'], waves)


# Features --------------------------------------------------------------------


def test_features_are_those_of_every_clip():
  """Also where the last batch of 32 is filled up."""
  split = dataset('both', sizes=(37, 1, 1)).splits['train']
  waves, mels = (sources.features(split, config) for config in (None, CONFIG))
  expected = [datasets.read_clip(split, k) for k in range(37)]
  for key in ('wave', 'tags', 'mask', 'length', 'index'):
    values = np.stack([clip[key] for clip in expected])
    np.testing.assert_array_equal(waves[key], values)
    if key != 'wave':
      np.testing.assert_array_equal(mels[key], values)
  assert waves['wave'].dtype == np.int16
  assert 'wave' not in mels
  log_mel = jax.jit(frontend.log_mel, static_argnums=1)
  for k in (0, 36):
    (mel_TF,) = log_mel(expected[k]['wave'][None], CONFIG)
    np.testing.assert_allclose(mels['mel'][k], mel_TF, 1e-5, 1e-4)


def test_bytes_of_features_are_known_beforehand():
  data = fake()
  for config, key in ((CONFIG, 'mel'), (None, 'wave')):
    found = sources.features(data.splits['validate'], config)[key]
    assert sources.feature_bytes(data, config) * len(found) == found.nbytes


def test_record_that_cannot_be_read_is_named():
  split = fake().splits['train']

  class Broken(Counted):
    def __getitem__(self, index):
      if index == 5:
        raise OSError('bad block')
      return super().__getitem__(index)

  broken = dataclasses.replace(split, source=Broken(split.source))
  message = "record 5 of split 'train' in the prepared data set cannot be"
  with pytest.raises(ValueError, match=message):
    sources.features(broken, None)
  source = sources.Stream(broken, {}, order((3,), 24), devices.Layout(1))
  with pytest.raises(ValueError, match=message):  # noqa: PT012
    for number in range(3):
      source.take([number])
