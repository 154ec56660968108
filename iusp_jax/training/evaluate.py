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
# In place of a level: scores against a teacher's tags, not against labels.
AGREEMENT = 'agreement'
# Beside them: the weighted sum of the terms that can be measured.
DISTILLATION = 'validate/distillation_loss'


class Clips:
  """A split's clips as the tagger's input, in batches on the devices.

  In memory where `features` are given, else read from the split.
  """

  def __init__(
    self,
    split: datasets.Split,
    features: Mapping[str, np.ndarray] | None = None,
    outputs: Mapping[str, np.ndarray] | None = None,
  ):
    """See above; features and stored teacher outputs as in `sources`."""
    self.split, self._outputs = split, outputs or {}
    self._features = features

  def batches(self, layout: devices.Layout) -> Iterator[dict[str, Any]]:
    """Arrays with `mel` or `wave`, `length` and outputs, on the devices.

    The last batch is filled up.
    """
    num_parts = layout.num_parts
    own = {'host': jax.process_index(), 'num_hosts': jax.process_count()}
    read = {} if num_parts == 1 else own
    for batch in self._read(_CLIPS * num_parts, read):
      batch |= {k: x[batch['index']] for k, x in self._outputs.items()}
      keys = [key for key in batch if key not in ('tags', 'mask', 'index')]
      kept = {key: batch[key] for key in keys}
      yield (
        layout.share(kept)
        if num_parts == 1
        else layout.put_local(devices.shard(kept))
      )

  def _read(self, size: int, own) -> Iterator[dict[str, np.ndarray]]:
    """This host's clips of batch after batch."""
    if self._features is None:
      yield from datasets.eval_batches(self.split, size, **own)
      return
    for index_B in datasets.eval_indices(len(self.split), size, **own):
      yield {key: x[index_B] for key, x in self._features.items()}


OfOutput = Callable[[Any, Mapping[str, jax.Array]], jax.Array]


def logits_of(output, batch) -> jax.Array:
  """The logits of a tagger's output."""
  del batch
  return output.logits_BC


@functools.cache
def compile_map(
  model: tagger.Tagger, num_members: int, of_output: OfOutput
) -> Callable:
  """A mapped function of variables and clips."""
  layout = devices.Layout(num_members)

  def of_clips(variables, batch):
    if 'wave' in batch:
      batch = {**batch, 'mel': tagger.log_mel(model, batch['wave'])}
    output = tagger.apply(model, variables, batch['mel'])
    return layout.gather(of_output(output, batch))

  return layout.map(of_clips, devices.best_vmap_size())


def map_clips(
  model: tagger.Tagger,
  variables: Any,
  clips: Clips,
  layout: devices.Layout,
  of_output: OfOutput = logits_of,
  between: Callable[[], None] = lambda: None,
) -> np.ndarray:
  """A function of every member's output for every clip of a split.

  Args:
    model: of the members.
    variables: theirs, on the devices.
    clips: of the split.
    layout: of the members.
    of_output: of a tagger's output and its batch, one row a clip.
    between: called between batches.

  Returns:
    `[M, N, ...]` in the split's order, on every process.
  """
  compiled = compile_map(model, layout.num_members, of_output)
  found = []
  for batch in clips.batches(layout):
    between()
    found.append(layout.get(compiled(variables, batch)))
  return np.concatenate(found, axis=1)[:, : len(clips.split)]


def predict(*args, between: Callable[[], None] = lambda: None) -> np.ndarray:
  """Probabilities float64 `[M, N, C]`; arguments as of `map_clips`."""
  return probabilities(map_clips(*args, between=between))


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
  by_teacher: bool = False,
) -> dict[str, dict[str, Any]]:
  """The official DCASE scores at every level, and the field's own beside them.

  Args:
    dataset: for the names and levels of the tags.
    truth: from `data.truth`.
    scores_NC: probabilities from `predict_split`.
    bootstrap: resamples of the clips for 95 % intervals; 0 for none.
    by_teacher: whether the truth is `Split.agreed`, a teacher's tags.

  Returns:
    By level, what `metrics.score` gives, and for the coarse level `map` and
    `lwlrap`; all of it under `AGREEMENT` where a teacher's tags are the truth.
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
  return {AGREEMENT: result['coarse']} if by_teacher else result


def level_of(dataset: datasets.Dataset, split: str) -> str:
  """What the scores of a split by coarse tags are called."""
  by_teacher = dataset.splits[split].agreed is not None
  return AGREEMENT if by_teacher else 'coarse'


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
  level = level_of(dataset, 'validate')
  if dataset.level == 'fine':
    level = 'fine'
  return f'validate/{level}_micro_auprc'
