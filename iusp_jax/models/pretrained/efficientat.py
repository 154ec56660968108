"""EfficientAT: MobileNetV3 that tags AudioSet, with a layer for other tags.

Frame-rate law: five strides, with (kernel - 1) / 2 zeros on both sides, take T
log-mel frames to ceil(T / 32) frame embeddings: 1000, of ten seconds, become
32. Frame t is centred on the log-mel frame 32 t, that is .32 t seconds.

The published weights give the logits of 527 classes; `tags` after them makes
those of a data set, from the mean and the maximum of the frames and from the
largest logit of the classes that stand for each tag. With the weights of
`zero_shot` it gives that logit as it is, else those that a probe has learned.

Inner layers: `block_1` is the stem, `block_2` to `block_16` the bottlenecks and
`block_17` the last 1x1 convolution, each with ceil(T / stride) frames.

Reference: Schmid, Koutini, Widmer, Efficient Large-Scale Audio Tagging via
Transformer-to-CNN Knowledge Distillation, ICASSP 2023, arXiv 2211.04772.
Weights: https://github.com/fschmid56/EfficientAT, MIT licence, Copyright (c)
2022 Florian Schmid.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.models import layers
from iusp_jax.models.layers import TaggerOutput
from iusp_jax.models.mobilenet import scaled
from iusp_jax.models.pretrained import audioset

# MobileNetV3-large: kernel, channels inside, channels, squeeze-and-excitation,
# hard-swish, stride.
BLOCKS = (
  (3, 16, 16, False, False, 1),
  (3, 64, 24, False, False, 2),
  (3, 72, 24, False, False, 1),
  (5, 72, 40, True, False, 2),
  (5, 120, 40, True, False, 1),
  (5, 120, 40, True, False, 1),
  (3, 240, 80, False, True, 2),
  (3, 200, 80, False, True, 1),
  (3, 184, 80, False, True, 1),
  (3, 184, 80, False, True, 1),
  (3, 480, 112, True, True, 1),
  (3, 672, 112, True, True, 1),
  (5, 672, 160, True, True, 2),
  (5, 960, 160, True, True, 1),
  (5, 960, 160, True, True, 1),
)


class _Convolution(nn.Module):
  """Convolution, BatchNorm and activation."""

  features: int
  size: int
  stride: int = 1
  activation: Any = None
  depthwise: bool = False
  dtype: Any = jnp.float32
  lowering: str = 'auto'

  @nn.compact
  def __call__(self, x_BTFH):
    conv = layers.Conv(
      self.features,
      (self.size, self.size),
      (self.stride, self.stride),
      depthwise=self.depthwise,
      centred=True,
      dtype=self.dtype,
      lowering=self.lowering,
      name='conv',
    )
    norm = layers.Norm(self.activation, dtype=self.dtype, name='norm')
    return norm(conv(x_BTFH), train=False)


class EfficientAt(nn.Module):
  """A frozen tagger: BatchNorm always takes its running statistics.

  Submodules are called as in the published file, with `_` for its points.

  Attributes:
    num_tags: outputs.
    width_multiplier: scales the channels of every layer; .4 for mn04.
    dtype: of the computation; parameters and outputs are float32.
    lowering: see `convolution`.
    axis_name: not used, as nothing is trained.
    frame_hop_seconds: from the centre of a frame embedding to the next.
    frame_span_seconds: that a frame stands for; it has seen more.
    first_frame_seconds: the centre of the first one.
  """

  frame_hop_seconds: ClassVar[float] = 0.32
  frame_span_seconds: ClassVar[float] = 0.32
  first_frame_seconds: ClassVar[float] = 0.0

  num_tags: int
  width_multiplier: float = 1.0
  dtype: Any = jnp.float32
  lowering: str = 'auto'
  axis_name: str | None = None

  def __post_init__(self):
    super().__post_init__()
    layers.check_range('EfficientAt', 'num_tags', self.num_tags, 1, 100_000)
    layers.check_range(
      'EfficientAt', 'width_multiplier', self.width_multiplier, 0.01, 8.0
    )

  @property
  def num_blocks(self) -> int:
    """How many inner layers have a name."""
    return len(BLOCKS) + 2

  @property
  def num_inner(self) -> int:
    """How many of them come before the last frame embedding."""
    return self.num_blocks - 1

  @nn.compact
  def __call__(self, mel_BTF, train: bool = False, keys_B=None):
    """Tags log-mel spectrograms [B, T, F] of `audio.kaldi_mel`."""
    del train, keys_B
    x_BTFH = self._convolve(mel_BTF[..., None], '0', self._channels(16), 3, 2)
    x_BTFH = layers.InnerLayer(name=layers.block_name(1))(x_BTFH)
    for number, block in enumerate(BLOCKS, start=1):
      x_BTFH = self._bottleneck(x_BTFH, number, *block)
      x_BTFH = layers.InnerLayer(name=layers.block_name(number + 1))(x_BTFH)
    last = str(len(BLOCKS) + 1)
    x_BTFH = self._convolve(x_BTFH, last, 6 * x_BTFH.shape[-1], 1)
    x_BTFH = layers.InnerLayer(name=layers.block_name(self.num_blocks))(x_BTFH)
    return self._tag(layers.join_frequency(x_BTFH, 'pool'))

  def _channels(self, count: int) -> int:
    return scaled(count, self.width_multiplier, 8)

  def _convolve(
    self, x_BTFH, name, features, size, stride=1, activation=nn.hard_swish
  ):
    """Of `features.<name>` of the file; depthwise where it ends in `d`."""
    return _Convolution(
      features,
      size,
      stride,
      activation,
      depthwise=name.endswith('d'),
      dtype=self.dtype,
      lowering=self.lowering,
      name=f'features_{name.removesuffix("d")}',
    )(x_BTFH)

  def _bottleneck(
    self, x_BTFH, number, size, inside, features, squeezes, is_hard, stride
  ):
    """Expand, filter each channel, weigh them, project; add the input."""
    inputs, inside = x_BTFH.shape[-1], self._channels(inside)
    features = self._channels(features)
    activation = nn.hard_swish if is_hard else nn.relu
    names = (f'{number}_block_{k}' for k in range(4))
    y_BTFH = x_BTFH
    if inside != inputs:
      y_BTFH = self._convolve(
        y_BTFH, next(names), inside, 1, activation=activation
      )
    y_BTFH = self._convolve(
      y_BTFH, f'{next(names)}d', inside, size, stride, activation
    )
    if squeezes:
      y_BTFH = self._weigh_channels(y_BTFH, next(names))
    y_BTFH = self._convolve(y_BTFH, next(names), features, 1, activation=None)
    return x_BTFH + y_BTFH if x_BTFH.shape == y_BTFH.shape else y_BTFH

  def _weigh_channels(self, x_BTFH, name):
    """Squeeze-and-excitation over time and frequency."""
    inputs = x_BTFH.shape[-1]
    name = f'features_{name}_conc_se_layers_0_fc'
    x_BH = x_BTFH.astype(jnp.float32).mean((1, 2))
    x_BH = nn.relu(nn.Dense(scaled(inputs, 0.25, 8), name=f'{name}1')(x_BH))
    x_BH = nn.sigmoid(nn.Dense(inputs, name=f'{name}2')(x_BH))
    return x_BTFH * x_BH[:, None, None].astype(x_BTFH.dtype)

  def _tag(self, frames_BTD) -> TaggerOutput:
    """Logits of the tags, of clips and frames."""
    hidden = nn.Dense(self._channels(1280), name='classifier_2')
    classes = nn.Dense(audioset.NUM_CLASSES, name='classifier_5')
    matched_CK = self.variable(
      'batch_stats', 'matched', jnp.zeros, (self.num_tags, audioset.NUM_CLASSES)
    ).value
    tags = nn.Dense(self.num_tags, name='tags')

    def logits(mean_BD, max_BD):
      classes_BK = classes(nn.hard_swish(hidden(mean_BD)))
      found_BC = _largest(classes_BK, matched_CK)
      return tags(jnp.concatenate([mean_BD, max_BD, found_BC], axis=-1))

    # A clip of nothing but one frame has it as its mean and as its maximum.
    return TaggerOutput(
      logits(frames_BTD.mean(1), frames_BTD.max(1)),
      frames_BTD,
      logits(frames_BTD, frames_BTD),
    )


def _largest(classes_BK, matched_CK):
  """The largest of the logits [..., K] of each row's classes; 0 of none."""
  taken_CK = matched_CK > 0
  shape = (1,) * (classes_BK.ndim - 1) + taken_CK.shape
  found_BCK = jnp.where(
    taken_CK.reshape(shape), classes_BK[..., None, :], -jnp.inf
  )
  any_C = taken_CK.any(-1).reshape(shape[:-1])
  return jnp.where(any_C, found_BCK.max(-1), 0.0)


# From the last two names of a variable to the end of a tensor's name.
_ENDS = {
  ('conv', 'kernel'): '_0_weight',
  ('norm', 'scale'): '_1_weight',
  ('norm', 'bias'): '_1_bias',
  ('norm', 'mean'): '_1_running_mean',
  ('norm', 'var'): '_1_running_var',
  ('kernel',): '_weight',
  ('bias',): '_bias',
}


def zero_shot(
  shapes: Mapping[str, Any],
  tensors: Mapping[str, np.ndarray],
  matched_CK: np.ndarray,
) -> dict[str, Any]:
  """Variables whose logits are the largest of the classes of each tag.

  Args:
    shapes: of the variables, see `Tagger.shapes`.
    tensors: of the published file, by name.
    matched_CK: 1 where a class stands for a tag, see `audioset.matrix`.

  Raises:
    ValueError: where tensors are missing, too many or of other shapes.
  """
  left = {
    name.replace('.', '_'): array
    for name, array in tensors.items()
    if not name.endswith('num_batches_tracked')
  }

  def convert(path, shape):
    names = tuple(part.key for part in path[1:])
    if names[0] not in ('tags', 'matched'):
      return _take(left, names, shape.shape)
    return np.zeros(shape.shape, np.float32)

  found = jax.tree_util.tree_map_with_path(convert, shapes)
  if left:
    raise ValueError(
      f'the weights have tensors that the model does not: {sorted(left)[:3]}; '
      'is it a file of another config.teacher.pretrained?'
    )
  found['batch_stats']['matched'] = matched_CK
  kernel = found['params']['tags']['kernel']
  kernel[-len(matched_CK) :] = np.eye(len(matched_CK))
  return found


def _take(left, names, shape) -> np.ndarray:
  """Takes a variable's tensor, its axes in the order that Flax has."""
  name = names[0] + _ENDS[names[1:]]
  if name not in left:
    raise ValueError(f'the weights lack {name}, of shape {shape}')
  array = left.pop(name)
  if array.ndim == 4:  # Out, in, frequency, time.
    array = array.transpose(3, 2, 1, 0)
  elif array.ndim == 2:
    array = array.T
  if array.shape != shape:
    raise ValueError(
      f'the weights have {name} of shape {array.shape}, but the model has '
      f'{shape}: is it a file of another config.teacher.pretrained?'
    )
  return np.ascontiguousarray(array, np.float32)
