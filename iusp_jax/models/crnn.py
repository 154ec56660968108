"""The paper's kind of student: one convolution, one LSTM, one dense layer.

Frame-rate law: the convolution's stride and the pooling after it reduce time
by `time_reduction` in all, 8 by default: T log-mel frames become ceil(T / 8)
frame embeddings, 998 become 125; frame j depends on the log-mel frames up to
8 (j + 1) + 1, and on nothing later.

Inner layers: `block_1` is the convolution after its pooling. The LSTM's output
is the last frame embedding.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from iusp_jax.models import layers
from iusp_jax.models.layers import TaggerOutput


class Crnn(nn.Module):
  """Convolution 5x5 with stride 2, pooling in time, LSTM.

  Attributes:
    num_tags: outputs.
    width: channels of the convolution.
    hidden: units of the LSTM, the size D of a frame embedding.
    time_reduction: log-mel frames per frame embedding; even.
    block_pool: 'max' or 'average', the pooling after the convolution.
    pooling: over time, see `layers.Head`.
    dropout_rate: of the features before the last layer.
    dtype: of the computation; parameters and outputs are float32.
    lowering: see `convolution`.
    axis_name: the pmapped axis over which BatchNorm takes its statistics.
  """

  num_tags: int
  width: int = 32
  hidden: int = 64
  time_reduction: int = 8
  block_pool: str = 'max'
  pooling: str = 'mean_max'
  dropout_rate: float = 0.0
  dtype: Any = jnp.float32
  lowering: str = 'auto'
  axis_name: str | None = None

  def __post_init__(self):
    super().__post_init__()
    layers.check_common(self)
    for name in ('width', 'hidden'):
      layers.check_range('Crnn', name, getattr(self, name), 1, layers.MAX_WIDTH)
    evens = range(2, 65, 2)
    layers.check_choice('Crnn', 'time_reduction', self.time_reduction, evens)
    kinds = ('max', 'average')
    layers.check_choice('Crnn', 'block_pool', self.block_pool, kinds)

  @property
  def num_blocks(self) -> int:
    """How many inner layers have a name."""
    return 1

  @property
  def num_inner(self) -> int:
    """How many of them come before the last frame embedding."""
    return 1

  @nn.compact
  def __call__(self, mel_BTF, train: bool = False, keys_B=None):
    """Tags log-mel spectrograms [B, T, F]."""
    x_BTF = layers.prepare(mel_BTF, train, self.axis_name, self.time_reduction)
    x_BTFH = layers.Conv(
      self.width,
      size=(5, 5),
      strides=(2, 2),
      pad_frequency=False,
      dtype=self.dtype,
      lowering=self.lowering,
    )(x_BTF[..., None])
    x_BTFH = layers.Norm(
      pool=(self.time_reduction // 2, 1),
      pool_kind=self.block_pool,
      axis_name=self.axis_name,
      dtype=self.dtype,
      lowering=self.lowering,
    )(x_BTFH, train)
    x_BTFH = layers.InnerLayer(name=layers.block_name(1))(x_BTFH)
    x_BTD = x_BTFH.reshape(*x_BTFH.shape[:2], -1)
    lstm = layers.Lstm(self.hidden, dtype=self.dtype, lowering=self.lowering)
    frames_BTD = lstm(x_BTD)
    head = layers.Head(self.num_tags, self.pooling, self.dropout_rate)
    logits_BC, logits_BTC = head(frames_BTD, keys_B if train else None)
    return TaggerOutput(logits_BC, frames_BTD, logits_BTC)
