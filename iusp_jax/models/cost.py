"""What a model costs: parameters, and multiply-accumulates (MACs).

MACs are counted in the jaxpr, operation by operation. XLA's own
`cost_analysis` counts the body of a scan once, which makes an LSTM look ten
times cheaper than it is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core


def count_parameters(variables: Mapping[str, Any]) -> int:
  """Number of trained parameters.

  Args:
    variables: a model's variables, or its parameters alone. Running
      statistics of BatchNorm are not counted; they fold into the weights.
  """
  parameters = variables.get('params', variables)
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters))


def count_macs(fn: Callable, *args, **kwargs) -> int:
  """Multiply-accumulates of one call of `fn`, from its jaxpr.

  Matrix products and convolutions are counted (grouped ones by group, zeros
  of the padding included, as is usual); the bodies of scans as often as they
  run; of a `cond` the dearest branch. What no output depends on is left out,
  as the compiler leaves it out. Elementwise operations, reductions and
  FFTs are not.

  Args:
    fn: any traceable function.
    *args: its arguments; arrays or `jax.ShapeDtypeStruct`.
    **kwargs: its keyword arguments.

  Raises:
    ValueError: where products stand in a `while_loop`, whose number of rounds
      is not known.
  """
  return _count(jax.make_jaxpr(fn)(*args, **kwargs).jaxpr)


def clip_logits(model: nn.Module) -> Callable:
  """The function of variables and log-mel whose MACs are a tagger's.

  Its convolutions have the 'native' lowering, in which a depthwise one is
  visible as such; the logits of single frames are no part of it.
  """
  native = model.clone(lowering='native')
  return lambda *args: native.apply(*args).logits_BC  # pyright: ignore


def count_tagger_macs(model: nn.Module, mel_shape: Sequence[int]) -> int:
  """MACs of a tagger in evaluation on log-mel [B, T, F] of `mel_shape`.

  See `clip_logits`.
  """
  mel_BTF = jax.ShapeDtypeStruct(tuple(mel_shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), mel_BTF)
  return count_macs(clip_logits(model), variables, mel_BTF)


def summary(model: nn.Module, mel_shape: Sequence[int]) -> str:
  """Parameters of a tagger's layers as lines of text, MACs in the last one.

  Args:
    model: a tagger.
    mel_shape: [B, T, F] of its input; MACs are for the whole batch.
  """
  mel_BTF = jax.ShapeDtypeStruct(tuple(mel_shape), jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), mel_BTF)
  lines = []
  for path, leaf in jax.tree.leaves_with_path(variables['params']):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape = 'x'.join(map(str, leaf.shape))
    lines.append(f'{name:<40} {shape:>16} {math.prod(leaf.shape):>12,}')
  parameters = count_parameters(variables)
  macs = count_tagger_macs(model, mel_shape)
  lines.append(f'{parameters:,} parameters, {macs:,} multiply-accumulates')
  return '\n'.join(lines)


def _count(jaxpr) -> int:
  """MACs of a jaxpr's equations that its outputs depend on."""
  needed, total = {v for v in jaxpr.outvars if isinstance(v, core.Var)}, 0
  for equation in reversed(jaxpr.eqns):
    if equation.effects or not needed.isdisjoint(equation.outvars):
      needed.update(v for v in equation.invars if isinstance(v, core.Var))
      total += _count_equation(equation)
  return total


def _count_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    depth = math.prod(shape[axis] for axis in contracted)
    return depth * math.prod(equation.outvars[0].aval.shape)
  if name == 'conv_general_dilated':
    _, inputs, *spatial = params['dimension_numbers'].rhs_spec
    shape = equation.invars[1].aval.shape
    depth = shape[inputs] * math.prod(shape[axis] for axis in spatial)
    return depth * math.prod(equation.outvars[0].aval.shape)
  counts = [_count(jaxpr) for jaxpr in _inner(params)]
  if name == 'scan':
    return params['length'] * sum(counts)
  if name == 'cond':
    return max(counts)
  if name == 'while' and sum(counts):
    raise ValueError(
      'count_macs found matrix products inside a while_loop, which may run '
      'any number of times; write it as a scan, or as a fori_loop with '
      'constant bounds.'
    )
  return sum(counts)


def _inner(params) -> Iterator[core.Jaxpr]:
  """The jaxprs among an equation's parameters."""
  for value in params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, core.ClosedJaxpr):
        yield item.jaxpr
      elif isinstance(item, core.Jaxpr):
        yield item
