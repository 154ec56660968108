"""Augmentation: what is masked and rolled, and from which key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iusp_jax.audio import augment
from iusp_jax.audio.augment import SpecAugmentConfig


def keys(seed, clips):
  return jax.random.split(jax.random.key(seed), clips)


spec_augment = jax.jit(augment.spec_augment, static_argnums=2)


def masks(seed, frames, bands, cfg, clips=4):
  """Which values change, [clips, frames, bands]."""
  rng = np.random.default_rng(seed)
  mel = rng.normal(size=(clips, frames, bands)).astype(np.float32)
  out = spec_augment(jnp.asarray(mel), keys(seed, clips), cfg)
  return np.asarray(out) != mel


@settings(max_examples=8)
@given(
  seed=st.integers(0, 100),
  times=st.integers(0, 3),
  bands=st.integers(0, 3),
  time_fraction=st.floats(0, 0.4),
  mel_fraction=st.floats(0, 0.4),
)
def test_masks_are_whole_frames_and_bands_of_the_right_number_and_size(
  seed, times, bands, time_fraction, mel_fraction
):
  cfg = SpecAugmentConfig(times, time_fraction, bands, mel_fraction)
  for mask in masks(seed, 50, 30, cfg):
    frames, rows = mask.all(axis=1), mask.all(axis=0)
    np.testing.assert_array_equal(mask, frames[:, None] | rows[None])
    for line, count, fraction in (
      (frames, times, time_fraction),
      (rows, bands, mel_fraction),
    ):
      starts = np.sum(np.diff(line.astype(int), prepend=0) == 1)
      assert starts <= count
      assert line.sum() <= count * (fraction * len(line) + 1)


def test_masks_do_mask():
  mask = masks(0, 50, 30, SpecAugmentConfig(), clips=20)
  assert 0.05 < mask.mean() < 0.4


def test_two_front_ends_lose_the_same_seconds_and_the_same_mel():
  cfg = SpecAugmentConfig(2, 0.3, 2, 0.3)
  fine = masks(3, 998, 64, cfg, clips=8)
  coarse = masks(3, 499, 20, cfg, clips=8)
  for a, b in zip(fine, coarse, strict=True):
    # A place a whole frame or band away from every edge is alike in both.
    for axis, places_a, places_b in (
      (1, (np.arange(998) + 0.5) / 998, (np.arange(499) + 0.5) / 499),
      (0, np.arange(1, 65) / 65, np.arange(1, 21) / 21),
    ):
      line_a, line_b = a.all(axis=axis), b.all(axis=axis)
      edges = places_a[1:][np.diff(line_a.astype(int)) != 0]
      step = places_b[1] - places_b[0]
      for place, masked in zip(places_b, line_b, strict=True):
        if edges.size == 0 or abs(edges - place).min() > step:
          assert masked == line_a[abs(places_a - place).argmin()]
    assert a.any()
    assert b.any()


def test_fills():
  mel = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 16)))
  for fill, expected in (
    ('mean', mel.mean(axis=(1, 2))),
    ('silence', jnp.full(2, jnp.log(0.5))),
  ):
    cfg = SpecAugmentConfig(fill=fill, log_offset=0.5, max_time_fraction=0.5)
    out = spec_augment(mel, keys(1, 2), cfg)
    for clip in range(2):
      changed = np.asarray(out[clip])[np.asarray(out[clip] != mel[clip])]
      assert changed.size
      np.testing.assert_allclose(changed, expected[clip], rtol=1e-6)


@pytest.mark.parametrize('seed', [0, 1])
def test_a_clip_depends_on_its_own_key_alone(seed):
  rng = np.random.default_rng(seed)
  mel = jnp.asarray(rng.normal(size=(4, 30, 12)), jnp.float32)
  wave = jnp.asarray(rng.integers(-99, 99, (4, 200)), jnp.int16)
  k = keys(seed, 4)
  order = jnp.asarray([2, 0, 3, 1])
  cfg = SpecAugmentConfig(max_time_fraction=0.4)

  @jax.jit
  def both(mel, wave, k):
    return (
      augment.spec_augment(mel, k, cfg),
      augment.time_roll(wave, k, 0.1, sample_rate=1_000),
    )

  whole = both(mel, wave, k)
  for got, expected in zip(
    both(mel[order], wave[order], k[order]), whole, strict=True
  ):
    np.testing.assert_array_equal(got, expected[order])
  for got, expected in zip(
    both(mel[1:2], wave[1:2], k[1:2]), whole, strict=True
  ):
    np.testing.assert_array_equal(got, expected[1:2])


def test_time_roll_rolls_within_the_limit():
  wave = jnp.broadcast_to(jnp.arange(100, dtype=jnp.int16), (200, 100))
  rolled = np.asarray(
    augment.time_roll(wave, keys(0, 200), 0.02, sample_rate=1_000)
  )
  shifts = set()
  for row in rolled:
    shift = int(np.argmin(row))
    np.testing.assert_array_equal(row, np.roll(np.arange(100), shift))
    shifts.add(shift if shift < 50 else shift - 100)
  assert rolled.dtype == np.int16
  assert min(shifts) == -20
  assert max(shifts) == 20


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('num_time_masks', -1),
    ('num_mel_masks', -1),
    ('max_time_fraction', 1.5),
    ('max_mel_fraction', -0.1),
    ('fill', 'noise'),
    ('log_offset', 0.0),
  ],
)
def test_refuses_configs(field, value):
  with pytest.raises(ValueError, match=field):
    SpecAugmentConfig(**{field: value})


def test_refuses_a_negative_roll():
  with pytest.raises(ValueError, match='max_seconds is -1'):
    augment.time_roll(jnp.zeros((1, 10)), keys(0, 1), -1, 1_000)


# Mixup -----------------------------------------------------------------------


def clips(dtype, seed=0, count=3):
  rng = np.random.default_rng(seed)
  wave = rng.integers(-30_000, 30_000, (count, 50))
  wave = wave if dtype == np.int16 else wave / 32_768
  return {
    'wave': wave.astype(dtype),
    'tags': rng.integers(0, 2, (count, 4)).astype(np.float32),
    'mask': rng.integers(0, 2, (count, 4)).astype(np.float32),
    'length': rng.integers(10, 50, count).astype(np.int32),
    'index': np.arange(count, dtype=np.int32),
  }


@pytest.mark.parametrize('dtype', [np.int16, np.float32])
def test_mixup_by_definition(dtype):
  own, partner = clips(dtype, 0), clips(dtype, 1)
  share = np.array([0.5, 0.8, 1.0], np.float32)
  got = augment.mixup(own, partner, jnp.asarray(share))
  assert got['wave'].dtype == dtype
  share = share.astype(float)[:, None]
  wave = share * own['wave'] + (1 - share) * partner['wave']
  # int16 is rounded to the nearest, not towards zero.
  np.testing.assert_allclose(
    got['wave'], wave, atol=0.51 if dtype == np.int16 else 1e-6
  )
  tags = share * own['tags'] + (1 - share) * partner['tags']
  np.testing.assert_allclose(got['tags'], tags, atol=1e-6)
  np.testing.assert_array_equal(got['mask'], own['mask'] * partner['mask'])
  np.testing.assert_array_equal(
    got['length'], np.maximum(own['length'], partner['length'])
  )
  np.testing.assert_array_equal(got['index'], own['index'])
  np.testing.assert_array_equal(got['wave'][2], own['wave'][2])  # Share 1.


def test_mixup_refuses_two_scales():
  with pytest.raises(ValueError, match='int16 and float32'):
    augment.mixup(clips(np.int16), clips(np.float32), jnp.ones(3))


# Config ----------------------------------------------------------------------


def test_spec_augment_of_a_config():
  fields = {
    'time_roll_seconds': 0.1,  # Not of the masks.
    'num_time_masks': 0,
    'max_time_fraction': 0.2,
    'num_mel_masks': 3,
    'max_mel_fraction': 0.3,
  }
  expected = SpecAugmentConfig(0, 0.2, 3, 0.3)
  assert augment.spec_augment_config(fields) == expected
  assert augment.spec_augment_config(fields | {'num_mel_masks': 0}) is None
  with pytest.raises(ValueError, match='max_time_fraction is 2'):
    augment.spec_augment_config(fields | {'max_time_fraction': 2})
