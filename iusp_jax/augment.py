"""Random changes to what is heard, each clip's from its own key.

What happens to a clip depends on its key alone, not on the rest of the batch.
Masks are drawn as parts of the time and the mel axis: with the same keys, two
front ends with other frame rates and numbers of bands lose the same seconds
and the same hertz.
"""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class SpecAugmentConfig:
  """How much of a log-mel is masked.

  Attributes:
    num_time_masks: masked stretches of time.
    max_time_fraction: of the clip, greatest length of one.
    num_mel_masks: masked ranges of bands.
    max_mel_fraction: of the mel axis, greatest width of one.
  """

  num_time_masks: int = 2
  max_time_fraction: float = 0.1
  num_mel_masks: int = 2
  max_mel_fraction: float = 0.2

  def __post_init__(self):
    for name in ('num_time_masks', 'num_mel_masks'):
      value = getattr(self, name)
      if value < 0:
        raise ValueError(f'{name} is {value}: expected 0 or more')
    for name in ('max_time_fraction', 'max_mel_fraction'):
      value = getattr(self, name)
      if not 0 <= value <= 1:
        raise ValueError(f'{name} is {value}: expected 0 to 1')


def spec_augment(
  mel_BTF: jax.Array, keys_B: jax.Array, cfg: SpecAugmentConfig
) -> jax.Array:
  """Replaces stretches of time and ranges of bands by the clip's mean.

  Args:
    mel_BTF: log-mel spectrograms, `[B, T, F]`.
    keys_B: one key a clip.
    cfg: number and size of the masks.

  Returns:
    `[B, T, F]`.

  References:
    Park et al., Interspeech 2019, arXiv 1904.08779.
  """
  return jax.vmap(lambda mel_TF, key: _mask_clip(mel_TF, key, cfg))(
    mel_BTF, keys_B
  )


def _mask_clip(mel_TF, key, cfg):
  time_key, mel_key = jax.random.split(key)
  num_frames, num_bands = mel_TF.shape
  time_T = _masked(
    time_key, num_frames, cfg.num_time_masks, cfg.max_time_fraction
  )
  mel_F = _masked(mel_key, num_bands, cfg.num_mel_masks, cfg.max_mel_fraction)
  masked_TF = time_T[:, None] | mel_F[None, :]
  return jnp.where(masked_TF, jnp.mean(mel_TF), mel_TF)


def _masked(key, length, num_masks, max_fraction):
  """Which of `length` equal parts of an axis have their middle in a mask."""
  places = (jnp.arange(length) + 0.5) / length
  width_key, start_key = jax.random.split(key)
  widths = max_fraction * jax.random.uniform(width_key, (num_masks,))
  starts = (1 - widths) * jax.random.uniform(start_key, (num_masks,))
  after = places[:, None] >= starts[None]
  before = places[:, None] < (starts + widths)[None]
  return jnp.any(after & before, axis=1)


def time_roll(
  wave_BS: jax.Array,
  keys_B: jax.Array,
  max_seconds: float,
  sample_rate: int = 16_000,
) -> jax.Array:
  """Shifts every clip in time, what leaves at one end enters at the other.

  Args:
    wave_BS: waveforms, `[B, S]`.
    keys_B: one key a clip.
    max_seconds: greatest shift, either way.
    sample_rate: in hertz.

  Returns:
    `[B, S]`, of the same type.
  """
  limit = round(max_seconds * sample_rate)

  def roll(wave_S, key):
    return jnp.roll(wave_S, jax.random.randint(key, (), -limit, limit + 1))

  return jax.vmap(roll)(wave_BS, keys_B)
