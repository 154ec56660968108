"""The official DCASE 2019/2020 Task 5 metric, exact, on the host.

The audio-tagging field's own two, mAP and lwlrap, stand beside it. All take
truth and scores of a whole split as arrays.

Reference: https://dcase.community/challenge2019/task-urban-sound-tagging
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from iusp_jax.scoring import auprc
from tfds_dcase import taxonomy

LEVELS = ('coarse', 'fine')
# The rule for every mean over tags (macro-AUPRC, mAP); see `mean_over_tags`.
MEAN_RULE = 'mean over the tags with positives'
# Thresholds times resamples worked on at once: arrays that stay in cache.
_BLOCK = 2**19


def score(
  truth: Any,
  scores: Any,
  level: str = 'coarse',
  bootstrap: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """Scores tag probabilities as the DCASE 2019 Task 5 challenge does.

  AUPRC here is the area by trapezoids over (recall, precision) at every
  distinct score >= 0.01 and at 1.0, with the points (0, 1) and (1, 0) added,
  in order of decreasing threshold. It is not average precision. Micro sums
  the counts of all classes at each threshold; macro is the mean over the
  classes with positives (`MEAN_RULE`). F1 is micro, at the first threshold
  >= 0.5. At the fine level each of the 8 classes pools the counts of its fine
  tags, and "X" (other or unknown) is counted as the challenge does: in the
  truth it forgives wrong fine tags and asks for any tag of the class; in the
  prediction it is a false alarm where the class is absent.

  Args:
    truth: [N, C] at the coarse level, any C; [N, 29] at the fine level, in
      order of `taxonomy.FINE_COLUMNS`. 0 or 1 (or bool).
    scores: like `truth`, from 0 to 1. At the fine level [N, 23], in order of
      `taxonomy.FINE`, is read as scores of 0 for every X.
    level: 'coarse' or 'fine'.
    bootstrap: resamples of the clips for 95 % intervals; 0 = no intervals.
    seed: of the resampling.

  Returns:
    `micro_auprc`, `macro_auprc`, `micro_f1`: float, None without positives of
      any class;
    `class_auprc`: one a class, float, None for a class without positives;
    `undefined`: the classes without positives;
    `constant`: the classes with positives whose scores are constant (at the
      fine level: over its fine tags, without X), for which the number is the
      definition's but no measure of ranking;
    `positives`: clips of each class (at the fine level: with any tag or X);
    `f1_row`: `threshold`, `TP`, `FP`, `FN` that give `micro_f1`;
    `num_clips`: N;
    and with `bootstrap` each of the first four with `_ci` appended:
      [low, high], for `class_auprc_ci` a list of them: the 2.5 and 97.5 %
      quantiles over resamples of N clips with replacement, each scored by the
      same rules; resamples for which a number is None are left out of its
      quantiles, and an interval is None where they all are.

  Raises:
    ValueError: an unknown level, shapes that differ or do not fit the level,
      no clip, truth other than 0 and 1, a score that is NaN or outside 0..1,
      a negative bootstrap.
  """
  truth_NQ, scores_NQ = _checked(truth, scores, level)
  if not isinstance(bootstrap, int | np.integer) or bootstrap < 0:
    raise ValueError(
      f'bootstrap={bootstrap!r}: expected a number of resamples >= 0 '
      '(0 = no intervals).'
    )
  N = len(truth_NQ)
  pools = _pools(truth_NQ, scores_NQ, level)
  curve = auprc.curve(pools)
  areas = auprc.areas(curve, np.ones((1, N)))
  positives = [int(p.present_N.sum()) for p in pools]
  constant = [np.ptp(p.scores_NK) == 0 for p in pools]
  class_auprc = [
    float(value) if n else None
    for value, n in zip(areas.class_WC[0], positives, strict=True)
  ]
  any_positive = any(positives)
  result = {
    'micro_auprc': float(areas.micro_W[0]) if any_positive else None,
    'macro_auprc': mean_over_tags(class_auprc),
    'micro_f1': float(areas.f1_W[0]) if any_positive else None,
    'class_auprc': class_auprc,
    'undefined': [c for c, n in enumerate(positives) if not n],
    'constant': [c for c, n in enumerate(positives) if n and constant[c]],
    'positives': positives,
    'f1_row': {
      'threshold': float(areas.f1_threshold_W[0]),
      'TP': int(areas.f1_counts.tp[0]),
      'FP': int(areas.f1_counts.fp[0]),
      'FN': int(areas.f1_counts.fn[0]),
    },
    'num_clips': N,
  }
  if bootstrap:
    result |= _intervals(pools, curve, int(bootstrap), seed)
  return result


def mean_over_tags(value_by_tag: Sequence[float | None]) -> float | None:
  """The mean over the tags that have a value, which those with positives have.

  The one rule for all means over tags: a tag without positives in the scored
  clips has no AUPRC and no average precision, so it is left out, and it does
  not count as 0.

  Args:
    value_by_tag: None or NaN for a tag without positives.

  Returns:
    The mean, None where no tag has a value.
  """
  defined = [v for v in value_by_tag if v is not None and not np.isnan(v)]
  return float(np.mean(defined)) if defined else None


def mean_rule(positives: Sequence[int]) -> str:
  """Names the rule of `mean_over_tags` with its numbers, for print.

  Args:
    positives: the number of positives of each tag.

  Returns:
    Such as 'mean over the 7 of 8 tags with positives'.
  """
  return MEAN_RULE.replace(
    'the tags', f'the {sum(n > 0 for n in positives)} of {len(positives)} tags'
  )


def average_precision(truth: Any, scores: Any) -> np.ndarray:
  """Average precision of each class, as scikit-learn defines it.

  Args:
    truth: [N, C] of 0 and 1.
    scores: [N, C], finite; only their order matters, equal ones are one step.

  Returns:
    float64 [C]; NaN for a class without positives.

  Raises:
    ValueError: shapes that differ, truth other than 0 and 1, NaN scores.
  """
  truth_NC, scores_NC = _checked(truth, scores, 'coarse', bounded=False)
  return np.array(
    [
      _average_precision(truth_N, scores_N)
      for truth_N, scores_N in zip(truth_NC.T, scores_NC.T, strict=True)
    ]
  )


def mean_average_precision(truth: Any, scores: Any) -> float | None:
  """mAP: `mean_over_tags` of `average_precision`.

  How many classes that leaves out is the number of NaN in
  `average_precision`, or of zeros in `score(...)['positives']`.

  Args and Raises: as for `average_precision`.

  Returns:
    From 0 to 1; None where no class has positives.
  """
  return mean_over_tags(average_precision(truth, scores).tolist())


def lwlrap(truth: Any, scores: Any) -> float | None:
  """Label-weighted label-ranking average precision.

  For every true tag of a clip: the share of true tags among those ranked at
  or above it. The mean over all true tags of all clips, so a clip weighs as
  many tags as it has.

  Args:
    truth: [N, C] of 0 and 1.
    scores: [N, C], finite; equal scores share the lower rank.

  Returns:
    From 0 to 1; None where no clip has a tag.

  Raises:
    ValueError: shapes that differ, truth other than 0 and 1, NaN scores.

  Reference: Fonseca et al., "Audio tagging with noisy labels and minimal
  supervision", DCASE 2019.
  """
  truth_NC, scores_NC = _checked(truth, scores, 'coarse', bounded=False)
  total, tags = 0.0, 0
  for true_C, score_C in zip(truth_NC, scores_NC, strict=True):
    tp = np.sort(score_C[true_C])
    if not len(tp):
      continue
    # How many of all, and of the true, score at least as much as each true one.
    ranked = len(score_C) - np.searchsorted(np.sort(score_C), tp)
    found = len(tp) - np.searchsorted(tp, tp)
    total += float((found / ranked).sum())
    tags += len(tp)
  return total / tags if tags else None


def _average_precision(truth_N: np.ndarray, scores_N: np.ndarray) -> float:
  """Sum over distinct scores of precision times the gain in recall."""
  if not truth_N.any():
    return float('nan')
  order = np.argsort(-scores_N, kind='stable')
  last = np.flatnonzero(np.diff(scores_N[order], append=np.inf))
  tp = np.cumsum(truth_N[order])[last]
  precision = tp / (last + 1)
  return float((np.diff(tp, prepend=0) * precision).sum() / tp[-1])


def _checked(
  truth: Any, scores: Any, level: str, bounded: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  """Truth as bool and scores as float64, both [N, Q], or a ValueError."""
  if level not in LEVELS:
    raise ValueError(f'Unknown level {level!r}; legal: {", ".join(LEVELS)}.')
  truth_NQ, scores_NQ = _array('truth', truth), _array('scores', scores)
  fine = len(taxonomy.FINE_COLUMNS)
  if level == 'fine':
    if truth_NQ.shape[1] != fine:
      raise ValueError(
        f'truth has shape {truth_NQ.shape}; at the fine level expected '
        f'[N, {fine}] in order of taxonomy.FINE_COLUMNS, X included.'
      )
    if scores_NQ.shape[1] == len(taxonomy.FINE):
      wide_NQ = np.zeros((len(scores_NQ), fine))
      wide_NQ[:, ~taxonomy.IS_UNKNOWN] = scores_NQ
      scores_NQ = wide_NQ
  if truth_NQ.shape != scores_NQ.shape:
    raise ValueError(
      f'truth has shape {truth_NQ.shape}, scores {scores_NQ.shape}; expected '
      'one score for every clip and tag.'
    )
  _check_values('truth', truth_NQ, (truth_NQ != 0) & (truth_NQ != 1), '0 or 1')
  if bounded:
    bad_NQ = ~((scores_NQ >= 0) & (scores_NQ <= 1))  # true for NaN too
    _check_values('scores', scores_NQ, bad_NQ, 'a number from 0 to 1')
  else:
    _check_values(
      'scores', scores_NQ, ~np.isfinite(scores_NQ), 'a finite number'
    )
  return truth_NQ == 1, scores_NQ


def _array(name: str, values: Any) -> np.ndarray:
  try:
    array = np.asarray(values, dtype=np.float64)
  except (TypeError, ValueError) as error:
    raise ValueError(f'{name} is not an array of numbers: {error}') from error
  if array.ndim != 2 or 0 in array.shape:
    raise ValueError(
      f'{name} has shape {array.shape}; expected [clips, tags], at least one '
      'of each.'
    )
  return array


def _check_values(
  name: str, values_NQ: np.ndarray, bad_NQ: np.ndarray, legal: str
) -> None:
  if bad_NQ.any():
    n, q = np.argwhere(bad_NQ)[0]
    raise ValueError(
      f'{name}[{n}, {q}] is {values_NQ[n, q]}; expected {legal} '
      f'({int(bad_NQ.sum())} such values in all).'
    )


def _pools(
  truth_NQ: np.ndarray, scores_NQ: np.ndarray, level: str
) -> list[auprc.Pool]:
  """The columns whose counts are pooled into one class, class by class."""
  if level == 'coarse':
    never_N, zero_N = np.zeros(len(truth_NQ), bool), np.zeros(len(truth_NQ))
    return [
      auprc.Pool(truth_NQ[:, [c]], scores_NQ[:, [c]], never_N, zero_N)
      for c in range(truth_NQ.shape[1])
    ]
  unknown_Q = taxonomy.IS_UNKNOWN
  pools = []
  for c in range(len(taxonomy.COARSE)):
    mine_Q = np.equal(taxonomy.COARSE_OF_COLUMN, c)
    pools.append(
      auprc.Pool(
        truth_NQ[:, mine_Q & ~unknown_Q],
        scores_NQ[:, mine_Q & ~unknown_Q],
        np.any(truth_NQ[:, mine_Q & unknown_Q], axis=1),
        scores_NQ[:, mine_Q & unknown_Q].max(axis=1, initial=0.0),
      )
    )
  return pools


def resample(
  truth: Any,
  scores: Any,
  level: str = 'coarse',
  bootstrap: int = 1000,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """The scores of resamples of the clips, drawn with replacement.

  Resample w draws the same clips for every model that is scored on N clips
  with the same seed, so that differences of models can be resampled too.

  Args:
    truth: as in `score`.
    scores: as in `score`.
    level: as in `score`.
    bootstrap: W, the number of resamples.
    seed: of the resampling.

  Returns:
    `micro_auprc` `[W]`, `micro_f1` `[W]` and `class_auprc` `[W, C]`; NaN where
    a resample has no positives (of that class).
  """
  truth_NQ, scores_NQ = _checked(truth, scores, level)
  pools = _pools(truth_NQ, scores_NQ, level)
  return _resample(pools, auprc.curve(pools), bootstrap, seed)


def _resample(
  pools: list[auprc.Pool], curve: auprc.Curve, bootstrap: int, seed: int
) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  micro, f1, classes = [], [], []
  present_NC = np.stack([p.present_N for p in pools], axis=1).astype(float)
  N = len(present_NC)
  size = max(1, _BLOCK // len(curve.threshold_K))
  for start in range(0, bootstrap, size):
    W = min(size, bootstrap - start)
    # A resample is how often each clip is drawn.
    weight_WN = np.stack(
      [np.bincount(rng.integers(N, size=N), minlength=N) for _ in range(W)]
    ).astype(np.float64)
    areas = auprc.areas(curve, weight_WN)
    has_positives_WC = weight_WN @ present_NC > 0
    any_W = has_positives_WC.any(axis=1)
    micro.append(np.where(any_W, areas.micro_W, np.nan))
    f1.append(np.where(any_W, areas.f1_W, np.nan))
    classes.append(np.where(has_positives_WC, areas.class_WC, np.nan))
  return {
    'micro_auprc': np.concatenate(micro),
    'micro_f1': np.concatenate(f1),
    'class_auprc': np.concatenate(classes),
  }


def _intervals(
  pools: list[auprc.Pool], curve: auprc.Curve, bootstrap: int, seed: int
) -> dict[str, Any]:
  """95 % intervals over resamples of the clips."""
  drawn = _resample(pools, curve, bootstrap, seed)
  class_WC = drawn['class_auprc']
  macro_W = np.array(
    [mean_over_tags(value_C) for value_C in class_WC], np.float64
  )
  return {
    'micro_auprc_ci': _quantiles(drawn['micro_auprc']),
    'macro_auprc_ci': _quantiles(macro_W),
    'micro_f1_ci': _quantiles(drawn['micro_f1']),
    'class_auprc_ci': [_quantiles(value_W) for value_W in class_WC.T],
  }


def _quantiles(value_W: np.ndarray) -> list[float] | None:
  defined = value_W[~np.isnan(value_W)]
  if not len(defined):
    return None
  return np.quantile(defined, [0.025, 0.975]).tolist()
