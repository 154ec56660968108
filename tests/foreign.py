"""Folders of outputs as a teacher from elsewhere would leave them."""

import json
import pathlib

import numpy as np

from iusp_jax.data import datasets, foreign_outputs, sources
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import files

METADATA = {
  'format': 1,
  'name': 'A large tagger',
  'source': 'https://example.org/tagger',
  'licence': 'Apache-2.0',
}


def outputs_of(found: trained.Trained, split: datasets.Split) -> dict:
  """What a trained model gives for the clips of a split, by array."""
  waves_NS = sources.features(split, None)['wave']
  parts = [
    tagger.apply(found.model, found.variables, tagger.log_mel(found.model, w))
    for w in np.array_split(waves_NS, -(-len(waves_NS) // 16))
  ]
  return {
    'logits': np.concatenate([x.logits_BC for x in parts]),
    'frames': np.concatenate([x.frames_BTD for x in parts]),
    'frame_logits': np.concatenate([x.frame_logits_BTC for x in parts]),
  }


def timing_of(found: trained.Trained) -> dict[str, float]:
  """The fields of `teacher.json` about the frames of a model."""
  timing = tagger.frame_timing(found.model)
  return {
    'frame_hop_seconds': timing.hop_seconds,
    'frame_span_seconds': timing.span_seconds,
    'first_frame_seconds': timing.first_seconds,
  }


def write_split(folder: pathlib.Path, clip_ids, arrays) -> None:
  """One split, its clips in an order of their own, with one clip more."""
  folder.mkdir(parents=True, exist_ok=True)
  order = np.random.default_rng(len(clip_ids)).permutation(len(clip_ids))
  ids = [*(clip_ids[k] for k in order), 'of_no_split.wav']
  (folder / foreign_outputs.CLIPS).write_text('\n'.join(ids) + '\n')
  for name, values in arrays.items():
    values = np.asarray(values)[[*order, 0]]
    np.save(folder / f'{name}.npy', values)


def write(
  folder: pathlib.Path,
  data: datasets.Dataset,
  found: trained.Trained,
  splits=foreign_outputs.SPLITS,
  names=('logits', 'frames'),
  **metadata,
) -> pathlib.Path:
  """A folder with the outputs of a model for the clips of a data set."""
  for split in splits:
    arrays = outputs_of(found, data.splits[split])
    ids = datasets.truth(data.splits[split])['clip_id']
    write_split(folder / split, ids, {name: arrays[name] for name in names})
  of = METADATA | {'tags': list(data.tags)} | timing_of(found) | metadata
  files.write_atomically(folder / foreign_outputs.METADATA, json.dumps(of))
  return folder
