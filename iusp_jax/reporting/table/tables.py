"""The paper's table as files: markdown to read, CSV of cells, JSON of numbers.

Pure functions of one plain dict, which a table's folder keeps: a report is
rebuilt from it without training. Each format renders the rows of `rows`.
"""

import csv
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from iusp_jax.reporting import formatting
from iusp_jax.reporting.table import objectives, records, rows
from iusp_jax.runtime import files


def write(table: Mapping[str, Any], folder: str | os.PathLike) -> str:
  """Writes `table.md`, `table.csv` and `table.json`; each in one step.

  Args:
    table: `dataset`, `tags`, `command`, `environment`; `repetitiveness` by tag;
      `teachers`, a list of `rotation`, `fingerprint`, `parameters`, `macs`,
      `trained_in`, `validate` and `test` (scores by name); and `cells`, a list
      of `rotation` ('' for fixed splits), `student`, `objective`, `weights`,
      `seed`, `status` (done, diverged or missing), `reason`, `parameters`,
      `macs`, `validate`, `test` (with `class_auprc`, one a tag),
      `last_test_micro_auprc`, `resampled` (micro-AUPRC on resamples of the
      test clips), `frame_distance`, `curve` (pairs of step and validate
      micro-AUPRC), `seconds`, `stored_bytes` and `step_seconds`; `leads`, names
      of objectives, see `rows`. What is optional may be absent or None.
    folder: made if it is not there.

  Returns:
    The report for a terminal.

  Raises:
    ValueError: as `records.check`.
  """
  records.check(table)
  named = objectives.of_table(table)
  sections = rows.sections(table, named)
  content = {
    'table.md': markdown(table, sections),
    'table.csv': cells_csv(table),
    'table.json': files.to_json(numbers(table, named, sections)),
  }
  for name, text in content.items():
    files.write_atomically(pathlib.Path(folder) / name, text)
  return terminal(table, sections)


def numbers(
  table: Mapping[str, Any],
  named: Mapping[str, objectives.Objective],
  sections: Mapping[str, rows.Section],
) -> dict[str, Any]:
  """What table.json holds: the rows of every section, and their origin."""
  origin = ('dataset', 'command', 'environment', 'tags', 'repetitiveness')
  shown = [{'name': o.name, 'title': o.title} for o in named.values()]
  return {
    **{key: table.get(key) for key in origin},
    **{'counts': _counts(table), 'objectives': shown},
    **{name: section.rows for name, section in sections.items()},
  }


def markdown(
  table: Mapping[str, Any], sections: Mapping[str, rows.Section]
) -> str:
  """The report for a reader of papers."""
  parts = [
    f'# Distillation on {table["dataset"]}',
    'micro-AUPRC on the test split, at the epoch that is best on validate.\n'
    + _counted(table),
  ]
  for section in sections.values():
    if section.heading:
      parts.append(f'## {section.heading}')
    parts += [grid(section), section.note]
  parts += ['## How it was made', _origin(table)]
  return '\n\n'.join(part for part in parts if part) + '\n'


def terminal(
  table: Mapping[str, Any], sections: Mapping[str, rows.Section]
) -> str:
  """Scores, differences and ratios as text; what is bold has stars."""
  parts = [f'{table["dataset"]}: test micro-AUPRC, mean ± sd over pairs\n']
  parts.append(_counted(table) + '\n')
  for name in ('scores', 'leads', 'teachers', 'differences', 'ratio'):
    if section := sections.get(name):
      lines = [[c.replace('**', '*') for c in line] for line in section.lines()]
      parts.append(formatting.align(lines, _left(section), formatting.WIDTH))
  return '\n'.join(parts)


def _left(section: rows.Section) -> list[int]:
  return [i for i, column in enumerate(section.columns) if column.words]


def cells_csv(table: Mapping[str, Any]) -> str:
  """One row a cell."""
  found = rows.cells(table)
  # The fullest row gives the order: a missing cell has few columns.
  columns = dict.fromkeys(max(found, key=len))
  columns |= dict.fromkeys(name for row in found for name in row)
  text = io.StringIO()
  writer = csv.DictWriter(text, list(columns), lineterminator='\n')
  writer.writeheader()
  writer.writerows(found)
  return text.getvalue()


def _counts(table) -> dict[str, int]:
  return {
    status: sum(cell['status'] == status for cell in table['cells'])
    for status in records.STATUSES
  }


def _counted(table) -> str:
  counts = ', '.join(f'{n} {name}' for name, n in _counts(table).items() if n)
  return f'{len(table["cells"])} cells: {counts}.'


def _origin(table) -> str:
  lines = [f'```\n{table.get("command") or "unknown command"}\n```', '']
  for name, value in (table.get('environment') or {}).items():
    values = value if isinstance(value, list) else [value]
    lines.append(f'- {name}: {" or ".join(map(_words, values))}')
  return '\n'.join(lines).rstrip()


def _words(value) -> str:
  if isinstance(value, Mapping):
    return ', '.join(f'{name} {version}' for name, version in value.items())
  return str(value)


def grid(section: rows.Section) -> str:
  """A markdown table whose source is a table to the eye, too."""
  lines = [[c.replace('|', '\\|') for c in line] for line in section.lines()]
  head, *rest = formatting.padded(lines, _left(section), least=3)
  rule = [
    '-' * len(cell) if column.words else '-' * (len(cell) - 1) + ':'
    for column, cell in zip(section.columns, head, strict=True)
  ]
  return '\n'.join(f'| {" | ".join(line)} |' for line in [head, rule, *rest])
