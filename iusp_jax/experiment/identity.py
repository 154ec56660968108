"""What a run is made from, and whether two runs are made from the same.

An identity is plain JSON: recipe, objective, seed, data, teacher. Every run
keeps its own in `results.json`, so that a workdir can take more runs later and
finished ones are used again where their identities are equal.
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Fields that came later, by pattern of their dotted names, and the value that
# does what was done before: with it, a field changes no identity.
NEUTRAL = {
  'objective.*_schedule': 'constant',
  'objective.*_ratio': 0.0,
  'teacher.ensemble_size': 1,
  'teacher.store_augmentations': 0,
  '*training.accumulate_steps': 1,
  '*training.compute_dtype': 'float32',
  'dataset.builder.snr_db': [-6.0, 12.0],
  'dataset.builder.sources': [1, 4],
  'dataset.builder.split_by': 'auto',
  'dataset.builder.detect_half_db': -2.0,
  'dataset.builder.confusion': 0.1,
  'dataset.builder.clip_seconds': 10.0,
  'dataset.builder.sample_rate': 16_000,
  'dataset.builder.tags': [],
}


def plain(config: Any) -> Any:
  """A config as nested dicts and lists, as JSON would give it back.

  Raises:
    ValueError: for a value that JSON does not have, such as a set.
  """

  def inner(part):
    if hasattr(part, 'to_dict'):
      return part.to_dict()
    raise ValueError(
      f'the config has a value {part!r} of type {type(part).__name__}: '
      'expected numbers, texts, True or False, lists and groups of these'
    )

  return json.loads(json.dumps(config, default=inner))


def flat(nested: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one, with dotted names."""
  result = {}
  for key, value in nested.items():
    if isinstance(value, Mapping):
      result |= flat(value, f'{prefix}{key}.')
    else:
      result[f'{prefix}{key}'] = value
  return result


def came_later(name: str) -> bool:
  """Whether a field, by its dotted name, is one of `NEUTRAL`."""
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in NEUTRAL)


def fields(identity: Mapping[str, Any]) -> dict[str, Any]:
  """The fields of an identity that count, by their dotted names."""
  return {
    name: value
    for name, value in flat(plain(identity)).items()
    if not any(
      fnmatch.fnmatchcase(name, pattern) and value == neutral
      for pattern, neutral in NEUTRAL.items()
    )
  }


def fingerprint(identity: Mapping[str, Any]) -> str:
  """12 hexadecimal digits that name an identity."""
  text = json.dumps(fields(identity), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """The fields in which two identities differ, with both values."""
  old, new = fields(there), fields(now)

  def value(found, name):
    return found.get(name, 'not set')

  return [
    f'{name}: {value(old, name)} there, {value(new, name)} now'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  ]


def of_data(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a config says of the data; where they are does not count."""
  settings = {
    key: config['dataset'][key] for key in ('name', 'level', 'aggregation')
  }
  builder = {
    key: value
    for key, value in config['dataset']['builder'].items()
    if key != 'on_bad_recording'
  }
  return settings | {'builder': builder}


def of_teacher(config: Mapping[str, Any]) -> dict[str, Any]:
  """What a config says of the teacher that a student is distilled from."""
  own = config['teacher']
  stored = {'store': 'float32' if own['store'] == 'auto' else own['store']}
  # Configs of older runs lack the fields of what they did not have.
  stored['store_augmentations'] = own.get('store_augmentations', 0)
  if own['checkpoint']:
    # Of a config that `teacher.identified` has not seen: as it is spelled.
    model = own.get('checkpoint_model', own['checkpoint'])
    return stored | {'checkpoint': model}
  if outputs := own.get('outputs'):
    return stored | {'outputs': own.get('outputs_content', outputs)}
  if onnx := own.get('onnx'):
    return stored | {'onnx': own.get('onnx_content', onnx)}
  if own.get('pretrained'):
    weights = own.get('weights_sha256', own['weights'])
    named = {k: own[k] for k in ('pretrained', 'head', 'train_scenes')}
    if tag_map := own.get('tag_map'):
      named['tag_map'] = own.get('tag_map_content', tag_map)
    return stored | named | {'weights': weights}
  recipe = {k: own[k] for k in ('model', 'frontend', 'training', 'augment')}
  return (
    stored
    | recipe
    | {
      'seed': own['seed'],
      'train_scenes': own['train_scenes'],
      'ensemble_size': own.get('ensemble_size', 1),
    }
  )


def of_student(
  config: Mapping[str, Any], recipe: Mapping[str, Any], seed: int
) -> dict[str, Any]:
  """What a config says of one student: all that can be known beforehand.

  Args:
    config: plain; `objective` with the weights of this student.
    recipe: of the student, plain.
    seed: of the student.
  """
  fields_of = config['objective']
  active = dict.fromkeys(
    key.rpartition('_')[0]
    for key, value in fields_of.items()
    if key.endswith(('_weight', '_ratio')) and value
  )
  objective = {
    key: value
    for key, value in fields_of.items()
    if any(_belongs(key, name, fields_of) for name in active)
  }
  labels = 'tagging_schedule'  # Of no term; records of earlier runs lack it.
  if (schedule := fields_of.get(labels, 'constant')) != 'constant':
    objective[labels] = schedule
  return {
    'student': dict(recipe),
    'objective': objective,
    'seed': seed,
    'dataset': of_data(config),
    'teacher': of_teacher(config) if active else None,
  }


def _belongs(key: str, term: str, names: Mapping[str, Any]) -> bool:
  """Whether a field of `objective` is of a term and of no longer-named one."""
  owners = [
    name.removesuffix('_weight')
    for name in names
    if name.endswith('_weight')
    and key.startswith(name.removesuffix('_weight') + '_')
  ]
  return bool(owners) and max(owners, key=len) == term
