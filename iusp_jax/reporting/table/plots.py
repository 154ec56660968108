"""Pictures of the paper's table: cost, tags, learning, frame distance.

Every picture `name.png` comes with its numbers as text, `name.txt`.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.reporting import formatting, plots
from iusp_jax.reporting.table import cost_plot, records, style
from iusp_jax.scoring import statistics

_COLUMNS = 3  # panels of learning curves in a row


def draw(table: Mapping[str, Any], folder: str | os.PathLike) -> list[str]:
  """Draws what the table has numbers for.

  Args:
    table: as `tables.write` takes it.
    folder: made if it is not there; gets `score_against_cost.png`,
      `gain_per_tag.png`, `learning_curves.png` and `frame_distance.png`, each
      with a `.txt` of its numbers.

  Returns:
    Names of the pictures drawn. One without numbers is left out.

  Raises:
    ValueError: as `records.check`.
  """
  records.check(table)
  wanted = {
    'score_against_cost.png': cost_plot.draw,
    'gain_per_tag.png': _draw_tags,
    'learning_curves.png': _draw_curves,
    'frame_distance.png': _draw_distances,
  }
  folder = pathlib.Path(folder)
  return [name for name, make in wanted.items() if make(table, folder / name)]


def _draw_tags(table, path) -> bool:
  repetitiveness = table.get('repetitiveness') or {}
  order = [
    t for t in table['tags'] if formatting.is_number(repetitiveness.get(t))
  ]
  order.sort(key=lambda t: -repetitiveness[t])
  names = [o for o in records.SIMILARITIES if o in records.objectives(table)]
  gains = {(o, t): g for o in names for t in order if (g := _gain(table, o, t))}
  if not gains:
    return False
  looks = style.looks(table)
  with plots.figure(0.24 * len(order) + 0.95, path) as page:
    axes = page.add_subplot()
    for row in range(1, len(order), 2):
      axes.axhspan(row - 0.5, row + 0.5, color='#f4f4f4', zorder=0)
    axes.axvline(0, color='#777777', linewidth=0.8)
    for i, o in enumerate(names):
      rows = [y for y, t in enumerate(order) if (o, t) in gains]
      found = [gains[o, order[y]] for y in rows]
      shifted = np.array(rows) + 0.3 * (i - (len(names) - 1) / 2)
      _intervals(axes, shifted, found, looks[o])
    _label_tags(axes, order, repetitiveness)
    style.legend(page, axes)
  lines = [['tag', 'repetitiveness', 'objective', 'gain', 'low', 'high', 'n']]
  for tag in order:
    for o in names:
      if (o, tag) in gains:
        g = gains[o, tag]
        values = map(
          formatting.number, (repetitiveness[tag], g.mean, g.low, g.high)
        )
        first, *rest = values
        lines.append([tag, first, o, *rest, str(g.n)])
  plots.save_text(formatting.align(lines), path)
  return True


def _gain(table, objective: str, tag: str) -> statistics.Difference | None:
  """Of a tag's AUPRC over the baseline, a mean over students for each pair."""
  at, cells, found = table['tags'].index(tag), records.done(table), []
  for student in records.students(table):
    base, of_student = cells.get((student, 'baseline'), {}), {}
    for pair, cell in cells[student, objective].items():
      values = [_class_score(c, at) for c in (cell, base.get(pair))]
      if None not in values:
        of_student[pair] = values
    if of_student:
      found.append(of_student)
  # As in the tables: a pair that some student lacks is another mean.
  first = found[0] if found else ()
  pairs = [pair for pair in first if all(pair in of for of in found)]
  if not pairs:
    return None
  own_S, other_S = np.mean([[of[p] for p in pairs] for of in found], 0).T
  return statistics.paired_difference(
    own_S, other_S, rotation_S=[rotation for rotation, _ in pairs]
  )


def _class_score(cell, at: int) -> float | None:
  by_tag = ((cell or {}).get('test') or {}).get('class_auprc')
  value = by_tag[at] if by_tag else None
  return value if formatting.is_number(value) else None


def _intervals(axes, y, found, look) -> None:
  mean = np.array([f.mean for f in found])
  low = np.array([f.mean if f.low is None else f.low for f in found])
  high = np.array([f.mean if f.high is None else f.high for f in found])
  axes.hlines(y, low, high, color=look['color'], linewidth=1.1)
  axes.plot(mean, y, linestyle='none', markersize=4, **look)


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


def _draw_curves(table, path) -> bool:
  curves = {
    key: curve
    for key, cells in records.done(table).items()
    if (curve := _mean_curve([c.get('curve') or [] for c in cells.values()]))
  }
  names = [s for s in records.students(table) if any(s == k[0] for k in curves)]
  if not names:
    return False
  columns = min(_COLUMNS, len(names))
  rows = math.ceil(len(names) / columns)
  with plots.figure(1.75 * rows + 0.4, path) as page:
    panels = page.subplots(rows, columns, sharex=True, squeeze=False)
    for i, axes in enumerate(panels.flat):
      if i < len(names):
        _draw_panel(axes, names[i], curves, style.looks(table))
      else:
        axes.set_axis_off()
      # Above a hole of the last row, too, somebody must name the steps.
      if i < len(names) <= i + columns:
        axes.set_xlabel('step', labelpad=1)
        axes.tick_params(labelbottom=True)
    page.supylabel('validate micro-AUPRC: mean, band ± sd', fontsize=7.5)
    style.legend(page, _fullest(panels))
  lines = [['student', 'objective', 'step', 'mean', 'sd', 'n']]
  for (student, o), curve in curves.items():
    for step, found in curve.items():
      lines.append([student, o, f'{step:g}', *style.cells(found)])
  plots.save_text(formatting.align(lines), path)
  return True


def _mean_curve(curves) -> dict[float, statistics.Summary]:
  values = {}
  for curve in curves:
    for step, score in curve:
      if formatting.is_number(score):
        values.setdefault(step, []).append(score)
  return {s: statistics.summarise(values[s]) for s in sorted(values)}


def _draw_panel(axes, student, curves, looks) -> None:
  for o, look in looks.items():
    curve = curves.get((student, o))
    if curve:
      line = {'color': look['color'], 'label': look['label']}
      step = np.array(list(curve))
      mean = np.array([f.mean for f in curve.values()])
      sd = np.array([f.sd or 0.0 for f in curve.values()])
      axes.fill_between(
        step, mean - sd, mean + sd, color=look['color'], alpha=0.15, linewidth=0
      )
      # A few markers a curve: colours alone are not enough for all readers.
      axes.plot(
        step, mean, linewidth=1.1, marker=look['marker'], markersize=3,
        markevery=max(1, len(step) // 4), **line,
      )  # fmt: skip
  axes.set_title(student, loc='left')
  axes.grid(axis='y')
  axes.locator_params(nbins=4)
  # The first steps would press the ends, where objectives differ, together.
  means = [f.mean for o in looks for f in curves.get((student, o), {}).values()]
  low, high = np.quantile(means, [0.2, 1])
  spare = 0.1 * max(high - low, 1e-3)
  axes.set_ylim(low - spare, high + spare)


def _fullest(panels):
  return max(panels.flat, key=lambda a: len(a.get_legend_handles_labels()[1]))


def _draw_distances(table, path) -> bool:
  found = style.summaries(table, lambda cell: cell.get('frame_distance'))
  names = [s for s in records.students(table) if any(s == k[0] for k in found)]
  if not names:
    return False
  looks = style.looks(table)
  with plots.figure(2.5, path) as page:
    axes = page.add_subplot()
    for i in range(1, len(names), 2):
      axes.axvspan(i - 0.5, i + 0.5, color='#f4f4f4', zorder=0)
    for i, (o, look) in enumerate(looks.items()):
      at = [x for x, s in enumerate(names) if (s, o) in found]
      shift = 0.7 * ((i + 0.5) / len(looks) - 0.5)
      if at:
        x = np.array(at) + shift
        style.bars(axes, x, [found[names[j], o] for j in at], look)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis='x', length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axes.set_ylabel('‖G_teacher − G_student‖² / T²\non test clips, ± sd')
    axes.grid(axis='y')
    axes.set_axisbelow(True)
    style.legend(page, axes)
  lines = [['student', 'objective', 'mean', 'sd', 'n']]
  for (student, o), of in found.items():
    sd = '-' if of.sd is None else f'{of.sd:.3e}'
    lines.append([student, o, f'{of.mean:.3e}', sd, str(of.n)])
  plots.save_text(formatting.align(lines), path)
  return True
