"""The picture of scores against what a student costs."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.reporting import formatting, plots
from iusp_jax.reporting.table import style

_COSTS = {'parameters': 'parameters', 'macs': 'multiply-accumulates a clip'}
_SCORE = 'test micro-AUPRC'


def draw(table: Mapping[str, Any], path: pathlib.Path) -> bool:
  """Draws the picture and its text; False where there are no numbers."""
  scores = style.summaries(table, lambda cell: cell['test']['micro_auprc'])
  sizes = {
    cost: {
      c['student']: c[cost] for c in table['cells'] if c.get(cost) is not None
    }
    for cost in _COSTS
  }
  sizes = {cost: of for cost, of in sizes.items() if of}
  if not scores or not sizes:
    return False
  teachers = [t.get('test') or {} for t in table['teachers']]
  teachers = [float(t['micro_auprc']) for t in teachers if t.get('micro_auprc')]
  with plots.figure(4.0, path) as page:
    panels = page.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, (cost, of) in zip(panels, sizes.items(), strict=True):
      _draw_cost(axes, of, scores, style.looks(table))
      axes.set_xlabel(_COSTS[cost])
      if teachers:
        axes.axhline(np.mean(teachers), color='#777777', linestyle='--', lw=1)
        _label_teacher(axes, np.mean(teachers))
    panels[0].set_ylabel(_SCORE)
    style.legend(page, panels[0])
  lines = [['student', 'objective', *sizes, 'mean', 'sd', 'n']]
  for (student, o), found in scores.items():
    costs = [formatting.count(of.get(student)) for of in sizes.values()]
    lines.append([student, o, *costs, *style.cells(found)])
  for score in teachers:
    lines.append(['teacher', '-', *['-'] * len(sizes), *style.cells(score)])
  plots.save_text(formatting.align(lines), path)
  return True


def _label_teacher(axes, score) -> None:
  axes.annotate(
    'teacher',
    (0, score),
    xycoords=('axes fraction', 'data'),
    xytext=(3, -3),
    textcoords='offset points',
    color='#555555',
    va='top',
  )


def _draw_cost(axes, size, scores, looks) -> None:
  """A curve for each objective and family: sizes of one are joined."""
  families = {}
  for student in sorted(size, key=lambda s: size[s]):
    families.setdefault(student.rpartition('_')[0] or student, []).append(
      student
    )
  axes.set_xscale('log')
  shown = set()
  for i, (o, look) in enumerate(looks.items()):
    # Side by side, so that the error bars do not hide each other.
    shift = 1.035 ** (i - (len(looks) - 1) / 2)
    for family in families.values():
      points = [
        (size[s] * shift, scores[s, o]) for s in family if (s, o) in scores
      ]
      if points:
        style.bars(
          axes,
          [x for x, _ in points],
          [found for _, found in points],
          look if o not in shown else look | {'label': None},
          linestyle='-',
        )
        shown.add(o)
  axes.grid(axis='y')
  axes.margins(x=0.08)
  _name_students(axes, size)


def _name_students(axes, size) -> None:
  """Names above the panel; students of nearly one size share a place."""
  places = []
  span = max(1.0, math.log(max(size.values()) / min(size.values())))
  for student in sorted(size, key=lambda s: size[s]):
    if places and math.log(size[student] / places[-1][0]) < 0.04 * span:
      places[-1][1] += f', {student}'
    else:
      places.append([size[student], student])
  for place, _ in places:
    axes.axvline(place, color='#eeeeee', linewidth=0.8, zorder=0)
  for place, name in places:
    axes.annotate(
      name,
      (place, 1),
      xycoords=('data', 'axes fraction'),
      xytext=(0, 2),
      textcoords='offset points',
      rotation=60,
      fontsize=6.5,
      rotation_mode='anchor',
    )
  ticks = [n * 10**e for e in range(2, 12) for n in (1, 2, 5)]
  low, high = min(size.values()), max(size.values())
  ticks = [t for t in ticks if low / 1.3 <= t <= high * 1.3]
  if ticks:
    axes.set_xticks(ticks, [_short(t) for t in ticks])
    axes.set_xticks([], minor=True)


def _short(number: int) -> str:
  """'5k', '2M': a round number of parameters or MACs."""
  for unit, size in (('G', 10**9), ('M', 10**6), ('k', 10**3)):
    if number >= size:
      return f'{number / size:g}{unit}'
  return f'{number}'
