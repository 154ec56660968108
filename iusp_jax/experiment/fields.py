"""The legal range of every field of a config, in one table.

`check` holds a whole config against it before any work. What several fields
must agree in is in `check.py` and `grid.py`; a field of `model` is checked by
the module of its architecture.
"""

import dataclasses
import difflib
import fnmatch
import functools
from collections.abc import Mapping
from typing import Any

from iusp_jax import models
from iusp_jax.data import datasets, onnx_file, teacher_outputs
from iusp_jax.experiment import identity, pretrained
from iusp_jax.objectives import terms
from iusp_jax.training import finite
from tfds_dcase import annotations, clip_format
from tfds_dcase.urban_scenes import recordings

FITS = ('student', 'teacher')
STORES = ('auto', 'off', *teacher_outputs.PRECISIONS)


@dataclasses.dataclass(frozen=True)
class Number:
  """A finite number, or a whole one, in an interval.

  Attributes:
    low: the smallest one, or, where `above`, what it must be greater than.
    high: the largest one, or, where `below`, what it must be less than.
    unit: for the message.
    whole: whether 2.5 is wrong.
    above: whether `low` itself is wrong.
    below: whether `high` itself is wrong.
  """

  low: float
  high: float
  unit: str = ''
  whole: bool = False
  above: bool = False
  below: bool = False

  def accepts(self, value: Any) -> bool:
    """Whether a value is in the range; True and False are no numbers."""
    kinds = int if self.whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
      return False
    if not self.low <= value <= self.high:  # NaN neither.
      return False
    at_low, at_high = value == self.low, value == self.high
    return not ((self.above and at_low) or (self.below and at_high))

  def __str__(self) -> str:
    what = 'a whole number' if self.whole else 'a number'
    low = f'greater than {self.low:g}' if self.above else f'from {self.low:g}'
    high = f'less than {self.high:g}' if self.below else f'to {self.high:g}'
    joint = ' and ' if self.above or self.below else ' '
    if self.above and not self.below:
      high = f'at most {self.high:g}'
    return f'{what} {low}{joint}{high}' + (f' {self.unit}' if self.unit else '')


def whole(low: int, high: int, unit: str = '') -> Number:
  """A whole number from `low` to `high`."""
  return Number(low, high, unit, whole=True)


@dataclasses.dataclass(frozen=True)
class Choice:
  """One of some names, or of some whole numbers.

  Attributes:
    legal: all of them.
    unit: of numbers, for the message.
  """

  legal: tuple[str, ...] | tuple[int, ...]
  unit: str = ''

  def accepts(self, value: Any) -> bool:
    """Whether a value is one of them; True is no 1."""
    return isinstance(value, str | int) and any(
      value == each and type(value) is type(each) for each in self.legal
    )

  def __str__(self) -> str:
    names = ', '.join(str(each) or repr(each) for each in self.legal)
    return f'one of {names}' + (f' {self.unit}' if self.unit else '')


@dataclasses.dataclass(frozen=True)
class Flag:
  """True or False."""

  def accepts(self, value: Any) -> bool:
    """Whether a value is True or False; 0 and 1 are neither."""
    return isinstance(value, bool)

  def __str__(self) -> str:
    return 'True or False'


@dataclasses.dataclass(frozen=True)
class Text:
  """A text, such as a name or a path; no line breaks, no zero bytes.

  Attributes:
    what: it is.
    empty: what an empty one means; where this is empty, there must be one.
  """

  what: str
  empty: str = ''

  def accepts(self, value: Any) -> bool:
    """Whether a value is such a text."""
    if not isinstance(value, str) or any(c in value for c in '\0\n\r'):
      return False
    return bool(value.strip()) or (not value and bool(self.empty))

  def __str__(self) -> str:
    return self.what + (f", or '' {self.empty}" if self.empty else '')


@dataclasses.dataclass(frozen=True)
class Several:
  """A list of values of one range.

  Attributes:
    of: the range of each.
    least: how many there are at least.
    most: how many there are at most.
    ordered: whether the first must not be greater than the last.
  """

  of: 'Range'
  least: int = 0
  most: int = 1000
  ordered: bool = False

  def accepts(self, value: Any) -> bool:
    """Whether a value is such a list or tuple."""
    if not isinstance(value, list | tuple):
      return False
    if not self.least <= len(value) <= self.most:
      return False
    if not all(self.of.accepts(each) for each in value):
      return False
    return not (self.ordered and value[0] > value[-1])

  def __str__(self) -> str:
    count = f'at least {self.least}' if self.least else 'any number'
    if self.least == self.most:
      count = str(self.least)
    order = ', the first not greater than the second' if self.ordered else ''
    return f'a list of {count}, each {self.of}{order}'


@dataclasses.dataclass(frozen=True)
class Model:
  """A field of a model, which `models.build` checks with all the others."""

  def accepts(self, value: Any) -> bool:
    """Whether a value is a plain one."""
    return value is None or isinstance(value, str | bool | int | float)

  def __str__(self) -> str:
    return 'a text or a number'


Range = Number | Choice | Flag | Text | Several | Model

# Float32 ends at 3e38: products of what is below this stay finite.
_LARGE = 1e15
_SEED = whole(0, 2**31 - 1)
_EPOCHS = Number(0, 1e6, 'epochs', above=True)
_SCENES = whole(1, 10_000_000, 'scenes')
_FOLD = whole(0, 1_000_000)
_FRACTION = Number(0, 1)
_NAME = Text('a name')
_WEIGHT = Number(0, _LARGE)
_RATE = Choice(clip_format.SAMPLE_RATES, 'Hz')
_MAX_HERTZ = max(clip_format.SAMPLE_RATES) / 2


def _recipe(part: str) -> dict[str, Range]:
  """Of `config.student` or `config.teacher`."""
  fields: dict[str, Range] = {
    'model.architecture': Choice(tuple(models.ARCHITECTURES)),
    'model.*': Model(),
    'frontend.sample_rate': _RATE,
    'frontend.window_seconds': Number(0.001, 1.0, 's'),
    'frontend.hop_seconds': Number(0.001, 1.0, 's'),
    'frontend.num_mel_bands': whole(1, 1024, 'bands'),
    'frontend.min_hertz': Number(0, _MAX_HERTZ, 'Hz', below=True),
    'frontend.max_hertz': Number(0, _MAX_HERTZ, 'Hz', above=True),
    'frontend.log_offset': Number(1e-12, 1e3),
    'training.batch_size': whole(1, 2**20, 'clips'),
    'training.accumulate_steps': whole(1, 2**20, 'parts'),
    'training.compute_dtype': Choice(('float32', 'bfloat16')),
    'training.epochs': _EPOCHS,
    'training.learning_rate': Number(0, _LARGE, above=True),
    'training.warmup_epochs': Number(0, 1e6, 'epochs'),
    'training.weight_decay': Number(0, _LARGE),
    'training.clip_factor': Number(0, _LARGE, '(0: no clipping)'),
    'training.ema_decay': Number(0, 1, '(0: no average)', below=True),
    'training.eval_every_epochs': _EPOCHS,
    'training.log_every_steps': whole(1, 10**9, 'steps'),
    'augment.mixup_alpha': Number(0, 1000, '(0: no mixup)'),
    'augment.time_roll_seconds': Number(0, 10, 's'),
    'augment.num_time_masks': whole(0, 100, 'masks'),
    'augment.max_time_fraction': _FRACTION,
    'augment.num_mel_masks': whole(0, 100, 'masks'),
    'augment.max_mel_fraction': _FRACTION,
  }
  return {f'{part}.{name}': found for name, found in fields.items()}


def _objective() -> dict[str, Range]:
  """Of `config.objective`: what each of `TERMS` has."""
  schedule = Choice(tuple(terms.SCHEDULES))
  fields: dict[str, Range] = {f'{terms.TAGGING}_schedule': schedule}
  for name, term in terms.TERMS.items():
    fields[f'{name}_weight'] = fields[f'{name}_ratio'] = _WEIGHT
    fields[f'{name}_schedule'] = schedule
    fields |= {f'{name}_{key}': Number(1e-6, 1e6) for key in term.settings}
  return fields


# By pattern of a field's dotted name; the first that fits counts.
RANGES: dict[str, Range] = {
  'name': _NAME,
  'fit': Choice(FITS),
  'seed': _SEED,
  'cache_dir': Text('a folder'),
  'bootstrap': whole(0, 100_000, 'resamples (0: no intervals)'),
  'on_nan': Choice(finite.ON_NAN),
  'profile_steps': whole(0, 100_000, 'steps'),
  'compare_with': Text("another run's workdir", 'for none'),
  'train_baseline': Flag(),
  'keep_examples': whole(0, 1000, 'clips of a split (0: none)'),
  'dataset.name': Choice(tuple(datasets.BUILDERS)),
  'dataset.data_dir': Text('a folder'),
  'dataset.manual_dir': Text('the folder of your recordings', 'for none'),
  'dataset.level': Choice(datasets.LEVELS),
  'dataset.aggregation': Choice(tuple(annotations.RULES)),
  'dataset.builder.*_scenes': _SCENES,
  'dataset.builder.seed': _SEED,
  'dataset.builder.snr_db': Several(
    Number(-60, 60, 'dB'), least=2, most=2, ordered=True
  ),
  'dataset.builder.sources': Several(
    whole(1, 8, 'sources'), least=2, most=2, ordered=True
  ),
  'dataset.builder.detect_half_db': Number(-60, 60, 'dB'),
  'dataset.builder.confusion': Number(0, 0.5),
  'dataset.builder.validate_fold': _FOLD,
  'dataset.builder.test_fold': _FOLD,
  'dataset.builder.split_by': Choice(tuple(recordings.SPLIT_BY)),
  'dataset.builder.clip_seconds': Number(*clip_format.SECONDS, 's'),
  'dataset.builder.sample_rate': _RATE,
  'dataset.builder.tags': Several(_NAME),
  'dataset.builder.on_bad_recording': Choice(('stop', 'skip')),
  **_recipe('student'),
  **{f'objective.{name}': found for name, found in _objective().items()},
  **_recipe('teacher'),
  'teacher.checkpoint': Text("a run's workdir", 'to train a teacher'),
  'teacher.outputs': Text("a folder of a teacher's outputs", 'for none'),
  'teacher.tag_map': Text('a JSON file', 'where tags have the same names'),
  'teacher.onnx': Text('an ONNX file', 'for none'),
  'teacher.onnx_json': Text('a JSON file', 'without teacher.onnx'),
  'teacher.onnx_wave': Text('a name', 'for the only input'),
  'teacher.onnx_rate': whole(0, 1_000_000, 'Hz (0: that of the clips)'),
  **{
    f'teacher.onnx_{name}': Text('a name', 'to leave it out')
    for name in onnx_file.OUTPUTS
  },
  'teacher.pretrained': Choice(('', *pretrained.RELEASES)),
  'teacher.weights': Text('a file', 'to download it'),
  'teacher.head': Choice(pretrained.HEADS),
  'teacher.store': Choice(STORES),
  'teacher.train_scenes': whole(0, 10_000_000, "scenes (0: the student's)"),
  'teacher.seed': _SEED,
  'teacher.store_augmentations': whole(0, 1000, 'versions of a clip'),
  'teacher.ensemble_size': whole(1, 100, 'teachers'),
  'table.objectives': Several(_NAME, least=1),
  'table.leads': Several(_NAME),
  'table.students': Several(_NAME, least=1),
  'table.seeds': whole(1, 10_000, 'seeds'),
  'table.first_seed': _SEED,
  'table.rotations': Several(Several(_FOLD, least=2, most=2)),
  'table.models.*.architecture': Choice(tuple(models.ARCHITECTURES)),
  'table.models.*.*': Model(),
  # Of each objective of each student.
  **{
    f'table.weights.*.*.{name}': found for name, found in _objective().items()
  },
  'table.learning_rates.*': Number(0, _LARGE, above=True),
  'table.tuned': Several(_NAME),
  'table.tuned_file': Text('a JSON file', 'for none'),
  'table.tune_ratios': Several(Number(0, _LARGE, above=True), least=1),
  'table.tune_learning_rates': Several(Number(0, _LARGE, above=True), least=1),
  'table.tune_seeds': whole(1, 10_000, 'seeds'),
}


@functools.cache
def range_of(field: str) -> Range | None:
  """The range of a field, by its dotted name; None where it has none."""
  for pattern, found in RANGES.items():
    if _matches(field, pattern):
      return found
  return None


def check(config: Mapping[str, Any]) -> None:
  """Raises ValueError naming a field, its value and what is expected.

  Args:
    config: plain, of configs/base.py or configs/table.py.
  """
  there = identity.flat(config)
  for field, value in there.items():
    found = range_of(field)
    if found is None:
      _check_unknown(field, value)
    elif not found.accepts(value):
      hint = _hint(found, value)
      raise ValueError(f'config.{field} is {value!r}: expected {found}{hint}')
  for field in sorted(_required() - there.keys()):
    raise ValueError(f'config.{field} is missing: expected {RANGES[field]}')
  for part in ('student', 'teacher'):
    _check_model(f'config.{part}.model', config[part]['model'])
  for name, model in config.get('table', {}).get('models', {}).items():
    _check_model(f'config.table.models.{name}', model)


def _required() -> set[str]:
  """The fields that every config has."""
  return {
    name
    for name in RANGES
    if '*' not in name and not name.startswith(('dataset.builder.', 'table.'))
  }


def _hint(found: Range, value: Any) -> str:
  """The name that was probably meant, or nothing."""
  if not isinstance(found, Choice) or not isinstance(value, str):
    return ''
  near = difflib.get_close_matches(value, map(str, found.legal), 1)
  return f'; did you mean {near[0]!r}?' if near else ''


def _check_unknown(field: str, value: Any) -> None:
  """A field without a range: of a builder, which checks it, or a mistake."""
  parent, _, name = field.rpartition('.')
  if parent == 'dataset.builder':
    return
  place = f'config.{parent}' if parent else 'config'
  inner = [known for known in RANGES if known.startswith(f'{field}.')]
  if inner:
    raise ValueError(
      f'config.{field} is {value!r}: expected fields such as config.{inner[0]}'
    )
  split = [known.rpartition('.') for known in RANGES]
  legal = [last for first, _, last in split if _matches(parent, first)]
  near = difflib.get_close_matches(name, legal, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  raise ValueError(
    f'{place} has {name!r}, which is unknown: expected '
    f'{", ".join(legal) or "no such group of fields"}{hint}'
  )


def _matches(name: str, pattern: str) -> bool:
  """Whether a dotted name fits a pattern, part by part."""
  same_depth = name.count('.') == pattern.count('.')
  return same_depth and fnmatch.fnmatchcase(name, pattern)


def _check_model(place: str, fields: Any) -> None:
  """Raises ValueError naming the field of a model."""
  if not isinstance(fields, Mapping):
    raise ValueError(
      f'{place} is {fields!r}: expected the fields of a model, such as '
      "{'architecture': 'crnn'}"
    )
  try:
    models.build(fields, num_tags=1)
  except models.FieldError as error:
    raise ValueError(f'{place}.{error.field} {error.problem}') from error
  except ValueError as error:
    raise ValueError(f'{place}: {error}') from error
