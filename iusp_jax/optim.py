"""Learning-rate schedule and optimiser."""

from collections.abc import Mapping
from typing import Any

import jax
import optax


def schedule(
  training: Mapping[str, Any], num_steps: int, steps_per_epoch: float
) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine down to 0 at the last step."""
  warmup = round(training['warmup_epochs'] * steps_per_epoch)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=training['learning_rate'],
    warmup_steps=min(warmup, num_steps - 1),
    decay_steps=num_steps,
  )


def optimizer(
  training: Mapping[str, Any], learning_rate: optax.Schedule
) -> optax.GradientTransformation:
  """AdamW after clipping by global norm; only matrices and kernels decay."""

  def decays(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)

  clip = training['clip_norm']
  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.adamw(
      learning_rate, weight_decay=training['weight_decay'], mask=decays
    ),
  )
