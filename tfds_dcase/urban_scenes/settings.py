"""Settings of the builders: checked early, compared by a fingerprint."""

import dataclasses
import difflib
import hashlib
import json
import math

import tensorflow_datasets as tfds

from tfds_dcase import clip_format

# Marks fields that are derived from the folder, not set by a user.
_DERIVED = {'derived': True}
_FORMAT = clip_format.DEFAULT


@dataclasses.dataclass(eq=False, kw_only=True, repr=False)
class ScenesConfig(tfds.core.BuilderConfig):
  """The settings of both variants.

  Attributes:
    train_scenes: number of scenes of the split; likewise the next two.
    validate_scenes: as `train_scenes`.
    test_scenes: as `train_scenes`.
    seed: another seed gives other scenes.
    snr_db: weakest and strongest level of a source over the noise, in dB.
    sources: least and greatest number of tagged sources in a scene.
  """

  train_scenes: int = 1200
  validate_scenes: int = 300
  test_scenes: int = 300
  seed: int = 0
  snr_db: tuple[float, float] = (-6.0, 12.0)
  sources: tuple[int, int] = (1, 4)

  def __repr__(self):  # TFDS logs it: not with every file of a folder
    return f'{self.name} {values(self)}'


@dataclasses.dataclass(eq=False, kw_only=True, repr=False)
class ProceduralConfig(ScenesConfig):
  """Synthesised sources, with three simulated annotators for `train`.

  Attributes:
    detect_half_db: SNR in dB at which an annotator misses half of all sources.
    confusion: chance that a noticed source is marked as another fine tag of
      its coarse class.
    unknown: chance that it is marked as the X of its coarse class.
  """

  detect_half_db: float = -2.0
  confusion: float = 0.1
  unknown: float = 0.06


@dataclasses.dataclass(eq=False, kw_only=True, repr=False)
class ClipsConfig(ScenesConfig):
  """Scenes mixed from a folder of recordings; made by `clips.make_config`.

  Attributes:
    validate_fold: fold of the recordings that `validate` is mixed from.
    test_fold: likewise `test`; all other folds are `train`.
    split_by: where folds come from, see `recordings.folds`.
    on_bad_recording: 'stop', or 'skip' to leave out and report.
    clip_seconds: length of a scene.
    sample_rate: of a scene, in Hz.
    manual_dir: the folder.
    classes: tags in order.
    recordings: the files, with tags and splits.
  """

  validate_fold: int = 4
  test_fold: int = 5
  split_by: str = 'auto'
  on_bad_recording: str = 'stop'
  clip_seconds: float = _FORMAT.clip_seconds
  sample_rate: int = _FORMAT.sample_rate
  manual_dir: str = dataclasses.field(default='', metadata=_DERIVED)
  classes: tuple = dataclasses.field(default=(), repr=False, metadata=_DERIVED)
  recordings: tuple = dataclasses.field(
    default=(), repr=False, metadata=_DERIVED
  )

  @property
  def form(self) -> clip_format.ClipFormat:
    """The format of the scenes."""
    return clip_format.ClipFormat(self.clip_seconds, self.sample_rate)


_BASE = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}


def setting_names(config_class) -> list[str]:
  """The fields of a config class that a user may set, in order."""
  return [
    f.name
    for f in dataclasses.fields(config_class)
    if f.name not in _BASE and f.metadata != _DERIVED
  ]


def values(config) -> dict:
  """The settings of a config, tuples as lists (as JSON has them).

  Without the format of clips where it is the default: it came later.
  """
  result = {name: getattr(config, name) for name in setting_names(type(config))}
  for name, default in dataclasses.asdict(_FORMAT).items():
    if result.get(name) == default:
      del result[name]
  return {k: list(v) if isinstance(v, tuple) else v for k, v in result.items()}


def check_names(given, legal, what: str) -> None:
  """Raises for a setting that is not legal, with the nearest legal names."""
  for name in given:
    if name not in legal:
      near = difflib.get_close_matches(name, legal, n=2)
      hint = f'; did you mean {" or ".join(near)}?' if near else ''
      raise ValueError(
        f'{what}: unknown setting {name!r}{hint} Legal: {", ".join(legal)}'
      )


def fingerprint(*parts) -> str:
  """8 hexadecimal digits of values that JSON can hold."""
  text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
  return hashlib.sha256(text.encode()).hexdigest()[:8]


def coerce(config_class, settings: dict) -> dict:
  """Settings with the types of the class's defaults, or an error.

  Whole floats become ints, lists tuples, so that equal settings have equal
  fingerprints however they were written.
  """
  defaults = {f.name: f.default for f in dataclasses.fields(config_class)}
  return {k: _as_type(k, v, defaults[k]) for k, v in settings.items()}


def _as_type(name, value, default):
  def fail(expected):
    raise ValueError(f'{name}={value!r}: must be {expected}')

  if isinstance(default, tuple):
    if isinstance(value, str) or not hasattr(value, '__len__'):
      fail(f'a pair such as {default}')
    if len(value) != len(default):
      fail(f'a pair such as {default}')
    return tuple(
      _as_type(name, v, d) for v, d in zip(value, default, strict=True)
    )
  if isinstance(default, str):
    return value if isinstance(value, str) else fail('a string')
  try:
    number = float(value)
  except (TypeError, ValueError):
    number = math.nan
  if not math.isfinite(number):
    fail(f'a number such as {default}')
  if isinstance(default, int):
    if number != int(number):
      fail('a whole number')
    return int(number)
  return number


def check_scenes(config) -> None:
  """Raises for sizes, levels and chances that are out of range."""
  for split in ('train', 'validate', 'test'):
    count = getattr(config, f'{split}_scenes')
    if count < 1:
      raise ValueError(f'{split}_scenes={count}: must be at least 1')
  if config.seed < 0:
    raise ValueError(f'seed={config.seed}: must be at least 0')
  for name in ('snr_db', 'sources'):
    low, high = getattr(config, name)
    if low > high:
      raise ValueError(f'{name}=({low}, {high}): the first must not be greater')
  if config.sources[0] < 1:
    raise ValueError(f'sources={config.sources}: at least 1 source a scene')
  if not config.snr_db[0] >= -60 or not config.snr_db[1] <= 60:
    raise ValueError(f'snr_db={config.snr_db}: must lie within -60 and 60 dB')


def check_procedural(config) -> None:
  """`check_scenes`, and the simulated annotators."""
  check_scenes(config)
  if config.sources[1] > 8:
    raise ValueError(f'sources={config.sources}: at most 8 sources a scene')
  for name in ('confusion', 'unknown'):
    if not 0 <= getattr(config, name) <= 0.5:
      raise ValueError(f'{name}={getattr(config, name)}: must be in [0, 0.5]')
