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
  """A function of waves [B, S]: probabilities, in operations of `jax2onnx`.

  For any number of clips that has neither a Fourier transform nor `jnp.pad`.
  """
  cfg, size = own.model.frontend, own.num_samples
  of_wave = cfg.transform(size, 1.0, magnitudes)
  # What the last frame needs at most.
  zeros_S = np.zeros(cfg.fft_length + cfg.hop_samples, np.float32)

  def of_padded(wave_S):
    return of_wave(jnp.concatenate([wave_S, zeros_S]))

  return lambda wave_BS: own.from_log_mel(jax.vmap(of_padded)(wave_BS))


def magnitudes(frames_TS: jax.Array) -> jax.Array:
  """Of the Fourier transform of frames, as products of small real matrices.

  With S = P Q samples, sample Q p + q and frequency k + P m (Cooley and Tukey,
  1965): a transform of length P over p, a factor for each q and k, and one of
  length Q over q.

  Args:
    frames_TS: S a power of two.

  Returns:
    [T, S / 2 + 1]
  """
  size = frames_TS.shape[-1]
  num_p = 1 << (size.bit_length() - 1) // 2
  num_q = size // num_p
  p, q = np.arange(num_p), np.arange(num_q)
  first = _waves(np.outer(p, p) / num_p)  # [p, k]
  factor_re, factor_im = _waves(np.outer(p, q)[None] / size)  # [1, k, q]
  # Half of the frequencies and one: those of a real wave.
  last = _waves(np.outer(q, q[: num_q // 2 + 1]) / num_q)  # [q, m]
  split = frames_TS.reshape(-1, num_p, num_q).swapaxes(1, 2)  # [T, q, p]
  re, im = (_matmul(split, part).swapaxes(1, 2) for part in first)  # [T, k, q]
  re, im = re * factor_re - im * factor_im, re * factor_im + im * factor_re
  re, im = (
    _matmul(re, last[0]) - _matmul(im, last[1]),
    _matmul(re, last[1]) + _matmul(im, last[0]),
  )  # [T, k, m]
  found = jnp.sqrt(re * re + im * im).swapaxes(1, 2)
  return found.reshape(*frames_TS.shape[:-1], -1)[..., : size // 2 + 1]


def _waves(turns: np.ndarray) -> list[np.ndarray]:
  """exp(-2πi turns): real and imaginary parts, float32."""
  angles = -2 * np.pi * turns
  return [np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)]


def _matmul(one, other) -> jax.Array:
  return jnp.matmul(one, other, precision='highest')


def convert(function: Callable, name: str, shape: Sequence[int | str]) -> bytes:
  """An ONNX file of a function from an array to `probabilities`.

  Args:
    function: takes a float32 array.
    name: of its input in the file.
    shape: of it; a text stands for any number.
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

  def __call__(self, inputs) -> np.ndarray:
    """Probabilities [B, C] of the inputs of B clips."""
    (found_BC,) = self._session.run(None, {self._name: inputs})
    return np.asarray(found_BC)
