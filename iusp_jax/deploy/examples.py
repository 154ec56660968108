"""The clips on which exported artefacts are compared with the model.

The data set that the model was trained on, where it is prepared on this
machine; else clips of it that were kept with the checkpoint; else clips of
noise, which show whether an artefact computes the same as the model, but not
how well it tags.
"""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.data import datasets
from iusp_jax.deploy import functions, kept_clips, tagging
from iusp_jax.runtime import files
from iusp_jax.training import evaluate
from tfds_dcase import audio

# Training clips that show the ranges of activations: a minute for an LSTM that
# is written out, whose operations are looked at one by one.
RANGES = 64
VALIDATE = 1000  # Clips, at most, on which an int8 version is chosen.
TEST = 300  # Clips, at most, on which errors and scores are taken.
_NOISE = 128


@dataclasses.dataclass(frozen=True)
class Clips:
  """Some clips of a split.

  Attributes:
    wave_NS: int16; empty where only the log-mel is wanted.
    mel_NTF: their log-mel, float32.
  """

  wave_NS: np.ndarray
  mel_NTF: np.ndarray


@dataclasses.dataclass(frozen=True)
class Examples:
  """Clips to compare on.

  Attributes:
    splits: 'train', 'validate' and 'test' of the data set, or 'noise'.
    tested: name of the one that errors are taken on.
    dataset: what they are of; None for noise.
    reason: why the data set is not there; '' where it is. With `dataset` these
      are clips that were kept with the checkpoint.
  """

  splits: Mapping[str, Clips]
  tested: str
  dataset: datasets.Dataset | None
  reason: str = ''

  def score(
    self, split: str, scores_NC: np.ndarray, bootstrap: int = 0
  ) -> dict[str, Any]:
    """Micro-AUPRC of the first clips of a split, with its interval."""
    assert self.dataset is not None
    truth = {
      name: values[: len(scores_NC)]
      for name, values in datasets.truth(self.dataset.splits[split]).items()
    }
    by_level = evaluate.score_split(
      self.dataset, truth, scores_NC, bootstrap=bootstrap
    )
    own = by_level['fine' if self.dataset.level == 'fine' else 'coarse']
    return {
      'micro_auprc': own['micro_auprc'],
      'interval': own.get('micro_auprc_ci'),
    }


def find(loaded: tagging.LoadedTagger, own: functions.Functions) -> Examples:
  """The clips for a tagger.

  Args:
    loaded: the tagger.
    own: its functions.
  """
  dataset, reason = _dataset(loaded)
  if dataset is None:
    dataset, reason = _kept(loaded, reason)
  if dataset is None:
    wave_NS = audio.to_int16(_noise(_NOISE, own))
    noise = Clips(wave_NS, _log_mel(own, wave_NS))
    return Examples({'noise': noise}, 'noise', None, reason)
  tested = _tested(dataset)
  splits = {
    name: _clips(own, dataset.splits[name], count, name == tested)
    for name, count in _counts(dataset).items()
  }
  return Examples(splits, tested, dataset, reason)


def keep(workdir: pathlib.Path, dataset: datasets.Dataset, count: int) -> None:
  """Keeps clips with a checkpoint, for where the data set is not.

  Args:
    workdir: of the run.
    dataset: that its model was trained on.
    count: `config.keep_examples`: of each split, and no more than are looked
      at; 0 for none.
  """
  if count:
    counts = {name: min(count, n) for name, n in _counts(dataset).items()}
    kept_clips.save(workdir, dataset, counts)


def _tested(dataset: datasets.Dataset) -> str:
  """The split that errors are taken on."""
  return 'test' if 'test' in dataset.splits else 'validate'


def _counts(dataset: datasets.Dataset) -> dict[str, int]:
  """How many clips of each split are looked at, at most."""
  return {'train': RANGES, 'validate': VALIDATE, _tested(dataset): TEST}


def _kept(loaded, reason: str) -> tuple[datasets.Dataset | None, str]:
  """Clips that were kept with the checkpoint, and why they are needed.

  None where there are none, and why.
  """
  found = loaded.trained
  try:
    dataset = kept_clips.load(found.workdir, found.metadata['dataset'])
  except ValueError as error:
    return None, f'{reason}; {error}'
  if dataset is not None and (without := datasets.without_labels(dataset)):
    what = ' and '.join(without)
    return None, f'{reason}; clips kept of {what} have no labels to score by'
  return dataset, reason


def _dataset(loaded) -> tuple[datasets.Dataset | None, str]:
  """The prepared data set of a run, or why there is none."""
  found = loaded.trained
  path = found.workdir / 'config.json'
  if not path.exists():
    return None, f'there is no {path}, which names the data set'
  settings = dict(files.read_json(path)['dataset'])
  for name in ('data_dir', 'manual_dir'):
    if settings[name]:
      settings[name] = str(files.resolve(settings[name]))
  try:
    builder = datasets.make_builder(settings)
    if not builder.data_path.exists():
      raise ValueError(f'{builder.data_path} is not there')
    dataset = datasets.load(settings)
  except (ValueError, OSError) as error:
    return None, f'the data set is not prepared here ({error})'
  trained_on = found.metadata['dataset']
  if dataset.fingerprint() != trained_on:
    return None, (
      f'{dataset.name} is not what the model was trained on: found '
      f'{dataset.fingerprint()}, expected {trained_on}'
    )
  if without := datasets.without_labels(dataset):
    what = ' and '.join(without)
    return None, f'{dataset.name} has no labels in {what} to score by'
  return dataset, ''


def _clips(own, split, count: int, with_waves: bool) -> Clips:
  """The first clips of a split."""
  waves, mels, left = [], [], min(count, len(split))
  for batch in datasets.eval_batches(split, min(32, len(split))):
    wave_BS = batch['wave'][:left]
    mels.append(_log_mel(own, wave_BS))
    if with_waves:
      waves.append(wave_BS)
    left -= len(wave_BS)
    if not left:
      break
  empty = np.zeros((0, own.num_samples), np.int16)
  return Clips(np.concatenate([empty, *waves]), np.concatenate(mels))


def _log_mel(own, wave_NS) -> np.ndarray:
  run = functions.compile_log_mel(own.model)
  return np.concatenate([np.asarray(run(w[None])) for w in wave_NS])


def _noise(count: int, own: functions.Functions) -> np.ndarray:
  """Clips with noise of all levels, tones that come and go, and silence."""
  rng = np.random.default_rng(0)
  time_S = np.arange(own.num_samples) / own.model.frontend.sample_rate
  clips = []
  for k in range(count):
    wave_S = 10 ** rng.uniform(-4, -0.5) * rng.standard_normal(len(time_S))
    hertz = rng.uniform(100, own.model.frontend.max_hertz)
    gate_S = np.sin(time_S * rng.uniform(1, 20)) > 0
    tone_S = np.sin(2 * np.pi * hertz * time_S)
    wave_S += 10 ** rng.uniform(-3, -0.5) * gate_S * tone_S
    start = rng.integers(len(time_S)) if k % 4 == 0 else len(time_S)
    wave_S[start:] = 0  # A short recording, padded.
    clips.append(wave_S)
  return np.clip(np.stack(clips), -1, 1).astype(np.float32)
