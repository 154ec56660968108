"""Adds ONNX files to an export, from its weights and `config.json` alone.

  python -m iusp_jax.deploy.add_onnx EXPORT

They are compared with the model, as every artefact is, and with the folder's
golden vectors; `onnx_commands` makes the environment that this needs. int8 is
written where the data set is still there, else not.
"""

import pathlib
import sys

import numpy as np

from iusp_jax.deploy import functions, onnx_files, safetensors, tagging
from iusp_jax.deploy.artefacts import (
  MAX_ERROR,
  Artefacts,
  NotWrittenError,
  run_each,
)
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files
from iusp_jax.scoring import calibration

BATCH = 'batch'  # The name in the files of the number of clips, any number.


def run(folder: str) -> None:
  """Adds the ONNX files of `onnx_files.FILES` to an export.

  Args:
    folder: of the export.

  Raises:
    ValueError: where it is no export, or its files do not agree.
    OSError: where they cannot be read or written.
  """
  place = pathlib.Path(files.resolve(folder))
  loaded, max_int8_loss = load(place)
  given = Artefacts.of(loaded, place)
  waveform, log_mel, int8 = onnx_files.FILES
  given.attempt(waveform, _waveform)
  given.attempt(log_mel, _log_mel)
  given.attempt(int8, lambda given, name: _int8(given, name, max_int8_loss))
  given.finish()


def load(folder: pathlib.Path) -> tuple[tagging.LoadedTagger, float]:
  """The tagger of an export, and how much int8 may lose.

  Raises:
    ValueError: where the folder is no export, or is damaged.
  """
  config, remedy = folder / 'config.json', 'export the model again'
  if not config.is_file():
    raise ValueError(f'{folder} is no export: there is no {config.name}')
  of = files.read_json(config, remedy)
  try:
    content = (folder / 'weights.safetensors').read_bytes()
    variables = functions.unflatten(safetensors.from_bytes(content))
    metadata = {**of, 'num_samples': of['clip_samples']}
    model = tagger.build(metadata, len(of['tags']))
    trained.check_shapes(model, variables, folder, of['clip_samples'])
    workdir = files.resolve(str(folder / of['made_from']))
    own = calibration.from_plain(of['calibration'], of['tags'])
    max_int8_loss = float(of['max_int8_loss'])
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f'{folder} is an export of another version or damaged '
      f'({type(error).__name__}: {error}): {remedy}'
    ) from error
  found = trained.Trained(model, variables, metadata, workdir)
  return tagging.LoadedTagger(found, own), max_int8_loss


# The artefacts ---------------------------------------------------------------


def _waveform(given: Artefacts, name: str) -> None:
  own = given.own.to_convert()
  shape = (BATCH, own.num_samples)
  content = onnx_files.convert(onnx_files.from_wave(own), 'waveform', shape)
  session = onnx_files.Session(content)
  _check_golden(given, session, 'waveform')
  scores = _one_by_one(session, given.waves_NS)
  given.keep(name, content, scores, 'ONNX float: a waveform in')


def _log_mel(given: Artefacts, name: str) -> None:
  content = _convert_log_mel(given)
  session = onnx_files.Session(content)
  _check_golden(given, session, 'log_mel')
  scores = _one_by_one(session, given.clips.mel_NTF)
  given.keep(name, content, scores, 'ONNX float: a log-mel in')


def _convert_log_mel(given: Artefacts) -> bytes:
  own = given.own.to_convert()
  shape = (BATCH, *own.mel_shape)
  return onnx_files.convert(own.from_log_mel, 'log_mel', shape)


def _one_by_one(session, inputs) -> np.ndarray:
  return run_each(inputs, lambda array: session(array[None])[0])


def _check_golden(given: Artefacts, session, name: str) -> None:
  """Raises NotWrittenError where the golden vectors are others.

  All at once: as the other clips are taken one by one, both are looked at.
  """
  with np.load(given.folder / 'golden.npz') as arrays:
    inputs, wanted_NC = arrays[name], arrays['probabilities']
  error = np.abs(session(inputs) - wanted_NC).max()
  if not error <= MAX_ERROR:
    raise NotWrittenError(
      f'a probability of golden.npz is off by {error:.2g}, expected at most '
      f'{MAX_ERROR:g}'
    )


def _int8(given: Artefacts, name: str, max_loss: float) -> None:
  given.need_data()
  content = _convert_log_mel(given)
  samples = [mel_TF[None] for mel_TF in given.found.splits['train'].mel_NTF]
  given.first_small_enough(
    name,
    onnx_files.INT8,
    lambda kind: onnx_files.quantize(content, kind, 'log_mel', samples),
    lambda content, mel_NTF: _one_by_one(onnx_files.Session(content), mel_NTF),
    'ONNX int8: a log-mel in',
    max_loss,
  )


if __name__ == '__main__':
  try:
    if len(sys.argv) != 2:
      raise ValueError('expected one argument, the folder of an export')
    run(sys.argv[1])
  except (ValueError, OSError) as error:
    sys.exit(f'error: {error}')
