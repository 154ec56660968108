"""Writes the labels.csv of ESC-50 or UrbanSound8K as distributed.

python -m tfds_dcase.folder FOLDER
"""

import shlex
import sys

from tfds_dcase import known_layouts


def main(arguments: list[str]) -> str:
  """Writes it and returns the message; SystemExit with one line if not."""
  if len(arguments) != 1 or arguments[0].startswith('-'):
    raise SystemExit(__doc__)
  try:
    path = known_layouts.write_labels(arguments[0])
  except (OSError, ValueError) as error:
    raise SystemExit(f'{error}') from error
  quoted = shlex.quote(str(path.parent))
  return f'Wrote {path}. Now run\n  {known_layouts.command(quoted)}'


if __name__ == '__main__':
  print(main(sys.argv[1:]))
