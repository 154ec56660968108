"""The plot of how similar the frames of a clip are, under each model."""

import dataclasses
import io
import json
import math
import os
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.reporting import figures, formatting


@dataclasses.dataclass(frozen=True)
class SimilarityPanel:
  """One clip, as `plot_similarities` draws it.

  Attributes:
    title: the clip's name.
    tags: its true tags.
    log_mel_TF: of a model's front end, `[T, F]`.
    seconds: length of the clip.
    similarity: by model ('teacher', 'student', an objective of a table, …),
      the row-normalised frame similarity `[T, T]`; models may differ in T.
    runs: which student, seed and rotation the models beside the teacher are
      of, where a plot is not of one run alone.
  """

  title: str
  tags: Sequence[str]
  log_mel_TF: np.ndarray
  seconds: float
  similarity: Mapping[str, np.ndarray]
  runs: str = ''


def plot_similarities(
  clips: Sequence[SimilarityPanel],
  path: str | os.PathLike,
  titles: Mapping[str, str] | None = None,
) -> None:
  """Draws how similar the frames of a few clips are, under each model.

  After a ReLU most of a row-normalised Gram matrix is one constant, about
  1/√T. So √T·G less its mean off the diagonal is shown, whatever T. The colours
  of a row have one scale, which holds 98 % of the teacher's (else the first
  model's) values: a model of more contrast saturates.

  Args:
    clips: a row of the plot each.
    path: of the plot, `.png`; the distances go to `.txt` beside it.
    titles: of models, where they are not drawn by their names.

  Raises:
    ValueError: where there is no clip, or a similarity is not square.
  """
  names = dict.fromkeys(name for clip in clips for name in clip.similarity)
  models = {name: (titles or {}).get(name, name) for name in names}
  _check_similarities(clips, models)
  # The widest squares for which all models fit beside the log-mel.
  side = (5.5 - _GAP * len(models)) / (len(models) + _MEL_SIDES)
  side = min(side, 1.9)
  models = {
    name: textwrap.fill(title, max(6, int(side / 0.06)))
    for name, title in models.items()
  }
  above = 0.45 + 0.12 * max(title.count('\n') for title in models.values())
  pitch = above + side + 0.5
  notes = [clips[0].runs] if clips[0].runs else []
  notes.append((_DISTANCE if 'teacher' in models else '') + _LEGEND)
  height = pitch * len(clips) + 0.04 + 0.16 * len(notes)
  with figures.figure(height, path, None) as figure:
    for row, clip in enumerate(clips):
      bottom = height - pitch * (row + 1) + 0.5
      _draw_clip(figure, clip, models, bottom, side, above)
    place = _LEFT / figures.WIDTH, 0.04 / height
    figure.text(*place, '\n'.join(notes), va='bottom')
  figures.save_text(_similarity_table(clips), path)


# Inches, but for the width of the log-mel in sides of a square.
_LEFT, _GAP, _BETWEEN, _MEL_SIDES = 0.50, 0.14, 0.38, 1.5


def _draw_clip(figure, clip, models, bottom, side, above) -> None:
  """Log-mel, a square for each model, the scale of the colours."""
  wide = _MEL_SIDES * side
  _draw_mel(_place(figure, _LEFT, bottom, wide, side), clip, above)
  x = _LEFT + wide + _BETWEEN
  squares = [
    _place(figure, x + i * (side + _GAP), bottom, side, side)
    for i in range(len(models))
  ]
  x += len(models) * (side + _GAP) - 0.04
  bar = _place(figure, x, bottom, 0.07, side)
  _draw_row(figure, squares, bar, clip, models)


def to_bytes(clips: Sequence[SimilarityPanel]) -> bytes:
  """What `read` makes panels of again: an `.npz` of their arrays."""
  metadata, arrays = [], {}
  for i, clip in enumerate(clips):
    fields = {name: getattr(clip, name) for name in _FIELDS}
    metadata.append({**fields, 'models': list(clip.similarity)})
    arrays[f'{i}/log_mel'] = np.asarray(clip.log_mel_TF, np.float32)
    for j, matrix in enumerate(clip.similarity.values()):
      arrays[f'{i}/{j}'] = np.asarray(matrix, np.float32)
  content = io.BytesIO()
  np.savez_compressed(content, metadata=json.dumps(metadata), **arrays)
  return content.getvalue()


_FIELDS = ('title', 'tags', 'seconds', 'runs')


def read(path: pathlib.Path) -> list[SimilarityPanel]:
  """The panels of a file of `to_bytes`.

  Raises:
    ValueError: where it is damaged or of another version.
  """
  try:
    return _panels(path.read_bytes())
  except Exception as error:  # What zipfile, zlib, JSON and NumPy raise.
    raise ValueError(
      f'{path} cannot be read ({type(error).__name__}: {error}): it is damaged '
      'or of another version; delete it, and the command that trained the '
      'table makes it again'
    ) from error


def _panels(content: bytes) -> list[SimilarityPanel]:
  with np.load(io.BytesIO(content)) as arrays:
    return [
      SimilarityPanel(
        **{name: of[name] for name in _FIELDS},
        log_mel_TF=arrays[f'{i}/log_mel'],
        similarity={m: arrays[f'{i}/{j}'] for j, m in enumerate(of['models'])},
      )
      for i, of in enumerate(json.loads(str(arrays['metadata'])))
    ]


def merge(
  parts: Sequence[Sequence[SimilarityPanel]], names: Sequence[str]
) -> list[SimilarityPanel]:
  """The clips of several parts, such as shards with some objectives each.

  Args:
    parts: where two have the same model of a clip, the first one counts.
    names: of the models that are kept, in order.
  """
  clips: dict[str, SimilarityPanel] = {}
  for clip in (clip for part in parts for clip in part):
    first = clips.setdefault(clip.title, clip)
    joined = {**clip.similarity, **first.similarity}
    joined = {name: joined[name] for name in names if name in joined}
    clips[clip.title] = dataclasses.replace(first, similarity=joined)
  return list(clips.values())


def _place(figure, x, y, wide, high):
  """Axes at a place of the page, all in inches."""
  across, up = figure.get_size_inches()
  return figure.add_axes((x / across, y / up, wide / across, high / up))


_DISTANCE = 'd = ‖G − G_teacher‖² / T². '
_LEGEND = 'Colours: √T·G less its mean off the diagonal; grey: not finite.'


def _check_similarities(
  clips: Sequence[SimilarityPanel], models: Mapping[str, Any]
) -> None:
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


def _draw_mel(axes, clip, above: float) -> None:
  from matplotlib import ticker

  F = np.shape(clip.log_mel_TF)[1]
  axes.imshow(
    np.transpose(clip.log_mel_TF),
    origin='lower',
    aspect='auto',
    cmap='magma',
    extent=(0, clip.seconds, 0, F),
  )
  axes.set_ylabel('mel band', labelpad=2)
  axes.yaxis.set_major_locator(ticker.MaxNLocator(4, integer=True))
  axes.set_xlabel('time (s)', labelpad=1)
  _mark_seconds(axes.xaxis, clip.seconds, 'left', 'right')
  tags = ', '.join(clip.tags) or 'no tag'
  place = {'xytext': (0, 72 * above - 17), 'textcoords': 'offset points'}
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


def _draw_row(figure, squares, bar, clip, models) -> None:
  """The matrices of one clip, and the scale of their colours."""
  first = 'teacher' if 'teacher' in clip.similarity else None
  first = first or next(iter(clip.similarity), None)
  off = _relative(clip.similarity[first])[2] if first else np.zeros(0)
  limit = float(np.quantile(np.abs(off), 0.98)) if off.size else 0.0
  if limit < 1e-5:  # A constant but for rounding errors is shown as one.
    limit = 1.0
  image = None
  for i, (axes, model) in enumerate(zip(squares, models, strict=True)):
    axes.set_title(models[model], loc='left', pad=3)
    if model not in clip.similarity:
      axes.set_axis_off()
      continue
    values_TT = _relative(clip.similarity[model])[0]
    image = axes.imshow(
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
  if image is None:
    bar.set_axis_off()
    return
  figure.colorbar(image, cax=bar, extend='both', extendfrac=0.04)
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
  note = 'mean and sd are of sqrt(T)*G off the diagonal\n'
  if any('teacher' in clip.similarity for clip in clips):
    note = f'distance_to_teacher is |G_teacher - G_model|^2 / T^2; {note}'
  return formatting.align(lines) + note
