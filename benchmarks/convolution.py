"""Times the two lowerings of the models' layers side by side.

python benchmarks/convolution.py [--batch=32] [--repeats=5] [--only=layers]

  layers  one layer, forward and backward, on shapes of the default teacher
          and the smallest students
  steps   a training step (forward, backward, Adam) of whole models on
          log-mel of ten-second clips

The two sides take turns, so that other programs disturb both alike; the
ratio is what to look at. MB is what XLA sets aside for intermediate results.
"""

import argparse
import pathlib
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from iusp_jax import models
from iusp_jax.models import convolution, layers

# Name, input [T, F, H], kernel, strides; depthwise where the kernel's third
# number is 1 and the input has more channels.
CONVOLUTIONS = (
  ('first', (1000, 64, 1), (3, 3, 1, 24), (1, 1)),
  ('first, stride 2', (1000, 64, 1), (3, 3, 1, 24), (2, 1)),
  ('second', (500, 32, 24), (3, 3, 24, 48), (1, 1)),
  ('third', (250, 16, 48), (3, 3, 48, 96), (1, 1)),
  ('fourth', (125, 8, 96), (3, 3, 96, 192), (1, 1)),
  ('narrow', (500, 32, 4), (3, 3, 4, 8), (1, 1)),
  ('crnn', (1000, 20, 1), (5, 5, 1, 32), (2, 2)),
  ('pointwise', (250, 16, 16), (1, 1, 16, 96), (1, 1)),
  ('depthwise', (250, 16, 48), (3, 3, 1, 48), (1, 1)),
  ('depthwise, stride 2', (500, 32, 24), (3, 3, 1, 24), (2, 2)),
)
NORMS = (('norm + pool 2x2', (500, 32, 48), (2, 2)),)
NORMS += (('norm', (500, 32, 48), (1, 1)),)
MODELS = (
  ({'architecture': 'cnn', 'width': 16}, 64),
  ({'architecture': 'cnn', 'width': 24}, 64),
  ({'architecture': 'cnn', 'width': 24, 'stem_stride': 2}, 64),
  ({'architecture': 'cnn', 'width': 32}, 64),
  ({'architecture': 'cnn', 'width': 3}, 20),
  ({'architecture': 'crnn', 'width': 16, 'hidden': 32}, 20),
  ({'architecture': 'crnn', 'width': 32, 'hidden': 64}, 20),
  ({'architecture': 'mobilenet', 'width_multiplier': 0.1, 'expansion': 3}, 20),
)


def normal(shape, seed=0):
  """Random float32 numbers."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')


def compare(name, sides, repeats):
  """Prints a line of the table.

  Args:
    name: of the line.
    sides: lowering -> (function, arguments).
    repeats: calls of each side; the fastest counts.
  """
  calls, megabytes = {}, {}
  for lowering, (function, arguments) in sides.items():
    compiled = jax.jit(function).lower(*arguments).compile()
    calls[lowering] = lambda c=compiled, a=arguments: jax.block_until_ready(
      c(*a)
    )
    memory = compiled.memory_analysis()
    megabytes[lowering] = memory.temp_size_in_bytes / 2**20 if memory else 0
    calls[lowering]()
  best = dict.fromkeys(calls, np.inf)
  for _ in range(repeats):
    for lowering, call in calls.items():
      start = time.perf_counter()
      call()
      best[lowering] = min(best[lowering], time.perf_counter() - start)
  native, cpu = best['native'], best['cpu']
  print(
    f'{name:<40}{native * 1e3:>9.0f}{cpu * 1e3:>9.0f}{native / cpu:>7.2f}'
    f'{megabytes["native"]:>10.0f}{megabytes["cpu"]:>7.0f}',
    flush=True,
  )


def convolution_sides(batch, shape, kernel_shape, strides):
  """Forward and backward of one convolution, by lowering."""
  x, kernel = normal((batch, *shape)), normal(kernel_shape, 1)
  padding = [
    convolution.same_padding(*axis)
    for axis in zip(shape[:2], kernel_shape[:2], strides, strict=True)
  ]
  depthwise = kernel_shape[2] == 1 and shape[2] > 1
  lengths = (-(-n // s) for n, s in zip(shape[:2], strides, strict=True))
  gradient = normal((batch, *lengths, kernel_shape[3]), 2)

  def side(lowering):
    def run(x, kernel, gradient):
      y, pull = jax.vjp(
        lambda x, kernel: convolution.convolve(
          x, kernel, strides, padding, depthwise, lowering
        ),
        x,
        kernel,
      )
      of_x, of_kernel = pull(gradient)
      # The first layer of a model needs no gradient of its input.
      return (y, of_kernel) if shape[2] == 1 else (y, of_x, of_kernel)

    return run, (x, kernel, gradient)

  return {lowering: side(lowering) for lowering in ('native', 'cpu')}


def norm_sides(batch, shape, pool):
  """Forward and backward of BatchNorm, ReLU and pooling, by lowering."""
  x = normal((batch, *shape))

  def side(lowering):
    norm = layers.Norm(pool=pool, lowering=lowering)
    variables = norm.init(jax.random.key(0), x[:1], True)
    y, _ = norm.apply(variables, x, True, mutable=['batch_stats'])

    def run(variables, x, gradient):
      def f(parameters, x):
        return norm.apply(
          variables | {'params': parameters}, x, True, mutable=['batch_stats']
        )

      y, pull, _ = jax.vjp(f, variables['params'], x, has_aux=True)
      return y, pull(gradient)

    return run, (variables, x, normal(y.shape, 2))

  return {lowering: side(lowering) for lowering in ('native', 'cpu')}


def step_sides(batch, cfg, bands):
  """A training step of a model, by lowering."""
  mel, tags = normal((batch, 998, bands)), (normal((batch, 8), 1) > 0.5) * 1.0
  optimizer = optax.adam(1e-3)

  def side(lowering):
    model = models.build(cfg | {'lowering': lowering}, 8)
    variables = jax.jit(model.init)(jax.random.key(0), mel[:1])

    def run(variables, state, mel, tags):
      def loss(parameters):
        output, new = model.apply(
          variables | {'params': parameters},
          mel,
          train=True,
          mutable=['batch_stats'],
        )
        each = optax.sigmoid_binary_cross_entropy(output.logits_BC, tags)
        return each.mean(), new

      gradient, new = jax.grad(loss, has_aux=True)(variables['params'])
      updates, state = optimizer.update(gradient, state)
      parameters = optax.apply_updates(variables['params'], updates)
      return new | {'params': parameters}, state

    return run, (variables, optimizer.init(variables['params']), mel, tags)

  return {lowering: side(lowering) for lowering in ('native', 'cpu')}


def main():
  """Prints the tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--batch', type=int, default=32)
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument('--only', choices=('layers', 'steps'))
  flags = parser.parse_args()
  print(f'jax {jax.__version__}, {jax.devices()}, batch {flags.batch}')
  print(f'{"":<40}{"native":>9}{"cpu":>9}{"":>7}{"native":>10}{"cpu":>7}')
  print(f'{"":<40}{"ms":>9}{"ms":>9}{"ratio":>7}{"MB":>10}{"MB":>7}')
  if flags.only != 'steps':
    for name, *shapes in CONVOLUTIONS:
      sides = convolution_sides(flags.batch, *shapes)
      compare(f'{name} {shapes[0]} {shapes[1]}', sides, flags.repeats)
    for name, shape, pool in NORMS:
      sides = norm_sides(flags.batch, shape, pool)
      compare(f'{name} {shape}', sides, flags.repeats)
  if flags.only != 'layers':
    for cfg, bands in MODELS:
      name = ' '.join(map(str, cfg.values()))
      sides = step_sides(flags.batch, cfg, bands)
      compare(f'{name}, {bands} bands', sides, flags.repeats)


if __name__ == '__main__':
  main()
