"""The records of a table's cells: which there are, and whether they are valid.

A cell is one run; a pair is (rotation, seed), which all objectives share: the
same clips, batches and initial values.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

STATUSES = ('done', 'diverged', 'missing')
KEY = ('rotation', 'student', 'objective', 'seed', 'status')

# By student and objective, by pair: the cells that are done.
Done = Mapping[tuple[str, str], Mapping[tuple[str, Any], Mapping[str, Any]]]


def students(table: Mapping[str, Any]) -> list[str]:
  """The students of the cells, in order of appearance."""
  return list(dict.fromkeys(cell['student'] for cell in table['cells']))


def rotations(table: Mapping[str, Any]) -> list[str]:
  """The fold rotations of the cells; [''] for fixed splits."""
  return list(dict.fromkeys(cell['rotation'] for cell in table['cells']))


def done(table: Mapping[str, Any]) -> Done:
  """The finished cells: by (student, objective), by (rotation, seed)."""
  names = dict.fromkeys(cell['objective'] for cell in table['cells'])
  found: dict = {(s, o): {} for s in students(table) for o in names}
  for cell in table['cells']:
    if cell['status'] == 'done':
      key = cell['student'], cell['objective']
      found[key][cell['rotation'], cell['seed']] = cell
  return found


def check(table: Mapping[str, Any]) -> None:
  """Raises ValueError, naming the field, where a table cannot be reported."""
  for field in ('dataset', 'tags', 'teachers', 'cells'):
    if field not in table:
      raise ValueError(f'table has no field {field!r}.')
  if not table['cells']:
    raise ValueError("table['cells'] is empty; expected one cell at least.")
  seen, sizes = {}, {}
  for i, cell in enumerate(table['cells']):
    name = f"table['cells'][{i}]"
    for field in KEY:
      if field not in cell:
        raise ValueError(f'{name} has no field {field!r}.')
    if cell['status'] not in STATUSES:
      raise ValueError(
        f"{name}['status'] is {cell['status']!r}; legal: {', '.join(STATUSES)}."
      )
    key = tuple(cell[field] for field in KEY[:4])
    if key in seen:
      raise ValueError(
        f'{name} is {key}, as is {seen[key]}; expected one cell of each.'
      )
    seen[key] = name
    if cell['status'] == 'done':
      _check_scores(name, cell, len(table['tags']), sizes)


def _check_scores(name, cell, num_tags: int, sizes) -> None:
  """Of a finished cell; `sizes` keeps how many resamples there were so far.

  Scores are None where the clips, or those of a resample, have no positives.
  """
  test = cell.get('test') or {}
  if 'micro_auprc' not in test:
    raise ValueError(f"{name}['test'] has no 'micro_auprc'; expected a score.")
  _check_number(f"{name}['test']['micro_auprc']", test['micro_auprc'])
  resampled = cell.get('resampled') or []
  for i, value in enumerate(resampled):
    _check_number(f"{name}['resampled'][{i}]", value)
  if resampled:
    sizes.setdefault(len(resampled), name)
  if len(sizes) > 1:
    found = ', '.join(
      f"{n} in {where}['resampled']" for n, where in sizes.items()
    )
    raise ValueError(f'{found}; expected as many resamples in all cells.')
  by_tag = test.get('class_auprc')
  if by_tag is not None and len(by_tag) != num_tags:
    raise ValueError(
      f"{name}['test']['class_auprc'] has {len(by_tag)} scores for "
      f"{num_tags} names in table['tags']."
    )


def _check_number(name, value) -> None:
  number = isinstance(value, numbers.Real) and math.isfinite(value)
  if value is not None and not number:
    raise ValueError(f'{name} is {value!r}; expected a finite number or None.')
