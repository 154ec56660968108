"""Scores as text: the tables at the end of a run, and how numbers are written.

What is printed is at most `WIDTH` columns wide. A score that is not defined, as
of a split without positives, is 'undefined'; one that was not measured is '-'.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.scoring import metrics

WIDTH = 100  # columns of text
# Column titles of `score_table`, in order.
SCORES = {
  'micro_auprc': 'micro-AUPRC',
  'macro_auprc': 'macro-AUPRC',
  'micro_f1': 'micro-F1',
  'map': 'mAP',
  'lwlrap': 'lwlrap',
}
_SPLITS = ('train', 'validate', 'test')
_LEVELS = ('coarse', 'fine')


def score_table(results: Mapping[str, Any]) -> str:
  """The scores of a run as text.

  Args:
    results: by model, the teacher's rows go first: `best` and `last`, split
      by split, level by level, scores by name (`micro_auprc`, …, with
      `micro_auprc_ci` [low, high] where there are intervals); `parameters` and
      `macs`.

  Returns:
    A row for each model, checkpoint, split and level, a column for each score
    that some row has; below, the rule of the means over tags by split and level
    (where the scores hold `positives`), and the size of each model.
  """
  models = [
    (name, results[name])
    for name in sorted(results, key=lambda name: name != 'teacher')
    if isinstance(results[name], Mapping)
  ]
  rows = [
    (f'{name} {when}', f'{split} {level}', by_level[level])
    for name, model in models
    for when in ('best', 'last')
    for split, by_level in _ordered(model.get(when) or {}, _SPLITS)
    for level, _ in _ordered(by_level, _LEVELS)
  ]
  columns = [name for name in SCORES if any(name in row[-1] for row in rows)]
  if not rows:
    return ''
  lines = [['', '', *(SCORES[name] for name in columns)]]
  for i, (model, split, scores) in enumerate(rows):
    first = '' if i and rows[i - 1][0] == model else model
    cells = [_score(scores, name) for name in columns]
    lines.append([first, split, *cells])
  sizes = [
    f'{name}: {count(model.get("parameters"))} parameters, '
    f'{count(model.get("macs"))} MACs a clip\n'
    for name, model in models
    if 'parameters' in model or 'macs' in model
  ]
  rules = dict.fromkeys(_mean_rule(split, scores) for _, split, scores in rows)
  return align(lines, (0, 1), WIDTH) + ''.join([*rules, *sizes])


def _mean_rule(split: str, scores: Mapping[str, Any]) -> str:
  """A line about the means over tags; '' where the positives are not given."""
  names = [SCORES[name] for name in ('macro_auprc', 'map') if name in scores]
  if not names or not scores.get('positives'):
    return ''
  rule = metrics.mean_rule(scores['positives'])
  return f'{", ".join(names)} on {split}: {rule}\n'


def _ordered(by_name: Mapping[str, Any], order: Sequence[str]):
  """Items whose values are mappings, known names first."""
  rank = {name: i for i, name in enumerate(order)}
  return sorted(
    (item for item in by_name.items() if isinstance(item[1], Mapping)),
    key=lambda item: (rank.get(item[0], len(rank)), item[0]),
  )


def _score(scores: Mapping[str, Any], name: str) -> str:
  """A score; with the interval of micro-AUPRC, the others' are in the JSON."""
  if name not in scores:
    return '-'
  text, ends = decimal(scores[name], 'undefined'), scores.get(f'{name}_ci')
  if name != 'micro_auprc' or not ends:
    return text
  return f'{text} {interval(ends)}'


def comparison(
  models: Mapping[str, Mapping[str, Any]],
  difference: Mapping[str, Any],
  table: str,
) -> str:
  """What a run ends with: a teacher, and a student without and with it.

  Args:
    models: by title, in order of the rows; the last two are the student
      without and with distillation. Scores of one split and level:
      `micro_auprc` and, where there is one, `micro_auprc_ci`.
    difference: `difference`, `low`, `high` and `num_clips` of the last less
      the one before it, as `statistics.clip_difference` gives them.
    table: where the results over seeds and students are.

  Returns:
    Lines of text, each with a newline.
  """
  lines = [['', 'test micro-AUPRC', '95 % interval']]
  for title, scores in models.items():
    text = decimal(scores.get('micro_auprc'), 'undefined')
    lines.append([title, text, interval(scores.get('micro_auprc_ci'))])
  ends = interval([difference['low'], difference['high']], signed)
  text = signed(difference['difference'])
  lines.append(['difference of the last two', text, ends])
  return align(lines, width=WIDTH) + (
    f'Intervals: bootstrap over the {difference["num_clips"]} test clips, the '
    'same resamples for both students.\n'
    'This is one seed, which decides nothing: the intervals do not cover other '
    'seeds.\n'
    f'Results over seeds, students and objectives: {table}\n'
  )


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
  return value is not None and math.isfinite(value)


def number(value, digits: int = 4) -> str:
  """A score for a file of numbers: '0.5120'."""
  if value is None:
    return '-'
  return f'{value:.{digits}f}' if is_number(value) else 'undefined'


def decimal(value: float | None, absent: str = '-') -> str:
  """A score for readers: '.512', as papers write what is below 1."""
  if value is None or not math.isfinite(value):
    return absent
  text = f'{abs(value):.3f}'.removeprefix('0')
  return f'−{text}' if value < 0 else text


def signed(value: float | None) -> str:
  """'+.012', '−.012'; '-' where there is none."""
  text = decimal(value)
  return text if text[0] in '-−' else f'+{text}'


def interval(ends: Sequence[float | None] | None, text=decimal) -> str:
  """'[.512, .534]'; '-' where there is none."""
  low, high = ends or (None, None)
  return '-' if low is None else f'[{text(low)}, {text(high)}]'


def mean_sd(summary: Mapping[str, Any] | None) -> str:
  """'.512 ± .011'; the mean alone of one score."""
  if summary is None:
    return '-'
  sd = '' if summary['sd'] is None else f' ± {decimal(summary["sd"])}'
  return decimal(summary['mean']) + sd


def summary_cells(summary: Mapping[str, Any], digits: str = '.4f') -> list[str]:
  """Mean, sd and n for a file of numbers."""
  sd = '-' if summary['sd'] is None else format(summary['sd'], digits)
  return [format(summary['mean'], digits), sd, str(summary['n'])]


def p_value(value: float) -> str:
  """'.021', and '<.001' for what three digits cannot tell from 0."""
  return '<.001' if value < 0.001 else decimal(value)


def percent(value: float | None) -> str:
  """'+27 %', '−5 %', '+∞'; '-' where there is none."""
  if value is None:
    return '-'
  text = f'{100 * value:+.0f} %' if math.isfinite(value) else f'{value:+}'
  return text.replace('-', '−').replace('inf', '∞')


def align(
  lines: Sequence[Sequence[str]],
  left: Sequence[int] = (0,),
  width: float = math.inf,
) -> str:
  """Lines of cells as columns of text.

  Args:
    lines: of equal numbers of cells.
    left: the columns that are set to the left, such as the first ones, which
      name the line.
    width: what does not fit in so many columns of text continues below, the
      first columns repeated.
  """
  lines = padded(lines, left)
  names = next(i for i in range(len(lines[0]) + 1) if i not in left)
  start = sum(len(cell) + 2 for cell in lines[0][:names])
  blocks: list[list[int]] = [[]]
  taken = start
  for i, cell in enumerate(lines[0][names:], names):
    if blocks[-1] and taken + len(cell) > width:
      blocks.append([])
      taken = start
    blocks[-1].append(i)
    taken += len(cell) + 2
  return '\n'.join(
    ''.join(
      '  '.join([*line[:names], *(line[i] for i in block)]).rstrip() + '\n'
      for line in lines
    )
    for block in blocks
  )


def padded(
  lines: Sequence[Sequence[str]], left: Sequence[int], least: int = 0
) -> list[list[str]]:
  """Cells as wide as their column; numbers are set to the right."""
  wide = [max(least, *map(len, column)) for column in zip(*lines, strict=True)]
  return [
    [c.ljust(wide[i]) if i in left else c.rjust(wide[i]) for i, c in cells]
    for cells in (list(enumerate(line)) for line in lines)
  ]
