"""How long to train, learning-rate schedule and optimiser."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from iusp_jax.training.recipe import Training


@dataclasses.dataclass(frozen=True)
class Plan:
  """Numbers of steps that follow from a recipe and a data set."""

  num_steps: int
  eval_every_steps: int
  steps_per_epoch: float

  @classmethod
  def of(cls, training: Training, num_clips: int) -> 'Plan':
    """Epochs counted in steps, at least one of each."""
    steps_per_epoch = num_clips / training.batch_size
    return cls(
      num_steps=max(2, round(training.epochs * steps_per_epoch)),
      eval_every_steps=max(
        1, round(training.eval_every_epochs * steps_per_epoch)
      ),
      steps_per_epoch=steps_per_epoch,
    )

  def next_milestone(self, step: int) -> int:
    """Steps done at the next validation after `step` steps."""
    following = (step // self.eval_every_steps + 1) * self.eval_every_steps
    return min(following, self.num_steps)


def schedule(training: Training, plan: Plan) -> optax.Schedule:
  """Linear warm-up from 0, then half a cosine down to 0 after the last step."""
  warmup = round(training.warmup_epochs * plan.steps_per_epoch)
  return optax.warmup_cosine_decay_schedule(
    init_value=0.0,
    peak_value=training.learning_rate,
    warmup_steps=min(warmup, plan.num_steps - 1),
    decay_steps=plan.num_steps,
  )


class RunningNorm(NamedTuple):
  """State of `clip_by_running_norm`.

  Attributes:
    count: gradients so far, those of length 0 left out.
    mean_log: running mean of the logarithm of their lengths, from 0.
    num_clipped: how many were shortened.
  """

  count: jax.Array
  mean_log: jax.Array
  num_clipped: jax.Array


def clip_by_running_norm(
  factor: float, decay: float = 0.98
) -> optax.GradientTransformation:
  """Shortens a gradient that is longer than others have been of late.

  The limit is `factor` times the running geometric mean of the global norms of
  the gradients before it; the first one is not clipped. Adam's steps do not
  depend on the scale of the loss, but with a fixed limit clipping does: another
  term would bring more clipping, which by itself changes a student. Ours; that
  the limit follows the history of norms is after AutoClip (Seetharaman et al.,
  MLSP 2020), which takes a percentile.

  Args:
    factor: of the running mean; 0 for no clipping.
    decay: of the running mean: half of it is of the last 34 steps.

  Returns:
    A transformation whose state is a `RunningNorm`.
  """

  def init(params: Any) -> RunningNorm:
    del params
    zero = jnp.zeros((), jnp.int32)
    return RunningNorm(zero, jnp.zeros((), jnp.float32), zero)

  def update(updates, state: Any, params=None):
    del params
    norm = optax.global_norm(updates)
    # Of those before it; debiased, as Adam does, for the zero it began with.
    before = jnp.maximum(state.count, 1)
    limit = factor * jnp.exp(state.mean_log / (1 - decay**before))
    clips = (norm > limit) & (state.count > 0) & (factor > 0)
    scale = jnp.where(clips, limit / jnp.maximum(norm, limit), 1.0)
    updates = jax.tree.map(lambda g: (scale * g).astype(g.dtype), updates)
    counts = norm > 0
    log = jnp.log(jnp.where(counts, norm, 1.0))
    mean_log = decay * state.mean_log + (1 - decay) * log
    return updates, RunningNorm(
      count=state.count + counts,
      mean_log=jnp.where(counts, mean_log, state.mean_log),
      num_clipped=state.num_clipped + clips,
    )

  return optax.GradientTransformation(init, update)


def clipped_share(opt_state: Any) -> jax.Array:
  """Of the steps so far, the share whose gradient was clipped."""
  running: RunningNorm = opt_state[0]
  return running.num_clipped / jnp.maximum(running.count, 1)


def optimizer(training: Training, plan: Plan) -> optax.GradientTransformation:
  """AdamW after clipping by running norm; only matrices and kernels decay."""

  def decays(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)

  return optax.chain(
    clip_by_running_norm(training.clip_factor),
    optax.adamw(
      schedule(training, plan), weight_decay=training.weight_decay, mask=decays
    ),
  )
