"""Finds every wanted recording once, decodes on all cores, keeps the result.

Archives come in their own order, records are written in another: decoded
clips wait in one file a shard, which is deleted as soon as its shard is
written, so that the disk never holds more than the data set and one shard.
"""

import collections
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tqdm

from tfds_dcase import audio, in_order, interrupt
from tfds_dcase.sonyc_ust import availability, sources
from tfds_dcase.sonyc_ust import decode as decode_lib

CLIPS_PER_SHARD = 256
_PAUSE_SECONDS = 0.5  # between two looks for a wish to stop
_CLIP_BYTES = 2 * decode_lib.NUM_SAMPLES


class Wanted(NamedTuple):
  """Where the annotations name a recording."""

  split: str
  path: str
  row: int

  def __str__(self):
    return f'{self.path}, row {self.row}, split {self.split}'


class Store:
  """Decoded clips of one split on disk, by their place in it."""

  def __init__(self, folder: pathlib.Path, num_clips: int):
    """Makes an empty store of `num_clips` places below `folder`."""
    self.num_samples_N = np.full(num_clips, -1, np.int32)  # -1: not there
    self._folder = folder
    folder.mkdir(parents=True, exist_ok=True)

  def put(self, place: int, clip: decode_lib.Clip) -> None:
    """Keeps a clip; threads may call this at once for different places."""
    shard, within = divmod(place, CLIPS_PER_SHARD)
    file = os.open(self._path(shard), os.O_WRONLY | os.O_CREAT)
    with open(file, 'wb') as out:
      out.seek(within * _CLIP_BYTES)
      out.write(clip.audio_S.astype('<i2').tobytes())
    self.num_samples_N[place] = clip.num_samples

  def shards(self) -> list[list[int]]:
    """The places that hold a clip, shard by shard; empty shards left out."""
    places = np.arange(len(self.num_samples_N))
    there = places[self.num_samples_N >= 0]
    shards = [
      there[there // CLIPS_PER_SHARD == shard].tolist()
      for shard in range(-(-len(places) // CLIPS_PER_SHARD))
    ]
    return [shard for shard in shards if shard]

  def take(self, places: list[int]) -> Iterator[np.ndarray]:
    """Yields the int16 [160000] of each place of one shard, then deletes it."""
    path = self._path(places[0] // CLIPS_PER_SHARD)
    clips_NS = np.memmap(path, '<i2', 'r').reshape(-1, decode_lib.NUM_SAMPLES)
    for place in places:
      yield clips_NS[place % CLIPS_PER_SHARD]
    path.unlink()
    if not any(self._folder.iterdir()):
      self._folder.rmdir()

  def _path(self, shard):
    return self._folder / f'{shard:05d}.int16'


@dataclasses.dataclass
class Report:
  """Recordings that were skipped, left out or found twice.

  Attributes:
    skipped: name to reason, of bad and missing ones.
    extra: names that the annotations do not have.
    twice: names of recordings found again with the same content.
    corrected: what was done to recordings, one line each.
  """

  skipped: dict[str, str] = dataclasses.field(default_factory=dict)
  extra: list[str] = dataclasses.field(default_factory=list)
  twice: list[str] = dataclasses.field(default_factory=list)
  corrected: list[str] = dataclasses.field(default_factory=list)

  def summary(self) -> dict[str, list[str]]:
    """What happened, and to which recordings; empty where all went well."""
    extra = sorted(set(self.extra))
    twice = sorted(self.twice)
    found = {
      f'{len(self.skipped)} recordings skipped': list(self.skipped.values()),
      f'{len(extra)} recordings that the annotations do not name were left '
      'out': extra,
      f'{len(twice)} recordings were there twice with the same content': twice,
      f'{len(self.corrected)} corrections of recordings': sorted(
        self.corrected
      ),
    }
    return {what: names for what, names in found.items() if names}


class Gatherer:
  """Takes recordings from readers, decodes each wanted one once."""

  def __init__(
    self,
    wanted: dict[str, Wanted],
    keep: Callable[[str, decode_lib.Clip], None],
    on_bad_recording: str,
    tolerance_seconds: float,
    workers: int | None = None,
  ):
    """Sets up the threads.

    Args:
      wanted: name to its first row in the annotations.
      keep: called with name and clip, from several threads.
      on_bad_recording: 'stop' or 'skip'.
      tolerance_seconds: how far from 10 s a recording may be.
      workers: threads that decode; default one a core.
    """
    audio.check_on_bad_recording(on_bad_recording)
    self.report = Report()
    self.wanted = wanted
    self._keep = keep
    self.skips = on_bad_recording == 'skip'
    self._tolerance_seconds = tolerance_seconds
    self.workers = workers or in_order.num_cores()
    self._seen: dict[str, tuple[bytes, str]] = {}
    self._lock = threading.Lock()
    self._failed = threading.Event()
    # Bounds what is read but not yet decoded, and so the memory.
    self._free_slots = threading.Semaphore(2 * self.workers)

  def run(self, readers: list[Iterable[sources.Recording]]) -> None:
    """Decodes what the readers bring; several readers run at once.

    Raises:
      ValueError: a bad recording under 'stop', the same name with different
        contents, or whatever a reader raises.
    """
    with (
      tqdm.tqdm(total=len(self.wanted), unit=' clips', disable=None) as bar,
      futures.ThreadPoolExecutor(self.workers) as decoders,
      futures.ThreadPoolExecutor(self.workers) as threads,
    ):
      self._bar = bar
      bar.update(len(self._seen))
      tasks = [threads.submit(self._read, each, decoders) for each in readers]
      try:
        while tasks:
          interrupt.check()
          done, tasks = futures.wait(
            tasks, _PAUSE_SECONDS, futures.FIRST_COMPLETED
          )
          for task in done:
            task.result()
      except BaseException:  # Ctrl-C too must not wait for the archive's end
        self._failed.set()
        raise

  def unseen(self) -> list[str]:
    """Wanted names that no reader brought."""
    return [name for name in self.wanted if name not in self._seen]

  def _read(self, reader, decoders):
    tasks = []
    try:
      for recording in reader:
        if self._failed.is_set():
          break
        if self._is_new(recording):
          self._free_slots.acquire()
          tasks.append(decoders.submit(self._decode, recording))
      for task in tasks:
        task.result()
    except BaseException:
      self._failed.set()
      raise

  def _is_new(self, recording) -> bool:
    name = recording.name
    if name not in self.wanted:
      with self._lock:
        self.report.extra.append(name)
      return False
    digest = recording.digest()
    with self._lock:
      earlier = self._seen.setdefault(name, (digest, recording.where))
      if earlier == (digest, recording.where):
        return True
      self.report.twice.append(name)
    if earlier[0] != digest:
      raise ValueError(
        f'{name} is there twice with different contents: {earlier[1]} and '
        f'{recording.where} ({self.wanted[name]}). Delete the wrong one.'
      )
    return False

  def _decode(self, recording):
    try:
      if self._failed.is_set():
        return
      if recording.problem is not None:
        raise decode_lib.BadRecordingError('', recording.problem)
      clip = decode_lib.decode(recording.data, self._tolerance_seconds)
      self._keep(recording.name, clip)
      with self._lock:
        self.report.corrected += [f'{recording.name}: {n}' for n in clip.notes]
    except decode_lib.BadRecordingError as error:
      self.skip(recording.name, f'{recording.where}: {error}')
    except BaseException:
      self._failed.set()
      raise
    finally:
      self._free_slots.release()
      self._bar.update()

  def skip(self, name: str, reason: str) -> None:
    """Notes a bad recording, or raises under 'stop'."""
    reason = f'{reason} ({self.wanted[name]})'
    if not self.skips:
      self._failed.set()
      raise ValueError(
        f"{reason}. Replace the file, or set on_bad_recording='skip' to build "
        'without such recordings.'
      )
    with self._lock:
      self.report.skipped[name] = reason


def gather(plan: availability.Plan, gatherer: Gatherer) -> Report:
  """Reads folders first, and archives where something is still missing.

  Args:
    plan: where the files are.
    gatherer: what is wanted, and what to do with it.

  Returns:
    What was skipped, left out or found twice.

  Raises:
    ValueError: see `Gatherer.run`; recordings missing under 'stop', or none
      found at all.
  """
  wanted = gatherer.wanted
  gatherer.report.extra += [n for n in plan.loose if n not in wanted]
  # One reader a core: files of one folder are read side by side too.
  names = [name for name in plan.loose if name in wanted]
  parts = [names[n :: gatherer.workers] for n in range(gatherer.workers)]
  gatherer.run([_loose(plan, part) for part in parts if part])
  if gatherer.unseen():
    gatherer.run(
      [sources.from_archive(path, plan.release) for path in plan.archives]
    )
  missing = gatherer.unseen()
  if missing and not (gatherer.skips and len(missing) < len(wanted)):
    raise ValueError(_missing(plan, wanted, missing))
  for name in missing:
    gatherer.skip(name, f'{name}: missing')
  return gatherer.report


def _loose(plan, names) -> Iterator[sources.Recording]:
  for name in names:
    yield from sources.from_paths(plan.loose[name])


def _missing(plan, wanted, missing):
  counts = collections.Counter(wanted[name].split for name in missing)
  totals = collections.Counter(row.split for row in wanted.values())
  splits = ', '.join(f'{n} of {totals[s]} in {s}' for s, n in counts.items())
  first = '; '.join(f'{name} ({wanted[name]})' for name in missing[:3])
  places = sorted({str(p[0].parent) for p in plan.loose.values()})
  places += [str(path) for path in plan.archives]
  names = ', '.join(file.name for file in plan.release.archives)
  return (
    f'{len(missing)} of {len(wanted)} recordings are missing ({splits}), the '
    f'first: {first}. Looked in {", ".join(places) or "nothing"}. The release '
    f'has {names} (https://zenodo.org/record/{plan.release.record}): put the '
    'missing ones, packed or extracted, beside the others, or set '
    "on_bad_recording='skip' to build without these recordings."
  )
