"""Pictures of the paper's table: cost, tags, learning, frame distance.

Every picture `name.png` comes with its numbers as text, `name.txt`. An
objective has one colour and one marker in all of them; colour-blind readers
and printers without colour have the marker.
"""

import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax import pictures, report, statistics, table_cells

# Black for the baseline, Okabe and Ito's colours for what is compared with it.
_LOOK = {
  'baseline': ('#000000', 'o'),
  'kd': ('#E69F00', 's'),
  'sp': ('#0072B2', 'D'),
  'iusp': ('#D55E00', '^'),
  'iusp_sp': ('#CC79A7', 'v'),
}
_OTHERS = (('#009E73', 'P'), ('#56B4E9', 'X'), ('#777777', '*'))
_COLUMNS = 3  # panels of learning curves in a row
_COSTS = {'parameters': 'parameters', 'macs': 'multiply-accumulates a clip'}
_SCORE = 'test micro-AUPRC'


def draw(table: Mapping[str, Any], folder: str | os.PathLike) -> list[str]:
  """Draws what the table has numbers for.

  Args:
    table: as `table_report.write` takes it.
    folder: made if it is not there; gets `score_against_cost.png`,
      `gain_per_tag.png`, `learning_curves.png` and `frame_distance.png`, each
      with a `.txt` of its numbers.

  Returns:
    Names of the pictures drawn. One without numbers is left out.

  Raises:
    ValueError: as `table_cells.check`.
  """
  table_cells.check(table)
  wanted = {
    'score_against_cost.png': _draw_costs,
    'gain_per_tag.png': _draw_tags,
    'learning_curves.png': _draw_curves,
    'frame_distance.png': _draw_distances,
  }
  folder = pathlib.Path(folder)
  return [name for name, make in wanted.items() if make(table, folder / name)]


def _look(table) -> dict[str, dict[str, Any]]:
  """Colour, marker and label of every objective of the table."""
  others = [o for o in table_cells.objectives(table) if o not in _LOOK]
  looks = _LOOK | {o: _OTHERS[i % len(_OTHERS)] for i, o in enumerate(others)}
  return {
    o: {
      'color': looks[o][0],
      'marker': looks[o][1],
      'label': table_cells.title(o),
    }
    for o in table_cells.objectives(table)
  }


def _summaries(table, read) -> dict[tuple[str, str], statistics.Summary]:
  """By student and objective; `read` takes a cell to a number or None."""
  found = {}
  for key, cells in table_cells.done(table).items():
    values = [read(cell) for cell in cells.values()]
    values = [v for v in values if report.is_number(v)]
    if values:
      found[key] = statistics.summarise(values)
  return found


def _draw_costs(table, path) -> bool:
  scores = _summaries(table, lambda cell: cell['test']['micro_auprc'])
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
    (t.get('test') or {}).get('micro_auprc') for t in table['teachers']
  ]
  teachers = [score for score in teachers if report.is_number(score)]
  with pictures.figure(3.5, path) as page:
    panels = page.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, (cost, of) in zip(panels, sizes.items(), strict=True):
      _draw_cost(axes, of, scores, _look(table))
      axes.set_xlabel(_COSTS[cost])
      if teachers:
        axes.axhline(np.mean(teachers), color='#777777', linestyle='--', lw=1)
        _label_teacher(axes, np.mean(teachers))
    panels[0].set_ylabel(_SCORE)
    _legend(page, panels[0])
  lines = [['student', 'objective', *sizes, 'mean', 'sd', 'n']]
  for (student, o), found in scores.items():
    costs = [report.count(of.get(student)) for of in sizes.values()]
    lines.append([student, o, *costs, *_cells(found)])
  for score in teachers:
    lines.append(['teacher', '-', *['-'] * len(sizes), *_cells(score)])
  pictures.save_text(report.align(lines), path)
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
        _bars(
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
      rotation=40,
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


def _bars(axes, x, found, look, linestyle='none') -> None:
  """Means with their standard deviations."""
  axes.errorbar(
    x,
    [f.mean for f in found],
    [f.sd or 0.0 for f in found],
    linestyle=linestyle,
    linewidth=1.0,
    elinewidth=0.8,
    markersize=4,
    markeredgecolor='white',
    markeredgewidth=0.4,
    **look,
  )


def _legend(page, axes) -> None:
  handles, labels = axes.get_legend_handles_labels()
  page.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=len(labels),
    frameon=False,
    handletextpad=0.4,
  )


def _draw_tags(table, path) -> bool:
  repetitiveness = table.get('repetitiveness') or {}
  order = [t for t in table['tags'] if report.is_number(repetitiveness.get(t))]
  order.sort(key=lambda t: -repetitiveness[t])
  names = [o for o in ('sp', 'iusp') if o in table_cells.objectives(table)]
  gains = {(o, t): g for o in names for t in order if (g := _gain(table, o, t))}
  if not gains:
    return False
  looks = _look(table)
  with pictures.figure(0.24 * len(order) + 0.95, path) as page:
    axes = page.add_subplot()
    for row in range(1, len(order), 2):
      axes.axhspan(row - 0.5, row + 0.5, color='#f4f4f4', zorder=0)
    axes.axvline(0, color='#777777', linewidth=0.8)
    for i, o in enumerate(names):
      rows = [y for y, t in enumerate(order) if (o, t) in gains]
      found = [gains[o, order[y]] for y in rows]
      _intervals(axes, np.array(rows) + 0.22 * (i - 0.5), found, looks[o])
    _label_tags(axes, order, repetitiveness)
    _legend(page, axes)
  lines = [['tag', 'repetitiveness', 'objective', 'gain', 'low', 'high', 'n']]
  for tag in order:
    for o in names:
      if (o, tag) in gains:
        g = gains[o, tag]
        values = map(
          report.number, (repetitiveness[tag], g.mean, g.low, g.high)
        )
        first, *rest = values
        lines.append([tag, first, o, *rest, str(g.n)])
  pictures.save_text(report.align(lines), path)
  return True


def _gain(table, objective: str, tag: str) -> statistics.Difference | None:
  """Of a tag's AUPRC over the baseline, a mean over students for each pair."""
  at = table['tags'].index(tag)
  cells, own, other = table_cells.done(table), {}, {}
  for student in table_cells.students(table):
    base = cells.get((student, 'baseline'), {})
    for pair, cell in cells[student, objective].items():
      values = [_class_score(c, at) for c in (cell, base.get(pair))]
      if None not in values:
        own.setdefault(pair, []).append(values[0])
        other.setdefault(pair, []).append(values[1])
  if not own:
    return None
  # A pair that some student lacks has another mean of tags and is left out.
  most = max(map(len, own.values()))
  pairs = [pair for pair, values in own.items() if len(values) == most]
  return statistics.paired_difference(
    [np.mean(own[pair]) for pair in pairs],
    [np.mean(other[pair]) for pair in pairs],
    rotation_S=[rotation for rotation, _ in pairs],
  )


def _class_score(cell, at: int) -> float | None:
  by_tag = ((cell or {}).get('test') or {}).get('class_auprc')
  value = by_tag[at] if by_tag else None
  return value if report.is_number(value) else None


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
    'gain in AUPRC over no KD: mean over students and seeds, 95 % interval'
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
    for key, cells in table_cells.done(table).items()
    if (curve := _mean_curve([c.get('curve') or [] for c in cells.values()]))
  }
  names = [
    s for s in table_cells.students(table) if any(s == k[0] for k in curves)
  ]
  if not names:
    return False
  columns = min(_COLUMNS, len(names))
  rows = math.ceil(len(names) / columns)
  with pictures.figure(1.75 * rows + 0.4, path) as page:
    panels = page.subplots(
      rows, columns, sharex=True, sharey=True, squeeze=False
    )
    for i, axes in enumerate(panels.flat):
      if i < len(names):
        _draw_panel(axes, names[i], curves, _look(table))
      else:
        axes.set_axis_off()
      # Above a hole of the last row, too, somebody must name the steps.
      if i < len(names) <= i + columns:
        axes.set_xlabel('step', labelpad=1)
        axes.tick_params(labelbottom=True)
    page.supylabel('validate micro-AUPRC: mean, band ± sd', fontsize=7.5)
    _legend(page, _fullest(panels))
  lines = [['student', 'objective', 'step', 'mean', 'sd', 'n']]
  for (student, o), curve in curves.items():
    for step, found in curve.items():
      lines.append([student, o, f'{step:g}', *_cells(found)])
  pictures.save_text(report.align(lines), path)
  return True


def _mean_curve(curves) -> dict[float, statistics.Summary]:
  values = {}
  for curve in curves:
    for step, score in curve:
      if report.is_number(score):
        values.setdefault(step, []).append(score)
  return {s: statistics.summarise(values[s]) for s in sorted(values)}


def _draw_panel(axes, student, curves, looks) -> None:
  for o, look in looks.items():
    curve = curves.get((student, o))
    if curve:
      style = {'color': look['color'], 'label': look['label']}
      step = np.array(list(curve))
      mean = np.array([f.mean for f in curve.values()])
      sd = np.array([f.sd or 0.0 for f in curve.values()])
      axes.fill_between(
        step, mean - sd, mean + sd, color=look['color'], alpha=0.15, linewidth=0
      )
      # A few markers a curve: colours alone are not enough for all readers.
      axes.plot(
        step, mean, linewidth=1.1, marker=look['marker'], markersize=3,
        markevery=max(1, len(step) // 4), **style,
      )  # fmt: skip
  axes.set_title(student, loc='left')
  axes.grid(axis='y')


def _fullest(panels):
  return max(panels.flat, key=lambda a: len(a.get_legend_handles_labels()[1]))


def _draw_distances(table, path) -> bool:
  found = _summaries(table, lambda cell: cell.get('frame_distance'))
  names = [
    s for s in table_cells.students(table) if any(s == k[0] for k in found)
  ]
  if not names:
    return False
  looks = _look(table)
  with pictures.figure(2.5, path) as page:
    axes = page.add_subplot()
    for i in range(1, len(names), 2):
      axes.axvspan(i - 0.5, i + 0.5, color='#f4f4f4', zorder=0)
    for i, (o, look) in enumerate(looks.items()):
      at = [x for x, s in enumerate(names) if (s, o) in found]
      shift = 0.7 * ((i + 0.5) / len(looks) - 0.5)
      if at:
        x = np.array(at) + shift
        _bars(axes, x, [found[names[j], o] for j in at], look)
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis='x', length=0)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis='y', style='sci', scilimits=(0, 0))
    axes.set_ylabel('‖G_teacher − G_student‖² / T²\non test clips, ± sd')
    axes.grid(axis='y')
    axes.set_axisbelow(True)
    _legend(page, axes)
  lines = [['student', 'objective', 'mean', 'sd', 'n']]
  for (student, o), of in found.items():
    sd = '-' if of.sd is None else f'{of.sd:.3e}'
    lines.append([student, o, f'{of.mean:.3e}', sd, str(of.n)])
  pictures.save_text(report.align(lines), path)
  return True


def _cells(found: statistics.Summary | float) -> list[str]:
  if not isinstance(found, statistics.Summary):
    return [report.number(found), '-', '1']
  return [report.number(found.mean), report.number(found.sd), str(found.n)]
