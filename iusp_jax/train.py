"""The loop: fits any tagger, with or without a teacher.

Its law: a checkpoint is saved *before* the next batch is taken, so that the
saved stream stands exactly behind the saved state; the metrics of step n are
fetched after step n + 1 has been dispatched, so that the device never waits
for the host. A killed run that is started again ends in the same bits.
"""

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import flax.serialization
import jax
import numpy as np

from iusp_jax import (
  checkpoint,
  data,
  evaluate,
  logs,
  optim,
  parallel,
  processes,
  tagger,
)
from iusp_jax.step import Job, State, initial_state, make_step

_REMEDY = (
  'lower the learning_rate or the weights of the objective. What was saved at '
  'the last validation is kept in'
)


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
  state = initial_state(student, optimizer, job)
  state, facts = resume(job, state, stream)
  loop = Loop(job, plan, student, optimizer, learning_rate, facts['best'])
  loop.run(state, stream)


def resume(job: Job, state: State, stream) -> tuple[State, dict[str, Any]]:
  """The newest whole checkpoint, or the given state; sets the stream."""
  restored = checkpoint.restore_newest(job.workdir / 'checkpoints' / 'last')
  found = restored[0] if restored else None
  if found != (first := processes.by_primary(lambda: found)):
    raise ValueError(
      f'process {jax.process_index()} finds the checkpoint of step {found} in '
      f'{job.workdir}, process 0 that of step {first}: expected storage that '
      'all processes share'
    )
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
    if processes.is_primary():  # It scores.
      self._truth = data.truth(job.dataset.splits['validate'])

  def run(self, state: State, stream) -> None:
    """Trains from `state` to the end of the plan."""
    job, plan = self._job, self._plan
    first = int(state.step)
    if first >= plan.num_steps:
      return
    teacher, settings = self._constants()
    metrics = logs.Metrics(job.workdir, first)
    progress = logs.Progress(job.name, first, plan.num_steps)
    state = parallel.replicate(state)
    pending = None
    try:
      for step in range(first, plan.num_steps):
        batch = next(stream)
        started = time.monotonic()
        state, outputs = self._step(
          state, teacher, settings, self._to_devices(batch)
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
    """The teacher's variables and the job's settings, on every device."""
    job = self._job
    teacher = {}
    if job.terms() and job.targets is None:
      assert job.teacher is not None
      teacher = parallel.replicate(job.teacher.variables)
    return teacher, parallel.replicate(job.settings())

  def _to_devices(self, batch):
    if self._job.targets is not None and self._job.terms():
      batch = batch | self._job.targets(batch)
    batch.pop('global_index', None)
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
    rows = processes.by_primary(lambda: self._score(scores_NC))
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

  def _score(self, scores_NC) -> dict[str, float]:
    scores = evaluate.score_split(self._job.dataset, self._truth, scores_NC)
    return evaluate.scalars('validate', scores)


def selection_metric(dataset: data.Dataset) -> str:
  """The metric by which the best checkpoint is chosen."""
  level = 'fine' if dataset.level == 'fine' else 'coarse'
  return f'validate/{level}_micro_auprc'
