"""Counts at every threshold and the areas under precision-recall curves.

A count (hits, false alarms, misses) changes only where the falling threshold
passes a score. So each count is a list of steps, and its value at all
thresholds is one cumulative sum over the sorted steps. A bootstrap resample
only gives each clip another weight: the sort is done once, and hundreds of
resamples go through the same sums side by side.

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
  """Changes of one count in order of their thresholds."""

  clip_E: np.ndarray
  step_E: np.ndarray
  ends_K: np.ndarray  # at threshold k the steps [:ends_K[k]] have happened


class Curve(NamedTuple):
  """All that does not depend on the weights of the clips."""

  threshold_K: np.ndarray
  starts_C: np.ndarray  # each class's first threshold, always 1.0
  hits: _Steps
  alarms: _Steps
  misses: _Steps  # downwards from all_misses_NC
  shown: _Steps  # scores that make a threshold
  all_misses_NC: np.ndarray  # at a threshold that nothing reaches
  order_K: np.ndarray  # thresholds of all classes, decreasing
  last_M: np.ndarray  # last place in order_K of each distinct threshold


class Counts(NamedTuple):
  """Weighted numbers of hits, false alarms and misses, all of one shape."""

  hits: np.ndarray
  alarms: np.ndarray
  misses: np.ndarray

  def f1(self) -> np.ndarray:
    """2 TP / (2 TP + FP + FN), 0 without hits."""
    total = 2 * self.hits + self.alarms + self.misses
    return 2 * self.hits / np.maximum(total, _HALF)


class Areas(NamedTuple):
  """The results for each weighting.

  Attributes:
    micro_W: area under the curve of all classes' summed counts.
    class_CW: area under each class's curve.
    f1_W: micro F1 at the first threshold >= 0.5.
    f1_threshold_W: that threshold.
    f1_counts: [W] each, the counts there.
  """

  micro_W: np.ndarray
  class_CW: np.ndarray
  f1_W: np.ndarray
  f1_threshold_W: np.ndarray
  f1_counts: Counts


def curve(pools: Sequence[Pool]) -> Curve:
  """Sorts the steps of every class.

  Args:
    pools: one a class, all with the same N.

  Returns:
    What `areas` needs, to be used for any number of weightings.
  """
  thresholds = [_thresholds(pool) for pool in pools]
  starts_C = np.cumsum([0] + [len(t) for t in thresholds])[:-1]
  threshold_K = np.concatenate(thresholds)
  counts = [_class_steps(pool) for pool in pools]
  sorted_steps = {
    name: _sort(
      [
        _placed(count[name], threshold, start)
        for count, threshold, start in zip(
          counts, thresholds, starts_C, strict=True
        )
      ],
      len(threshold_K),
    )
    for name in ('hits', 'alarms', 'misses', 'shown')
  }
  order_K = np.argsort(-threshold_K, kind='stable')
  falls = np.diff(threshold_K[order_K], append=-1.0) != 0
  return Curve(
    threshold_K=threshold_K,
    starts_C=starts_C,
    all_misses_NC=np.stack([_all_misses(pool) for pool in pools], axis=1),
    order_K=order_K,
    last_M=np.flatnonzero(falls),
    **sorted_steps,
  )


def areas(curve: Curve, weight_NW: np.ndarray) -> Areas:
  """Areas and F1 where clip n counts weight_NW[n, w] times.

  Args:
    curve: from `curve`.
    weight_NW: float64 whole numbers >= 0, not all 0 in any column.

  Returns:
    One of each result for every column of weights.
  """
  all_misses_CW = curve.all_misses_NC.T @ weight_NW
  counts, shown_KW = _class_counts(curve, weight_NW, all_misses_CW)
  class_CW = _area(counts, curve.starts_C)
  summed = _sum_over_classes(curve, counts, all_misses_CW)
  micro_W = _area(summed, np.zeros(1, int))[0]
  threshold_M = curve.threshold_K[curve.order_K][curve.last_M]
  at_half = np.count_nonzero(threshold_M >= 0.5) - 1  # 1.0 is always there
  f1_counts = Counts(*(count[at_half] for count in summed))
  halves = (curve.threshold_K >= 0.5)[:, None] & shown_KW
  return Areas(
    micro_W=micro_W,
    class_CW=class_CW,
    f1_W=f1_counts.f1(),
    f1_threshold_W=np.where(halves, curve.threshold_K[:, None], 1.0).min(
      axis=0
    ),
    f1_counts=f1_counts,
  )


def _thresholds(pool: Pool) -> np.ndarray:
  """The class's distinct thresholds in decreasing order; X makes none."""
  scores = pool.scores_NK[pool.scores_NK >= MIN_THRESHOLD]
  return np.unique(np.append(scores, 1.0))[::-1]


def _all_misses(pool: Pool) -> np.ndarray:
  """Misses of each clip when nothing is predicted [N]."""
  only_unknown_N = pool.unknown_N & ~pool.truth_NK.any(axis=1)
  return pool.truth_NK.sum(axis=1) + only_unknown_N.astype(np.float64)


def _class_steps(pool: Pool) -> dict[str, list[tuple]]:
  """Steps of each count as (score that is passed, clip, step) pieces.

  With t falling, a tag is predicted once t <= its score; any tag of the
  class, X included, once t <= `highest`; all tags, once t <= `lowest`.
  """
  true_NK, scores_NK, unknown_N, unknown_score_N = pool
  any_true_N = true_NK.any(axis=1)
  highest_N = np.maximum(scores_NK.max(axis=1), unknown_score_N)
  lowest_N = scores_NK.min(axis=1)
  first_hit_N = np.where(true_NK, scores_NK, -1.0).max(axis=1)

  def steps(score_N, where_N, step):
    return score_N[where_N], np.flatnonzero(where_N), step

  def tag_steps(where_NK, step):
    return scores_NK[where_NK], np.nonzero(where_NK)[0], step

  # X in the truth: a hit by anything of the class, until a tag hits itself.
  by_anything = steps(highest_N, unknown_N, 1)
  until_tag_hits = steps(first_hit_N, unknown_N & any_true_N, -1)
  # X in the prediction: an alarm where the class is absent, unless all of its
  # tags are predicted.
  alarm_N = ~unknown_N & ~any_true_N & (unknown_score_N > lowest_N)
  return {
    'hits': [tag_steps(true_NK, 1), by_anything, until_tag_hits],
    'alarms': [
      tag_steps(~true_NK & ~unknown_N[:, None], 1),
      steps(unknown_score_N, alarm_N, 1),
      steps(lowest_N, alarm_N, -1),
    ],
    'misses': [
      tag_steps(true_NK, -1),
      steps(highest_N, unknown_N & ~any_true_N, -1),
    ],
    'shown': [tag_steps(np.ones_like(true_NK), 1)],
  }


def _placed(pieces: list[tuple], threshold_K: np.ndarray, start: int) -> tuple:
  """Steps of one class: place of the threshold, clip, step.

  A score takes effect at the largest threshold that does not exceed it; below
  the smallest threshold, never.
  """
  score_E = np.concatenate([piece[0] for piece in pieces])
  clip_E = np.concatenate([piece[1] for piece in pieces])
  step_E = np.repeat(
    [piece[2] for piece in pieces], [len(p[0]) for p in pieces]
  )
  place_E = np.searchsorted(-threshold_K, -score_E)
  reached_E = place_E < len(threshold_K)
  return start + place_E[reached_E], clip_E[reached_E], step_E[reached_E]


def _sort(placed: list[tuple], K: int) -> _Steps:
  """All classes' steps in order of their places."""
  place_E, clip_E, step_E = map(np.concatenate, zip(*placed, strict=True))
  order = np.argsort(place_E, kind='stable')
  ends_K = np.cumsum(np.bincount(place_E, minlength=K))
  return _Steps(clip_E[order], step_E[order].astype(np.float64), ends_K)


def _cumulative(steps: _Steps, weight_NW: np.ndarray) -> np.ndarray:
  """Weighted sum of the steps up to every threshold [K, W]."""
  total_EW = np.zeros((len(steps.clip_E) + 1, weight_NW.shape[1]))
  np.multiply(weight_NW[steps.clip_E], steps.step_E[:, None], out=total_EW[1:])
  np.cumsum(total_EW, axis=0, out=total_EW)
  return total_EW[steps.ends_K]


def _class_counts(
  curve: Curve, weight_NW: np.ndarray, all_misses_CW: np.ndarray
) -> tuple[Counts, np.ndarray]:
  """Counts of each class at its thresholds, and which are there [K, W].

  A threshold that no clip of nonzero weight shows does not exist; it repeats
  the counts of the one before, which leaves every area as it is.
  """
  class_K = np.repeat(
    np.arange(len(curve.starts_C)),
    np.diff(curve.starts_C, append=len(curve.threshold_K)),
  )

  def within_class(total_KW):
    before_CW = total_KW[curve.starts_C - 1]
    before_CW[0] = 0
    return total_KW - before_CW[class_K]

  seen_KW = _cumulative(curve.shown, weight_NW)
  shown_KW = np.diff(seen_KW, axis=0, prepend=0) > 0
  shown_KW[curve.starts_C] = True  # 1.0 is always a threshold
  counts = [
    within_class(_cumulative(curve.hits, weight_NW)),
    within_class(_cumulative(curve.alarms, weight_NW)),
    within_class(_cumulative(curve.misses, weight_NW)) + all_misses_CW[class_K],
  ]
  if not shown_KW.all():
    place_KW = np.where(shown_KW, np.arange(len(shown_KW))[:, None], 0)
    np.maximum.accumulate(place_KW, axis=0, out=place_KW)
    counts = [np.take_along_axis(c, place_KW, axis=0) for c in counts]
  return Counts(*counts), shown_KW


def _sum_over_classes(
  curve: Curve, counts: Counts, all_misses_CW: np.ndarray
) -> Counts:
  """Counts of all classes together at every distinct threshold [M, W].

  A class that does not have a threshold counts as at its next higher one.
  """

  def summed(count_KW, first_CW):
    change_KW = np.diff(count_KW, axis=0, prepend=0)
    change_KW[curve.starts_C] = count_KW[curve.starts_C] - first_CW
    total_KW = np.cumsum(change_KW[curve.order_K], axis=0)
    return total_KW[curve.last_M] + np.sum(first_CW, axis=0)

  nothing_CW = np.zeros_like(all_misses_CW)
  return Counts(
    summed(counts.hits, nothing_CW),
    summed(counts.alarms, nothing_CW),
    summed(counts.misses, all_misses_CW),
  )


def _area(counts: Counts, starts_C: np.ndarray) -> np.ndarray:
  """Trapezoids over recall from (0, 1) through the points to (1, 0) [C, W]."""
  hits_KW, alarms_KW, misses_KW = counts
  precision_KW = hits_KW / np.maximum(hits_KW + alarms_KW, _HALF)
  recall_KW = hits_KW / np.maximum(hits_KW + misses_KW, _HALF)
  step_KW = np.diff(recall_KW, axis=0, prepend=0)
  step_KW[starts_C] = recall_KW[starts_C]
  height_KW = precision_KW.copy()
  height_KW[1:] += precision_KW[:-1]
  height_KW[starts_C] = precision_KW[starts_C] + 1
  last_C = np.append(starts_C[1:], len(recall_KW)) - 1
  tail_CW = (1 - recall_KW[last_C]) * precision_KW[last_C]
  body_CW = np.add.reduceat(step_KW * height_KW, starts_C, axis=0)
  return (body_CW + tail_CW) / 2
