"""A teacher in an ONNX file: run once over the clips, then its outputs.

What it gives is kept in `cache_dir/onnx`, by the content of the file, what is
asked of it and the clips, and taken as outputs that were computed elsewhere.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from iusp_jax.data import datasets, foreign_outputs, onnx_file, output_files
from iusp_jax.experiment import identity
from iusp_jax.runtime import files, logs, preemption, processes

_BATCH = 16  # Clips.
_FIELDS = ('onnx_json', 'onnx_wave', 'onnx_rate')
FIELDS = (*_FIELDS, *(f'onnx_{name}' for name in onnx_file.OUTPUTS))


class _Promised(foreign_outputs.Contents):
  """Contents of which nothing has been computed yet."""

  def lacks(self, output: str) -> str:
    """Says which field of the config is not set."""
    needed = f'config.teacher.onnx_{output}'
    if output == 'logits':
      needed += ' or onnx_probabilities'
    return f"{needed} is ''"


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError for fields of an ONNX file where none is named."""
  own = config['teacher']
  for field in FIELDS:
    if own[field] and not own['onnx']:
      raise ValueError(
        f'config.teacher.{field} is {own[field]!r}, and config.teacher.onnx '
        f"is '': expected an ONNX file there, or {type(own[field])()!r} here"
      )


def promised(config: Mapping[str, Any]) -> foreign_outputs.Contents:
  """What there will be of the teacher, before anything is computed.

  Arrays are empty; which there are is right.

  Raises:
    ValueError: where the file, its names or its metadata cannot be right.
  """
  own, form = config['teacher'], datasets.format_of(config['dataset'])
  tagger, size = _open(own), form.num_samples
  if rate := own['onnx_rate']:
    size = size * rate // form.sample_rate
  if tagger.num_samples and abs(tagger.num_samples - size) > 1:
    raise ValueError(
      f'config.teacher.onnx is {own["onnx"]!r}, which takes '
      f'{tagger.num_samples} samples a clip: expected {size}, those of '
      f'{form.clip_seconds:g} s at {rate or form.sample_rate} Hz; set '
      "config.teacher.onnx_rate to the tagger's, or export it for clips of any "
      'length'
    )
  arrays = {name: np.empty(0) for name in _outputs(own)}
  path = files.resolve(own['onnx'])
  split = foreign_outputs.Split(path, arrays)
  splits = {name: split for name in foreign_outputs.SPLITS}  # noqa: C420
  return _Promised(path, _metadata(own), splits)


def content(config: Mapping[str, Any]) -> str:
  """Names the file and what is asked of it, wherever it is."""
  own = config['teacher']
  path = files.resolve(own['onnx'])
  # Large weights are in files beside it, tagger.onnx.data and the like.
  beside = sorted(p for p in path.parent.iterdir() if _is_part(p, path))
  found = [[p.name, files.checksum(p)] for p in beside if p != path]
  asked = {name: own[name] for name in FIELDS if name != 'onnx_json'}
  text = json.dumps(
    [files.checksum(path), found, asked, _metadata(own)], sort_keys=True
  )
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _is_part(path: pathlib.Path, of: pathlib.Path) -> bool:
  return path.name.startswith(of.name) and path.is_file()


def contents(
  config: Mapping[str, Any], dataset: datasets.Dataset
) -> foreign_outputs.Contents:
  """The teacher's outputs for a data set; computed where they are not there.

  All processes of a run call this together.

  Raises:
    ValueError: where the file does not give what it should.
  """
  workdir = _workdir(config, dataset)
  folder = workdir / 'outputs'
  busy = 'another run computes the outputs of this teacher'
  name = f'config.cache_dir is {config["cache_dir"]}'
  if not is_done(config, dataset):
    with files.lock_for_all_processes(workdir, busy, name=name):
      if processes.is_primary() and not folder.exists():
        _compute(config['teacher'], dataset, workdir)
  try:
    return foreign_outputs.inspect(folder)
  except ValueError as error:
    raise ValueError(
      f'config.teacher.onnx is {config["teacher"]["onnx"]!r}: {error}; delete '
      f'{workdir} to compute its outputs again'
    ) from error


def is_done(config: Mapping[str, Any], dataset: datasets.Dataset) -> bool:
  """Whether the outputs are there, as process 0 sees it."""
  folder = _workdir(config, dataset) / 'outputs'
  return processes.by_primary(folder.exists)


def _workdir(config, dataset) -> pathlib.Path:
  clips = {k: v for k, v in dataset.fingerprint().items() if k in _OF_CLIPS}
  of = {'onnx': content(config), 'clips': clips}
  return files.resolve(config['cache_dir']) / 'onnx' / identity.fingerprint(of)


_OF_CLIPS = ('name', 'sizes')  # Of a data set, without its labels.


def _compute(own, dataset: datasets.Dataset, workdir: pathlib.Path) -> None:
  """Runs the tagger over all clips."""
  tagger, partial = _open(own), workdir / 'partial'
  files.remove_folder(partial)  # Of a run that was killed.
  logs.log(f'teacher: runs {own["onnx"]} over {_count(dataset)} clips, once')

  def waves(split: datasets.Split) -> Iterator[np.ndarray]:
    for k in range(len(split)):
      wave_S = datasets.read_clip(split, k)['wave'].astype(np.float32) / 32_768
      yield output_files.resample(wave_S, dataset.sample_rate, own['onnx_rate'])

  with files.named_errors(partial):
    output_files.write(
      partial,
      _metadata(own),
      {
        name: (datasets.clip_ids(split, range(len(split))), waves(split))
        for name, split in dataset.splits.items()
      },
      tagger,
      tagger.batch_size or _BATCH,
      lambda *_: preemption.check(),
    )
    partial.rename(workdir / 'outputs')


def _count(dataset) -> int:
  return sum(len(split) for split in dataset.splits.values())


def _outputs(own) -> dict[str, str]:
  """The file's names of the outputs that are taken."""
  named = {name: own[f'onnx_{name}'] for name in onnx_file.OUTPUTS}
  return {name: found for name, found in named.items() if found}


def _open(own: Mapping[str, Any]) -> onnx_file.Tagger:
  path = files.resolve(own['onnx'])
  try:
    return onnx_file.Tagger(path, own['onnx_wave'], _outputs(own))
  except ValueError as error:
    raise ValueError(
      f'config.teacher.onnx is {own["onnx"]!r}: {error} (the names are '
      'config.teacher.onnx_wave, onnx_logits, onnx_frames and so on)'
    ) from error


def _metadata(own) -> dict[str, Any]:
  """What the outputs' teacher.json will hold."""
  if not own['onnx_json']:
    raise ValueError(
      f'config.teacher.onnx is {own["onnx"]!r}, and config.teacher.onnx_json '
      f"is '': expected a JSON file with the tagger's name, source, licence "
      f'and tags, and when its frames are; see {foreign_outputs.PAGE}'
    )
  path = files.resolve(own['onnx_json'])
  try:
    found = foreign_outputs.read_metadata(path, {'format': output_files.FORMAT})
    for name in {'frames', 'frame_logits'} & _outputs(own).keys():
      why = f'config.teacher.onnx_{name} is set'
      foreign_outputs.check_times(path, found, why)
  except ValueError as error:
    raise ValueError(
      f'config.teacher.onnx_json is {own["onnx_json"]!r}: {error}'
    ) from error
  return found
