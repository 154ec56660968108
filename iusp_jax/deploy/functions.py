"""The functions of a trained tagger that leave JAX.

All of them give calibrated probabilities, in float32, whatever the model was
trained in.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.deploy import tagging
from iusp_jax.models import tagger

# What the parameters of an exported tagger are called, joined by this.
_SEPARATOR = '/'


@dataclasses.dataclass(frozen=True)
class Functions:
  """A tagger as functions of arrays.

  Attributes:
    model: float32, in operations that other formats have.
    variables: of it.
    temperatures_C: of its calibration.
    num_samples: of a clip.
  """

  model: tagger.Tagger
  variables: tagger.Variables
  temperatures_C: np.ndarray
  num_samples: int

  @classmethod
  def of(
    cls, loaded: tagging.LoadedTagger, lowering: str = 'native'
  ) -> 'Functions':
    """The functions of a loaded tagger, with a lowering of `convolution`."""
    own = loaded.trained
    module = own.model.module.clone(lowering=lowering, dtype=jnp.float32)
    return cls(
      dataclasses.replace(own.model, module=module),
      own.variables,
      np.asarray(loaded.calibration.temperatures_C, np.float32),
      own.metadata['num_samples'],
    )

  def to_convert(self) -> 'Functions':
    """The same functions without loops, and with as little after the model.

    Temperatures go into the last layer where that is linear: as a division of
    their own, LiteRT's converter gives the layer's bias a second axis, for
    which int8 has no ranges.
    """
    module: Any = self.model.module.clone(lowering='unrolled')
    model = dataclasses.replace(self.model, module=module)
    if module.pooling == 'linear_softmax':
      return dataclasses.replace(self, model=model)
    flat = {
      name: array / self.temperatures_C if '/tags/' in name else array
      for name, array in flatten(self.variables).items()
    }
    return dataclasses.replace(
      self,
      model=model,
      variables=unflatten(flat),
      temperatures_C=np.ones_like(self.temperatures_C),
    )

  @property
  def mel_shape(self) -> tuple[int, int]:
    """Frames and bands of a clip's log-mel."""
    cfg = self.model.frontend
    return frontend.num_frames(self.num_samples, cfg), cfg.num_mel_bands

  def log_mel(self, wave_BS) -> jax.Array:
    """The log-mel [B, T, F] of waves, float32 in [-1, 1]."""
    return tagger.log_mel(self.model, wave_BS)

  def from_log_mel(self, mel_BTF) -> jax.Array:
    """Probabilities [B, C]."""
    output = tagger.apply(self.model, self.variables, mel_BTF)
    return self.probabilities(output.logits_BC)

  def from_wave(self, wave_BS) -> jax.Array:
    """Probabilities [B, C] of waves, float32 in [-1, 1]."""
    return self.from_log_mel(self.log_mel(wave_BS))

  def probabilities(self, logits) -> jax.Array:
    """Calibrated, of logits [..., C]."""
    if (self.temperatures_C == 1).all():
      return jax.nn.sigmoid(logits)
    ones = (1,) * (logits.ndim - 1)
    return jax.nn.sigmoid(logits / self.temperatures_C.reshape(*ones, -1))


@functools.cache
def compile_log_mel(model: tagger.Tagger) -> Callable:
  """A compiled function of waves [B, S]: their log-mel."""
  return jax.jit(functools.partial(tagger.log_mel, model))


def flatten(variables: tagger.Variables) -> dict[str, np.ndarray]:
  """The arrays of a model by path, such as `params/Head_0/tags/kernel`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator=_SEPARATOR): np.asarray(
      leaf
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
  }


def unflatten(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
  """The variables of a model from `flatten`."""
  tree: dict[str, Any] = {'params': {}, 'batch_stats': {}}
  for name, array in arrays.items():
    level, *inner, last = name.split(_SEPARATOR)
    place = tree[level]
    for key in inner:
      place = place.setdefault(key, {})
    place[last] = array
  return tree
