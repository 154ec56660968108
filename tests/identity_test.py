"""What a run is made from: fields that count, and how two differ."""

import copy
import fnmatch
import hashlib
import json

import pytest

from configs import base
from iusp_jax.data import datasets
from iusp_jax.experiment import identity
from iusp_jax.objectives import terms


def plain(**fields):
  config = base.get_config('smoke')
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return identity.plain(config)


def changed(nested, name, value):
  """A copy with another value in a field of dotted name."""
  nested = copy.deepcopy(nested)
  part = nested
  *path, last = name.split('.')
  for key in path:
    part = part[key]
  part[last] = value
  return nested


def of_student(config, seed=5):
  return identity.of_student(config, config['student'], seed)


# Beside the objective.
LATER = [
  ('student.training.accumulate_steps', 1, 2),
  ('student.training.compute_dtype', 'float32', 'bfloat16'),
  ('objective.sp_schedule', 'constant', 'ramp'),
]


@pytest.mark.parametrize(('name', 'neutral', 'other'), LATER)
def test_field_that_came_later_changes_no_fingerprint(name, neutral, other):
  """Where it does what was done before; any other value does."""
  new = of_student(plain(**{'objective.sp_weight': 1.0}))
  new = changed(new, name, neutral)
  old = copy.deepcopy(new)
  part = old
  *path, last = name.split('.')
  for key in path:
    part = part[key]
  del part[last]
  assert identity.fingerprint(new) == identity.fingerprint(old)
  assert identity.differences(old, new) == []
  later = changed(new, name, other)
  assert identity.fingerprint(later) != identity.fingerprint(old)
  assert identity.differences(old, later) == [
    f'{name}: not set there, {other} now'
  ]


def test_fingerprint_is_a_hash_of_the_fields():
  """By hand."""
  made = {'b': {'c': 2.0, 'accumulate_steps': 1}, 'a': 'x'}
  text = json.dumps(
    {'a': 'x', 'b.accumulate_steps': 1, 'b.c': 2.0}, sort_keys=True
  )
  expected = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert identity.fingerprint(made) == expected
  training = {'training': made['b']}
  text = json.dumps({'training.c': 2.0})
  expected = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert identity.fingerprint(training) == expected


def test_differences_name_both_values():
  one = {'a': {'b': 1, 'c': [1, 2]}, 'd': None, 'e': 'x'}
  two = {'a': {'b': 2, 'c': [1, 2]}, 'd': 'y', 'f': 3}
  assert identity.differences(one, two) == [
    'a.b: 1 there, 2 now',
    'd: None there, y now',
    'e: x there, not set now',
    'f: not set there, 3 now',
  ]


@pytest.mark.parametrize(
  'fields',
  [
    {'student.model.width': 5},
    {'student.training.epochs': 9.0},
    {'objective.sp_weight': 2.0},
    {'dataset.aggregation': 'mean'},
    {'teacher.training.epochs': 3.0},
    {'teacher.store': 'float16'},
  ],
)
def test_what_a_student_is_made_from_counts(fields):
  base_of = {'objective.sp_weight': 1.0}
  one, two = of_student(plain(**base_of)), of_student(plain(**base_of | fields))
  assert identity.fingerprint(one) != identity.fingerprint(two)


@pytest.mark.parametrize(
  'fields',
  [
    {'cache_dir': '/elsewhere'},
    {'dataset.data_dir': '/elsewhere'},
    {'dataset.builder.on_bad_recording': 'skip'},
    {'bootstrap': 7},
    {'teacher.store': 'float32'},  # What 'auto' does.
    {'objective.kd_temperature': 9.0},  # Of a term that is off.
    {'objective.iusp_centred_schedule': 'decay'},
  ],
)
def test_what_changes_no_student_does_not_count(fields):
  base_of = {'objective.sp_weight': 1.0, 'objective.iusp_weight': 2.0}
  one, two = of_student(plain(**base_of)), of_student(plain(**base_of | fields))
  assert identity.fingerprint(one) == identity.fingerprint(two)


def test_student_without_a_teacher_has_none_in_its_identity():
  found = of_student(plain(**{'teacher.training.epochs': 3.0}))
  assert found['teacher'] is None
  assert found['objective'] == {}
  assert found == of_student(plain())
  assert of_student(plain(), 6) != found


def test_fields_of_a_term_are_its_own():
  """One whose name begins with another's."""
  found = of_student(plain(**{'objective.iusp_weight': 2.0}))['objective']
  assert found == {
    'iusp_weight': 2.0,
    'iusp_ratio': 0.0,
    'iusp_schedule': 'constant',
  }
  kd = of_student(plain(**{'objective.kd_weight': 2.0}))['objective']
  assert kd == {
    'kd_weight': 2.0,
    'kd_ratio': 0.0,
    'kd_schedule': 'constant',
    'kd_temperature': terms.TERMS['kd'].settings['temperature'],
  }


def test_neutral_values_are_the_defaults():
  """So that a run of an earlier version goes on under the same command."""
  found = set()
  for data in datasets.BUILDERS:
    config = identity.plain({'dataset': base.dataset(data)}) | plain_recipes()
    for name, value in identity.flat(config).items():
      for pattern, neutral in identity.NEUTRAL.items():
        if fnmatch.fnmatchcase(name, pattern):
          found.add(pattern)
          assert value == neutral, name
  assert found == identity.NEUTRAL.keys()


def plain_recipes():
  config = plain()
  return {key: config[key] for key in ('student', 'teacher', 'objective')}
