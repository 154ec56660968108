"""ONNX files from JAX functions, in float and in int8.

Three packages that are imported where they are used: `jax2onnx` writes a file,
in an environment of its own (see `onnx_commands`); `onnxruntime` runs it; its
`quantization` makes int8 of it and needs `onnx`.
"""

import pathlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.deploy import functions

FILES = (
  'tagger_waveform.onnx',
  'tagger_log_mel.onnx',
  'tagger_log_mel_int8.onnx',
)
NOT_YET = (
  'is added by `python -m iusp_jax.deploy.add_onnx` in an environment of its '
  'own, whose commands `iusp export` prints: jax2onnx cannot be installed '
  "beside this program's orbax-checkpoint"
)
INT8 = {
  'int8': ('QUInt8', 'QInt8'),
  'int8 weights, int16 activations': ('QInt16', 'QInt8'),
}  # Activations and weights.
_OPSET = 21  # The first with 16-bit quantisation.


def from_wave(own: functions.Functions) -> Callable:
  """A function of waves [1, S]: probabilities, without complex magnitudes."""
  of_wave = own.model.frontend.transform(own.num_samples, 1.0, _magnitudes)
  return lambda wave_BS: own.from_log_mel(jax.vmap(of_wave)(wave_BS))


def _magnitudes(complex_TF) -> jax.Array:
  return jnp.sqrt(
    jnp.square(jnp.real(complex_TF)) + jnp.square(jnp.imag(complex_TF))
  )


def convert(function: Callable, name: str, shape: Sequence[int]) -> bytes:
  """An ONNX file of a function from an array to `probabilities`.

  Args:
    function: takes a float32 array.
    name: of its input in the file.
    shape: of it; the number of clips is 1, as `jax2onnx` has no Fourier
      transform of any number.
  """
  import jax2onnx  # pyright: ignore[reportMissingImports]

  model = jax2onnx.to_onnx(
    function,
    [tuple(shape)],
    model_name='tagger',
    opset=_OPSET,
    input_names=[name],
    output_names=['probabilities'],
  )
  return model.SerializeToString()


def quantize(
  content: bytes, kind: str, name: str, samples: Sequence[np.ndarray]
) -> bytes:
  """An int8 version of a float file; inputs and outputs stay float.

  Args:
    content: of the float file.
    kind: of `INT8`.
    name: of its input.
    samples: inputs that show the ranges of the activations.
  """
  from onnxruntime import quantization  # pyright: ignore
  from onnxruntime.quantization import shape_inference  # pyright: ignore

  activations, weights = (
    getattr(quantization.QuantType, k) for k in INT8[kind]
  )
  left = iter(samples)

  class Reader(quantization.CalibrationDataReader):
    def get_next(self) -> Any:
      sample = next(left, None)
      return None if sample is None else {name: sample}

  with tempfile.TemporaryDirectory() as folder:
    place = pathlib.Path(folder)
    (place / 'float.onnx').write_bytes(_without_scalar_biases(content))
    # Folds constants, and finds the shapes of what lies between.
    shape_inference.quant_pre_process(
      str(place / 'float.onnx'), str(place / 'folded.onnx')
    )
    quantization.quantize_static(
      str(place / 'folded.onnx'),
      str(place / 'int8.onnx'),
      Reader(),
      # Not what is computed number by number: of an LSTM that is written out
      # it would be ten times as many operations.
      op_types_to_quantize=['Conv', 'Gemm', 'MatMul'],
      per_channel=True,
      activation_type=activations,
      weight_type=weights,
    )
    return (place / 'int8.onnx').read_bytes()


def _without_scalar_biases(content: bytes) -> bytes:
  """The same file, without the zeros that jax2onnx adds in a `Gemm`.

  onnxruntime's quantisation wants a bias for each channel, or none.
  """
  import onnx  # pyright: ignore[reportMissingImports]

  model = onnx.load_from_string(content)
  constants = {x.name: x for x in model.graph.initializer}
  for node in model.graph.node:
    bias = constants.get(node.input[2]) if len(node.input) == 3 else None
    if node.op_type != 'Gemm' or bias is None or bias.dims:
      continue
    if onnx.numpy_helper.to_array(bias) == 0:
      del node.input[2]
  return model.SerializeToString()


class Session:
  """Runs an ONNX file on one core."""

  def __init__(self, content: bytes):
    import onnxruntime  # pyright: ignore[reportMissingImports]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # Errors alone.
    self._session = onnxruntime.InferenceSession(
      content, options, providers=['CPUExecutionProvider']
    )
    self._name = self._session.get_inputs()[0].name

  def __call__(self, array) -> np.ndarray:
    """Probabilities [C] of one clip's input, without its batch axis."""
    (found_BC,) = self._session.run(None, {self._name: array[None]})
    return np.asarray(found_BC)[0]
