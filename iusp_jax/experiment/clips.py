"""The clips of a data set as WAV files, for programs that are not this one.

Anybody's model can be run over exactly what a student is trained and scored on,
and give its outputs back as a folder (`teacher.outputs`).

  <split>/<clip_id>.wav   16 bit, mono; names quoted as in a URL; or a
                          recording of a labelled folder as it is
  clips.csv               a row a clip: clip_id, split, path, num_samples
                          (before the padding), a column a tag: 1 present, 0
                          absent, empty where nobody looked
  clips.json              format, dataset, clip_seconds, sample_rate and
                          num_samples (null for recordings as they are), tags
"""

import collections
import csv
import functools
import io
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import soundfile
import tqdm

from iusp_jax.data import datasets
from iusp_jax.experiment import check, identity, setup, teacher
from iusp_jax.runtime import files, logs, preemption

FORMAT = 1
_MAX_NAME = 200  # Bytes of a file's name, below the 255 of file systems.
_MAX_SUFFIX = 20


def write(
  config: Any,
  folder: pathlib.Path,
  teacher_scenes: bool,
  original: bool = False,
) -> None:
  """Writes the clips that a run with this config is trained and scored on.

  Files that are there already are kept, so that it goes on after a kill.

  Args:
    config: as configs/*.py makes it.
    folder: to write to.
    teacher_scenes: whether `train` is what a teacher is trained on, with
      `config.teacher.train_scenes`, which the student's scenes are the first
      of.
    original: whether to copy the recordings of a labelled folder as they are,
      of their own rate and length; a clip is the start of one.

  Raises:
    ValueError: for a config that cannot be right, or a folder that holds other
      clips.
    OSError: naming what cannot be written.
    preemption.Preempted: on a request to stop.
  """
  config = identity.plain(config)
  check.check(config)
  if original and config['dataset']['name'] != 'folder':
    raise ValueError(
      f'--original with {config["dataset"]["name"]}: expected the data set '
      'folder, whose clips are recordings; leave it out'
    )
  dataset = setup.load_dataset(config['dataset'])
  if teacher_scenes:
    dataset = teacher.own_dataset(config, dataset)
  of = {
    'format': FORMAT,
    'dataset': dataset.fingerprint(),
    'clip_seconds': dataset.clip_seconds,
    'sample_rate': None if original else dataset.sample_rate,
    'num_samples': None if original else dataset.num_samples,
    'tags': list(dataset.tags),
  }
  folder.mkdir(parents=True, exist_ok=True)
  _check_folder(folder / 'clips.json', of)
  table = io.StringIO()
  writer = csv.writer(table, lineterminator='\n')
  writer.writerow(['clip_id', 'split', 'path', 'num_samples', *dataset.tags])
  for name, split in dataset.splits.items():
    if original:
      source = files.resolve(config['dataset']['manual_dir'])
      put = functools.partial(_copy, source)
    else:
      put = functools.partial(_write_wave, dataset.sample_rate)
    writer.writerows(_write_split(folder, name, split, put, original))
  files.write_atomically(folder / 'clips.csv', table.getvalue())
  sizes = sum(len(split) for split in dataset.splits.values())
  logs.log(f'{sizes} clips: {folder}/clips.csv names them and their tags')


def _check_folder(path: pathlib.Path, of: Mapping[str, Any]) -> None:
  """Says what the folder is for, before the first clip.

  Raises:
    ValueError: where it is for other clips.
  """
  if path.exists():
    there = files.read_json(path)
    if differing := identity.differences(there, of):
      raise ValueError(
        f'{path} is of other clips ({"; ".join(differing)}): choose another '
        '--output'
      )
  files.write_atomically(path, files.to_json(of))


def _write_split(
  folder, name: str, split, put: Callable[[Any, Any, str], None], as_they_are
) -> Iterator[list[Any]]:
  """Puts the clips of a split where they belong; gives their rows."""
  (folder / name).mkdir(exist_ok=True)
  names = datasets.clip_ids(split, range(len(split)))
  paths = file_names(names, as_they_are)
  for k in tqdm.trange(len(split), desc=name, unit='clip', disable=None):
    preemption.check()
    clip = datasets.read_clip(split, k)
    path = folder / name / paths[k]
    if not path.exists():
      put(path, clip['wave'], names[k])
    labels = [
      f'{tag:g}' if labelled else ''
      for tag, labelled in zip(clip['tags'], clip['mask'], strict=True)
    ]
    row = [names[k], name, f'{name}/{path.name}', int(clip['length'])]
    yield [*row, *labels]


def file_names(clip_ids: list[str], as_they_are: bool = False) -> list[str]:
  """A file's name for each clip: its id, quoted.

  Numbered where that is too long, or differs from another's in case alone,
  which some file systems do not tell apart.

  Args:
    clip_ids: of the clips.
    as_they_are: whether they have the endings of their formats; else all are
      WAV.
  """
  names = [urllib.parse.quote(name, safe=' ') for name in clip_ids]
  if not as_they_are:
    names = [name if name.endswith('.wav') else f'{name}.wav' for name in names]
  counts = collections.Counter(name.casefold() for name in names)
  return [
    f'clip-{k}{pathlib.PurePath(name).suffix[:_MAX_SUFFIX]}'
    if len(name) > _MAX_NAME or counts[name.casefold()] > 1
    else name
    for k, name in enumerate(names)
  ]


def _write_wave(
  sample_rate: int, path: pathlib.Path, wave_S: np.ndarray, clip_id: str
) -> None:
  del clip_id
  partial = path.with_name(path.name + '.partial')
  with files.named_errors(partial), partial.open('wb') as file:
    soundfile.write(file, wave_S, sample_rate, format='WAV', subtype='PCM_16')
  partial.rename(path)


def _copy(
  source: pathlib.Path, path: pathlib.Path, wave_S: np.ndarray, clip_id: str
) -> None:
  del wave_S
  partial = path.with_name(path.name + '.partial')
  with files.named_errors(partial):
    shutil.copyfile(source / clip_id, partial)
  partial.rename(path)
