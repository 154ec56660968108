"""Cells of a labels.csv into tag names and 0/1, however they were written."""

import ast
import re
import unicodedata
from collections.abc import Iterable

# What pandas and Python write for a missing value.
EMPTY = ('nan', 'NaN', 'None', '<NA>', 'NaT')
_TRUE, _FALSE = ('1', '1.0', 'true'), ('0', '0.0', 'false')
_ITEM = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\bnan\b|\bNone\b""")


def clean(name: str) -> str:
  """A tag's name in one Unicode form (NFC), with single spaces inside."""
  return unicodedata.normalize('NFC', ' '.join(name.split()))


def tags_of(cell: str) -> list[str]:
  """The tag names of a cell, joined by ; or |, or as Python writes a list.

  A comma joins nothing outside of a list: names such as 'Vehicle horn, car
  horn, honking' have some.

  Raises:
    ValueError: brackets around anything but quoted names.
  """
  text = cell.strip()
  names = _listed(text)
  if names is None:
    names = re.split('[;|]', text)
  return [name for each in names if (name := clean(each)) not in ('', *EMPTY)]


def _listed(text: str) -> list[str] | None:
  """The items of a printed list, tuple, set or array; None for other text."""
  if text in ('set()', '()', '{}'):
    return []
  if text[:1] + text[-1:] not in ('[]', '()', '{}'):
    return None
  inner = text[1:-1]
  if not _ITEM.sub('', inner).strip(', \t\r\n'):
    items = _ITEM.findall(inner)
    return [ast.literal_eval(i) for i in items if i[0] in '\'"']
  if text[0] == '[':
    raise ValueError("a list of something else than quoted names ('dog')")
  return None  # a name in parentheses


def zero_or_one(cell: str) -> int | None:
  """1 or 0 of a cell such as '1', '0.0' or 'True'; None for anything else."""
  text = cell.strip().lower()
  if text in _TRUE:
    return 1
  return 0 if text in _FALSE else None


def joined_by_commas(names: Iterable[str]) -> str | None:
  """A name that looks like several tags joined by commas, or None.

  It does where each of its parts occurs elsewhere: as a tag of its own, or as
  a part of another such name.
  """
  parts_of = {name: [p.strip() for p in name.split(',')] for name in names}
  count: dict[str, int] = {}
  for parts in parts_of.values():
    for part in set(parts):
      count[part] = count.get(part, 0) + 1
  for name, parts in parts_of.items():
    if len(parts) > 1 and all(part and count[part] > 1 for part in parts):
      return name
  return None
