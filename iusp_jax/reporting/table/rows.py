"""The paper's table as rows: what markdown, text, CSV and JSON are made of.

A row is plain data: names, numbers and flags. A section is rows and the columns
that show them. A missing or diverged cell takes its pair out of the comparisons
that need it, and of no other.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.reporting.formatting import (
  count,
  decimal,
  interval,
  is_number,
  mean_sd,
  p_value,
  percent,
  signed,
)
from iusp_jax.reporting.table import records
from iusp_jax.reporting.table.objectives import Objective, comparisons
from iusp_jax.scoring import statistics

Row = dict[str, Any]
POOLED = 'all students'
_LEADS_OVER = 'kd'
_OF_RATIO = ('iusp', 'sp', 'baseline')
_NOTES = {
  'scores': """\
± is the standard deviation over pairs; a pair is a seed of one rotation of the
folds. **Bold**: the lead over every other objective, over the pairs that both
have, is beyond its 95 % interval. `a/b` after a score: only a of b cells are
done.""",
  'differences': """\
Differences are paired: same seed, same clips. 95 % interval of the mean by
bootstrap that draws both seeds and test clips (the part of seeds is widened to
Student's t); **bold** where it does not hold 0. sd: of the paired differences.
won: pairs above 0, of n. p: two-sided sign test, and sign-flip permutation test
of the mean (exact up to 16 pairs); both are over pairs alone, not over test
clips, and neither is corrected for the number of rows.
"all students": the mean over the students of the pairs that all of them have;
"a of b students": b - a of them have no run of an objective that the row needs.
Students share seeds and clips, so a seed counts once, with their mean.""",
  'leads': """\
Stated in the config, and in this order, before the runs: each less KD, as the
mean over all students. p: sign-flip permutation test over pairs. p Holm holds
for all of these rows together (Holm, 1979); one that has no pair yet counts as
p = 1. Every other line of this report is exploratory.""",
  'ratio': """\
r = (IUSP - no KD) / (SP - no KD) - 1, the "increase in improvement relative to
SP's improvement", and both gains, over the pairs that have all three. Withheld
unless the 95 % interval of SP's gain lies above 0: a ratio over a gain that may
be 0 has no meaning.""",
  'other': """\
On the test split but for "validate". last: micro-AUPRC after the last epoch
instead of the best. distance: ‖G_teacher − G_student‖² / T² of the frame
similarities, mean over test clips. γ: weights of the objectives, those
of a student's first cell where cells differ; ratio: that of gradients that
they follow from. clipped: mean share of steps that shortened the gradient.
stored: kB of the teacher's outputs a clip. step: of one seed, the median of a
run, and the least of the cells, on whatever machine ran them.""",
}


@dataclasses.dataclass(frozen=True)
class Column:
  """Shows one entry of a row; words are set to the left, numbers right."""

  title: str
  key: str
  text: Callable[[Any], str] = str
  words: bool = False

  def show(self, row: Row) -> str:
    """The entry as text; '-' where there is none."""
    value = row.get(self.key)
    text = '-' if value is None or value == '' else self.text(value)
    return f'**{text}**' if self.key in row.get('bold', ()) else text


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the report."""

  heading: str
  columns: Sequence[Column]
  rows: Sequence[Row]
  note: str = ''

  def lines(self) -> list[list[str]]:
    """Titles and rows as text; repetitions in the first column are left out."""
    lines = [[column.show(row) for column in self.columns] for row in self.rows]
    firsts = [line[0] for line in lines]
    for line, before in zip(lines[1:], firsts, strict=False):
      line[0] = '' if line[0] == before else line[0]
    return [[column.title for column in self.columns], *lines]


def sections(
  table: Mapping[str, Any], objectives: Mapping[str, Objective]
) -> dict[str, Section]:
  """The parts of a report that have rows.

  Args:
    table: as `tables.write` takes it, checked by `records.check`.
    objectives: of the table, see `objectives.of_table`.

  Returns:
    Some of `scores`, `leads`, `teachers`, `by_rotation`, `differences`,
    `ratio`, `other` and `absent`.
  """
  done = records.done(table)
  found = {
    'scores': _scores(table, done, objectives),
    'leads': _leads(table, done, objectives),
    'teachers': _teachers(table),
    'by_rotation': _by_rotation(table, done, objectives),
    'differences': _differences(table, done, objectives),
    'ratio': _ratios(table, done, objectives),
    'other': _other(table, done, objectives),
    'absent': _absent(table),
  }
  return {name: section for name, section in found.items() if section.rows}


def summary(values: Iterable[Any]) -> Row | None:
  """Mean, sd and n of the numbers among the values; None if there is none."""
  found = [value for value in values if is_number(value)]
  return dataclasses.asdict(statistics.summarise(found)) if found else None


def summaries(
  done: records.Done, read: Callable[[Mapping[str, Any]], Any]
) -> dict[tuple[str, str], Row]:
  """By student and objective, where there are numbers; `read` takes a cell."""
  found = {of: summary(map(read, cells.values())) for of, cells in done.items()}
  return {of: row for of, row in found.items() if row}


def matched(
  done: records.Done,
  students: Sequence[str],
  names: Sequence[str],
  read: Callable[[Mapping[str, Any]], Any],
) -> tuple[np.ndarray, list[str], int] | None:
  """Runs of some objectives, of the same pairs, as a mean over students.

  Students share seeds and test clips, so that their differences are not
  independent: a seed counts once, with the mean over its students.

  Args:
    done: the finished cells.
    students: those without a run of one of the objectives are left out.
    names: K objectives.
    read: from a cell to its numbers `[L]`, or None where it has none; L may
      differ, and is cut to the least.

  Returns:
    `[K, S, L]` of the S pairs that all these students have, the rotation of
    each, and the number of students; None where there is no such pair.
  """
  runs = [
    [
      {p: v for p, c in done[s, name].items() if (v := read(c)) is not None}
      for name in names
    ]
    for s in students
    if all((s, name) in done for name in names)
  ]
  runs = [of for of in runs if all(of)]
  every = [run for of in runs for run in of]
  pairs = (
    [p for p in every[0] if all(p in run for run in every)] if runs else []
  )
  if not pairs:
    return None
  size = min(len(run[p]) for run in every for p in pairs)
  values = [[[run[p][:size] for p in pairs] for run in of] for of in runs]
  mean_KSL = np.mean(np.array(values, np.float64), axis=0)
  return mean_KSL, [rotation for rotation, _ in pairs], len(runs)


def difference(found: tuple[np.ndarray, list[str], int]) -> Row:
  """`statistics.Difference` of what `matched` gives for two objectives.

  The first number of a run is its score, the others are its resamples.
  """
  runs_KSL, rotations, num_students = found
  own = statistics.paired_difference(
    *_arguments(runs_KSL), rotation_S=rotations
  )
  return {'students': num_students, **dataclasses.asdict(own)}


def _arguments(runs_KSL: np.ndarray) -> list:
  """Scores `[S]` and resamples `[S, R]` of K objectives for `statistics`."""
  # A resample without positives has no score.
  runs_KSL = runs_KSL[..., np.isfinite(runs_KSL).all(axis=(0, 1))]
  whole = runs_KSL.shape[2] > 1
  resampled = [run_SL[:, 1:] if whole else None for run_SL in runs_KSL]
  return [*runs_KSL[:, :, 0], *resampled]


def _micro(cell: Mapping[str, Any]) -> list[float] | None:
  score = cell['test']['micro_auprc']
  return None if score is None else [score, *(cell.get('resampled') or [])]


def _groups(table) -> list[tuple[str, list[str]]]:
  """Every student by itself, and all of several."""
  names = records.students(table)
  every = [(POOLED, names)] if len(names) > 1 else []
  return [(name, [name]) for name in names] + every


def _group(name: str, members: Sequence[str], num_students: int) -> str:
  """The name of a row; with the number of students if some are left out."""
  if num_students == len(members):
    return name
  return f'{num_students} of {len(members)} students'


def _per_objective(objectives, text) -> list[Column]:
  return [Column(o.title, name, text) for name, o in objectives.items()]


_STUDENT = Column('student', 'student', words=True)
_DIFFERENCE = [
  Column('difference', 'mean', signed),
  Column('95 % interval', 'interval', lambda ends: interval(ends, signed)),
]
_SIZES = [
  Column('parameters', 'parameters', count), Column('MACs', 'macs', count),
]  # fmt: skip


def _scores(table, done, objectives) -> Section:
  rows = []
  for student in records.students(table):
    cells = [cell for cell in table['cells'] if cell['student'] == student]
    row: Row = {'student': student, 'bold': _best(done, student, objectives)}
    for size in ('parameters', 'macs'):
      row[size] = next(
        (c[size] for c in cells if c.get(size) is not None), None
      )
    for name in objectives:
      row[name] = {
        'done': len(done[student, name]),
        'expected': sum(cell['objective'] == name for cell in cells),
        **(summary(_scored(done[student, name])) or {}),
      }
    rows.append(row)

  def text(score):
    """Mean ± sd, and how many cells are done if not all."""
    found = mean_sd(score if score.get('n') else None)
    counted = f'{score["done"]}/{score["expected"]}'
    return found if score['done'] == score['expected'] else f'{found} {counted}'

  columns = [_STUDENT, *_SIZES, *_per_objective(objectives, text)]
  return Section('', columns, rows, _NOTES['scores'])


def _scored(cells, rotation: str | None = None) -> list[float]:
  return [
    cell['test']['micro_auprc']
    for (own, _), cell in cells.items()
    if rotation in (None, own)
  ]


def _best(done, student: str, objectives) -> list[str]:
  """The objective whose lead over every other is beyond its interval, if any.

  Each lead is over the pairs that both have: a mean over other pairs
  cannot be compared.
  """

  def leads(own: str, other: str) -> bool:
    found = matched(done, [student], (own, other), _micro)
    low = difference(found)['low'] if found else None
    return low is not None and low > 0

  names = [name for name in objectives if done[student, name]]
  return [
    own
    for own in names
    if len(names) > 1 and all(leads(own, o) for o in names if o != own)
  ]


def _leads(table, done, objectives) -> Section:
  """The differences that were stated beforehand, corrected together."""
  students, rows = records.students(table), []
  for name in table.get('leads') or []:
    row: Row = {'own': name, 'other': _LEADS_OVER, 'students': 0}
    titles = [
      objectives[of].title if of in objectives else of
      for of in (name, _LEADS_OVER)
    ]
    row['comparison'] = ' − '.join(titles)
    found = None
    if {name, _LEADS_OVER} <= {*objectives}:
      found = matched(done, students, (name, _LEADS_OVER), _micro)
    if found is not None:
      row |= difference(found)
      row['interval'] = [row['low'], row['high']]
      row['won'] = f'{row["wins"]}/{row["n"]}'
    row['student'] = _group(POOLED, students, row['students'])
    rows.append(row)
  corrected = statistics.holm([row.get('permutation_p', 1.0) for row in rows])
  for row, p in zip(rows, corrected, strict=True):
    row['holm_p'] = p if 'permutation_p' in row else None
  columns = [
    Column('comparison', 'comparison', words=True),
    _STUDENT,
    *_DIFFERENCE,
    Column('won', 'won'),
    Column('p', 'permutation_p', p_value),
    Column('p Holm', 'holm_p', p_value),
  ]
  return Section('Stated beforehand', columns, rows, _NOTES['leads'])


def _teachers(table) -> Section:
  def micro(scores):
    return decimal(scores.get('micro_auprc'))

  columns = [
    Column('teacher of', 'of', words=True),
    *_SIZES,
    Column('test', 'test', micro),
    Column('validate', 'validate', micro),
    Column('trained in', 'trained_in', words=True),
    Column('fingerprint', 'fingerprint', words=True),
  ]
  rows = [
    {'of': teacher.get('rotation') or 'all cells', **teacher}
    for teacher in table['teachers']
  ]
  return Section('', columns, rows)


def _by_rotation(table, done, objectives) -> Section:
  rotations = records.rotations(table)
  rows = [
    {'student': student, 'rotation': rotation}
    | {o: summary(_scored(done[student, o], rotation)) for o in objectives}
    for student in records.students(table)
    for rotation in rotations
    if len(rotations) > 1
  ]
  columns = [_STUDENT, Column('rotation', 'rotation', words=True)]
  columns += _per_objective(objectives, mean_sd)
  return Section('By rotation', columns, rows)


def _differences(table, done, objectives) -> Section:
  rows = []
  for own, other in comparisons(list(objectives)):
    title = f'{objectives[own].title} − {objectives[other].title}'
    for name, members in _groups(table):
      found = matched(done, members, (own, other), _micro)
      if found is None:
        continue
      row: Row = {'own': own, 'other': other, 'group': name}
      row |= {'comparison': title, **difference(found)}
      row['student'] = _group(name, members, row['students'])
      row['interval'] = low, high = [row['low'], row['high']]
      sure = low is not None and not low <= 0 <= high
      row['bold'] = ['mean'] if sure else []
      row['won'] = f'{row["wins"]}/{row["n"]}'
      rows.append(row)
  columns = [
    Column('comparison', 'comparison', words=True),
    _STUDENT,
    *_DIFFERENCE,
    Column('sd', 'sd', decimal),
    Column('won', 'won'),
    Column('p sign', 'sign_p', p_value),
    Column('p permutation', 'permutation_p', p_value),
  ]
  note, alone = _NOTES['differences'], sum(not row['resamples'] for row in rows)
  if alone:
    note += (
      f'\n\n{alone} of {len(rows)} intervals are over seeds alone: a cell of '
      'theirs has no scores on resampled clips.'
    )
  return Section('Differences', columns, rows, note)


def _ratios(table, done, objectives) -> Section:
  rows = []
  for name, members in _groups(table):
    if not {*_OF_RATIO} <= {*objectives}:
      break
    row: Row = {'group': name, 'students': len(members)}
    reason = 'no pair of all three objectives'
    ratio = statistics.Ratio(None, None, None, 0, reason)
    if found := matched(done, members, _OF_RATIO, _micro):
      runs_KSL, rotations, row['students'] = found
      ratio = statistics.gain_ratio(*_arguments(runs_KSL), rotation_S=rotations)
      iusp, sp, base = runs_KSL[:, :, 0].mean(axis=1).tolist()
      row |= {'sp_gain': sp - base, 'iusp_gain': iusp - base}
    row |= dataclasses.asdict(ratio)
    row['student'] = _group(name, members, row['students'])
    row['text'] = f'withheld: {ratio.reason}'
    if ratio.value is not None:
      ends = interval([ratio.low, ratio.high], percent)
      row['text'] = f'{percent(ratio.value)} {ends}'
    rows.append(row)
  columns = [
    _STUDENT,
    Column('n', 'n'),
    Column('SP − no KD', 'sp_gain', signed),
    Column('IUSP − no KD', 'iusp_gain', signed),
    Column('r, 95 % interval', 'text', words=True),
  ]
  return Section("The paper's ratio", columns, rows, _NOTES['ratio'])


def _other(table, done, objectives) -> Section:
  scores = {'macro_auprc': 'macro-AUPRC', 'map': 'mAP', 'lwlrap': 'lwlrap'}
  by_term: dict = {'weights': {}, 'ratios': {}}
  for cell in table['cells']:
    key = cell['student'], cell['objective']
    for name, found in by_term.items():
      found[key] = found.get(key) or cell.get(name)
  rows = []
  for student in records.students(table):
    for name, objective in objectives.items():
      cells = done[student, name].values()
      row: Row = {'student': student, 'objective': name}
      row['title'] = objective.title
      row |= {key: found.get((student, name)) for key, found in by_term.items()}
      row['validate_micro_auprc'] = summary(
        (cell.get('validate') or {}).get('micro_auprc') for cell in cells
      )
      for key in scores:
        row[key] = summary(cell['test'].get(key) for cell in cells)
      for key in (
        'last_test_micro_auprc',
        'frame_distance',
        'clipped_share',
        'seconds',
      ):
        row[key] = summary(cell.get(key) for cell in cells)
      for key in ('stored_bytes', 'step_seconds'):
        numbers = [cell[key] for cell in cells if is_number(cell.get(key))]
        row[key] = min(numbers, default=None)
      rows.append(row)
  columns = [
    _STUDENT,
    Column('objective', 'title', words=True),
    Column('γ', 'weights', _weights, words=True),
    Column('ratio', 'ratios', _weights, words=True),
    Column('validate', 'validate_micro_auprc', mean_sd),
    *(Column(title, key, mean_sd) for key, title in scores.items()),
    Column('last', 'last_test_micro_auprc', mean_sd),
    Column('distance', 'frame_distance', lambda found: f'{found["mean"]:.2e}'),
    Column('clipped', 'clipped_share', lambda found: f'{found["mean"]:.0%}'),
    Column('stored, kB', 'stored_bytes', lambda size: f'{size / 1e3:.1f}'),
    Column('step, ms', 'step_seconds', lambda spent: f'{1e3 * spent:.1f}'),
  ]
  # Tables of earlier versions lack these.
  later = ('ratios', 'clipped_share', 'stored_bytes', 'step_seconds')
  columns = [c for c in columns if c.key not in later or _any(rows, c.key)]
  return Section('Other scores', columns, rows, _NOTES['other'])


def _any(rows: Sequence[Row], key: str) -> bool:
  return any(row.get(key) for row in rows)


def _weights(weights: Mapping[str, float]) -> str:
  """'iusp 300, sp 30'."""
  return ', '.join(f'{k} {v:g}' for k, v in weights.items()) or '-'


def _absent(table) -> Section:
  keys = ('student', 'objective', 'rotation', 'seed', 'status', 'reason')
  rows = [
    {key: cell.get(key) for key in keys}
    for cell in table['cells']
    if cell['status'] != 'done'
  ]
  columns = [Column(key, key, words=key != 'seed') for key in keys]
  return Section('Cells that are not done', columns, rows)


def cells(table: Mapping[str, Any]) -> list[Row]:
  """One flat row a cell, with every number of it but curves and resamples."""
  rows = []
  for cell in table['cells']:
    row = {key: cell.get(key) for key in (*records.KEY, 'reason')}
    row |= {k: v for k, v in cell.items() if not isinstance(v, list | dict)}
    weights = cell.get('weights') or {}
    row['weights'] = ' '.join(f'{k}={v:g}' for k, v in weights.items())
    for split in ('validate', 'test'):
      scores = dict(cell.get(split) or {})
      by_tag = scores.pop('class_auprc', None) or []
      row |= {f'{split}_{name}': value for name, value in scores.items()}
    tags = zip(table['tags'], by_tag, strict=bool(by_tag))
    rows.append(row | {f'test_auprc/{tag}': value for tag, value in tags})
  return rows
