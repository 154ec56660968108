"""Scores as text: the table of a run, and how numbers are written."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Column titles of `score_table`, in order.
SCORES = {
  'micro_auprc': 'micro-AUPRC',
  'macro_auprc': 'macro-AUPRC',
  'micro_f1': 'micro-F1',
  'map': 'mAP',
  'lwlrap': 'lwlrap',
}


def score_table(results: Mapping[str, Any]) -> str:
  """The scores of a run as a text table of fixed width.

  Args:
    results: by model ('teacher', 'student', …): `best` and `last`, each split
      by split, level by level, scores by name (`micro_auprc`, …, with
      `micro_auprc_ci` [low, high] where there are intervals); `parameters` and
      `macs`. Whatever is absent is '-', or no column where all lack it.

  Returns:
    A row for each model and checkpoint, a column for each score.
  """
  rows = [
    (model, when, results[model])
    for model in sorted(results, key=lambda m: (m != 'teacher', m))
    for when in ('best', 'last')
    if isinstance(results[model], Mapping) and results[model].get(when)
  ]
  columns = _score_columns([of[when] for _, when, of in rows])
  sizes = [k for k in ('parameters', 'macs') if any(k in r[2] for r in rows)]
  heads = [
    ['', *(f'{split} {level}' for split, level, _ in columns)],
    ['', *(SCORES[score] for *_, score in columns)],
  ]
  # A level's name stands over the first of its columns.
  heads[0] = [
    '' if i and text == heads[0][i - 1] else text
    for i, text in enumerate(heads[0])
  ]
  titles = {'parameters': 'parameters', 'macs': 'MACs'}
  heads = [heads[0] + [''] * len(sizes), heads[1] + [titles[k] for k in sizes]]
  lines = [
    [
      f'{model} {when}',
      *(_score_cell(of[when], *column) for column in columns),
      *(count(of.get(k)) for k in sizes),
    ]
    for model, when, of in rows
  ]
  return align([*heads, *lines])


def _score_columns(entries) -> list[tuple[str, str, str]]:
  """(split, level, score) that any entry holds, validate and coarse first."""
  order = ['train', 'validate', 'test', 'coarse', 'fine']
  rank = {name: i for i, name in enumerate(order)}
  found = {
    (split, level)
    for entry in entries
    for split, levels in entry.items()
    if isinstance(levels, Mapping)
    for level in levels
  }
  ordered = sorted(found, key=lambda x: [(rank.get(n, 9), n) for n in x])
  return [
    (split, level, score)
    for split, level in ordered
    for score in SCORES
    if any(
      (e.get(split) or {}).get(level, {}).get(score) is not None
      for e in entries
    )
  ]


def _score_cell(entry, split, level, score) -> str:
  scores = (entry.get(split) or {}).get(level) or {}
  text = number(scores.get(score), digits=3)
  interval = scores.get(f'{score}_ci')
  if interval is None:
    return text
  return text + ' [{:.3f}, {:.3f}]'.format(*interval)


def count(number: float | None) -> str:
  """A number of parameters or MACs: '950', '83.8k', '3.49M', '-'."""
  if number is None:
    return '-'
  for unit, size in (('M', 1e6), ('k', 1e3)):
    if number >= 0.9995 * size:
      value = number / size
      return f'{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}'
  return f'{number:.0f}'


def is_number(value) -> bool:
  """Whether there is a value, and it is finite."""
  return value is not None and bool(np.isfinite(value))


def number(value, digits: int = 4) -> str:
  """A score as text; 'undefined' where there is none."""
  if value is None:
    return '-'
  return f'{value:.{digits}f}' if is_number(value) else 'undefined'


def align(lines: Sequence[Sequence[str]]) -> str:
  """Lines of cells as columns: the first to the left, the others right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = ''
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    text += '  '.join(cells).rstrip() + '\n'
  return text
