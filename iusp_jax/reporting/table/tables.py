"""The paper's table as files: markdown to read, CSV of cells, JSON of numbers.

Pure functions of one plain dict, which a table's folder keeps: a report is
rebuilt from it without training.
"""

import csv
import io
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.reporting import formatting
from iusp_jax.reporting.table import aggregates, layout, records
from iusp_jax.runtime import files

# Columns of words; those of numbers are set to the right.
_WORDS = (
  'student', 'comparison', 'objective', 'rotation', 'γ', 'status', 'reason',
  'r, 95 % interval',
)  # fmt: skip
_NOTE = """\
± is the standard deviation over pairs; a pair is a seed of one rotation of the
folds. **Bold**: the lead over every other objective, over the pairs that both
have, is beyond its 95 % interval. `a/b` after a score: only a of b cells are
done."""
_DIFFERENCE_NOTE = """\
Differences are paired: same seed, same clips. 95 % interval of the mean by
bootstrap over seeds and test clips together (what seeds add widened to
Student's t); **bold** where it does not hold 0. sd: of the paired differences.
won: pairs above 0, of n. p: two-sided sign test, and sign-flip permutation test
of the mean (exact up to 16 pairs); both look at pairs alone, not at the choice
of test clips, and neither is corrected for the number of rows.
"all students": the mean over the students of the pairs that none of them lacks;
"a of b students": b - a of them have no run of an objective that the row needs.
Students share seeds and clips, so a seed counts once and is drawn whole."""
_RATIO_NOTE = """\
r = (IUSP - no KD) / (SP - no KD) - 1, the "increase in improvement relative to
SP's improvement", over the pairs that have all three. Withheld unless the 95 %
interval of SP's gain lies above 0: a ratio over a gain that may be 0 says
nothing."""


def write(table: Mapping[str, Any], folder: str | os.PathLike) -> str:
  """Writes `table.md`, `table.csv` and `table.json`; each in one step.

  Args:
    table: `dataset`, `tags`, `command`, `environment`; `repetitiveness` by tag;
      `teachers`, a list of `rotation`, `fingerprint`, `parameters`, `macs`,
      `trained_in`, `validate` and `test` (scores by name); and `cells`, a list
      of `rotation` ('' for fixed splits), `student`, `objective`, `weights`,
      `seed`, `status` (done, diverged or missing), `reason`, `parameters`,
      `macs`, `validate`, `test` (with `class_auprc`, one a tag),
      `last_test_micro_auprc`, `resampled` (micro-AUPRC on resamples of the
      test clips), `frame_distance`, `curve` (pairs of step and validate
      micro-AUPRC) and `seconds`. What is optional may be absent or None.
    folder: made if it is not there.

  Returns:
    The table for a terminal.

  Raises:
    ValueError: a field that is absent or does not fit, by its name; nothing is
      written then.
  """
  numbers = aggregates.aggregate(table)
  # All is text before the first file is touched.
  content = {
    'table.csv': cells_csv(table),
    'table.json': files.to_json(numbers),
    'table.md': markdown(numbers),
  }
  for name, text in content.items():
    files.write_atomically(pathlib.Path(folder) / name, text)
  return terminal(numbers)


def markdown(numbers: Mapping[str, Any]) -> str:
  """What `aggregates.aggregate` gives, for a reader of papers."""
  parts = [
    f'# Distillation on {numbers["dataset"]}',
    'micro-AUPRC on the test split, at the epoch that is best on validate.\n'
    + _counts(numbers),
    _grid(layout.score_rows(numbers)),
    _NOTE,
    _teacher_lines(numbers),
  ]
  if len(numbers['rotations']) > 1:
    parts += ['## By rotation', _grid(layout.rotation_rows(numbers))]
  differences = layout.difference_rows(numbers)
  if len(differences) > 1:
    parts += ['## Differences', _grid(differences), _DIFFERENCE_NOTE]
    parts += _seeds_alone(numbers)
  ratios = layout.ratio_rows(numbers)
  if len(ratios) > 1:
    parts += ["## The paper's ratio", _grid(ratios), _RATIO_NOTE]
  parts += [
    '## Other scores',
    _grid(layout.other_rows(numbers)),
    _OTHER_NOTE,
  ]
  if numbers['absent']:
    parts += [
      '## Cells that are not done',
      _grid(layout.absent_rows(numbers)),
    ]
  parts += ['## How it was made', _origin(numbers)]
  return '\n\n'.join(parts) + '\n'


_OTHER_NOTE = """\
On the test split but for "validate". last: micro-AUPRC after the last epoch
instead of the best. distance: ‖G_teacher − G_student‖² / T² of the frame
similarities, mean over test clips. γ: weights of the objectives, those
of a student's first cell where cells differ."""


def terminal(numbers: Mapping[str, Any]) -> str:
  """The scores, differences and ratios as text of fixed width."""
  parts = [f'{numbers["dataset"]}: test micro-AUPRC, mean ± sd over pairs']
  parts += [_counts(numbers), _fixed(layout.score_rows(numbers))]
  for rows in (
    layout.difference_rows(numbers),
    layout.ratio_rows(numbers),
  ):
    if len(rows) > 1:
      parts.append(_fixed(rows))
  return '\n'.join(part.rstrip('\n') + '\n' for part in parts)


def cells_csv(table: Mapping[str, Any]) -> str:
  """One row a cell, with every number of it but curves and resamples."""
  rows = []
  for cell in table['cells']:
    row = {k: cell.get(k) for k in (*records.KEY, 'reason')}
    weights = cell.get('weights') or {}
    row['weights'] = ' '.join(f'{k}={v:g}' for k, v in weights.items())
    for name in ('parameters', 'macs', 'seconds', 'frame_distance'):
      row[name] = cell.get(name)
    for split in ('validate', 'test'):
      for score, value in (cell.get(split) or {}).items():
        if score != 'class_auprc':
          row[f'{split}_{score}'] = value
    row['last_test_micro_auprc'] = cell.get('last_test_micro_auprc')
    by_tag = (cell.get('test') or {}).get('class_auprc') or []
    row |= {
      f'test_auprc/{tag}': value
      for tag, value in zip(table['tags'], by_tag, strict=bool(by_tag))
    }
    rows.append(row)
  # The fullest row gives the order: a missing cell has few columns.
  columns = dict.fromkeys(max(rows, key=len))
  columns |= dict.fromkeys(name for row in rows for name in row)
  text = io.StringIO()
  writer = csv.DictWriter(text, list(columns), lineterminator='\n')
  writer.writeheader()
  writer.writerows(rows)
  return text.getvalue()


def _counts(numbers) -> str:
  counts = numbers['counts']
  found = f'{sum(counts.values())} cells: ' + ', '.join(
    f'{n} {status}' for status, n in counts.items() if n
  )
  return f'{found}.'


def _seeds_alone(numbers) -> list[str]:
  groups = [*numbers['students'].values(), numbers['pooled']]
  found = [d for of in groups for d in of['differences']]
  alone = sum(not d['resamples'] for d in found)
  if not alone:
    return []
  return [
    f'{alone} of {len(found)} intervals are over seeds alone: a cell of theirs '
    'has no scores on resampled clips.'
  ]


def _teacher_lines(numbers) -> str:
  lines = []
  for teacher in numbers['teachers']:
    scores = {
      split: layout.decimal((teacher.get(split) or {}).get('micro_auprc'))
      for split in ('validate', 'test')
    }
    name = f'Teacher {teacher.get("rotation") or ""}'.rstrip()
    lines.append(
      f'{name}: {scores["test"]} on test, {scores["validate"]} on validate; '
      f'{formatting.count(teacher.get("parameters"))} parameters, '
      f'{formatting.count(teacher.get("macs"))} MACs, trained in '
      f'{teacher.get("trained_in") or "unknown time"}, fingerprint '
      f'`{teacher.get("fingerprint") or "-"}`.'
    )
  return '  \n'.join(lines) or 'No teacher.'


def _origin(numbers) -> str:
  environment = numbers['environment'] or {}
  lines = [f'```\n{numbers["command"] or "unknown command"}\n```', '']
  for name, value in environment.items():
    values = value if isinstance(value, list) else [value]
    lines.append(f'- {name}: {" or ".join(map(_words, values))}')
  return '\n'.join(lines).rstrip()


def _words(value) -> str:
  if isinstance(value, Mapping):
    return ', '.join(f'{name} {version}' for name, version in value.items())
  return str(value)


def _grid(rows: Sequence[Sequence[str]]) -> str:
  """A markdown table whose source is a table to the eye, too."""
  columns = []
  for column in zip(*rows, strict=True):
    column = [cell.replace('|', '\\|') for cell in column]
    wide = max(3, *map(len, column))
    if column[0] in _WORDS:
      column, rule = [cell.ljust(wide) for cell in column], '-' * wide
    else:
      column = [cell.rjust(wide) for cell in column]
      rule = '-' * (wide - 1) + ':'
    columns.append([column[0], rule, *column[1:]])
  lines = zip(*columns, strict=True)
  return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _fixed(rows: Sequence[Sequence[str]]) -> str:
  """The same for a terminal; what is bold has stars."""
  rows = [[cell.replace('**', '*') for cell in row] for row in rows]
  if rows[0][-1] in _WORDS:
    wide = max(len(row[-1]) for row in rows)
    rows = [[*row[:-1], row[-1].ljust(wide)] for row in rows]
  return formatting.align(rows)
