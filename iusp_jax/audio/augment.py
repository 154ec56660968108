"""Random changes to waveforms and spectrograms, from the key of each clip.

What happens to a clip depends on its own key alone, not on the rest of the
batch or on how the batch is split over devices.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from iusp_jax.audio import frontend

FILLS = ('mean', 'silence')
_STORE_SEED = 2**31 - 1  # Of stored augmentations; no student's.


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
  """Masks of `spec_augment`; hashable.

  Attributes:
    num_time_masks: stretches of time to mask in each clip.
    max_time_fraction: longest stretch, as a fraction of the clip.
    num_mel_masks: stretches of the mel scale to mask in each clip.
    max_mel_fraction: widest stretch, as a fraction of the mel scale.
    fill: what stands in a mask: 'mean' (of the clip's log-mel values) or
      'silence' (`log(log_offset)`).
    log_offset: of the front end; used by the fill 'silence' only.

  Raises:
    ValueError: where a field is outside its legal range.
  """

  num_time_masks: int = 2
  max_time_fraction: float = 0.1
  num_mel_masks: int = 2
  max_mel_fraction: float = 0.15
  fill: str = 'mean'
  log_offset: float = 0.01

  def __post_init__(self):
    for name in ('num_time_masks', 'num_mel_masks'):
      value = getattr(self, name)
      if value < 0:
        raise ValueError(f'SpecAugmentConfig.{name} is {value}; expected >= 0.')
    for name in ('max_time_fraction', 'max_mel_fraction'):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(
          f'SpecAugmentConfig.{name} is {value}; expected a fraction of the '
          'axis, from 0 to 1.'
        )
    if self.fill not in FILLS:
      raise ValueError(
        f'SpecAugmentConfig.fill is {self.fill!r}; expected one of {FILLS}.'
      )
    if not self.log_offset > 0:
      raise ValueError(
        f'SpecAugmentConfig.log_offset is {self.log_offset}; expected > 0, as '
        'in the front end.'
      )


def spec_augment_config(fields: Mapping[str, Any]) -> SpecAugmentConfig | None:
  """The masks that `config.augment` asks for, or None where it has none.

  Args:
    fields: `num_time_masks`, `max_time_fraction`, `num_mel_masks` and
      `max_mel_fraction`; others are passed over.

  Raises:
    ValueError: where one is outside its legal range.
  """
  names = (
    'num_time_masks',
    'max_time_fraction',
    'num_mel_masks',
    'max_mel_fraction',
  )
  cfg = SpecAugmentConfig(**{name: fields[name] for name in names})
  return cfg if cfg.num_time_masks or cfg.num_mel_masks else None


@dataclasses.dataclass(frozen=True)
class ClipAugment:
  """What is done to a clip by itself, the same for every front end; hashable.

  Attributes:
    masks: of `spec_augment`, or None.
    axis: the front end whose mel axis the masks are fractions of.
    time_roll_seconds: of `time_roll`; 0 for none.
  """

  masks: SpecAugmentConfig | None
  axis: frontend.FrontendConfig
  time_roll_seconds: float = 0.0

  def wave(self, wave_BS: jax.Array, keys_B: jax.Array) -> jax.Array:
    """Waves as they sound."""
    if not self.time_roll_seconds:
      return wave_BS
    keys_B, rate = subkeys(keys_B, 0), self.axis.sample_rate
    return time_roll(wave_BS, keys_B, self.time_roll_seconds, rate)

  def mel(
    self, mel_BTF: jax.Array, keys_B: jax.Array, cfg: frontend.FrontendConfig
  ) -> jax.Array:
    """Log-mels of `wave` by a front end, with the masks."""
    if self.masks is None:
      return mel_BTF
    places_F = frontend.band_places(cfg, self.axis)
    return spec_augment(mel_BTF, subkeys(keys_B, 1), self.masks, places_F)


def clip_keys(
  seed: int | jax.Array, step: jax.typing.ArrayLike, index_B: jax.Array
) -> jax.Array:
  """One random key a clip, from its place in the split alone.

  So that what happens to a clip depends neither on the devices that share
  the batch nor on what was drawn before, and a resumed run needs no key.
  """
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)


def stored_keys(index_B: jax.Array, version_B: jax.Array) -> jax.Array:
  """One key a clip for one of its stored augmentations.

  The same for all students, since they share what is stored of the teacher.
  """

  def of_clip(index, version):
    return clip_keys(_STORE_SEED, version, index[None])[0]

  return jax.vmap(of_clip)(index_B, version_B)


def subkeys(keys_B: jax.Array, purpose: int) -> jax.Array:
  """Independent keys of the same clips for another purpose.

  0 and 1 are for `ClipAugment`.
  """
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, purpose)


def _masked(key, places, count: int, max_fraction: float):
  """Which places, fractions of an axis, lie under one of `count` stretches.

  A stretch has a width uniform in [0, max_fraction] and a start uniform in
  what is left.
  """
  width_key, start_key = jax.random.split(key)
  width = max_fraction * jax.random.uniform(width_key, (count, 1))
  start = (1.0 - width) * jax.random.uniform(start_key, (count, 1))
  inside = (places[None] >= start) & (places[None] < start + width)
  return inside.any(axis=0)


def spec_augment(
  mel_BTF: jax.Array,
  keys_B: jax.Array,
  cfg: SpecAugmentConfig,
  places_F: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  """Masks stretches of time and of the mel scale in each clip.

  The masks are drawn as fractions of the two axes: front ends with other frame
  rates, numbers of bands or ranges of hertz get the same masks, in seconds and
  in hertz, from the same keys, up to half a frame or band.

  Args:
    mel_BTF: log-mel spectrograms [B, T, F].
    keys_B: one random key per clip.
    cfg: number and size of the masks, and what fills them.
    places_F: of the bands [F] on the mel axis that masks are fractions of, see
      `frontend.band_places`; by default that axis is their own.

  Returns:
    mel_BTF with the masks filled, same shape and dtype.

  References:
    Park et al., SpecAugment, Interspeech 2019, arXiv 1904.08779 (without its
    time warping).
  """
  frames, bands = mel_BTF.shape[1:]
  # Centres: frames tile the clip, triangles overlap by half.
  times_T = (jnp.arange(frames) + 0.5) / frames
  if places_F is None:
    places_F = jnp.arange(1, bands + 1) / (bands + 1)
  places_F = jnp.asarray(places_F)

  def augment(mel_TF, key):
    time_key, band_key = jax.random.split(key)
    mask_T = _masked(
      time_key, times_T, cfg.num_time_masks, cfg.max_time_fraction
    )
    mask_F = _masked(
      band_key, places_F, cfg.num_mel_masks, cfg.max_mel_fraction
    )
    if cfg.fill == 'mean':
      fill = mel_TF.mean()
    else:
      fill = jnp.log(cfg.log_offset)
    mask_TF = mask_T[:, None] | mask_F[None]
    return jnp.where(mask_TF, fill.astype(mel_TF.dtype), mel_TF)

  return jax.vmap(augment)(mel_BTF, keys_B)


def time_roll(
  wave_BS: jax.Array,
  keys_B: jax.Array,
  max_seconds: float,
  sample_rate: int,
) -> jax.Array:
  """Rolls each clip by up to `max_seconds` to either side, around its end.

  Args:
    wave_BS: waves [B, S], of any dtype.
    keys_B: one random key per clip.
    max_seconds: the shift is uniform over whole samples in [-max, max].
    sample_rate: in hertz.

  Returns:
    wave_BS, rolled; every sample is kept.

  Raises:
    ValueError: where `max_seconds` is negative.
  """
  if max_seconds < 0:
    raise ValueError(f'max_seconds is {max_seconds}; expected >= 0.')
  limit = round(max_seconds * sample_rate)

  def roll(wave_S, key):
    return jnp.roll(wave_S, jax.random.randint(key, (), -limit, limit + 1))

  return jax.vmap(roll)(wave_BS, keys_B)


def mixup(
  own: Mapping[str, jax.Array],
  partner: Mapping[str, jax.Array],
  share_B: jax.Array,
) -> dict[str, jax.Array]:
  """Mixes a partner into each clip: waves and tags in the same proportion.

  Args:
    own: a batch: `wave` [B, S], `tags` [B, C], `mask` [B, C] (1 where the tag
      is labelled) and `length` [B] in samples. Other entries are kept.
    partner: the same entries of the clips to mix in.
    share_B: of the own clip in the mix, from 0 to 1.

  Returns:
    `own` with the mixed `wave` in the dtype that it had (int16 is rounded to
    the nearest, float stays in [-1, 1]) and `tags`; a tag is labelled where it
    is in both clips, and the mix is as long as the longer one.

  Raises:
    ValueError: where the waves of the two batches differ in dtype.

  References:
    Zhang et al., mixup, ICLR 2018, arXiv 1710.09412.
  """
  wave_BS = own['wave']
  if partner['wave'].dtype != wave_BS.dtype:
    raise ValueError(
      f'mixup of waves of {wave_BS.dtype} and {partner["wave"].dtype}, whose '
      'scales differ; expected one dtype.'
    )

  def mix(name):
    share = share_B[:, None]
    return share * own[name] + (1 - share) * partner[name]

  mixed_BS = mix('wave')
  if jnp.issubdtype(wave_BS.dtype, jnp.integer):
    mixed_BS = jnp.rint(mixed_BS)
  return {
    **own,
    'wave': mixed_BS.astype(wave_BS.dtype),
    'tags': mix('tags'),
    'mask': own['mask'] * partner['mask'],
    'length': jnp.maximum(own['length'], partner['length']),
  }
