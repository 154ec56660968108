"""Checks class folders before their names become tags."""

import re
from collections.abc import Sequence

from tfds_dcase import known_layouts

_FOLD = re.compile(r'(fold|split|part)[ _-]?\d+')
_TRAIN = ('train', 'training')
_SPLITS = (
  'val', 'valid', 'validate', 'validation', 'dev', 'devel', 'development',
  'eval', 'evaluate', 'evaluation', 'test', 'testing',
)  # fmt: skip


def check(folder, classes: Sequence[str]) -> None:
  """Raises where class folders are folds, splits or a known data set.

  'train' alone may be a tag: a train is a sound. Beside a folder called as
  another split it is one.

  Args:
    folder: that holds the class folders.
    classes: their names.

  Raises:
    ValueError: naming them, and what to do.
  """
  advice = known_layouts.advice(folder)
  if advice:
    raise ValueError(advice)
  found = [
    name
    for name in classes
    if _FOLD.fullmatch(name.lower()) or name.lower() in _SPLITS
  ]
  if found or (classes and {c.lower() for c in classes} <= {*_TRAIN}):
    found += [name for name in classes if name.lower() in _TRAIN]
    raise ValueError(
      f'{folder}: folders called {", ".join(map(repr, sorted(found)))} are '
      'folds or splits, not tags; expected <tag>/<recording>, as dog/0001.wav. '
      'Move the recordings to one folder a tag; to keep your own splits, list '
      'them in a labels.csv (columns file, split, tags) and use '
      '--config=configs/baseline.py:folder'
    )
