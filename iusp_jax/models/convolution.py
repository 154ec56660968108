"""Convolution and pooling with the lowering that the platform likes.

A convolution keeps its usual kernel [height, width, in, out] and its meaning,
and is computed in one of these ways:

  'native'  by XLA's convolution and pooling, gradients included;
  'cpu'     as is fastest on a CPU: the kernel's gradient as matrix products
            of a few clips (XLA's own takes 2 to 4 times as long), the input's
            gradient as a convolution like the forward one (2 to 9 times), a
            small map with few channels with its bands among the channels, a
            depthwise convolution as a sum of shifted products (10 times), max
            pooling as a maximum of shifted slices that remembers which one it
            took;
  'unrolled'  as 'native', and an LSTM's loop is written out step by step, for
            formats that have no loops;
  'auto'    'cpu' where JAX runs on the CPU, else 'native'.

They agree to rounding; `benchmarks/convolution.py` times them. 'cpu' has
reverse-mode gradients only. To count operations or to export, ask for
'native': `model.clone(lowering='native')`.

Axes are [B, T, F, H]: clip, frame, mel band, channel. Padding is explicit and
does not depend on the length: output i of stride s is centred on the inputs
[i * s, i * s + s), and ceil(length / s) outputs come out.
"""

import functools
import operator
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

LOWERINGS = ('auto', 'native', 'unrolled', 'cpu')

IN_CACHE = 800_000  # Bytes that a CPU works on at a time.


def use_native(lowering: str) -> bool:
  """Whether a layer calls XLA's own convolution and pooling."""
  if lowering not in LOWERINGS:
    raise ValueError(f'lowering is {lowering!r}; expected one of {LOWERINGS}.')
  if lowering == 'auto':
    return jax.default_backend() != 'cpu'
  return lowering in ('native', 'unrolled')


def same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
  """Zeros before and after an axis; as 'SAME' for multiples of the stride."""
  low = max(0, size - stride) // 2
  outputs = -(-length // stride)
  return low, max(0, (outputs - 1) * stride + size - length - low)


def _shifts(x_BTFH, size, strides, padding=((0, 0), (0, 0))):
  """Every shifted and strided slice of the padded input, row by row."""
  x_BTFH = jnp.pad(x_BTFH, ((0, 0), *padding, (0, 0)))
  spans = [
    (n - k) // s * s + 1
    for n, k, s in zip(x_BTFH.shape[1:3], size, strides, strict=True)
  ]
  return [
    x_BTFH[:, i : i + spans[0] : strides[0], j : j + spans[1] : strides[1]]
    for i in range(size[0])
    for j in range(size[1])
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
  alone = kernel.shape[:2] == strides == (1, 1) and not np.any(padding)
  if alone and not depthwise:
    return x_BTFH @ kernel[0, 0]
  height, width, _, outputs = kernel.shape
  along_time = x_BTFH.shape[2] == width == 1
  if not depthwise and not along_time:
    return _native(x_BTFH, kernel, strides, padding, depthwise)
  slices = _shifts(x_BTFH, (height, width), strides, padding)
  if not depthwise:
    return jnp.concatenate(slices, axis=-1) @ kernel.reshape(-1, outputs)
  taps = kernel.reshape(height * width, 1, 1, 1, outputs)
  products = [x * tap for x, tap in zip(slices, taps, strict=True)]
  return functools.reduce(operator.add, products)


def _input_gradient(x_BTFH, kernel, strides, padding, depthwise, gradient_BTFH):
  """The input's gradient: again a convolution."""
  height, width = kernel.shape[:2]
  # Behind the barrier XLA does not fold the transposition into the convolution,
  # which in a loop would leave it to a path 2 to 9 times as slow.
  back = jnp.flip(kernel, (0, 1))
  back = back if depthwise else back.swapaxes(2, 3)
  back = jax.lax.optimization_barrier(back)
  spread = [
    (size - 1 - low, length + low - 1 - (outputs - 1) * stride, stride - 1)
    for length, size, stride, (low, _), outputs in zip(
      x_BTFH.shape[1:3],
      (height, width),
      strides,
      padding,
      gradient_BTFH.shape[1:3],
      strict=True,
    )
  ]
  zero = jnp.zeros((), gradient_BTFH.dtype)
  gradient_BTFH = jax.lax.pad(
    gradient_BTFH, zero, [(0, 0, 0), *spread, (0, 0, 0)]
  )
  return _forward(gradient_BTFH, back, (1, 1), ((0, 0), (0, 0)), depthwise)


def _kernel_gradient(x_BTFH, gradient_BTFH, shape, strides, padding, depthwise):
  """The kernel's gradient, in float32, of a few clips."""
  height, width, inputs, outputs = shape
  slices = _shifts(x_BTFH, (height, width), strides, padding)
  if depthwise:
    sums = [
      (x * gradient_BTFH).sum((0, 1, 2), dtype=jnp.float32) for x in slices
    ]
    return jnp.stack(sums).reshape(shape)
  gradient = gradient_BTFH.reshape(-1, outputs)
  rows = []
  for i in range(0, height * width, width):
    # A row of the kernel in one product: enough columns for few channels.
    patches = jnp.concatenate(slices[i : i + width], axis=-1)
    rows.append(
      jax.lax.dot_general(
        patches.reshape(-1, width * inputs),
        gradient,
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
      )
    )
  return jnp.stack(rows).reshape(shape)


def _merged(x_BTFH):
  """All bands' channels as the channels of one band."""
  return x_BTFH.reshape(*x_BTFH.shape[:2], 1, -1)


def _clips_in_cache(x_BTFH, gradient_BTFH) -> int:
  """Clips at a time whose shifted copies stay in the cache; divides B."""
  batch = len(x_BTFH)
  at_most = IN_CACHE * batch // (x_BTFH.nbytes + gradient_BTFH.nbytes)
  counts = range(1, max(1, min(at_most, batch)) + 1)
  return max(count for count in counts if batch % count == 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def _convolve_cpu(x_BTFH, kernel, strides, padding, depthwise, bands=0):
  """Where `bands` are given, the kernel takes merged bands and gives so many.

  Merging here, and in the loop on the way back, keeps the change of shape out
  of the operations around it, which XLA would then index number by number.
  """
  if not bands:
    return _forward(x_BTFH, kernel, strides, padding, depthwise)
  result = _forward(_merged(x_BTFH), kernel, strides, padding, depthwise)
  return result.reshape(*result.shape[:2], bands, -1)


def _convolve_cpu_forward(x_BTFH, kernel, strides, padding, depthwise, bands):
  result = _convolve_cpu(x_BTFH, kernel, strides, padding, depthwise, bands)
  return result, (x_BTFH, kernel)


def _convolve_cpu_backward(
  strides, padding, depthwise, bands, saved, gradient_BTFH
):
  x_BTFH, kernel = saved
  few = _clips_in_cache(x_BTFH, gradient_BTFH)

  def of_clips(i, carry):
    total, pulled_BTFH = carry
    x_bTFH, gradient_bTFH = (
      jax.lax.dynamic_slice_in_dim(array, i * few, few)
      for array in (x_BTFH, gradient_BTFH)
    )
    if bands:
      x_bTFH, gradient_bTFH = _merged(x_bTFH), _merged(gradient_bTFH)
    total += _kernel_gradient(
      x_bTFH, gradient_bTFH, kernel.shape, strides, padding, depthwise
    )
    pulled = _input_gradient(
      x_bTFH, kernel, strides, padding, depthwise, gradient_bTFH
    )
    pulled_BTFH = jax.lax.dynamic_update_slice_in_dim(
      pulled_BTFH, pulled.reshape(few, *x_BTFH.shape[1:]), i * few, 0
    )
    return total, pulled_BTFH

  start = jnp.zeros(kernel.shape, jnp.float32), jnp.zeros_like(x_BTFH)
  total, pulled_BTFH = jax.lax.fori_loop(0, len(x_BTFH) // few, of_clips, start)
  return pulled_BTFH, total.astype(kernel.dtype)


_convolve_cpu.defvjp(_convolve_cpu_forward, _convolve_cpu_backward)


def _is_small(x_BTFH, kernel, strides) -> bool:
  """Whether `_fold_frequency` is faster, by benchmarks/convolution.py."""
  height, width, inputs, outputs = kernel.shape
  bands = x_BTFH.shape[2]
  numbers = bands * inputs * -(-bands // strides[1]) * outputs
  return (height, width) != (1, 1) and numbers <= 5000


def _fold_frequency(x_BTFH, kernel, strides, padding):
  """A convolution along time alone, whose channels are all bands' channels.

  Most of its kernel is zero; with few bands and channels its matrix products
  still take a half to a quarter of the time of a convolution with a handful of
  channels.
  """
  bands, inputs = x_BTFH.shape[2:]
  height, width, _, outputs = kernel.shape
  low, high = padding[1]
  bands_out = (bands + low + high - width) // strides[1] + 1
  # Which band the tap j of an output band g covers.
  met = np.arange(width)[:, None] + strides[1] * np.arange(bands_out) - low
  taps_jfg = met[:, None] == np.arange(bands)[:, None]
  taps_jfg = jnp.asarray(taps_jfg, kernel.dtype)
  kernel_fgiho = jnp.tensordot(taps_jfg, kernel, ((0,), (1,)))
  kernel = kernel_fgiho.transpose(2, 0, 3, 1, 4).reshape(
    height, 1, bands * inputs, bands_out * outputs
  )
  strides, padding = (strides[0], 1), (padding[0], (0, 0))
  return _convolve_cpu(x_BTFH, kernel, strides, padding, False, bands_out)


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
  strides, padding = tuple(strides), tuple(padding)
  if use_native(lowering):
    return _native(x_BTFH, kernel, strides, padding, depthwise)
  if not depthwise and _is_small(x_BTFH, kernel, strides):
    return _fold_frequency(x_BTFH, kernel, strides, padding)
  return _convolve_cpu(x_BTFH, kernel, strides, padding, depthwise)


def average_pool(x_BTFH: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Means of windows that do not overlap, over what lies inside the input."""
  padding = [(0, -n % k) for n, k in zip(x_BTFH.shape[1:3], size, strict=True)]
  inside = np.pad(np.ones(x_BTFH.shape[1:3]), padding)[None, ..., None]
  starts = [(i, j) for i in range(size[0]) for j in range(size[1])]
  parts = [inside[:, i :: size[0], j :: size[1]] for i, j in starts]
  weight = (1 / np.sum(parts, axis=0)).astype(x_BTFH.dtype)
  total = functools.reduce(operator.add, _shifts(x_BTFH, size, size, padding))
  return total * weight


def max_pool(
  x_BTFH: jax.Array,
  size: tuple[int, int],
  lowering: str = 'auto',
  rising_H: jax.Array | None = None,
) -> jax.Array:
  """Maxima of windows that do not overlap; ceil(length / size) of them.

  Args:
    x_BTFH: input [B, T, F, H].
    size: of a window along T and F.
    lowering: see the module.
    rising_H: bool; minima instead for the channels where it is False. This is
      what is left of the maximum when it is taken before an affine map of a
      negative slope. None: maxima.

  Returns:
    [B, T', F', H]; of equal values the gradient goes to the first one.
  """
  padding = [(0, -n % k) for n, k in zip(x_BTFH.shape[1:3], size, strict=True)]
  if use_native(lowering):
    if rising_H is not None:
      sign = jnp.where(rising_H, 1, -1).astype(x_BTFH.dtype)[None, None, None]
      return sign * max_pool(sign * x_BTFH, size, lowering)
    # At most one row is the same padding by name, which jax2onnx 0.17 reads
    # where it passes over numbers.
    same = all(high <= 1 for _, high in padding)
    return nn.max_pool(
      x_BTFH,
      window_shape=size,
      strides=size,
      padding='SAME' if same else padding,  # pyright: ignore
    )
  if tuple(size) == (1, 1):
    return x_BTFH
  if rising_H is None:
    rising_H = jnp.ones(x_BTFH.shape[-1], bool)
  # Repeating the edge changes no maximum, and the first of equals is inside.
  for axis, (_, high) in enumerate(padding, start=1):
    # Not by `jnp.pad`: its gradient adds arrays of zeros for every other side.
    edge = jax.lax.slice_in_dim(x_BTFH, -1, None, axis=axis)
    x_BTFH = jnp.concatenate([x_BTFH, *[edge] * high], axis)
  return _max_pool_cpu(x_BTFH, rising_H, tuple(size))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _max_pool_cpu(x_BTFH, rising_H, size):
  slices = _shifts(x_BTFH, size, size)
  return jnp.where(
    rising_H[None, None, None],
    functools.reduce(jnp.maximum, slices),
    functools.reduce(jnp.minimum, slices),
  )


def _max_pool_cpu_forward(x_BTFH, rising_H, size):
  result = _max_pool_cpu(x_BTFH, rising_H, size)
  first = len(_shifts(x_BTFH, size, size)) - 1
  for i, x in reversed(list(enumerate(_shifts(x_BTFH, size, size)[:-1]))):
    first = jnp.where(x == result, i, first)
  return result, jnp.asarray(first, jnp.int32)


def _max_pool_cpu_backward(size, first, gradient_BTFH):
  batch, length, bands, channels = gradient_BTFH.shape
  place = np.arange(size[0] * size[1]).reshape(1, 1, size[0], 1, size[1], 1)
  gradient = jnp.where(
    first[:, :, None, :, None] == place, gradient_BTFH[:, :, None, :, None], 0
  )
  shape = (batch, length * size[0], bands * size[1], channels)
  return gradient.reshape(shape), None


_max_pool_cpu.defvjp(_max_pool_cpu_forward, _max_pool_cpu_backward)
