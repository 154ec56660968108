"""Data sets prepared once, however many processes want them.

Apart from `data`, whose reading workers start without jax and hold no locks.
"""

from collections.abc import Mapping
from typing import Any

from iusp_jax.data import datasets
from iusp_jax.runtime import files, processes


def load(settings: Mapping[str, Any]) -> datasets.Dataset:
  """The prepared data set; one process prepares it while others wait.

  The other processes of a run find what process 0 prepared; where each has a
  disk of its own, they prepare it again.

  Args:
    settings: as `config.dataset`.

  Raises:
    ValueError: as `data.load`, and for a data_dir that cannot be written.
  """
  folder = files.resolve(settings['data_dir'])
  busy = 'another process prepares a data set'
  name = f'config.dataset.data_dir is {folder}'

  def prepare():
    with files.lock(folder, busy, name=name):
      return datasets.load(settings)

  return processes.primary_first(prepare)
