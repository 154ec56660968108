"""Notes on what a build changed or left out of a user's recordings.

Each is one line of this package's logger. All names are kept in a file of the
prepared data set.
"""

import logging
import pathlib
from collections.abc import Sequence

from tfds_dcase import disk

LOGGER = logging.getLogger('tfds_dcase')
FILE_NAME = 'notes.txt'
SHOWN = 10  # Names in a line of the log.


def line(what: str, names: Sequence[str], where: str = '') -> str:
  """'what: a; b', or the first names and where the others are."""
  text = f'{what}: {"; ".join(map(_printable, names[:SHOWN]))}'
  if len(names) > SHOWN:
    text += f'; and {len(names) - SHOWN} more'
    text += f', all in {where}' if where else ''
  return text


def listing(what: str, names: Sequence[str]) -> str:
  """All the names, one a line."""
  return ''.join([f'{what}:\n', *(f'  {_printable(name)}\n' for name in names)])


def _printable(name: str) -> str:
  """A name that is no legal Unicode, as file systems may have it, escaped."""
  return name.encode('utf-8', 'backslashreplace').decode()


def log_and_keep(what: str, names: Sequence[str], folder) -> None:
  """Logs a note and adds it to the folder that is being prepared."""
  LOGGER.warning('%s', line(what, names, FILE_NAME))
  path = pathlib.Path(folder) / FILE_NAME
  with disk.full_disk_named(path), path.open('a', encoding='utf-8') as file:
    file.write(listing(what, names))
