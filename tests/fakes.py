"""A small data set in memory and recipes for tiny models."""

import functools

import numpy as np

from configs import base
from iusp_jax.data import datasets
from iusp_jax.experiment import identity
from tfds_dcase import taxonomy

NUM_SAMPLES = 16_000

TINY = {
  'architecture': 'cnn',
  'width': 2,
  'num_blocks': 1,
  'time_reduction': 2,
  'stem_stride': 2,
}


def example(index, rng, seconds_missing=0.0):
  """One clip: a tone per coarse tag, over noise."""
  fine = (rng.random(len(taxonomy.FINE)) < 0.15).astype(np.int8)
  unknown = (rng.random(len(taxonomy.UNKNOWN)) < 0.1).astype(np.int8)
  columns = np.zeros(len(taxonomy.FINE_COLUMNS), np.int8)
  columns[~taxonomy.IS_UNKNOWN], columns[taxonomy.IS_UNKNOWN] = fine, unknown
  coarse = np.zeros(len(taxonomy.COARSE), np.int8)
  np.maximum.at(coarse, taxonomy.COARSE_OF_COLUMN, columns)
  time = np.arange(NUM_SAMPLES) / 16_000
  wave = 300 * rng.standard_normal(NUM_SAMPLES)
  for tag in np.flatnonzero(coarse):
    wave += 3000 * np.sin(2 * np.pi * 300 * (tag + 1) * time) * (time > 0.3)
  length = NUM_SAMPLES - int(16_000 * seconds_missing)
  wave[length:] = 0
  return {
    'audio': np.rint(wave).astype(np.int16),
    'num_samples': np.int32(length),
    'clip_id': f'{index:02d}_{index:06d}.wav'.encode(),
    'coarse': coarse,
    'fine': fine,
    'fine_unknown': unknown,
    'votes': np.stack([columns] * 3),
  }


def dataset(level='both', sizes=(24, 11, 13), seed=0):
  """Three splits of one-second clips, some of them padded."""
  rng = np.random.default_rng(seed)
  splits = {}
  for name, size in zip(('train', 'validate', 'test'), sizes, strict=True):
    examples = [example(k, rng, 0.4 * (k % 5 == 0)) for k in range(size)]
    splits[name] = datasets.Split(name, examples, level, 'any')
  return datasets.Dataset(
    name=f'fake/{seed}',
    level=level,
    coarse=taxonomy.COARSE,
    fine=taxonomy.FINE,
    splits=splits,
  )


@functools.cache
def fake():
  """The data set of those who change nothing in it."""
  return dataset('coarse')


def recipe(model=None, bands=16, **training):
  """A recipe of configs/base.py for a model small enough for a test."""
  model = model or {'architecture': 'crnn', 'width': 4, 'hidden': 6}
  made = identity.plain(base.recipe(model, num_mel_bands=bands))
  made['training'] |= {'batch_size': 8, 'epochs': 4.0, **training}
  return made


def teacher_recipe(**training):
  """A convolutional teacher for `recipe`."""
  model = {'architecture': 'cnn', 'width': 4, 'num_blocks': 3}
  return recipe(model, bands=24, **training)
