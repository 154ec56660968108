"""How long to train, learning-rate schedule and optimiser."""

import dataclasses

import jax
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


def optimizer(training: Training, plan: Plan) -> optax.GradientTransformation:
  """AdamW after clipping by global norm; only matrices and kernels decay."""

  def decays(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)

  clip = training.clip_norm
  return optax.chain(
    optax.clip_by_global_norm(clip) if clip else optax.identity(),
    optax.adamw(
      schedule(training, plan), weight_decay=training.weight_decay, mask=decays
    ),
  )
