"""The train step: one pure function for any tagger, teacher or none.

Every device holds its clips' share of the loss, and the shares add up to the
loss of the global batch. So the result does not depend on the number of
devices. Every random number is a function of seed, step and clip.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.audio import augment
from iusp_jax.data import datasets
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, similarity
from iusp_jax.runtime import devices
from iusp_jax.training import accumulate

# The distillation terms, and what each needs of the teacher in a batch.
TARGETS = {
  'kd': 'teacher_logits',
  'sp': 'teacher_batch_gram',
  'iusp': 'teacher_frame_gram',
  'iusp_centred': 'teacher_frame_gram',
}
DISTILLATION_TERMS = tuple(TARGETS)


@flax.struct.dataclass
class State:
  """All that changes while training.

  Attributes:
    step: steps done.
    params: of the model.
    batch_stats: BatchNorm's running statistics.
    opt_state: of the optimiser.
    average: exponential moving average of params and batch_stats, or {}.
  """

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any

  def variables(self) -> dict[str, Any]:
    """What to evaluate: the moving average where there is one."""
    own = {'params': self.params, 'batch_stats': self.batch_stats}
    return self.average or own


@dataclasses.dataclass(frozen=True)
class Teacher:
  """A frozen tagger whose outputs the student is held against."""

  model: tagger.Tagger
  variables: tagger.Variables


@dataclasses.dataclass(frozen=True)
class Job:
  """One model to fit.

  Attributes:
    name: for the log, 'teacher' or 'student'.
    recipe: `model`, `frontend`, `training` and `augment` of configs/base.py.
    objective: `config.objective`; its weights are ignored without a teacher.
    dataset: to train and validate on.
    seed: of initial values, order, augmentation and dropout.
    workdir: where checkpoints and logs go.
    teacher: to distil from, if any.
    targets: gives the teacher's outputs for a batch from a store, so that
      the teacher need not run (see `store.py`).
    on_nan: `config.on_nan`.
    profile_steps: `config.profile_steps`.
  """

  name: str
  recipe: Mapping[str, Any]
  objective: Mapping[str, Any]
  dataset: datasets.Dataset
  seed: int
  workdir: pathlib.Path
  teacher: Teacher | None = None
  targets: Callable[[dict], dict] | None = None
  on_nan: str = 'stop'
  profile_steps: int = 0

  def settings(self) -> dict[str, np.generic]:
    """What tells apart the jobs that one compiled step serves."""
    weights = {
      term: np.float32(self.objective[f'{term}_weight'])
      for term in self.terms()
    }
    return {'seed': np.uint32(self.seed), **weights}

  def terms(self) -> tuple[str, ...]:
    """The distillation terms that are switched on."""
    if self.teacher is None:
      return ()
    return tuple(
      term for term in DISTILLATION_TERMS if self.objective[f'{term}_weight']
    )


def teacher_outputs(output, terms) -> dict[str, jax.Array]:
  """What the objectives need of a teacher's `TaggerOutput`, inside a step."""
  wanted, needed = {TARGETS[term] for term in terms}, {}
  if 'teacher_logits' in wanted:
    needed['teacher_logits'] = output.logits_BC
  if 'teacher_frame_gram' in wanted:
    needed['teacher_frame_gram'] = jax.vmap(similarity.gram)(output.frames_BTD)
  if 'teacher_batch_gram' in wanted:
    own = similarity.flatten_clips(output.frames_BTD)
    needed['teacher_batch_gram'] = similarity.gram(own, devices.gather(own))
  return needed


def targets_given(batch: Mapping[str, Any], terms) -> bool:
  """Whether a batch brings the teacher's outputs from a store."""
  return all(TARGETS[term] in batch for term in terms)


def distillation_per_clip(
  output, batch: Mapping[str, jax.Array], job: Job, terms
) -> dict[str, jax.Array]:
  """Values `[b]` of each term, whose mean over the global batch is its loss."""
  values = {}
  if 'kd' in terms:
    values['kd'] = losses.kd_per_clip(
      output.logits_BC,
      batch['teacher_logits'],
      job.objective['kd_temperature'],
    )
  if 'sp' in terms:
    values['sp'] = losses.sp_per_clip(
      output.frames_BTD, batch['teacher_batch_gram'], devices.AXIS
    )
  for term, centred in (('iusp', False), ('iusp_centred', True)):
    if term not in terms:
      continue
    teacher_BTT = batch['teacher_frame_gram']
    num_frames = min(output.frames_BTD.shape[1], teacher_BTT.shape[1])
    mask_BT = frame_mask(batch['length'], job.dataset.num_samples, num_frames)
    values[term] = losses.iusp_per_clip(
      output.frames_BTD, teacher_BTT, mask_BT, centred
    )
  return values


def frame_mask(
  length_B: jax.Array, num_samples: int, num_frames: int
) -> jax.Array:
  """1 for the frames that hear the recording, 0 for padding, `[B, T]`."""
  starts_T = jnp.arange(num_frames) * (num_samples / num_frames)
  return (starts_T[None] < length_B[:, None]).astype(jnp.float32)


def make_step(
  student: tagger.Tagger, optimizer: optax.GradientTransformation, job: Job
) -> Callable:
  """The pure train step, to be mapped over devices by `parallel.pmap`.

  Every device holds its clips' share of the loss: sums of its own clips
  divided by counts of all clips. The shares add up to the loss of the global
  batch, so the gradients are summed, and the result does not depend on how
  many devices share the batch (a mean of means would, with masks).

  Returns:
    `step(state, teacher_variables, settings, batch)`: the next state, and the
    values of the loss, its terms and the length of the gradient.
  """
  prepare, loss_share = _make_prepare(student, job), _make_loss(student, job)
  num_parts = job.recipe['training']['accumulate_steps']
  decay = job.recipe['training']['ema_decay']

  def step(state: State, teacher_variables, settings, batch):
    known = jax.lax.psum(jnp.sum(batch['mask']), devices.AXIS)

    def part(batch_stats, batch):
      """Some of the clips: new statistics; gradients and shares of the loss."""
      keys_B = tagger.clip_keys(settings['seed'], state.step, batch['index'])
      batch = prepare(batch, keys_B, teacher_variables)
      gradients, (shares, batch_stats) = jax.grad(loss_share, has_aux=True)(
        state.params, batch_stats, batch, keys_B, settings, known
      )
      return batch_stats, (gradients, shares)

    batch_stats, sums = accumulate.over_parts(
      part, state.batch_stats, batch, num_parts
    )
    gradients, shares = jax.lax.psum(sums, devices.AXIS)
    changes, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, changes),
      batch_stats=batch_stats,
      opt_state=opt_state,
    )
    if decay:
      own = {'params': state.params, 'batch_stats': state.batch_stats}
      state = dataclasses.replace(
        state, average=optax.incremental_update(own, state.average, 1 - decay)
      )
    return state, shares | {'gradient_norm': optax.global_norm(gradients)}

  return step


def _make_prepare(student: tagger.Tagger, job: Job) -> Callable:
  """What a batch still lacks: the student's log-mel, the teacher's outputs."""
  terms, hearing = job.terms(), job.recipe['augment']
  masks = augment.spec_augment_config(hearing)
  roll = hearing['time_roll_seconds']

  def hear(model, wave_BS, keys_B):
    if roll:
      wave_BS = augment.time_roll(wave_BS, tagger.subkeys(keys_B, 0), roll)
    return tagger.log_mel(model, wave_BS, tagger.subkeys(keys_B, 1), masks)

  def prepare(batch, keys_B, teacher_variables):
    if terms and not targets_given(batch, terms):
      assert job.teacher is not None
      heard = hear(job.teacher.model, batch['wave'], keys_B)
      output = tagger.apply(job.teacher.model, teacher_variables, heard)
      batch = batch | teacher_outputs(output, terms)
    if 'mel' in batch:
      mel_BTF = tagger.mask(batch['mel'], tagger.subkeys(keys_B, 1), masks)
    else:
      mel_BTF = hear(student, batch['wave'], keys_B)
    return batch | {'mel': mel_BTF}

  return prepare


def _make_loss(student: tagger.Tagger, job: Job) -> Callable:
  """A device's share of the loss; also its terms and BatchNorm's statistics."""
  terms = job.terms()
  num_parts = job.recipe['training']['accumulate_steps']

  def loss_share(params, batch_stats, batch, keys_B, settings, known):
    output, updates = student.module.apply(
      {'params': params, 'batch_stats': batch_stats},
      batch['mel'],
      train=True,
      keys_B=tagger.subkeys(keys_B, 2),
      mutable=['batch_stats'],
    )
    entropy_BC = losses.tagging_per_tag(
      output.logits_BC, batch['tags'], batch['mask']
    )
    shares = {'tagging': jnp.sum(entropy_BC) / jnp.maximum(known, 1.0)}
    values = distillation_per_clip(output, batch, job, terms)
    for term, value_B in values.items():
      num_clips = value_B.shape[0] * jax.lax.axis_size(devices.AXIS)
      shares[term] = jnp.sum(value_B) / (num_clips * num_parts)
    loss = shares['tagging']
    for term in terms:
      loss = loss + settings[term] * shares[term]
    return loss, (shares | {'loss': loss}, updates.get('batch_stats', {}))

  return loss_share


def initial_state(
  student: tagger.Tagger,
  optimizer: optax.GradientTransformation,
  job: Job,
) -> State:
  """The state before the first step, on the host."""
  variables = student.initialise(job.seed, job.dataset.num_samples)
  average = variables if job.recipe['training']['ema_decay'] else {}
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
    average=average,
  )
  return jax.tree.map(np.asarray, state)
