"""A linear probe: one logistic layer on what a frozen model gives of a clip.

The loss is convex and small, so that L-BFGS finds its one minimum in seconds,
and no step size, order or seed is left to choose.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.runtime import preemption

# Of the squared weights, beside the mean loss of a clip and all its tags: each
# three times the next, from features that hardly count to ones that are free.
PENALTIES = tuple(10.0 ** (-k / 2) for k in range(9))
_ITERATIONS = 300
_LEAST_GRADIENT = 1e-4  # Its norm, where the search ends.


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
  standard = Labelled(
    (features_NP - mean_P) / scale_P, train.tags_NC, train.mask_NC
  )
  standard = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), standard)
  count = train.tags_NC.shape[1]
  own = Probe(*(np.zeros(n, 'f4') for n in ((len(mean_P), count), count)))
  found = []
  for penalty in PENALTIES:  # Each begins where the last one ended.
    preemption.check()
    own = _minimise(own, standard, penalty)
    kernel_PC, bias_C = (np.asarray(x, np.float64) for x in own)
    kernel_PC = kernel_PC / scale_P[:, None]
    found.append(Probe(kernel_PC, bias_C - mean_P @ kernel_PC))
  return found


def loss(probe: Probe, clips: Labelled) -> float:
  """Mean over the clips of the cross-entropy, summed over their tags."""
  logits_NC = probe.logits(clips.features_NP)
  return float(_cross_entropy(logits_NC, clips, np))


def _cross_entropy(logits_NC, clips: Labelled, xp):
  """softplus(x) - x y, where the mask is 1, in NumPy or JAX."""
  each_NC = xp.logaddexp(0.0, logits_NC) - logits_NC * clips.tags_NC
  return (each_NC * clips.mask_NC).sum() / len(logits_NC)


@jax.jit
def _minimise(start: Probe, clips: Labelled, penalty) -> Probe:
  """The least cross-entropy and penalty, from a first guess.

  Not by NumPy, whose threads wait for each other in every small product: on
  busy cores that takes 20 times as long.
  """

  def objective(own: Probe):
    product_NC = jnp.matmul(
      clips.features_NP, own.kernel_PC, precision='highest'
    )
    value = _cross_entropy(product_NC + own.bias_C[None], clips, jnp)
    return value + 0.5 * penalty * jnp.square(own.kernel_PC).sum()

  solver = optax.lbfgs()
  value_and_gradient = optax.value_and_grad_from_state(objective)

  def step(carry):
    own, state = carry
    value, gradient = value_and_gradient(own, state=state)
    updates, state = solver.update(
      gradient, state, own, value=value, grad=gradient, value_fn=objective
    )
    own = jax.tree.map(jnp.add, own, updates)
    return own, state

  def goes_on(carry):
    count = optax.tree.get(carry[1], 'count')
    norm = optax.tree.norm(optax.tree.get(carry[1], 'grad'))
    return (count == 0) | ((count < _ITERATIONS) & (norm > _LEAST_GRADIENT))

  return jax.lax.while_loop(goes_on, step, (start, solver.init(start)))[0]
