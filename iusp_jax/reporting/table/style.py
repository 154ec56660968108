"""How objectives look in the pictures of the table, and what they share.

An objective has one colour and one marker in all of them; colour-blind readers
and printers without colour have the marker.
"""

from collections.abc import Callable, Mapping
from typing import Any

from iusp_jax.reporting import formatting
from iusp_jax.reporting.table import records
from iusp_jax.scoring import statistics

# Black for the baseline, Okabe and Ito's colours for what is compared with it.
_LOOK = {
  'baseline': ('#000000', 'o'),
  'kd': ('#E69F00', 's'),
  'sp': ('#0072B2', 'D'),
  'iusp': ('#D55E00', '^'),
  'iusp_sp': ('#CC79A7', 'v'),
  'iusp_centred': ('#009E73', 'P'),
}
_OTHERS = (('#56B4E9', 'X'), ('#F0E442', 'p'), ('#777777', '*'))


def looks(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """Colour, marker and label of every objective of the table."""
  others = [o for o in records.objectives(table) if o not in _LOOK]
  chosen = _LOOK | {o: _OTHERS[i % len(_OTHERS)] for i, o in enumerate(others)}
  return {
    o: {
      'color': chosen[o][0],
      'marker': chosen[o][1],
      'label': records.title(o),
    }
    for o in records.objectives(table)
  }


def summaries(
  table: Mapping[str, Any], read: Callable
) -> dict[tuple[str, str], statistics.Summary]:
  """By student and objective; `read` takes a cell to a number or None."""
  found = {}
  for key, cells in records.done(table).items():
    values = [read(cell) for cell in cells.values()]
    values = [v for v in values if formatting.is_number(v)]
    if values:
      found[key] = statistics.summarise(values)
  return found


def bars(axes, x, found, look, linestyle='none') -> None:
  """Means with their standard deviations."""
  axes.errorbar(
    x,
    [f.mean for f in found],
    [f.sd or 0.0 for f in found],
    linestyle=linestyle,
    linewidth=1.0,
    elinewidth=0.8,
    markersize=4,
    markeredgecolor='white',
    markeredgewidth=0.4,
    **look,
  )


def legend(page, axes) -> None:
  """Of the objectives, under the page."""
  handles, labels = axes.get_legend_handles_labels()
  page.legend(
    handles,
    labels,
    loc='outside lower center',
    ncols=len(labels),
    frameon=False,
    handletextpad=0.4,
  )


def cells(found: statistics.Summary | float) -> list[str]:
  """Mean, sd and n as text; of one score if it is a number."""
  if not isinstance(found, statistics.Summary):
    return [formatting.number(found), '-', '1']
  return [
    formatting.number(found.mean),
    formatting.number(found.sd),
    str(found.n),
  ]
