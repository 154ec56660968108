"""Scores over seeds: paired differences, their intervals and tests, the ratio.

S is a run (a seed of one rotation of the folds), R a resample of the test
clips, W a draw of the bootstrap.

The bootstrap intervals are over seeds and test clips. Each draw takes runs with
replacement, all scores of a seed at once, and one resample of the clips for all
runs of a rotation; rotations have different clips, so each is drawn by itself.
Teachers and training clips are fixed: an interval does not cover others.

With few runs the plain bootstrap is too narrow: with 8 seeds its 95 % interval
covers the truth in 88 % of cases. So the part of a draw that comes from the
runs is widened to Student's t; the part that comes from the clips is not.

Reference: Hesterberg, "What teachers should know about the bootstrap", 2015
(https://arxiv.org/abs/1411.5279).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special, stats

from iusp_jax.scoring import metrics

DRAWS = 10_000
CONFIDENCE = 0.95
FLIPS = 99_999  # of the permutation test: all 2^n of them up to 16 pairs
_SEED = 20_200_901


@dataclasses.dataclass(frozen=True)
class Summary:
  """Mean, standard deviation (None for one value) and number of values."""

  mean: float
  sd: float | None
  n: int


@dataclasses.dataclass(frozen=True)
class Difference:
  """What one objective scores above another, seed by seed.

  Attributes:
    mean, sd, n: of the paired differences; sd is None for one pair.
    low, high: 95 % interval of the mean; None where a rotation has one pair.
    wins, losses: pairs above and below 0.
    sign_p, permutation_p: two-sided.
    resamples: of the clips; 0 = the interval is over seeds alone.
  """

  mean: float
  sd: float | None
  n: int
  low: float | None
  high: float | None
  wins: int
  losses: int
  sign_p: float
  permutation_p: float
  resamples: int


@dataclasses.dataclass(frozen=True)
class Ratio:
  """The paper's ratio r; `value` is None and `reason` says why if withheld."""

  value: float | None
  low: float | None
  high: float | None
  n: int
  reason: str = ''


def summarise(values: Any) -> Summary:
  """Mean and sd (ddof 1) of `[S]` scores, at least one, all finite."""
  value_S = _checked('values', values, 1)
  n = len(value_S)
  sd = float(value_S.std(ddof=1)) if n > 1 else None
  return Summary(float(value_S.mean()), sd, n)


def paired_difference(
  own_S: Any,
  other_S: Any,
  own_SR: Any = None,
  other_SR: Any = None,
  rotation_S: Sequence[Any] | None = None,
  draws: int = DRAWS,
) -> Difference:
  """How much more `own` scores than `other`, run by run.

  Args:
    own_S: scores of the runs; run s of both has the same seed and rotation.
    other_S: of what they are compared with.
    own_SR, other_SR: scores of each run on R resamples of its test clips, the
      same for all runs of a rotation; None for an interval over seeds alone.
    rotation_S: of each run, anything that can be sorted; None = one for all.
    draws: of the bootstrap.

  Returns:
    The difference; the same numbers whatever the order of the runs, and those
    with the opposite sign if `own` and `other` change places.

  Raises:
    ValueError: shapes that do not fit, no run, a score that is not finite.
  """
  own_S, other_S = _checked('own_S', own_S, 1), _checked('other_S', other_S, 1)
  _same_shape('other_S', other_S, 'own_S', own_S)
  difference_S = own_S - other_S
  difference_SR = _resampled(
    {'own_SR': own_SR, 'other_SR': other_SR}, len(own_S)
  )
  if difference_SR is not None:
    difference_SR = difference_SR[0] - difference_SR[1]
  mean_W = _bootstrap([difference_S], [difference_SR], rotation_S, draws)
  low, high = _interval(mean_W[0]) if mean_W is not None else (None, None)
  summary = summarise(difference_S)
  return Difference(
    **dataclasses.asdict(summary),
    low=low,
    high=high,
    wins=int((difference_S > 0).sum()),
    losses=int((difference_S < 0).sum()),
    sign_p=sign_test(difference_S),
    permutation_p=permutation_test(difference_S),
    resamples=0 if difference_SR is None else difference_SR.shape[1],
  )


def clip_difference(
  truth: Any,
  own: Any,
  other: Any,
  level: str = 'coarse',
  resamples: int = 1000,
) -> dict[str, Any]:
  """How much more one model scores than another on the same clips.

  The interval of the difference in micro-AUPRC is over other test clips, drawn
  once for both models; it does not cover other seeds.

  Args:
    truth: [N, C], as for `metrics.score`.
    own: probabilities of the model, like `truth`.
    other: of what it is compared with.
    level: 'coarse' or 'fine'.
    resamples: of the clips; 0 for no interval.

  Returns:
    `difference`, `low` and `high` (the 2.5 and 97.5 % quantiles, None without
    resamples), `resamples` and `num_clips`: plain numbers; None also where no
    clip has a tag, and nothing can be scored.

  Raises:
    ValueError: as `metrics.score`.
  """
  found = {'resamples': resamples, 'num_clips': len(truth)}
  found |= dict.fromkeys(('difference', 'low', 'high'))
  both = [
    metrics.score(truth, scores, level)['micro_auprc']
    for scores in (own, other)
  ]
  if None in both:
    return found
  found['difference'] = both[0] - both[1]
  if resamples:
    own_R, other_R = (
      metrics.resample(truth, scores, level, resamples)['micro_auprc']
      for scores in (own, other)
    )
    drawn_R = own_R - other_R
    drawn_R = drawn_R[np.isfinite(drawn_R)]  # NaN of one without positives.
    if len(drawn_R):
      found['low'], found['high'] = _interval(drawn_R)
  return found


def gain_ratio(
  iusp_S: Any,
  sp_S: Any,
  base_S: Any,
  iusp_SR: Any = None,
  sp_SR: Any = None,
  base_SR: Any = None,
  rotation_S: Sequence[Any] | None = None,
  draws: int = DRAWS,
) -> Ratio:
  """The paper's r = (IUSP - base) / (SP - base) - 1, of mean scores.

  A ratio over a gain that may be 0 has no meaning, so it is withheld unless
  SP's gain is above 0 by more than its own 95 % interval.

  Args:
    iusp_S, sp_S, base_S: scores of the runs, of the same seeds.
    iusp_SR, sp_SR, base_SR, rotation_S, draws: as for `paired_difference`.

  Returns:
    r and its 95 % interval from draws that all three share; a draw in which SP
    does not gain counts as a ratio beyond all bounds. Raises ValueError as
    `paired_difference` does.
  """
  iusp_S = _checked('iusp_S', iusp_S, 1)
  sp_S, base_S = _checked('sp_S', sp_S, 1), _checked('base_S', base_S, 1)
  _same_shape('sp_S', sp_S, 'iusp_S', iusp_S)
  _same_shape('base_S', base_S, 'iusp_S', iusp_S)
  named = {'sp_SR': sp_SR, 'iusp_SR': iusp_SR, 'base_SR': base_SR}
  parts = _resampled(named, n := len(base_S))
  gains_SR = [None] * 2 if parts is None else [p - parts[2] for p in parts[:2]]
  # SP first: its draws are then those of its own paired difference.
  gains_S = [sp_S - base_S, iusp_S - base_S]
  gain_KW = _bootstrap(gains_S, gains_SR, rotation_S, draws)
  reason = _why_withheld(gains_S[0], gain_KW)
  if reason or gain_KW is None:
    return Ratio(None, None, None, n, reason)
  sp_W, iusp_W = gain_KW
  gains_W = sp_W > 0
  ratio_W = np.copysign(np.inf, iusp_W)
  ratio_W[gains_W] = iusp_W[gains_W] / sp_W[gains_W] - 1
  # No interpolation: next to an infinite draw it would give NaN.
  low, high = _interval(ratio_W, 'nearest')
  return Ratio(float(gains_S[1].mean() / gains_S[0].mean() - 1), low, high, n)


def sign_test(difference_S: Any) -> float:
  """Exact two-sided p of as many wins and losses; ties do not count."""
  difference_S = _checked('difference_S', difference_S, 1)
  wins, losses = int((difference_S > 0).sum()), int((difference_S < 0).sum())
  if not wins + losses:
    return 1.0
  return float(stats.binomtest(wins, wins + losses).pvalue)


def permutation_test(difference_S: Any) -> float:
  """Two-sided p of the mean if the sign of every difference were random.

  Exact, over all 2^n flips of the signs, up to 16 pairs; sampled from 99,999
  flips above that, so p is then at least 2e-5.
  """
  difference_S = _checked('difference_S', difference_S, 1)
  if len(difference_S) < 2:
    return 1.0
  # Sampled flips must depend neither on the order of the runs nor on which of
  # the two objectives is called `own`.
  difference_S = np.copysign(1.0, difference_S.sum()) * difference_S
  difference_S = difference_S[np.lexsort((difference_S, abs(difference_S)))]
  found = stats.permutation_test(
    (difference_S,),
    np.mean,
    permutation_type='samples',
    vectorized=True,
    n_resamples=FLIPS,
    batch=2**14,
    rng=np.random.default_rng(_SEED),
  )
  return float(found.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
  """p values that hold for all of a family of tests together.

  Args:
    p_values: of every test of the family.

  Returns:
    In the same order: the k-th smallest of m times m - k + 1, and no smaller
    than those before it; at most 1.

  References:
    Holm, A simple sequentially rejective multiple test procedure, 1979.
  """
  found = np.asarray(p_values, np.float64)
  order = np.argsort(found, kind='stable')
  steps = found[order] * np.arange(len(found), 0, -1)
  result = np.empty(len(found))
  result[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
  return result.tolist()


def _bootstrap(values_KS, values_KSR, rotation_S, draws) -> np.ndarray | None:
  """Means of K quantities in each draw, `[K, W]`; None if they cannot vary."""
  n = len(values_KS[0])
  rotation_S = [0] * n if rotation_S is None else list(rotation_S)
  if len(rotation_S) != n:
    raise ValueError(f'rotation_S has {len(rotation_S)} entries for {n} runs.')
  groups = [
    np.flatnonzero([own == rotation for own in rotation_S])
    for rotation in sorted(set(rotation_S))
  ]
  if min(map(len, groups)) < 2:
    return None
  alone = values_KSR[0] is None
  values_KSR = np.stack(values_KS)[..., None] if alone else np.stack(values_KSR)
  tail = (1 + CONFIDENCE) / 2
  student = special.stdtrit(n - len(groups), tail) / special.ndtri(tail)
  rng = np.random.default_rng(_SEED)
  total_KW = np.zeros((len(values_KS), draws))
  for rows in groups:
    # By size, so that neither the order of the runs nor the sign matters.
    rows = rows[
      np.lexsort(np.abs([values_KSR[0, rows, 0], values_KS[0][rows]]))
    ]
    size = len(rows)
    pick_WS = rows[rng.integers(size, size=(draws, size))]
    clips_W = rng.integers(values_KSR.shape[2], size=draws)
    centre_KW = values_KSR[:, rows].mean(axis=1)[:, clips_W]
    drawn_KW = values_KSR[:, pick_WS, clips_W[:, None]].mean(axis=2)
    wide = student * math.sqrt(size / (size - 1))
    total_KW += (centre_KW + wide * (drawn_KW - centre_KW)) * size / n
  return total_KW


def _why_withheld(gain_S, gain_KW) -> str:
  """Why SP's gain is no denominator; '' if it is one."""
  n, gain = len(gain_S), gain_S.mean()
  if gain <= 0:
    return f'SP does not gain ({gain:+.4f})'
  if n < 2:
    return f'{n} pair; at least two are needed'
  if gain_KW is None:
    return 'a rotation with one pair; at least two are needed in each'
  low, high = _interval(gain_KW[0])
  return '' if low > 0 else f"SP's gain [{low:+.4f}, {high:+.4f}] holds 0"


def _interval(value_W: np.ndarray, method: Any = 'linear') -> list[float]:
  tails = (1 + np.array([-CONFIDENCE, CONFIDENCE])) / 2
  return np.quantile(value_W, tails, method=method).tolist()


def _resampled(parts, n: int) -> list[np.ndarray] | None:
  """All as `[S, R]` of one shape; None where none is given."""
  absent = [name for name, value in parts.items() if value is None]
  if len(absent) == len(parts):
    return None
  if absent:
    raise ValueError(f'{absent} not given, but {sorted({*parts} - {*absent})}.')
  arrays = {name: _checked(name, value, 2) for name, value in parts.items()}
  first = next(iter(arrays))
  if len(arrays[first]) != n:
    raise ValueError(f'{first} has {len(arrays[first])} rows for {n} runs.')
  for name, array in arrays.items():
    _same_shape(name, array, first, arrays[first])
  return list(arrays.values())


def _checked(name: str, values: Any, ndim: int) -> np.ndarray:
  array = np.asarray(values, np.float64)
  if array.ndim != ndim or 0 in array.shape:
    legal = '[runs, resamples]' if ndim == 2 else '[runs]'
    raise ValueError(
      f'{name} has shape {array.shape}; expected {legal}, at least one of each.'
    )
  if not np.isfinite(array).all():
    at = np.argwhere(~np.isfinite(array))[0].tolist()
    raise ValueError(f'{name}{at} is not a finite number.')
  return array


def _same_shape(name, array, other_name, other) -> None:
  if array.shape != other.shape:
    raise ValueError(
      f'{name} has shape {array.shape}, {other_name} {other.shape}; expected '
      'the same runs in the same order.'
    )
