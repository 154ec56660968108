"""Figures as files: one style, any name drawn as it is written.

Every plot `name.png` comes with its numbers as text, `name.txt`, for whoever
has no display. Files are replaced in one step, so none is ever seen half
written.

matplotlib is imported where it is used, and drawn with through its objects:
no pyplot, no display, nothing global left changed.
"""

import contextlib
import io
import os
import pathlib
import re
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from iusp_jax.reporting import formatting
from iusp_jax.runtime import files, logs

WIDTH = 7.0  # inches: the two columns of a paper
GREY = '#777777'
_STYLE = {
  'font.family': 'DejaVu Sans',
  'font.size': 7.5,
  # Names hold $, _ and ^, which are no mathematics.
  'text.parse_math': False,
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
_reported: set[str] = set()  # Characters without a glyph, each logged once.


@contextlib.contextmanager
def figure(
  height: float, path: str | os.PathLike, layout: Any = 'constrained'
) -> Iterator[Any]:
  """A figure `WIDTH` inches wide that is written to `path` at the end.

  A character that DejaVu Sans lacks is drawn with an installed font that has
  it; one that no font has is logged once.
  """
  target = files.resolve(os.fspath(path))
  if target.suffix != '.png':
    raise ValueError(f"plot {str(path)!r}: expected a name ending in '.png'")
  import matplotlib
  from matplotlib.backends import backend_agg
  from matplotlib.figure import Figure
  from matplotlib.text import Text

  with matplotlib.rc_context(cast(Any, _STYLE)):
    page = Figure(figsize=(WIDTH, height), dpi=150, layout=layout)
    canvas = backend_agg.FigureCanvasAgg(page)
    yield page
    content, missing = _render(canvas)
    if missing:
      fonts, missing = _fonts_with(missing)
      for text in page.findobj(Text):
        cast(Any, text).set_fontfamily([_STYLE['font.family'], *fonts])
      content, _ = _render(canvas)
  files.write_atomically(target, content)
  _log_missing(missing, target)


def _render(canvas) -> tuple[bytes, set[str]]:
  """The image, and the characters that it has no glyphs for."""
  content, missing = io.BytesIO(), set()
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    canvas.print_png(content)
  for warning in caught:
    if found := re.match(r'Glyph (\d+) ', str(warning.message)):
      missing.add(chr(int(found[1])))
    else:
      warnings.warn_explicit(
        warning.message, warning.category, warning.filename, warning.lineno
      )
  return content.getvalue(), missing


def _fonts_with(characters: set[str]) -> tuple[list[str], set[str]]:
  """Installed fonts that have some of the characters; those that none has."""
  from matplotlib import font_manager, ft2font

  found, left = [], {ord(character) for character in characters}
  for entry in font_manager.fontManager.ttflist:
    if 'Last Resort' in entry.name:  # It has a box for everything.
      continue
    try:
      own = left & ft2font.FT2Font(entry.fname).get_charmap().keys()
    except (OSError, RuntimeError):
      continue
    if own:
      found.append(entry.name)
      left -= own
  return found, {chr(code) for code in left}


def _log_missing(characters: set[str], target: Any) -> None:
  new = sorted(characters - _reported)
  _reported.update(new)
  if new:
    named = ', '.join(
      f'{c!r} (U+{ord(c):04X} {unicodedata.name(c, "unnamed")})' for c in new
    )
    logs.log(
      f'{target}: no installed font has {named}; drawn as boxes here and in '
      f'other plots, for the names see {target.with_suffix(".txt")}'
    )


def save_text(text: str, plot: str | os.PathLike) -> None:
  """Writes the numbers of a plot beside it."""
  path = files.resolve(os.fspath(plot)).with_suffix('.txt')
  files.write_atomically(cast(pathlib.Path, path), text)


def save_table(
  head: Sequence[str], rows: Sequence[Sequence[str]], plot: str | os.PathLike
) -> None:
  """Writes the numbers of a plot beside it, a line a row."""
  save_text(formatting.align([head, *rows]), plot)


def error_bars(axes, x, found: Sequence[Mapping[str, Any]], **look) -> None:
  """Means with their standard deviations."""
  axes.errorbar(
    x,
    [of['mean'] for of in found],
    [of['sd'] or 0.0 for of in found],
    linewidth=1.0,
    elinewidth=0.8,
    markersize=4,
    markeredgecolor='white',
    markeredgewidth=0.4,
    **look,
  )


def label(name: str) -> str:
  """A name for a legend, which leaves out those that start with `_`."""
  return f' {name}' if name.startswith('_') else name


def legend(page, axes) -> None:
  """Of what is drawn in `axes`, under the page."""
  handles, labels = axes.get_legend_handles_labels()
  widest = max(map(len, labels), default=1) + 5
  page.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=max(1, min(len(labels), 120 // widest)),
    frameon=False,
    handletextpad=0.4,
  )
