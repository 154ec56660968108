"""What a model costs: parameters, and multiply-accumulates from its jaxpr.

XLA's own analysis counts the body of a scan once, which misses nearly all of
a recurrent model.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def count_parameters(variables: Any) -> int:
  """Numbers in a tree of arrays."""
  return sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables))


def count_macs(fn: Callable, *args: Any) -> int:
  """Multiply-accumulates of the products and convolutions of `fn(*args)`.

  Elementwise work is not counted. A scan counts its body as often as it
  runs, a conditional its dearest branch.
  """
  return _macs(jax.make_jaxpr(fn)(*args).jaxpr)


def _macs(jaxpr) -> int:
  return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
  name, params = equation.primitive.name, equation.params
  out = math.prod(equation.outvars[0].aval.shape) if equation.outvars else 0
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return out * math.prod(shape[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    channels_out = kernel[params['dimension_numbers'].rhs_spec[0]]
    return out * math.prod(kernel) // channels_out
  if name == 'while':
    raise ValueError('a while loop has no countable cost: use a scan')
  inner = [
    _macs(getattr(part, 'jaxpr', part))
    for value in params.values()
    for part in (value if isinstance(value, list | tuple) else [value])
    if hasattr(part, 'eqns') or hasattr(part, 'jaxpr')
  ]
  if name == 'cond':
    return max(inner, default=0)
  return sum(inner) * (params['length'] if name == 'scan' else 1)
