"""A tagger in an ONNX file, run by onnxruntime, which is imported when used.

Needs numpy and onnxruntime; of iusp_jax only what needs no more (see
`output_files`).
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from iusp_jax.runtime import packages

OUTPUTS = ('logits', 'probabilities', 'frames', 'frame_logits')
INSTALL = "pip install 'iusp-jax[onnx]'"


class Tagger:
  """From waveforms float32 `[B, S]` within -1 and 1 to outputs by name.

  Attributes:
    batch_size: that the file asks for; 0 where any will do.
    num_samples: of a waveform that the file asks for; 0 where any will do.
  """

  def __init__(
    self, path: pathlib.Path, wave: str = '', outputs: Mapping[str, str] = {}
  ):
    """Opens the file.

    Args:
      path: of the file.
      wave: name of its input of waveforms; '' for the only one.
      outputs: by name of `OUTPUTS`, the file's own names.

    Raises:
      ValueError: naming what is missing, and what there is.
    """
    self._session = _open(path)
    inputs = {each.name: each for each in self._session.get_inputs()}
    self._outputs = {name: own for name, own in outputs.items() if own}
    if not self._outputs:
      raise ValueError(
        f'no output of {path} is named: expected names for some of '
        f'{", ".join(OUTPUTS)}; it has {_listed(self._session.get_outputs())}'
      )
    if not wave and len(inputs) == 1:
      wave = next(iter(inputs))
    if wave not in inputs or len(inputs) > 1:
      raise ValueError(
        f'{path} has the inputs {_listed(inputs.values())}: expected one, of '
        f'waveforms; its name is given as {wave!r}'
      )
    there = {each.name for each in self._session.get_outputs()}
    for name, own in self._outputs.items():
      if own not in there:
        raise ValueError(
          f'{path} has no output {own!r} for {name}: expected one of '
          f'{_listed(self._session.get_outputs())}'
        )
    self._wave, found = wave, inputs[wave]
    if found.type != 'tensor(float)' or len(found.shape) != 2:
      raise ValueError(
        f'{path} takes {found.type} {found.shape} as {wave!r}: expected '
        'tensor(float) [clips, samples]'
      )
    self.batch_size, self.num_samples = (
      size if isinstance(size, int) else 0 for size in found.shape
    )

  def __call__(self, wave_BS: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs `[B, ...]` by name of `OUTPUTS`.

    Raises:
      ValueError: for waveforms of another length than the file asks for.
    """
    count, size = wave_BS.shape
    if self.num_samples and size != self.num_samples:
      raise ValueError(
        f'the ONNX file takes {self.num_samples} samples a clip: expected '
        f'{size}, those of a clip at the rate that is set for the file'
      )
    if self.batch_size > count:  # The last batch of a file of one size.
      wave_BS = np.pad(wave_BS, ((0, self.batch_size - count), (0, 0)))
    found = self._session.run(
      list(self._outputs.values()), {self._wave: wave_BS.astype(np.float32)}
    )
    return {
      name: np.asarray(values)[:count]
      for name, values in zip(self._outputs, found, strict=True)
    }


def why_missing() -> str:
  """Why ONNX files cannot be run here; empty where they can."""
  try:
    _runtime()
  except packages.MissingPackageError as error:
    return str(error)
  return ''


def _runtime() -> Any:
  return packages.require('onnxruntime', 'running an ONNX file', INSTALL)


def _open(path: pathlib.Path) -> Any:
  runtime = _runtime()
  if not path.is_file():
    raise ValueError(f'{path} is no file: expected a tagger in ONNX')
  make: Callable[..., Any] = runtime.InferenceSession
  try:
    return make(path, providers=runtime.get_available_providers())
  except Exception as error:  # Types of the runtime's own.
    first = (str(error).splitlines() or [type(error).__name__])[0]
    raise ValueError(
      f'{path} cannot be opened as an ONNX file ({first}): export it again'
    ) from error


def _listed(nodes) -> str:
  return ', '.join(repr(each.name) for each in nodes) or 'none'
