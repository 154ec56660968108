"""Scoring a split with a tagger: every clip once, on every device."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.models import tagger
from iusp_jax.runtime import devices
from iusp_jax.scoring import metrics
from tfds_dcase import taxonomy


@functools.cache
def compile_predict(model: tagger.Tagger) -> Callable:
  """A pmapped `predict(variables, batch)`: logits of the global batch."""

  def predict(variables, batch):
    mel_BTF = tagger.log_mel(model, batch['wave'])
    output = tagger.apply(model, variables, mel_BTF)
    return devices.gather(output.logits_BC)

  return devices.pmap(predict)


def predict_split(
  predict: Callable, variables: Any, split: datasets.Split, batch_size: int
) -> np.ndarray:
  """Probabilities `[N, C]` of a split's clips, in the split's order.

  Args:
    predict: from `compile_predict`.
    variables: of the tagger, replicated.
    split: to read.
    batch_size: clips in the global batch; does not change the result.
  """
  batches = datasets.eval_batches(
    split,
    batch_size,
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  logits = [
    np.asarray(
      predict(
        variables, devices.shard({'wave': batch['wave']})
      ).addressable_data(0)
    )[0]
    for batch in batches
  ]
  return probabilities(np.concatenate(logits)[: len(split)])


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
  """Sigmoid, in float64: scores are compared with thresholds."""
  return 1.0 / (1.0 + np.exp(-logits_NC.astype(np.float64)))


def by_level(
  dataset: datasets.Dataset, scores_NC: np.ndarray
) -> dict[str, np.ndarray]:
  """The scores that a model's outputs imply at every level of the tags.

  A model of fine tags alone scores a coarse class by the maximum of its fine
  tags (PAPER: the official baseline's rule). An X tag is never predicted.

  Returns:
    `coarse` `[N, C]`, and `fine` `[N, 29]` where the model has fine outputs.
  """
  if dataset.level == 'coarse':
    return {'coarse': scores_NC}
  num_coarse = len(dataset.coarse) if dataset.level == 'both' else 0
  fine_NC = scores_NC[:, num_coarse:]
  columns = np.zeros((len(fine_NC), len(taxonomy.FINE_COLUMNS)))
  columns[:, ~taxonomy.IS_UNKNOWN] = fine_NC
  coarse = scores_NC[:, :num_coarse]
  if not num_coarse:
    coarse = np.stack(
      [
        fine_NC[:, c == taxonomy.COARSE_OF_FINE].max(1)
        for c in range(len(taxonomy.COARSE))
      ],
      axis=1,
    )
  return {'coarse': coarse, 'fine': columns}


def score_split(
  dataset: datasets.Dataset,
  truth: Mapping[str, Any],
  scores_NC: np.ndarray,
  bootstrap: int = 0,
) -> dict[str, dict[str, Any]]:
  """The official DCASE scores at every level, and the field's own beside them.

  Args:
    dataset: for the names and levels of the tags.
    truth: from `data.truth`.
    scores_NC: probabilities from `predict_split`.
    bootstrap: resamples of the clips for 95 % intervals; 0 for none.

  Returns:
    By level, what `metrics.score` gives, and for the coarse level `map` and
    `lwlrap`.
  """
  result = {}
  for level, scores in by_level(dataset, scores_NC).items():
    result[level] = metrics.score(
      truth[level], scores, level=level, bootstrap=bootstrap
    )
  coarse = by_level(dataset, scores_NC)['coarse']
  result['coarse']['map'] = metrics.mean_average_precision(
    truth['coarse'], coarse
  )
  result['coarse']['lwlrap'] = metrics.lwlrap(truth['coarse'], coarse)
  return result


def scalars(
  split: str, scores: Mapping[str, Mapping[str, Any]]
) -> dict[str, float]:
  """Scores as rows of the log: `validate/coarse_micro_auprc` and so on."""
  return {
    f'{split}/{level}_{name}': float(value)
    for level, named in scores.items()
    for name, value in named.items()
    if np.ndim(value) == 0 and isinstance(value, int | float | np.floating)
  }
