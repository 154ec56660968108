"""From a plan to the examples of every split."""

import errno
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from tfds_dcase import annotations as annotations_lib
from tfds_dcase import download, interrupt, tag_counts, taxonomy
from tfds_dcase import notes as notes_lib
from tfds_dcase.notes import LOGGER
from tfds_dcase.sonyc_ust import availability, decode, gather, records

PROXIMITY_CODE = {-1: 'not labelled', 0: 'near', 1: 'far', 2: 'notsure'}


class Settings(NamedTuple):
  """How a build treats recordings.

  Attributes:
    on_bad_recording: 'stop', or 'skip' with a summary.
    tolerance_seconds: how far from 10 s a recording may be.
    workers: threads that decode; default one a core.
  """

  on_bad_recording: str = 'stop'
  tolerance_seconds: float = 0.5
  workers: int | None = None


Shard = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


def prepare(
  plan: availability.Plan, folder: pathlib.Path, settings: Settings
) -> tuple[dict[str, list[Shard]], dict[str, Any]]:
  """Reads everything and hands out the examples, shard by shard.

  Args:
    plan: where the files are; what is missing is downloaded.
    folder: for decoded clips until they are written.
    settings: see there.

  Returns:
    Split to shards, each a function that yields (key, example) once, and a
    record of the build for `builder.info.metadata`.

  Raises:
    ValueError: names file and row, see `annotations.read` and `gather.gather`.
  """
  availability.download(plan)
  annotations = annotations_lib.read(plan.annotations)
  check_version(annotations, plan.release.version)
  faulty = annotations_lib.faulty_coarse(annotations)
  if faulty.count:
    LOGGER.warning('%s', faulty.reason)
  splits = {s: _in_order(c) for s, c in _splits(annotations).items()}
  notes = _notes(splits, plan)
  for note in notes:
    LOGGER.warning('%s', note)
  _log_counts(splits)
  plan = _without_unneeded(plan, splits)

  stores, wanted, place = _places(annotations, splits, plan, folder)

  def keep(name, clip):
    store, n = place[name]
    store.put(n, clip)

  _check_space(folder, len(wanted))
  gatherer = gather.Gatherer(wanted, keep, **settings._asdict())
  report = gather.gather(plan, gatherer)
  for what, names in report.summary().items():
    notes_lib.log_and_keep(what, names, folder)
  shards = {
    split: _shards(annotations, split, clips, stores[split])
    for split, clips in splits.items()
  }
  build = {
    'annotations': plan.annotations.name,
    'annotations_md5': download.file_digest(plan.annotations),
    'faulty_rows': faulty.count,
    'notes': notes,
    'skipped': dict(sorted(report.skipped.items())),
    'corrected': sorted(report.corrected),
    'extra': len(set(report.extra)),
    'duplicates': len(report.twice),
  }
  return {split: s for split, s in shards.items() if s}, build


def _places(annotations, splits, plan, folder):
  """A store by split; by name, its row and its place in a store."""
  stores, wanted, place = {}, {}, {}
  for split, clips in splits.items():
    names = clips.audio_filename.tolist()
    stores[split] = gather.Store(folder / f'waiting-{split}', len(names))
    rows = annotations.line[clips.row].tolist()
    for n, (name, row) in enumerate(zip(names, rows, strict=True)):
      wanted[name] = gather.Wanted(split, plan.annotations.name, row)
      place[name] = (stores[split], n)
  return stores, wanted, place


def check_version(
  annotations: annotations_lib.Annotations, version: str
) -> None:
  """Raises for v1's annotations of v2's builder and the other way round."""
  found = 'v2' if annotations.extra else 'v1'
  if found != version:
    raise ValueError(
      f'{annotations.path} is an annotations file of {found} '
      f'({"with" if found == "v2" else "without"} year, week, … columns), but '
      f'sonyc_ust/{version} was requested. Use sonyc_ust/{found}, or put '
      f'the annotations.csv of Zenodo record {records.release(version).record} '
      'in its place.'
    )


def _check_space(folder, num_clips):
  needed = 2 * decode.NUM_SAMPLES * (num_clips + gather.CLIPS_PER_SHARD)
  free = shutil.disk_usage(folder).free
  if free < needed:
    raise OSError(
      errno.ENOSPC, f'{needed} bytes are needed, {free} are free', str(folder)
    )


def _splits(annotations) -> dict[str, annotations_lib.Clips]:
  """Splits that have clips; those without a truth row are their own split."""
  splits = {}
  for split in annotations_lib.SPLITS:
    clips = annotations_lib.clips(annotations, split)
    if len(clips.audio_filename):
      splits[split] = clips
    if split != 'train' and clips.dropped:
      rest = annotations_lib.clips(annotations, split, without_truth='votes')
      rest = _pick(rest, np.flatnonzero(~rest.has_truth))
      if len(rest.audio_filename):
        splits[f'{split}_unverified'] = rest
  return splits


def _in_order(clips):
  """Clips by the md5 of their name: the same whatever they are read from.

  Not by name, so that `train[:10%]` is no single sensor.
  """
  keys = [hashlib.md5(n.encode()).digest() for n in clips.audio_filename]
  return _pick(clips, np.array(sorted(range(len(keys)), key=keys.__getitem__)))


def _pick(clips, index_N):
  arrays = {k: v for k, v in vars(clips).items() if k != 'dropped'}
  picked = {name: array[index_N] for name, array in arrays.items()}
  return annotations_lib.Clips(**picked, dropped=clips.dropped)


def _notes(splits, plan) -> list[str]:
  release = plan.release
  notes = []
  if 'test' not in splits:
    notes.append(
      f'{plan.annotations.name} has no truth for the test split: only '
      f'{", ".join(splits)} are built. The annotations.csv of Zenodo record '
      f'{release.record} has it.'
    )
  for split, published in release.num_clips.items():
    parts = (splits.get(split), splits.get(f'{split}_unverified'))
    found = sum(len(clips.row) for clips in parts if clips)
    if found not in (0, published):
      notes.append(
        f'{plan.annotations.name} names {found} {split} clips, the release '
        f'has {published}.'
      )
  for split in splits:
    if split.endswith('_unverified'):
      notes.append(
        f'{len(splits[split].audio_filename)} clips of '
        f'{split.removesuffix("_unverified")} have no truth row: they are '
        f'the split {split}, tagged by the volunteers.'
      )
  return notes


def _log_counts(splits) -> None:
  count = {
    split: (clips.coarse == 1).sum(axis=0) for split, clips in splits.items()
  }
  LOGGER.info('%s', tag_counts.line(taxonomy.COARSE, count))
  for warning in tag_counts.warnings(taxonomy.COARSE, count):
    LOGGER.warning('%s', warning)


def _without_unneeded(plan, splits):
  """v1's audio-eval holds the test clips only: not read without them."""
  if plan.release.version == 'v1' and not any(s[:4] == 'test' for s in splits):
    kept = [p for p in plan.archives if p.name != 'audio-eval.tar.gz']
    return plan._replace(archives=tuple(kept))
  return plan


def _shards(annotations, split, clips, store) -> list[Shard]:
  def shard(places):
    def examples():
      audio = store.take(places)
      for n, audio_S in zip(places, audio, strict=True):
        interrupt.check()
        num_samples = int(store.num_samples_N[n])
        yield n, _example(annotations, split, clips, n, audio_S, num_samples)

    return examples

  return [shard(places) for places in store.shards()]


def _example(annotations, split, clips, n, audio_S, num_samples):
  unknown_Q = taxonomy.IS_UNKNOWN
  row = clips.row[n]
  votes = clips.annotator_id[n] > 0
  return {
    'audio': audio_S,
    'num_samples': num_samples,
    'clip_id': clips.audio_filename[n],
    'split': split,
    'sensor_id': clips.sensor_id[n],
    'has_truth': bool(clips.has_truth[n]),
    'coarse': clips.coarse[n],
    'fine': clips.fine[n][~unknown_Q],
    'fine_unknown': clips.fine[n][unknown_Q],
    'votes': clips.votes[n][votes],
    'proximity': clips.proximity[n][votes],
    'annotator_id': clips.annotator_id[n][votes],
    **{name: values[row] for name, values in annotations.extra.items()},
  }
