"""Layers that the taggers share, each with the lowering its platform likes.

A convolution keeps its usual parameter (`kernel` [height, width, in, out]) and
its meaning, and is computed in one of two ways:

  'native'  by XLA's convolution and pooling, gradients included;
  'cpu'     as is fastest on a CPU: the kernel's gradient as matrix products
            clip by clip (XLA's own is 2 to 4 times slower there), a depthwise
            convolution as a sum of shifted products (10 times), max pooling
            as a maximum of shifted slices;
  'auto'    'cpu' where JAX runs on the CPU, else 'native'.

The two agree to rounding; `benchmarks/convolution.py` times them. 'cpu' has
reverse-mode gradients only. To count operations or to export, ask for
'native': `model.clone(lowering='native')`.

Axes are [B, T, F, H]: clip, frame, mel band, channel. Padding is explicit and
does not depend on the length: output i of stride s is centred on the inputs
[i * s, i * s + s), and ceil(length / s) outputs come out.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


class TaggerOutput(NamedTuple):
  """What every tagger returns, in float32.

  Attributes:
    logits_BC: one logit per clip and tag.
    frames_BTD: the last frame embeddings before the pooling over time.
  """

  logits_BC: jax.Array
  frames_BTD: jax.Array


POOLINGS = ('mean_max', 'mean', 'linear_softmax', 'attention')
LOWERINGS = ('auto', 'native', 'cpu')


def check_choice(owner: str, name: str, value: Any, legal) -> None:
  """Raises ValueError where a field of a model is none of the legal values."""
  if value not in legal:
    raise ValueError(
      f'{owner}: {name} is {value!r}; expected one of {tuple(legal)}.'
    )


def check_common(model) -> None:
  """Raises ValueError where a field that every tagger has is illegal."""
  owner = type(model).__name__
  check_range(owner, 'num_tags', model.num_tags, 1)
  check_range(owner, 'dropout_rate', model.dropout_rate, 0.0, 0.99)
  check_choice(owner, 'pooling', model.pooling, POOLINGS)
  check_choice(owner, 'lowering', model.lowering, LOWERINGS)


def check_range(owner: str, name: str, value: Any, low, high=math.inf) -> None:
  """Raises ValueError where a field of a model is not in [low, high]."""
  if not low <= value <= high:
    raise ValueError(
      f'{owner}: {name} is {value!r}; expected a value from {low} to {high}.'
    )


def use_native(lowering: str) -> bool:
  """Whether a layer calls XLA's own convolution and pooling."""
  if lowering not in LOWERINGS:
    raise ValueError(f'lowering is {lowering!r}; expected one of {LOWERINGS}.')
  if lowering == 'auto':
    return jax.default_backend() != 'cpu'
  return lowering == 'native'


def _padding(length: int, size: int, stride: int) -> tuple[int, int]:
  """Zeros before and after an axis; as 'SAME' for multiples of the stride."""
  low = max(0, size - stride) // 2
  outputs = -(-length // stride)
  return low, max(0, (outputs - 1) * stride + size - length - low)


def _shifts(x_BTFH, size, strides):
  """Every shifted and strided slice of a padded input, height by width."""
  spans = [
    (n - k) // s + 1
    for n, k, s in zip(x_BTFH.shape[1:3], size, strides, strict=True)
  ]
  for i in range(size[0]):
    for j in range(size[1]):
      yield x_BTFH[
        :,
        i : i + (spans[0] - 1) * strides[0] + 1 : strides[0],
        j : j + (spans[1] - 1) * strides[1] + 1 : strides[1],
      ]


def _native(x_BTFH, kernel, strides, padding, depthwise):
  """XLA's convolution, channels last."""
  return jax.lax.conv_general_dilated(
    x_BTFH,
    kernel,
    strides,
    padding,
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x_BTFH.shape[-1] if depthwise else 1,
  )


def _forward(x_BTFH, kernel, strides, padding, depthwise):
  """The fastest forward pass on a CPU."""
  if not depthwise:
    return _native(x_BTFH, kernel, strides, padding, depthwise)
  height, width, _, outputs = kernel.shape
  taps = kernel.reshape(height * width, 1, 1, 1, outputs)
  x_BTFH = jnp.pad(x_BTFH, ((0, 0), *padding, (0, 0)))
  slices = _shifts(x_BTFH, (height, width), strides)
  products = [x * tap for x, tap in zip(slices, taps, strict=True)]
  return functools.reduce(operator.add, products)


def _kernel_gradient(x_TFH, gradient_TFH, kernel, strides, padding, depthwise):
  """One clip's gradient of the kernel, in float32."""
  height, width, inputs, outputs = kernel.shape
  x_BTFH = jnp.pad(x_TFH[None], ((0, 0), *padding, (0, 0)))
  slices = list(_shifts(x_BTFH, (height, width), strides))
  if depthwise:
    sums = [
      (x[0] * gradient_TFH).sum((0, 1), dtype=jnp.float32) for x in slices
    ]
    return jnp.stack(sums).reshape(kernel.shape)
  gradient = gradient_TFH.reshape(-1, outputs)
  rows = []
  for i in range(0, height * width, width):
    # A whole row of the kernel a product: enough columns for few channels.
    patches = jnp.concatenate(slices[i : i + width], axis=-1)
    rows.append(
      jax.lax.dot_general(
        patches.reshape(-1, width * inputs),
        gradient,
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
    )
  return jnp.stack(rows).reshape(kernel.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve_cpu(x_BTFH, kernel, strides, padding, depthwise):
  return _forward(x_BTFH, kernel, strides, padding, depthwise)


def _convolve_cpu_forward(x_BTFH, kernel, strides, padding, depthwise):
  result = _forward(x_BTFH, kernel, strides, padding, depthwise)
  return result, (x_BTFH, kernel)


def _convolve_cpu_backward(strides, padding, depthwise, saved, gradient_BTFH):
  x_BTFH, kernel = saved
  geometry = (strides, padding, depthwise)
  _, pull = jax.vjp(lambda x: _forward(x, kernel, *geometry), x_BTFH)

  def add(total, clip):
    return total + _kernel_gradient(*clip, kernel, *geometry), None

  # Clip by clip: shifted copies of one clip stay in the cache.
  total = jnp.zeros(kernel.shape, jnp.float32)
  total, _ = jax.lax.scan(add, total, (x_BTFH, gradient_BTFH))
  return pull(gradient_BTFH)[0], total.astype(kernel.dtype)


_convolve_cpu.defvjp(_convolve_cpu_forward, _convolve_cpu_backward)


def convolve(
  x_BTFH: jax.Array,
  kernel: jax.Array,
  strides: Sequence[int] = (1, 1),
  padding: Sequence[tuple[int, int]] = ((0, 0), (0, 0)),
  depthwise: bool = False,
  lowering: str = 'auto',
) -> jax.Array:
  """Two-dimensional convolution (correlation) with explicit padding.

  Args:
    x_BTFH: input [B, T, F, H].
    kernel: [height, width, H, out]; depthwise [height, width, 1, H].
    strides: along T and F.
    padding: zeros before and after T and F.
    depthwise: one filter a channel.
    lowering: see the module.

  Returns:
    [B, T', F', out] in the dtype of `x_BTFH`.
  """
  function = _native if use_native(lowering) else _convolve_cpu
  return function(x_BTFH, kernel, tuple(strides), tuple(padding), depthwise)


class Conv(nn.Module):
  """Convolution over time and frequency without a bias.

  A BatchNorm follows every one of them here and would take a bias away again.
  """

  features: int
  size: tuple[int, int] = (3, 3)
  strides: tuple[int, int] = (1, 1)
  pad_frequency: bool = True
  depthwise: bool = False
  dtype: Any = jnp.float32
  lowering: str = 'auto'

  @nn.compact
  def __call__(self, x_BTFH):
    """Convolves [B, T, F, H] to [B, T', F', features]."""
    inputs = 1 if self.depthwise else x_BTFH.shape[-1]
    kernel = self.param(
      'kernel', nn.initializers.he_normal(), (*self.size, inputs, self.features)
    )
    padding = [
      _padding(n, k, s)
      for n, k, s in zip(
        x_BTFH.shape[1:3], self.size, self.strides, strict=True
      )
    ]
    if not self.pad_frequency:
      padding[1] = (0, 0)
    return convolve(
      x_BTFH.astype(self.dtype),
      kernel.astype(self.dtype),
      self.strides,
      padding,
      self.depthwise,
      self.lowering,
    )


def pool(x_BTFH, size, kind: str, lowering: str = 'auto'):
  """Non-overlapping pooling of T and F; a last, partial window counts whole.

  Args:
    x_BTFH: input [B, T, F, H].
    size: window, and stride, along T and F.
    kind: 'max', or 'average' (over what lies inside the input).
    lowering: see the module.

  Returns:
    [B, ceil(T / size[0]), ceil(F / size[1]), H].
  """
  size = tuple(size)
  if size == (1, 1):
    return x_BTFH
  padding = [
    _padding(n, k, k) for n, k in zip(x_BTFH.shape[1:3], size, strict=True)
  ]
  if kind == 'average':
    pads = ((0, 0), *padding, (0, 0))
    slices = _shifts(jnp.pad(x_BTFH, pads), size, size)
    inside = np.pad(np.ones((1, *x_BTFH.shape[1:3], 1), x_BTFH.dtype), pads)
    count = sum(_shifts(inside, size, size))
    return functools.reduce(operator.add, slices) * (1 / count)
  if kind != 'max':
    raise ValueError(
      f"kind of pooling is {kind!r}; expected 'max' or 'average'"
    )
  if use_native(lowering):
    return nn.max_pool(
      x_BTFH,
      window_shape=size,
      strides=size,
      padding=padding,  # pyright: ignore[reportArgumentType]
    )
  pads = ((0, 0), *padding, (0, 0))
  if any(high for _, high in padding):
    x_BTFH = jnp.pad(x_BTFH, pads, constant_values=-jnp.inf)
  return functools.reduce(jnp.maximum, _shifts(x_BTFH, size, size))


def batch_norm(train, axis_name, dtype=jnp.float32, **fields):
  """BatchNorm with the statistics of the global batch over `axis_name`."""
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-3,
    axis_name=axis_name,
    dtype=dtype,
    **fields,
  )


def normalise_bands(mel_BTF, train, axis_name):
  """Input BatchNorm: each mel band to mean 0 and variance 1; not learned."""
  norm = batch_norm(
    train, axis_name, use_scale=False, use_bias=False, name='input_norm'
  )
  return norm(mel_BTF.astype(jnp.float32))


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


class Lstm(nn.Module):
  """A forward LSTM over [B, T, D] that returns every output [B, T, hidden].

  The product of all inputs with their weights is one matrix product before
  the scan; only the recurrent product stays inside. The state is float32.
  Gates are in the order input, forget, cell, output; the forget gate's bias
  starts at 1.
  """

  hidden: int
  unroll: int = 4
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x_BTD):
    """Runs over [B, T, D]; returns float32 [B, T, hidden]."""
    hidden = self.hidden
    x_BTD = nn.Dense(
      4 * hidden, use_bias=False, dtype=self.dtype, name='inputs'
    )(x_BTD)
    kernel = self.param(
      'recurrent', nn.initializers.orthogonal(), (hidden, 4 * hidden)
    )
    bias = self.param('bias', _forget_bias, (4 * hidden,))
    x_TBD = jnp.swapaxes(x_BTD.astype(jnp.float32) + bias[None, None], 0, 1)
    kernel = kernel.astype(self.dtype)

    def step(carry, x_BD):
      output, cell = carry
      gates = x_BD + (output.astype(self.dtype) @ kernel).astype(jnp.float32)
      i, f, g, o = jnp.split(gates, 4, axis=-1)
      cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
      output = nn.sigmoid(o) * jnp.tanh(cell)
      return (output, cell), output

    zeros = jnp.zeros((x_TBD.shape[1], hidden))
    _, outputs = jax.lax.scan(step, (zeros, zeros), x_TBD, unroll=self.unroll)
    return jnp.swapaxes(outputs, 0, 1)


def _forget_bias(key, shape):
  del key
  hidden = shape[0] // 4
  return jnp.zeros(shape).at[hidden : 2 * hidden].set(1.0)


class Head(nn.Module):
  """Tag logits of a clip from its frame embeddings; all in float32.

  `pooling` over time:
    mean_max        mean plus maximum of the frames, then one dense layer.
    mean            mean of the frames, then one dense layer.
    linear_softmax  frame probabilities p weighted by themselves, sum p^2 /
                    sum p, as a logit (Wang et al., ICASSP 2019,
                    arXiv 1810.09050).
    attention       frame logits weighted by a softmax over time of each tag.
  """

  num_tags: int
  pooling: str = 'mean_max'
  dropout_rate: float = 0.0

  @nn.compact
  def __call__(self, frames_BTD, keys_B=None):
    """Pools float32 [B, T, D] over time; returns logits [B, C]."""
    dense = nn.Dense(self.num_tags, name='tags')
    # One mask of features for all frames: what is dropped stays so.
    ones = jnp.ones((frames_BTD.shape[0], frames_BTD.shape[-1]))
    mask_BD = clip_dropout(ones, keys_B, self.dropout_rate)
    if self.pooling in ('mean', 'mean_max'):
      pooled_BD = frames_BTD.mean(axis=1)
      if self.pooling == 'mean_max':
        pooled_BD = pooled_BD + frames_BTD.max(axis=1)
      return dense(pooled_BD * mask_BD)
    frames_BTD = frames_BTD * mask_BD[:, None]
    logits_BTC = dense(frames_BTD)
    if self.pooling == 'attention':
      weights_BTC = nn.softmax(
        nn.Dense(self.num_tags, name='attention')(frames_BTD), axis=1
      )
      return (weights_BTC * logits_BTC).sum(axis=1)
    present, absent = nn.log_sigmoid(logits_BTC), nn.log_sigmoid(-logits_BTC)
    # logit(sum p^2 / sum p) = log sum p^2 - log sum p (1 - p).
    return jax.nn.logsumexp(2 * present, axis=1) - jax.nn.logsumexp(
      present + absent, axis=1
    )
