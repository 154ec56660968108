"""Reads `labels.csv`: which recordings, in which split, with which tags.

Where the names of the tags are given beforehand, recordings may be without
labels: their tags are unknown, -1, which is not absent, 0.
"""

import collections
import dataclasses
import difflib
import hashlib
import io
import pathlib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from tfds_dcase import csv_rows, known_layouts, tag_counts
from tfds_dcase.folder import file_hints, tag_cells

SPLITS = ('train', 'validate', 'test')
FILE_NAME = known_layouts.FILE_NAME
LABELLED = 'labelled'  # A column: whether the tags of a row are known.
UNKNOWN = -1
EXAMPLE = """\
file,split,dog,siren
street/0001.wav,train,1,1
street/0002.wav,validate,0,1
street/0003.wav,test,0,0
or, with one column of tags, joined by ; or | (a comma is part of a name)
file,split,tags
street/0001.wav,train,dog;siren
street/0002.wav,validate,siren
street/0003.wav,test,
"""
# After the columns of a table whose row numbers were written too.
_INDEX_HINT = (
  '; pandas writes row numbers unless index=False is given to to_csv'
)


@dataclasses.dataclass(frozen=True)
class Labels:
  """The content of a labels.csv.

  Attributes:
    tags: names, in column order, or sorted where one column has them.
    files: relative paths with '/', in file order.
    splits: of each file.
    tags_NC: 0/1, -1 where it is unknown. [N, C] int8
    notes: assumptions that were made in reading it, a line each.
  """

  tags: tuple[str, ...]
  files: tuple[str, ...]
  splits: tuple[str, ...]
  tags_NC: np.ndarray
  notes: tuple[str, ...] = ()


def read(manual_dir, tags: Sequence[str] = ()) -> Labels:
  """Parses and checks `labels.csv` in a folder; looks at no recording.

  Args:
    manual_dir: the folder.
    tags: names and order of the tags; where there are any, a column that is
      missing, and a row whose column `labelled` is 0, is unknown.

  Returns:
    Labels with every split in use, no file twice, and positives in train and
    validate.

  Raises:
    ValueError: naming the file and the line, for anything else.
  """
  path = pathlib.Path(manual_dir) / FILE_NAME
  if not path.is_file():
    advice = known_layouts.advice(path.parent)
    raise ValueError(
      f'{path}: no such file. {advice}'
      if advice
      else f'{path}: no such file; it should hold\n{EXAMPLE}'
    )
  rows, columns = _rows(path, bool(tags))
  others = ('file', 'split', *([LABELLED] if tags else []))
  names = [c for c in columns if c not in others]
  if tags:
    found = _partly_labelled(path, rows, names, tags)
  elif names == ['tags']:
    found = _one_column(path, rows, names)
  else:
    found = _column_per_tag(path, rows, names)
  found_tags, values, notes = found
  files = tuple(_file(path, n, row['file']) for n, row in rows)
  splits = tuple(_split(path, n, row['split']) for n, row in rows)
  _check_unique(path, [n for n, _ in rows], files)
  labels = Labels(
    tuple(found_tags), files, splits, np.array(values, np.int8), tuple(notes)
  )
  _check_splits(path, labels)
  return labels


def without_any(files: Sequence[str], tags: Sequence[str]) -> Labels:
  """Labels of a folder without labels.csv: all unknown.

  A hash of its name puts a tenth of the files in validate, one in test.
  """
  splits = []
  for file in files:
    number = int(hashlib.sha256(file.encode()).hexdigest()[:8], 16) % 10
    splits.append({0: 'validate', 1: 'test'}.get(number, 'train'))
  unknown_NC = np.full((len(files), len(tags)), UNKNOWN, np.int8)
  return Labels(tuple(tags), tuple(files), tuple(splits), unknown_NC)


def with_unlabelled(labels: Labels, files: Sequence[str]) -> Labels:
  """The labels, with recordings that have no row as training clips."""
  more_NC = np.full((len(files), len(labels.tags)), UNKNOWN, np.int8)
  return dataclasses.replace(
    labels,
    files=(*labels.files, *files),
    splits=(*labels.splits, *['train'] * len(files)),
    tags_NC=np.concatenate([labels.tags_NC, more_NC]),
  )


def is_labelled(labels: Labels) -> np.ndarray:
  """Whether anything is known of each clip: bool [N]."""
  return (labels.tags_NC != UNKNOWN).any(axis=1)


def _partly_labelled(path, rows, names, tags):
  """`tags`, their 0, 1 or unknown by row, and notes."""
  known = [
    LABELLED not in row or _zero_or_one(path, n, LABELLED, row[LABELLED], False)
    for n, row in rows
  ]
  kept = [each for each, is_known in zip(rows, known, strict=True) if is_known]
  found, values, notes = [], [], []
  if names == ['tags']:
    sets = [_tag_set(path, n, row['tags']) for n, row in kept]
    found = list(tags)
    values = [[int(t in tag_set) for t in tags] for tag_set in sets]
    used = sorted(set().union(*sets))
  elif names:
    found, values, notes = _column_per_tag(path, kept, names)
    used = found
  elif any(LABELLED in row for _, row in kept):
    raise ValueError(
      f'{path} line {kept[0][0]}: {LABELLED} is 1, but there is no column of a '
      f'tag: add those of {", ".join(tags)}, or one called tags'
    )
  else:  # Nothing is known of any row.
    used, known = [], [False] * len(rows)
  for tag in used:
    if tag not in tags:
      near = difflib.get_close_matches(tag, tags, n=1)
      hint = f'; did you mean {near[0]!r}?' if near else ''
      raise ValueError(
        f'{path}: the tag {tag!r} is not in dataset.builder.tags, '
        f'{", ".join(tags)}{hint}'
      )
  result = np.full((len(rows), len(tags)), UNKNOWN, np.int8)
  place = np.array([list(tags).index(tag) for tag in found], int)
  if values:
    result[np.ix_(np.flatnonzero(known), place)] = values
  return tags, result, notes


def _one_column(path, rows, names):
  """Tags, their 0/1 by row, and notes, from the column 'tags'."""
  del names
  sets = [_tag_set(path, n, row['tags']) for n, row in rows]
  tags = sorted(set().union(*sets))
  if not tags:
    raise ValueError(f'{path}: no tag in any row; it should hold\n{EXAMPLE}')
  joined = tag_cells.joined_by_commas(tags)
  if joined:
    line = next(n for (n, _), t in zip(rows, sets, strict=True) if joined in t)
    raise ValueError(
      f'{path} line {line}: {joined!r} is one tag, as a comma joins nothing, '
      'but each of its parts is found elsewhere too. Join tags with ; or |; '
      'where this is one name, use one column a tag'
    )
  empty = collections.Counter(
    row['tags'] for _, row in rows if row['tags'] in tag_cells.EMPTY
  )
  notes = [
    f'{n} cells of tags are {cell!r}, read as no tag'
    for cell, n in empty.items()
  ]
  return tags, [[int(t in tag_set) for t in tags] for tag_set in sets], notes


def _column_per_tag(path, rows, names):
  """Tags, their 0/1 by row, and no notes, from one column a tag."""
  alone = len(names) == 1
  values = [
    [_zero_or_one(path, n, name, row[name], alone) for name in names]
    for n, row in rows
  ]
  return [tag_cells.clean(name) for name in names], values, []


def _rows(
  path, may_lack_tags: bool = False
) -> tuple[list[tuple[int, dict]], list[str]]:
  """(line number, row) pairs without blank rows, and the column names."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: not UTF-8 text ({error}); save it so') from error
  separator = _separator(text, path)
  reader = csv_rows.rows(io.StringIO(text, newline=''), path, separator)
  columns = [c.strip() for c in next(reader, (1, []))[1]]
  _check_columns(path, columns, may_lack_tags)
  rows = []
  for line, cells in reader:
    if not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(columns):
      raise ValueError(
        f'{path} line {line}: {len(cells)} cells, but {len(columns)} columns; '
        f'put quotes around a cell that holds {separator!r}'
      )
    row = {k: v.strip() for k, v in zip(columns, cells, strict=True)}
    rows.append((line, row))
  if not rows:
    raise ValueError(
      f'{path}: no rows below the header; it should hold\n{EXAMPLE}'
    )
  return rows, columns


def _separator(text: str, path) -> str:
  """The one with which the header has 'file' and 'split', or the commonest."""
  separators = (',', ';', '\t')
  for each in separators:
    try:
      reader = csv_rows.rows(io.StringIO(text, newline=''), path, each)
      columns = {c.strip() for c in next(reader, (1, []))[1]}
    except ValueError:
      continue
    if {'file', 'split'} <= columns:
      return each
  return max(separators, key=re.split('[\r\n]', text, maxsplit=1)[0].count)


def _check_columns(path, columns: list[str], may_lack_tags: bool) -> None:
  for name in ('file', 'split'):
    if name not in columns:
      near = difflib.get_close_matches(name, columns, n=1)
      hint = f' (found {near[0]!r}: rename it?)' if near else ''
      raise ValueError(
        f'{path}: no column {name!r}{hint} among {columns}; it should hold\n'
        f'{EXAMPLE}'
      )
  names = [tag_cells.clean(c) for c in columns]
  if len(set(names)) < len(names) or '' in names:
    hint = _INDEX_HINT if '' in names else ''
    raise ValueError(
      f'{path}: columns without a name of their own: {columns}{hint}'
    )
  if any(re.fullmatch(r'Unnamed: \d+', name) for name in names):
    raise ValueError(f'{path}: columns {columns}{_INDEX_HINT}')
  if len(columns) == 2 and not may_lack_tags:
    raise ValueError(f'{path}: no tag column; it should hold\n{EXAMPLE}')
  most = 3 + (may_lack_tags and LABELLED in columns)
  if 'tags' in columns and len(columns) > most:
    raise ValueError(
      f"{path}: has a column 'tags' and others beside it, {columns}; keep "
      'either that one or one column a tag'
    )


def _tag_set(path, line: int, cell: str) -> set[str]:
  try:
    return set(tag_cells.tags_of(cell))
  except ValueError as error:
    raise ValueError(
      f'{path} line {line}: tags={cell!r} is {error}; join tags with ; or |'
    ) from error


def _zero_or_one(path, line: int, column: str, cell: str, alone: bool) -> int:
  value = tag_cells.zero_or_one(cell)
  if value is not None:
    return value
  hint = ''
  if cell in ('', *tag_cells.EMPTY):
    hint = '. A missing value is no 0: fill it in'
  elif alone:
    hint = ". If it holds the names of tags, call this column 'tags'"
  raise ValueError(
    f'{path} line {line}: {column}={cell!r}; must be 0 or 1{hint}'
  )


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


def _check_unique(path, lines, files) -> None:
  first: dict[str, int] = {}
  for line, file in zip(lines, files, strict=True):
    if file in first:
      raise ValueError(
        f'{path}: {file!r} in lines {first[file]} and {line}; keep one'
      )
    first[file] = line


def _check_splits(path, labels: Labels) -> None:
  unused = [s for s in SPLITS if s not in labels.splits]
  if unused:
    raise ValueError(
      f'{path}: no rows for {" and ".join(unused)}; each of {SPLITS} needs some'
    )
  labelled_N = is_labelled(labels)
  split_N = np.array(labels.splits)
  for split in ('validate', 'test'):
    own_N = labelled_N[split_N == split]
    if own_N.any() and not own_N.all():
      raise ValueError(
        f'{path}: {split} has {own_N.sum()} rows with labels and '
        f'{(~own_N).sum()} without: expected labels for all of them, to score '
        'by, or for none; move those without to train'
      )
  count = tag_counts.count(labels.tags_NC, labels.splits)
  for split, purpose in (
    ('train', 'there is nothing to learn'),
    ('validate', 'the best checkpoint cannot be chosen'),
  ):
    if not count[split].any() and labelled_N[split_N == split].all():
      raise ValueError(
        f'{path}: no row of {split} has any of the {len(labels.tags)} tags: '
        f'{purpose}. Add rows with tags to {split}'
      )


def match(labels: Labels, found: Sequence[str]) -> tuple[list[str], list[str]]:
  """Files that only the labels name, and files that only the folder holds."""
  named, there = set(labels.files), set(found)
  return (
    [f for f in labels.files if f not in there],
    [f for f in found if f not in named],
  )


def unmatched(
  missing: Sequence[str], unlabelled: Sequence[str], folder: pathlib.Path
) -> dict[str, list[str]]:
  """Both as lists by what they are, with the files that were probably meant."""
  hints = file_hints.hints(missing, unlabelled, folder)
  found = {
    f'{len(missing)} rows of {FILE_NAME} without their file': [
      f'{file} ({hints[file]})' if file in hints else file for file in missing
    ],
    f'{len(unlabelled)} recordings without a row': list(unlabelled),
  }
  return {what: files for what, files in found.items() if files}


def duplicates(
  labels: Labels, content_by_file: Mapping[str, str]
) -> tuple[dict[str, str], dict[str, str]]:
  """Recordings that are there twice, each with a message that names both.

  Args:
    labels: of the recordings.
    content_by_file: checksum of each file; '' is not compared.

  Returns:
    By file, the later one in labels.csv: those whose other copy is in another
    split, and those with other tags in the same split.
  """
  first: dict[str, int] = {}
  in_two_splits, contradictory = {}, {}
  for row, file in enumerate(labels.files):
    content = content_by_file[file]
    other = first.setdefault(content, row) if content else row
    split, other_split = labels.splits[row], labels.splits[other]
    message = f'{file} ({split}) is the same recording as {labels.files[other]}'
    if split != other_split:
      in_two_splits[file] = f'{message} ({other_split})'
    elif (labels.tags_NC[row] != labels.tags_NC[other]).any():
      contradictory[file] = f'{message}, with other tags'
  return in_two_splits, contradictory


def report(labels: Labels) -> tuple[str, list[str]]:
  """The line of positives by tag and split, and warnings about them."""
  count = tag_counts.count(labels.tags_NC, labels.splits)
  count = {split: count[split] for split in SPLITS}
  line, notes = tag_counts.line(labels.tags, count), list(labels.notes)
  labelled_N, split_N = is_labelled(labels), np.array(labels.splits)
  if not labelled_N.all():
    without = [f'{(~labelled_N[split_N == s]).sum()} {s}' for s in SPLITS]
    line = f'without labels: {", ".join(without)}; {line}'
  # Of a split without labels nothing is known to be absent.
  of = {s: n for s, n in count.items() if labelled_N[split_N == s].all()}
  return line, [*notes, *tag_counts.warnings(labels.tags, of)]


def without(labels: Labels, files: Sequence[str]) -> Labels:
  """The labels without the rows of some files.

  Raises:
    ValueError: if a split is left without rows.
  """
  left_out = set(files)
  keep = np.array([f not in left_out for f in labels.files])
  splits = tuple(s for s, k in zip(labels.splits, keep, strict=True) if k)
  empty = [s for s in SPLITS if s not in splits]
  if empty:
    raise ValueError(
      f'{" and ".join(empty)}: none of its recordings can be used; '
      f'left out: {", ".join(list(files)[:10])}'
    )
  return dataclasses.replace(
    labels,
    files=tuple(f for f, k in zip(labels.files, keep, strict=True) if k),
    splits=splits,
    tags_NC=labels.tags_NC[keep],
  )
