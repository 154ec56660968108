"""The loop: fits any tagger, with or without a teacher.

Its law: a checkpoint is saved *before* the next batch is taken, so that the
saved stream stands exactly behind the saved state; the metrics of step n are
fetched after step n + 1 has been dispatched, so that the device never waits
for the host. A killed run that is started again ends in the same bits; one
that is told to stop (see `preemption`) saves between validations, too.
"""

import json
import time
from typing import Any

import flax.serialization
import jax

from iusp_jax.data import datasets
from iusp_jax.models import tagger
from iusp_jax.runtime import (
  checkpoint,
  devices,
  logs,
  metrics_log,
  preemption,
  processes,
)
from iusp_jax.training import accumulate, evaluate, optim, watch
from iusp_jax.training.step import Job, State, initial_state, make_step

_REMEDY = (
  'lower the learning_rate or the weights of the objective. What was saved at '
  'the last validation is kept in'
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
  accumulate.check(training, job.terms())
  train_split = job.dataset.splits['train']
  plan = optim.Plan.of(training, len(train_split))
  stream = datasets.train_stream(
    train_split,
    training['batch_size'],
    job.seed,
    mixup_alpha=job.recipe['augment']['mixup_alpha'],
    host=jax.process_index(),
    num_hosts=jax.process_count(),
  )
  student = tagger.build(job.recipe, len(job.dataset.tags), devices.AXIS)
  learning_rate = optim.schedule(training, plan.num_steps, plan.steps_per_epoch)
  optimizer = optim.optimizer(training, learning_rate)
  initial = initial_state(student, optimizer, job)
  beginning = stream.get_state()
  loop = Loop(job, plan, student, optimizer, learning_rate, stream)
  skipped: set[int] = set()
  with preemption.stop_instead_of_errors():
    while True:
      stream.set_state(beginning)
      state, facts = resume(job, initial, stream)
      skipped.update(facts['skipped'])
      try:
        loop.run(state, {**facts, 'skipped': skipped})
        return
      except watch.NotFinite as error:
        path = job.workdir / 'nan_batch.npz'
        watch.save_batch(path, error, stream, train_split)
        processes.barrier()  # A host that stops ends the others.
        if job.on_nan == 'stop' or len(skipped) == watch.MAX_SKIPPED:
          raise
        logs.log(
          f'{job.name}: no number at step {error.done.step}; rolls back, to '
          f'pass over batch {error.done.batch}'
        )
        skipped.add(error.done.batch)


def resume(job: Job, state: State, stream) -> tuple[State, dict[str, Any]]:
  """The newest whole checkpoint, or the given state; sets the stream.

  Returns:
    The state, and facts: `best`, the best validation score so far;
    `validated`, whether a validation that was due has been made; `taken`,
    batches taken from the stream; `skipped`, those of them without a step.
  """
  facts = {'best': None, 'validated': True, 'taken': 0, 'skipped': []}
  restored = checkpoint.restore_newest(job.workdir / 'checkpoints' / 'last')
  found = restored[0] if restored else None
  if found != (first := processes.by_primary(lambda: found)):
    raise ValueError(
      f'process {jax.process_index()} finds the checkpoint of step {found} in '
      f'{job.workdir}, process 0 that of step {first}: expected storage that '
      'all processes share'
    )
  if restored is None:
    return state, facts
  step, arrays, found = restored
  try:
    state = flax.serialization.from_state_dict(state, dict(arrays))  # pyright: ignore
  except (ValueError, KeyError) as error:
    raise ValueError(
      f'the checkpoint of step {step} in {job.workdir} is of another model '
      f'({error}): choose another --workdir'
    ) from error
  stream.set_state(json.loads(found['stream']))
  logs.log(f'{job.name}: continues after step {step}')
  return state, {**facts, 'taken': step, **found}


class Loop:
  """The loop of one `fit`; see the module's docstring for its law."""

  def __init__(self, job, plan, student, optimizer, learning_rate, stream):
    self._job, self._plan = job, plan
    self._learning_rate, self._stream = learning_rate, stream
    self._facts: dict[str, Any] = {}  # See `resume`.
    self._remedy = f'{_REMEDY} {job.workdir}'
    self._every = job.recipe['training']['log_every_steps']
    self._step = devices.pmap(make_step(student, optimizer, job), (0,))
    # The very tagger that is scored at the end: one compilation for both.
    self._predict = evaluate.compile_predict(
      tagger.build(job.recipe, len(job.dataset.tags))
    )
    self._trace = watch.Trace(job.workdir / 'profile', job.profile_steps)
    if processes.is_primary():  # It scores.
      self._truth = datasets.truth(job.dataset.splits['validate'])

  def run(self, state: State, facts: dict[str, Any]) -> None:
    """Trains from `state` to the end of the plan.

    Raises:
      NotFinite: at the first number that is none.
      Preempted: after a notice, when all is saved.
    """
    job, plan, self._facts = self._job, self._plan, facts
    first = int(state.step)
    if first >= plan.num_steps and facts['validated']:
      return
    self._metrics = metrics_log.MetricsWriter(job.workdir, first)
    self._progress = logs.Progress(job.name, first, plan.num_steps)
    self._watch = watch.Watch()
    self._newest = self._done = None  # Steps dispatched; not yet logged.
    try:
      self._run(first, devices.replicate(state))
    finally:
      self._trace.close()
      self._progress.close()
      self._metrics.close()

  def _run(self, first: int, state: State) -> None:
    if not self._facts['validated']:
      self._validate_and_save(first, state)
    job = self._job
    teacher, settings = self._constants()
    for step in range(first, self._plan.num_steps):
      batch, before = self._next_batch(step)
      started = time.monotonic()
      state, outputs = self._step(
        state, teacher, settings, self._to_devices(batch)
      )
      if step == first:
        jax.block_until_ready(outputs)
        seconds = time.monotonic() - started
        logs.log(f'{job.name}: compiled the train step in {seconds:.1f} s')
      self._log()
      number = self._facts['taken'] - 1
      self._newest = watch.Done(step + 1, number, before, outputs)
      self._done = self._newest
      self._watch.add(self._done)
      self._trace.after(outputs)
      stops = self._must_stop(step + 1)
      if self._is_milestone(step + 1):
        self._log()
        self._validate_and_save(step + 1, state)
      elif stops:
        self._log()
        self._save(step + 1, devices.unreplicate(state))
        raise preemption.Preempted

  def _next_batch(self, step: int):
    """The next batch that is not to be passed over; the stream before it."""
    while True:
      before = self._stream.get_state()
      batch = next(self._stream)
      number = self._facts['taken']
      self._facts['taken'] += 1
      if number not in self._facts['skipped']:
        return batch, before
      self._log()
      logs.log(f'{self._job.name}: passes over batch {number}')
      self._metrics.write(step + 1, {'train/skipped_batch': number})

  def _constants(self):
    """The teacher's variables and the job's settings, on every device."""
    job = self._job
    teacher = {}
    if job.terms() and job.targets is None:
      assert job.teacher is not None
      teacher = devices.replicate(job.teacher.variables)
    return teacher, devices.replicate(job.settings())

  def _to_devices(self, batch):
    if self._job.targets is not None and self._job.terms():
      batch = batch | self._job.targets(batch)
    batch.pop('global_index', None)
    return devices.shard(batch)

  def _is_milestone(self, step: int) -> bool:
    return (
      step % self._plan.eval_every_steps == 0 or step == self._plan.num_steps
    )

  def _must_stop(self, step: int) -> bool:
    """Whether a notice has come, to this host or, now and then, to any."""
    if jax.process_count() == 1:
      return preemption.requested()
    return step % self._every == 0 and devices.any_host(preemption.requested())

  def _log(self) -> None:
    """Looks at the last step but the newest, and writes it where it is due."""
    done, self._done = self._done, None
    if done is None:
      return
    if done.step % self._every and not self._is_milestone(done.step):
      return
    self._look(done.step)
    values = {f'train/{k}': value for k, value in done.values().items()}
    values['train/learning_rate'] = float(self._learning_rate(done.step - 1))
    values['train/epoch'] = done.step / self._plan.steps_per_epoch
    self._metrics.write(done.step, values)
    self._progress.update(done.step, values['train/loss'])

  def _look(self, step: int) -> None:
    """Raises NotFinite unless all losses up to a step are numbers."""
    self._watch.look(self._job.name, step, self._remedy)

  def _refuse(self, arrays) -> None:
    """Raises NotFinite unless all arrays are numbers."""
    watch.refuse_not_finite(arrays, self._job.name, self._remedy, self._newest)

  def _validate_and_save(self, step: int, state) -> None:
    """Scores the validation split; a notice comes between its batches."""
    job = self._job

    def predict(variables, batch):
      if jax.process_count() == 1:  # Other hosts would wait for this one.
        preemption.check()
      return self._predict(variables, batch)

    try:
      scores_NC = evaluate.predict_split(
        predict,
        state.variables(),
        job.dataset.splits['validate'],
        job.recipe['training']['batch_size'],
      )
    except preemption.Preempted:
      self._save(step, devices.unreplicate(state), validated=False)
      raise
    state = devices.unreplicate(state)
    self._refuse({'predictions for validation clips': scores_NC})
    rows = processes.by_primary(lambda: self._score(scores_NC))
    score = rows[selection_metric(job.dataset)]
    self._metrics.write(step, rows)
    logs.log(
      f'{job.name}: step {step}, {selection_metric(job.dataset)} {score:.4f}'
    )
    if self._facts['best'] is None or score > self._facts['best']:
      self._facts['best'] = score
      folder = job.workdir / 'checkpoints' / 'best'
      checkpoint.save(folder, step, state.variables(), {'score': score}, keep=1)
    self._save(step, state)

  def _save(self, step: int, state: State, validated: bool = True) -> None:
    """A checkpoint of 'last', from which a run continues."""
    self._look(step)
    arrays = flax.serialization.to_state_dict(state)
    self._refuse(arrays)
    self._metrics.sync()
    facts = self._facts | {
      'skipped': sorted(self._facts['skipped']),
      'validated': validated,
      'stream': json.dumps(self._stream.get_state()),
    }
    folder = self._job.workdir / 'checkpoints' / 'last'
    checkpoint.save(folder, step, arrays, facts, keep=2)

  def _score(self, scores_NC) -> dict[str, float]:
    scores = evaluate.score_split(self._job.dataset, self._truth, scores_NC)
    return evaluate.scalars('validate', scores)


def selection_metric(dataset: datasets.Dataset) -> str:
  """The metric by which the best checkpoint is chosen."""
  level = 'fine' if dataset.level == 'fine' else 'coarse'
  return f'validate/{level}_micro_auprc'
