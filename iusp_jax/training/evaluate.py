"""Scoring a split with the members of a group: every clip once."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.models import tagger
from iusp_jax.runtime import devices
from iusp_jax.scoring import metrics
from tfds_dcase import taxonomy

_CLIPS = 64  # Of a device at a time.


class Clips:
  """A split's clips as the tagger's input, in batches on the devices.

  In memory where `features` are given, else read from the split.
  """

  def __init__(
    self,
    split: datasets.Split,
    features: Mapping[str, np.ndarray] | None = None,
  ):
    """See above; `features` as `sources.features` gives them."""
    self.split, self._features = split, features

  def batches(self, layout: devices.Layout) -> Iterator[dict[str, Any]]:
    """Arrays with `mel` or `wave`; the last batch is filled up."""
    size = _CLIPS * layout.num_parts
    if self._features is None:
      whole = layout.num_parts == 1
      for batch in datasets.eval_batches(
        self.split,
        size,
        host=0 if whole else jax.process_index(),
        num_hosts=1 if whole else jax.process_count(),
      ):
        yield layout.put_local(
          devices.shard({'wave': batch['wave']})
          if not whole
          else {
            'wave': np.repeat(batch['wave'][None], jax.local_device_count(), 0)
          }
        )
      return
    key = 'mel' if 'mel' in self._features else 'wave'
    array_NX = self._features[key]
    for first in range(0, len(array_NX), size):
      clips = np.minimum(np.arange(first, first + size), len(array_NX) - 1)
      yield layout.share_clips({key: array_NX[clips]})


@functools.cache
def compile_predict(model: tagger.Tagger, num_members: int) -> Callable:
  """A mapped function of variables and clips: logits `[D, each, n, C]`."""
  layout = devices.Layout(num_members)

  def predict(variables, batch):
    if 'wave' in batch:
      batch = {'mel': tagger.log_mel(model, batch['wave'])}
    output = tagger.apply(model, variables, batch['mel'])
    return layout.gather(output.logits_BC)

  return layout.map(predict, devices.best_vmap_size())


def predict(
  model: tagger.Tagger,
  variables: Any,
  clips: Clips,
  layout: devices.Layout,
  between: Callable[[], None] = lambda: None,
) -> np.ndarray:
  """Probabilities of a split's clips by every member, in the split's order.

  Args:
    model: of the members.
    variables: theirs, on the devices.
    clips: to score.
    layout: of the members.
    between: called between batches.

  Returns:
    float64 `[M, N, C]`, on every process.
  """
  compiled = compile_predict(model, layout.num_members)
  found = []
  for batch in clips.batches(layout):
    between()
    found.append(layout.get(compiled(variables, batch)))
  logits_MNC = np.concatenate(found, axis=1)[:, : len(clips.split)]
  return probabilities(logits_MNC)


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


def selection_metric(dataset: datasets.Dataset) -> str:
  """The metric by which the best epoch is chosen."""
  level = 'fine' if dataset.level == 'fine' else 'coarse'
  return f'validate/{level}_micro_auprc'
