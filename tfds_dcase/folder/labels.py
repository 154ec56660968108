"""Reads `labels.csv`: which recordings, in which split, with which tags."""

import csv
import dataclasses
import difflib
import pathlib
import re

import numpy as np

SPLITS = ('train', 'validate', 'test')
FILE_NAME = 'labels.csv'
EXAMPLE = """\
file,split,dog,siren
street/0001.wav,train,1,1
street/0002.wav,validate,0,1
street/0003.wav,test,0,0
or, with one column of tags, joined by ; or |
file,split,tags
street/0001.wav,train,dog;siren
street/0002.wav,validate,siren
street/0003.wav,test,
"""


@dataclasses.dataclass(frozen=True)
class Labels:
  """The content of a labels.csv.

  Attributes:
    tags: names, in column order, or sorted where they stand in one column.
    files: relative paths with '/', in file order.
    splits: of each file.
    tags_NC: 0/1. [N, C] int8
  """

  tags: tuple[str, ...]
  files: tuple[str, ...]
  splits: tuple[str, ...]
  tags_NC: np.ndarray


def read(manual_dir) -> Labels:
  """Parses and checks `labels.csv` in a folder; looks at no recording.

  Returns:
    Labels with every split in use and no file twice.

  Raises:
    ValueError: naming the file and the line, for anything else.
  """
  path = pathlib.Path(manual_dir) / FILE_NAME
  if not path.is_file():
    raise ValueError(f'{path}: no such file; it should hold\n{EXAMPLE}')
  rows, columns = _rows(path)
  names = [c for c in columns if c not in ('file', 'split')]
  if names == ['tags']:
    sets = [_split_tags(row['tags']) for _, row in rows]
    tags = sorted(set().union(*sets))
    values = [[int(t in tag_set) for t in tags] for tag_set in sets]
  else:
    tags = names
    values = [
      [_zero_or_one(path, n, c, row[c]) for c in tags] for n, row in rows
    ]
  if not tags:
    raise ValueError(f'{path}: no tag in any row; it should hold\n{EXAMPLE}')
  files = tuple(_file(path, n, row['file']) for n, row in rows)
  splits = tuple(_split(path, n, row['split']) for n, row in rows)
  _refuse_duplicates(path, [n for n, _ in rows], files)
  unused = [s for s in SPLITS if s not in splits]
  if unused:
    raise ValueError(
      f'{path}: no rows for {" and ".join(unused)}; each of {SPLITS} needs some'
    )
  return Labels(tuple(tags), files, splits, np.array(values, np.int8))


def _rows(path) -> tuple[list[tuple[int, dict]], list[str]]:
  """(line number, row) pairs without blank rows, and the column names."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text ({error}); save it so') from error
  head = text.split('\n', 1)[0]
  separator = max((',', ';', '\t'), key=head.count)
  reader = csv.reader(text.splitlines(keepends=True), delimiter=separator)
  columns = [c.strip() for c in next(reader, [])]
  _check_columns(path, columns)
  rows = []
  for cells in reader:
    if not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(columns):
      raise ValueError(
        f'{path} line {reader.line_num}: {len(cells)} cells, but '
        f'{len(columns)} columns; put quotes around a cell that holds '
        f'{separator!r}'
      )
    row = {k: v.strip() for k, v in zip(columns, cells, strict=True)}
    rows.append((reader.line_num, row))
  if not rows:
    raise ValueError(
      f'{path}: no rows below the header; it should hold\n{EXAMPLE}'
    )
  return rows, columns


def _check_columns(path, columns: list[str]) -> None:
  for name in ('file', 'split'):
    if name not in columns:
      near = difflib.get_close_matches(name, columns, n=1)
      hint = f' (found {near[0]!r}: rename it?)' if near else ''
      raise ValueError(
        f'{path}: no column {name!r}{hint} among {columns}; it should hold\n'
        f'{EXAMPLE}'
      )
  twice = sorted({c for c in columns if columns.count(c) > 1})
  if twice or '' in columns:
    raise ValueError(f'{path}: columns without a name of their own: {columns}')
  if len(columns) == 2:
    raise ValueError(f'{path}: no tag column; it should hold\n{EXAMPLE}')
  if 'tags' in columns and len(columns) > 3:
    raise ValueError(
      f"{path}: has a column 'tags' and others beside it, {columns}; keep "
      'either that one or one column a tag'
    )


def _split_tags(cell: str) -> set[str]:
  return {t.strip() for t in re.split(r'[;|,]', cell) if t.strip()}


def _zero_or_one(path, line: int, column: str, cell: str) -> int:
  if cell in ('0', '1', '0.0', '1.0'):
    return int(cell[0])
  raise ValueError(f'{path} line {line}: {column}={cell!r}; must be 0 or 1')


def _split(path, line: int, cell: str) -> str:
  if cell.lower() in SPLITS:
    return cell.lower()
  raise ValueError(
    f'{path} line {line}: split={cell!r}; must be one of {SPLITS}'
  )


def _file(path, line: int, cell: str) -> str:
  name = pathlib.PurePosixPath(cell.replace('\\', '/'))
  if not cell or name.is_absolute() or '..' in name.parts:
    raise ValueError(
      f'{path} line {line}: file={cell!r}; must be a path below the folder '
      'of labels.csv'
    )
  return name.as_posix()


def _refuse_duplicates(path, lines, files) -> None:
  first: dict[str, int] = {}
  for line, file in zip(lines, files, strict=True):
    if file in first:
      raise ValueError(
        f'{path}: {file!r} in lines {first[file]} and {line}; keep one'
      )
    first[file] = line


def match(labels: Labels, found: list[str]) -> tuple[list[str], list[str]]:
  """Files that only the labels name, and files that only the folder holds."""
  return (
    [f for f in labels.files if f not in set(found)],
    [f for f in found if f not in set(labels.files)],
  )


def unmatched(
  missing: list[str], unlabelled: list[str]
) -> dict[str, list[str]]:
  """Both in words, with a likely spelling for what is missing."""
  by_name = {f.rsplit('/', 1)[-1].lower(): f for f in unlabelled}

  def hint(file):
    near = by_name.get(file.rsplit('/', 1)[-1].lower())
    return f'{file} (did you mean {near}?)' if near else file

  found = {
    f'{len(missing)} rows of {FILE_NAME} without their file': [
      hint(file) for file in missing
    ],
    f'{len(unlabelled)} recordings without a row': unlabelled,
  }
  return {what: files for what, files in found.items() if files}


def without(labels: Labels, files: list[str]) -> Labels:
  """The labels without the rows of some files.

  Raises:
    ValueError: if a split is left without rows.
  """
  keep = np.array([f not in set(files) for f in labels.files])
  splits = tuple(s for s, k in zip(labels.splits, keep, strict=True) if k)
  empty = [s for s in SPLITS if s not in splits]
  if empty:
    raise ValueError(
      f'{" and ".join(empty)}: none of its recordings is there; '
      f'missing: {", ".join(files[:10])}'
    )
  return dataclasses.replace(
    labels,
    files=tuple(f for f, k in zip(labels.files, keep, strict=True) if k),
    splits=splits,
    tags_NC=labels.tags_NC[keep],
  )
