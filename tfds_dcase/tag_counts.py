"""How many positives each tag has in each split, and what to check of that."""

import itertools
import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

_SHOWN = 40  # tags in the line of counts
_NAMED = 10  # tags in a warning
_WITHOUT = {
  'train': 'they cannot be learnt',
  'validate': 'the best checkpoint is chosen without them',
  'test': 'they cannot be scored',
}


def count(tags_NC, split_of_clip: Sequence[str]) -> dict[str, np.ndarray]:
  """Positives of each tag by split.

  Args:
    tags_NC: 1 where a tag is present; other values are no positives. [N, C]
    split_of_clip: N names of splits.

  Returns:
    By split, in order of first occurrence, int [C].
  """
  tags_NC, split_N = np.asarray(tags_NC), np.asarray(split_of_clip)
  return {
    str(split): (tags_NC[split_N == split] == 1).sum(axis=0)
    for split in dict.fromkeys(split_of_clip)
  }


def line(
  tags: Sequence[str],
  count_by_split: Mapping[str, np.ndarray],
  what: str = 'positives',
) -> str:
  """One line with the number of positives of each tag in each split."""
  shown = [
    f'{tag!r} {_counts(c, count_by_split)}'
    for c, tag in enumerate(tags[:_SHOWN])
  ]
  if len(tags) > _SHOWN:
    shown.append(f'and {len(tags) - _SHOWN} more tags')
  return f'{what} in {"/".join(count_by_split)}: {", ".join(shown)}'


def warnings(
  tags: Sequence[str], count_by_split: Mapping[str, np.ndarray]
) -> list[str]:
  """Lines on tags without positives in a split and on nearly equal tags."""
  found = []
  for split, count_C in count_by_split.items():
    absent = [tag for tag, n in zip(tags, count_C, strict=True) if not n]
    if not count_C.any():
      found.append(
        f'no positives of any tag in {split}: nothing can be scored there'
      )
    elif absent:
      found.append(
        f'no positives in {split}: {_some(absent)}'
        + (f'; {_WITHOUT[split]}' if split in _WITHOUT else '')
      )
  return found + similar_warnings(tags, count_by_split)


def similar_warnings(
  tags: Sequence[str], count_by_split: Mapping[str, np.ndarray]
) -> list[str]:
  """Lines on tags that may be one, misspelt."""
  return [
    f'the tags {tags[a]!r} ({_counts(a, count_by_split)} in '
    f'{"/".join(count_by_split)}) and {tags[b]!r} '
    f'({_counts(b, count_by_split)}) nearly equal each other; are they one?'
    for a, b in similar(tags, count_by_split)
  ]


def similar(
  tags: Sequence[str], count_by_split: Mapping[str, np.ndarray]
) -> list[tuple[int, int]]:
  """Pairs of tags that may be one, misspelt.

  They differ in case, spaces or punctuation only, or in one letter (changed,
  missing or swapped with its neighbour): a short name only where one of the
  two has no positives in some split.
  """
  lacks_C = np.any([count_C == 0 for count_C in count_by_split.values()], 0)
  plain = [_plain(tag) for tag in tags]
  pairs = []
  for a, b in itertools.combinations(range(len(tags)), 2):
    if plain[a] == plain[b]:
      pairs.append((a, b))
    elif _one_edit_apart(plain[a], plain[b]):
      length = min(len(plain[a]), len(plain[b]))
      if length >= 5 or (length >= 3 and (lacks_C[a] or lacks_C[b])):
        pairs.append((a, b))
  return pairs


def _plain(tag: str) -> str:
  text = unicodedata.normalize('NFKC', tag).casefold()
  return ''.join(letter for letter in text if letter.isalnum()) or text


def _one_edit_apart(one: str, other: str) -> bool:
  """Whether one letter is changed, missing, or swapped with its neighbour."""
  if abs(len(one) - len(other)) > 1:
    return False
  while one and other and one[0] == other[0]:
    one, other = one[1:], other[1:]
  while one and other and one[-1] == other[-1]:
    one, other = one[:-1], other[:-1]
  if any(letter.isdigit() for letter in one + other):
    return False  # 'class 1' and 'class 2'
  swapped = len(one) == 2 and one == other[::-1]
  return swapped or max(len(one), len(other)) <= 1


def _counts(c: int, count_by_split: Mapping[str, np.ndarray]) -> str:
  return '/'.join(str(count_C[c]) for count_C in count_by_split.values())


def _some(names: Sequence[str]) -> str:
  text = ', '.join(map(repr, names[:_NAMED]))
  more = len(names) - _NAMED
  return f'{text} and {more} more' if more > 0 else text
