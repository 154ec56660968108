"""`--mode=export`: a trained tagger as a folder that needs nothing of this.

Every artefact is compared with the model first, see `artefacts`. What is
written:

  README.md                  the card: scores, errors, sizes
  config.json, labels.txt    front end, architecture, thresholds; names
  weights.safetensors        parameters
  tagger.stablehlo           JAX export, any batch of waveforms in
  tagger_waveform.tflite     LiteRT float, a waveform in, with metadata
  tagger_log_mel.tflite      LiteRT float, a log-mel in
  tagger_log_mel_int8.tflite LiteRT int8, a log-mel in
  stream_step.tflite         LiteRT float, one step of a stream
  frontend.h, frontend.npz   the front end's tables for C and numpy
  golden.npz                 waveforms, their log-mel and probabilities
  artefacts.json             what was written and what was not, as in the card

ONNX files are added by `add_onnx`, in an environment of its own.
"""

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.deploy import (
  c_header,
  functions,
  litert,
  litert_metadata,
  onnx_commands,
  onnx_files,
  safetensors,
  stream,
  tagging,
)
from iusp_jax.deploy.artefacts import Artefacts, NotWrittenError, run_each
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files, logs
from iusp_jax.scoring import calibration

FORMAT = 1  # Of the folder.
_GOLDEN = 4  # Clips.
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def run(checkpoint: str, output: str, max_int8_loss: float = 0.01) -> None:
  """Exports a trained tagger.

  Args:
    checkpoint: workdir of a finished run.
    output: the folder to write; an export that is there is replaced.
    max_int8_loss: of micro-AUPRC on validate, for an int8 artefact.

  Raises:
    ValueError: for flags that cannot be right.
    OSError: where the folder cannot be written.
  """
  if not checkpoint or not output:
    name = '--output' if checkpoint else '--checkpoint'
    what = (
      'a folder to write' if checkpoint else 'the workdir of a finished run'
    )
    raise ValueError(f'{name} is missing: expected {what}')
  target = pathlib.Path(files.resolve(output))
  _check_target(target)
  loaded = tagging.load(checkpoint)
  _check_frontend(loaded.trained)
  with files.named_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent)
  try:
    folder = pathlib.Path(temporary)
    folder.chmod(0o755)
    given = Artefacts.of(loaded, folder)
    with files.named_errors(target):
      _write_description(given, target, max_int8_loss)
      _write_all(given, max_int8_loss)
      if target.exists():
        shutil.rmtree(target)
      os.replace(folder, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  logs.log(f'Export: {target}')
  logs.log('ONNX is added by these commands, in an environment of its own:')
  for line in onnx_commands.commands(target):
    logs.log(f'  {line}')


def _check_frontend(of: trained.Trained) -> None:
  kind = of.metadata['frontend'].get('kind', 'log_mel')
  if kind != 'log_mel':
    raise ValueError(
      f'{of.workdir} is a teacher that others trained, whose front end, '
      f'{kind}, is not exported: expected the workdir of a student'
    )


def _check_target(target: pathlib.Path) -> None:
  """Raises ValueError for a folder that holds something else."""
  if target.exists() and not target.is_dir():
    raise ValueError(f'--output={target}: is a file; expected a folder')
  if not target.is_dir() or not any(target.iterdir()):
    return
  config = target / 'config.json'
  if not config.is_file() or 'export_format' not in files.read_json(config):
    raise ValueError(
      f'--output={target}: holds other files; expected a new folder, or one '
      'of an earlier export, which is replaced'
    )


def _write_all(given: Artefacts, max_int8_loss: float) -> None:
  """Every artefact, then the card."""
  given.attempt('weights.safetensors', _weights)
  given.attempt('tagger.stablehlo', _stablehlo)
  given.refused.extend(
    {'file': name, 'reason': onnx_files.NOT_YET} for name in onnx_files.FILES
  )
  own = {
    'tagger_waveform.tflite': _litert_waveform,
    'tagger_log_mel.tflite': _litert_log_mel,
    'tagger_log_mel_int8.tflite': functools.partial(
      _litert_int8, max_loss=max_int8_loss
    ),
    'stream_step.tflite': _litert_step,
  }
  reason = litert.why_missing()
  for name, make in own.items():
    if reason:
      given.refuse(name, reason)
    else:
      given.attempt(name, make)
  given.finish()


def _write_description(given: Artefacts, target, max_int8_loss: float) -> None:
  """What the artefacts have in common."""
  loaded, own = given.loaded, given.own
  of, cfg = loaded.trained.metadata, own.model.frontend
  grid = tagging.Grid.of(own.model, own.num_samples)
  description = {
    'export_format': FORMAT,
    'fingerprint': of['fingerprint'],
    'weights': loaded.trained.weights(),
    'model': of['model'],
    'frontend': dataclasses.asdict(cfg),
    'tags': list(loaded.names),
    'sample_rate': cfg.sample_rate,
    'clip_samples': own.num_samples,
    'log_mel_shape': list(own.mel_shape),
    'frame_seconds': grid.step / cfg.sample_rate,
    'calibration': calibration.plain(loaded.calibration, loaded.names),
    'dataset': of['dataset'],
    'max_int8_loss': max_int8_loss,
    # The workdir, from this folder: where the data set can be found again.
    'made_from': os.path.relpath(loaded.trained.workdir, target),
  }
  folder, step = given.folder, stream.Stream.of(own)
  shapes = jax.eval_shape(
    step.start, np.zeros((step.look_ahead, own.mel_shape[1]))
  )
  description['stream'] = {
    'mel_frames': step.mel_frames,
    'look_ahead': step.look_ahead,
    'silent_frames': step.context * step.reduction,
    'latency_seconds': step.latency_seconds(),
    'state': {name: list(x.shape) for name, x in shapes.items()},
  }
  files.write_atomically(folder / 'config.json', files.to_json(description))
  labels = ''.join(f'{name}\n' for name in loaded.names)
  files.write_atomically(folder / 'labels.txt', labels)
  text = c_header.header(cfg, own.mel_shape[0])
  files.write_atomically(folder / 'frontend.h', text)
  np.savez_compressed(
    folder / 'frontend.npz',
    window=frontend.window(cfg).astype(np.float32),
    mel=frontend.mel_matrix(cfg).astype(np.float32),
    silence=step.silence,
  )
  count = min(_GOLDEN, len(given.clips.wave_NS))
  np.savez_compressed(
    folder / 'golden.npz',
    waveform=given.clips.wave_NS[:count].astype(np.float32) / 32768,
    log_mel=given.clips.mel_NTF[:count],
    probabilities=given.reference[given.found.tested][:count],
  )


# The artefacts ---------------------------------------------------------------


def _weights(given: Artefacts, name: str) -> None:
  """Parameters: read back, they must give the model's probabilities."""
  arrays = functions.flatten(given.loaded.trained.variables)
  metadata = {'format': 'flax', 'fingerprint': given.loaded.trained.fingerprint}
  content = safetensors.to_bytes(arrays, metadata)
  again = functions.unflatten(safetensors.from_bytes(content))
  read = dataclasses.replace(given.own, variables=again)
  run = jax.jit(read.from_log_mel)
  scores = run_each(given.clips.mel_NTF, lambda x: run(x[None])[0])
  given.keep(name, content, scores, 'parameters, for any program')


def _stablehlo(given: Artefacts, name: str) -> None:
  """The whole tagger with any number of clips."""
  (batch,) = jax.export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct((batch, given.own.num_samples), jnp.float32)
  exported = jax.export.export(
    jax.jit(given.own.from_wave), platforms=_PLATFORMS
  )(shape)
  try:
    content = bytes(exported.serialize())
  except ImportError as error:
    raise NotWrittenError(f'{error}: {litert.INSTALL}') from error
  call = jax.jit(jax.export.deserialize(bytearray(content)).call)
  scores = run_each(given.waves_NS, lambda wave_S: call(wave_S[None])[0])
  given.keep(name, content, scores, 'JAX export: waveforms in, any batch')


def _litert_waveform(given: Artefacts, name: str) -> None:
  own = given.own.to_convert()
  waves = given.waves_NS
  content = litert.convert(
    lambda waveform: {'probabilities': own.from_wave(waveform)},
    {'waveform': waves[:1]},
  )
  content = litert_metadata.add(
    content, given.loaded.names, own.model.frontend.sample_rate, own.num_samples
  )
  run = litert.Interpreter(content)
  scores = run_each(
    waves, lambda wave_S: run(waveform=wave_S[None])['probabilities'][0]
  )
  given.keep(name, content, scores, 'LiteRT float: a waveform in')


def _convert_log_mel(given: Artefacts) -> bytes:
  own = given.own.to_convert()
  return litert.convert(
    lambda log_mel: {'probabilities': own.from_log_mel(log_mel)},
    {'log_mel': given.clips.mel_NTF[:1]},
  )


def _run_log_mel(content: bytes, mel_NTF) -> np.ndarray:
  run = litert.Interpreter(content)
  return run_each(
    mel_NTF, lambda mel_TF: run(log_mel=mel_TF[None])['probabilities'][0]
  )


def _litert_log_mel(given: Artefacts, name: str) -> None:
  content = _convert_log_mel(given)
  scores = _run_log_mel(content, given.clips.mel_NTF)
  given.keep(name, content, scores, 'LiteRT float: a log-mel in')


def _litert_int8(given: Artefacts, name: str, max_loss: float) -> None:
  """The first kind of int8 that loses little enough on validate."""
  given.need_data()
  content = _convert_log_mel(given)
  train_NTF = given.found.splits['train'].mel_NTF
  ranges = [{'log_mel': mel_TF[None]} for mel_TF in train_NTF]
  given.first_small_enough(
    name,
    litert.INT8,
    lambda kind: litert.quantize(content, kind, ranges),
    _run_log_mel,
    'LiteRT int8: a log-mel in',
    max_loss,
  )


def _litert_step(given: Artefacts, name: str) -> None:
  """One step of a stream, compared with the whole clip frame by frame."""
  step = stream.Stream.of(given.own)
  content = stream.to_litert(step)
  run = litert.Interpreter(content)
  own, found, wanted = given.own, [], []
  whole = jax.jit(
    lambda mel_BTF: own.probabilities(
      tagger.apply(own.model, own.variables, mel_BTF).frame_logits_BTC
    )
  )
  for mel_TF in given.clips.mel_NTF[:20]:
    frames_TC = stream.run_litert(step, run, mel_TF)
    first = 0 if step.recurrent else step.context
    found.append(frames_TC[first:])
    wanted.append(np.asarray(whole(mel_TF[None]))[0, first : len(frames_TC)])
  error = np.abs(np.concatenate(found) - np.concatenate(wanted))
  size = step.num_frames
  note = (
    f'{step.mel_frames} log-mel frames and the state in, {size} '
    f'frame{"s" * (size > 1)} and the next state out; a frame waits for '
    f'{step.look_ahead} log-mel frames after its own; '
    f'{1000 * step.latency_seconds():.0f} ms from the start of a step; '
    'compared on the probabilities of frames'
  )
  if not step.recurrent:
    note += f', without the first {step.context}'
  what = 'LiteRT float: a step of a stream'
  given.write(name, content, error, what, note=note)
