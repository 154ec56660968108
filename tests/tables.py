"""A table of a test's size: its config, its shared world, its cells."""

import pathlib

from fakes import dataset, recipe, teacher_recipe

from configs import base
from configs import table as table_config
from iusp_jax.data import store
from iusp_jax.experiment import grid, teacher
from iusp_jax.experiment.world import World
from iusp_jax.models import tagger


def tiny_config():
  config = table_config.get_config('smoke')
  made = recipe(epochs=3.0, log_every_steps=1)
  with config.unlocked():
    config.student.update(made)
    config.table.models = {'tiny': made['model']}
    config.table.students = ('tiny',)
    config.table.weights = {'tiny': base.WEIGHTS}
    config.bootstrap = 10
  return config


def tiny_world(folder: pathlib.Path) -> World:
  """A rotation over the fake data; its teacher is not trained."""
  made = World.__new__(World)
  made.config, made.rotation = tiny_config(), None
  made.dataset = dataset('coarse')
  model = tagger.build(teacher_recipe(), len(made.dataset.tags))
  variables = model.initialise(3, 16_000)
  made.guide = teacher.Trained(model, variables, 'f', folder)
  made.outputs, made._features = {}, {}
  for name in ('train', 'test'):
    split = made.dataset.splits[name]
    store.build(folder / name, made.guide, split, 'float32')
    made.outputs[name] = store.open_store(folder / name)
  return made


def cells_of(world, objective):
  groups = grid.groups(world.config)
  return next(g for g in groups if g[0].objective == objective)
