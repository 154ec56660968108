"""A VGG-like convolutional tagger: the teacher, and as a narrow one a student.

Blocks of 3x3 convolution, BatchNorm and ReLU, each followed by pooling; the
channels double from block to block. Frame-rate law: the stem's stride and the
first blocks' pooling reduce time by 8 in all (`time_reduction`), so that T
log-mel frames become ceil(T / 8) frame embeddings and 998 become 125; frame j
is centred on the log-mel frames [8 j, 8 j + 8).

Inner layers: `block_i` is the output of block i, after its pooling.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from iusp_jax.models import layers
from iusp_jax.models.layers import TaggerOutput


class Cnn(nn.Module):
  """Convolutional tagger.

  Attributes:
    num_tags: outputs.
    width: channels of the first block; block i has width * 2**i.
    num_blocks: convolution blocks; each halves the frequency axis.
    convolutions_per_block: 3x3 convolutions in a block.
    stem_stride: stride in time of the first convolution: 1, or 2 or more,
      which takes the place of the first pooling steps in time and makes the
      first block that much cheaper.
    time_reduction: log-mel frames per frame embedding, a power of two.
    block_pool: 'max' or 'average', the pooling after a block.
    frequency: 'pool' (mean over frequency, D = channels) or 'flatten' (D =
      channels * frequencies) of the last feature map.
    pooling: over time, see `layers.Head`.
    dropout_rate: of the features before the last layer.
    dtype: of the computation; parameters and outputs are float32.
    lowering: see `convolution`.
    axis_name: the pmapped axis over which BatchNorm takes its statistics.
  """

  num_tags: int
  width: int = 24
  num_blocks: int = 4
  convolutions_per_block: int = 1
  stem_stride: int = 1
  time_reduction: int = 8
  block_pool: str = 'max'
  frequency: str = 'pool'
  pooling: str = 'mean_max'
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  lowering: str = 'auto'
  axis_name: str | None = None

  def __post_init__(self):
    super().__post_init__()
    layers.check_common(self)
    layers.check_range('Cnn', 'width', self.width, 1, layers.MAX_WIDTH)
    for name in ('num_blocks', 'convolutions_per_block'):
      value = getattr(self, name)
      layers.check_range('Cnn', name, value, 1, layers.MAX_REPEATS)
    powers = [2**i for i in range(self.num_blocks + 1)]
    layers.check_choice('Cnn', 'time_reduction', self.time_reduction, powers)
    strides = [i for i in powers if i <= self.time_reduction]
    layers.check_choice('Cnn', 'stem_stride', self.stem_stride, strides)
    layers.check_choice('Cnn', 'frequency', self.frequency, layers.FREQUENCIES)
    kinds = ('max', 'average')
    layers.check_choice('Cnn', 'block_pool', self.block_pool, kinds)

  @property
  def num_inner(self) -> int:
    """How many blocks come before the last frame embedding."""
    return self.num_blocks - 1

  @nn.compact
  def __call__(self, mel_BTF, train: bool = False, keys_B=None):
    """Tags log-mel spectrograms [B, T, F]."""
    x_BTFH = layers.prepare(
      mel_BTF, train, self.axis_name, self.time_reduction
    )[..., None]
    stride, left = self.stem_stride, self.time_reduction // self.stem_stride
    for block in range(self.num_blocks):
      # Time is pooled early, where it saves most, but for the stem's share.
      step = 2 if left > 1 and (block or self.stem_stride == 1) else 1
      left //= step
      for i in range(self.convolutions_per_block):
        x_BTFH = layers.Conv(
          self.width * 2**block,
          strides=(stride, 1),
          dtype=self.dtype,
          lowering=self.lowering,
        )(x_BTFH)
        stride = 1
        last = i == self.convolutions_per_block - 1
        x_BTFH = layers.Norm(
          pool=(step, 2) if last else (1, 1),
          pool_kind=self.block_pool,
          axis_name=self.axis_name,
          dtype=self.dtype,
          lowering=self.lowering,
        )(x_BTFH, train)
      x_BTFH = layers.InnerLayer(name=layers.block_name(block + 1))(x_BTFH)
    frames_BTD = layers.join_frequency(x_BTFH, self.frequency)
    head = layers.Head(self.num_tags, self.pooling, self.dropout_rate)
    logits_BC, logits_BTC = head(frames_BTD, keys_B if train else None)
    return TaggerOutput(logits_BC, frames_BTD, logits_BTC)
