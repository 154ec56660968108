"""Which file was probably meant by a path in labels.csv that does not exist."""

import pathlib
import unicodedata
from collections.abc import Sequence

from tfds_dcase import audio


def hints(
  missing: Sequence[str], unlabelled: Sequence[str], folder: pathlib.Path
) -> dict[str, str]:
  """By missing path, the file that was probably meant, with what differs.

  Paths are compared without case, Unicode form, white space at the ends of
  their parts, folders and extension.

  Args:
    missing: paths in labels.csv without a file.
    unlabelled: recordings of the folder without a row.
    folder: of labels.csv.
  """
  near: dict[str, str] = {}
  for file in unlabelled:
    for key in _keys(file):
      near.setdefault(key, file)
  found = {}
  for file in missing:
    beside = _files_beside(folder / file)
    close = {key: name for name in reversed(beside) for key in _keys(name)}
    parent = file.rpartition('/')[0]
    for key in _keys(file):
      name = close.get(key)
      meant = f'{parent}/{name}'.lstrip('/') if name else near.get(key)
      if meant:
        found[file] = f'did you mean {_described(file, meant)}?'
        break
  return found


def _keys(file: str) -> list[str]:
  """What is compared, from close to far: path, name, name without extension."""
  text = unicodedata.normalize('NFC', file).casefold()
  parts = [part.strip() for part in text.split('/')]
  stem, dot, extension = parts[-1].rpartition('.')
  known = dot + extension in audio.EXTENSIONS
  return ['/'.join(parts), parts[-1], (stem if known else parts[-1]).strip()]


def _files_beside(path: pathlib.Path) -> list[str]:
  try:
    return sorted(p.name for p in path.parent.iterdir() if p.is_file())
  except OSError:
    return []


def _described(file: str, meant: str) -> str:
  """The file that was meant, with any difference that cannot be seen."""
  normal = [unicodedata.normalize('NFC', f) for f in (file, meant)]
  if normal[0] == normal[1]:
    return f'{meant!r}, written in another Unicode form'
  if normal[0].replace(' ', '') == normal[1].replace(' ', ''):
    return f'{meant!r}, with other white space (rename the file)'
  return meant
