"""How members and batches are spread over devices, by closed form."""

import contextlib
from unittest import mock

import jax
import numpy as np
import pytest

from iusp_jax.runtime import devices

AXIS = devices.AXIS


@contextlib.contextmanager
def machine(num_local, num_processes=1, process=0):
  """As on one of some processes of so many devices; arrays stay NumPy."""
  with (
    mock.patch.object(
      jax, 'device_count', return_value=num_local * num_processes
    ),
    mock.patch.object(jax, 'local_device_count', return_value=num_local),
    mock.patch.object(jax, 'process_count', return_value=num_processes),
    mock.patch.object(jax, 'process_index', return_value=process),
    mock.patch.object(devices, '_on_devices', lambda tree, axis: tree),
  ):
    yield


# Members, devices of a process, processes.
MACHINES = [
  (1, 1, 1),
  (3, 1, 1),
  (1, 4, 1),
  (3, 4, 1),
  (4, 4, 1),
  (5, 4, 1),
  (9, 4, 1),
  (1, 2, 2),
  (3, 2, 2),
  (5, 2, 2),
]


def whole(num_members, num_steps=2, batch_size=8):
  """Every number is another, `[M, K, B]`."""
  shape = num_members, num_steps, batch_size
  return np.arange(np.prod(shape), dtype=np.int32).reshape(shape)


def joined(parts_DEKb, layout):
  """The batches of members again, from the parts of all devices."""
  if layout.by_member:
    parts = parts_DEKb.reshape(-1, *parts_DEKb.shape[2:])
    # What is computed again is the last member.
    again = parts[layout.num_members :]
    assert (again == parts[layout.num_members - 1]).all()
    return parts[: layout.num_members]
  return np.concatenate(list(parts_DEKb), axis=-1)


@pytest.mark.parametrize(('members', 'local', 'hosts'), MACHINES)
def test_batch_parts_are_the_batches(members, local, hosts):
  """Of all processes together, each clip once; in the order of the batch."""
  clips_MKB = whole(members)
  found = []
  for process in range(hosts):
    with machine(local, hosts, process):
      layout = devices.Layout(members)
      parts = layout.batch_parts(clips_MKB)
      size = 8 if members >= local * hosts else 8 // (local * hosts)
      assert parts.shape == (local, layout.each, 2, size)
      found.append(parts)
      count = 1 if layout.by_member else local * hosts
      assert layout.num_parts == count
  np.testing.assert_array_equal(
    joined(np.concatenate(found), layout), clips_MKB
  )


@pytest.mark.parametrize(('members', 'local', 'hosts'), MACHINES)
def test_whole_batches_are_on_every_device_that_needs_them(
  members, local, hosts
):
  clips_MKB = whole(members)
  for process in range(hosts):
    with machine(local, hosts, process):
      layout = devices.Layout(members)
      found = layout.whole_batches(clips_MKB)
    assert found.shape == (local, layout.each, 2, 8)
    for d in range(local):
      for e in range(layout.each):
        m = e
        if layout.by_member:
          device = process * local + d
          m = min(device * layout.each + e, members - 1)
        np.testing.assert_array_equal(found[d, e], clips_MKB[m])


@pytest.mark.parametrize(('members', 'local', 'hosts'), MACHINES)
def test_shared_clips_are_cut_where_batches_are(members, local, hosts):
  clips_nX = np.arange(24).reshape(8, 3)
  found = []
  for process in range(hosts):
    with machine(local, hosts, process):
      layout = devices.Layout(members)
      found.append(layout.share_clips({'a': clips_nX})['a'])
  parts = np.concatenate(found)
  if layout.by_member:
    assert parts.shape == (local * hosts, 8, 3)
    assert (parts == clips_nX).all()
  else:
    np.testing.assert_array_equal(parts.reshape(8, 3), clips_nX)


@pytest.mark.parametrize(
  ('members', 'num_devices', 'each', 'by_member'),
  [
    (1, 4, 1, False),
    (3, 4, 3, False),
    (4, 4, 1, True),
    (5, 4, 2, True),
    (8, 3, 3, True),
    (6, 2, 3, True),
    (2, 1, 2, True),
  ],
)
def test_devices_have_any_number_of_members(
  members, num_devices, each, by_member
):
  with machine(num_devices):
    layout = devices.Layout(members)
    assert (layout.each, layout.by_member) == (each, by_member)
    given = np.arange(2.0 * members).reshape(members, 2)
    put = layout.put(given)
    assert put.shape == (num_devices, each, 2)
    if not by_member:
      assert (put == given).all()


# On the two devices of every test --------------------------------------------


@pytest.mark.parametrize('members', [1, 2, 3, 4])
def test_members_come_back_in_order_and_may_go_again(members):
  layout = devices.Layout(members)
  traced = []

  def double(member, shared):
    traced.append(1)
    return member * shared

  mapped = layout.map(double, 2)
  given = np.arange(2.0 * members, dtype=np.float32).reshape(-1, 2)
  found, factor = layout.put(given), layout.share(np.float32(2.0))
  for _ in range(3):  # From the host, then what the function itself gave.
    found = mapped(found, factor)
  np.testing.assert_array_equal(layout.get(found), 8 * given)
  first = len(traced)
  mapped(found, factor)
  assert len(traced) == first


@pytest.mark.parametrize('members', [1, 3])
def test_reductions_see_the_whole_batch(members):
  """Wherever it is: on all devices, or on that of its member."""
  layout = devices.Layout(members)

  def step(weight, batch):
    total = jax.lax.psum(batch.sum(), AXIS)
    everyone = devices.gather(batch)
    return weight * total, everyone

  step = layout.over_batch(step)
  mapped = layout.map(lambda member, shared: step(member[0], member[1]), 1)
  clips_MKB = whole(members, 1).astype(np.float32)
  weights = layout.put(np.arange(1, members + 1, dtype=np.float32))
  batches = layout.put_local(layout.batch_parts(clips_MKB)[:, :, 0])
  totals, everyone = mapped((weights, batches), layout.share(np.zeros(1)))
  expected = np.arange(1, members + 1) * clips_MKB.sum((1, 2))
  np.testing.assert_allclose(layout.get(totals), expected)
  np.testing.assert_array_equal(layout.get(everyone), clips_MKB[:, 0])


@pytest.mark.parametrize('members', [1, 2])
def test_predictions_are_of_all_clips(members):
  layout = devices.Layout(members)
  mapped = layout.map(lambda member, clips: layout.gather(member * clips), 1)
  clips = np.arange(8, dtype=np.float32)
  weights = np.arange(1, members + 1, dtype=np.float32)
  found = layout.get(mapped(layout.put(weights), layout.share_clips(clips)))
  np.testing.assert_array_equal(found, weights[:, None] * clips)


def test_replicated_arrays_come_back():
  tree = {'a': np.arange(6.0, dtype=np.float32).reshape(2, 3), 'b': np.int32(4)}
  found = devices.unreplicate(devices.replicate(tree))
  jax.tree.map(np.testing.assert_array_equal, found, tree)
  assert devices.shard({'a': np.zeros((4, 3))})['a'].shape == (2, 2, 3)


def test_pmapped_function_is_compiled_once():
  """For the state as it is replicated, and as the function itself gives it."""
  traced = []

  def count(state, batch):
    traced.append(1)
    return jax.tree.map(lambda x: x + batch.sum(), state)

  mapped = devices.pmap(count)
  state = devices.replicate({'a': np.zeros((2, 3), np.float32)})
  for _ in range(3):
    state = mapped(state, np.ones((2, 4), np.float32))
  assert len(traced) == 1


@pytest.mark.parametrize(
  ('batch_size', 'parts', 'message'),
  [
    (7, 1, 'batch_size is 7: expected a multiple of the 2 devices, so that'),
    (0, 1, 'batch_size is 0'),
    (-2, 1, 'batch_size is -2'),
    (8, 3, 'is 8: .* the 2 devices times accumulate_steps 3, so that'),
  ],
)
def test_batches_that_devices_cannot_share_are_refused(
  batch_size, parts, message
):
  with pytest.raises(ValueError, match=message):
    devices.check_batch_size(batch_size, parts)
  devices.check_batch_size(12, 3)
