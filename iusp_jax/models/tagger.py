"""A tagger as it hears: waveform, augmentation, front end, model."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from iusp_jax import models
from iusp_jax.audio import augment, frontend
from iusp_jax.models import cost

Variables = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Tagger:
  """A model with the front end it was made for.

  Attributes:
    module: gives `TaggerOutput(logits_BC, frames_BTD)` for a log-mel.
    frontend: turns waveforms into that log-mel.
    num_tags: number of logits.
  """

  module: nn.Module
  frontend: frontend.FrontendConfig
  num_tags: int

  def initialise(self, seed: int, num_samples: int) -> Variables:
    """Fresh variables: 'params' and 'batch_stats'."""
    num_frames = frontend.num_frames(num_samples, self.frontend)
    mel_BTF = jnp.zeros((1, num_frames, self.frontend.num_mel_bands))
    variables = _compile_init(self.module)(jax.random.key(seed), mel_BTF)
    return {'batch_stats': {}, **variables}

  def shapes(self, num_samples: int) -> Variables:
    """Shapes of the variables: all that sizes and checks need."""
    return jax.eval_shape(lambda: self.initialise(0, num_samples))

  def num_parameters(self, variables: Variables) -> int:
    """How many numbers training changes."""
    return cost.count_parameters({'params': variables['params']})

  @functools.cache  # noqa: B019 (a few models a process)
  def num_macs(self, num_samples: int) -> int:
    """Multiply-accumulates of the model for one clip, front end excluded."""
    num_frames = frontend.num_frames(num_samples, self.frontend)
    mel_BTF = jnp.zeros((1, num_frames, self.frontend.num_mel_bands))
    native = self.module.clone(lowering='native')
    return cost.count_macs(native.apply, self.shapes(num_samples), mel_BTF)


@functools.cache
def _compile_init(module: nn.Module) -> Callable:
  # A bound method is another function to `jax.jit` every time: without this,
  # every seed of a table would be compiled again.
  return jax.jit(module.init)


def build(
  recipe: Mapping[str, Any], num_tags: int, axis_name: str | None = None
) -> Tagger:
  """The tagger of a recipe's `model` and `frontend` fields.

  Activations are of `training.compute_dtype`, unless the model has a `dtype`
  of its own; parameters, statistics and what the model gives are float32.
  """
  # Recipes of older runs do not have the field.
  dtype = recipe.get('training', {}).get('compute_dtype', 'float32')
  fields = {'dtype': dtype, **recipe['model']}
  return Tagger(
    module=models.build(fields, num_tags, axis_name),
    frontend=frontend.FrontendConfig(**recipe['frontend']),
    num_tags=num_tags,
  )


def clip_keys(
  seed: int | jax.Array, step: jax.Array, index_B: jax.Array
) -> jax.Array:
  """One random key a clip, from its place in the split alone.

  So that what happens to a clip depends neither on the devices that share
  the batch nor on what was drawn before, and a resumed run needs no key.
  """
  key = jax.random.fold_in(jax.random.key(seed), step)
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index_B)


def subkeys(keys_B: jax.Array, purpose: int) -> jax.Array:
  """Independent keys of the same clips for another purpose."""
  return jax.vmap(jax.random.fold_in, (0, None))(keys_B, purpose)


def hear(
  tagger: Tagger,
  wave_BS: jax.Array,
  keys_B: jax.Array | None = None,
  masks: Any = None,
) -> jax.Array:
  """The log-mel that a model gets, `[B, T, F]`.

  Args:
    tagger: whose front end to use.
    wave_BS: int16 or float in [-1, 1].
    keys_B: for SpecAugment. The same keys mask the same seconds and hertz
      for every front end, so that teacher and student hear the same.
    masks: `augment.SpecAugmentConfig`, or None for the plain sound.
  """
  return mask(frontend.log_mel(wave_BS, tagger.frontend), keys_B, masks)


def mask(
  mel_BTF: jax.Array, keys_B: jax.Array | None = None, masks: Any = None
) -> jax.Array:
  """SpecAugment where it is wanted; see `hear`."""
  if masks is None or keys_B is None:
    return mel_BTF
  return augment.spec_augment(mel_BTF, keys_B, masks)


def apply(
  tagger: Tagger, variables: Any, mel_BTF: jax.Array
) -> models.TaggerOutput:
  """The frozen model's output for a log-mel: nothing random, no update."""
  output = tagger.module.apply(variables, mel_BTF, train=False)
  return cast(models.TaggerOutput, output)
