"""The train step: one pure function for any tagger, teacher or none.

Every device computes its clips' part of each term of the loss: sums over its
clips divided by counts over all clips. The parts add up to the loss of the
global batch, so the gradients are summed, and the result does not depend on the
number of devices (a mean of device means would, with masks). Every random
number is a function of seed, step and clip.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from iusp_jax.audio import augment, frontend
from iusp_jax.data import datasets, sources, teacher_outputs
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, targets, terms
from iusp_jax.runtime import devices
from iusp_jax.training import accumulate, optim
from iusp_jax.training.recipe import Recipe


@flax.struct.dataclass
class State:
  """All that changes while a member is trained.

  Attributes:
    step: steps done.
    params: of the model.
    batch_stats: BatchNorm's running statistics.
    opt_state: of the optimiser.
    average: exponential moving average of params and batch_stats, or {}.
    term_params: by term, its own parameters; no part of the model.
    term_opt_state: of their optimiser.
  """

  step: Any
  params: Any
  batch_stats: Any
  opt_state: Any
  average: Any
  term_params: Any
  term_opt_state: Any

  def variables(self) -> dict[str, Any]:
    """What to evaluate: the moving average where there is one."""
    own = {'params': self.params, 'batch_stats': self.batch_stats}
    return self.average or own


@dataclasses.dataclass(frozen=True)
class Job:
  """One model to fit.

  Attributes:
    name: for the log.
    recipe: of the model.
    objective: the distillation terms; none without a teacher.
    dataset: to train and validate on.
    seed: of initial values, order, augmentation and dropout.
    teacher: the frozen model, where it runs in every step; None where its
      outputs are stored, or there is none.
    target_shapes: of a clip's targets, for the parameters of terms.
    beside: how a teacher from elsewhere lies beside the student.
    num_versions: augmentations of each clip that the teacher's outputs are
      stored of; 0 where they are of the clips as they are, or not stored.
  """

  name: str
  recipe: Recipe
  objective: terms.Objective
  dataset: datasets.Dataset
  seed: int
  teacher: tagger.Tagger | None = None
  target_shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(
    default_factory=dict
  )
  beside: terms.Correspondence = terms.SAME
  num_versions: int = 0

  def settings(self) -> dict[str, Any]:
    """What differs between the jobs that one compiled step serves."""
    weights = {
      name: np.float32(value) for name, value in self.objective.weights.items()
    }
    return {'seed': np.uint32(self.seed), 'weights': weights}

  def student(self, axis_name: str | None = None) -> tagger.Tagger:
    """The untrained model; with `axis_name` as the train step needs it."""
    num_tags = len(self.dataset.tags)
    return tagger.build(self.recipe.plain(), num_tags, axis_name)

  def shares_program(self, other: 'Job') -> bool:
    """Whether it differs from another job in seed and weights alone."""
    return (
      self.recipe == other.recipe
      and self.dataset is other.dataset
      and self.teacher == other.teacher
      and self.beside == other.beside
      and self.num_versions == other.num_versions
      and self.objective.without_weights() == other.objective.without_weights()
    )


def term_inputs(
  job: Job,
  name: str,
  output: Any,
  batch: Mapping[str, jax.Array],
  params: Any = None,
) -> terms.Inputs:
  """What a term of a job is computed from.

  Args:
    job: that has the term.
    name: of the term.
    output: the student's, with the layers that the term looks at.
    batch: as `sources.take` gives it.
    params: of the term.
  """
  return inputs_of(
    job.student(),
    job.dataset.num_samples,
    job.beside,
    output,
    batch,
    job.objective.settings[name],
    params,
  )


def inputs_of(
  student: tagger.Tagger,
  num_samples: int,
  beside: terms.Correspondence,
  output: Any,
  batch: Mapping[str, jax.Array],
  settings: Mapping[str, float],
  params: Any = None,
) -> terms.Inputs:
  """`term_inputs` of a student by itself."""
  return terms.Inputs(
    logits_BC=output.logits_BC,
    frame_logits_BTC=output.frame_logits_BTC,
    frames={targets.FRAMES: output.frames_BTD, **output.layers},
    inner=tagger.inner_layers(student),
    tags_BC=batch['tags'],
    mask_BC=batch['mask'],
    targets={
      key.removeprefix(sources.TARGET): value
      for key, value in batch.items()
      if key.startswith(sources.TARGET)
    },
    frame_mask=functools.partial(
      targets.frame_mask, batch['length'], num_samples
    ),
    clip_seconds=num_samples / student.frontend.sample_rate,
    settings=settings,
    params=params,
    axis_name=devices.AXIS,
    timings=beside.timings,
    mask_C=beside.mask(),
  )


def measurable(objective: terms.Objective) -> tuple[str, ...]:
  """The terms whose loss of a clip depends on that clip alone.

  And on no parameters of their own, and no inner layers: those that can be
  measured on clips that nobody trains on.
  """
  found = {name: terms.TERMS[name] for name in objective.terms}
  return tuple(
    name
    for name, term in found.items()
    if not (term.compares_clips or term.init or term.layers)
    and not targets.fitted(term.targets)
  )


def distillation_of(job: Job) -> Callable:
  """For `evaluate.map_clips`: the loss of each of `measurable`, `[B, K]`."""
  names = measurable(job.objective)

  def of_output(output, batch):
    labels = jnp.zeros_like(output.logits_BC)  # Their terms are left out.
    batch = {**batch, 'tags': labels, 'mask': labels}
    values = [
      terms.TERMS[name].per_clip(term_inputs(job, name, output, batch))
      for name in names
    ]
    return jnp.stack(values, axis=1)

  return of_output


def make_step(job: Job, plan: optim.Plan) -> Callable:
  """The pure train step, to be mapped by `devices.Layout`.

  Returns:
    `step(state, settings, of_teacher, batch)`: the next state, and the loss,
    its terms, the length of the student's gradient and the share of steps so
    far that clipped it. A teacher that runs in the step has its `variables` and
    `fits` (see `targets.compute`) in `of_teacher`.
  """
  prepare, loss_part = _make_prepare(job), _make_loss(job, plan)
  training = job.recipe.training
  optimizer = optim.optimizer(training, plan)
  term_optimizer = optim.optimizer(training, plan)

  def step(state: State, settings, of_teacher, batch):
    batch = _mixed(batch)
    num_labelled = jax.lax.psum(jnp.sum(batch['mask']), devices.AXIS)

    def part(batch_stats, batch):
      """Some of the clips: statistics; gradients and parts of the loss."""
      keys_B = augment.clip_keys(settings['seed'], state.step, batch['index'])
      batch = prepare(batch, keys_B, of_teacher)
      gradients, (loss_terms, batch_stats) = jax.grad(
        loss_part, argnums=(0, 1), has_aux=True
      )(
        state.params,
        state.term_params,
        batch_stats,
        batch,
        keys_B,
        settings,
        state.step,
        num_labelled,
      )
      return batch_stats, (gradients, loss_terms)

    batch_stats, sums = accumulate.over_parts(
      part, state.batch_stats, batch, training.accumulate_steps
    )
    (gradients, term_gradients), loss_terms = jax.lax.psum(sums, devices.AXIS)
    changes, opt_state = optimizer.update(
      gradients, state.opt_state, state.params
    )
    term_params, term_opt_state = state.term_params, state.term_opt_state
    if term_params:  # Clipped and decayed apart from the student's.
      term_changes, term_opt_state = term_optimizer.update(
        term_gradients, term_opt_state, term_params
      )
      term_params = optax.apply_updates(term_params, term_changes)
    state = dataclasses.replace(
      state,
      step=state.step + 1,
      params=optax.apply_updates(state.params, changes),
      batch_stats=batch_stats,
      opt_state=opt_state,
      term_params=term_params,
      term_opt_state=term_opt_state,
    )
    if decay := training.ema_decay:
      own = {'params': state.params, 'batch_stats': state.batch_stats}
      average = optax.incremental_update(own, state.average, 1 - decay)
      state = dataclasses.replace(state, average=average)
    return state, loss_terms | {
      'gradient_norm': optax.global_norm(gradients),
      'clipped_share': optim.clipped_share(opt_state),
    }

  return step


def _mixed(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """A batch with each clip's partner mixed in, where it has one."""
  batch = dict(batch)
  partner = {
    key.removeprefix(sources.PARTNER): batch.pop(key)
    for key in list(batch)
    if key.startswith(sources.PARTNER)
  }
  if not partner:
    return batch
  return augment.mixup(batch, partner, batch.pop('share'))


def _make_prepare(job: Job) -> Callable:
  """What a batch still lacks: the student's log-mel, the teacher's outputs."""
  changes, student = job.recipe.clip_augment(), job.student()
  names, num_samples = job.objective.targets, job.dataset.num_samples

  def teacher_targets(wave_BS, keys_B, length_B, shared):
    assert job.teacher is not None
    mel_BTF = tagger.log_mel(job.teacher, wave_BS, keys_B, changes)
    x = teacher_outputs.apply(
      job.teacher, shared['variables'], mel_BTF, length_B, num_samples, names
    )
    found = targets.compute(names, x, devices.gather, shared['fits'])
    return {sources.TARGET + name: value for name, value in found.items()}

  def prepare(batch, keys_B, of_teacher):
    if 'version' in batch:
      keys_B = augment.stored_keys(batch['index'], batch['version'])
    if 'mel' in batch:
      mel_BTF = changes.mel(batch['mel'], keys_B, student.frontend)
      return batch | {'mel': mel_BTF}
    wave_BS = batch['wave']
    if job.teacher is not None:
      batch = batch | teacher_targets(
        wave_BS, keys_B, batch['length'], of_teacher
      )
    mel_BTF = tagger.log_mel(student, wave_BS, keys_B, changes)
    return batch | {'mel': mel_BTF}

  return prepare


def _make_loss(job: Job, plan: optim.Plan) -> Callable:
  """A device's part of the loss; also its terms and BatchNorm's statistics."""
  objective, student = job.objective, job.student(devices.AXIS)
  num_parts = job.recipe.training.accumulate_steps

  def loss_part(
    params,
    term_params,
    batch_stats,
    batch,
    keys_B,
    settings,
    step,
    num_labelled,
  ):
    output, batch_stats = tagger.forward(
      student,
      {'params': params, 'batch_stats': batch_stats},
      batch['mel'],
      train=True,
      keys_B=augment.subkeys(keys_B, 2),
      layers=objective.layers,
    )
    entropy_BC = losses.tagging_per_tag(
      output.logits_BC, batch['tags'], batch['mask']
    )
    loss = jnp.sum(entropy_BC) / jnp.maximum(num_labelled, 1.0)
    loss_terms = {terms.TAGGING: loss}
    progress = step / plan.num_steps
    if schedule := objective.schedules.get(terms.TAGGING):
      loss = terms.SCHEDULES[schedule](progress) * loss
    for name in objective.terms:
      inputs = term_inputs(job, name, output, batch, term_params.get(name))
      value_B = terms.TERMS[name].per_clip(inputs)
      num_clips = value_B.shape[0] * jax.lax.axis_size(devices.AXIS)
      loss_terms[name] = jnp.sum(value_B) / (num_clips * num_parts)
      schedule = objective.schedules.get(name, 'constant')
      factor = terms.SCHEDULES[schedule](progress)
      loss = loss + settings['weights'][name] * factor * loss_terms[name]
    return loss, (loss_terms | {'loss': loss}, batch_stats)

  return loss_part


def initial_state(job: Job, plan: optim.Plan) -> State:
  """The state before the first step, on the host."""
  training = job.recipe.training
  student = job.student()
  variables = student.initialise(job.seed, job.dataset.num_samples)
  params = variables['params']
  term_params = initial_term_params(job)
  optimizer = optim.optimizer(training, plan)
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    batch_stats=variables['batch_stats'],
    opt_state=optimizer.init(params),
    average=dict(variables) if training.ema_decay else {},
    term_params=term_params,
    term_opt_state=optimizer.init(term_params) if term_params else (),
  )
  return jax.tree.map(np.asarray, state)


def initial_term_params(job: Job) -> dict[str, Any]:
  """By term, its own parameters, from a key that the student does not use."""
  with_params = [n for n in job.objective.terms if terms.TERMS[n].init]
  if not with_params:
    return {}
  student, num_samples = job.student(), job.dataset.num_samples
  num_frames = frontend.num_frames(num_samples, student.frontend)
  shape = 1, num_frames, student.frontend.num_mel_bands
  output = jax.eval_shape(
    lambda variables: tagger.apply(
      student, variables, jnp.zeros(shape), job.objective.layers
    ),
    student.shapes(num_samples),
  )
  labels = jax.ShapeDtypeStruct((1, len(job.dataset.tags)), jnp.float32)
  batch = {'tags': labels, 'mask': labels, 'length': jnp.full(1, num_samples)}
  batch |= {
    sources.TARGET + name: jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    for name, shape in job.target_shapes.items()
  }
  found = {}
  for name in with_params:
    inputs = term_inputs(job, name, output, batch)
    init = terms.TERMS[name].init
    assert init is not None
    number = zlib.crc32(name.encode())  # Independent of the other terms.
    key = jax.random.fold_in(jax.random.key(job.seed), number)
    found[name] = init(key, inputs)
  return found
