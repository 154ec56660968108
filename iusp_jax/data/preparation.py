"""Data sets prepared once, however many processes want them.

Apart from `data`, whose reading workers start without jax and hold no locks.
"""

from collections.abc import Mapping
from typing import Any

from iusp_jax.data import datasets
from iusp_jax.runtime import files, processes


def load(settings: Mapping[str, Any]) -> datasets.Dataset:
  """The prepared data set; one process prepares it while others wait.

  Builders hold a lock while they prepare; one that is prepared is only read,
  so that it may be on a read-only file system. The other processes of a run
  find what process 0 prepared; where each has a disk of its own, they prepare
  it again.

  Args:
    settings: as `config.dataset`.

  Raises:
    ValueError: as `datasets.load`, and for a data_dir that cannot be written.
  """
  paths = {
    name: str(files.resolve(settings[name]))
    for name in ('data_dir', 'manual_dir')
    if settings[name]
  }

  def prepare():
    try:
      return datasets.load({**settings, **paths})
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
      if not str(error.filename or '').startswith(paths['data_dir']):
        raise
      raise ValueError(
        f'config.dataset.data_dir is {paths["data_dir"]}: cannot be written '
        f'({error.strerror}: {error.filename}): choose another'
      ) from error

  return processes.primary_first(prepare)
