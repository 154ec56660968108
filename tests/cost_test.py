"""Multiply-accumulates against closed forms."""

import jax
import jax.numpy as jnp
import pytest

from iusp_jax import models
from iusp_jax.models import convolution, cost, layers


def test_dense_and_batched_products():
  a, b = jnp.zeros((5, 7, 11)), jnp.zeros((5, 11, 3))
  assert cost.count_macs(jnp.matmul, a, b) == 5 * 7 * 11 * 3


@pytest.mark.parametrize('strides', [(1, 1), (2, 1), (2, 2)])
def test_convolution(strides):
  x, kernel = jnp.zeros((2, 12, 8, 4)), jnp.zeros((3, 5, 4, 6))
  pads = ((1, 1), (2, 2))
  outputs = 2 * (12 // strides[0]) * (8 // strides[1]) * 6
  macs = cost.count_macs(
    lambda x, k: convolution.convolve(x, k, strides, pads, lowering='native'),
    x,
    kernel,
  )
  assert macs == outputs * 3 * 5 * 4


def test_depthwise_convolution():
  x, kernel = jnp.zeros((2, 12, 8, 4)), jnp.zeros((3, 3, 1, 4))
  macs = cost.count_macs(
    lambda x, k: convolution.convolve(
      x, k, (1, 1), ((1, 1), (1, 1)), depthwise=True, lowering='native'
    ),
    x,
    kernel,
  )
  assert macs == 2 * 12 * 8 * 4 * 9


def test_lstm_counts_every_step():
  model = layers.Lstm(hidden=6)
  x = jnp.zeros((2, 13, 5))
  variables = model.init(jax.random.key(0), x)
  expected = 2 * 13 * (5 * 24 + 6 * 24)
  assert cost.count_macs(model.apply, variables, x) == expected


def test_nested_functions():
  w = jnp.zeros((4, 4))

  def scanned(x):
    body = jax.checkpoint(jax.jit(lambda x, _: (x @ w, None)))
    return jax.lax.scan(body, x, None, length=10)[0]

  def either(x):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

  @jax.custom_jvp
  def custom(x):
    return x @ w

  custom.defjvp(lambda p, t: (custom(*p), custom(*t)))
  x = jnp.zeros((3, 4))
  one = 3 * 4 * 4
  assert cost.count_macs(scanned, x) == 10 * one
  assert cost.count_macs(either, x) == 2 * one
  assert cost.count_macs(lambda x: jax.vmap(custom)(x[None]), x) == one
  assert cost.count_macs(jnp.sin, x) == 0


def test_what_no_output_depends_on_is_not_counted():
  w = jnp.zeros((4, 4))

  def both(x):
    return x @ w @ w, x.T @ w

  one = 4 * 4 * 4
  assert cost.count_macs(both, w) == 3 * one
  assert cost.count_macs(lambda x: both(x)[0], w) == 2 * one
  assert cost.count_macs(lambda x: both(x)[1], w) == one


def test_refuses_products_in_a_loop_without_an_end():
  def endless(x):
    return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ x, x)

  with pytest.raises(ValueError, match='while_loop'):
    cost.count_macs(endless, jnp.ones((2, 2)))


def test_crnn_in_closed_form():
  model = models.build({'architecture': 'crnn', 'width': 32, 'hidden': 64}, 8)
  convolved = 500 * 8 * 32 * 25
  recurrent = 125 * 256 * (256 + 64)
  expected = convolved + recurrent + 64 * 8
  assert cost.count_tagger_macs(model, (1, 998, 20)) == expected
  assert cost.count_tagger_macs(model, (3, 998, 20)) == 3 * expected
  text = cost.summary(model, (1, 998, 20))
  assert text.endswith(f'83,560 parameters, {expected:,} multiply-accumulates')
  assert 'Lstm_0/recurrent' in text


def test_depthwise_layers_of_a_model_are_counted():
  model = models.build(
    {'architecture': 'mobilenet', 'width_multiplier': 0.05, 'expansion': 1}, 2
  )
  shape = (1, 64, 64)
  native = cost.count_tagger_macs(model, shape)
  variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
  # On the CPU a depthwise convolution is elementwise, which is not counted.
  assert native > cost.count_macs(
    model.clone(lowering='cpu').apply, variables, jnp.zeros(shape)
  )


@pytest.mark.parametrize('architecture', models.ARCHITECTURES)
def test_what_a_model_costs_does_not_depend_on_how_it_is_computed(architecture):
  """On the CPU narrow maps are folded, and products with zeros come to it."""
  model = models.build({'architecture': architecture}, 3)
  native, cpu = (
    cost.count_tagger_macs(model.clone(lowering=lowering), (1, 64, 20))
    for lowering in ('native', 'cpu')
  )
  assert native == cpu > 0


def test_count_parameters_leaves_statistics_out():
  variables = {
    'params': {'a': jnp.zeros((2, 3)), 'b': jnp.zeros(4)},
    'batch_stats': {'mean': jnp.zeros(100)},
  }
  assert cost.count_parameters(variables) == 10
  assert cost.count_parameters(variables['params']) == 10
