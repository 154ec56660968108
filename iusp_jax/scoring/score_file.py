"""Scores a predictions file against SONYC-UST's annotations.csv.

`write_predictions` and `read_predictions` are those of `predictions.py`.
"""

import difflib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.runtime import files
from iusp_jax.scoring import metrics
from iusp_jax.scoring.predictions import (
  Predictions,
  read_predictions,
  some,
  write_predictions,
)
from tfds_dcase import annotations as annotations_lib
from tfds_dcase import taxonomy

__all__ = (
  'main_score',
  'read_predictions',
  'score_files',
  'table',
  'write_predictions',
)

LABELS = ('recomputed', 'as_shipped')
_COLUMNS = {'coarse': taxonomy.COARSE, 'fine': taxonomy.FINE_COLUMNS}


def score_files(
  predictions: str | os.PathLike,
  annotations: str | os.PathLike,
  split: str = 'validate',
  level: str | None = None,
  labels: str = 'recomputed',
  bootstrap: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores a predictions file as the DCASE 2019 Task 5 challenge does.

  Validate and test are scored on the clips that have a truth row; train,
  which has none, on the volunteers' votes (at least one).

  Args:
    predictions: .csv or .csv.gz.
    annotations: SONYC-UST's annotations.csv, v1 or v2.
    split: 'train', 'validate' or 'test'.
    level: 'coarse', 'fine', or None for both (fine where the file has it).
    labels: 'recomputed' = coarse truth from the fine tags, or 'as_shipped',
      only to compare with scores that were made so.
    bootstrap: resamples for 95 % intervals; 0 = none.
    seed: of the resampling.

  Returns:
    A flat dict, ready for JSON: for each level `<level>_micro_auprc`,
    `_macro_auprc`, `_micro_f1`, `_class_auprc` by class name and the rest of
    `metrics.score`, classes by name; `split`, `labels`, `num_clips`, the
    files, and `notes` in words.

  Warns:
    UserWarning: naming columns that are missing (their scores are 0), columns
      that are no tag, and a level at which nothing can be scored.

  Raises:
    ValueError: clips missing, extra or twice, no truth for the split, unknown
      arguments, or whatever `read_predictions` and `annotations.read` raise.
  """
  if level not in (None, *metrics.LEVELS):
    raise ValueError(
      f'Unknown level {level!r}; legal: {", ".join(metrics.LEVELS)}, or none '
      'for both.'
    )
  read = annotations_lib.read(annotations)
  names, truth, notes = _truth(read, split, labels)
  found = read_predictions(predictions, taxonomy.COARSE + taxonomy.FINE_COLUMNS)
  if not found.scores_by_column:
    raise ValueError(
      f'{predictions}: no column is a tag of the taxonomy (found '
      f'{some(found.ignored)}); expected {some(taxonomy.COARSE)}.'
    )
  if found.ignored:
    warnings.warn(
      f'{predictions}: columns that are no tag of the taxonomy are ignored: '
      f'{", ".join(map(repr, found.ignored))}.',
      stacklevel=2,
    )
  order_N, left_out = _align(predictions, found.clip_ids, names, read, split)
  if left_out:
    notes.append(
      f'{left_out} clips of {split} have no truth row and are left out.'
    )
  result = {
    'predictions': os.fspath(predictions),
    'annotations': os.fspath(annotations),
    'split': split,
    'labels': labels,
    'bootstrap': bootstrap,
    'num_clips': len(names),
  }
  for one in _levels(found, level, predictions, notes):
    scores_NQ = _scores(found, one, predictions, notes)[order_N]
    scored = metrics.score(truth[one], scores_NQ, one, bootstrap, seed)
    if not any(scored['positives']):
      what = f'{annotations}: {split} has no positives at the {one} level'
      warnings.warn(f'{what}: nothing can be scored there.', stacklevel=2)
    result |= _named(one, scored)
  return result | {'notes': list(dict.fromkeys(notes))}


def table(result: Mapping[str, Any]) -> str:
  """The result of `score_files` as lines of text."""
  lines = []
  for level in metrics.LEVELS:
    if f'{level}_micro_auprc' not in result:
      continue
    row = result[f'{level}_f1_row']
    positives = result[f'{level}_positives']
    lines += [
      '',
      f'{result["split"]}, {level} level, {result["num_clips"]} clips, labels '
      f'{result["labels"].replace("_", " ")}',
      _line(result, f'{level}_micro_auprc', 'micro-AUPRC'),
      _line(result, f'{level}_macro_auprc', 'macro-AUPRC')
      + f'  {metrics.mean_rule(list(positives.values()))}',
      _line(result, f'{level}_micro_f1', 'micro-F1 at 0.5')
      + f'  threshold {row["threshold"]:.4g}: TP {row["TP"]}, FP {row["FP"]}, '
      f'FN {row["FN"]}',
    ]
    for name, value in result[f'{level}_class_auprc'].items():
      interval = result.get(f'{level}_class_auprc_ci', {}).get(name)
      text = _cells(f'  {name}', value, interval)
      text += f'  {positives[name]} positives'
      if name in result[f'{level}_constant']:
        text += ', constant scores'
      lines.append(text)
  return '\n'.join(lines[1:])


def main_score(
  predictions: str,
  annotations: str,
  split: str = 'validate',
  level: str | None = None,
  labels: str = 'recomputed',
  output: str | None = None,
  bootstrap: int = 1000,
) -> dict[str, Any]:
  """Scores a predictions file, prints the table, writes JSON to `output`.

  Args and Raises: as for `score_files`; `output` None or '' = no JSON file.

  Returns:
    What was written.
  """
  for flag, value in (
    ('predictions', predictions),
    ('annotations', annotations),
  ):
    if not value:
      raise ValueError(
        f'--{flag} is missing: scoring needs --predictions=FILE.csv and '
        '--annotations=annotations.csv.'
      )
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    result = score_files(
      files.resolve(predictions),
      files.resolve(annotations),
      split,
      level or None,
      labels,
      bootstrap,
    )
  # A column missing at both levels is one warning.
  texts = dict.fromkeys(str(warning.message) for warning in caught)
  result['warnings'] = list(texts)
  for text in result['warnings']:
    print(f'warning: {text}', file=sys.stderr)
  for text in result['notes']:
    print(f'note: {text}')
  print(table(result))
  if output:
    text = json.dumps(result, indent=2, allow_nan=False) + '\n'
    files.write_atomically(files.resolve(output), text)
    print(f'written to {output}')
  return result


def _truth(
  read: annotations_lib.Annotations, split: str, labels: str
) -> tuple[list[str], dict[str, np.ndarray], list[str]]:
  """Names, truth by level and remarks of a split's clips that have truth."""
  if labels not in LABELS:
    raise ValueError(f'Unknown labels {labels!r}; legal: {", ".join(LABELS)}.')
  clips = annotations_lib.clips(read, split)
  if not len(clips.audio_filename):
    clips_of = {
      name: int((annotations_lib.clips(read, name).has_truth).sum())
      for name in annotations_lib.SPLITS
    }
    raise ValueError(
      f'{read.path} has no truth rows (annotator_id 0) of split {split!r}; '
      f'clips with truth: {clips_of}.'
    )
  notes = []
  if split == 'train':
    notes.append(
      'train has no agreed truth: scored against the volunteers, a tag being '
      'present if at least one of them marked it.'
    )
  coarse_NC = clips.coarse
  faulty = annotations_lib.faulty_coarse(read)
  if labels == 'recomputed' and faulty.count:
    notes.append(faulty.reason)
  if labels == 'as_shipped':
    coarse_NC = _as_shipped(read, clips.audio_filename, split)
    wrong = int((coarse_NC != clips.coarse).any(axis=1).sum())
    notes.append(
      f'coarse labels as shipped, only for comparison with old scores: '
      f'{wrong} of {len(coarse_NC)} clips contradict their fine tags.'
    )
  return (
    clips.audio_filename.tolist(),
    {'coarse': np.maximum(coarse_NC, 0), 'fine': np.maximum(clips.fine, 0)},
    notes,
  )


def _as_shipped(
  read: annotations_lib.Annotations, names_N: np.ndarray, split: str
) -> np.ndarray:
  """The file's own coarse tags [N, 8], of truth rows or any volunteer."""
  who = (
    read.annotator_id > 0
    if split == 'train'
    else read.annotator_id == annotations_lib.TRUTH
  )
  rows = np.flatnonzero((read.split == split) & who)
  coarse_NC = np.zeros((len(names_N), len(taxonomy.COARSE)), np.int8)
  place = np.searchsorted(names_N, read.audio_filename[rows])
  np.maximum.at(coarse_NC, place, read.coarse_as_shipped[rows])
  return coarse_NC


def _align(
  path: str | os.PathLike,
  clip_ids: Sequence[str],
  names: Sequence[str],
  read: annotations_lib.Annotations,
  split: str,
) -> tuple[np.ndarray, int]:
  """Rows of the predictions in order of `names`, and how many are left out."""
  row = {clip: n for n, clip in enumerate(clip_ids)}
  missing = sorted(set(names) - set(row))
  known = set(read.audio_filename[read.split == split].tolist())
  extra = sorted(set(row) - known)
  if missing or extra:
    raise ValueError(
      f'{path} does not hold the clips of split {split!r} of {read.path}: '
      f'{len(missing)} of {len(names)} missing ({some(missing)}), '
      f'{len(extra)} extra ({some(extra)}).'
    )
  order_N = np.array([row[name] for name in names])
  return order_N, len(row) - len(names)


def _levels(
  found: Predictions,
  level: str | None,
  path: str | os.PathLike,
  notes: list[str],
) -> list[str]:
  """The levels to score: the one asked for, or what the file has."""
  if level:
    return [level]
  if any(name in found.scores_by_column for name in taxonomy.FINE_COLUMNS):
    return list(metrics.LEVELS)
  notes.append(f'{path} has no fine columns: the fine level is left out.')
  return ['coarse']


def _scores(
  found: Predictions,
  level: str,
  path: str | os.PathLike,
  notes: list[str],
) -> np.ndarray:
  """Scores [N, C] or [N, 29] in file order; missing columns are zeros."""
  scores = found.scores_by_column
  if level == 'coarse' and not any(name in scores for name in taxonomy.COARSE):
    notes.append(
      f'{path} has no coarse columns: a coarse class scores the maximum of its '
      'fine scores.'
    )
    return annotations_lib.coarse_from_fine(_scores(found, 'fine', path, notes))
  columns = _COLUMNS[level]
  missing = [name for name in columns if name not in scores]
  if level == 'fine' and set(taxonomy.UNKNOWN) <= set(missing):
    # A model that never predicts X is no mistake.
    notes.append(f'{path} has no X columns: X is never predicted.')
    missing = [name for name in missing if name not in taxonomy.UNKNOWN]
  if missing:
    warnings.warn(
      f'{path}: missing {level} columns are scored as 0: '
      f'{", ".join(map(repr, missing))}.{_did_you_mean(missing, found)}',
      stacklevel=3,
    )
  zero_N = np.zeros(len(found.clip_ids))
  return np.stack([scores.get(name, zero_N) for name in columns], axis=1)


def _did_you_mean(missing: Sequence[str], found: Predictions) -> str:
  """A misspelt column, where one looks like a missing one."""
  pairs = [
    f'{close[0]!r} for {name!r}'
    for name in missing
    if (close := difflib.get_close_matches(name, found.ignored, n=1))
  ]
  return f' Is it {", ".join(pairs)}?' if pairs else ''


def _named(level: str, scored: Mapping[str, Any]) -> dict[str, Any]:
  """A level's results with the level in the keys and classes by name."""
  named = {}
  for key, value in scored.items():
    if key in ('class_auprc', 'class_auprc_ci', 'positives'):
      value = dict(zip(taxonomy.COARSE, value, strict=True))
    elif key in ('undefined', 'constant'):
      value = [taxonomy.COARSE[c] for c in value]
    elif key == 'num_clips':
      continue
    named[f'{level}_{key}'] = value
  return named


def _line(result: Mapping[str, Any], key: str, label: str) -> str:
  return _cells(label, result[key], result.get(f'{key}_ci'))


def _cells(
  label: str, value: float | None, interval: Sequence[float] | None
) -> str:
  text = f'{label:<26}' + ('undefined' if value is None else f'{value:.4f}')
  if interval is not None:
    text += f'  [{interval[0]:.4f}, {interval[1]:.4f}]'
  return text
