"""Plots of a run: learning curves, scores of the tags.

Pure functions from arrays to files, see `figures`.
"""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.objectives.terms import TERMS
from iusp_jax.reporting import figures, formatting
from iusp_jax.scoring import metrics

# What is drawn of the rows of a run, with colours.
_CURVES = {
  'loss': '#000000',
  'tagging': '#56B4E9',
  **{name: term.colour for name, term in TERMS.items()},
  'gradient_norm': figures.GREY,
  'validate/distillation_loss': '#000000',  # Where there are no labels.
}
# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = (
  '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#000000',
)  # fmt: skip
_MARKERS = 'osD^vPX'
UNDEFINED = -0.10  # where on an axis of scores from 0 to 1 these are drawn


def plot_learning_curves(
  rows: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  best_by: str = 'validate/coarse_micro_auprc',
) -> None:
  """Draws the loss, its terms (unweighted) and the validation scores.

  Args:
    rows: of metrics.jsonl; train rows hold `train/loss` and so on, validation
      rows `validate/coarse_micro_auprc` and so on, all hold `step`.
    path: of the plot, `.png`; the validation scores go to `.txt` beside it.
    best_by: the score whose first maximum is the best step.

  Raises:
    ValueError: where no row holds a number that is drawn.
  """
  names = [
    f'validate/{v}_{n}'
    for v in ('coarse', 'fine', 'agreement')
    for n in formatting.SCORES
  ]
  terms = {n: _series(rows, n if '/' in n else f'train/{n}') for n in _CURVES}
  scores = {n: _series(rows, n) for n in dict.fromkeys([best_by, *names])}
  terms, scores = (
    {n: series for n, series in group.items() if len(series[0])}
    for group in (terms, scores)
  )
  if not terms and not scores:
    raise ValueError(
      f'{len(rows)} rows without one of train/loss, …, {best_by}, …: '
      'expected the rows of a metrics.jsonl of a run that made a step'
    )
  best = _best_step(scores.get(best_by))
  with figures.figure(_curves_height(len(terms), bool(scores)), path) as page:
    _draw_curves(page, terms, scores, best_by, best)
  figures.save_text(_learning_table(terms, scores, best_by, best), path)


def _series(rows, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and values of the rows that hold a number of that name."""
  pairs = [(r['step'], r[name]) for r in rows if r.get(name) is not None]
  steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
  return steps, values


def _best_step(series) -> tuple[float, float] | None:
  if series is None or not np.isfinite(series[1]).any():
    return None
  at = int(np.nanargmax(np.where(np.isfinite(series[1]), series[1], np.nan)))
  return series[0][at], series[1][at]


def _row_heights(num_terms: int, has_scores: bool) -> list[float]:
  return [1.0] * math.ceil(num_terms / 3) + [1.35] * has_scores


def _curves_height(num_terms: int, has_scores: bool) -> float:
  """Inches, with space for the legend under the scores."""
  rows = sum(_row_heights(num_terms, has_scores))
  return 1.85 * rows + (0.6 if has_scores else 0.1)


def _draw_curves(page, terms, scores, best_by, best) -> None:
  """Rows of at most three terms, as wide as the scores beneath them."""
  heights = _row_heights(len(terms), bool(scores))
  grid = page.add_gridspec(len(heights), 6, height_ratios=heights)
  parts = np.array_split(list(terms), len(heights) - bool(scores) or 1)
  for row, part in enumerate(parts):
    for i, name in enumerate(part):
      wide = 6 // len(part)
      axes = page.add_subplot(grid[row, i * wide : (i + 1) * wide])
      _draw_term(axes, name, *terms[name])
  if scores:
    axes = page.add_subplot(grid[len(heights) - 1, :])
    _draw_scores(axes, scores, best_by, best)
    page.legend(loc='outside lower center', ncols=3, frameon=False)


def smooth(values: np.ndarray) -> np.ndarray:
  """Centred mean over about a tenth of `[N]` values; skips non-finite."""
  half = len(values) // 20
  finite = np.isfinite(values)
  kernel = np.hanning(2 * half + 3)[1:-1]
  total = np.convolve(np.where(finite, values, 0.0), kernel)
  weight = np.convolve(finite.astype(np.float64), kernel)
  total, weight = (x[half : half + len(values)] for x in (total, weight))
  return np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def _draw_term(axes, name, step_N, value_N) -> None:
  from matplotlib import ticker

  colour = _CURVES[name]
  smooth_N = smooth(value_N)
  axes.plot(step_N, value_N, color=colour, alpha=0.25, linewidth=0.6)
  axes.plot(step_N, smooth_N, color=colour, linewidth=1.3)
  finite = value_N[np.isfinite(value_N)]
  if len(finite):
    low, high = np.quantile(finite, [0.005, 0.995])
    if low > 0 and np.nanmax(smooth_N) > 20 * np.nanmin(smooth_N):
      axes.set_yscale('log')
      axes.yaxis.set_major_formatter('{x:g}')
      axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    elif high > low:  # One spike must not flatten the rest.
      axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
  title = TERMS[name].title if name in TERMS else name.replace('_', ' ')
  axes.set_title(title, loc='left')
  axes.grid(axis='y')
  axes.locator_params(axis='x', nbins=4)
  axes.set_xlabel('step', labelpad=1)


def _draw_scores(axes, scores, best_by, best) -> None:
  levels = {n.partition('/')[2].partition('_')[0] for n in scores}
  for name, (step_N, value_N) in scores.items():
    level, _, score = name.partition('/')[2].partition('_')
    at = (
      list(formatting.SCORES).index(score) if score in formatting.SCORES else 5
    )
    title = formatting.SCORES.get(score, score)
    axes.plot(
      step_N,
      value_N,
      color=_COLOURS[at],
      linewidth=1.6 if name == best_by else 1.0,
      linestyle='--' if level == 'fine' and len(levels) > 1 else '-',
      marker='.',
      markersize=4,
      label=f'{level} {title}',
    )
  if best is not None:
    axes.axvline(best[0], color='#777777', linewidth=0.8, linestyle=':')
    axes.plot(
      *best,
      marker='*',
      markersize=10,
      color='black',
      linestyle='none',
      label=f'best: {best[1]:.3f} at step {best[0]:.0f}',
    )
  axes.set_title('validation', loc='left')
  axes.grid(axis='y')
  axes.set_xlabel('step')


def _learning_table(terms, scores, best_by, best) -> str:
  lines = [['step', *(n.partition('/')[2] for n in scores)]]
  for step in sorted({s for steps, _ in scores.values() for s in steps}):
    cells = [
      next((v for s, v in zip(*xy, strict=True) if s == step), None)
      for xy in scores.values()
    ]
    lines.append([f'{step:.0f}', *map(formatting.number, cells)])
  text = formatting.align(lines) if scores else ''
  if best is not None:
    text += f'best {best_by}: {best[1]:.4f} at step {best[0]:.0f}\n'
  for name, (step_N, value_N) in terms.items():
    text += (
      f'train/{name}, smoothed: {smooth(value_N)[-1]:.4g} '
      f'at step {step_N[-1]:.0f}\n'
    )
  return text


def plot_tag_scores(
  class_auprc_by_model: Mapping[str, Mapping[str, float | None]],
  support: Mapping[str, int],
  path: str | os.PathLike,
) -> None:
  """Draws each tag's AUPRC under each model, a line a tag.

  Args:
    class_auprc_by_model: by model, by tag; None, NaN or a missing tag is drawn
      as undefined, never as a score of 0.
    support: positive clips of the test split by tag; its order is kept.
    path: of the plot, `.png`; the numbers go to `.txt` beside it.

  Raises:
    ValueError: where there is no tag, or a model names a tag without support.
  """
  unexpected = {t for m in class_auprc_by_model.values() for t in m} - {
    *support
  }
  if unexpected or not support or not class_auprc_by_model:
    raise ValueError(
      f'tags with a score but without support: {sorted(unexpected)}, models: '
      f'{sorted(class_auprc_by_model)}, tags: {len(support)}; expected at '
      'least one model and a count of positive clips for every tag scored'
    )
  pitch = 0.09 + 0.045 * len(class_auprc_by_model)  # inches a tag
  height = pitch * len(support) + 0.85
  with figures.figure(height, path) as page:
    _draw_tags(page.add_subplot(), class_auprc_by_model, support)
  figures.save_text(_tag_table(class_auprc_by_model, support), path)


def _tag_table(models, support) -> str:
  values_MC = np.array(
    [[m.get(tag) for tag in support] for m in models.values()], np.float64
  )
  lines = [['tag', 'positives', *models]]
  for c, (tag, positives) in enumerate(support.items()):
    lines.append(
      [tag, f'{positives}', *map(formatting.number, values_MC[:, c])]
    )
  means = [metrics.mean_over_tags(value_C.tolist()) for value_C in values_MC]
  means = [math.nan if mean is None else mean for mean in means]
  rule = metrics.mean_rule(list(support.values()))
  lines.append([rule, '', *map(formatting.number, means)])
  return formatting.align(lines)


def _draw_tags(axes, models, support) -> None:
  count = len(models)
  for row in range(len(support)):
    if row % 2:
      axes.axhspan(row - 0.5, row + 0.5, color='#f4f4f4', zorder=0)
  for m, (model, scores) in enumerate(models.items()):
    y = np.arange(len(support)) + (m - (count - 1) / 2) * 0.75 / count
    style = {
      'marker': _MARKERS[m % len(_MARKERS)],
      'color': _COLOURS[m % len(_COLOURS)],
      'linestyle': 'none',
      'markersize': 3.8,
    }
    values = [scores.get(tag) for tag in support]
    defined = np.array([formatting.is_number(v) for v in values])
    x = np.array([v if formatting.is_number(v) else UNDEFINED for v in values])
    axes.hlines(y[defined], 0, x[defined], color=style['color'], linewidth=0.8)
    axes.plot(
      x[defined], y[defined], label=figures.label(model), zorder=3, **style
    )
    axes.plot(x[~defined], y[~defined], markerfacecolor='none', **style)
  _label_tags(axes, models, support)


def _label_tags(axes, models, support) -> None:
  axes.axvline(0, color='#777777', linewidth=0.6)
  axes.set_xticks(np.linspace(0, 1, 6), ['0', '.2', '.4', '.6', '.8', '1'])
  gaps = any(
    not formatting.is_number(m.get(t)) for m in models.values() for t in support
  )
  axes.set_xlim(-0.2 if gaps else -0.015, 1.03)
  if gaps:
    axes.set_xticks([UNDEFINED], ['undefined'], minor=True)
    axes.tick_params(axis='x', which='minor', length=0, pad=6, labelsize=7)
  axes.set_ylim(len(support) - 0.5, -0.5)
  axes.set_yticks(range(len(support)), list(support))
  axes.tick_params(axis='y', length=0)
  axes.set_xlabel('AUPRC on the test split')
  axes.grid(axis='x')
  axes.set_axisbelow(True)
  counts = axes.secondary_yaxis('right')
  counts.set_yticks(range(len(support)), [f'{n:,}' for n in support.values()])
  counts.tick_params(length=0)
  counts.spines['right'].set_visible(False)
  counts.set_ylabel('positive test clips', rotation=270, labelpad=10)
  axes.legend(
    loc='lower left',
    bbox_to_anchor=(0, 1),
    ncols=min(len(models), 6),
    frameon=False,
    handletextpad=0.3,
  )


def plot_reliability(
  measured: Mapping[str, Mapping[str, Any]],
  split: str,
  path: str | os.PathLike,
) -> None:
  """Draws how often tags are there against how probable they were said to be.

  Args:
    measured: `calibration.reliability` by name of what was measured.
    split: whose clips they are of, on which temperatures were fitted.
    path: of the plot, `.png`; the numbers go to `.txt` beside it.
  """
  rows = []
  with figures.figure(3.2, path) as page:
    axes = page.add_subplot()
    axes.plot([0, 1], [0, 1], color=figures.GREY, linewidth=0.8)
    for m, (name, of) in enumerate(measured.items()):
      bins = zip(of['probability'], of['present'], of['count'], strict=True)
      filled = [row for row in bins if row[2]]
      axes.plot(
        [row[0] for row in filled],
        [row[1] for row in filled],
        label=f'{name}: expected calibration error {of["error"]:.3f}',
        color=_COLOURS[m],
        marker=_MARKERS[m],
        markersize=3.8,
        linewidth=1.0,
      )
      rows += [
        (name, *map(formatting.number, row[:2]), f'{row[2]}') for row in filled
      ]
    axes.set_xlabel(f'probability of a tag, mean of a bin ({split} split)')
    axes.set_ylabel('fraction of clips with the tag')
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.grid()
    axes.legend(loc='upper left', frameon=False)
  head = ('probabilities', 'mean', 'present', 'count')
  errors = [f'{name}: {of["error"]:.4f}' for name, of in measured.items()]
  text = formatting.align([head, *rows])
  text += f'expected calibration error: {", ".join(errors)}\n'
  figures.save_text(text, path)
