"""The train step and the loop, for any tagger, with or without a teacher.

The loop's law: a checkpoint is saved *before* the next batch is taken, so
that the saved stream stands exactly behind the saved state; the metrics of
step n are fetched after step n + 1 has been dispatched, so that the device
never waits for the host. Every random number is a function of seed, step and
clip: a killed run that is started again ends in the same bits.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import flax.serialization
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax import (
  augment,
  checkpoint,
  data,
  evaluate,
  logs,
  objectives,
  optim,
  parallel,
  similarity,
  tagger,
)

_REMEDY = (
  'lower the learning_rate or the weights of the objective. What was saved at '
  'the last validation is kept in'
)

DISTILLATION_TERMS = ('kd', 'sp', 'iusp')


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
      the teacher need not run (see `teacher.py`).
  """

  name: str
  recipe: Mapping[str, Any]
  objective: Mapping[str, Any]
  dataset: data.Dataset
  seed: int
  workdir: pathlib.Path
  teacher: Teacher | None = None
  targets: Callable[[dict], dict] | None = None

  def terms(self) -> tuple[str, ...]:
    """The distillation terms that are switched on."""
    if self.teacher is None:
      return ()
    return tuple(
      term for term in DISTILLATION_TERMS if self.objective[f'{term}_weight']
    )


def teacher_outputs(output, terms) -> dict[str, jax.Array]:
  """What the objectives need of a teacher's `TaggerOutput`, inside a step."""
  needed = {}
  if 'kd' in terms:
    needed['teacher_logits'] = output.logits_BC
  if 'iusp' in terms:
    needed['teacher_frame_gram'] = jax.vmap(similarity.gram)(output.frames_BTD)
  if 'sp' in terms:
    own = similarity.flatten_clips(output.frames_BTD)
    needed['teacher_batch_gram'] = similarity.gram(own, parallel.gather(own))
  return needed


def distillation_per_clip(
  output, batch: Mapping[str, jax.Array], objective: Mapping[str, Any], terms
) -> dict[str, jax.Array]:
  """Values `[b]` of each term, whose mean over the global batch is its loss."""
  values = {}
  if 'kd' in terms:
    values['kd'] = objectives.kd_per_clip(
      output.logits_BC, batch['teacher_logits'], objective['kd_temperature']
    )
  if 'sp' in terms:
    values['sp'] = objectives.sp_per_clip(
      output.frames_BTD, batch['teacher_batch_gram'], parallel.AXIS
    )
  if 'iusp' in terms:
    teacher_BTT = batch['teacher_frame_gram']
    num_frames = min(output.frames_BTD.shape[1], teacher_BTT.shape[1])
    mask_BT = frame_mask(batch['length'], batch['wave'].shape[1], num_frames)
    values['iusp'] = objectives.iusp_per_clip(
      output.frames_BTD, teacher_BTT, mask_BT
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
  """
  terms = job.terms()
  hearing = job.recipe['augment']
  masks = augment_config(hearing)
  decay = job.recipe['training']['ema_decay']

  def listen(batch, step):
    keys_B = tagger.clip_keys(job.seed, step, batch['index'])
    wave_BS = batch['wave']
    if hearing['time_roll_seconds']:
      wave_BS = augment.time_roll(
        wave_BS, tagger.subkeys(keys_B, 0), hearing['time_roll_seconds']
      )
    return wave_BS, tagger.subkeys(keys_B, 1), tagger.subkeys(keys_B, 2)

  def step(state: State, teacher_variables, weights, batch):
    wave_BS, mask_keys_B, dropout_keys_B = listen(batch, state.step)
    if terms and job.targets is None:
      assert job.teacher is not None
      heard = tagger.hear(job.teacher.model, wave_BS, mask_keys_B, masks)
      output = tagger.apply(job.teacher.model, teacher_variables, heard)
      batch = batch | teacher_outputs(output, terms)

    def loss_share(params):
      output, updates = student.module.apply(
        {'params': params, 'batch_stats': state.batch_stats},
        tagger.hear(student, wave_BS, mask_keys_B, masks),
        train=True,
        keys_B=dropout_keys_B,
        mutable=['batch_stats'],
      )
      entropy_BC = objectives.tagging_per_tag(
        output.logits_BC, batch['tags'], batch['mask']
      )
      known = jax.lax.psum(jnp.sum(batch['mask']), parallel.AXIS)
      shares = {'tagging': jnp.sum(entropy_BC) / jnp.maximum(known, 1.0)}
      values = distillation_per_clip(output, batch, job.objective, terms)
      for term, value_B in values.items():
        num_clips = value_B.shape[0] * jax.lax.axis_size(parallel.AXIS)
        shares[term] = jnp.sum(value_B) / num_clips
      loss = shares['tagging']
      for term in terms:
        loss = loss + weights[term] * shares[term]
      return loss, (shares | {'loss': loss}, updates)

    gradients, (shares, updates) = jax.grad(loss_share, has_aux=True)(
      state.params
    )
    gradients, shares = jax.lax.psum((gradients, shares), parallel.AXIS)
    changes, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, changes),
      batch_stats=updates.get('batch_stats', {}),
      opt_state=opt_state,
    )
    if decay:
      own = {'params': state.params, 'batch_stats': state.batch_stats}
      state = dataclasses.replace(
        state, average=optax.incremental_update(own, state.average, 1 - decay)
      )
    return state, shares | {'gradient_norm': optax.global_norm(gradients)}

  return step


def augment_config(hearing: Mapping[str, Any]):
  """SpecAugment's settings from `augment` of a recipe; None where off."""
  config = augment.SpecAugmentConfig(
    num_time_masks=hearing['num_time_masks'],
    max_time_fraction=hearing['max_time_fraction'],
    num_mel_masks=hearing['num_mel_masks'],
    max_mel_fraction=hearing['max_mel_fraction'],
  )
  return config if config.num_time_masks or config.num_mel_masks else None


def initial_state(
  student: tagger.Tagger,
  optimizer: optax.GradientTransformation,
  job: Job,
  num_samples: int,
) -> State:
  """The state before the first step, on the host."""
  variables = student.initialise(job.seed, num_samples)
  average = variables if job.recipe['training']['ema_decay'] else {}
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=variables['params'],
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(variables['params']),
    average=average,
  )
  return jax.tree.map(np.asarray, state)


@dataclasses.dataclass(frozen=True)
class Plan:
  """Numbers of steps that follow from a recipe and a data set."""

  num_steps: int
  eval_every_steps: int
  steps_per_epoch: float

  @classmethod
  def of(cls, training: Mapping[str, Any], num_clips: int) -> 'Plan':
    """Epochs counted in steps, at least one of each."""
    steps_per_epoch = num_clips / training['batch_size']
    return cls(
      num_steps=max(2, round(training['epochs'] * steps_per_epoch)),
      eval_every_steps=max(
        1, round(training['eval_every_epochs'] * steps_per_epoch)
      ),
      steps_per_epoch=steps_per_epoch,
    )


def fit(job: Job) -> None:
  """Trains until the plan is done; continues where a killed run stopped.

  Leaves in `job.workdir`: `checkpoints/last`, `checkpoints/best` (best by
  validation), `metrics.jsonl` and TensorBoard events.

  Raises:
    FloatingPointError: where the loss is not finite.
    ValueError: where the batch does not fit the devices or the data.
    OSError: where a checkpoint cannot be written.
  """
  training = job.recipe['training']
  parallel.check_batch_size(training['batch_size'])
  train_split = job.dataset.splits['train']
  plan = Plan.of(training, len(train_split))
  stream = data.train_stream(
    train_split,
    training['batch_size'],
    job.seed,
    mixup_alpha=job.recipe['augment']['mixup_alpha'],
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  student = tagger.build(job.recipe, len(job.dataset.tags), parallel.AXIS)
  learning_rate = optim.schedule(training, plan.num_steps, plan.steps_per_epoch)
  optimizer = optim.optimizer(training, learning_rate)
  num_samples = train_split.source[0]['audio'].shape[0]
  state = initial_state(student, optimizer, job, num_samples)
  state, facts = resume(job, state, stream)
  loop = Loop(job, plan, student, optimizer, learning_rate, facts['best'])
  loop.run(state, stream)


def resume(job: Job, state: State, stream) -> tuple[State, dict[str, Any]]:
  """The newest whole checkpoint, or the given state; sets the stream."""
  restored = checkpoint.restore_newest(job.workdir / 'checkpoints' / 'last')
  if restored is None:
    return state, {'best': None}
  step, arrays, facts = restored
  try:
    state = flax.serialization.from_state_dict(state, dict(arrays))  # pyright: ignore
  except (ValueError, KeyError) as error:
    raise ValueError(
      f'the checkpoint of step {step} in {job.workdir} is of another model '
      f'({error}): choose another --workdir'
    ) from error
  stream.set_state(json.loads(facts['stream']))
  logs.say(f'{job.name}: continues after step {step}')
  return state, facts


class Loop:
  """The loop of one `fit`; see the module's docstring for its law."""

  def __init__(self, job, plan, student, optimizer, learning_rate, best):
    self._job, self._plan = job, plan
    self._learning_rate = learning_rate
    self._best = best  # Best validation score so far.
    self._step = parallel.pmap(make_step(student, optimizer, job), (0,))
    # The very tagger that is scored at the end: one compilation for both.
    self._predict = evaluate.compile_predict(
      tagger.build(job.recipe, len(job.dataset.tags))
    )
    self._truth = data.truth(job.dataset.splits['validate'])

  def run(self, state: State, stream) -> None:
    """Trains from `state` to the end of the plan."""
    job, plan = self._job, self._plan
    first = int(state.step)
    if first >= plan.num_steps:
      return
    teacher, weights = self._constants()
    metrics = logs.Metrics(job.workdir, first)
    progress = logs.Progress(job.name, first, plan.num_steps)
    state = parallel.replicate(state)
    pending = None
    try:
      for step in range(first, plan.num_steps):
        batch = next(stream)
        started = time.monotonic()
        state, outputs = self._step(
          state, teacher, weights, self._to_devices(batch)
        )
        if step == first:
          jax.block_until_ready(outputs)
          seconds = time.monotonic() - started
          logs.say(f'{job.name}: compiled the train step in {seconds:.1f} s')
        if pending is not None:
          self._log(metrics, progress, *pending)
        pending = (step + 1, outputs, batch['index'])
        if self._is_milestone(step + 1):
          self._log(metrics, progress, *pending)
          pending = None
          self._validate_and_save(step + 1, state, stream, metrics)
    finally:
      progress.close()
      metrics.close()

  def _constants(self):
    """The teacher's variables and the terms' weights, on every device."""
    job = self._job
    terms = job.terms()
    teacher = {}
    if terms and job.targets is None:
      assert job.teacher is not None
      teacher = parallel.replicate(job.teacher.variables)
    weights = {
      term: np.float32(job.objective[f'{term}_weight']) for term in terms
    }
    return teacher, parallel.replicate(weights)

  def _to_devices(self, batch):
    if self._job.targets is not None and self._job.terms():
      batch = batch | self._job.targets(batch)
    return parallel.shard(batch)

  def _is_milestone(self, step: int) -> bool:
    return (
      step % self._plan.eval_every_steps == 0 or step == self._plan.num_steps
    )

  def _log(self, metrics, progress, step, outputs, index_B) -> None:
    every = self._job.recipe['training']['log_every_steps']
    if step % every and not self._is_milestone(step):
      return
    values = {
      f'train/{name}': float(np.asarray(value.addressable_data(0))[0])
      for name, value in outputs.items()
    }
    if not np.isfinite(values['train/loss']):
      clips = ', '.join(str(k) for k in index_B[:8])
      raise FloatingPointError(
        f'{self._job.name}: the loss of step {step} is '
        f'{values["train/loss"]} (parts: {values}; clips {clips}, …): '
        f'{_REMEDY} {self._job.workdir}'
      )
    values['train/learning_rate'] = float(self._learning_rate(step - 1))
    values['train/epoch'] = step / self._plan.steps_per_epoch
    metrics.write(step, values)
    progress.update(step, values['train/loss'])

  def _validate_and_save(self, step, state, stream, metrics) -> None:
    job = self._job
    scores_NC = evaluate.predict_split(
      self._predict,
      state.variables(),
      job.dataset.splits['validate'],
      job.recipe['training']['batch_size'],
    )
    if not np.isfinite(scores_NC).all():
      raise FloatingPointError(
        f'{job.name}: after step {step} the model gives no numbers for '
        f'validation clips: {_REMEDY} {job.workdir}'
      )
    scores = evaluate.score_split(job.dataset, self._truth, scores_NC)
    rows = evaluate.scalars('validate', scores)
    score = rows[selection_metric(job.dataset)]
    metrics.write(step, rows)
    logs.say(
      f'{job.name}: step {step}, {selection_metric(job.dataset)} {score:.4f}'
    )
    state = parallel.unreplicate(state)
    arrays = flax.serialization.to_state_dict(state)
    folder = job.workdir / 'checkpoints'
    if self._best is None or score > self._best:
      self._best = score
      checkpoint.save(
        folder / 'best', step, state.variables(), {'score': score}, keep=1
      )
    facts = {
      'best': self._best,
      'stream': json.dumps(stream.get_state()),
    }
    checkpoint.save(folder / 'last', step, arrays, facts, keep=2)


def selection_metric(dataset: data.Dataset) -> str:
  """The metric by which the best checkpoint is chosen."""
  level = 'fine' if dataset.level == 'fine' else 'coarse'
  return f'validate/{level}_micro_auprc'
