"""A hook for whoever may want to stop long work early.

Downloads and builds call `check` between pieces of a download and between
recordings. What it raises ends them; what is incomplete is continued or made
again by the next run.
"""

from collections.abc import Callable

_checks: list[Callable[[], None]] = []


def set_check(check: Callable[[], None]) -> None:
  """Sets the function that `check` calls; it raises in order to stop."""
  _checks[:] = [check]


def check() -> None:
  """Raises whatever the function that was set raises; by default nothing."""
  for one in _checks:
    one()
