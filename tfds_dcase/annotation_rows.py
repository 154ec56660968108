"""The rows of SONYC-UST's annotations.csv, one per clip and annotator.

Reads the layout of both versions (v1 has 70 columns, v2 adds where and when a
clip was recorded). Anything else is an error that names file, row and column.

Reference: the READMEs of https://zenodo.org/record/2590742 and 3966543.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable

import numpy as np

from tfds_dcase import csv_rows, taxonomy

SPLITS = ('train', 'validate', 'test')
# The code of a proximity is its place here; -1 = not labelled.
PROXIMITIES = ('near', 'far', 'notsure')
TRUTH = 0  # annotator_id of the tags that the SONYC team agreed upon

_INDEX = ('split', 'sensor_id', 'audio_filename', 'annotator_id')
_PRESENCE = tuple(f'{name}_presence' for name in taxonomy.FINE_COLUMNS)
_PROXIMITY = tuple(f'{name}_proximity' for name in taxonomy.FINE_COLUMNS)
_COARSE = tuple(f'{name}_presence' for name in taxonomy.COARSE)
_WHEN = ('year', 'week', 'day', 'hour', 'borough', 'block')
_WHERE = ('latitude', 'longitude')

COLUMNS_V1 = _INDEX + _PRESENCE + _PROXIMITY + _COARSE
EXTRA_V2 = _WHEN + _WHERE


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The rows of one annotations file; R rows, Q = 29 fine columns with X.

  Attributes:
    path: the file, for messages.
    line: int [R], line of each row in the file (the header is line 1).
    split: str [R], 'train', 'validate' or 'test'.
    sensor_id: int32 [R].
    audio_filename: str [R].
    annotator_id: int32 [R]; > 0 volunteer, < 0 team member, 0 agreed truth.
    presence: int8 [R, Q], 1 / 0 / -1 (not labelled).
    proximity: int8 [R, Q], index into `PROXIMITIES`, -1 = not labelled.
    coarse_as_shipped: int8 [R, 8], as in the file: do not learn from these.
    extra: v2's columns, [R] each: year, week, day, hour, borough, block as
      int32 (-1 where empty), latitude, longitude as float64 degrees (NaN
      where empty). Empty for v1.
  """

  path: str
  line: np.ndarray
  split: np.ndarray
  sensor_id: np.ndarray
  audio_filename: np.ndarray
  annotator_id: np.ndarray
  presence: np.ndarray
  proximity: np.ndarray
  coarse_as_shipped: np.ndarray
  extra: dict[str, np.ndarray]


def read(path: str | os.PathLike) -> Annotations:
  """Reads annotations.csv of SONYC-UST v1 or v2.

  Args:
    path: the file.

  Returns:
    Its rows in file order.

  Raises:
    ValueError: an unknown, missing or repeated column, a row of another
      length, an unknown split, annotator, presence or proximity, the same
      clip in two splits or with two truth rows. Names file, row, column, the
      value found and the legal ones.
  """
  path = os.fspath(path)
  header, rows, line = _rows(path)
  column = dict(zip(header, zip(*rows, strict=True), strict=True))

  def parsed(names: Iterable[str], parse: Callable, legal: str, dtype):
    arrays = [
      _parse(
        column[name], parse, f'{path}, row {{}}, column {name!r}', legal, line
      )
      for name in names
    ]
    return np.stack(arrays, axis=-1).astype(dtype)

  whole = 'a whole number'
  result = Annotations(
    path=path,
    line=line,
    split=parsed(['split'], _split, ', '.join(SPLITS), str)[:, 0],
    sensor_id=parsed(['sensor_id'], _whole, whole, np.int32)[:, 0],
    audio_filename=parsed(['audio_filename'], _name, 'a file name', str)[:, 0],
    annotator_id=parsed(
      ['annotator_id'],
      _whole,
      'a whole number: > 0 volunteer, < 0 team member, 0 agreed truth',
      np.int32,
    )[:, 0],
    presence=parsed(_PRESENCE, _presence, '1, 0 or -1', np.int8),
    proximity=parsed(
      _PROXIMITY, _proximity, ', '.join(PROXIMITIES) + ' or -1', np.int8
    ),
    coarse_as_shipped=parsed(_COARSE, _presence, '1, 0 or -1', np.int8),
    extra={
      name: parsed([name], *_extra_parser(name))[:, 0]
      for name in EXTRA_V2
      if name in column
    },
  )
  _check_clips(result)
  return result


def _rows(path: str) -> tuple[list[str], list[list[str]], np.ndarray]:
  """Header, rows and line numbers, with columns and row lengths checked."""
  rows, lines = [], []
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      read = csv_rows.rows(file, path)
      header = [name.strip() for name in next(read, (1, []))[1]]
      _check_columns(path, header)
      for line, row in read:
        if len(row) != len(header):
          raise ValueError(
            f'{path}, row {line}: found {len(row)} fields, expected '
            f'{len(header)} as in the header. Is the file cut short?'
          )
        # Few spellings, millions of fields: keep one copy of each.
        rows.append(list(map(sys.intern, row)))
        lines.append(line)
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{path} is not a CSV text file ({error}). Expected annotations.csv of '
      'SONYC-UST.'
    ) from error
  if not rows:
    raise ValueError(f'{path}: found a header without rows. Is it cut short?')
  return header, rows, np.array(lines)


def _check_columns(path: str, header: list[str]) -> None:
  """Raises for a header that is neither v1's nor v2's, in any order."""
  repeated = sorted({name for name in header if header.count(name) > 1})
  missing = [name for name in COLUMNS_V1 if name not in header]
  if any(name in header for name in EXTRA_V2):
    missing += [name for name in EXTRA_V2 if name not in header]
  unknown = [name for name in header if name not in COLUMNS_V1 + EXTRA_V2]
  for what, names in (
    ('missing', missing),
    ('unknown', unknown),
    ('repeated', repeated),
  ):
    if names:
      raise ValueError(
        f'{path}, row 1 (header): {what} columns {", ".join(map(repr, names))}.'
        f' Expected the {len(COLUMNS_V1)} columns of SONYC-UST v1, or these '
        f"and v2's {', '.join(EXTRA_V2)}."
      )


def _parse(
  values: tuple[str, ...],
  parse: Callable[[str], object],
  where: str,
  legal: str,
  lines: np.ndarray,
) -> np.ndarray:
  """Parses one column; each distinct spelling once, as there are few."""
  parsed = {}
  for value in set(values):
    try:
      parsed[value] = parse(value.strip())
    except (KeyError, ValueError, OverflowError):
      first = values.index(value)
      raise ValueError(
        f'{where.format(lines[first])}: found {value!r}, legal: {legal}.'
      ) from None
  return np.array([parsed[value] for value in values])


def _split(value: str) -> str:
  return SPLITS[SPLITS.index(value)]


def _name(value: str) -> str:
  if not value:
    raise ValueError(value)
  return value


def _whole(value: str) -> int:
  number = float(value)
  if number != int(number) or abs(number) >= 2**31:
    raise ValueError(value)
  return int(number)


def _presence(value: str) -> int:
  return {1.0: 1, 0.0: 0, -1.0: -1}[float(value)]


def _proximity(value: str) -> int:
  if value in PROXIMITIES:
    return PROXIMITIES.index(value)
  return {-1.0: -1}[float(value)]


def _extra_parser(name: str) -> tuple[Callable, str, type]:
  """How v2's column `name` is read: function, legal values, type."""
  if name in _WHERE:
    return lambda v: float(v) if v else np.nan, 'degrees', np.float64
  return lambda v: _whole(v) if v else -1, 'a whole number', np.int32


def _check_clips(annotations: Annotations) -> None:
  """Raises for a clip in two splits, or with two truth rows."""
  _, first, clip = np.unique(
    annotations.audio_filename, return_index=True, return_inverse=True
  )
  moved = np.flatnonzero(annotations.split != annotations.split[first][clip])
  if len(moved):
    row, other = moved[0], first[clip[moved[0]]]
    found, expected = map(str, annotations.split[[row, other]])
    raise ValueError(
      f'{annotations.path}, row {annotations.line[row]}: '
      f'{annotations.audio_filename[row]} is in split {found!r}, but in '
      f'{expected!r} at row '
      f'{annotations.line[other]}. A clip belongs to one split.'
    )
  truth = np.flatnonzero(annotations.annotator_id == TRUTH)
  _, first = np.unique(clip[truth], return_index=True)
  if len(first) != len(truth):
    row = np.delete(truth, first)[0]
    raise ValueError(
      f'{annotations.path}, row {annotations.line[row]}: a second truth row '
      f'(annotator_id 0) of {annotations.audio_filename[row]}; expected one.'
    )
