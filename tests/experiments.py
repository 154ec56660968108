"""Experiments of a test's size: fake data, a teacher that is not trained."""

import functools
import json
import pathlib
from typing import Any

import jax
import numpy as np
from fakes import TINY, dataset, recipe, teacher_recipe
from fits import WEIGHTS

from configs import base, iusp
from configs import table as table_config
from iusp_jax.data import preparation
from iusp_jax.experiment import grid, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files

load_dataset = functools.cache(dataset)  # By level; nothing changes them.


def use_fakes(patch) -> None:
  """Has every config mean the fake data set of its level."""
  patch.setattr(
    preparation, 'load', lambda settings: load_dataset(settings['level'])
  )


def save_teacher(folder: pathlib.Path, level='coarse', made=None, **changes):
  """A workdir with a model that is not trained, for the fake data set."""
  data, made = made or load_dataset(level), teacher_recipe() | changes
  of = made | {'seed': 0, 'dataset': data.fingerprint()}
  model = tagger.build(made, len(data.tags))
  variables = jax.tree.map(np.asarray, model.initialise(3, data.num_samples))
  trained.save(
    folder,
    teacher.model_metadata(of, data),
    {'best': variables, 'last': variables},
    {'best': 3, 'last': 3},
  )
  text = json.dumps({'step': 3, 'train/loss': 1.0}) + '\n'
  files.write_atomically(folder / 'metrics.jsonl', text)
  return folder


def changed(config: Any, **fields: Any) -> Any:
  """A config with other values in fields of dotted names."""
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


def _tiny(config, folder, fields):
  """Seconds from end to end; `folder` has the teacher and the cache."""
  config = changed(config, bootstrap=10, cache_dir=f'{folder}/cache')
  with config.unlocked():
    del config.student['model']
    config.student.update(recipe(TINY, bands=8, epochs=2.0, log_every_steps=1))
  config.teacher.checkpoint = str(folder / 'teacher')
  return changed(config, **fields)


def _leaves(value: Any, path: str = '') -> dict[str, Any]:
  """What nested dicts and lists hold, by path."""
  if isinstance(value, dict):
    value = value.items()
  elif isinstance(value, list):
    value = enumerate(value)
  else:
    return {path: value}
  found = {}
  for key, part in value:
    found |= _leaves(part, f'{path}/{key}')
  return found


def assert_same_scores(one, two, tolerance=1e-3) -> None:
  """Number by number; None, where there is no score, stays None.

  Args:
    one: scores of a record of `results.json`, nested.
    two: such scores.
    tolerance: absolute; less than a clip can change.
  """
  found, expected = _leaves(one), _leaves(two)
  assert found.keys() == expected.keys()
  assert len(found) > 50
  for name, value in expected.items():
    if isinstance(value, float):
      np.testing.assert_allclose(found[name], value, 0, tolerance, err_msg=name)
    else:
      assert found[name] == value, name


def run_config(folder: pathlib.Path, module: Any = iusp, **fields: Any) -> Any:
  """A run with the objective of a module of configs/.

  That of `configs/iusp.py` is the one in `one_cell_config`.
  """
  if module is iusp:
    weights = {'objective.iusp_weight': 300.0, 'objective.iusp_ratio': 0.0}
    fields = {**weights, **fields}
  return _tiny(module.get_config('smoke'), folder, fields)


def _weights() -> dict[str, dict[str, Any]]:
  """By objective, with weights in place of ratios: nothing is measured."""
  found = {}
  for name in base.OBJECTIVES:
    fields = base.fields_of(name, '')
    kept = {k: v for k, v in fields.items() if not grid.is_weight(k)}
    of_name = base.OBJECTIVES[name]
    found[name] = {f'{t}_weight': WEIGHTS.get(t, 1.0) for t in of_name} | kept
  return found


def table_config_of(folder: pathlib.Path, **fields: Any) -> Any:
  """A table of two seeds of one student."""
  config = table_config.get_config('smoke')
  with config.unlocked():
    config.table.models = {'tiny': recipe(TINY)['model']}
    config.table.students = ('tiny',)
    config.table.weights = {'tiny': _weights()}
    config.table.learning_rates = {'tiny': base.LEARNING_RATE}
  return _tiny(config, folder, fields)


def one_cell_config(folder: pathlib.Path, **fields: Any) -> Any:
  """A table of one cell: a student with IUSP, and seed 100."""
  fields = {'table.objectives': ('iusp',), 'table.seeds': 1, **fields}
  return table_config_of(folder, **fields)


def make_setup(config: Any) -> Setup:
  """What the cells of a table share."""
  made = Setup(grid.config_of(config, None))
  made.get_teacher(required=True)
  return made


def cells_of(config: Any, objective: str) -> list[grid.Cell]:
  """The group of an objective."""
  groups = grid.groups(config)
  return next(group for group in groups if group[0].objective == objective)
