"""What a run leaves to look at: pictures, the numbers in them, a score table.

Pure functions from arrays to files. Every picture `name.png` comes with its
numbers as text, `name.txt`, for whoever has no display. Files are replaced in
one step, so none is ever seen half written.

matplotlib is imported where it is used, and drawn with through its objects:
no pyplot, no display, nothing global left changed.
"""

import contextlib
import dataclasses
import io
import math
import os
import pathlib
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

TERMS = ('loss', 'tagging', 'kd', 'sp', 'iusp', 'gradient_norm')
# Column titles of `score_table`, in order.
SCORES = {
  'micro_auprc': 'micro-AUPRC',
  'macro_auprc': 'macro-AUPRC',
  'micro_f1': 'micro-F1',
  'map': 'mAP',
  'lwlrap': 'lwlrap',
}
WIDTH = 7.0  # inches: the two columns of a paper
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = (
  '#0072B2',
  '#D55E00',
  '#009E73',
  '#CC79A7',
  '#E69F00',
  '#56B4E9',
  '#000000',
)
MARKERS = 'osD^vPX'
UNDEFINED = -0.10  # where on an axis of scores from 0 to 1 these are drawn
_STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 7.5,
  'axes.titlesize': 8,
  'axes.labelsize': 7.5,
  'xtick.labelsize': 7,
  'ytick.labelsize': 7,
  'legend.fontsize': 7,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.linewidth': 0.6,
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'grid.color': '#dddddd',
  'grid.linewidth': 0.5,
  'image.interpolation': 'nearest',
}


@dataclasses.dataclass(frozen=True)
class SimilarityPanel:
  """One clip, as `plot_similarities` draws it.

  Attributes:
    title: the clip's name.
    tags: its true tags.
    log_mel_TF: what a front end hears, `[T, F]`.
    seconds: length of the clip.
    similarity: by model ('teacher', 'student', …), the row-normalised frame
      similarity `[T, T]`; models may differ in T.
  """

  title: str
  tags: Sequence[str]
  log_mel_TF: np.ndarray
  seconds: float
  similarity: Mapping[str, np.ndarray]


def plot_learning_curves(
  rows: Sequence[Mapping[str, Any]],
  path: str | os.PathLike,
  best_by: str = 'validate/coarse_micro_auprc',
) -> None:
  """Draws the loss, its terms (unweighted) and the validation scores.

  Args:
    rows: of metrics.jsonl; train rows hold `train/loss` and so on, validation
      rows `validate/coarse_micro_auprc` and so on, all hold `step`.
    path: of the picture, `.png`; the validation scores go to `.txt` beside it.
    best_by: the score whose first maximum is the best step.

  Raises:
    ValueError: where no row holds a number that is drawn.
  """
  names = [f'validate/{v}_{n}' for v in ('coarse', 'fine') for n in SCORES]
  terms = {n: _series(rows, f'train/{n}') for n in TERMS}
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
  with _figure(_curves_height(len(terms), bool(scores)), path) as figure:
    _draw_curves(figure, terms, scores, best_by, best)
  _save_text(_learning_table(terms, scores, best_by, best), path)


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
  """Inches, with room for the legend under the scores."""
  rows = sum(_row_heights(num_terms, has_scores))
  return 1.85 * rows + (0.6 if has_scores else 0.1)


def _draw_curves(figure, terms, scores, best_by, best) -> None:
  """Rows of at most three terms, as wide as the scores beneath them."""
  heights = _row_heights(len(terms), bool(scores))
  grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
  parts = np.array_split(list(terms), len(heights) - bool(scores) or 1)
  for row, part in enumerate(parts):
    for i, name in enumerate(part):
      wide = 6 // len(part)
      axes = figure.add_subplot(grid[row, i * wide : (i + 1) * wide])
      _draw_term(axes, name, *terms[name])
  if scores:
    axes = figure.add_subplot(grid[len(heights) - 1, :])
    _draw_scores(axes, scores, best_by, best)
    figure.legend(loc='outside lower center', ncols=3, frameon=False)


def smooth(values: np.ndarray) -> np.ndarray:
  """Centred mean over about a tenth of `[N]` values; skips non-finite."""
  half = len(values) // 20
  known = np.isfinite(values)
  kernel = np.hanning(2 * half + 3)[1:-1]
  total = np.convolve(np.where(known, values, 0.0), kernel)
  weight = np.convolve(known.astype(np.float64), kernel)
  total, weight = (x[half : half + len(values)] for x in (total, weight))
  return np.where(weight > 0, total / np.maximum(weight, 1e-12), np.nan)


def _draw_term(axes, name, step_N, value_N) -> None:
  colour = COLOURS[TERMS.index(name) % len(COLOURS)]
  smooth_N = smooth(value_N)
  axes.plot(step_N, value_N, color=colour, alpha=0.25, linewidth=0.6)
  axes.plot(step_N, smooth_N, color=colour, linewidth=1.3)
  known = value_N[np.isfinite(value_N)]
  if len(known):
    low, high = np.quantile(known, [0.005, 0.995])
    if low > 0 and np.nanmax(smooth_N) > 20 * np.nanmin(smooth_N):
      axes.set_yscale('log')
    elif high > low:  # One spike shall not flatten the rest.
      axes.set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))
  axes.set_title(name.replace('_', ' '), loc='left')
  axes.grid(axis='y')
  axes.locator_params(axis='x', nbins=4)
  axes.set_xlabel('step', labelpad=1)


def _draw_scores(axes, scores, best_by, best) -> None:
  levels = {n.partition('/')[2].partition('_')[0] for n in scores}
  for name, (step_N, value_N) in scores.items():
    level, _, score = name.partition('/')[2].partition('_')
    at = list(SCORES).index(score) if score in SCORES else 5
    title = SCORES.get(score, score)
    axes.plot(
      step_N,
      value_N,
      color=COLOURS[at],
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
    lines.append([f'{step:.0f}', *map(_number, cells)])
  text = _align(lines) if scores else ''
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
    path: of the picture, `.png`; the numbers go to `.txt` beside it.

  Raises:
    ValueError: where there is no tag, or a model names a tag without support.
  """
  strange = {t for m in class_auprc_by_model.values() for t in m} - {*support}
  if strange or not support or not class_auprc_by_model:
    raise ValueError(
      f'tags with a score but without support: {sorted(strange)}, models: '
      f'{sorted(class_auprc_by_model)}, tags: {len(support)}; expected at '
      'least one model and a count of positive clips for every tag scored'
    )
  pitch = 0.09 + 0.045 * len(class_auprc_by_model)  # inches a tag
  height = pitch * len(support) + 0.85
  with _figure(height, path) as figure:
    _draw_tags(figure.add_subplot(), class_auprc_by_model, support)
  _save_text(_tag_table(class_auprc_by_model, support), path)


def _tag_table(models, support) -> str:
  values_MC = np.array(
    [[m.get(tag) for tag in support] for m in models.values()], np.float64
  )
  lines = [['tag', 'positives', *models]]
  for c, (tag, positives) in enumerate(support.items()):
    lines.append([tag, f'{positives}', *map(_number, values_MC[:, c])])
  known = [value_C[np.isfinite(value_C)] for value_C in values_MC]
  means = [value.mean() if len(value) else math.nan for value in known]
  lines.append(['mean of the defined', '', *map(_number, means)])
  return _align(lines)


def _draw_tags(axes, models, support) -> None:
  count = len(models)
  for row in range(len(support)):
    if row % 2:
      axes.axhspan(row - 0.5, row + 0.5, color='#f4f4f4', zorder=0)
  for m, (model, scores) in enumerate(models.items()):
    y = np.arange(len(support)) + (m - (count - 1) / 2) * 0.75 / count
    style = {
      'marker': MARKERS[m % len(MARKERS)],
      'color': COLOURS[m % len(COLOURS)],
      'linestyle': 'none',
      'markersize': 3.8,
    }
    values = [scores.get(tag) for tag in support]
    known = np.array([_is_number(v) for v in values])
    x = np.array([v if _is_number(v) else UNDEFINED for v in values])
    axes.hlines(y[known], 0, x[known], color=style['color'], linewidth=0.8)
    axes.plot(x[known], y[known], label=model, zorder=3, **style)
    axes.plot(x[~known], y[~known], markerfacecolor='none', **style)
  _label_tags(axes, models, support)


def _label_tags(axes, models, support) -> None:
  axes.axvline(0, color='#777777', linewidth=0.6)
  axes.set_xticks(np.linspace(0, 1, 6), ['0', '.2', '.4', '.6', '.8', '1'])
  gaps = any(not _is_number(m.get(t)) for m in models.values() for t in support)
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


def plot_similarities(
  clips: Sequence[SimilarityPanel], path: str | os.PathLike
) -> None:
  """Draws how similar the frames of a few clips are, under each model.

  After a ReLU most of a row-normalised Gram matrix is one constant, about
  1/√T. So √T·G less its mean off the diagonal is shown, whatever T. The colours
  of a row have one scale, which holds 98 % of the teacher's (else the first
  model's) values: a model of more contrast saturates.

  Args:
    clips: a row of the picture each.
    path: of the picture, `.png`; the distances go to `.txt` beside it.

  Raises:
    ValueError: where there is no clip, or a similarity is not square.
  """
  models = list(dict.fromkeys(m for clip in clips for m in clip.similarity))
  _check_similarities(clips, models)
  # A page in inches: log-mel, a square for each model, the colour scale.
  left, gap, between = 0.42, 0.14, 0.38
  side = min((5.58 - gap * len(models)) / (len(models) + 1.5), 1.9)
  pitch = side + 0.95
  height = pitch * len(clips) + 0.2
  with _figure(height, path, None) as figure:
    for row, clip in enumerate(clips):
      bottom = height - pitch * (row + 1) + 0.5

      def place(x, wide, bottom=bottom):
        return figure.add_axes(
          (x / WIDTH, bottom / height, wide / WIDTH, side / height)
        )

      _draw_mel(place(left, 1.5 * side), clip)
      x = left + 1.5 * side + between
      spots = [place(x + i * (side + gap), side) for i in range(len(models))]
      bar = place(x + len(models) * (side + gap) - 0.04, 0.07)
      _draw_row(figure, spots, bar, clip, models)
    figure.text(left / WIDTH, 0.07 / height, _LEGEND)
  _save_text(_similarity_table(clips), path)


_LEGEND = (
  'd = ‖G − G_teacher‖² / T². Colours: √T·G less its mean off the diagonal; '
  'grey: not finite.'
)


def _check_similarities(clips, models) -> None:
  for clip in clips:
    for model, matrix in clip.similarity.items():
      if np.ndim(matrix) != 2 or len({*np.shape(matrix)}) != 1:
        raise ValueError(
          f'similarity {model!r} of clip {clip.title!r} has shape '
          f'{np.shape(matrix)}; expected [T, T]'
        )
  if not models:
    raise ValueError(
      f'{len(clips)} clips without a similarity: expected at least one of each'
    )


def distance(matrix_TT: np.ndarray, teacher_TT: np.ndarray) -> float | None:
  """‖G_R − G_S‖²/T², IUSP's value for a clip; None where T differs."""
  matrix_TT, teacher_TT = np.asarray(matrix_TT), np.asarray(teacher_TT)
  if matrix_TT.shape != teacher_TT.shape:
    return None
  return float(np.mean(np.square(teacher_TT - matrix_TT, dtype=np.float64)))


def _relative(matrix_TT) -> tuple[np.ndarray, float, np.ndarray]:
  """√T·G less its mean off the diagonal; that mean; what is off it, finite."""
  matrix_TT = np.asarray(matrix_TT, np.float64) * math.sqrt(len(matrix_TT))
  off = matrix_TT[~np.eye(len(matrix_TT), dtype=bool)]
  off = off[np.isfinite(off)]
  mean = float(off.mean()) if off.size else 0.0
  return matrix_TT - mean, mean, off - mean


def _draw_mel(axes, clip) -> None:
  F = np.shape(clip.log_mel_TF)[1]
  axes.imshow(
    np.transpose(clip.log_mel_TF),
    origin='lower',
    aspect='auto',
    cmap='magma',
    extent=(0, clip.seconds, 0, F),
  )
  axes.set_ylabel('mel band', labelpad=2)
  axes.set_xlabel('time (s)', labelpad=1)
  _mark_seconds(axes.xaxis, clip.seconds, 'left', 'right')
  tags = ', '.join(clip.tags) or 'no tag'
  place = {'xytext': (0, 15), 'textcoords': 'offset points'}
  axes.annotate(
    textwrap.shorten(f'{clip.title}: {tags}', 105, placeholder=' …'),
    (0, 1),
    xycoords='axes fraction',
    weight='bold',
    va='bottom',
    **place,
  )
  axes.set_title('log-mel', loc='left', pad=3)


def _mark_seconds(axis, seconds: float, first: str, last: str) -> None:
  """Ticks at start, middle and end that stay clear of the next panel's."""
  marks = (0.0, seconds / 2, seconds)
  axis.set_ticks(marks, [f'{mark:.3g}' for mark in marks])
  for label, place in zip(
    axis.get_ticklabels(), (first, 'center', last), strict=True
  ):
    if first == 'left':
      label.set_horizontalalignment(place)
    else:
      label.set_verticalalignment(place)


def _draw_row(figure, spots, bar, clip, models) -> None:
  """The matrices of one clip, and the scale of their colours."""
  first = 'teacher' if 'teacher' in clip.similarity else None
  first = first or next(iter(clip.similarity), None)
  off = _relative(clip.similarity[first])[2] if first else np.zeros(0)
  limit = float(np.quantile(np.abs(off), 0.98)) if off.size else 0.0
  if limit < 1e-5:  # A constant but for rounding errors is shown as one.
    limit = 1.0
  picture = None
  for i, (axes, model) in enumerate(zip(spots, models, strict=True)):
    axes.set_title(model, loc='left', pad=3)
    if model not in clip.similarity:
      axes.set_axis_off()
      continue
    values_TT = _relative(clip.similarity[model])[0]
    picture = axes.imshow(
      np.ma.masked_invalid(values_TT),
      cmap='RdBu_r',
      vmin=-limit,
      vmax=limit,
      extent=(0, clip.seconds, clip.seconds, 0),
    )
    axes.set_facecolor('#999999')  # what is not finite
    axes.set_xlabel(f'time (s)\n{_caption(clip, model)}', labelpad=1)
    _mark_seconds(axes.yaxis, clip.seconds, 'top', 'bottom')
    _mark_seconds(axes.xaxis, clip.seconds, 'left', 'right')
    if i:
      axes.tick_params(labelleft=False)
  if picture is None:
    bar.set_axis_off()
    return
  figure.colorbar(picture, cax=bar, extend='both', extendfrac=0.04)
  bar.tick_params(labelsize=6.5, pad=1.5, length=2)
  bar.locator_params(nbins=5)
  bar.set_ylabel('√T·G − mean', labelpad=2, fontsize=6.5)


def _caption(clip, model) -> str:
  if model == 'teacher':
    return 'reference'
  if 'teacher' not in clip.similarity:
    return ''
  value = distance(clip.similarity[model], clip.similarity['teacher'])
  if value is None:
    sizes = [len(clip.similarity[m]) for m in (model, 'teacher')]
    return 'T {} ≠ {}'.format(*sizes)
  return f'd = {value:.2e}'


def _similarity_table(clips) -> str:
  lines = [['clip', 'model', 'T', 'distance_to_teacher', 'mean', 'sd', 'tags']]
  for clip in clips:
    teacher = clip.similarity.get('teacher')
    for model, matrix in clip.similarity.items():
      value = None if teacher is None else distance(matrix, teacher)
      mean, off = _relative(matrix)[1:]
      lines.append(
        [
          clip.title,
          model,
          str(len(matrix)),
          '-' if value is None else f'{value:.3e}',
          f'{mean:.3f}',
          f'{off.std():.3f}' if off.size else '-',
          ','.join(clip.tags) or '-',
        ]
      )
  return _align(lines) + (
    'distance_to_teacher is |G_teacher - G_model|^2 / T^2; mean and sd '
    'are of sqrt(T)*G off the diagonal\n'
  )


def score_table(results: Mapping[str, Any]) -> str:
  """The scores of a run as a text table of fixed width.

  Args:
    results: by model ('teacher', 'student', …): `best` and `last`, each split
      by split, level by level, scores by name (`micro_auprc`, …, with
      `micro_auprc_ci` [low, high] where there are intervals); `parameters` and
      `macs`. Whatever is absent is '-', or no column where all lack it.

  Returns:
    A row for each model and checkpoint, a column for each score.
  """
  rows = [
    (model, when, results[model])
    for model in sorted(results, key=lambda m: (m != 'teacher', m))
    for when in ('best', 'last')
    if isinstance(results[model], Mapping) and results[model].get(when)
  ]
  columns = _score_columns([of[when] for _, when, of in rows])
  sizes = [k for k in ('parameters', 'macs') if any(k in r[2] for r in rows)]
  heads = [
    ['', *(f'{split} {level}' for split, level, _ in columns)],
    ['', *(SCORES[score] for *_, score in columns)],
  ]
  # A level's name stands over the first of its columns.
  heads[0] = [
    '' if i and text == heads[0][i - 1] else text
    for i, text in enumerate(heads[0])
  ]
  titles = {'parameters': 'parameters', 'macs': 'MACs'}
  heads = [heads[0] + [''] * len(sizes), heads[1] + [titles[k] for k in sizes]]
  lines = [
    [
      f'{model} {when}',
      *(_score_cell(of[when], *column) for column in columns),
      *(count(of.get(k)) for k in sizes),
    ]
    for model, when, of in rows
  ]
  return _align([*heads, *lines])


def _score_columns(entries) -> list[tuple[str, str, str]]:
  """(split, level, score) that any entry holds, validate and coarse first."""
  order = ['train', 'validate', 'test', 'coarse', 'fine']
  rank = {name: i for i, name in enumerate(order)}
  found = {
    (split, level)
    for entry in entries
    for split, levels in entry.items()
    if isinstance(levels, Mapping)
    for level in levels
  }
  ordered = sorted(found, key=lambda x: [(rank.get(n, 9), n) for n in x])
  return [
    (split, level, score)
    for split, level in ordered
    for score in SCORES
    if any(
      (e.get(split) or {}).get(level, {}).get(score) is not None
      for e in entries
    )
  ]


def _score_cell(entry, split, level, score) -> str:
  scores = (entry.get(split) or {}).get(level) or {}
  text = _number(scores.get(score), digits=3)
  interval = scores.get(f'{score}_ci')
  if interval is None:
    return text
  return text + ' [{:.3f}, {:.3f}]'.format(*interval)


def count(number: float | None) -> str:
  """A number of parameters or MACs: '950', '83.8k', '3.49M', '-'."""
  if number is None:
    return '-'
  for unit, size in (('M', 1e6), ('k', 1e3)):
    if number >= 0.9995 * size:
      value = number / size
      return f'{value:.{2 if value < 10 else 1 if value < 100 else 0}f}{unit}'
  return f'{number:.0f}'


def _is_number(value) -> bool:
  return value is not None and bool(np.isfinite(value))


def _number(value, digits: int = 4) -> str:
  """A score as text; 'undefined' where there is none."""
  if value is None:
    return '-'
  return f'{value:.{digits}f}' if _is_number(value) else 'undefined'


def _align(lines: Sequence[Sequence[str]]) -> str:
  """Lines of cells as columns: the first to the left, the others right."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  text = ''
  for line in lines:
    cells = [line[0].ljust(widths[0])]
    cells += [c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True)]
    text += '  '.join(cells).rstrip() + '\n'
  return text


@contextlib.contextmanager
def _figure(
  height: float, path: str | os.PathLike, layout: Any = 'constrained'
):
  """A figure `WIDTH` inches wide that is written to `path` at the end."""
  path = pathlib.Path(path)
  if path.suffix != '.png':
    raise ValueError(f"picture {str(path)!r}: expected a name ending in '.png'")
  import matplotlib
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure

  with matplotlib.rc_context(cast(Any, _STYLE)):
    figure = Figure(figsize=(WIDTH, height), dpi=150, layout=layout)
    canvas = backend_agg.FigureCanvasAgg(figure)
    yield figure
    content = io.BytesIO()
    canvas.print_png(content)
  _replace(path, content.getvalue())


def _save_text(text: str, picture: str | os.PathLike) -> None:
  """Writes the numbers of a picture beside it."""
  _replace(pathlib.Path(picture).with_suffix('.txt'), text.encode())


def _replace(path: pathlib.Path, content: bytes) -> None:
  """Writes a file in one step, or leaves what was there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, name = tempfile.mkstemp(prefix=f'{path.name}.', dir=path.parent)
  try:
    with os.fdopen(descriptor, 'wb') as file:
      file.write(content)
    os.chmod(name, 0o644)
    os.replace(name, path)
  except BaseException:
    os.unlink(name)
    raise
