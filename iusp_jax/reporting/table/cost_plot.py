"""The plot of scores against what a student costs."""

import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.reporting import figures, formatting
from iusp_jax.reporting.table import records, rows
from iusp_jax.reporting.table.objectives import Objective

_COSTS = {'parameters': 'parameters', 'macs': 'multiply-accumulates a clip'}
_SCORE = 'test micro-AUPRC'
_LEAST_SPAN = 4.0  # of an axis: its highest cost over its lowest


def draw(
  table: Mapping[str, Any],
  done: records.Done,
  objectives: Mapping[str, Objective],
  path: pathlib.Path,
) -> bool:
  """Draws the plot and its text; False where there are no numbers."""
  scores = rows.summaries(done, lambda cell: cell['test']['micro_auprc'])
  sizes = {
    cost: {
      c['student']: c[cost] for c in table['cells'] if c.get(cost) is not None
    }
    for cost in _COSTS
  }
  sizes = {cost: of for cost, of in sizes.items() if of}
  if not scores or not sizes:
    return False
  teachers = [
    float(score)
    for teacher in table['teachers']
    if (score := (teacher.get('test') or {}).get('micro_auprc'))
  ]
  with figures.figure(4.0, path) as page:
    panels = page.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, (cost, of) in zip(panels, sizes.items(), strict=True):
      _draw_cost(axes, of, scores, objectives)
      axes.set_xlabel(_COSTS[cost])
      if teachers:
        _draw_teacher(axes, float(np.mean(teachers)))
    panels[0].set_ylabel(_SCORE)
    figures.legend(page, panels[0])
  lines = []
  for (student, name), found in scores.items():
    costs = [formatting.count(of.get(student)) for of in sizes.values()]
    lines.append([student, name, *costs, *formatting.summary_cells(found)])
  for score in teachers:
    cells = formatting.summary_cells({'mean': score, 'sd': None, 'n': 1})
    lines.append(['teacher', *['-'] * (1 + len(sizes)), *cells])
  head = ['student', 'objective', *sizes, 'mean', 'sd', 'n']
  figures.save_table(head, lines, path)
  return True


def _draw_teacher(axes, score: float) -> None:
  axes.axhline(score, color=figures.GREY, linestyle='--', lw=1)
  axes.annotate(
    'teacher',
    (0, score),
    xycoords=('axes fraction', 'data'),
    xytext=(3, -3),
    textcoords='offset points',
    color='#555555',
    va='top',
  )


def _draw_cost(axes, size, scores, objectives) -> None:
  """A curve for each objective and family: sizes of one are joined."""
  from matplotlib import ticker

  families = {}
  for student in sorted(size, key=lambda s: size[s]):
    families.setdefault(student.rpartition('_')[0] or student, []).append(
      student
    )
  low, high = min(size.values()), max(size.values())
  span = max(math.log(high / low), math.log(_LEAST_SPAN))
  spare = (span - math.log(high / low)) / 2 + 0.1 * span
  axes.set_xscale('log')
  axes.set_xlim(low / math.exp(spare), high * math.exp(spare))
  axes.grid(axis='y')
  # Side by side, so that the error bars do not hide each other, and within
  # the same part of the axis whatever its span.
  step = min(0.011, 0.07 / len(objectives)) * span
  for i, objective in enumerate(objectives.values()):
    shift = math.exp(step * (i - (len(objectives) - 1) / 2))
    look: dict = objective.look()
    for family in families.values():
      students = [s for s in family if (s, objective.name) in scores]
      found = [scores[s, objective.name] for s in students]
      if found:
        x = [size[s] * shift for s in students]
        figures.error_bars(axes, x, found, linestyle='-', **look)
        look['label'] = None  # Once in the legend.
  _name_students(axes, size, span)
  round_numbers = (1, 2, 5) if span < math.log(300) else (1,)
  axes.xaxis.set_major_locator(ticker.LogLocator(subs=round_numbers))
  axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=''))
  axes.xaxis.set_minor_locator(ticker.NullLocator())


def _name_students(axes, size, span: float) -> None:
  """Names above the panel; students of nearly one size share a place."""
  places = []
  for student in sorted(size, key=lambda s: size[s]):
    if places and math.log(size[student] / places[-1][0]) < 0.04 * span:
      places[-1][1] += f', {student}'
    else:
      places.append([size[student], student])
  for place, name in places:
    axes.axvline(place, color='#eeeeee', linewidth=0.8, zorder=0)
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
