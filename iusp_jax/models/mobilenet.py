"""MobileNetV2 for log-mel spectrograms, down to tiny widths.

Frame-rate law: the stem and the first stages with a stride reduce time by 8 in
all: T log-mel frames become ceil(T / 8) frame embeddings, 998 become 125;
frame j is centred on the log-mel frames [8 j, 8 j + 8). Later stages reduce
the frequency axis only (by 32 with all 7 stages) and keep the frames, which
distillation compares.

Inner layers: `block_1` is the stem, `block_2` to `block_{n-1}` are the
bottlenecks, the residual sum included, and `block_n` is the last 1x1
convolution.

Reference: Sandler et al., MobileNetV2, CVPR 2018, arXiv 1801.04381.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from iusp_jax.models import layers
from iusp_jax.models.layers import TaggerOutput

# Table 2 of the paper, channels and repeats, with our strides along time and
# frequency. The first stage does not expand.
STAGES = (
  (16, 1, (1, 1)),
  (24, 2, (2, 2)),
  (32, 3, (2, 2)),
  (64, 4, (1, 2)),
  (96, 3, (1, 1)),
  (160, 3, (1, 2)),
  (320, 1, (1, 1)),
)


def scaled(channels: int, multiplier: float, divisor: int) -> int:
  """Channels times the multiplier, to the nearest multiple of `divisor`.

  At least one `divisor`, and never less than 90 % of what was asked for.
  """
  wanted = channels * multiplier
  result = max(divisor, int(wanted + divisor / 2) // divisor * divisor)
  return result + divisor if result < 0.9 * wanted else result


class MobileNet(nn.Module):
  """MobileNetV2: inverted residuals with depthwise convolutions.

  Attributes:
    num_tags: outputs.
    width_multiplier: scales the channels of every layer, the last included.
    depth_multiplier: scales how often the block of a stage is repeated (as
      EfficientNet's, arXiv 1905.11946); at least once.
    expansion: of the channels inside a block; 6 in the paper.
    num_stages: of the 7 of the paper, from the first on; 3 have all the
      strides in time.
    stem_stride: of the first convolution along time, 2, 4 or 8; its kernel is
      one longer, so that no frame is passed over. With 4 the second stage with
      a stride has none along time, with 8 the first neither.
    channel_divisor: channels are multiples of this; 8 in the paper.
    frequency: 'pool' (mean over frequency) or 'flatten' of the last map.
    pooling: over time, see `layers.Head`.
    dropout_rate: of the features before the last layer.
    dtype: of the computation; parameters and outputs are float32.
    lowering: see `convolution`.
    axis_name: the pmapped axis over which BatchNorm takes its statistics.
  """

  num_tags: int
  width_multiplier: float = 1.0
  depth_multiplier: float = 1.0
  expansion: int = 6
  num_stages: int = len(STAGES)
  stem_stride: int = 2
  channel_divisor: int = 4
  frequency: str = 'pool'
  pooling: str = 'mean_max'
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  lowering: str = 'auto'
  axis_name: str | None = None

  def __post_init__(self):
    super().__post_init__()
    layers.check_common(self)
    owner = 'MobileNet'
    for name in ('width_multiplier', 'depth_multiplier'):
      layers.check_range(owner, name, getattr(self, name), 0.01, 8.0)
    for name in ('expansion', 'channel_divisor'):
      layers.check_range(owner, name, getattr(self, name), 1, 64)
    layers.check_range(owner, 'num_stages', self.num_stages, 3, len(STAGES))
    layers.check_choice(owner, 'stem_stride', self.stem_stride, (2, 4, 8))
    layers.check_choice(owner, 'frequency', self.frequency, layers.FREQUENCIES)

  @property
  def num_blocks(self) -> int:
    """How many inner layers have a name."""
    return len(self._bottlenecks()) + 2

  @property
  def num_inner(self) -> int:
    """How many of them come before the last frame embedding."""
    return self.num_blocks - 1

  def _bottlenecks(self) -> list[tuple[int, int, tuple[int, int]]]:
    """Channels, expansion and strides of each bottleneck."""
    reduction, found = self.stem_stride, []
    for stage, (count, repeats, strides) in enumerate(
      STAGES[: self.num_stages]
    ):
      expansion = self.expansion if stage else 1
      strides = min(strides[0], 8 // reduction), strides[1]
      reduction *= strides[0]
      for i in range(max(1, round(repeats * self.depth_multiplier))):
        strides = (1, 1) if i else strides
        found.append((self._channels(count), expansion, strides))
    return found

  def _channels(self, count: int) -> int:
    """The paper's channels, scaled."""
    return scaled(count, self.width_multiplier, self.channel_divisor)

  @nn.compact
  def __call__(self, mel_BTF, train: bool = False, keys_B=None):
    """Tags log-mel spectrograms [B, T, F]."""

    x_BTF = layers.prepare(mel_BTF, train, self.axis_name, 8)
    x_BTFH = self._convolve(
      x_BTF[..., None],
      self._channels(32),
      train,
      size=(self.stem_stride + 1, 3),  # Covers all that it strides over.
      strides=(self.stem_stride, 2),
    )
    x_BTFH = layers.InnerLayer(name=layers.block_name(1))(x_BTFH)
    for number, settings in enumerate(self._bottlenecks(), start=2):
      x_BTFH = self._bottleneck(x_BTFH, *settings, train)
      x_BTFH = layers.InnerLayer(name=layers.block_name(number))(x_BTFH)
    x_BTFH = self._convolve(x_BTFH, self._channels(1280), train, size=(1, 1))
    x_BTFH = layers.InnerLayer(name=layers.block_name(self.num_blocks))(x_BTFH)
    frames_BTD = layers.join_frequency(x_BTFH, self.frequency)
    head = layers.Head(self.num_tags, self.pooling, self.dropout_rate)
    logits_BC, logits_BTC = head(frames_BTD, keys_B if train else None)
    return TaggerOutput(logits_BC, frames_BTD, logits_BTC)

  def _convolve(self, x_BTFH, features, train, activation=nn.relu6, **fields):
    """Convolution, BatchNorm and activation."""
    x_BTFH = layers.Conv(
      features, dtype=self.dtype, lowering=self.lowering, **fields
    )(x_BTFH)
    norm = layers.Norm(
      activation,
      axis_name=self.axis_name,
      dtype=self.dtype,
      lowering=self.lowering,
    )
    return norm(x_BTFH, train)

  def _bottleneck(self, x_BTFH, features, expansion, strides, train):
    """Expand, filter each channel, project; add the input where it fits."""
    inputs = x_BTFH.shape[-1]
    y_BTFH, wide = x_BTFH, inputs * expansion
    if expansion > 1:
      y_BTFH = self._convolve(y_BTFH, wide, train, size=(1, 1))
    y_BTFH = self._convolve(
      y_BTFH, wide, train, strides=strides, depthwise=True
    )
    y_BTFH = self._convolve(y_BTFH, features, train, None, size=(1, 1))
    same = strides == (1, 1) and features == inputs
    return x_BTFH + y_BTFH if same else y_BTFH
