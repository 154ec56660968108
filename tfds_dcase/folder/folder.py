"""TFDS builder of a user's own recordings with a labels.csv."""

import dataclasses
import functools
import hashlib
import os

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tfds_dcase import (
  audio,
  builder,
  clip_format,
  disk,
  files,
  in_order,
  notes,
)
from tfds_dcase.folder import labels as labels_lib
from tfds_dcase.folder import tag_cells
from tfds_dcase.urban_scenes import recordings, settings

_DESCRIPTION = """\
A user's own multi-label recordings: a folder with a labels.csv. Stored as mono
clips of one length and rate, 10 s at 16 kHz by default; longer recordings are
cut, shorter ones padded with zeros.
"""
_CITATION = 'None: these are recordings of your own.'
_LICENSE = 'That of the recordings in manual_dir.'


@dataclasses.dataclass(eq=False, kw_only=True, repr=False)
class FolderConfig(tfds.core.BuilderConfig):
  """One labelled folder; made by `make_config`.

  Attributes:
    manual_dir: the folder.
    labels: what its labels.csv says, without rows to be skipped.
    on_bad_recording: 'stop', or 'skip' to leave out and report.
    form: that recordings are stored in.
  """

  manual_dir: str
  labels: labels_lib.Labels
  on_bad_recording: str = 'stop'
  form: clip_format.ClipFormat = clip_format.DEFAULT

  def __repr__(self):  # TFDS logs it: not with every row
    return f'{self.name} of {self.manual_dir}'


class Folder(builder.BaseBuilder):
  """A folder of recordings with `labels.csv` (see `labels.EXAMPLE`).

  Its fingerprint (labels, names and whole content of the files) is in the
  config's name, so that two folders never share stored data.

  Links in the folder, to recordings or to folders, are followed wherever they
  lead, each folder once. Only regular files are opened, and only to be decoded:
  a link that leads nowhere, a pipe or a device is a bad recording, by which
  `on_bad_recording` decides. Rows of labels.csv cannot name files outside of
  the folder but by such links. What is stored, and logged, has the names of
  labels.csv. Nothing is written to the folder.

  Elements:
    audio: int16 [S], by default 10 s at 16 kHz, cut or padded with zeros.
    num_samples: int32 [], samples of real sound before the padding.
    clip_id: text (bytes when read), the path in labels.csv.
    coarse: int8 [C], 0/1, -1 where it is unknown; names in
      `info.metadata['coarse']`.
  """

  # TFDS finds this path itself only where importlib_resources is installed,
  # which it does not require.
  code_path = epath.Path(__file__)
  VERSION = tfds.core.Version('1.1.0')

  def __init__(
    self,
    *,
    data_dir=None,
    config=None,
    version=None,
    file_format='array_record',
    manual_dir=None,
    workers: int | None = None,
    **given,
  ):
    """Makes a builder; see `make_builder`."""
    self._workers = workers or in_order.num_cores()
    if not isinstance(config, FolderConfig):
      config = make_config(manual_dir, data_dir, **given)
    self._config = config
    super().__init__(
      data_dir=data_dir, config=config, version=version, file_format=file_format
    )

  def _info(self):
    tags = self._config.labels.tags
    return builder.Info(
      builder=self,
      description=_DESCRIPTION,
      citation=_CITATION,
      license=_LICENSE,
      features=tfds.features.FeaturesDict(
        {
          # BYTES: the default encoding is 25 times slower to write.
          'audio': tfds.features.Tensor(
            shape=(self._config.form.num_samples,),
            dtype=np.int16,
            encoding=tfds.features.Encoding.BYTES,
          ),
          'num_samples': tfds.features.Scalar(np.int32),
          'clip_id': tfds.features.Text(),
          'coarse': tfds.features.Tensor(shape=(len(tags),), dtype=np.int8),
        }
      ),
      metadata=tfds.core.MetadataDict(coarse=list(tags)),
      supervised_keys=('audio', 'coarse'),
    )

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager
    self._first_by_sound = {}
    # One shard a split: a generator based builder would need TensorFlow above
    # 1 GB of recordings (3,200 clips).
    return {
      s: [functools.partial(self._examples, s)] for s in labels_lib.SPLITS
    }

  def _examples(self, split):
    config, size = self._config, self._config.form.num_samples
    rows = [i for i, s in enumerate(config.labels.splits) if s == split]
    problems, cut, corrected, padded = [], [], [], 0
    made = in_order.in_order(self._example, rows, self._workers)
    for example, problem, done, length in made:
      problems += problem
      corrected += done
      if example is not None:
        problems += (double := self._in_another_split(example, split))
      if example is not None and not double:
        cut += [example['clip_id']] * (length > size)
        padded += length < size
        yield example['clip_id'], example
    if len(problems) == len(rows):
      raise ValueError(
        f'{split}: no usable recording.\n'
        f'{audio.summarise_problems(problems, len(rows))}'
      )
    of = f'of {len(rows)} recordings'
    seconds = f'{config.form.clip_seconds:g} s'
    notes.LOGGER.info('%s: %d %s padded to %s', split, padded, of, seconds)
    for what, names in ((f'cut to {seconds}', cut), ('left out', problems)):
      if names:
        what = f'{split}: {len(names)} {of} {what}'
        notes.log_and_keep(what, names, self.data_path)
    if corrected:
      what = f'{split}: {len(corrected)} corrections of recordings'
      notes.log_and_keep(what, corrected, self.data_path)

  def _in_another_split(self, example, split: str) -> list[str]:
    """A message where another split has the same sound, in any format.

    Raises:
      ValueError: the message, with on_bad_recording='stop'.
    """
    key = hashlib.sha256(example['audio'].tobytes()).digest()
    here = example['clip_id'], split
    other = self._first_by_sound.setdefault(key, here)
    if other[1] == split:
      return []
    message = '{} ({}) has the same sound as {} ({})'.format(*here, *other)
    if self._config.on_bad_recording == 'stop':
      raise ValueError(
        f'{self._config.manual_dir}: {message}. Remove one of them, or '
        "on_bad_recording='skip' leaves out the first of them"
      )
    return [message]

  def _example(self, row: int):
    """Of a row: the example or None, problems, corrections, length read."""
    config = self._config
    file, problems, done = config.labels.files[row], [], []
    form = config.form
    wave_S = audio.read_usable(
      os.path.join(config.manual_dir, file),
      problems,
      config.on_bad_recording,
      sample_rate=form.sample_rate,
      # A little more, to see that there is more.
      max_seconds=form.clip_seconds + 0.1,
      notes=done,
    )
    if wave_S is None:
      return None, problems, [], 0
    fitted_S, length = audio.fit_length(
      audio.to_int16(wave_S), form.num_samples
    )
    example = {
      'audio': fitted_S,
      'num_samples': length,
      'clip_id': file,
      'coarse': config.labels.tags_NC[row],
    }
    return example, problems, [f'{file}: {each}' for each in done], len(wave_S)


def make_config(manual_dir, data_dir=None, **given) -> FolderConfig:
  """Reads labels.csv, matches it with the folder, and names the result.

  Args:
    manual_dir: the folder.
    data_dir: for a list of what does not match, where that is long.
    **given: settings.

  Raises:
    ValueError: for an unknown setting, a faulty labels.csv, or rows without
      their file (with on_bad_recording='stop').
  """
  names = ['on_bad_recording', 'clip_seconds', 'sample_rate', 'tags']
  settings.check_names(given, names, 'folder')
  own = dict(given)
  on_bad = own.pop('on_bad_recording', 'stop')
  audio.check_on_bad_recording(on_bad)
  tags = _check_tags(own.pop('tags', ()))
  form = clip_format.ClipFormat(**own)
  what = f'recordings and a {labels_lib.FILE_NAME}'
  folder = recordings.check_folder(manual_dir, what)
  if tags and not (folder / labels_lib.FILE_NAME).is_file():
    found = recordings.find_sound_files(folder)
    labels = labels_lib.without_any(sorted(found), tags)
  else:
    labels = labels_lib.read(folder, tags)
  # Pipes, devices and links that lead nowhere are there: they are bad
  # recordings, not missing ones.
  exists = [f for f in labels.files if os.path.lexists(folder / f)]
  found = sorted({*recordings.find_sound_files(folder), *exists})
  missing, unlabelled = labels_lib.match(labels, found)
  if tags:
    labels = labels_lib.with_unlabelled(labels, unlabelled)
    unlabelled = []
  lines = _unmatched_lines(
    labels_lib.unmatched(missing, unlabelled, folder), folder, data_dir
  )
  if missing and on_bad == 'stop':
    lines = '\n'.join(lines)
    raise ValueError(f"{lines}\non_bad_recording='skip' leaves such rows out")
  for line in lines:
    notes.LOGGER.warning('%s', line)
  labels = labels_lib.without(labels, missing)
  content = _content(labels, folder)
  labels = _without_duplicates(labels, content, folder, on_bad)
  _log_report(labels, folder)
  name = settings.fingerprint(
    labels.tags,
    labels.files,
    labels.splits,
    labels.tags_NC.tolist(),
    [content[f] for f in labels.files],
    on_bad,
    *([changes] if (changes := form.changes()) else []),
  )
  return FolderConfig(
    name=f'set_{name}',
    description=f'{len(labels.files)} recordings, {len(labels.tags)} tags.',
    manual_dir=str(folder),
    labels=labels,
    on_bad_recording=on_bad,
    form=form,
  )


def _check_tags(tags) -> tuple[str, ...]:
  """The names of the tags, where they are given beforehand.

  Raises:
    ValueError: for what is no list of different names.
  """
  if isinstance(tags, str) or not all(isinstance(t, str) for t in tags):
    raise ValueError(f'tags={tags!r}: must be a list of names')
  names = tuple(tag_cells.clean(tag) for tag in tags)
  reserved = {'file', 'split', 'tags', labels_lib.LABELLED, ''} & {*names}
  if reserved or len(set(names)) < len(names):
    raise ValueError(
      f'tags={list(names)!r}: must be different names, none of them file, '
      f'split, tags or {labels_lib.LABELLED}'
    )
  return names


def _content(labels, folder) -> dict[str, str]:
  """Checksum of each file; '' for empty ones, which are no duplicates."""
  checksums = files.digests([folder / f for f in labels.files])
  return {
    file: checksum if files.size(folder / file) else ''
    for file, checksum in zip(labels.files, checksums, strict=True)
  }


def _without_duplicates(labels, content, folder, on_bad):
  """The labels without recordings that are in another split too.

  Raises:
    ValueError: for such a recording, with on_bad='stop'.
  """
  doubles, contradictory = labels_lib.duplicates(labels, content)
  for what, messages in (
    ('recordings are in two splits', doubles),
    ('recordings are there twice with other tags', contradictory),
  ):
    if messages:
      what = f'{folder}: {len(messages)} {what}'
      line = notes.line(what, list(messages.values()))
      if messages is doubles and on_bad == 'stop':
        raise ValueError(
          f"{line}. Remove one of each, or on_bad_recording='skip' leaves out "
          'the one that is later in labels.csv'
        )
      notes.LOGGER.warning('%s', line)
  return labels_lib.without(labels, list(doubles))


def _log_report(labels, folder) -> None:
  line, warnings = labels_lib.report(labels)
  notes.LOGGER.info('%s: %d recordings, %s', folder, len(labels.files), line)
  for each in warnings:
    notes.LOGGER.warning('%s: %s', folder, each)


def _unmatched_lines(found, folder, data_dir) -> list[str]:
  """A line for rows without a file and one for files without a row.

  Where they are too many for a line, a file in `data_dir` has them all.
  """
  place = ''
  if data_dir and any(len(names) > notes.SHOWN for names in found.values()):
    place = epath.Path(data_dir) / f'unmatched-{folder.name}.txt'
    with disk.full_disk_named(place):
      place.parent.mkdir(parents=True, exist_ok=True)
      place.write_text(''.join(notes.listing(*each) for each in found.items()))
  return [
    f'{folder}: {notes.line(what, names, str(place))}'
    for what, names in found.items()
  ]


def make_builder(
  data_dir=None, manual_dir=None, workers: int | None = None, **given
) -> Folder:
  """The builder of a labelled folder.

  Args:
    data_dir: where TFDS keeps data sets (None: its default).
    manual_dir: folder of recordings with a `labels.csv`.
    workers: threads that decode; the result does not depend on it.
    **given: `on_bad_recording='stop'` (default) or 'skip'; the fields of
      `clip_format.ClipFormat`; `tags`, a list of names, for recordings without
      labels.

  Returns:
    A builder; call `download_and_prepare()`, then `as_data_source()`.

  Raises:
    ValueError: see `make_config`.
  """
  return Folder(
    data_dir=data_dir, manual_dir=manual_dir, workers=workers, **given
  )
