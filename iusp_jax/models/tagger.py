"""A model with its front end: from the waveform to logits and frames."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from iusp_jax import models
from iusp_jax.audio import augment, frontend, kaldi_mel
from iusp_jax.models import cost
from iusp_jax.models.layers import block_name, layer_frames
from iusp_jax.models.pretrained import efficientat
from iusp_jax.objectives import alignment

Variables = Mapping[str, Any]

LAST = 'frames'  # The name of the last frame embedding among the layers.
INNER = 'inner'  # Stands for all `inner_layers` of a model.
_FRONTENDS = {
  'log_mel': frontend.FrontendConfig,
  'kaldi_mel': kaldi_mel.KaldiMelConfig,
}


@dataclasses.dataclass(frozen=True)
class Tagger:
  """A model with the front end it was made for.

  Attributes:
    module: gives a `TaggerOutput` for a log-mel.
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
    return cost.count_macs(
      cost.clip_logits(self.module), self.shapes(num_samples), mel_BTF
    )


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
  own = dict(recipe['frontend'])
  kind = own.pop('kind', 'log_mel')  # Only those of pretrained models say it.
  models.check_name('kind of front end', kind, _FRONTENDS)
  return Tagger(
    module=models.build(fields, num_tags, axis_name),
    frontend=_FRONTENDS[kind](**own),
    num_tags=num_tags,
  )


def log_mel(
  tagger: Tagger,
  wave_BS: jax.Array,
  keys_B: jax.Array | None = None,
  changes: augment.ClipAugment | None = None,
) -> jax.Array:
  """The log-mel that a model gets, `[B, T, F]`.

  Args:
    tagger: whose front end to use.
    wave_BS: int16 or float in [-1, 1].
    keys_B: of the clips, for `changes`. The same keys change the same seconds
      and hertz for every front end, so that teacher and student get the same
      sound.
    changes: what is done to each clip, or None for the sound as it is.
  """
  if changes is None or keys_B is None:
    return frontend.log_mel(wave_BS, tagger.frontend)
  mel_BTF = frontend.log_mel(changes.wave(wave_BS, keys_B), tagger.frontend)
  return changes.mel(mel_BTF, keys_B, tagger.frontend)


def frame_reduction(tagger: Tagger) -> int:
  """Log-mel frames for each frame embedding."""
  length = 1 << 14  # So many that the last, cut frame does not matter.
  mel_BTF = jax.ShapeDtypeStruct(
    (1, length, tagger.frontend.num_mel_bands), jnp.float32
  )
  key = jax.random.key(0)
  output, _ = jax.eval_shape(tagger.module.init_with_output, key, mel_BTF)
  return round(length / output.frames_BTD.shape[1])


def given_timing(tagger: Tagger) -> alignment.Timing | None:
  """When the frames of a model are that says so itself.

  None for one that cuts the clip into equal parts.
  """
  module = tagger.module
  if not isinstance(module, efficientat.EfficientAt):
    return None
  return alignment.Timing(
    module.frame_hop_seconds,
    module.frame_span_seconds,
    module.first_frame_seconds,
  )


@functools.cache
def frame_timing(tagger: Tagger) -> alignment.Timing:
  """When the frame embeddings of a model are, of its log-mel frames.

  The mean over as many log-mel frames as there are for each: their receptive
  field may be wider, on both sides or, of an LSTM, into the past.
  """
  if given := given_timing(tagger):
    return given
  config, count = tagger.frontend, frame_reduction(tagger)
  hop = config.hop_samples / config.sample_rate
  window = config.window_samples / config.sample_rate
  return alignment.Timing(
    hop_seconds=count * hop,
    span_seconds=count * hop,
    first_seconds=(count - 1) / 2 * hop + window / 2,
  )


def layer_names(tagger: Tagger) -> tuple[str, ...]:
  """The layers whose frames `forward` gives: `block_1` to `block_n`, `frames`.

  What the blocks are stands at the head of each model's module; `frames` is
  the last frame embedding, before the pooling over time.
  """
  module = cast(Any, tagger.module)
  numbers = range(1, module.num_blocks + 1)
  return (*map(block_name, numbers), LAST)


def inner_layers(tagger: Tagger) -> tuple[str, ...]:
  """The blocks before the last frame embedding, from the first on."""
  numbers = range(1, cast(Any, tagger.module).num_inner + 1)
  return tuple(map(block_name, numbers))


def expand(tagger: Tagger, names: Iterable[str]) -> tuple[str, ...]:
  """Names of layers, each once, with `INNER` as those it stands for."""
  found: dict[str, None] = {}
  for name in names:
    found |= dict.fromkeys(inner_layers(tagger) if name == INNER else [name])
  return tuple(found)


def check_layers(tagger: Tagger, names: Iterable[str]) -> None:
  """Raises ValueError for a layer that the model does not have."""
  for name in expand(tagger, names):
    models.check_name('layer', name, layer_names(tagger))


def forward(
  tagger: Tagger,
  variables: Variables,
  mel_BTF: jax.Array,
  *,
  train: bool = False,
  keys_B: jax.Array | None = None,
  layers: Iterable[str] = (),
) -> tuple[models.TaggerOutput, Any]:
  """The model's output for a log-mel, and BatchNorm's running statistics.

  Only the layers that are named are stored. The frames of one are float32
  [B, T', D']: the mean over frequency of a feature map, with D' its channels
  and T' a multiple of the number of frames of `frames_BTD`; for `frames`,
  `frames_BTD` itself. Gradients flow through all of them.

  Args:
    tagger: the model.
    variables: 'params' and 'batch_stats'.
    mel_BTF: log-mel [B, T, F] of the model's front end.
    train: whether BatchNorm takes the statistics of this batch.
    keys_B: a random key a clip, for dropout in training; None switches it off.
    layers: of `layer_names`, or `INNER`.

  Returns:
    The output, with the frames of the named layers in `layers`; and the next
    'batch_stats', in evaluation those of `variables`.

  Raises:
    ValueError: for a layer that the model does not have.
  """
  names = expand(tagger, layers)
  check_layers(tagger, names)
  paths = {(name,) for name in names}
  inner = any(name != LAST for name in names)
  output, updates = tagger.module.apply(
    variables,
    mel_BTF,
    train=train,
    keys_B=keys_B,
    mutable=[*(['batch_stats'] * train), *(['intermediates'] * inner)],
    capture_intermediates=lambda module, method: (
      method == '__call__' and module.path in paths
    ),
  )
  output, updates = cast(models.TaggerOutput, output), cast(dict, updates)
  found = {LAST: output.frames_BTD}
  for name, calls in updates.get('intermediates', {}).items():
    found[name] = layer_frames(calls['__call__'][0])
  output = output._replace(layers={name: found[name] for name in names})
  return output, updates.get('batch_stats', variables.get('batch_stats', {}))


def apply(
  tagger: Tagger,
  variables: Variables,
  mel_BTF: jax.Array,
  layers: Iterable[str] = (),
) -> models.TaggerOutput:
  """The frozen model's output for a log-mel: nothing random, no update.

  `layers` are as in `forward`; their frames are in the output's `layers`.
  """
  return forward(tagger, variables, mel_BTF, layers=layers)[0]
