"""Workdirs of finished runs with small models, without any training."""

import functools

import jax
import numpy as np
from fakes import NUM_SAMPLES, recipe
from layers_test import SMALL

from iusp_jax.models import tagger, trained

TAGS = ('engine', 'dog', 'siren', 'bird_song')


def write_workdir(
  folder, name='crnn', seed=0, num_samples=NUM_SAMPLES, tags=TAGS
):
  """A run's workdir whose model has numbers of a trained one's size."""
  made = recipe({'architecture': name, **SMALL[name]}, bands=16)
  model = tagger.build(made, len(tags))
  variables = jax.tree_util.tree_map_with_path(
    functools.partial(_fill, np.random.default_rng(seed)),
    model.shapes(num_samples),
  )
  metadata = {
    **made,
    'seed': seed,
    'dataset': {'name': 'fake/1'},
    'fingerprint': f'{seed:012x}',
    'tags': list(tags),
    'num_samples': num_samples,
  }
  both = dict.fromkeys(trained.CHECKPOINTS, variables)
  steps = dict.fromkeys(trained.CHECKPOINTS, 3)
  trained.save(folder, metadata, both, steps)
  return folder


def _fill(rng, path, leaf):
  name = jax.tree_util.keystr(path)
  value = rng.normal(size=leaf.shape).astype(np.float32)
  if 'input_norm' in name and 'mean' in name:
    return value - 2.5  # Of a log-mel.
  if 'var' in name:
    return np.abs(value) + 0.5
  if 'kernel' in name or 'recurrent' in name:
    return value / np.sqrt(np.prod(leaf.shape[:-1])).astype(np.float32)
  # Small, so that the output depends on the sound more than on these.
  return value * np.float32(0.3 if 'bias' in name or 'mean' in name else 1.0)


def sound(seconds=1.0, rate=16_000, seed=0):
  """A float32 wave that changes: tones that come and go, over noise."""
  rng = np.random.default_rng(seed)
  time_S = np.arange(round(seconds * rate)) / rate
  wave_S = 0.01 * rng.standard_normal(len(time_S))
  for hertz, period in ((300, 0.7), (900, 1.3), (2100, 3.1)):
    gate_S = np.sin(2 * np.pi * time_S / period) > 0
    wave_S += 0.2 * gate_S * np.sin(2 * np.pi * hertz * time_S)
  return wave_S.astype(np.float32)
