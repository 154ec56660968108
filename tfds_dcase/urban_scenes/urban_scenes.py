"""TFDS builder of urban scenes: synthesised, or mixed from recordings."""

import contextlib
import functools

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from tfds_dcase import builder, clip_format, in_order, notes, taxonomy
from tfds_dcase.urban_scenes import (
  clips,
  procedural,
  recordings,
  settings,
)

_DESCRIPTION = """\
Urban sound scenes for multi-label audio tagging, mono: of ten seconds at
16 kHz, where `clips` asks for nothing else.
`procedural`: every sound is synthesised, with the taxonomy and tag frequencies
of SONYC-UST and, in `train`, the noisy votes of three simulated annotators.
`clips`: scenes mixed from a folder of isolated recordings of your own, no
recording in two splits.
"""

_CITATION = """\
@inproceedings{cartwright2019sonyc,
  title={{SONYC} Urban Sound Tagging ({SONYC-UST}): A Multilabel Dataset from
    an Urban Acoustic Sensor Network},
  author={Cartwright, Mark and Mendez, Ana Elisa Mendez and Cramer, Jason and
    Lostanlen, Vincent and Dove, Graham and Wu, Ho-Hsiang and Salamon, Justin
    and Nov, Oded and Bello, Juan Pablo},
  booktitle={Proceedings of the Detection and Classification of Acoustic
    Scenes and Events Workshop (DCASE)},
  year={2019}
}
"""

_LICENSE = """\
Holds no recording; made by code under Apache-2.0, with tag statistics derived
from SONYC-UST (CC BY 4.0).
"""

_CLIPS_CITATION = 'None: the recordings in manual_dir are your own.'
_CLIPS_LICENSE = 'That of the recordings in manual_dir.'

_SCENES_PER_SHARD = 1000  # 320 MB.
_MANY_SCENES = 500  # Worth the seconds that processes take to start.


class UrbanScenes(builder.BaseBuilder):
  """Scenes of several overlapping sources over street noise.

  A `ShardBasedBuilder`, as a generator based one shuffles in 1 GB of memory
  (3,200 scenes) and, above that, with TensorFlow.

  Configs: `procedural` (default) and `clips` (needs `manual_dir`). Any other
  settings than the defaults go to a folder of their own, `procedural_<hex>`.
  What scenes of `clips` are made of, all content included, is in the name of
  its folder, `clips_<hex>`.

  Links in `manual_dir`, to recordings or to folders, are followed wherever they
  lead, each folder once. Only regular files are opened, and only to be decoded:
  a link that leads nowhere, a pipe or a device is a bad recording, by which
  `on_bad_recording` decides. What is stored, and logged, has the names in
  `manual_dir`, not those that links lead to. Nothing is written there.

  Elements:
    audio: int16 [S], 10 s at 16 kHz, or what `clips` asks for.
    num_samples: int32 [], always S.
    clip_id: text (bytes when read), `train_000123.wav`.
    coarse: int8 [C], 0/1; names in `info.metadata['coarse']`.
    procedural only:
      fine: int8 [23], `taxonomy.FINE`.
      fine_unknown: int8 [6], `taxonomy.UNKNOWN`.
      votes: int8 [3, 29], annotator by `taxonomy.FINE_COLUMNS`; the truth,
        three times, in validate and test.
  """

  # TFDS finds this path itself only where importlib_resources is installed,
  # which it does not require.
  code_path = epath.Path(__file__)
  VERSION = tfds.core.Version('1.0.0')
  BUILDER_CONFIGS = [  # noqa: RUF012 (the name that TFDS expects)
    settings.ProceduralConfig(
      name='procedural', description='Synthesised sources, SONYC taxonomy.'
    ),
  ]

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
    """Makes a builder; `make_builder` is shorter.

    Args:
      data_dir: where TFDS keeps data sets.
      config: 'procedural' or 'clips', or a config object.
      version: as in TFDS.
      file_format: ArrayRecord by default.
      manual_dir: folder of recordings, for `clips`.
      workers: threads (processes, for many synthesised scenes) that make
        scenes, default one a core; the result does not depend on it.
      **given: settings, see `settings.ProceduralConfig`.

    Raises:
      ValueError: for settings that are unknown or out of range.
    """
    self._workers = workers or in_order.num_cores()
    if config is None or isinstance(config, str):
      config = make_config(config or 'procedural', manual_dir, **given)
    super().__init__(
      data_dir=data_dir,
      # TFDS expects the name, or its own object, of a config in its list.
      config='procedural' if config.name == 'procedural' else config,
      version=version,
      file_format=file_format,
    )

  def _info(self):
    # Citation and licence of SONYC do not apply to a user's recordings.
    own = isinstance(self.builder_config, settings.ClipsConfig)
    return builder.Info(
      builder=self,
      description=_DESCRIPTION,
      citation=_CLIPS_CITATION if own else _CITATION,
      license=_CLIPS_LICENSE if own else _LICENSE,
      features=tfds.features.FeaturesDict(_features(self.builder_config)),
      metadata=tfds.core.MetadataDict(_metadata(self.builder_config)),
      supervised_keys=('audio', 'coarse'),
    )

  def _download_and_prepare(self, dl_manager, download_config=None):
    with contextlib.ExitStack() as self._processes:
      super()._download_and_prepare(dl_manager, download_config)

  def _shard_iterators_per_split(self, dl_manager):
    del dl_manager
    config = self.builder_config
    if isinstance(config, settings.ClipsConfig):
      library = clips.Library(config, self._workers)
      self._note(config, library)
      make = functools.partial(clips.scene, config, library)
    else:
      make = functools.partial(procedural.scene, config)
      total = sum(getattr(config, f'{s}_scenes') for s in procedural.SPLITS)
      if self._workers > 1 and total >= _MANY_SCENES:
        make = self._processes.enter_context(
          in_order.by_processes(make, self._workers)
        )
    return {
      split: self._shards(
        functools.partial(make, split), getattr(config, f'{split}_scenes')
      )
      for split in procedural.SPLITS
    }

  def _note(self, config, library):
    other = recordings.passed_over(config.manual_dir)
    if other:
      what = f'{len(other)} files of the class folders are no recordings'
      notes.log_and_keep(what, other, self.data_path)
    if library.problems:
      total = len(config.recordings)
      what = f'{len(library.problems)} of {total} recordings left out'
      notes.log_and_keep(what, library.problems, self.data_path)
    if library.corrections:
      what = f'{len(library.corrections)} corrections of recordings'
      notes.log_and_keep(what, library.corrections, self.data_path)

  def _shards(self, make, count: int) -> list:
    starts = range(0, count, _SCENES_PER_SHARD)
    ends = [min(count, start + _SCENES_PER_SHARD) for start in starts]
    return [
      functools.partial(self._examples, make, start, end)
      for start, end in zip(starts, ends, strict=True)
    ]

  def _examples(self, make, first: int, last: int):
    for example in in_order.in_order(make, range(first, last), self._workers):
      yield example['clip_id'], example


def _features(config) -> dict:
  num_tags = len(_metadata(config)['coarse'])
  int8 = lambda *shape: tfds.features.Tensor(shape=shape, dtype=np.int8)  # noqa: E731
  features = {
    # BYTES: the default encoding is 25 times slower to write.
    'audio': tfds.features.Tensor(
      shape=(_format(config).num_samples,),
      dtype=np.int16,
      encoding=tfds.features.Encoding.BYTES,
    ),
    'num_samples': tfds.features.Scalar(np.int32),
    'clip_id': tfds.features.Text(),
    'coarse': int8(num_tags),
  }
  if isinstance(config, settings.ProceduralConfig):
    features['fine'] = int8(len(taxonomy.FINE))
    features['fine_unknown'] = int8(len(taxonomy.UNKNOWN))
    features['votes'] = int8(
      procedural.NUM_ANNOTATORS, len(taxonomy.FINE_COLUMNS)
    )
  return features


def _format(config) -> clip_format.ClipFormat:
  if isinstance(config, settings.ClipsConfig):
    return config.form
  return clip_format.DEFAULT


def _metadata(config) -> dict:
  if isinstance(config, settings.ClipsConfig):
    tags = {'coarse': list(config.classes)}
  else:
    tags = {'coarse': list(taxonomy.COARSE), 'fine': list(taxonomy.FINE)}
  return {**tags, 'settings': settings.values(config)}


def make_config(variant: str, manual_dir=None, **given):
  """The config of a variant with some settings changed, checked.

  Raises:
    ValueError: for an unknown variant or setting, or a value out of range.
  """
  if variant == 'clips':
    return clips.make_config(manual_dir, **given)
  if variant != 'procedural':
    raise ValueError(f"variant={variant!r}: must be 'procedural' or 'clips'")
  if manual_dir is not None:
    raise ValueError(
      f'manual_dir={str(manual_dir)!r} is only for clips: procedural scenes '
      "need no recordings; set variant='clips' or leave it out"
    )
  default = UrbanScenes.BUILDER_CONFIGS[0]
  names = settings.setting_names(settings.ProceduralConfig)
  settings.check_names(given, names, 'urban_scenes/procedural')
  given = settings.coerce(settings.ProceduralConfig, given)
  config = settings.ProceduralConfig(
    name='procedural', description=default.description, **given
  )
  settings.check_procedural(config)
  if settings.values(config) == settings.values(default):
    return default
  config.name = f'procedural_{settings.fingerprint(settings.values(config))}'
  return config


def make_builder(
  data_dir=None,
  variant: str = 'procedural',
  manual_dir=None,
  workers: int | None = None,
  **given,
) -> UrbanScenes:
  """The builder of a variant; other settings, another folder below data_dir.

  Args:
    data_dir: where TFDS keeps data sets (None: its default).
    variant: 'procedural' or 'clips'.
    manual_dir: for `clips`, the folder of recordings.
    workers: threads that make scenes; the result does not depend on it.
    **given: settings, such as `train_scenes=400` or `snr_db=(0, 12)`.

  Returns:
    A builder; call `download_and_prepare()`, then `as_data_source()`.

  Raises:
    ValueError: for settings that are unknown or out of range.
  """
  return UrbanScenes(
    data_dir=data_dir,
    config=variant,
    manual_dir=manual_dir,
    workers=workers,
    **given,
  )
