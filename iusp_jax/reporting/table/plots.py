"""Plots of the paper's table: cost, tags, learning, frame distance.

Every plot `name.png` comes with its numbers as text, `name.txt`.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.reporting import figures, formatting
from iusp_jax.reporting.table import cost_plot, objectives, records, rows

_COLUMNS = 3  # panels of learning curves in a row


def draw(table: Mapping[str, Any], folder: str | os.PathLike) -> list[str]:
  """Draws what the table has numbers for.

  Args:
    table: as `tables.write` takes it.
    folder: made if it is not there; gets `score_against_cost.png`,
      `gain_per_tag.png`, `learning_curves.png` and `frame_distance.png`, each
      with a `.txt` of its numbers.

  Returns:
    Names of the plots drawn. One without numbers is left out.

  Raises:
    ValueError: as `records.check`.
  """
  records.check(table)
  done, named = records.done(table), objectives.of_table(table)
  wanted = {
    'score_against_cost.png': cost_plot.draw,
    'gain_per_tag.png': _draw_tags,
    'learning_curves.png': _draw_curves,
    'frame_distance.png': _draw_distances,
  }
  folder = pathlib.Path(folder)
  return [
    name
    for name, make in wanted.items()
    if make(table, done, named, folder / name)
  ]


def _draw_tags(table, done, named, path) -> bool:
  repetitiveness = table.get('repetitiveness') or {}
  order = [
    t for t in table['tags'] if formatting.is_number(repetitiveness.get(t))
  ]
  order.sort(key=lambda t: -repetitiveness[t])
  shown = [o for o in named.values() if o.compares_similarities]
  gains = {
    (tag, o.name): gain
    for tag in order
    for o in shown
    if (gain := _gain(table, done, o.name, tag))
  }
  if not gains:
    return False
  with figures.figure(0.24 * len(order) + 0.95, path) as page:
    axes = page.add_subplot()
    for row in range(1, len(order), 2):
      axes.axhspan(row - 0.5, row + 0.5, color='#f4f4f4', zorder=0)
    axes.axvline(0, color=figures.GREY, linewidth=0.8)
    for i, objective in enumerate(shown):
      at = [y for y, tag in enumerate(order) if (tag, objective.name) in gains]
      found = [gains[order[y], objective.name] for y in at]
      if found:
        step = min(0.3, 0.8 / len(shown))  # Within the row of the tag.
        shifted = np.array(at) + step * (i - (len(shown) - 1) / 2)
        _draw_intervals(axes, shifted, found, objective)
    _label_tags(axes, order, repetitiveness)
    figures.legend(page, axes)
  lines = []
  for (tag, name), gain in gains.items():
    values = [gain[key] for key in ('mean', 'low', 'high')]
    first, *rest = map(formatting.number, (repetitiveness[tag], *values))
    lines.append([tag, first, name, *rest, str(gain['n'])])
  head = ['tag', 'repetitiveness', 'objective', 'gain', 'low', 'high', 'n']
  figures.save_table(head, lines, path)
  return True


def _gain(table, done, name: str, tag: str) -> rows.Row | None:
  """Of a tag's AUPRC over the baseline, a mean over students for each pair."""
  at = table['tags'].index(tag)

  def score(cell):
    by_tag = cell['test'].get('class_auprc')
    value = by_tag[at] if by_tag else None
    return [value] if formatting.is_number(value) else None

  students = records.students(table)
  found = rows.matched(done, students, (name, objectives.BASELINE), score)
  return rows.difference(found) if found else None


def _draw_intervals(axes, y, found, objective) -> None:
  mean = np.array([gain['mean'] for gain in found])
  low, high = (
    [gain['mean'] if gain[key] is None else gain[key] for gain in found]
    for key in ('low', 'high')
  )
  axes.hlines(y, low, high, color=objective.colour, linewidth=1.1)
  axes.plot(mean, y, linestyle='none', markersize=4, **objective.look())


def _label_tags(axes, order, repetitiveness) -> None:
  axes.set_ylim(len(order) - 0.5, -0.5)
  axes.set_yticks(range(len(order)), order)
  axes.tick_params(axis='y', length=0)
  axes.grid(axis='x')
  axes.set_axisbelow(True)
  axes.set_xlabel(
    'gain in AUPRC over no KD: mean over students and seeds, 95 % interval '
    'over seeds alone'
  )
  side = axes.secondary_yaxis('right')
  numbers = [f'{repetitiveness[t]:.2f}' for t in order]
  side.set_yticks(range(len(order)), numbers)
  side.tick_params(length=0)
  side.spines['right'].set_visible(False)
  side.set_ylabel('repetitiveness', rotation=270, labelpad=10)


def _draw_curves(table, done, named, path) -> bool:
  curves = {
    key: curve
    for key, cells in done.items()
    if (curve := _mean_curve([c.get('curve') or [] for c in cells.values()]))
  }
  names = [s for s in records.students(table) if any(s == k[0] for k in curves)]
  if not names:
    return False
  columns = min(_COLUMNS, len(names))
  height = math.ceil(len(names) / columns)
  with figures.figure(1.75 * height + 0.4, path) as page:
    panels = page.subplots(height, columns, sharex=True, squeeze=False)
    for i, axes in enumerate(panels.flat):
      if i < len(names):
        _draw_panel(axes, names[i], curves, named)
      else:
        axes.set_axis_off()
      # The lowest panel of each column names the steps.
      if i < len(names) <= i + columns:
        axes.set_xlabel('step', labelpad=1)
        axes.tick_params(labelbottom=True)
    page.supylabel('validate micro-AUPRC: mean, band ± sd', fontsize=7.5)
    figures.legend(page, _fullest(panels))
  lines = [
    [student, name, f'{step:g}', *formatting.summary_cells(found)]
    for (student, name), curve in curves.items()
    for step, found in curve.items()
  ]
  head = ['student', 'objective', 'step', 'mean', 'sd', 'n']
  figures.save_table(head, lines, path)
  return True


def _mean_curve(curves) -> dict[float, rows.Row]:
  values = {}
  for step, score in (point for curve in curves for point in curve):
    values.setdefault(step, []).append(score)
  found = {step: rows.summary(values[step]) for step in sorted(values)}
  return {step: of for step, of in found.items() if of}


def _draw_panel(axes, student, curves, named) -> None:
  means = []
  for name, objective in named.items():
    curve = curves.get((student, name))
    if not curve:
      continue
    step = np.array(list(curve))
    mean = np.array([of['mean'] for of in curve.values()])
    sd = np.array([of['sd'] or 0.0 for of in curve.values()])
    band = {'color': objective.colour, 'alpha': 0.15, 'linewidth': 0}
    axes.fill_between(step, mean - sd, mean + sd, **band)
    # A few markers a curve: colours alone are not enough for all readers.
    axes.plot(
      step,
      mean,
      linewidth=1.1,
      markersize=3,
      markevery=max(1, len(step) // 4),
      **objective.look(),
    )
    means += mean.tolist()
  axes.set_title(student, loc='left')
  axes.grid(axis='y')
  axes.locator_params(nbins=4)
  # The low scores of the first steps would flatten the differences at the end.
  low, high = np.quantile(means, [0.2, 1])
  spare = 0.1 * max(high - low, 1e-3)
  axes.set_ylim(low - spare, high + spare)


def _fullest(panels):
  return max(panels.flat, key=lambda a: len(a.get_legend_handles_labels()[1]))


def _draw_distances(table, done, named, path) -> bool:
  found = rows.summaries(done, lambda cell: cell.get('frame_distance'))
  names = [s for s in records.students(table) if any(s == k[0] for k in found)]
  if not names:
    return False
  with figures.figure(2.5, path) as page:
    axes = page.add_subplot()
    for i in range(1, len(names), 2):
      axes.axvspan(i - 0.5, i + 0.5, color='#f4f4f4', zorder=0)
    for i, (name, objective) in enumerate(named.items()):
      at = [x for x, s in enumerate(names) if (s, name) in found]
      if at:
        x = np.array(at) + 0.7 * ((i + 0.5) / len(named) - 0.5)
        own = [found[names[j], name] for j in at]
        figures.error_bars(axes, x, own, linestyle='none', **objective.look())
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis='x', length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axes.set_ylabel('‖G_teacher − G_student‖² / T²\non test clips, ± sd')
    axes.grid(axis='y')
    axes.set_axisbelow(True)
    figures.legend(page, axes)
  lines = [
    [*key, *formatting.summary_cells(of, '.3e')] for key, of in found.items()
  ]
  figures.save_table(['student', 'objective', 'mean', 'sd', 'n'], lines, path)
  return True
