"""`--mode=export`: a trained tagger as a folder that needs nothing of this.

Every artefact is run and compared with the model before it is written, on the
same calibrated probabilities; one that differs is not written, and the card
gives the reason. What is written:

  README.md                  the card: scores, errors, sizes
  config.json, labels.txt    front end, architecture, thresholds; names
  weights.safetensors        parameters
  tagger.stablehlo           JAX export, any batch of waveforms in
  tagger_waveform.tflite     LiteRT float, a waveform in
  tagger_log_mel.tflite      LiteRT float, a log-mel in
  tagger_log_mel_int8.tflite LiteRT int8, a log-mel in
  stream_step.tflite         LiteRT float, one step of a stream
  frontend.h                 the front end's tables for C
  golden.npz                 waveforms, their log-mel and probabilities
"""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from iusp_jax.deploy import (
  c_header,
  card,
  examples,
  functions,
  litert,
  safetensors,
  stream,
  tagging,
)
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files, logs
from iusp_jax.scoring import calibration

FORMAT = 1  # Of the folder.
MAX_ERROR = 1e-4  # Of a probability, of a float artefact.
_GOLDEN = 4  # Clips.
_BOOTSTRAP = 300
_PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


class _NotWritten(Exception):
  """Why an artefact is not written, such as that it differs."""


@dataclasses.dataclass(frozen=True)
class _Given:
  """What the artefacts are made from and compared with.

  Attributes:
    loaded: the tagger.
    own: its functions.
    found: clips to compare on.
    reference: calibrated probabilities [N, C] of the model, by split.
    folder: where the artefacts are written.
    records: of what was written, see `card`.
    refused: of what was not.
  """

  loaded: tagging.LoadedTagger
  own: functions.Functions
  found: examples.Examples
  reference: dict[str, np.ndarray]
  folder: pathlib.Path
  records: list[dict[str, Any]]
  refused: list[dict[str, str]]

  @property
  def clips(self) -> examples.Clips:
    """Those that errors are taken on."""
    return self.found.splits[self.found.tested]


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
  own = functions.Functions.of(loaded)
  logs.log('export: collects clips to compare on')
  found = examples.find(loaded, own)
  if found.reason:
    logs.log(f'export: compares on noise, without scores: {found.reason}')
  with files.named_errors(target):
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix=f'.{target.name}.', dir=target.parent)
  try:
    folder = pathlib.Path(temporary)
    folder.chmod(0o755)
    reference = _reference(loaded, found)
    given = _Given(loaded, own, found, reference, folder, [], [])
    _write_all(given, max_int8_loss)
    if target.exists():
      shutil.rmtree(target)
    os.replace(folder, target)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  for record in given.refused:
    logs.log(f'not written: {record["file"]}: {record["reason"]}')
  logs.log(f'Export: {target}')


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


def _reference(loaded, found: examples.Examples) -> dict[str, np.ndarray]:
  """Calibrated probabilities of the model as it is, by split."""
  own = functions.Functions.of(loaded, 'auto')
  apply = jax.jit(
    lambda mel_BTF: tagger.apply(own.model, own.variables, mel_BTF).logits_BC
  )
  result = {}
  for name, clips in found.splits.items():
    if name != 'train':
      logits = [np.asarray(apply(mel_TF[None]))[0] for mel_TF in clips.mel_NTF]
      result[name] = loaded.calibration.probabilities(np.stack(logits))
  return result


def _write_all(given: _Given, max_int8_loss: float) -> None:
  """Every artefact, then the card."""
  _write_description(given)
  _try(given, 'weights.safetensors', _weights)
  _try(given, 'tagger.stablehlo', _stablehlo)
  if reason := litert.why_missing():
    for name in (
      'tagger_waveform.tflite',
      'tagger_log_mel.tflite',
      'tagger_log_mel_int8.tflite',
      'stream_step.tflite',
    ):
      given.refused.append({'file': name, 'reason': reason})
  else:
    _try(given, 'tagger_waveform.tflite', _litert_waveform)
    _try(given, 'tagger_log_mel.tflite', _litert_log_mel)
    _try(
      given,
      'tagger_log_mel_int8.tflite',
      lambda given, name: _litert_int8(given, name, max_int8_loss),
    )
    _try(given, 'stream_step.tflite', _litert_step)
  card.write(
    given.folder, given.loaded, given.own, given.found, given.reference,
    given.records, given.refused,
  )  # fmt: skip


def _try(given: _Given, name: str, make: Callable[[_Given, str], None]) -> None:
  """Writes an artefact, or notes why it is not written."""
  started = time.monotonic()
  try:
    make(given, name)
    logs.log(f'export: {name} ({time.monotonic() - started:.0f} s)')
  except _NotWritten as error:
    given.refused.append({'file': name, 'reason': str(error)})
  # A converter's own errors, of many types: the others are still wanted.
  except (ValueError, RuntimeError, NotImplementedError) as error:
    first = (str(error).splitlines() or [''])[0]
    reason = f'cannot be made ({type(error).__name__}: {first})'
    given.refused.append({'file': name, 'reason': reason})


def _write_description(given: _Given) -> None:
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
  }
  folder = given.folder
  files.write_atomically(folder / 'config.json', files.to_json(description))
  labels = ''.join(f'{name}\n' for name in loaded.names)
  files.write_atomically(folder / 'labels.txt', labels)
  text = c_header.header(cfg, own.mel_shape[0])
  files.write_atomically(folder / 'frontend.h', text)
  count = min(_GOLDEN, len(given.clips.wave_NS))
  np.savez_compressed(
    folder / 'golden.npz',
    waveform=given.clips.wave_NS[:count].astype(np.float32) / 32768,
    log_mel=given.clips.mel_NTF[:count],
    probabilities=given.reference[given.found.tested][:count],
  )


# The artefacts ---------------------------------------------------------------


def _weights(given: _Given, name: str) -> None:
  """Parameters: read back, they must give the model's probabilities."""
  arrays = functions.flatten(given.loaded.trained.variables)
  metadata = {'format': 'flax', 'fingerprint': given.loaded.trained.fingerprint}
  content = safetensors.to_bytes(arrays, metadata)
  again = functions.unflatten(safetensors.from_bytes(content))
  read = dataclasses.replace(given.own, variables=again)
  run = jax.jit(read.from_log_mel)
  scores = _run_each(given.clips.mel_NTF, lambda x: run(x[None])[0])
  _keep(given, name, content, scores, 'parameters, for any program')


def _stablehlo(given: _Given, name: str) -> None:
  """The whole tagger with any number of clips."""
  (batch,) = jax.export.symbolic_shape('batch')
  shape = jax.ShapeDtypeStruct((batch, given.own.num_samples), jnp.float32)
  exported = jax.export.export(
    jax.jit(given.own.from_wave), platforms=_PLATFORMS
  )(shape)
  try:
    content = bytes(exported.serialize())
  except ImportError as error:
    raise _NotWritten(f'{error}: {litert.INSTALL}') from error
  call = jax.jit(jax.export.deserialize(bytearray(content)).call)
  scores = _run_each(_waves(given), lambda wave_S: call(wave_S[None])[0])
  _keep(given, name, content, scores, 'JAX export: waveforms in, any batch')


def _litert_waveform(given: _Given, name: str) -> None:
  own = given.own.with_lowering('unrolled')
  waves = _waves(given)
  content = litert.convert(
    lambda waveform: {'probabilities': own.from_wave(waveform)},
    {'waveform': waves[:1]},
  )
  run = litert.Interpreter(content)
  scores = _run_each(
    waves, lambda wave_S: run(waveform=wave_S[None])['probabilities'][0]
  )
  _keep(given, name, content, scores, 'LiteRT float: a waveform in')


def _convert_log_mel(given: _Given) -> bytes:
  own = given.own.with_lowering('unrolled')
  return litert.convert(
    lambda log_mel: {'probabilities': own.from_log_mel(log_mel)},
    {'log_mel': given.clips.mel_NTF[:1]},
  )


def _run_log_mel(content: bytes, mel_NTF) -> np.ndarray:
  run = litert.Interpreter(content)
  return _run_each(
    mel_NTF, lambda mel_TF: run(log_mel=mel_TF[None])['probabilities'][0]
  )


def _litert_log_mel(given: _Given, name: str) -> None:
  content = _convert_log_mel(given)
  scores = _run_log_mel(content, given.clips.mel_NTF)
  _keep(given, name, content, scores, 'LiteRT float: a log-mel in')


def _litert_int8(given: _Given, name: str, max_loss: float) -> None:
  """The first kind of int8 that loses little enough on validate."""
  found = given.found
  if found.dataset is None:
    raise _NotWritten(
      f'int8 needs the clips that the model was trained on: {found.reason}'
    )
  content, tried = _convert_log_mel(given), []
  ranges = [{'log_mel': x[None]} for x in found.splits['train'].mel_NTF]
  before = found.score('validate', given.reference['validate'])['micro_auprc']
  for kind in litert.INT8:
    small = litert.quantize(content, kind, ranges)
    scores = _run_log_mel(small, found.splits['validate'].mel_NTF)
    loss = before - found.score('validate', scores)['micro_auprc']
    if loss <= max_loss:
      scores = _run_log_mel(small, given.clips.mel_NTF)
      note = f'{kind}; loss on validate {loss:+.4f}'
      note += ''.join(f'; {other} lost {lost:.4f}' for other, lost in tried)
      what = 'LiteRT int8: a log-mel in'
      _keep(given, name, small, scores, what, np.inf, note)
      return
    tried.append((kind, loss))
  losses = ', '.join(f'{kind} {loss:.4f}' for kind, loss in tried)
  raise _NotWritten(
    f'every kind loses more than --max_int8_loss={max_loss} of micro-AUPRC on '
    f'validate: {losses}'
  )


def _litert_step(given: _Given, name: str) -> None:
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
  _write(given, name, content, error, 'LiteRT float: a step of a stream', note)


# Comparing -------------------------------------------------------------------


def _waves(given: _Given) -> np.ndarray:
  """Float32 waveforms of the compared clips."""
  return given.clips.wave_NS.astype(np.float32) / 32768


def _run_each(
  inputs: Iterable[np.ndarray], run: Callable[[np.ndarray], Any]
) -> np.ndarray:
  """An artefact's output for each clip."""
  return np.stack([np.asarray(run(x), np.float64) for x in inputs])


def _keep(
  given: _Given, name, content, scores_NC, what, limit=MAX_ERROR, note=''
) -> None:
  """Writes an artefact whose probabilities are the model's."""
  wanted_NC = given.reference[given.found.tested]
  error = np.abs(scores_NC - wanted_NC[: len(scores_NC)])
  own = {}
  if given.found.dataset is not None:
    own = given.found.score(given.found.tested, scores_NC, _BOOTSTRAP)
  _write(given, name, content, error, what, note, limit, own)


def _write(
  given: _Given, name, content, error, what, note='', limit=MAX_ERROR, own=None
) -> None:
  if not np.isfinite(error).all() or error.max() > limit:
    raise _NotWritten(
      f'a probability is off by {error.max():.2g} on {given.found.tested}, '
      f'expected at most {limit:g}'
    )
  files.write_atomically(given.folder / name, content)
  given.records.append(
    {
      'file': name,
      'what': what,
      'bytes': len(content),
      'largest_error': float(error.max()),
      'mean_error': float(error.mean()),
      'compared': len(error),
      'note': note,
      **(own or {}),
    }
  )
  files.write_atomically(
    given.folder / 'artefacts.json', json.dumps(given.records, indent=1)
  )
