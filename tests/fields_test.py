"""The legal range of every field: no field without one, none with holes."""

import math
import pathlib
import runpy

import pytest
from ml_collections import ConfigDict

from configs import base
from configs import table as table_config
from iusp_jax.data import onnx_file
from iusp_jax.experiment import check, fields, grid, identity
from iusp_jax.objectives import terms

CONFIGS = sorted(
  path
  for path in (pathlib.Path(base.__file__).parent).glob('*.py')
  if path.stem not in ('__init__', 'base')
)


def all_configs():
  """By dotted name, a plain config that has the field."""
  found = {}
  for argument in base.DATASETS:
    for module in (base, table_config):
      config = identity.plain(module.get_config(argument))
      found |= dict.fromkeys(identity.flat(config), config)
  # No committed table has ratios, in place of weights.
  config = identity.plain(table_config.get_config(''))
  ratios = {name: {f'{name}_ratio': 1.0} for name in terms.TERMS}
  config['table']['weights'] = {'crnn_64': ratios}
  new = identity.flat(config).keys() - found.keys()
  return found | dict.fromkeys(new, config)


WITH_FIELD = all_configs()

# Where 0 switches something off, or is a seed, a fold or an edge.
ZERO_IS_LEGAL = {
  'seed', 'bootstrap', 'keep_examples', 'profile_steps', 'table.first_seed',
  'teacher.seed', 'teacher.store_augmentations',
  'teacher.train_scenes', 'teacher.onnx_rate',
  *(f'dataset.builder.{name}' for name in (
    'seed', 'detect_half_db', 'confusion', 'validate_fold', 'test_fold',
  )),
  *(f'{part}.{name}' for part in ('student', 'teacher') for name in (
    'frontend.min_hertz', 'training.warmup_epochs', 'training.weight_decay',
    'training.clip_factor', 'training.ema_decay', 'augment.mixup_alpha',
    'augment.time_roll_seconds', 'augment.num_time_masks',
    'augment.max_time_fraction', 'augment.num_mel_masks',
    'augment.max_mel_fraction',
  )),
  *(f'objective.{name}_weight' for name in terms.TERMS),
  *(f'objective.{name}_ratio' for name in terms.TERMS),
}  # fmt: skip
NEGATIVE_IS_LEGAL = {'dataset.builder.detect_half_db'}
NAMES = {
  'dataset.builder.tags',
  'table.leads',
  'table.tuned',
}  # Lists of these, empty by default.
# They have a default, and need none.
EMPTY_IS_LEGAL = {
  'compare_with',
  'table.tuned_file',
  'dataset.manual_dir',
  'teacher.checkpoint',
  'teacher.outputs',
  'teacher.onnx',
  *(f'teacher.onnx_{name}' for name in ('json', 'wave', *onnx_file.OUTPUTS)),
  'teacher.tag_map',
  'teacher.pretrained',
  'teacher.weights',
}


def zero_is_legal(field):
  of_table = field.startswith('table.weights.')
  weight = of_table and field.endswith(('_weight', '_ratio'))
  return field in ZERO_IS_LEGAL or weight


def with_value(field, value):
  """The config of a field, with another value in it."""
  *parents, name = field.split('.')
  result = level = dict(WITH_FIELD.get(field, WITH_FIELD['seed']))
  for parent in parents:
    level[parent] = dict(level[parent])
    level = level[parent]
  level[name] = value
  return result


def refused(field, value):
  """The error for a value; empty where it is accepted."""
  config = with_value(field, value)
  try:
    fields.check(config)
  except ValueError as error:
    message = str(error)
    assert f'config.{field}' in message, message
    assert repr(value) in message, message
    assert 'expected' in message, message
    return message
  return ''


def wrong_values(field):
  """Values that no field of this one's type may have."""
  own = identity.flat(WITH_FIELD[field])[field]
  never = [None, math.nan, [None], [math.nan, math.nan], 'a\nb', 'a\0b']
  if isinstance(own, bool):
    return [*never, 0, 1, -1, 2.5, math.inf, 'True', []]
  if isinstance(own, str):
    return [*never, True, 0, -1, 2.5, math.inf, 1e300, ['a'], ' ']
  if isinstance(own, list):
    if field in NAMES or (own and isinstance(own[0], str)):
      return [*never, True, 0, 'kd', [1], [True], [''], [['kd']]]
    wrong = [True, 'x', -1e300, 1e300, math.inf, -math.inf, 10**30]
    return [*never, *wrong, *([x] * max(2, len(own)) for x in wrong), ['1']]
  numbers = [math.inf, -math.inf, 1e300, -1e300, 10**30, -(10**30)]
  wrong = [*never, True, False, '1', 'x', [own], *numbers]
  if field not in NEGATIVE_IS_LEGAL:
    wrong += [-1, -0.5, -1e-9]
  if not zero_is_legal(field):
    wrong += [0, 0.0]
  if isinstance(own, int):
    wrong += [own + 0.5]
  return wrong


@pytest.mark.parametrize('field', sorted(WITH_FIELD))
def test_wrong_values_of_every_field_are_refused(field):
  """A new field fails here until it has a range in `fields.RANGES`."""
  assert fields.range_of(field) is not None, f'{field} has no range'
  accepted = [x for x in wrong_values(field) if not refused(field, x)]
  assert not accepted, f'{field} accepts {accepted}'


@pytest.mark.parametrize('field', sorted(WITH_FIELD))
def test_what_a_field_is_for_is_accepted(field):
  own = identity.flat(WITH_FIELD[field])[field]
  assert not refused(field, own)
  if zero_is_legal(field):
    assert not refused(field, 0)
  if isinstance(own, str) and not own:
    assert field in EMPTY_IS_LEGAL
  if field in EMPTY_IS_LEGAL:
    assert not refused(field, '')
  elif isinstance(own, str):
    assert refused(field, '')


def test_no_range_is_for_a_field_that_is_gone():
  for pattern in fields.RANGES:
    # An objective of a table may have any field of `config.objective`.
    pattern = pattern.replace('table.weights.*.*', 'objective')
    assert any(fields._matches(name, pattern) for name in WITH_FIELD), pattern


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs_are_legal(path):
  made = runpy.run_path(str(path))['get_config']
  for argument in ('', 'demo', 'smoke', *base.DATASETS):
    config = identity.plain(made(argument))
    fields.check(config)
    check.check(config)
    if 'table' in config:
      grid.check_grid(config)


@pytest.mark.parametrize(
  ('field', 'value', 'message'),
  [
    (
      'student.training.clip_factor',
      -1.0,
      'config.student.training.clip_factor is -1.0: expected a number from 0',
    ),
    (
      'student.training.epochs',
      math.inf,
      'config.student.training.epochs is inf: expected a number greater than 0 '
      'and at most 1e+06 epochs',
    ),
    ('teacher.training.ema_decay', 1.0, 'from 0 and less than 1'),
    ('seed', True, 'config.seed is True: expected a whole number from 0'),
    ('on_nan', 'rollback', "did you mean 'roll_back'?"),
    (
      'dataset.builder.sources',
      [4, 1],
      'expected a list of 2, each a whole number from 1 to 8 sources, the '
      'first not greater than the second',
    ),
    (
      'student.model.width',
      0,
      'config.student.model.width is 0: expected a number from 1 to 4096',
    ),
    (
      'student.model.width',
      'wide',
      "config.student.model.width is 'wide': expected a value like 32",
    ),
    (
      'table.models.crnn_32.hidden',
      -1,
      'config.table.models.crnn_32.hidden is -1: expected a number from 1',
    ),
    (
      'teacher.model.stem_stride',
      3,
      'config.teacher.model.stem_stride is 3: expected one of',
    ),
    ('teacher', 5, 'config.teacher is 5: expected fields such as'),
    ('student.training', None, 'student.training is None: expected fields'),
  ],
)
def test_messages(field, value, message):
  with pytest.raises(ValueError, match='config') as error:
    fields.check(with_value(field, value))
  assert message in str(error.value)


def test_unknown_and_missing_fields_are_named():
  config = identity.plain(base.get_config('clips'))
  config['student']['training']['momentum'] = 0.9
  with pytest.raises(ValueError, match=r"student.training has 'momentum'"):
    fields.check(config)
  del config['student']['training']['momentum']
  del config['student']['training']['epochs']
  with pytest.raises(ValueError, match=r'student.training.epochs is missing'):
    fields.check(config)


def test_values_that_json_does_not_have_are_named():
  config = ConfigDict({'seed': {1, 2}})
  with pytest.raises(ValueError, match=r'value \{1, 2\} of type set'):
    identity.plain(config)


def changed(**values):
  config = identity.plain(base.get_config('smoke'))
  for field, value in values.items():
    part, group, name = field.split('__')
    config[part][group][name] = value
  return config


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    (
      {'student__frontend__num_mel_bands': 200},
      'config.student.frontend.num_mel_bands is 200: expected fewer or a '
      'longer window_seconds',
    ),
    (
      {'teacher__frontend__max_hertz': 100.0},
      'config.teacher.frontend.max_hertz is 100.0: expected more than '
      'min_hertz, 125.0',
    ),
    (
      {'student__frontend__num_mel_bands': 2},
      'config.student.frontend.num_mel_bands is 2: expected more',
    ),
    (
      {'student__training__accumulate_steps': 3},
      'config.student.training.',
    ),
    (
      {'student__training__batch_size': 50},
      'config.student.training.batch_size is 50: expected at most 48',
    ),
  ],
)
def test_fields_that_do_not_agree_are_named(values, message):
  with pytest.raises(ValueError, match='config') as error:
    check.check(changed(**values))
  assert message in str(error.value)
