"""From a TFDS data set to clips and tags, with Grain.

No jax in here: a clip is a dict of NumPy arrays.

  wave    int16   [S]  10 s at 16 kHz by default
  tags    float32 [C]  targets in [0, 1]
  mask    float32 [C]  0 where a tag is unknown
  length  int32   []   samples of real sound before the padding
  index   int32   []   which clip of the split

The order of a training run is a function of the seed: element k of the
endless, reshuffled sequence is the same on any number of hosts.
"""

import dataclasses
import difflib
import functools
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

from tfds_dcase import (
  annotations,
  clip_format,
  disk,
  folder,
  notes,
  sonyc_ust,
  taxonomy,
  urban_scenes,
)

LEVELS = ('coarse', 'fine', 'both')

# What `config.dataset.name` may be, and the builder that makes it.
BUILDERS = {
  'urban_scenes/procedural': (urban_scenes, 'procedural'),
  'urban_scenes/clips': (urban_scenes, 'clips'),
  'sonyc_ust/v1': (sonyc_ust, 'v1'),
  'sonyc_ust/v2': (sonyc_ust, 'v2'),
  'folder': (folder, None),
}


@dataclasses.dataclass(frozen=True, eq=False)  # Known by identity.
class Split:
  """One split: a random-access source and how to make targets of it."""

  name: str
  source: Any  # Random access to dicts of features.
  level: str
  aggregation: str
  # Tags by a teacher, int8 [N, C], to score a split without labels against.
  agreed: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.source)


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A prepared data set, seen at one level of its tags."""

  name: str  # Builder, config and version: names the data exactly.
  level: str
  coarse: tuple[str, ...]
  fine: tuple[str, ...]  # Empty where the data has one level.
  splits: Mapping[str, Split]
  sample_rate: int = clip_format.DEFAULT.sample_rate  # Hz.

  @property
  def tags(self) -> tuple[str, ...]:
    """The names of the C outputs of a model for this data."""
    return {
      'coarse': self.coarse,
      'fine': self.fine,
      'both': self.coarse + self.fine,
    }[self.level]

  @functools.cached_property
  def num_samples(self) -> int:
    """Samples of a clip, padding included."""
    return self.splits['train'].source[0]['audio'].shape[0]

  @property
  def clip_seconds(self) -> float:
    """Length of a clip, padding included."""
    return self.num_samples / self.sample_rate

  def fingerprint(self) -> dict[str, Any]:
    """What a model trained on this depends on."""
    return {
      'name': self.name,
      'level': self.level,
      'aggregation': self.splits['train'].aggregation,
      'sizes': {name: len(split) for name, split in self.splits.items()},
    }


def format_of(config: Mapping[str, Any]) -> clip_format.ClipFormat:
  """The length and rate of the clips of `config.dataset`.

  Configs of older runs, and most data sets, have neither field.
  """
  names = ('clip_seconds', 'sample_rate')
  builder = config['builder']
  return clip_format.ClipFormat(
    **{k: builder[k] for k in names if k in builder}
  )


def make_builder(config: Mapping[str, Any]):
  """The TFDS builder that `config.dataset` names, nothing prepared yet.

  Raises:
    ValueError: for an unknown name; or whatever the builder finds wrong.
  """
  name = config['name']
  if name not in BUILDERS:
    close = difflib.get_close_matches(name, BUILDERS, 1)
    hint = f'; did you mean {close[0]!r}?' if close else ''
    raise ValueError(
      f'config.dataset.name is {name!r}: expected one of '
      f'{", ".join(BUILDERS)}{hint}'
    )
  module, variant = BUILDERS[name]
  if name in ('urban_scenes/clips', 'folder') and not config['manual_dir']:
    raise ValueError(
      f'{name} is made of your recordings: say where they are with '
      '--config.dataset.manual_dir=FOLDER'
    )
  settings = dict(config['builder'])
  if config['manual_dir']:
    settings['manual_dir'] = config['manual_dir']
  if variant is not None:
    settings['version' if module is sonyc_ust else 'variant'] = variant
  return module.make_builder(data_dir=config['data_dir'], **settings)


def load(config: Mapping[str, Any]) -> Dataset:
  """Prepares the data set if that has not been done, and opens its splits.

  Args:
    config: `config.dataset`; see configs/base.py.

  Raises:
    ValueError: if the level or the data set is unknown, or the data set has
      no such level.
  """
  level = config['level']
  if level not in LEVELS:
    raise ValueError(
      f'config.dataset.level is {level!r}: expected one of {LEVELS}'
    )
  builder = make_builder(config)
  if not sys.stderr.isatty():
    tfds.disable_progress_bar()
  with disk.full_disk_named(config['data_dir']):
    builder.download_and_prepare(file_format='array_record')
  listed = builder.data_path / notes.FILE_NAME
  if listed.exists():
    notes.LOGGER.warning(
      '%s: what was left out or cut is listed in %s',
      builder.info.full_name,
      listed,
    )
  metadata = dict(builder.info.metadata or {})
  fine = tuple(metadata.get('fine', ()))
  if level != 'coarse' and not fine:
    raise ValueError(
      f'config.dataset.level is {level!r}, but {config["name"]} has one level '
      f"of tags: expected 'coarse'"
    )
  splits = {
    name: Split(
      name,
      builder.as_data_source(name),
      level,
      # What is scored against is the stored truth, not a vote.
      config['aggregation'] if name == 'train' else 'any',
    )
    for name in builder.info.splits
  }
  return Dataset(
    name=str(builder.info.full_name),
    level=level,
    coarse=tuple(metadata['coarse']),
    fine=fine,
    splits=splits,
    sample_rate=format_of(config).sample_rate,
  )


def targets(
  example: Mapping[str, Any], level: str, aggregation: str
) -> tuple[np.ndarray, np.ndarray]:
  """Tags and mask of one example, `[C]` each.

  A fine tag is unknown where the X flag of its coarse class is set: a sound
  of that class is there, and nobody could say which (unless it was also
  marked itself).
  """
  coarse, fine, unknown = _levels(example, aggregation)
  labelled = (coarse >= 0).astype(np.float32)  # -1: nobody looked for it.
  if level == 'coarse':
    return np.maximum(coarse, 0), labelled
  assert fine is not None
  assert unknown is not None
  flagged = np.zeros(len(taxonomy.COARSE), np.float32)
  flagged[taxonomy.COARSE_OF_UNKNOWN] = unknown > 0
  labelled_fine = (1.0 - flagged[taxonomy.COARSE_OF_FINE]) * (fine >= 0)
  tags, mask = fine, labelled_fine
  if level == 'both':
    tags = np.concatenate([coarse, fine])
    mask = np.concatenate([labelled, labelled_fine])
  return np.maximum(tags, 0), mask.astype(np.float32)


def _levels(example, aggregation):
  """Coarse [8], fine [23] and X [6] tags as float32, by the given rule."""
  if 'fine' not in example:
    return example['coarse'].astype(np.float32), None, None
  if aggregation == 'any':  # The official rule is what is stored.
    return tuple(
      example[key].astype(np.float32)
      for key in ('coarse', 'fine', 'fine_unknown')
    )
  votes_AQ = np.asarray(example['votes'])
  columns = np.asarray(annotations.aggregate(votes_AQ, aggregation))
  # Annotators agree on a coarse class if each marks some tag of it, be they
  # different ones.
  coarse_AC = annotations.coarse_from_fine(votes_AQ)
  coarse = np.asarray(annotations.aggregate(coarse_AC, aggregation))
  unknown = taxonomy.IS_UNKNOWN
  return tuple(
    part.astype(np.float32)
    for part in (coarse, columns[~unknown], columns[unknown])
  )


def read(split: Split, index: int) -> Mapping[str, Any]:
  """Example `index` of a split, with the features that the builder gives.

  Raises:
    ValueError: where its record cannot be read.
  """
  try:
    return split.source[int(index)]
  except Exception as error:  # The reader, the decoder: types of their own.
    info = getattr(split.source, 'dataset_info', None)
    folder = info.data_dir if info else 'the prepared data set'
    raise ValueError(
      f'record {index} of split {split.name!r} in {folder} cannot be read '
      f'({str(error).strip() or type(error).__name__}): delete {folder}, and '
      'the same command prepares it again'
    ) from error


def read_clip(split: Split, index: int) -> dict[str, np.ndarray]:
  """Clip `index` of a split, see the module's docstring.

  Raises:
    ValueError: where its record cannot be read.
  """
  example = read(split, index)
  tags, mask = targets(example, split.level, split.aggregation)
  return {
    'wave': example['audio'],
    'tags': tags,
    'mask': mask,
    'length': np.asarray(example['num_samples'], np.int32),
    'index': np.asarray(index, np.int32),
  }


def labels(split: Split) -> tuple[np.ndarray, np.ndarray]:
  """Tags and mask of every clip of a split, [N, C] each; see `targets`."""
  pairs = [
    targets(read(split, k), split.level, split.aggregation)
    for k in range(len(split))
  ]
  tags, masks = zip(*pairs, strict=True)
  return np.stack(tags), np.stack(masks)


def train_order(num_clips: int, seed: int) -> grain.MapDataset:
  """The endless sequence of clips of a run, reshuffled every epoch."""
  return grain.MapDataset.range(num_clips).seed(seed).shuffle().repeat()


def check_batch_size(split: Split, batch_size: int) -> None:
  """Raises ValueError where a batch would have a clip of the split twice."""
  if batch_size > len(split):
    raise ValueError(
      f'batch_size {batch_size} exceeds the {len(split)} clips of split '
      f'{split.name!r}: expected at most that many'
    )


def eval_indices(
  num_clips: int, batch_size: int, host: int = 0, num_hosts: int = 1
) -> np.ndarray:
  """This host's part of batches that have every clip once, in order.

  The last batch is filled up with the last clip, so that every host and device
  runs the same number of equal batches; the caller cuts the copies off.
  """
  num_batches = -(-num_clips // batch_size)
  padded = np.minimum(np.arange(num_batches * batch_size), num_clips - 1)
  return padded.reshape(num_batches, num_hosts, -1)[:, host]


def eval_batches(
  split: Split,
  batch_size: int,
  *,
  host: int = 0,
  num_hosts: int = 1,
  num_threads: int = 4,
) -> Iterator[dict[str, np.ndarray]]:
  """The clips of `eval_indices`, read ahead."""
  own = eval_indices(len(split), batch_size, host, num_hosts).reshape(-1)
  clips = grain.MapDataset.range(len(own)).map(
    lambda k: read_clip(split, own[k])
  )
  clips = clips.batch(batch_size // num_hosts)
  yield from clips.to_iter_dataset(
    grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=4)
  )


@functools.cache
def _has_labels(split: Split) -> bool:
  """Whether any clip has one; most often the first has."""
  return any(
    targets(read(split, k), split.level, split.aggregation)[1].any()
    for k in range(len(split))
  )


def without_labels(dataset: Dataset) -> list[str]:
  """The names of the splits without any label."""
  return [
    name for name, split in dataset.splits.items() if not _has_labels(split)
  ]


@functools.cache
def truth(split: Split) -> dict[str, Any]:
  """What a split is scored against, read once.

  Returns:
    `clip_id`, a list of N names; `coarse`, int8 `[N, C]`; and for data with
    two levels `fine`, int8 `[N, 29]`, in the order of
    `taxonomy.FINE_COLUMNS`, X included. Of a split without labels `coarse` is
    what `Split.agreed` holds, -1 where that is not set.
  """
  examples = [read(split, k) for k in range(len(split))]
  result: dict[str, Any] = {
    'clip_id': [text(example['clip_id']) for example in examples],
    'coarse': np.stack([example['coarse'] for example in examples]),
  }
  if split.agreed is not None:
    result['coarse'] = split.agreed
  if 'fine' in examples[0]:
    columns = np.zeros((len(examples), len(taxonomy.FINE_COLUMNS)), np.int8)
    unknown = taxonomy.IS_UNKNOWN
    columns[:, ~unknown] = [example['fine'] for example in examples]
    columns[:, unknown] = [example['fine_unknown'] for example in examples]
    result['fine'] = columns
  return result


def text(value) -> str:
  """A text feature, which some readers give as bytes."""
  return value.decode() if isinstance(value, bytes) else str(value)


def clip_ids(split: Split, index_B: Any) -> list[str]:
  """The names of some clips of a split."""
  return [text(read(split, k)['clip_id']) for k in index_B]
