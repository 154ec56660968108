"""The paper's table as numbers: scores, differences and ratios of its cells.

A missing or diverged cell takes its pair out of the comparisons that need it,
and out of no other.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.reporting.table import records
from iusp_jax.scoring import statistics


def aggregate(table: Mapping[str, Any]) -> dict[str, Any]:
  """Everything that a report prints, as plain JSON.

  Args:
    table: as `tables.write` takes it.

  Returns:
    `dataset`, `command`, `environment`, `tags` and `repetitiveness` as the
    table has them (None where it has not); `objectives`, `rotations`,
    `teachers`, `counts` by status, `absent` (cells that are not done, with
    reason); `students`: by name `parameters`, `macs`, `best` (an objective, or
    None), `scores` and `weights` by objective, `differences` (a list of `own`,
    `other` and `statistics.Difference`) and `ratio`; `pooled`: `differences`
    and `ratio` over the students that have what they need, each with the number
    of these `students`. A number that is undefined is None.

  Raises:
    ValueError: as `records.check`.
  """
  records.check(table)
  names, cells = records.objectives(table), records.done(table)
  by_student = {
    name: _student(table, cells, name) for name in records.students(table)
  }
  return plain(
    {
      **{
        k: table.get(k) for k in ('dataset', 'command', 'environment', 'tags')
      },
      'repetitiveness': table.get('repetitiveness'),
      'teachers': table['teachers'],
      'objectives': names,
      'rotations': records.rotations(table),
      'students': by_student,
      'pooled': _pooled(cells, records.students(table), names),
      'counts': {
        status: sum(c['status'] == status for c in table['cells'])
        for status in records.STATUSES
      },
      'absent': [
        {k: cell.get(k) for k in (*records.KEY, 'reason')}
        for cell in table['cells']
        if cell['status'] != 'done'
      ],
    }
  )


def plain(value: Any) -> Any:
  """The value as JSON knows it: NumPy gone, NaN and infinity None."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple | np.ndarray):
    return [plain(v) for v in value]
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return plain(dataclasses.asdict(value))
  if isinstance(value, np.generic):
    value = value.item()
  return (
    None if isinstance(value, float) and not math.isfinite(value) else value
  )


def _student(table, cells: records.Done, student: str) -> dict[str, Any]:
  names = records.objectives(table)
  own = {o: _scored(cells[student, o]) for o in names}
  its_cells = [c for c in table['cells'] if c['student'] == student]
  return {
    **{
      k: next((c[k] for c in its_cells if c.get(k) is not None), None)
      for k in ('parameters', 'macs')
    },
    'best': _best(own),
    'weights': {
      o: next(
        (
          c['weights']
          for c in its_cells
          if c['objective'] == o and c.get('weights')
        ),
        None,
      )
      for o in names
    },
    'scores': {
      o: {
        'done': len(cells[student, o]),
        'expected': sum(c['objective'] == o for c in its_cells),
        **_scores(cells[student, o], records.rotations(table)),
      }
      for o in names
    },
    'differences': _differences(own, names),
    'ratio': _ratio(own),
  }


def _scores(cells, rotation_names) -> dict[str, Any]:
  """Summaries over the pairs of one student and objective."""

  def over(values):
    values = [v for v in values if v is not None and np.isfinite(v)]
    return statistics.summarise(values) if values else None

  def micro(rotation):
    return over(
      cell['test']['micro_auprc']
      for (own, _), cell in cells.items()
      if own == rotation
    )

  found = {
    m: over(c['test'].get(m) for c in cells.values()) for m in records.METRICS
  }
  found['validate_micro_auprc'] = over(
    (c.get('validate') or {}).get('micro_auprc') for c in cells.values()
  )
  for name in ('last_test_micro_auprc', 'frame_distance', 'seconds'):
    found[name] = over(c.get(name) for c in cells.values())
  return found | {'by_rotation': {r: micro(r) for r in rotation_names}}


@dataclasses.dataclass(frozen=True)
class _Run:
  """One score, and on resamples of the clips (empty if there are none)."""

  score: float
  resampled: np.ndarray


def _scored(cells) -> dict[tuple[str, Any], _Run]:
  return {
    pair: _Run(
      float(cell['test']['micro_auprc']),
      np.asarray(cell.get('resampled') or [], np.float64),
    )
    for pair, cell in cells.items()
  }


def _pooled(cells: records.Done, student_names, names) -> dict[str, Any]:
  """Comparisons over the students, each over those that have its objectives."""
  differences = []
  for own, other in records.comparisons(names):
    runs, count = _pool(cells, student_names, (own, other))
    found = _compare(runs, own, other)
    if found is not None:
      differences.append(_named(own, other, found) | {'students': count})
  ratio = None
  if {*_OF_RATIO} <= {*names}:
    runs, count = _pool(cells, student_names, _OF_RATIO)
    ratio = (_ratio(runs) or {}) | {'students': count}
  return {'differences': differences, 'ratio': ratio}


def _pool(cells: records.Done, student_names, names) -> tuple[dict, int]:
  """Mean runs of some objectives over the students, and how many these are.

  Of the students that have runs of all these objectives, and of the pairs that
  none of them lacks. Students share seeds and test clips, so their differences
  are no independent ones: a seed counts once, with the mean over its students.
  """
  kept = [s for s in student_names if all(cells[s, o] for o in names)]
  pooled = {}
  for o in names:
    runs = [_scored(cells[s, o]) for s in kept]
    common = [p for p in (runs[0] if runs else ()) if all(p in r for r in runs)]
    pooled[o] = {p: _mean_run([r[p] for r in runs]) for p in common}
  return pooled, len(kept)


def _mean_run(runs) -> _Run:
  whole = all(run.resampled.size for run in runs)
  return _Run(
    float(np.mean([run.score for run in runs])),
    np.mean([r.resampled for r in runs], axis=0) if whole else np.zeros(0),
  )


def _paired(runs, *names) -> dict[str, Any] | None:
  """Of the pairs that all objectives have: scores, resamples, rotations."""
  columns = [runs.get(name) or {} for name in names]
  pairs = [p for p in columns[0] if all(p in column for column in columns)]
  if not pairs:
    return None
  score_KS = [[column[p].score for p in pairs] for column in columns]
  resampled = [[column[p].resampled for p in pairs] for column in columns]
  whole = all(r.size for row in resampled for r in row)
  return {
    'args': [*score_KS, *(resampled if whole else [None] * len(names))],
    'rotation_S': [rotation for rotation, _ in pairs],
  }


def _compare(runs, own: str, other: str) -> statistics.Difference | None:
  found = _paired(runs, own, other)
  if found is None:
    return None
  return statistics.paired_difference(
    *found['args'], rotation_S=found['rotation_S']
  )


def _differences(runs, names) -> list[dict[str, Any]]:
  return [
    _named(own, other, found)
    for own, other in records.comparisons(names)
    if (found := _compare(runs, own, other)) is not None
  ]


def _named(own: str, other: str, found: statistics.Difference) -> dict:
  return {'own': own, 'other': other, **dataclasses.asdict(found)}


_OF_RATIO = ('iusp', 'sp', 'baseline')


def _ratio(runs) -> dict[str, Any] | None:
  """None where one of the three objectives is not in the table."""
  if not {*_OF_RATIO} <= {*runs}:
    return None
  found = _paired(runs, *_OF_RATIO)
  if found is None:
    reason = 'no pair of all three objectives'
    return dataclasses.asdict(statistics.Ratio(None, None, None, 0, reason))
  return dataclasses.asdict(
    statistics.gain_ratio(*found['args'], rotation_S=found['rotation_S'])
  )


def _best(runs) -> str | None:
  """The objective whose lead over every other is beyond its interval.

  Each lead is over the pairs that both have: a mean over other pairs says
  nothing, be it higher or lower.
  """
  present = [o for o, own in runs.items() if own]
  for own in present:
    leads = (_compare(runs, own, other) for other in present if other != own)
    if len(present) > 1 and all(map(_beyond, leads)):
      return own
  return None


def _beyond(lead: statistics.Difference | None) -> bool:
  return lead is not None and lead.low is not None and lead.low > 0
