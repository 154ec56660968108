"""From logits to probabilities that mean something, and from these to tags.

A tag's temperature T divides its logits: σ(z / T) is as often right as it says
(Guo et al., ICML 2017, arXiv 1706.04599, here one number a tag). Its threshold
is the one with the best F1 on the calibrated probabilities; of equal ones the
highest. Both are fitted on the validation split, when training ends, and stay
with the checkpoint as `calibration.json`.

A tag with fewer than `MIN_POSITIVES` labelled positives keeps 1 and .5.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.runtime import files

NAME = 'calibration.json'
MIN_POSITIVES = 5
_RANGE = (0.05, 20.0)  # Of temperatures.
_NUM_BINS = 10
_TINY = 1e-12  # What a probability is at least away from 0 and 1.


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How logits become tags.

  Attributes:
    temperatures_C: by which the logits of a tag are divided.
    thresholds_C: from which on a calibrated probability is a tag.
    uncalibrated: names of the tags that keep 1 and .5.
    fitted_on: the split, or '' where nothing was fitted.
  """

  temperatures_C: np.ndarray
  thresholds_C: np.ndarray
  uncalibrated: tuple[str, ...] = ()
  fitted_on: str = ''

  def probabilities(self, logits: np.ndarray) -> np.ndarray:
    """Calibrated probabilities of logits [..., C], float64."""
    scaled = np.asarray(logits, np.float64) / self.temperatures_C
    return np.exp(-np.logaddexp(0.0, -scaled))


def default(tags: Sequence[str]) -> Calibration:
  """The calibration of a checkpoint that has none: 1 and .5."""
  ones_C = np.ones(len(tags))
  return Calibration(ones_C, 0.5 * ones_C, tuple(tags))


def fit(
  probabilities_NC: np.ndarray,
  tags_NC: np.ndarray,
  mask_NC: np.ndarray,
  names: Sequence[str],
  split: str,
) -> Calibration:
  """Temperatures, then thresholds.

  Args:
    probabilities_NC: of the model as it is, float64.
    tags_NC: 1 where a tag is present.
    mask_NC: 1 where the tag is labelled.
    names: of the tags.
    split: what the clips are of.
  """
  temperatures_C, thresholds_C = np.ones(len(names)), np.full(len(names), 0.5)
  uncalibrated = []
  for c, name in enumerate(names):
    labelled_N = mask_NC[:, c] > 0
    present_N = tags_NC[labelled_N, c] > 0.5
    if present_N.sum() < MIN_POSITIVES:
      uncalibrated.append(name)
      continue
    logits_N = logit(probabilities_NC[labelled_N, c])
    temperatures_C[c] = fit_temperature(logits_N, present_N)
    calibrated_N = 1 / (1 + np.exp(-logits_N / temperatures_C[c]))
    thresholds_C[c] = best_threshold(calibrated_N, present_N)
  return Calibration(temperatures_C, thresholds_C, tuple(uncalibrated), split)


def reliability(
  probabilities_NC: np.ndarray, tags_NC: np.ndarray, mask_NC: np.ndarray
) -> dict[str, Any]:
  """How often tags are there, by how probable they were said to be.

  Over all labelled tags of all clips, in ten bins of equal width.

  Args:
    probabilities_NC: within 0 and 1.
    tags_NC: 1 where a tag is present.
    mask_NC: 1 where the tag is labelled.

  Returns:
    `count`, `probability` (its mean) and `present` (a fraction) by bin, None
    where it is empty, and `error`, the expected calibration error: the mean
    difference of the two, weighted by count (Guo et al., equation 3).
  """
  labelled = mask_NC > 0
  scores, present = probabilities_NC[labelled], tags_NC[labelled] > 0.5
  bins = np.minimum((scores * _NUM_BINS).astype(int), _NUM_BINS - 1)
  count = np.bincount(bins, minlength=_NUM_BINS)
  sums = [
    np.bincount(bins, weights=values, minlength=_NUM_BINS)
    for values in (scores, present)
  ]
  means = [
    [total / n if n else None for total, n in zip(sum_, count, strict=True)]
    for sum_ in sums
  ]
  error = float(np.abs(sums[0] - sums[1]).sum() / max(1, count.sum()))
  return {
    'count': count.tolist(),
    'probability': means[0],
    'present': means[1],
    'error': error,
  }


def fit_temperature(logits_N: np.ndarray, present_N: np.ndarray) -> float:
  """The temperature with the least cross-entropy, within .05 and 20.

  Args:
    logits_N: of one tag.
    present_N: bool, whether it is present.
  """
  from scipy import optimize

  sign_N = np.where(present_N, -1.0, 1.0)

  def loss(log_temperature):
    scaled_N = logits_N / np.exp(log_temperature)
    return np.logaddexp(0.0, sign_N * scaled_N).mean()

  found = optimize.minimize_scalar(
    loss, bounds=np.log(_RANGE), method='bounded', options={'xatol': 1e-4}
  )
  return float(np.exp(found.x))


def best_threshold(scores_N: np.ndarray, present_N: np.ndarray) -> float:
  """The threshold with the best F1; of equal ones the highest.

  It lies halfway between the lowest score that is a tag and the next one
  below.

  Args:
    scores_N: probabilities of one tag.
    present_N: bool, whether it is present.
  """
  order_N = np.argsort(-scores_N, kind='stable')
  scores_N, present_N = scores_N[order_N], present_N[order_N]
  tp_N = np.cumsum(present_N)
  f1_N = 2 * tp_N / (np.arange(1, len(scores_N) + 1) + present_N.sum())
  below_N = np.append(scores_N[1:], 0.0)
  f1_N = np.where(scores_N > below_N, f1_N, -1.0)  # Ties go together.
  best = int(np.argmax(f1_N))
  return float((scores_N[best] + below_N[best]) / 2)


def save(
  folder: pathlib.Path,
  found: Calibration,
  names: Sequence[str],
  measured: Mapping[str, Any] | None = None,
) -> None:
  """Writes `calibration.json` into a folder.

  Args:
    folder: of the run.
    found: what was fitted.
    names: of the tags.
    measured: the `reliability` before and after it, for a plot.
  """
  content = plain(found, names) | {'reliability': dict(measured or {})}
  files.write_atomically(folder / NAME, files.to_json(content))


def plain(found: Calibration, names: Sequence[str]) -> dict[str, Any]:
  """A calibration as JSON has it."""
  return {
    'fitted_on': found.fitted_on,
    'temperatures': dict(zip(names, found.temperatures_C, strict=True)),
    'thresholds': dict(zip(names, found.thresholds_C, strict=True)),
    'uncalibrated': list(found.uncalibrated),
  }


def load(folder: pathlib.Path, names: Sequence[str]) -> Calibration:
  """The calibration of a folder; the default where there is none.

  Raises:
    ValueError: where the file is damaged or of other tags.
  """
  path = folder / NAME
  if not path.exists():
    return default(names)
  remedy = 'delete it to tag with thresholds of .5'
  of = files.read_json(path, remedy)
  try:
    return from_plain(of, names)
  except ValueError as error:
    raise ValueError(f'{path}: {error}; {remedy}') from error


def from_plain(of: Mapping[str, Any], names: Sequence[str]) -> Calibration:
  """A calibration from what `plain` gives.

  Raises:
    ValueError: where it is damaged or of other tags.
  """
  try:
    temperatures_C, thresholds_C = (
      _column(of[key], names) for key in ('temperatures', 'thresholds')
    )
    uncalibrated, split = tuple(of['uncalibrated']), of['fitted_on']
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      'expected a temperature above 0 and a threshold for each of the tags '
      f'{list(names)} ({type(error).__name__}: {error})'
    ) from error
  return Calibration(temperatures_C, thresholds_C, uncalibrated, split)


def _column(by_name: Mapping[str, float], names: Sequence[str]) -> np.ndarray:
  if list(by_name) != list(names):
    raise ValueError(f'found the tags {list(by_name)}')
  values_C = np.array([by_name[name] for name in names], np.float64)
  if not (np.isfinite(values_C) & (values_C >= 0)).all():
    raise ValueError(f'found {values_C.tolist()}')
  return values_C


def logit(probabilities: np.ndarray) -> np.ndarray:
  """The logits of probabilities; finite for 0 and 1, too."""
  clipped = np.clip(probabilities, _TINY, 1 - _TINY)
  return np.log(clipped) - np.log1p(-clipped)
