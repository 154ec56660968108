"""Public data sets as their authors distribute them: found and labelled.

ESC-50 (https://github.com/karolpiczak/ESC-50) and UrbanSound8K
(https://urbansounddataset.weebly.com) have their tags in a table beside the
recordings. `python -m tfds_dcase.folder FOLDER` writes the labels.csv that the
builder `folder` reads, with the splits that the authors' folds make.
"""

import csv
import io
import os
import pathlib
import shlex
from typing import NamedTuple

FILE_NAME = 'labels.csv'


class Layout(NamedTuple):
  """Where a data set keeps its table and recordings.

  Attributes:
    name: of the data set.
    table: path of the table below the data set's folder.
    columns: of the table: fold and tag.
    file: a recording's path below the folder, of the table's columns.
    validate_fold: the fold that becomes `validate`.
    test_fold: the fold that becomes `test`; all others are `train`.
  """

  name: str
  table: str
  columns: tuple[str, str]
  file: str
  validate_fold: str
  test_fold: str


LAYOUTS = (
  Layout(
    'ESC-50', 'meta/esc50.csv', ('fold', 'category'), 'audio/{filename}',
    '4', '5',
  ),
  Layout(
    'UrbanSound8K', 'metadata/UrbanSound8K.csv', ('fold', 'class'),
    'audio/fold{fold}/{slice_file_name}', '9', '10',
  ),
)  # fmt: skip


def find(folder: str | os.PathLike) -> tuple[Layout, pathlib.Path] | None:
  """The known data set in a folder, beside it or one level below.

  Returns:
    The layout and the data set's own folder, or None.
  """
  path = pathlib.Path(folder)
  places = [path, path.parent]
  if path.is_dir():
    places += sorted(p for p in path.iterdir() if p.is_dir())
  for place in places:
    for layout in LAYOUTS:
      if (place / layout.table).is_file():
        return layout, place
  return None


def advice(folder: str | os.PathLike) -> str:
  """Which commands use a known data set; empty for any other folder."""
  found = find(folder)
  if found is None:
    return ''
  layout, place = found
  text = (
    f'{place} is {layout.name} as distributed: its tags are in '
    f'{layout.table}, not in folders. '
  )
  quoted = shlex.quote(str(place))
  if not (place / FILE_NAME).exists():
    text += (
      f'Write its {FILE_NAME} with\n  python -m tfds_dcase.folder {quoted}\n'
    )
  return f'{text}and run\n  {command(quoted)}'


def command(quoted_folder: str) -> str:
  """The command that trains on a labelled folder."""
  return (
    'python run.py --config=configs/baseline.py:folder '
    f'--config.dataset.manual_dir={quoted_folder}'
  )


def write_labels(folder: str | os.PathLike) -> pathlib.Path:
  """Writes the labels.csv of a known data set.

  Args:
    folder: as for `find`.

  Returns:
    The path of labels.csv.

  Raises:
    ValueError: no known data set, a table without the columns that it should
      have, or a labels.csv that is there already.
  """
  found = find(folder)
  if found is None:
    names = ' or '.join(f'{each.name} ({each.table})' for each in LAYOUTS)
    raise ValueError(f'{folder}: found no table of {names}')
  layout, place = found
  path = place / FILE_NAME
  if path.exists():
    raise ValueError(f'{path} is there already; delete it to write it anew')
  fold, tag = layout.columns
  splits = {layout.validate_fold: 'validate', layout.test_fold: 'test'}
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(('file', 'split', 'tags'))
  with open(place / layout.table, newline='', encoding='utf-8-sig') as file:
    for row in csv.DictReader(file):
      try:
        name = layout.file.format(**row)
        writer.writerow((name, splits.get(row[fold], 'train'), row[tag]))
      except KeyError as error:
        raise ValueError(
          f'{place / layout.table}: no column {error}; found {list(row)}'
        ) from error
  path.write_text(text.getvalue(), encoding='utf-8')
  return path
