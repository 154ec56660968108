"""Layers that the taggers share; axes as in `convolution`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from iusp_jax.models import convolution

FREQUENCIES = ('pool', 'flatten')
POOLINGS = ('mean_max', 'mean', 'linear_softmax', 'attention')
MAX_WIDTH = 4096  # Channels or units: no student or teacher here is wider.
MAX_REPEATS = 10  # Of a block or a convolution.


class TaggerOutput(NamedTuple):
  """What every tagger returns, in float32.

  Attributes:
    logits_BC: one logit per clip and tag.
    frames_BTD: the last frame embeddings before the pooling over time.
    frame_logits_BTC: one logit per frame and tag, see `Head`.
    layers: frames [B, T', D'] of the inner layers that `tagger.forward` was
      asked for, by name; what a module itself returns has none.
  """

  logits_BC: jax.Array
  frames_BTD: jax.Array
  frame_logits_BTC: jax.Array
  layers: Mapping[str, jax.Array] = {}


class FieldError(ValueError):
  """A field of a model that is not legal.

  Attributes:
    field: its name.
    problem: 'is 0: expected …', to follow the name.
  """

  def __init__(self, owner: str, field: str, problem: str):
    super().__init__(f'{owner}: {field} {problem}')
    self.field, self.problem = field, problem


def check_choice(owner: str, name: str, value: Any, legal) -> None:
  """Raises FieldError where a field of a model is none of the legal values."""
  if value not in legal:
    expected = f'expected one of {tuple(legal)}'
    raise FieldError(owner, name, f'is {value!r}: {expected}')


def check_range(owner: str, name: str, value: Any, low, high) -> None:
  """Raises FieldError where a field of a model is not in [low, high]."""
  if not low <= value <= high:
    expected = f'expected a number from {low} to {high}'
    raise FieldError(owner, name, f'is {value!r}: {expected}')


def check_common(model) -> None:
  """Raises FieldError where a field that every tagger has is illegal."""
  owner = type(model).__name__
  check_range(owner, 'num_tags', model.num_tags, 1, 100_000)
  check_range(owner, 'dropout_rate', model.dropout_rate, 0.0, 0.99)
  check_choice(owner, 'pooling', model.pooling, POOLINGS)
  check_choice(owner, 'lowering', model.lowering, convolution.LOWERINGS)


class Conv(nn.Module):
  """Convolution over time and frequency without a bias.

  A BatchNorm follows every one of them here and would take a bias away again.
  With `centred`, (size - 1) / 2 zeros stand on either side whatever the
  stride, as PyTorch's models have it; else padding is as in `convolution`.
  """

  features: int
  size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  pad_frequency: bool = True
  depthwise: bool = False
  centred: bool = False
  dtype: Any = jnp.float32
  lowering: str = 'auto'

  @nn.compact
  def __call__(self, x_BTFH):
    """Convolves [B, T, F, H] to [B, T', F', features]."""
    inputs = 1 if self.depthwise else x_BTFH.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.he_normal(), (*self.size, inputs, self.features)
    )
    lengths = x_BTFH.shape[1:3]
    padding = [
      convolution.same_padding(*axis)
      for axis in zip(lengths, self.size, self.strides, strict=True)
    ]
    if self.centred:
      padding = [(size // 2, size // 2) for size in self.size]
    if not self.pad_frequency:
      padding[1] = (0, 0)
    return convolution.convolve(
      x_BTFH.astype(self.dtype),
      kernel.astype(self.dtype),
      self.strides,
      padding,
      self.depthwise,
      self.lowering,
    )


class Norm(nn.Module):
  """BatchNorm over all axes but the last, then activation and pooling.

  The statistics are those of the global batch in training (over `axis_name`,
  where that is given), running averages otherwise, and always float32. One
  module does all three steps because that is much cheaper on a CPU:
  the maximum commutes with the rising (or, for a negative scale, falling)
  map after it, so that the map is only computed where the maximum is.

  Attributes:
    activation: applied after the normalisation; must be monotone.
    pool: window of pooling along T and F; (1, 1) for none.
    pool_kind: 'max' or 'average'.
    learned: whether there are a scale and a bias.
    axis_name: pmapped axis.
    dtype: of the result.
    lowering: see `convolution`.
  """

  activation: Callable[[jax.Array], jax.Array] | None = nn.relu
  pool: tuple[int, int] = (1, 1)
  pool_kind: str = 'max'
  learned: bool = True
  axis_name: str | None = None
  dtype: Any = jnp.float32
  lowering: str = 'auto'
  momentum: float = 0.9
  epsilon: float = 1e-3

  @nn.compact
  def __call__(self, x, train: bool):
    """Normalises [..., H], activates and pools."""
    scale, offset, rising = self._affine(x, train)

    def finish(x, scale, offset, pool):
      ones = (1,) * (x.ndim - 1)
      x = x * scale.reshape(*ones, -1) + offset.reshape(*ones, -1)
      x = x if self.activation is None else self.activation(x)
      return self._pool(x.astype(self.dtype), pool)

    pool = self.pool[0], self.pool[1]
    early = self.pool_kind == 'max' and pool != (1, 1)
    if early and not convolution.use_native(self.lowering):
      x = convolution.max_pool(x, pool, self.lowering, rising)
      pool = (1, 1)
    if not train:
      return finish(x, scale, offset, pool)
    # Computed again for the gradient: cheaper than writing it to memory.
    finish = jax.checkpoint(finish, static_argnums=3)
    return finish(x, scale, offset, pool)

  def _affine(self, x, train):
    """The scale [H] and offset [H] of this pass; where the scale is >= 0."""
    shape = x.shape[-1:]
    mean = self.variable('batch_stats', 'mean', jnp.zeros, shape)
    variance = self.variable('batch_stats', 'var', jnp.ones, shape)
    if train:
      now = _statistics(x, None if self.is_initializing() else self.axis_name)
      if not self.is_initializing():
        for old, new in zip((mean, variance), now, strict=True):
          old.value += (1.0 - self.momentum) * (new - old.value)
    else:
      now = mean.value, variance.value
    scale = jnp.ones(shape)
    if self.learned:
      scale = self.param('scale', nn.initializers.ones, shape)
    rising = scale >= 0
    scale = scale * jax.lax.rsqrt(now[1] + self.epsilon)
    offset = -now[0] * scale
    if self.learned:
      offset += self.param('bias', nn.initializers.zeros, shape)
    return scale, offset, rising

  def _pool(self, x, size):
    if size == (1, 1):
      return x
    if self.pool_kind == 'average':
      return convolution.average_pool(x, size)
    return convolution.max_pool(x, size, self.lowering)


def _statistics(x, axis_name):
  """Mean and variance [H] over all axes but the last, and over devices."""
  x = x.astype(jnp.float32)
  axes = tuple(range(x.ndim - 1))
  moments = x.mean(axes), jnp.square(x).mean(axes)
  if axis_name is not None:
    moments = jax.lax.pmean(moments, axis_name)
  mean, square = moments
  return mean, jnp.maximum(square - jnp.square(mean), 0.0)


class InnerLayer(nn.Module):
  """Gives a tagger's inner feature map its public name: passes it through.

  It has no parameters, so that those around it keep their names and values.
  """

  @nn.compact
  def __call__(self, x):
    """Returns `x`."""
    return x


def block_name(number: int) -> str:
  """Public name of a tagger's inner block, counted from 1.

  The block's output is found by it, see `tagger.forward`.
  """
  return f'block_{number}'


def prepare(mel_BTF, train, axis_name, time_reduction):
  """Input BatchNorm (not learned), then whole windows of `time_reduction`.

  Each mel band gets mean 0 and variance 1; the end is padded with that mean
  to a multiple of `time_reduction`, so that no layer gets half a window.
  """
  norm = Norm(None, learned=False, axis_name=axis_name, name='input_norm')
  mel_BTF = norm(mel_BTF.astype(jnp.float32), train)
  return jnp.pad(
    mel_BTF, ((0, 0), (0, -mel_BTF.shape[1] % time_reduction), (0, 0))
  )


def layer_frames(x):
  """The frames, float32 [B, T, D], of an inner layer's output.

  A feature map [B, T, F, H] is averaged over frequency, D = H, whatever
  `frequency` the model has; [B, T, D] stays as it is. T is a multiple of the
  number of frames of the last frame embedding.
  """
  return join_frequency(x, 'pool') if x.ndim == 4 else x.astype(jnp.float32)


def join_frequency(x_BTFH, how: str):
  """Frame embeddings, float32 [B, T, D], from a feature map.

  `how`: 'pool' is the mean over frequency, D = H; 'flatten' has D = F * H.
  """
  x_BTFH = x_BTFH.astype(jnp.float32)
  if how == 'pool':
    return x_BTFH.mean(axis=2)
  return x_BTFH.reshape(*x_BTFH.shape[:2], -1)


def clip_dropout(x_BD, keys_B, rate: float):
  """Dropout whose mask depends on the key of each clip alone.

  Args:
    x_BD: [B, D].
    keys_B: a random key per clip, or None, which switches dropout off.
    rate: probability of dropping a feature.
  """
  if keys_B is None or rate == 0.0:
    return x_BD

  def drop(x_D, key):
    keep = jax.random.bernoulli(key, 1.0 - rate, x_D.shape)
    return jnp.where(keep, x_D / (1.0 - rate), 0.0)

  return jax.vmap(drop)(x_BD, keys_B)


def _scan_unroll() -> int:
  """Steps of the LSTM in one round of its loop, as is fastest.

  On a GPU a step is so small that starting it takes most of the time: 125
  steps forward and backward take 3.3 ms one by one, 1.4 ms 25 at a time. On a
  CPU unrolling does not help.
  """
  return 25 if jax.default_backend() == 'gpu' else 1


class Lstm(nn.Module):
  """A forward LSTM over [B, T, D] that returns every output [B, T, hidden].

  The product of all inputs with their weights is one matrix product before
  the scan; only the recurrent product stays inside. The state is float32.
  Gates are in the order input, forget, cell, output; the forget gate's bias
  starts at 1.
  """

  hidden: int
  dtype: Any = jnp.float32
  lowering: str = 'auto'

  @nn.compact
  def __call__(self, x_BTD):
    """Runs over [B, T, D]; returns float32 [B, T, hidden]."""
    hidden = self.hidden
    inputs = nn.Dense(
      4 * hidden, use_bias=False, dtype=self.dtype, name='inputs'
    )
    kernel = self.param(
      'recurrent', nn.initializers.orthogonal(), (hidden, 4 * hidden)
    )
    bias = self.param('bias', _forget_bias, (4 * hidden,))
    x_BTD = inputs(x_BTD).astype(jnp.float32) + bias[None, None]
    zeros = jnp.zeros((x_BTD.shape[0], hidden))
    unroll = self.lowering == 'unrolled' or _scan_unroll()
    kernel = kernel.astype(self.dtype)
    return _run_lstm(x_BTD, kernel, (zeros, zeros), unroll)[0]


def continue_lstm(parameters, x_BTD, state):
  """An LSTM that goes on from a state, for sound that comes in parts.

  Args:
    parameters: of an `Lstm`.
    x_BTD: its next inputs.
    state: last output and cell, [B, hidden] each; zeros at the start.

  Returns:
    The outputs [B, T, hidden], and the next state.
  """
  x_BTD = x_BTD @ parameters['inputs']['kernel']
  x_BTD = x_BTD + parameters['bias'][None, None]
  return _run_lstm(x_BTD, parameters['recurrent'], state, unroll=True)


def _run_lstm(x_BTD, kernel, state, unroll):
  """Outputs and last state, from inputs times their weights [B, T, 4 D]."""

  def step(carry, x_BD):
    output, cell = carry
    output = output.astype(kernel.dtype)
    gates = x_BD + (output @ kernel).astype(jnp.float32)
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
    output = nn.sigmoid(o) * jnp.tanh(cell)
    return (output, cell), output

  if unroll is True:  # A scan of one step would be a loop nevertheless.
    outputs = []
    for t in range(x_BTD.shape[1]):
      state, output = step(state, x_BTD[:, t])
      outputs.append(output)
    return jnp.stack(outputs, axis=1), state
  x_TBD = jnp.swapaxes(x_BTD, 0, 1)
  state, outputs = jax.lax.scan(step, state, x_TBD, unroll=unroll)
  return jnp.swapaxes(outputs, 0, 1), state


def _forget_bias(key, shape):
  del key
  hidden = shape[0] // 4
  return jnp.zeros(shape).at[hidden : 2 * hidden].set(1.0)


def _max_over_time(x_BTD):
  """Maxima [B, D], whose gradient goes to the first of equal frames.

  The gradient of `jnp.max` compares values again, and is 0 / 0 where XLA
  computes them a second time with another rounding.
  """
  first_BD = jax.lax.stop_gradient(x_BTD).argmax(axis=1)
  taken_BTD = jnp.arange(x_BTD.shape[1])[None, :, None] == first_BD[:, None]
  return jnp.where(taken_BTD, x_BTD, 0.0).sum(axis=1)


class Head(nn.Module):
  """Tag logits of a clip and of its frames from frame embeddings; in float32.

  `pooling` over time:
    mean_max        mean plus maximum of the frames, then one dense layer.
    mean            mean of the frames, then one dense layer.
    linear_softmax  frame probabilities p weighted by themselves, sum p^2 /
                    sum p, as a logit (Wang et al., ICASSP 2019,
                    arXiv 1810.09050).
    attention       frame logits weighted by a softmax over time of each tag.

  The logits of a frame are what a clip of nothing but that frame would get:
  the dense layer of the frame, for `mean_max` of twice the frame.
  """

  num_tags: int
  pooling: str = 'mean_max'
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, frames_BTD, keys_B=None):
    """Pools float32 [B, T, D]; returns logits [B, C] and [B, T, C]."""
    dense = nn.Dense(self.num_tags, name='tags')
    # One mask of features for all frames: what is dropped stays so.
    ones = jnp.ones((frames_BTD.shape[0], frames_BTD.shape[-1]))
    mask_BD = clip_dropout(ones, keys_B, self.dropout_rate)
    if self.pooling in ('mean', 'mean_max'):
      pooled_BD, weight = frames_BTD.mean(axis=1), 1.0
      if self.pooling == 'mean_max':
        pooled_BD, weight = pooled_BD + _max_over_time(frames_BTD), 2.0
      logits_BC = dense(pooled_BD * mask_BD)
      return logits_BC, dense(frames_BTD * (weight * mask_BD)[:, None])
    frames_BTD = frames_BTD * mask_BD[:, None]
    logits_BTC = dense(frames_BTD)
    if self.pooling == 'attention':
      weights_BTC = nn.softmax(
        nn.Dense(self.num_tags, name='attention')(frames_BTD), axis=1
      )
      return (weights_BTC * logits_BTC).sum(axis=1), logits_BTC
    present, absent = nn.log_sigmoid(logits_BTC), nn.log_sigmoid(-logits_BTC)
    # logit(sum p^2 / sum p) = log sum p^2 - log sum p (1 - p).
    logits_BC = jax.nn.logsumexp(2 * present, axis=1) - jax.nn.logsumexp(
      present + absent, axis=1
    )
    return logits_BC, logits_BTC
