"""The objectives of a table: terms, titles, colours, order, comparisons.

All of it follows from the weights in the records of the cells and from `TERMS`:
a new term or combination of terms needs no entry here.
"""

import colorsys
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from iusp_jax.objectives.terms import TERMS

BASELINE = 'baseline'
_BLACK = '#000000'
# For objectives without a colour of their own; the first are Okabe and Ito's.
_PALETTE = ('#CC79A7', '#56B4E9', '#F0E442', '#777777', '#8B4513', '#332288')
_MARKERS = ('v', 'X', 'p', '*', 'd', 'h', '<', '>', '8', 'H')
# In addition to those of every objective with the baseline and with KD.
_PAIRS = (('iusp', 'sp'), ('iusp_centred', 'iusp'))


@dataclasses.dataclass(frozen=True)
class Objective:
  """One objective, as tables and plots show it.

  Attributes:
    name: in the config and in the records of the cells.
    terms: names of its terms in the order of `TERMS`; None where no record
      holds the weights and the name is that of no term.
    title: in tables and plots, unique among the objectives of a table.
    colour, marker: in plots; no two objectives of a table share a colour.
  """

  name: str
  terms: tuple[str, ...] | None
  title: str
  colour: str
  marker: str

  def look(self) -> dict[str, str]:
    """Colour, marker and label for matplotlib."""
    # A legend leaves out names that start with `_`.
    title = f' {self.title}' if self.title.startswith('_') else self.title
    return {'color': self.colour, 'marker': self.marker, 'label': title}

  @property
  def compares_similarities(self) -> bool:
    """Whether plots about similarities show it: those of one such term."""
    found = [TERMS[term] for term in self.terms or () if term in TERMS]
    return len(self.terms or ()) == 1 and any(
      term.compares_similarities for term in found
    )


def of_table(table: Mapping[str, Any]) -> dict[str, Objective]:
  """The objectives of the cells of a table, by name, in the order of rows."""
  weights: dict[str, dict | None] = {}
  for cell in table['cells']:
    name, own = cell['objective'], cell.get('weights')
    others = weights.setdefault(name, None)
    if own is not None:  # Students differ in their weights, 0 included.
      weights[name] = dict(own) | {k: v for k, v in (others or {}).items() if v}
  return from_weights(weights)


def from_weights(
  weights: Mapping[str, Mapping[str, float] | None],
) -> dict[str, Objective]:
  """Objectives by name, in the order of a table.

  Args:
    weights: by objective: its weights by term, None where no record has
      them, as in files of earlier versions; the name then stands for the terms.

  Returns:
    The baseline, single terms in the order of `TERMS`, combinations, and last
    objectives whose terms no record has.
  """
  terms = {name: _terms(name, found) for name, found in weights.items()}
  names = sorted(terms, key=lambda name: _rank(name, terms[name]))
  found: dict[str, Objective] = {}
  for name in names:
    same = sum(terms[name] == other for other in terms.values())
    colour, marker = _look(terms[name], list(found.values()))
    title = _title(name, terms[name])
    if terms[name] is not None and same > 1 and name not in (BASELINE, *TERMS):
      title = f'{title} ({name})'
    found[name] = Objective(name, terms[name], title, colour, marker)
  return found


def comparisons(names: Sequence[str]) -> list[tuple[str, str]]:
  """(own, other) of the differences that a table shows."""
  wanted = [(name, BASELINE) for name in names]
  wanted += [*_PAIRS, ('iusp', 'kd')]
  wanted += [(name, 'kd') for name in names if name != BASELINE]
  return [
    pair
    for pair in dict.fromkeys(wanted)
    if {*pair} <= {*names} and pair[0] != pair[1]
  ]


def _terms(name: str, weights) -> tuple[str, ...] | None:
  if weights is not None:
    return tuple(sorted((t for t, w in weights.items() if w), key=_index))
  if name == BASELINE:
    return ()
  return (name,) if name in TERMS else None


def _index(term: str) -> tuple[int, str]:
  names = list(TERMS)
  return (names.index(term) if term in TERMS else len(names), term)


def _rank(name: str, terms) -> tuple:
  """Sorts objectives as `from_weights` says."""
  if name == BASELINE or terms == ():
    return 0, (), name != BASELINE, name
  if terms is None:
    return 3, (), False, name
  return min(len(terms), 2), tuple(map(_index, terms)), name != terms[0], name


def _title(name: str, terms) -> str:
  if terms is None:
    return name
  titles = [TERMS[t].title if t in TERMS else t for t in terms]
  return ' + '.join(titles) or 'no KD'


def _look(terms, others: Sequence[Objective]) -> tuple[str, str]:
  """A colour that no other objective has, and a marker."""
  colours = {other.colour for other in others}
  markers = {other.marker for other in others}
  own, marker = None, None
  if terms == ():
    own, marker = _BLACK, 'o'
  elif terms is not None and len(terms) == 1 and terms[0] in TERMS:
    own, marker = TERMS[terms[0]].colour, TERMS[terms[0]].marker
  if own is None or own in colours:
    # Nor one that a term or the baseline has in other tables.
    colours |= {_BLACK, *(term.colour for term in TERMS.values())}
    own = next(colour for colour in _colours() if colour not in colours)
    marker = next((m for m in _MARKERS if m not in markers), 'o')
  return own, marker or 'o'


def _colours() -> Iterator[str]:
  """The palette, then hues a golden section apart."""
  yield from _PALETTE
  for k in itertools.count():
    rgb = colorsys.hsv_to_rgb(0.618034 * k % 1, 0.6, 0.55 + 0.3 * (k % 2))
    yield '#' + ''.join(f'{round(255 * part):02X}' for part in rgb)
