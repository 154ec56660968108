"""A linear probe: one logistic layer on what a frozen model gives of a clip.

The loss is convex and small, so that L-BFGS finds its one minimum in seconds,
and no step size, order or seed is left to choose.
"""

from typing import NamedTuple

import numpy as np
from scipy import optimize, special

from iusp_jax.runtime import preemption

# Of the squared weights, beside the mean loss of a clip and all its tags: each
# three times the next, from features that hardly count to ones that are free.
PENALTIES = tuple(10.0 ** (-k / 2) for k in range(9))
_ITERATIONS = 300


class Probe(NamedTuple):
  """A logistic layer: `features_NP @ kernel_PC + bias_C` are logits."""

  kernel_PC: np.ndarray
  bias_C: np.ndarray

  def logits(self, features_NP: np.ndarray) -> np.ndarray:
    """Logits [N, C] of features [N, P]."""
    return features_NP @ self.kernel_PC + self.bias_C


class Labelled(NamedTuple):
  """Features of clips, their tags in [0, 1], and 1 where a tag counts."""

  features_NP: np.ndarray
  tags_NC: np.ndarray
  mask_NC: np.ndarray


def fit(train: Labelled) -> list[Probe]:
  """A probe for each of `PENALTIES`, on standardised features.

  Standardisation is part of the layers that are returned: they take the
  features as they are.
  """
  features_NP = np.asarray(train.features_NP, np.float64)
  mean_P, scale_P = features_NP.mean(0), features_NP.std(0)
  # A feature that hardly varies in training may in other clips.
  scale_P = np.maximum(scale_P, 1e-3 * max(1e-6, float(scale_P.max())))
  standard = train._replace(features_NP=(features_NP - mean_P) / scale_P)
  flat = np.zeros((features_NP.shape[1] + 1) * train.tags_NC.shape[1])
  found = []
  for penalty in PENALTIES:  # Each begins where the last one ended.
    preemption.check()
    flat = _minimise(flat, standard, penalty)
    weights = flat.reshape(-1, train.tags_NC.shape[1])
    kernel_PC = weights[:-1] / scale_P[:, None]
    found.append(Probe(kernel_PC, weights[-1] - mean_P @ kernel_PC))
  return found


def loss(probe: Probe, clips: Labelled) -> float:
  """Mean over the clips of the cross-entropy, summed over their tags."""
  return _cross_entropy(probe.logits(clips.features_NP), clips)


def _cross_entropy(logits_NC, clips: Labelled) -> float:
  """softplus(x) - x y, where the mask is 1."""
  each_NC = np.logaddexp(0.0, logits_NC) - logits_NC * clips.tags_NC
  return float((each_NC * clips.mask_NC).sum()) / len(logits_NC)


def _minimise(flat, clips: Labelled, penalty: float) -> np.ndarray:
  features_NP, count = clips.features_NP, clips.tags_NC.shape[1]

  def objective(flat):
    weights = flat.reshape(-1, count)
    logits_NC = features_NP @ weights[:-1] + weights[-1]
    value = _cross_entropy(logits_NC, clips)
    value += 0.5 * penalty * float(np.square(weights[:-1]).sum())
    error_NC = (special.expit(logits_NC) - clips.tags_NC) * clips.mask_NC
    error_NC /= len(logits_NC)
    gradient = np.concatenate(
      [features_NP.T @ error_NC + penalty * weights[:-1], error_NC.sum(0)[None]]
    )
    return value, gradient.ravel()

  found = optimize.minimize(
    objective,
    flat,
    jac=True,
    method='L-BFGS-B',
    options={'maxiter': _ITERATIONS, 'ftol': 1e-7, 'gtol': 1e-5},
  )
  return found.x
