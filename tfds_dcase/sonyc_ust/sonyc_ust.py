"""The TFDS builder of SONYC-UST, DCASE 2019 and 2020 Task 5."""

import pathlib

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from tfds_dcase import audio, builder, disk, taxonomy
from tfds_dcase.notes import LOGGER
from tfds_dcase.sonyc_ust import (
  availability,
  decode,
  gather,
  prepare,
  records,
)

_DESCRIPTION = """\
SONYC Urban Sound Tagging: 10-s mono recordings from street sensors in New \
York, tagged by volunteers in 8 coarse and 23 fine classes. `v1` is DCASE 2019 \
Task 5 (2,351 / 443 / 274 clips), `v2` is release 2.3 (13,538 / 4,308 / 664) \
with time and place. Coarse tags are recomputed from the fine ones. A train \
tag is present if at least one volunteer marked it; validate and test have the \
agreed truth, and clips of theirs without one are the split \
`validate_unverified`."""

_CITATION = """\
@inproceedings{cartwright2019sonyc,
  author = {Cartwright, Mark and Mendez, Ana Elisa Mendez and Cramer, Jason and
    Lostanlen, Vincent and Dove, Graham and Wu, Ho-Hsiang and Salamon, Justin
    and Nov, Oded and Bello, Juan Pablo},
  title = {{SONYC} Urban Sound Tagging ({SONYC-UST}): a multilabel dataset from
    an urban acoustic sensor network},
  booktitle = {Proceedings of the Workshop on Detection and Classification of
    Acoustic Scenes and Events (DCASE)},
  year = {2019},
  pages = {35--39},
}
"""


class _StableWriter(tfds.core.ExampleWriter):
  """Writes the same bytes for the same example in every process.

  The order of a protobuf map changes from one process to the next otherwise.
  """

  def write(self, path, examples):
    stable = (
      (
        key,
        tf_example_pb2.Example.FromString(  # pyright: ignore
          data
        ).SerializeToString(deterministic=True),
      )
      for key, data in examples
    )
    return super().write(path, stable)


class SonycUst(builder.BaseBuilder):
  """SONYC-UST as ArrayRecord, built without TensorFlow.

  A `ShardBasedBuilder`, as a generator based one shuffles in 1 GB of memory
  and, above that, with TensorFlow.

  Configs: `v1` (DCASE 2019) and `v2` (release 2.3).

  Links in `manual_dir` are followed wherever they lead, each folder once. Only
  regular files are opened: a recording that is a pipe, a device or a link that
  leads nowhere is a bad one. Archives may hold no links. Nothing is written to
  `manual_dir`.

  Elements (A: volunteers of the clip, mostly 3):
    audio: int16 [160000], 10 s at 16 kHz, cut or padded with zeros.
    num_samples: int32 [], samples of real sound before the padding.
    clip_id: text (bytes when read), the recording's name.
    split: text, the name of the split.
    sensor_id: int32 [].
    has_truth: bool [], whether the tags are the agreed truth, not a vote.
    coarse: int8 [8], `taxonomy.COARSE`, 0/1, -1 where not labelled.
    fine: int8 [23], `taxonomy.FINE`, likewise.
    fine_unknown: int8 [6], `taxonomy.UNKNOWN`, likewise.
    votes: int8 [A, 29], by `taxonomy.FINE_COLUMNS`, likewise.
    proximity: int8 [A, 29], coded as `prepare.PROXIMITY_CODE`.
    annotator_id: int32 [A].
    v2 only:
      year, week, day, hour: int32 [], when it was recorded.
      borough, block: int32 [], where; the release codes them.
      latitude, longitude: float32 [], degrees, of the block.
  """

  VERSION = tfds.core.Version(records.BUILD_VERSION)
  # TFDS finds this path itself only where importlib_resources is installed.
  code_path = epath.Path(__file__)
  BUILDER_CONFIGS = [  # noqa: RUF012
    tfds.core.BuilderConfig(
      name='v1', description='DCASE 2019 Task 5, Zenodo record 3338310.'
    ),
    tfds.core.BuilderConfig(
      name='v2', description='Release 2.3, Zenodo record 3966543.'
    ),
  ]

  def __init__(
    self,
    *,
    manual_dir=None,
    on_bad_recording: str = 'stop',
    tolerance_seconds: float = 0.5,
    workers: int | None = None,
    base_url: str = records.ZENODO,
    file_format: str = 'array_record',
    **kwargs,
  ):
    """See `make_builder`; `kwargs` are those of every TFDS builder."""
    self._manual_dir = manual_dir
    self._base_url = base_url
    self._settings = prepare.Settings(
      on_bad_recording, tolerance_seconds, workers
    )
    audio.check_on_bad_recording(on_bad_recording)
    super().__init__(file_format=file_format, **kwargs)
    self._original_state |= {
      'manual_dir': manual_dir,
      'base_url': base_url,
      **self._settings._asdict(),
    }
    self._log_skipped()

  def _info(self) -> builder.Info:
    return builder.Info(
      builder=self,
      description=_DESCRIPTION,
      features=tfds.features.FeaturesDict(_features(self._version_name)),
      homepage='https://zenodo.org/record/'
      + records.release(self._version_name).record,
      citation=_CITATION,
      license='CC BY 4.0',
      metadata=tfds.core.MetadataDict(
        coarse=list(taxonomy.COARSE),
        fine=list(taxonomy.FINE),
        fine_unknown=list(taxonomy.UNKNOWN),
        vote_columns=list(taxonomy.FINE_COLUMNS),
        proximity_code={str(k): v for k, v in prepare.PROXIMITY_CODE.items()},
        sample_rate=decode.SAMPLE_RATE,
      ),
    )

  @property
  def _version_name(self) -> str:
    return self.builder_config.name  # pyright: ignore

  def _download_and_prepare(self, dl_manager, download_config=None):
    manual_dir = getattr(download_config, 'manual_dir', None)
    if manual_dir is not None:
      self._manual_dir = manual_dir
    needed = (
      f'sonyc_ust/{self._version_name} takes about '
      f'{_gigabytes(self._version_name)} GB besides its downloads. '
    )
    with disk.full_disk_named(self._data_dir_root, needed):
      super()._download_and_prepare(dl_manager, download_config)

  def _example_writer(self):
    return _StableWriter(file_format=self.info.file_format)  # pyright: ignore

  def _shard_iterators_per_split(self, dl_manager):
    plan = availability.make_plan(
      self._data_dir_root, self._version_name, self._manual_dir, self._base_url
    )
    folder = pathlib.Path(self.data_dir)
    shards, build = prepare.prepare(plan, folder, self._settings)
    self.info.metadata['build'] = build  # pyright: ignore
    return shards

  def _log_skipped(self):
    build = (self.info.metadata or {}).get('build', {})  # pyright: ignore
    if build.get('skipped'):
      LOGGER.warning(
        '%s was built without %d recordings, listed in its metadata.json.',
        self.info.full_name,
        len(build['skipped']),
      )


def make_builder(
  data_dir,
  version: str = 'v1',
  manual_dir=None,
  *,
  on_bad_recording: str = 'stop',
  tolerance_seconds: float = 0.5,
  workers: int | None = None,
  base_url: str = records.ZENODO,
) -> SonycUst:
  """Makes the builder; `builder.download_and_prepare()` does the work.

  Args:
    data_dir: TFDS's data folder.
    version: 'v1' or 'v2'.
    manual_dir: a folder with the archives, the extracted folders or any
      mixture, and annotations.csv; downloads from Zenodo where None.
    on_bad_recording: 'stop', or 'skip': a missing or bad recording is left
      out, counted in the log and listed in `info.metadata['build']`.
    tolerance_seconds: how far from 10 s a recording may be; within it, it is
      padded or cut.
    workers: threads that decode; default one a core.
    base_url: in place of Zenodo's address.

  Returns:
    The builder.

  Raises:
    ValueError: an unknown version or setting.
  """
  records.release(version)
  return SonycUst(
    data_dir=data_dir,
    config=version,
    manual_dir=manual_dir,
    on_bad_recording=on_bad_recording,
    tolerance_seconds=tolerance_seconds,
    workers=workers,
    base_url=base_url,
  )


def check_mixed_versions(train, test, test_split: str = 'test') -> None:
  """Raises where training and testing would share recordings.

  v1's clips, its test set included, are in v2's train and validate.

  Args:
    train: version or builder that is trained on.
    test: version or builder that is scored.
    test_split: the split that is scored.

  Raises:
    ValueError: trained on v2 and scored on v1, or trained on v1 and scored on
      v2's validate.
  """
  names = [
    each if isinstance(each, str) else each.builder_config.name
    for each in (train, test)
  ]
  trained, scored = (name.rpartition('/')[2] for name in names)
  records.release(trained)
  records.release(scored)
  if trained == scored:
    return
  if scored == 'v1' or not test_split.startswith('test'):
    raise ValueError(
      f'Training on sonyc_ust/{trained} and scoring on the {test_split} split '
      f"of sonyc_ust/{scored} is refused: v1's clips, its test set included, "
      "are inside v2's train and validate, so a model may be scored on what "
      'it was trained on. Use one version for both.'
    )


def _features(version: str) -> dict:
  """The features of an example; A = number of volunteers, mostly 3."""
  num_columns = len(taxonomy.FINE_COLUMNS)
  raw = tfds.features.Encoding.BYTES
  tensor, scalar = tfds.features.Tensor, tfds.features.Scalar
  features = {
    'audio': tensor(shape=(decode.NUM_SAMPLES,), dtype=np.int16, encoding=raw),
    'num_samples': scalar(np.int32),
    'clip_id': tfds.features.Text(),
    'split': tfds.features.Text(),
    'sensor_id': scalar(np.int32),
    'has_truth': scalar(np.bool_),
    # Tags are 1 / 0, and -1 where not labelled.
    'coarse': tensor(shape=(len(taxonomy.COARSE),), dtype=np.int8),
    'fine': tensor(shape=(len(taxonomy.FINE),), dtype=np.int8),
    'fine_unknown': tensor(shape=(len(taxonomy.UNKNOWN),), dtype=np.int8),
    'votes': tensor(shape=(None, num_columns), dtype=np.int8, encoding=raw),
    # Coded as `prepare.PROXIMITY_CODE`.
    'proximity': tensor(shape=(None, num_columns), dtype=np.int8, encoding=raw),
    'annotator_id': tensor(shape=(None,), dtype=np.int32, encoding=raw),
  }
  if version == 'v2':
    for name in ('year', 'week', 'day', 'hour', 'borough', 'block'):
      features[name] = scalar(np.int32)
    for name in ('latitude', 'longitude'):  # degrees, of the block
      features[name] = scalar(np.float32)
  return features


def _gigabytes(version: str) -> int:
  clips = sum(records.release(version).num_clips.values())
  shard = gather.CLIPS_PER_SHARD
  return round(2.1 * decode.NUM_SAMPLES * (clips + shard) / 1e9 + 0.5)
