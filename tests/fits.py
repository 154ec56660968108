"""Fits by the engine that are small enough for tests."""

import contextlib
import functools
import os
import sys
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from fakes import NUM_SAMPLES, dataset, recipe

from iusp_jax import models
from iusp_jax.data import sources, teacher_outputs
from iusp_jax.experiment import feeds
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import targets, terms
from iusp_jax.runtime import checkpoint
from iusp_jax.training import engine, evaluate, step
from iusp_jax.training.recipe import Recipe

# The terms that tests of the engine train with: one of every way to compute
# one. More would be compiled in all of them; all are in terms_step_test.py.
WEIGHTS = {
  'kd': 1.0,
  'sp': 30.0,
  'iusp': 300.0,
  'iusp_centred': 30.0,
  'attention_transfer': 1000.0,
}
AUGMENT = {
  'mixup_alpha': 0.5,
  'time_roll_seconds': 0.3,
  'num_time_masks': 1,
  'num_mel_masks': 1,
}
PLENTY = sys.maxsize
# Twelve steps, a validation after every sixth.
PLAN = {'epochs': 4.0, 'eval_every_epochs': 2.0}


class Small(nn.Module):
  """All that a step looks at, and as little as possible to compile.

  BatchNorm and dropout, two blocks with names, frames; no convolution.
  """

  num_tags: int
  axis_name: str | None = None
  width: int = 5
  batch_norm: bool = True
  dropout_rate: float = 0.2
  lowering: str = 'auto'

  num_blocks, num_inner = 2, 1

  @nn.compact
  def __call__(self, mel_BTF, train=False, keys_B=None):
    x_BTD = mel_BTF[:, ::8]
    if self.batch_norm:
      x_BTD = nn.BatchNorm(
        not train, momentum=0.9, axis_name=self.axis_name, name='norm'
      )(x_BTD)
    x_BTD = jnp.tanh(nn.Dense(self.width, name='block_1')(x_BTD))
    frames_BTD = jnp.tanh(nn.Dense(self.width, name='block_2')(x_BTD))
    pooled_BD = frames_BTD.mean(1)
    if train and keys_B is not None and self.dropout_rate:
      keep, shape = 1 - self.dropout_rate, pooled_BD.shape[1:]
      kept_BD = jax.vmap(lambda key: jax.random.bernoulli(key, keep, shape))(
        keys_B
      )
      pooled_BD = jnp.where(kept_BD, pooled_BD / keep, 0.0)
    dense = nn.Dense(self.num_tags, name='tags')
    return models.TaggerOutput(dense(pooled_BD), frames_BTD, dense(frames_BTD))


class Job(step.Job):
  """Trains `Small`, whose fields are `model` of the recipe."""

  def student(self, axis_name=None):
    return small_tagger(self.recipe, len(self.dataset.tags), axis_name)


@functools.cache
def fake(level='both'):
  return dataset(level)


def make_recipe(model=None, bands=16, augment=None, **training):
  """Three steps an epoch of 24 clips, a row a step."""
  made = recipe({}, bands=bands)
  made['model'] = model or {}
  made['training'] |= {'epochs': 4.0, 'log_every_steps': 1, **training}
  made['augment'] |= augment or {}
  return Recipe.from_config(made)


def small_tagger(made, num_tags, axis_name=None):
  module = Small(num_tags=num_tags, axis_name=axis_name, **made.model)
  return tagger.Tagger(module, made.frontend, num_tags)


@functools.cache
def frozen():
  """A teacher with other bands and another width than the student."""
  made = make_recipe({'width': 7}, bands=24)
  model = small_tagger(made, len(fake().tags))
  return model, model.initialise(3, NUM_SAMPLES)


def objective(weights=WEIGHTS, **fields):
  settings = {name: dict(terms.TERMS[name].settings) for name in weights}
  return terms.Objective(
    **{'weights': weights, 'schedules': {}, 'settings': settings, **fields}
  )


def make_job(weights=None, seed=5, data=None, teacher=None, **fields):
  """A job that learns from labels, or from stored outputs of `frozen`."""
  of = objective(weights or {})
  model = frozen()[0] if teacher else None
  made = make_recipe(**fields)
  shapes = {}
  if of.has_params:
    found = teacher_outputs.shapes(
      globals()['teacher'](), of.targets, NUM_SAMPLES, fitted(of.targets)
    )
    shapes = {name: x.shape[1:] for name, x in found.items()}
  return Job(f'seed {seed}', made, of, data or fake(), seed, model, shapes)


def augmented_job(**fields):
  """With all that draws random numbers, and the teacher in every step."""
  fields = {'augment': AUGMENT, 'ema_decay': 0.9, **PLAN, **fields}
  return make_job(WEIGHTS, teacher=True, **fields)


def teacher():
  """`frozen`, as it is kept."""
  return trained.Trained(*frozen(), {'fingerprint': 'abc'}, None)


@functools.cache
def fitted(names):
  """What fitted targets of `frozen` are made with."""
  split = fake().splits['train']
  return {
    name: teacher_outputs.solve_fit(teacher(), split, name)
    for name in targets.fitted(names)
  }


@functools.cache
def stored(names):
  """Outputs of `frozen` for the training clips, all in one piece."""
  model, variables = frozen()
  clips = sources.features(fake().splits['train'], None)
  x = teacher_outputs.apply(
    model,
    variables,
    tagger.log_mel(model, clips['wave']),
    clips['length'],
    NUM_SAMPLES,
    names,
  )
  found = targets.compute(names, x, lambda x: x, fitted(names))
  return {sources.TARGET + key: np.asarray(x) for key, x in found.items()}


_features = {}  # By the identity of a data set, which is kept with them.


def features(data):
  if id(data) not in _features:
    _features[id(data)] = data, feeds.Features(data)
  return _features[id(data)][1]


def make_feed(job):
  outputs = {} if job.teacher else stored(job.objective.targets)
  of_teacher = {}
  if job.teacher:
    fits = fitted(job.objective.targets)
    of_teacher = {'variables': frozen()[1], 'fits': fits}
  return features(job.dataset).feed(job, outputs, of_teacher)


def fit(jobs, workdir=None, feed=None, budget=PLENTY, stream=False, **named):
  """Members of a group; with `stream` its clips are read in every step."""
  host = 0 if stream else PLENTY
  with (
    mock.patch.object(feeds.memory, 'host_budget', return_value=host),
    mock.patch.object(feeds.memory, 'device_budget', return_value=budget),
  ):
    return engine.fit(jobs, feed or make_feed(jobs[0]), workdir, **named)


@contextlib.contextmanager
def num_devices(count):
  """Only some of the devices of this process are there."""
  some = jax.devices()[:count]
  assert len(some) == count
  evaluate.compile_map.cache_clear()
  with (
    mock.patch.object(jax, 'device_count', return_value=count),
    mock.patch.object(jax, 'local_device_count', return_value=count),
    mock.patch.object(jax, 'devices', return_value=some),
    mock.patch.object(jax, 'local_devices', return_value=some),
  ):
    yield
  evaluate.compile_map.cache_clear()


# What runs leave ------------------------------------------------------------


def bits(member):
  """All that two runs must have in common, to the last bit."""
  return (
    member.rows,
    member.best_step,
    member.best_score,
    member.diverged,
    checkpoint.checksums(member.best),
    checkpoint.checksums(member.last),
  )


def losses(member, names=None):
  """The rows of train steps, by name: `[steps]`."""
  rows = [row for row in member.rows if 'train/loss' in row]
  return {
    name.removeprefix('train/'): np.array([row[name] for row in rows])
    for name in rows[0]
    if name.startswith('train/')
  }


def assert_same_losses(one, two, rtol=1e-5, later=1e-4):
  """Of two members, tighter over the first ten steps.

  The length of the gradient is of differences of like numbers, and is clipped:
  it may differ ten times as much.
  """
  first, second = losses(one), losses(two)
  assert first.keys() == second.keys()
  for name in first:
    if name == 'clipped_share':  # A norm beside the limit falls to either side.
      continue
    loose = 10 if name == 'gradient_norm' else 1
    for part, tolerance in ((slice(10), rtol), (slice(10, None), later)):
      np.testing.assert_allclose(
        first[name][part],
        second[name][part],
        tolerance * loose,
        1e-8,
        err_msg=name,
      )


def plain(member):
  """A member's rows and last variables, for JSON."""
  last = jax.tree.map(lambda x: np.asarray(x).tolist(), member.last)
  return {'rows': member.rows, 'last': last}


def environ():
  """Of a process of its own; its devices are its own choice."""
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
