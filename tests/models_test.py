"""The taggers: lowerings, frame-rate laws, independence of clips, config."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from iusp_jax import models
from iusp_jax.models import convolution, cost, layers, mobilenet

SMALL = {
  'cnn': {'architecture': 'cnn', 'width': 3, 'num_blocks': 3},
  'crnn': {'architecture': 'crnn', 'width': 3, 'hidden': 5},
  'mobilenet': {
    'architecture': 'mobilenet',
    'width_multiplier': 0.05,
    'depth_multiplier': 0.6,  # Of all bottlenecks one has a residual.
    'expansion': 2,
    'num_stages': 3,
  },
}
BANDS = 16


def spectrogram(clips=4, frames=64, seed=0):
  rng = np.random.default_rng(seed)
  return jnp.asarray(rng.normal(size=(clips, frames, BANDS)), jnp.float32)


def random_variables(model, seed=1, affine=True):
  """Variables in which BatchNorm does something, negative scales included.

  They are drawn here: to compile a model's own initial values takes longer
  than most tests. Without `affine`, scales are 1 and biases 0.
  """
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    value = rng.normal(size=leaf.shape).astype(np.float32)
    if 'batch_stats' in name:
      return abs(value) + np.float32(0.5) if 'var' in name else value
    if 'scale' in name or 'bias' in name:
      return value if affine else np.full_like(value, 'scale' in name)
    fan_in = np.prod(leaf.shape[:-1])
    return value * np.float32(np.sqrt(2 / fan_in))

  shapes = jax.eval_shape(model.init, jax.random.key(0), spectrogram(1))
  return jax.tree_util.tree_map_with_path(fill, shapes)


@functools.cache
def evaluate(model):
  """A model's compiled `apply`, in evaluation."""
  return jax.jit(model.apply)


def make(name, **fields):
  return models.build(SMALL[name] | fields, 4)


# Convolution and pooling ----------------------------------------------------


def native_and_cpu_agree(
  shape, kernel_shape, strides, padding, depthwise, seed=0
):
  """In the value, which it gives, and in both gradients.

  XLA's convolution gets its input padded: where there is more padding than taps
  its own gradient is wrong on a CPU (of 9 frames and 3 taps, 3 zeros before).
  """
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=shape), jnp.float32)
  kernel = jnp.asarray(rng.normal(size=kernel_shape), jnp.float32)

  @functools.partial(jax.jit, static_argnums=2)
  def run(x, kernel, lowering):
    def f(x, kernel):
      zeros = padding
      if lowering == 'native':
        x, zeros = jnp.pad(x, ((0, 0), *padding, (0, 0))), ((0, 0), (0, 0))
      return convolution.convolve(
        x, kernel, strides, zeros, depthwise, lowering
      )

    y, pull = jax.vjp(f, x, kernel)
    return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

  native = run(x, kernel, 'native')
  for got, expected in zip(run(x, kernel, 'cpu'), native, strict=True):
    np.testing.assert_allclose(got, expected, atol=3e-5, rtol=1e-5)
  return native[0]


@settings(max_examples=10)
@given(
  seed=st.integers(0, 99),
  outputs=st.sampled_from([3, 48]),  # Few, with bands folded in; many.
  size=st.tuples(st.integers(1, 5), st.integers(1, 4)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 2)),
  depthwise=st.booleans(),
  length=st.integers(5, 9),
)
def test_cpu_convolution_is_native_convolution(
  seed, outputs, size, strides, depthwise, length
):
  padding = [
    convolution.same_padding(*axis)
    for axis in zip((length, 6), size, strides, strict=True)
  ]
  kernel = (*size, 1, 4) if depthwise else (*size, 4, outputs)
  y = native_and_cpu_agree(
    (2, length, 6, 4), kernel, strides, padding, depthwise, seed
  )
  assert y.shape[1:3] == (-(-length // strides[0]), -(-6 // strides[1]))


ZEROS = st.tuples(st.integers(0, 3), st.integers(0, 3))
PADDED = {'shape': (7, 3), 'strides': (1, 1), 'padding': ((1, 1), (0, 2))}


@settings(max_examples=10)
@given(
  shape=st.tuples(st.integers(5, 9), st.sampled_from([1, 3, 5, 7])),
  size=st.tuples(st.integers(1, 5), st.integers(1, 4)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  padding=st.tuples(ZEROS, ZEROS),
  outputs=st.sampled_from([None, None, 3, 80]),  # None: depthwise.
)
@example(size=(1, 1), outputs=3, **PADDED)
@example(size=(1, 1), outputs=None, **PADDED)
@example(size=(1, 2), outputs=3, **PADDED)  # Folded: 1 x 1 along time.
@example((6, 1), (3, 1), (2, 1), ((0, 3), (2, 0)), 3)  # Along time alone.
@example((9, 1), (3, 3), (1, 1), ((3, 1), (3, 2)), None)  # Many zeros.
def test_cpu_convolution_of_odd_bands_with_uneven_padding(
  shape, size, strides, padding, outputs
):
  lacking = max(0, size[1] - shape[1] - sum(padding[1]))
  padding = (padding[0], (padding[1][0] + lacking, padding[1][1]))
  depthwise = outputs is None
  kernel = (*size, 1, 4) if depthwise else (*size, 4, outputs)
  native_and_cpu_agree((2, *shape, 4), kernel, strides, padding, depthwise)


def test_convolution_by_definition():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 7, 5, 2)), rng.normal(size=(3, 3, 2, 3))
  padded = np.pad(x, ((0, 0), (0, 1), (1, 1), (0, 0)))
  expected = np.zeros((1, 3, 5, 3))
  for t in range(3):
    for f in range(5):
      window = padded[0, 2 * t : 2 * t + 3, f : f + 3]
      expected[0, t, f] = np.tensordot(window, kernel, 3)
  for lowering in ('native', 'cpu'):
    got = convolution.convolve(
      jnp.asarray(x, jnp.float32),
      jnp.asarray(kernel, jnp.float32),
      (2, 1),
      ((0, 1), (1, 1)),
      lowering=lowering,
    )
    np.testing.assert_allclose(got[:, :3], expected, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(1, 2))
def max_pool_and_gradient(x, size, lowering, rising):
  y, pull = jax.vjp(
    lambda x: convolution.max_pool(x, size, lowering, rising), x
  )
  return y, *pull(jnp.cos(jnp.arange(y.size)).reshape(y.shape))


@pytest.mark.parametrize('size', [(2, 2), (1, 2), (4, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize('ties', [False, True])
def test_cpu_max_pooling_is_native_max_pooling(size, ties):
  rng = np.random.default_rng(0)
  values = (
    rng.integers(0, 2, (2, 9, 5, 3)) if ties else rng.normal(size=(2, 9, 5, 3))
  )
  x = jnp.asarray(values, jnp.float32)
  for rising in (None, jnp.asarray([True, False, True])):
    cpu, native = (
      max_pool_and_gradient(x, size, lowering, rising)
      for lowering in ('cpu', 'native')
    )
    for got, expected in zip(cpu, native, strict=True):
      np.testing.assert_array_equal(got, expected)


def test_average_pooling_counts_what_is_inside():
  x = np.random.default_rng(0).normal(size=(1, 5, 3, 2))
  got = convolution.average_pool(jnp.asarray(x, jnp.float32), (2, 2))
  assert got.shape == (1, 3, 2, 2)
  np.testing.assert_allclose(got[0, 0, 0], x[0, :2, :2].mean((0, 1)), rtol=1e-5)
  np.testing.assert_allclose(got[0, 2, 1], x[0, 4, 2], rtol=1e-5)


# Normalisation ---------------------------------------------------------------


@pytest.mark.parametrize('pool', [(1, 1), (2, 2)])
@pytest.mark.parametrize('lowering', ['native', 'cpu'])
def test_norm_by_definition(pool, lowering):
  rng = np.random.default_rng(0)
  x = rng.normal(2.0, 3.0, (3, 4, 6, 2))
  scale, bias = np.array([1.5, -0.7]), np.array([0.2, 0.4])
  model = layers.Norm(pool=pool, lowering=lowering)
  statistics = {'mean': jnp.zeros(2), 'var': jnp.ones(2)}
  parameters = {'scale': jnp.asarray(scale), 'bias': jnp.asarray(bias)}
  y, new = model.apply(
    {'params': parameters, 'batch_stats': statistics},
    jnp.asarray(x, jnp.float32),
    True,
    mutable=['batch_stats'],
  )
  mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
  expected = (x - mean) / np.sqrt(variance + 1e-3) * scale + bias
  expected = np.maximum(expected, 0)
  expected = expected.reshape(
    3, 4 // pool[0], pool[0], 6 // pool[1], pool[1], 2
  )
  np.testing.assert_allclose(y, expected.max((2, 4)), atol=1e-5)
  new = new['batch_stats']
  np.testing.assert_allclose(new['mean'], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(new['var'], 0.9 + 0.1 * variance, rtol=1e-5)


def test_statistics_are_those_of_the_global_batch():
  devices = jax.local_device_count()
  assert devices > 1  # See conftest.py.
  mel = spectrogram()
  alone = make('cnn')
  shared = models.build(SMALL['cnn'], 4, axis_name='data')
  variables = random_variables(alone, seed=2)

  def loss(model, parameters, mel):
    output, new = model.apply(
      variables | {'params': parameters},
      mel,
      train=True,
      mutable=['batch_stats'],
    )
    return jnp.sin(output.logits_BC).mean(), new

  def spread(parameters, mel):
    gradient, new = jax.grad(loss, 1, has_aux=True)(shared, parameters, mel)
    return jax.lax.pmean(gradient, 'data'), new

  got = jax.pmap(spread, 'data', in_axes=(None, 0), devices=jax.devices()[:2])(
    variables['params'], mel.reshape(2, 2, *mel.shape[1:])
  )
  single = jax.jit(jax.grad(loss, 1, has_aux=True), static_argnums=0)
  expected = single(alone, variables['params'], mel)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b, atol=1e-5), got, expected
  )


# Taggers ---------------------------------------------------------------------


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('frames', [64, 61])
def test_shapes(name, frames):
  model, mel = make(name), spectrogram(3, frames)
  output, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), mel)
  assert output.logits_BC.shape == (3, 4)
  assert output.frames_BTD.shape[:2] == (3, 8)
  assert output.logits_BC.dtype == output.frames_BTD.dtype == jnp.float32


@pytest.mark.parametrize('name', SMALL)
def test_unrolled_is_native_without_loops(name):
  model, mel = make(name), spectrogram()
  variables = random_variables(model)
  found, loops = [], []
  for lowering in ('native', 'unrolled'):
    run = jax.jit(model.clone(lowering=lowering).apply)
    loops.append('while' in run.lower(variables, mel).as_text())
    found.append(run(variables, mel))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *found)
  assert loops == [name == 'crnn', False]


@pytest.mark.parametrize('name', SMALL)
def test_lowerings_agree(name):
  mel = spectrogram()
  model = make(name)
  variables = random_variables(model)

  def run(lowering):
    def f(parameters, mel):
      output, new = model.clone(lowering=lowering).apply(
        variables | {'params': parameters},
        mel,
        train=True,
        mutable=['batch_stats'],
      )
      return jnp.sin(output.logits_BC).sum() + output.frames_BTD.mean(), new

    return jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(
      variables['params'], mel
    )

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4, rtol=1e-3),
    run('cpu'),
    run('native'),
  )


@pytest.mark.parametrize(
  ('name', 'fields'),
  [
    ('cnn', {}),
    ('cnn', {'stem_stride': 2, 'block_pool': 'average'}),
    ('cnn', {'convolutions_per_block': 2, 'frequency': 'flatten'}),
    ('mobilenet', {}),
    ('mobilenet', {'stem_stride': 4}),
    ('mobilenet', {'stem_stride': 8, 'depth_multiplier': 0.3}),
  ],
)
def test_a_time_reduction_later_is_a_frame_later(name, fields):
  mel, model = spectrogram(1, 320), make(name, **fields)
  variables = random_variables(model)
  late = jnp.roll(mel, 8, axis=1)
  frames = evaluate(model)(variables, mel).frames_BTD
  moved = evaluate(model)(variables, late).frames_BTD
  np.testing.assert_allclose(moved[:, 11:30], frames[:, 10:29], atol=1e-4)
  assert float(jnp.ptp(frames[:, 10:29], axis=1).max()) > 0.01


def test_crnn_does_not_see_the_future():
  mel, model = spectrogram(1, 160), make('crnn')
  variables = random_variables(model)
  frames = evaluate(model)(variables, mel).frames_BTD
  changed = evaluate(model)(variables, mel.at[:, 82:].add(1.0)).frames_BTD
  # Frame 9 depends on the log-mel frames up to 8 * 10 + 1 = 81.
  np.testing.assert_array_equal(changed[:, :10], frames[:, :10])
  assert float(abs(changed[:, 10] - frames[:, 10]).max()) > 1e-4


@pytest.mark.parametrize('name', SMALL)
def test_clips_are_independent_in_evaluation(name):
  mel, model = spectrogram(), make(name)
  variables = random_variables(model)
  whole = evaluate(model)(variables, mel)
  order = jnp.asarray([2, 0, 3, 1])
  shuffled = evaluate(model)(variables, mel[order])
  others = evaluate(model)(variables, mel.at[1:].add(1.0))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b[order], atol=1e-5),
    shuffled,
    whole,
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[0], atol=1e-5),
    others,
    whole,
  )
  assert float(abs(others.logits_BC - whole.logits_BC)[1:].max()) > 1e-3


@pytest.mark.parametrize('name', SMALL)
def test_bfloat16_is_near_float32(name):
  mel, model = spectrogram(), make(name)
  variables = random_variables(model)
  half = make(name, dtype='bfloat16')
  own = jax.eval_shape(half.init, jax.random.key(0), mel)
  assert {leaf.dtype for leaf in jax.tree.leaves(own)} == {jnp.dtype('float32')}
  got = evaluate(half)(variables, mel)
  expected = evaluate(model)(variables, mel)
  for a, b in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.05 * float(abs(b).max()))
    assert float(abs(a - b).max()) > 0


@pytest.mark.parametrize('name', SMALL)
def test_gradients_are_finite_on_silence(name):
  mel, model = jnp.full((4, 64, BANDS), np.log(0.01)), make(name)
  variables = random_variables(model, affine=False)

  def loss(parameters):
    output, _ = model.apply(
      variables | {'params': parameters},
      mel,
      train=True,
      mutable=['batch_stats'],
    )
    return jnp.square(output.logits_BC).sum() + output.frames_BTD.sum()

  value, gradient = jax.jit(jax.value_and_grad(loss))(variables['params'])
  assert np.isfinite(value)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize('pooling', layers.POOLINGS)
def test_pooling_of_equal_or_huge_frames_has_finite_gradients(pooling):
  """Silence gives equal frames; a diverging model gives huge ones."""
  head = layers.Head(4, pooling)
  dense = {'kernel': np.ones((3, 4), 'f4'), 'bias': np.zeros(4, 'f4')}
  parameters = {'tags': dense, 'attention': dense}

  @jax.jit
  def run(parameters, frames):
    return jax.value_and_grad(
      lambda p, x: sum(
        jnp.square(logits).sum() for logits in head.apply({'params': p}, x)
      ),
      (0, 1),
    )(parameters, frames)

  for value in (0.0, -4.6, 1e4, -1e4):
    found = run(parameters, jnp.full((2, 5, 3), value))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_lstm_is_the_same_unrolled_for_a_gpu(monkeypatch):
  lstm = layers.Lstm(3)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 27, 4)))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(
    lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
    jax.eval_shape(lstm.init, jax.random.key(0), x),
  )
  assert layers._scan_unroll() == 1
  one_by_one = jax.jit(lstm.apply)(variables, x)
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'default_backend', lambda: 'gpu')
    unroll = layers._scan_unroll()
  assert unroll == 25
  monkeypatch.setattr(layers, '_scan_unroll', lambda: unroll)
  many = jax.jit(lambda *inputs: lstm.apply(*inputs))(variables, x)
  np.testing.assert_allclose(many, one_by_one, atol=1e-6)
  macs = 2 * 27 * (4 + 3) * 12
  assert cost.count_macs(lstm.apply, variables, x) == macs


def test_mean_max_by_definition():
  frames = jnp.asarray([[[1.0, -3.0], [4.0, -1.0], [4.0, -2.0]]])
  head = layers.Head(1)
  variables = {
    'params': {'tags': {'kernel': jnp.ones((2, 1)), 'bias': jnp.zeros(1)}}
  }
  value, gradient = jax.value_and_grad(
    lambda frames: head.apply(variables, frames)[0].sum()
  )(frames)
  np.testing.assert_allclose(value, 3 + 4 - 2 - 1)
  # The first of equal frames has the maximum's whole gradient.
  expected = 1 / 3 + np.array([[0, 0], [1, 1], [0, 0]])
  np.testing.assert_allclose(gradient[0], expected, rtol=1e-6)


def test_linear_softmax_by_definition():
  frames = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 3)))
  head = layers.Head(4, 'linear_softmax')
  variables = head.init(jax.random.key(0), frames)
  kernel = np.asarray(variables['params']['tags']['kernel'], np.float64)
  p = 1 / (1 + np.exp(-np.asarray(frames, np.float64) @ kernel))
  expected = (p**2).sum(1) / p.sum(1)
  got = jax.nn.sigmoid(head.apply(variables, frames)[0])
  np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize('pooling', layers.POOLINGS)
def test_a_frame_gets_the_logits_of_a_clip_of_nothing_else(pooling):
  frames = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 5)), 'f4')
  head = layers.Head(3, pooling, 0.5)
  variables = jax.jit(head.init)(jax.random.key(0), frames)
  keys = jax.random.split(jax.random.key(3), 4)
  for key in (None, keys):  # Frames have the dropout mask of their clip.
    found = head.apply(variables, frames, key)[1]
    assert found.shape == (4, 8, 3)
    repeated = jnp.repeat(frames[:, 5:6], 7, axis=1)
    alone = head.apply(variables, repeated, key)[0]
    np.testing.assert_allclose(found[:, 5], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('pooling', ['mean_max', 'attention'])
def test_dropout_follows_the_key_of_the_clip(pooling):
  frames = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 5)), 'f4')
  head = layers.Head(4, pooling, 0.5)
  variables = jax.jit(head.init)(jax.random.key(0), frames)
  run = jax.jit(lambda *inputs: head.apply(*inputs)[0])
  keys = jax.random.split(jax.random.key(3), 4)
  whole, order = run(variables, frames, keys), jnp.asarray([2, 0, 3, 1])
  np.testing.assert_allclose(
    run(variables, frames[order], keys[order]), whole[order], atol=1e-5
  )
  np.testing.assert_allclose(
    run(variables, frames[1:2], keys[1:2])[0], whole[1], atol=1e-5
  )
  assert float(abs(run(variables, frames, keys[::-1]) - whole).max()) > 1e-3
  plain, _ = layers.Head(4, pooling).apply(variables, frames)
  np.testing.assert_allclose(run(variables, frames, None), plain, atol=1e-5)


def test_keys_drop_out_in_training_only():
  mel, model = spectrogram(), make('crnn', dropout_rate=0.5)
  variables = random_variables(model)
  keys = jax.random.split(jax.random.key(3), 4)
  plain = evaluate(model)(variables, mel).logits_BC
  np.testing.assert_array_equal(
    evaluate(model)(variables, mel, keys_B=keys).logits_BC, plain
  )

  @jax.jit
  def train(keys):
    output, _ = model.apply(variables, mel, True, keys, mutable=['batch_stats'])
    return output.logits_BC

  assert float(abs(train(None) - train(keys)).max()) > 1e-3


def test_dropout_keeps_the_mean():
  x = jnp.ones((500, 40))
  keys = jax.random.split(jax.random.key(0), 500)
  dropped = layers.clip_dropout(x, keys, 0.3)
  np.testing.assert_allclose(jnp.unique(dropped), [0.0, 1 / 0.7], rtol=1e-6)
  np.testing.assert_allclose(dropped.mean(), 1.0, atol=0.02)


def parameters_of(cfg, num_tags, bands):
  model = models.build(cfg, num_tags)
  mel = jax.ShapeDtypeStruct((1, 998, bands), jnp.float32)
  output, variables = jax.eval_shape(
    model.init_with_output, jax.random.key(0), mel
  )
  assert output.frames_BTD.shape[1] == 125
  return cost.count_parameters(variables), output.frames_BTD.shape[2]


def test_numbers_of_parameters():
  # The public peer's 83,784 have a bias in the convolution (32) where ours
  # has BatchNorm (64), and two biases of 256 in the LSTM where ours has one.
  crnn = {'architecture': 'crnn', 'width': 32, 'hidden': 64}
  assert parameters_of(crnn, 8, 20) == (83_784 - 32 + 64 - 256, 64)
  # MobileNetV2 without its classifier has 2,223,872; ours gets one channel
  # instead of three.
  full = {'architecture': 'mobilenet', 'channel_divisor': 8}
  expected = 2_223_872 - 2 * 9 * 32 + 1280 * 8 + 8
  assert parameters_of(full, 8, 64) == (expected, 1280)
  widths = [1, 24, 48, 96, 192]
  kernels = sum(9 * a * b for a, b in itertools.pairwise(widths))
  expected = kernels + 2 * sum(widths[1:]) + 192 * 8 + 8
  assert parameters_of({'architecture': 'cnn'}, 8, 64) == (expected, 192)
  flat = {'architecture': 'cnn', 'frequency': 'flatten'}
  assert parameters_of(flat, 8, 64)[1] == 192 * 4


@given(st.integers(1, 2000), st.floats(0.01, 4.0), st.sampled_from([1, 4, 8]))
def test_scaled_channels(channels, multiplier, divisor):
  got = mobilenet.scaled(channels, multiplier, divisor)
  assert got % divisor == 0
  assert got >= divisor
  assert got >= 0.9 * channels * multiplier
  assert got <= channels * multiplier + divisor


# Config ----------------------------------------------------------------------


def test_build_takes_a_config_dict():
  model = models.build(ConfigDict(SMALL['cnn'] | {'dtype': 'bfloat16'}), 7)
  assert (model.width, model.num_tags) == (3, 7)
  assert model.dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({}, 'no field architecture.*cnn'),
    ({'architecture': 'crn'}, "architecture: 'crn'.*Did you mean 'crnn'"),
    ({'architecture': 'crnn', 'hiden': 3}, "'hiden'.*Did you mean 'hidden'"),
    ({'architecture': 'crnn', 'num_tags': 3}, 'num_tags'),
    ({'architecture': 'crnn', 'hidden': '64'}, "hidden.*'64'"),
    ({'architecture': 'crnn', 'hidden': True}, 'hidden.*True'),
    ({'architecture': 'crnn', 'hidden': 0}, 'hidden is 0'),
    ({'architecture': 'crnn', 'time_reduction': 5}, 'time_reduction is 5'),
    ({'architecture': 'crnn', 'pooling': 'max'}, "pooling is 'max'.*mean_max"),
    ({'architecture': 'crnn', 'dtype': 'float16'}, 'dtype.*bfloat16'),
    ({'architecture': 'crnn', 'dtype': 'floaty'}, 'dtype.*bfloat16'),
    ({'architecture': 'cnn', 'lowering': 'fast'}, "lowering is 'fast'"),
    ({'architecture': 'cnn', 'dropout_rate': 1.0}, 'dropout_rate is 1.0'),
    ({'architecture': 'cnn', 'block_pool': 'min'}, "block_pool is 'min'"),
    ({'architecture': 'cnn', 'frequency': 'mean'}, "frequency is 'mean'"),
    ({'architecture': 'cnn', 'time_reduction': 32}, 'time_reduction is 32'),
    ({'architecture': 'cnn', 'stem_stride': 3}, 'stem_stride is 3'),
    ({'architecture': 'mobilenet', 'width_multiplier': 0.0}, 'width_multipl'),
    ({'architecture': 'mobilenet', 'expansion': 0}, 'expansion is 0'),
    ({'architecture': 'mobilenet', 'num_stages': 2}, 'num_stages is 2'),
    ({'architecture': 'mobilenet', 'stem_stride': 16}, 'stem_stride is 16'),
  ],
)
def test_build_refuses(fields, message):
  with pytest.raises(ValueError, match=message):
    models.build(fields, 4)


def test_build_refuses_no_tags():
  with pytest.raises(ValueError, match='num_tags is 0'):
    models.build(SMALL['cnn'], 0)
