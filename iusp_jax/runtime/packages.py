"""Packages of the extras, which are imported where they are used."""

import importlib
from typing import Any


class MissingPackageError(ValueError):
  """A package of an extra is not installed."""


def require(module: str, user: str, remedy: str) -> Any:
  """A module of an optional package.

  Args:
    module: its dotted name.
    user: what needs it, to begin the message with.
    remedy: how to install it.

  Raises:
    MissingPackageError: where it cannot be imported.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    name = module.partition('.')[0].replace('_', '-')
    raise MissingPackageError(
      f'{user} needs {name}, which cannot be imported ({error}): {remedy}'
    ) from error
