"""Rows of a CSV file with their line numbers, and errors that name the line."""

import csv
import os
from collections.abc import Iterable, Iterator


def rows(
  lines: Iterable[str], path: str | os.PathLike, delimiter: str = ','
) -> Iterator[tuple[int, list[str]]]:
  """Reads the rows of a CSV file that are not empty.

  Args:
    lines: an open text file or `io.StringIO`, both with `newline=''`.
    path: of the file, for messages.
    delimiter: between cells.

  Yields:
    The line in which a row begins (the first is 1), and its cells.

  Raises:
    ValueError: a cell that goes over several lines, or of more than 131,072
      characters, as after a quote that is not closed; a list in brackets, as
      NumPy writes it, may have several lines. Names file and line.
  """
  reader = csv.reader(lines, delimiter=delimiter)
  while True:
    line = reader.line_num + 1
    try:
      cells = next(reader)
    except StopIteration:
      return
    except csv.Error as error:
      raise ValueError(
        f'{path} line {line}: {error}; a row begins here in which a quote (") '
        'may not be closed. Close it, or remove it'
      ) from error
    if any(map(_is_broken, cells)):
      raise ValueError(
        f'{path} line {line}: a cell goes from this line to line '
        f'{reader.line_num}: a quote (") is not closed. Close it, or remove it'
      )
    if cells:
      yield line, cells


def _is_broken(cell: str) -> bool:
  """Whether a cell has several lines and is no list in brackets."""
  text = cell.strip()
  is_list = text.startswith('[') and text.endswith(']')
  return ('\n' in cell or '\r' in cell) and not is_list
