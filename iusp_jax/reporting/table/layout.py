"""The rows of a report's tables, of what `aggregates.aggregate` gives."""

from collections.abc import Mapping
from typing import Any

from iusp_jax.reporting import formatting
from iusp_jax.reporting.table import records

Rows = list[list[str]]


def score_rows(numbers: Mapping[str, Any]) -> Rows:
  """Students × objectives: mean ± sd, what is surely best in bold."""
  names = numbers['objectives']
  rows = [['student', 'parameters', 'MACs', *map(records.title, names)]]
  for student, of in numbers['students'].items():
    cells = [_score(of['scores'][o]) for o in names]
    if of['best'] in names:
      at = names.index(of['best'])
      cells[at] = f'**{cells[at]}**'
    sizes = [formatting.count(of['parameters']), formatting.count(of['macs'])]
    rows.append([student, *sizes, *cells])
  for teacher in numbers['teachers']:
    name = f'teacher {teacher.get("rotation") or ""}'.rstrip()
    sizes = [formatting.count(teacher.get(k)) for k in ('parameters', 'macs')]
    score = decimal((teacher.get('test') or {}).get('micro_auprc'))
    rows.append([name, *sizes, score, *[''] * (len(names) - 1)])
  return rows


def _score(scores) -> str:
  """Mean ± sd, and how many cells are done if not all."""
  text = _mean_sd(scores['micro_auprc'])
  done, expected = scores['done'], scores['expected']
  return text if done == expected else f'{text} {done}/{expected}'


def rotation_rows(numbers: Mapping[str, Any]) -> Rows:
  """The same for each rotation of the folds."""
  names = numbers['objectives']
  rows = [['student', 'rotation', *map(records.title, names)]]
  for student, of in numbers['students'].items():
    for i, rotation in enumerate(numbers['rotations']):
      cells = [
        _mean_sd(of['scores'][o]['by_rotation'][rotation]) for o in names
      ]
      rows.append(['' if i else student, rotation, *cells])
  return rows


def difference_rows(numbers: Mapping[str, Any]) -> Rows:
  """Grouped by comparison: a row a student, and one for all of them."""
  head = ['comparison', 'student', 'difference', '95 % interval', 'sd', 'won']
  rows = [[*head, 'p sign', 'p permutation']]
  groups = [(s, of['differences']) for s, of in numbers['students'].items()]
  if (total := len(groups)) > 1:
    groups.append((records.POOLED, numbers['pooled']['differences']))
  for own, other in records.comparisons(numbers['objectives']):
    name = f'{records.title(own)} − {records.title(other)}'
    for student, differences in groups:
      for found in differences:
        if (found['own'], found['other']) == (own, other):
          whose = _whose(student, found, total)
          rows.append([name, whose, *_difference(found)])
          name = ''
  return rows


def _whose(student: str, found: Mapping[str, Any], total: int) -> str:
  """The name of a row; with the number of students if the pool lacks some."""
  count = found.get('students', total)
  return student if count == total else f'{count} of {total} students'


def _difference(found) -> list[str]:
  mean, low, high = (_signed(found[k]) for k in ('mean', 'low', 'high'))
  sure = found['low'] is not None and (found['low'] > 0 or found['high'] < 0)
  return [
    f'**{mean}**' if sure else mean,
    '-' if found['low'] is None else f'[{low}, {high}]',
    decimal(found['sd']),
    f'{found["wins"]}/{found["n"]}',
    _p_value(found['sign_p']),
    _p_value(found['permutation_p']),
  ]


def ratio_rows(numbers: Mapping[str, Any]) -> Rows:
  """The paper's ratio, a row a student and one for all of them."""
  rows = [['student', 'n', 'SP − no KD', 'IUSP − no KD', 'r, 95 % interval']]
  groups = list(numbers['students'].items())
  if (total := len(groups)) > 1:
    groups.append((records.POOLED, numbers['pooled']))
  for student, of in groups:
    ratio = of['ratio']
    if ratio is None:
      continue
    # A gain of other students or seeds than the ratio's does not belong to it.
    own = [
      found
      for found in of['differences']
      if (found.get('students'), found['n'])
      == (ratio.get('students'), ratio['n'])
    ]
    gains = [_gain(own, o) for o in ('sp', 'iusp')]
    if ratio['value'] is None:
      text = f'withheld: {ratio["reason"]}'
    else:
      r, low, high = (_percent(ratio[k]) for k in ('value', 'low', 'high'))
      text = f'{r} [{low}, {high}]'
    whose = _whose(student, ratio, total)
    rows.append([whose, str(ratio['n']), *gains, text])
  return rows


def _gain(differences, own: str) -> str:
  for found in differences:
    if (found['own'], found['other']) == (own, 'baseline'):
      return _signed(found['mean'])
  return '-'


def other_rows(numbers: Mapping[str, Any]) -> Rows:
  """The other scores, a row for each student and objective."""
  head = ['student', 'objective', 'γ', 'validate', 'macro-AUPRC', 'mAP']
  rows = [[*head, 'lwlrap', 'last', 'distance']]
  keys = ['validate_micro_auprc', 'macro_auprc', 'map', 'lwlrap']
  for student, of in numbers['students'].items():
    for i, o in enumerate(numbers['objectives']):
      scores, weights = of['scores'][o], of['weights'][o] or {}
      gamma = ', '.join(f'{k} {v:g}' for k, v in weights.items()) or '-'
      cells = [_mean_sd(scores[k]) for k in (*keys, 'last_test_micro_auprc')]
      distance = scores['frame_distance']
      cells.append('-' if distance is None else f'{distance["mean"]:.2e}')
      name = '' if i else student
      rows.append([name, records.title(o), gamma, *cells])
  return rows


def absent_rows(numbers: Mapping[str, Any]) -> Rows:
  """The cells that left no scores."""
  head = ['student', 'objective', 'rotation', 'seed', 'status', 'reason']
  return [head] + [
    [str(cell[k] if cell[k] not in (None, '') else '-') for k in head]
    for cell in numbers['absent']
  ]


def decimal(value: float | None) -> str:
  """'.512' as papers write scores that are below 1; '-' where there is none."""
  if value is None:
    return '-'
  text = f'{abs(value):.3f}'.removeprefix('0')
  return f'−{text}' if value < 0 else text


def _signed(value) -> str:
  if value is None:
    return '-'
  return decimal(value) if value < 0 else f'+{decimal(value)}'


def _percent(value) -> str:
  return '∞' if value is None else f'{100 * value:+.0f} %'.replace('-', '−')


def _p_value(value: float) -> str:
  return '<.001' if value < 0.001 else decimal(value)


def _mean_sd(summary) -> str:
  if summary is None:
    return '-'
  sd = '' if summary['sd'] is None else f' ± {decimal(summary["sd"])}'
  return decimal(summary['mean']) + sd
