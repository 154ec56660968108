"""Arrays in the safetensors format, which many programs read.

A header of JSON, its length before it, and the arrays one after the other, in
the order of the header. Reference: https://github.com/huggingface/safetensors
"""

import json
import math
from collections.abc import Mapping

import numpy as np

_TYPES = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}


def to_bytes(
  arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> bytes:
  """A safetensors file.

  Args:
    arrays: by name.
    metadata: text by name.

  Raises:
    ValueError: for an array of a type that the format lacks.
  """
  header: dict[str, object] = {}
  if metadata:
    header['__metadata__'] = dict(metadata)
  parts, start = [], 0
  for name, given in arrays.items():
    array = np.ascontiguousarray(given)
    if array.dtype not in _NAMES:
      raise ValueError(
        f'{name} is {array.dtype}: expected one of {sorted(_TYPES)}'
      )
    parts.append(array.astype(array.dtype.newbyteorder('<')).tobytes())
    end = start + len(parts[-1])
    header[name] = {
      'dtype': _NAMES[array.dtype],
      'shape': list(np.shape(given)),
      'data_offsets': [start, end],
    }
    start = end
  text = json.dumps(header).encode()
  text += b' ' * (-len(text) % 8)
  return len(text).to_bytes(8, 'little') + text + b''.join(parts)


def from_bytes(content: bytes) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file, by name.

  Raises:
    ValueError: where it is damaged or cut short.
  """
  try:
    size = int.from_bytes(content[:8], 'little')
    header = json.loads(content[8 : 8 + size])
    found = {}
    for name, of in header.items():
      if name == '__metadata__':
        continue
      kind = np.dtype(_TYPES[of['dtype']]).newbyteorder('<')
      start, end = of['data_offsets']
      if end - start != math.prod(of['shape']) * kind.itemsize:
        raise ValueError(f'{name} has {end - start} bytes')
      found[name] = np.frombuffer(
        content, kind, math.prod(of['shape']), 8 + size + start
      ).reshape(of['shape'])
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise ValueError(
      f'no safetensors file, or a damaged one of {len(content)} bytes '
      f'({type(error).__name__}: {error}): export the model again'
    ) from error
  return found
