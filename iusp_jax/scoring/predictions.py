"""Predictions files, in the DCASE challenge's own form.

A column `audio_filename` and one column a tag, named as in the taxonomy
(`1_engine`, `1-1_small-sounding-engine`, ...) or, for other data sets, by its
tags; one row a clip, in any order.
"""

import csv
import gzip
import io
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from iusp_jax.runtime import files
from tfds_dcase import csv_rows

CLIP = 'audio_filename'
_NAMED = 5  # names that a message lists before it only counts


class Predictions(NamedTuple):
  """The content of a predictions file.

  Attributes:
    clip_ids: N file names, in file order.
    scores_by_column: float64 [N], from 0 to 1, by tag.
    ignored: names of columns that were not asked for.
  """

  clip_ids: tuple[str, ...]
  scores_by_column: dict[str, np.ndarray]
  ignored: tuple[str, ...] = ()


def write_predictions(
  path: str | os.PathLike,
  clip_ids: Sequence[str],
  scores_by_column: Mapping[str, Any],
) -> None:
  """Writes a predictions file; whole or not at all.

  Scores are written so that reading gives the same numbers back.

  Args:
    path: of the file; its folder is made.
    clip_ids: N file names.
    scores_by_column: [N] scores from 0 to 1 by tag, in order of the columns.

  Raises:
    ValueError: no column, a clip twice, a column of another length, a score
      that is NaN or outside 0..1.
  """
  clip_ids = [str(clip) for clip in clip_ids]
  _check_unique(f'cannot write {path}', clip_ids)
  columns = {}
  for name, scores in scores_by_column.items():
    scores_N = np.asarray(scores, dtype=np.float64)
    if scores_N.shape != (len(clip_ids),):
      raise ValueError(
        f'cannot write {path}: column {name!r} has shape {scores_N.shape}, '
        f'expected ({len(clip_ids)},), one score a clip.'
      )
    bad = np.flatnonzero(~((scores_N >= 0) & (scores_N <= 1)))
    if len(bad):
      raise ValueError(
        f'cannot write {path}: {name!r} of {clip_ids[bad[0]]} is '
        f'{scores_N[bad[0]]}, expected a number from 0 to 1.'
      )
    columns[name] = scores_N.tolist()
  if not columns or CLIP in columns:
    raise ValueError(
      f'cannot write {path}: columns {list(columns)}; expected at least one '
      f'tag, none of them named {CLIP!r}.'
    )
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow([CLIP, *columns])
  writer.writerows(zip(clip_ids, *columns.values(), strict=True))
  files.write_atomically(files.resolve(os.fspath(path)), text.getvalue())


def read_predictions(
  path: str | os.PathLike, columns: Sequence[str] | None = None
) -> Predictions:
  """Reads a predictions file, .csv or .csv.gz.

  Args:
    path: of the file.
    columns: the tags to read where the file has them; other columns may hold
      anything. None = every column but `audio_filename`.

  Returns:
    Its clips and scores in file order.

  Raises:
    ValueError: not such a file, a column or clip twice, no clip, a score that
      is not a number from 0 to 1. Names file, row and column.
  """
  header, rows = _table(path)
  clip = header.index(CLIP)
  clip_ids = [row[clip] for _, row in rows]
  _check_unique(f'{path}', clip_ids, [line for line, _ in rows])
  wanted = set(header if columns is None else columns) - {CLIP}
  scores = {}
  for place, name in enumerate(header):
    if name in wanted:
      scores[name] = np.array(
        [
          _score(row[place], f'{path}, row {line}, column {name!r}')
          for line, row in rows
        ]
      )
  ignored = tuple(n for n in header if n not in wanted and n != CLIP)
  return Predictions(tuple(clip_ids), scores, ignored)


def some(names: Sequence[str]) -> str:
  """The first few names of a list, for a message, and how many more."""
  text = ', '.join(map(repr, names[:_NAMED])) or 'none'
  more = len(names) - _NAMED
  return f'{text} and {more} more' if more > 0 else text


def _table(path: str | os.PathLike) -> tuple[list[str], list[tuple]]:
  """Header, and (line, fields) of every row, checked for shape."""
  raw = pathlib.Path(path).read_bytes()
  try:
    if raw[:2] == b'\x1f\x8b':
      raw = gzip.decompress(raw)
    text = io.StringIO(raw.decode('utf-8-sig'), newline='')
  except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeError) as e:
    raise ValueError(
      f'{path} is not a whole CSV file, plain or gzip ({e}).'
    ) from e
  rows = list(csv_rows.rows(text, path))
  header = [name.strip() for name in rows[0][1]] if rows else []
  if CLIP not in header:
    raise ValueError(
      f'{path}: no column {CLIP!r} (found {some(header)}); expected the '
      f"challenge's format: {CLIP!r}, then one column a tag."
    )
  repeated = sorted({name for name in header if header.count(name) > 1})
  if repeated:
    raise ValueError(f'{path}: columns twice: {some(repeated)}.')
  for line, row in rows:
    if len(row) != len(header):
      raise ValueError(
        f'{path}, row {line}: found {len(row)} fields, expected '
        f'{len(header)} as in the header. Is the file cut short?'
      )
  if len(rows) == 1:
    raise ValueError(f'{path}: found a header without rows.')
  return header, rows[1:]


def _score(text: str, where: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value <= 1:
    raise ValueError(f'{where}: found {text!r}, expected a number from 0 to 1.')
  return value


def _check_unique(
  where: str, clip_ids: Sequence[str], lines: Sequence[int] | None = None
) -> None:
  """Raises for a clip that comes twice, naming its rows if there are any."""
  first: dict[str, int] = {}
  for n, clip in enumerate(clip_ids):
    if clip in first:
      rows = f' (rows {lines[first[clip]]} and {lines[n]})' if lines else ''
      raise ValueError(
        f'{where}: {clip!r} comes twice{rows}; expected one row a clip.'
      )
    first[clip] = n
