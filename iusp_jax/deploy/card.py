"""The card of an exported tagger: README.md of its folder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import iusp_jax
from iusp_jax.deploy import examples, functions, tagging
from iusp_jax.reporting import formatting
from iusp_jax.runtime import files

_USE = """\
## Use

Probabilities are calibrated; a tag is present from its threshold on. Waveforms
are float32 in [-1, 1], mono, {rate} Hz, {samples} samples ({seconds:g} s);
a shorter sound is padded with zeros at the end. A log-mel is made of one as
`config.json` (`frontend`) and `frontend.h` describe: {frames} frames of
{bands} bands. `golden.npz` has waveforms, their log-mel and the probabilities
that an implementation has to give.

LiteRT (`pip install ai-edge-litert`):

    from ai_edge_litert.interpreter import Interpreter
    run = Interpreter('tagger_waveform.tflite').get_signature_runner()
    run(waveform=wave[None])['probabilities']

ONNX (`pip install onnxruntime`):

    import onnxruntime
    session = onnxruntime.InferenceSession('tagger_waveform.onnx')
    session.run(['probabilities'], {{'waveform': waves}})  # Any number.

JAX:

    from jax import export
    tagger = export.deserialize(open('tagger.stablehlo', 'rb').read())
    tagger.call(waves)
"""


def write(
  folder: pathlib.Path,
  loaded: tagging.LoadedTagger,
  own: functions.Functions,
  found: examples.Examples,
  reference: Mapping[str, np.ndarray],
  records: Sequence[Mapping[str, Any]],
  refused: Sequence[Mapping[str, str]],
) -> None:
  """Writes the card.

  Args:
    folder: of the export.
    loaded: the tagger.
    own: its functions.
    found: the clips that were compared on, and where they are from.
    reference: probabilities of the model, by split.
    records: of what was written: `file`, `what`, `bytes`, `arena_bytes` (None
      where it is no LiteRT file), `largest_error`, `mean_error`, `compared`,
      `note`, and where there is a data set `micro_auprc` and `interval`.
    refused: of what was not: `file` and `reason`.
  """
  cfg, of = own.model.frontend, loaded.trained.metadata
  frames, bands = own.mel_shape
  parts = [
    f'# Audio tagger: {of["model"]["architecture"]}, {len(loaded.names)} tags',
    _facts(loaded, own),
    '## Artefacts\n\n' + _comparison(found, reference) + _table(records),
    _refused(refused),
    _USE.format(
      rate=cfg.sample_rate,
      samples=own.num_samples,
      seconds=own.num_samples / cfg.sample_rate,
      frames=frames,
      bands=bands,
    ),
    '## Tags\n\n' + _thresholds(loaded),
  ]
  text = '\n\n'.join(part.strip() for part in parts if part) + '\n'
  files.write_atomically(folder / 'README.md', text)


def _facts(loaded, own) -> str:
  found, of = loaded.trained, loaded.trained.metadata
  parameters = found.model.num_parameters(found.variables)
  macs = found.model.num_macs(own.num_samples)
  dtype = of.get('training', {}).get('compute_dtype', 'float32')
  lines = [
    f'- {parameters:,} parameters; {macs:,} multiply-accumulates a clip, front '
    'end excluded',
    f'- trained on {of["dataset"]["name"]}; fingerprint {found.fingerprint}, '
    f'weights {found.weights()}',
    f'- exported by iusp-jax {iusp_jax.__version__} (Apache-2.0); the licence '
    'of the recordings is that of the data set',
  ]
  if dtype != 'float32':
    lines.append(f'- trained with {dtype} activations, exported in float32')
  return '\n'.join(lines)


def _comparison(found: examples.Examples, reference) -> str:
  """What the errors and scores were taken on."""
  count = len(reference[found.tested])
  if found.dataset is None:
    return (
      f'Compared with the model on {count} clips of noise and on the golden '
      f'vectors, without scores: {found.reason}.\n\n'
    )
  own = found.score(found.tested, reference[found.tested])['micro_auprc']
  kept = ''
  if found.reason:
    kept = (
      ', which were kept with the checkpoint (`config.keep_examples`), with '
      f'{len(found.splits["train"].mel_NTF)} of train and '
      f'{len(reference["validate"])} of validate for int8: {found.reason}'
    )
  return (
    f'Compared with the model on the first {count} clips of '
    f'{found.dataset.name}, {found.tested}{kept}. Errors are of calibrated '
    'probabilities, and scores too: they differ from those of results.json, '
    'which are uncalibrated and of all clips. The model itself has '
    f'micro-AUPRC {formatting.decimal(own)} there.\n\n'
  )


def _table(records) -> str:
  lines = [
    '| file | what | bytes | tensor arena | largest error | mean error | '
    'micro-AUPRC |',
    '|---|---|---|---|---|---|---|',
  ]
  for record in records:
    score = '-'
    if record.get('micro_auprc') is not None:
      score = formatting.decimal(record['micro_auprc'])
      score += f' {formatting.interval(record["interval"])}'
    arena = '-' if not record['arena_bytes'] else f'{record["arena_bytes"]:,}'
    note = f' ({record["note"]})' if record['note'] else ''
    lines.append(
      f'| `{record["file"]}` | {record["what"]}{note} | '
      f'{record["bytes"]:,} | {arena} | {record["largest_error"]:.1e} | '
      f'{record["mean_error"]:.1e} | {score} |'
    )
  text = 'The tensor arena is what LiteRT takes for inputs and activations.'
  return '\n'.join(lines) + f'\n\n{text}\n'


def _refused(refused) -> str:
  if not refused:
    return ''
  lines = [f'- `{of["file"]}`: {of["reason"]}' for of in refused]
  return '## Not written\n\n' + '\n'.join(lines)


def _thresholds(loaded) -> str:
  own = loaded.calibration
  rule = 'Not calibrated: every temperature is 1 and every threshold .5.'
  if own.fitted_on:
    rule = (
      f'Fitted on {own.fitted_on}: the temperature with the least '
      'cross-entropy, then the threshold with the best F1.'
    )
  lines = ['| tag | temperature | threshold |', '|---|---|---|']
  for name, temperature, threshold in zip(
    loaded.names, own.temperatures_C, own.thresholds_C, strict=True
  ):
    few = own.fitted_on and name in own.uncalibrated
    mark = ' (too few positives)' if few else ''
    lines.append(f'| {name}{mark} | {temperature:.3f} | {threshold:.3f} |')
  return rule + '\n\n' + '\n'.join(lines)
