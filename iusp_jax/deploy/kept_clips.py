"""Clips that travel with a checkpoint, for an export where the data are not.

`examples.npz` of a workdir, where `config.keep_examples` asks for it: the first
clips of each split with their labels, as the prepared data set has them.
"""

import io
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.data import datasets
from iusp_jax.runtime import files, processes

NAME = 'examples.npz'
FORMAT = 1
_ABOUT = 'about'
_FEATURES = (
  'audio', 'num_samples', 'clip_id', 'coarse', 'fine', 'fine_unknown',
)  # fmt: skip


def save(
  workdir: pathlib.Path,
  dataset: datasets.Dataset,
  counts: Mapping[str, int],
) -> None:
  """Writes the first clips of each split; by process 0 alone.

  Args:
    workdir: of the run.
    dataset: that its model was trained on.
    counts: by split, how many clips at most.
  """
  if not processes.is_primary():
    return
  about = {
    'format': FORMAT,
    'name': dataset.name,
    'level': dataset.level,
    'coarse': dataset.coarse,
    'fine': dataset.fine,
    'sample_rate': dataset.sample_rate,
    'dataset': dataset.fingerprint(),
  }
  arrays: dict[str, Any] = {_ABOUT: np.array(json.dumps(about))}
  for name, count in counts.items():
    split = dataset.splits[name]
    clips = [datasets.read(split, k) for k in range(min(count, len(split)))]
    for key in _FEATURES:
      if key in clips[0]:
        values = [clip[key] for clip in clips]
        if key == 'clip_id':
          values = [datasets.text(value) for value in values]
        arrays[f'{name}/{key}'] = np.stack(values)
  content = io.BytesIO()
  np.savez(content, **arrays)
  files.write_atomically(workdir / NAME, content.getvalue())


def load(
  workdir: pathlib.Path, trained_on: Mapping[str, Any]
) -> datasets.Dataset | None:
  """The clips as a small data set; None where there are none.

  Args:
    workdir: of a run, or a copy of it.
    trained_on: fingerprint of the data set of its model.

  Raises:
    ValueError: naming the file, where it is damaged, of another version or of
      other data.
  """
  path = workdir / NAME
  if not path.is_file():
    return None
  try:
    with np.load(io.BytesIO(path.read_bytes())) as file:
      arrays = dict(file)
    about = json.loads(str(arrays.pop(_ABOUT)))
    if about['format'] != FORMAT:
      raise ValueError(f'format {about["format"]}, expected {FORMAT}')
    if about['dataset'] != trained_on:
      raise ValueError('of other data than the model was trained on')
    return _dataset(about, arrays)
  # Of a file that is cut short NumPy raises errors of many types.
  except Exception as error:
    raise ValueError(
      f'{path} cannot be read ({type(error).__name__}: {error})'
    ) from error


def _dataset(about, arrays: Mapping[str, np.ndarray]) -> datasets.Dataset:
  columns: dict[str, dict[str, np.ndarray]] = {}
  for name, array in arrays.items():
    split, _, key = name.partition('/')
    columns.setdefault(split, {})[key] = array
  splits = {
    name: datasets.Split(
      name,
      [
        dict(zip(own, clip, strict=True))
        for clip in zip(*own.values(), strict=True)
      ],
      about['level'],
      'any',
    )
    for name, own in columns.items()
  }
  return datasets.Dataset(
    name=about['name'],
    level=about['level'],
    coarse=tuple(about['coarse']),
    fine=tuple(about['fine']),
    splits=splits,
    sample_rate=about['sample_rate'],
  )
