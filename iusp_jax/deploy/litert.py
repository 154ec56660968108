"""LiteRT (.tflite) files from JAX functions, in float and in int8.

Three packages that are no dependencies of this one, in the extra `export`:
`litert-converter` turns StableHLO into a file, `ai-edge-quantizer` makes int8
of it, `ai-edge-litert` runs it. None needs TensorFlow or PyTorch. They are
imported where they are used.

The converter has no loops: functions have to be written out (the lowering
'unrolled' of the models).
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from iusp_jax.runtime import packages

SIGNATURE = 'serving_default'
INSTALL = "pip install 'iusp-jax[export]'"
# From the smallest and fastest on an integer-only device to the most exact.
INT8 = {
  'int8': 'static_wi8_ai8',
  'int8 weights, int16 activations': 'static_wi8_ai16',
  'int8 weights': 'weight_only_wi8_afp32',
}


def _require(module: str) -> Any:
  remedy = (
    f'{INSTALL}, on Linux x86-64 or macOS arm64 with Python 3.11 to 3.13; '
    'there are no wheels for other systems'
  )
  return packages.require(module, 'writing LiteRT files', remedy)


def why_missing() -> str:
  """Why LiteRT files cannot be written here; empty where they can."""
  try:
    for module in (
      'litert_converter.converter_api_ext',
      'ai_edge_litert.interpreter',
      'ai_edge_quantizer.quantizer',
    ):
      _require(module)
  except packages.MissingPackageError as error:
    return str(error)
  return ''


def convert(
  function: Callable[..., Mapping[str, Any]], examples: Mapping[str, Any]
) -> bytes:
  """A `.tflite` file of a JAX function.

  Args:
    function: takes arrays by name, and gives arrays by name.
    examples: arrays of the right shapes and types, by name.
  """
  api = _require('litert_converter.converter_api_ext')
  ir = _require('litert_converter.mlir.ir')
  passes = _require('litert_converter.mlir.passmanager')
  names = list(examples)
  outputs: list[str] = []

  def flat(*arrays):
    found = function(**dict(zip(names, arrays, strict=True)))
    outputs[:] = list(found)
    return tuple(found.values())

  lowered = jax.jit(flat).lower(*examples.values())
  text = str(lowered.compiler_ir('stablehlo'))
  context = ir.Context()
  api.prepare_mlir_context(context)
  with context, ir.Location.unknown():
    module = ir.Module.parse(text)
    api.set_signature(module.operation, SIGNATURE, names, outputs)
    api.run_convert_to_tfl_passes(
      module, passes.PassManager(), api.ConvertToTFLConfig()
    )
    return api.export_flatbuffer_to_bytes(module.operation)


def quantize(
  content: bytes, kind: str, samples: Sequence[Mapping[str, np.ndarray]]
) -> bytes:
  """An int8 version of a float file.

  Args:
    content: of the float file.
    kind: of `INT8`.
    samples: inputs that show the ranges of the activations.
  """
  quantizer = _require('ai_edge_quantizer.quantizer')
  recipe = _require('ai_edge_quantizer.recipe')
  calibrator = _require('ai_edge_quantizer.calibrator')
  statistics = _require('ai_edge_quantizer.utils.qsv_utils')
  with _quiet():
    own = quantizer.Quantizer(bytearray(content))
    own.load_quantization_recipe(getattr(recipe, INT8[kind])())
    ranges = None
    if INT8[kind].startswith('static'):
      # Not `own.calibrate`: it takes moving averages of minima and maxima,
      # which cut off the loudest clips (.10 of micro-AUPRC for cnn_8).
      found = calibrator.Calibrator(
        content, num_threads=1, qsv_update_func=statistics.min_max_update
      )
      given = {SIGNATURE: [dict(sample) for sample in samples]}
      found.calibrate(given, own._recipe_manager)
      ranges = found.get_model_qsvs()
    return bytes(own.quantize(ranges).quantized_model)


class Interpreter:
  """Runs a `.tflite` file; integer inputs and outputs are taken as float.

  Attributes:
    inputs: shape and type of each input, by name.
  """

  def __init__(self, content: bytes):
    module = _require('ai_edge_litert.interpreter')
    self._interpreter = module.Interpreter(model_content=content, num_threads=1)
    self._interpreter.allocate_tensors()
    self._run = self._interpreter.get_signature_runner(SIGNATURE)
    self._in = self._run.get_input_details()
    self._out = self._run.get_output_details()
    self.inputs = {
      name: (tuple(of['shape']), np.dtype(of['dtype']))
      for name, of in self._in.items()
    }

  def __call__(self, **arrays) -> dict[str, np.ndarray]:
    """Outputs by name, float32."""
    found = self._run(
      **{name: _to(array, self._in[name]) for name, array in arrays.items()}
    )
    return {name: _from(x, self._out[name]) for name, x in found.items()}


def arena_bytes(content: bytes) -> int:
  """Memory that the interpreter plans for all inputs and activations.

  From the first to the last address of what operations read and write but the
  weights, by LiteRT's own kernels, as a microcontroller has them.
  """
  module = _require('ai_edge_litert.interpreter')
  plain = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
  interpreter = module.Interpreter(
    model_content=content, experimental_op_resolver_type=plain
  )
  interpreter.allocate_tensors()
  numbers = {of['index'] for of in interpreter.get_input_details()}
  for operation in interpreter._get_ops_details():
    numbers |= set(operation['outputs'])
  ends = []
  for number in numbers:
    view = interpreter.tensor(int(number))()
    start = view.__array_interface__['data'][0]
    ends += [start, start + view.nbytes]
  return max(ends) - min(ends)


def _to(array, details) -> np.ndarray:
  scale, zero = details['quantization']
  if not scale:
    return np.asarray(array, details['dtype'])
  limits = np.iinfo(details['dtype'])
  whole = np.rint(np.asarray(array) / scale) + zero
  return np.clip(whole, limits.min, limits.max).astype(details['dtype'])


def _from(array, details) -> np.ndarray:
  scale, zero = details['quantization']
  if not scale:
    return np.asarray(array)
  return (np.asarray(array, np.float32) - zero) * np.float32(scale)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Without the quantizer's own lines, progress bars and warnings."""
  nothing = io.StringIO()
  with (
    contextlib.redirect_stdout(nothing),
    contextlib.redirect_stderr(nothing),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter('ignore')
    yield
