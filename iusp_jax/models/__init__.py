"""Audio taggers in Flax linen: log-mel in, logits and frame embeddings out."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from iusp_jax.models.cnn import Cnn
from iusp_jax.models.crnn import Crnn
from iusp_jax.models.ensemble import Ensemble
from iusp_jax.models.layers import FieldError, TaggerOutput
from iusp_jax.models.mobilenet import MobileNet
from iusp_jax.models.pretrained.efficientat import EfficientAt

__all__ = ['ARCHITECTURES', 'FieldError', 'TaggerOutput', 'build', 'check_name']

ARCHITECTURES: dict[str, type[nn.Module]] = {
  'cnn': Cnn,
  'crnn': Crnn,
  'mobilenet': MobileNet,
}
# Of teachers that others trained: no config trains them.
_FROZEN: dict[str, type[nn.Module]] = {'efficientat': EfficientAt}

_NOT_CONFIG = {'num_tags', 'axis_name', 'parent', 'name'}


def build(
  cfg: Mapping[str, Any], num_tags: int, axis_name: str | None = None
) -> nn.Module:
  """Builds the tagger that a config names.

  Args:
    cfg: `architecture`, and any of that architecture's fields; the rest keep
      the defaults of the module. Of an 'ensemble' its `size` and `member`, the
      config of one.
    num_tags: number of outputs.
    axis_name: the pmapped axis over which BatchNorm takes its statistics.

  Returns:
    A module; `module.apply(variables, mel_BTF, train=..., keys_B=...)` gives
    a `TaggerOutput`.

  Raises:
    ValueError: for an unknown architecture or field, or an illegal value.
  """
  fields = dict(cfg.items())
  if 'architecture' not in fields:
    raise ValueError(
      f'The model config {sorted(fields)} has no field architecture; set it '
      f'to one of {sorted(ARCHITECTURES)}.'
    )
  architecture = fields.pop('architecture')
  if architecture == 'ensemble':
    of = {'dtype': fields.get('dtype', 'float32'), **fields['member']}
    return Ensemble(build(of, num_tags, axis_name), fields['size'])
  if architecture not in _FROZEN:
    check_name('architecture', architecture, ARCHITECTURES)
  module = (ARCHITECTURES | _FROZEN)[architecture]
  legal = {
    field.name: field
    for field in dataclasses.fields(module)
    if field.name not in _NOT_CONFIG
  }
  for name, value in fields.items():
    check_name(f'field of the model {architecture}', name, legal)
    fields[name] = _convert(architecture, name, value, legal[name].default)
  return module(num_tags=num_tags, axis_name=axis_name, **fields)


def check_name(what: str, name: str, legal: Collection[str]) -> None:
  """Raises ValueError where `name` is not legal, with the nearest one."""
  if name in legal:
    return
  near = difflib.get_close_matches(str(name), legal, n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise ValueError(
    f'Unknown {what}: {name!r}; expected one of {list(legal)}.{hint}'
  )


def _convert(architecture: str, name: str, value, default):
  """The value as the module wants it; raises where its type is wrong."""
  if name == 'dtype':
    try:
      found = jnp.dtype(value)
    except TypeError:
      found = None
    legal = ('float32', 'bfloat16')
    if found is None or found.name not in legal:
      problem = f'is {value!r}: expected one of {legal}'
      raise FieldError(f'model {architecture}', name, problem)
    return found
  kinds = (int, float) if isinstance(default, float) else (type(default),)
  if isinstance(value, bool) != isinstance(default, bool) or not isinstance(
    value, kinds
  ):
    problem = f'is {value!r}: expected a value like {default!r}'
    raise FieldError(f'model {architecture}', name, problem)
  return value
