"""Counts at every threshold and the areas under precision-recall curves.

A count (TP, FP, FN) changes only where the falling threshold passes a score.
So each count is a list of steps, and its value at all thresholds is one
cumulative sum over the steps in order. A bootstrap resample only gives each
clip another weight: scores are sorted once, and many resamples go through the
same sums side by side.

Axes beyond the package's: K column of a pool or distinct threshold of a class
(in a curve all classes follow one another, each in decreasing order), E step,
W weighting of the clips, M distinct threshold of all classes together.

The definition is that of https://github.com/sonyc-project/
urban-sound-tagging-baseline, with two of its accidents left out: it sorts
equal recalls unstably, and fails for classes without positives.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MIN_THRESHOLD = 0.01  # smaller scores are no threshold
_HALF = 0.5  # keeps 0/0 at 0 in precision and recall


class Pool(NamedTuple):
  """The tags whose counts make up one class.

  Attributes:
    truth_NK: bool, tags of the class, without X.
    scores_NK: float64 from 0 to 1.
    unknown_N: bool, the truth of X ("other or unknown"); False without one.
    unknown_score_N: float64, the score of X; 0 without one.
  """

  truth_NK: np.ndarray
  scores_NK: np.ndarray
  unknown_N: np.ndarray
  unknown_score_N: np.ndarray

  @property
  def present_N(self) -> np.ndarray:
    """Clips with any tag of the class, or X."""
    return np.any(self.truth_NK, axis=1) | self.unknown_N


class _Steps(NamedTuple):
  """Changes of one count: E steps, in any order."""

  place_E: np.ndarray  # the threshold at which it happens, of all classes'
  clip_E: np.ndarray
  step_E: np.ndarray  # +1 or -1


class Curve(NamedTuple):
  """All that does not depend on the weights of the clips."""

  threshold_K: np.ndarray
  class_K: np.ndarray
  starts_C: np.ndarray  # each class's first threshold, always 1.0
  tp: _Steps
  fp: _Steps
  fn: _Steps  # downwards from all_fn_NC
  shown: _Steps  # scores that make a threshold
  all_fn_NC: np.ndarray  # at a threshold that nothing reaches
  order_K: np.ndarray  # thresholds of all classes, decreasing
  last_M: np.ndarray  # last place in order_K of each distinct threshold


class Counts(NamedTuple):
  """Weighted numbers of TP, FP and FN, all of one shape."""

  tp: np.ndarray
  fp: np.ndarray
  fn: np.ndarray

  def f1(self) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), 0 without TP."""
    total = 2 * self.tp + self.fp + self.fn
    return 2 * self.tp / np.maximum(total, _HALF)


class Areas(NamedTuple):
  """The results for each weighting.

  Attributes:
    micro_W: area under the curve of all classes' summed counts.
    class_WC: area under each class's curve.
    f1_W: micro F1 at the first threshold >= 0.5.
    f1_threshold_W: that threshold.
    f1_counts: [W] each, the counts there.
  """

  micro_W: np.ndarray
  class_WC: np.ndarray
  f1_W: np.ndarray
  f1_threshold_W: np.ndarray
  f1_counts: Counts


def curve(pools: Sequence[Pool]) -> Curve:
  """Sorts the scores of every class and finds the steps of every count.

  Args:
    pools: one a class, all with the same N.

  Returns:
    What `areas` needs, to be used for any number of weightings.
  """
  thresholds, pieces = [], []
  for pool in pools:
    threshold_K, place_NK, unknown_place_N = _places(pool)
    thresholds.append(threshold_K)
    pieces.append(_class_steps(pool, place_NK, unknown_place_N))
  sizes = [len(threshold_K) for threshold_K in thresholds]
  starts_C = np.cumsum([0, *sizes[:-1]])
  threshold_K = np.concatenate(thresholds)
  order_K = np.argsort(-threshold_K, kind='stable')
  falls = np.diff(threshold_K[order_K], append=-1.0) != 0
  return Curve(
    threshold_K=threshold_K,
    class_K=np.repeat(np.arange(len(pools)), sizes),
    starts_C=starts_C,
    all_fn_NC=np.stack([_all_fn(pool) for pool in pools], axis=1),
    order_K=order_K,
    last_M=np.flatnonzero(falls),
    **{
      name: _joined([piece[name] for piece in pieces], starts_C, sizes)
      for name in ('tp', 'fp', 'fn', 'shown')
    },
  )


def areas(curve: Curve, weight_WN: np.ndarray) -> Areas:
  """Areas and F1 where clip n counts weight_WN[w, n] times.

  Args:
    curve: from `curve`.
    weight_WN: float64 whole numbers >= 0, not all 0 in any row.

  Returns:
    One of each result for every row of weights.
  """
  all_fn_WC = weight_WN @ curve.all_fn_NC
  counts, shown_WK = _class_counts(curve, weight_WN, all_fn_WC)
  class_WC = _area(counts, curve.starts_C)
  summed = _sum_over_classes(curve, counts, all_fn_WC)
  micro_W = _area(summed, np.zeros(1, int))[:, 0]
  threshold_M = curve.threshold_K[curve.order_K[curve.last_M]]
  at_half = np.count_nonzero(threshold_M >= 0.5) - 1  # 1.0 is always there
  f1_counts = Counts(*(count_WM[:, at_half] for count_WM in summed))
  half_WK = shown_WK & (curve.threshold_K >= 0.5)
  return Areas(
    micro_W=micro_W,
    class_WC=class_WC,
    f1_W=f1_counts.f1(),
    f1_threshold_W=np.where(half_WK, curve.threshold_K, 1.0).min(axis=1),
    f1_counts=f1_counts,
  )


def _places(pool: Pool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The class's distinct thresholds, decreasing, and each score's place.

  A score takes effect at the largest threshold that does not exceed it, and a
  place beyond the last threshold means never. X makes no threshold.
  """
  flat = np.append(pool.scores_NK, 1.0)
  value, index = np.unique(flat, return_inverse=True)
  threshold_K = value[value >= MIN_THRESHOLD][::-1]
  place = np.minimum(len(value) - 1 - index.ravel()[:-1], len(threshold_K))
  unknown_place_N = np.searchsorted(-threshold_K, -pool.unknown_score_N)
  return threshold_K, place.reshape(pool.scores_NK.shape), unknown_place_N


def _all_fn(pool: Pool) -> np.ndarray:
  """FN of each clip when nothing is predicted [N]."""
  only_unknown_N = pool.unknown_N & ~pool.truth_NK.any(axis=1)
  return pool.truth_NK.sum(axis=1) + only_unknown_N.astype(np.float64)


def _class_steps(
  pool: Pool, place_NK: np.ndarray, unknown_place_N: np.ndarray
) -> dict[str, list[tuple]]:
  """Steps of each count as pieces of (place, clip, step).

  As the threshold falls, a tag is predicted from its place on; any tag of the
  class, X included, from `anything`; all tags, from `everything`.
  """
  true_NK, unknown_N = pool.truth_NK, pool.unknown_N
  any_true_N = true_NK.any(axis=1)
  anything_N = np.minimum(place_NK.min(axis=1), unknown_place_N)
  everything_N = place_NK.max(axis=1)
  never = np.iinfo(place_NK.dtype).max
  first_tp_N = np.where(true_NK, place_NK, never).min(axis=1)

  def steps(place_N, where_N, step):
    return place_N[where_N], np.flatnonzero(where_N), step

  def tag_steps(where_NK, step):
    return place_NK[where_NK], np.nonzero(where_NK)[0], step

  # X in the prediction: an FP where the class is absent, unless all of its tags
  # are predicted.
  fp_N = ~unknown_N & ~any_true_N & (unknown_place_N < everything_N)
  return {
    'tp': [
      tag_steps(true_NK, 1),
      # X in the truth: a TP by anything, until a tag is a TP by itself.
      steps(anything_N, unknown_N, 1),
      steps(first_tp_N, unknown_N & any_true_N, -1),
    ],
    'fp': [
      tag_steps(~true_NK & ~unknown_N[:, None], 1),
      steps(unknown_place_N, fp_N, 1),
      steps(everything_N, fp_N, -1),
    ],
    'fn': [
      tag_steps(true_NK, -1),
      steps(anything_N, unknown_N & ~any_true_N, -1),
    ],
    'shown': [tag_steps(np.ones_like(true_NK), 1)],
  }


def _joined(
  classes: list[list[tuple]], starts_C: np.ndarray, sizes: list[int]
) -> _Steps:
  """All classes' pieces of one count, without what never happens."""
  places, clips, steps = [], [], []
  for pieces, start, size in zip(classes, starts_C, sizes, strict=True):
    for place_E, clip_E, step in pieces:
      happens_E = place_E < size
      places.append(start + place_E[happens_E])
      clips.append(clip_E[happens_E])
      steps.append(np.full(len(places[-1]), float(step)))
  return _Steps(*map(np.concatenate, (places, clips, steps)))


def _changes(steps: _Steps, weight_WN: np.ndarray, K: int) -> np.ndarray:
  """Weighted sum of the steps at each threshold [W, K]."""
  return np.stack(
    [
      np.bincount(steps.place_E, steps.step_E * weight_N[steps.clip_E], K)
      for weight_N in weight_WN
    ]
  )


def _class_counts(
  curve: Curve, weight_WN: np.ndarray, all_fn_WC: np.ndarray
) -> tuple[Counts, np.ndarray]:
  """Counts of each class at its thresholds, and which are there [W, K].

  A threshold that no clip of nonzero weight shows does not exist; it repeats
  the counts of the one before, which leaves every area as it is.
  """
  K = len(curve.threshold_K)

  def counted(steps):
    total_WK = np.cumsum(_changes(steps, weight_WN, K), axis=1)
    before_WC = total_WK[:, curve.starts_C - 1]
    before_WC[:, 0] = 0
    return total_WK - before_WC[:, curve.class_K]

  counts = [
    counted(curve.tp),
    counted(curve.fp),
    counted(curve.fn) + all_fn_WC[:, curve.class_K],
  ]
  shown_WK = np.ones((len(weight_WN), K), bool)
  if not weight_WN.all():
    shown_WK = _changes(curve.shown, weight_WN, K) > 0
    shown_WK[:, curve.starts_C] = True  # 1.0 is always a threshold
    place_WK = np.where(shown_WK, np.arange(K), 0)
    np.maximum.accumulate(place_WK, axis=1, out=place_WK)
    counts = [np.take_along_axis(c, place_WK, axis=1) for c in counts]
  return Counts(*counts), shown_WK


def _sum_over_classes(
  curve: Curve, counts: Counts, all_fn_WC: np.ndarray
) -> Counts:
  """Counts of all classes together at every distinct threshold [W, M].

  A class that does not have a threshold counts as at its next higher one.
  """

  def summed(count_WK, first_WC):
    change_WK = np.diff(count_WK, axis=1, prepend=0)
    change_WK[:, curve.starts_C] = count_WK[:, curve.starts_C] - first_WC
    total_WK = np.cumsum(change_WK[:, curve.order_K], axis=1)
    return total_WK[:, curve.last_M] + first_WC.sum(axis=1, keepdims=True)

  nothing_WC = np.zeros_like(all_fn_WC)
  return Counts(
    summed(counts.tp, nothing_WC),
    summed(counts.fp, nothing_WC),
    summed(counts.fn, all_fn_WC),
  )


def _area(counts: Counts, starts_C: np.ndarray) -> np.ndarray:
  """Trapezoids over recall from (0, 1) through the points to (1, 0) [W, C]."""
  tp_WK, fp_WK, fn_WK = counts
  precision_WK = tp_WK / np.maximum(tp_WK + fp_WK, _HALF)
  recall_WK = tp_WK / np.maximum(tp_WK + fn_WK, _HALF)
  step_WK = np.diff(recall_WK, axis=1, prepend=0)
  step_WK[:, starts_C] = recall_WK[:, starts_C]
  height_WK = precision_WK.copy()
  height_WK[:, 1:] += precision_WK[:, :-1]
  height_WK[:, starts_C] = precision_WK[:, starts_C] + 1
  last_C = np.append(starts_C[1:], recall_WK.shape[1]) - 1
  tail_WC = (1 - recall_WK[:, last_C]) * precision_WK[:, last_C]
  body_WC = np.add.reduceat(step_WK * height_WK, starts_C, axis=1)
  return (body_WC + tail_WC) / 2
