"""The engine: fits the members of a group; a single run is a group of one.

Members differ in seed and weights alone and share one compiled program. Steps
are taken in chunks of a few seconds, so that a notice to stop, log rows and the
look for NaN come in time; the number of steps in a chunk changes no bits.

The law of the loop: a checkpoint is saved *before* the next chunk is taken,
and the outputs of chunk n - 1 are fetched after chunk n has been dispatched, so
that the devices do not wait for the host. Every random number is a function of
seed, step and clip: a killed group that is started again ends in the same bits.
"""

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, sources
from iusp_jax.runtime import (
  checkpoint,
  devices,
  logs,
  metrics_log,
  preemption,
  processes,
)
from iusp_jax.training import accumulate, evaluate, finite, optim, trace
from iusp_jax.training.step import (
  Job,
  State,
  distillation_of,
  initial_state,
  make_step,
  measurable,
)

CHUNK_SECONDS = 2.0

Source = sources.Resident | sources.Stream


@dataclasses.dataclass
class Member:
  """One run of a group: what it is, and what training leaves of it.

  Attributes:
    job: what is fitted.
    rows: of metrics.jsonl.
    best: variables at the best validation score.
    best_step: steps done by then.
    best_score: that score; None before the first validation.
    last: variables after the last step.
    diverged: why the run has no result; empty for a good one.
    step_seconds: of a step of one member, the median over chunks; None where
      no more than the first chunk was run.
  """

  job: Job
  rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best: Any = None
  best_step: int = 0
  best_score: float | None = None
  last: Any = None
  diverged: str = ''
  step_seconds: float | None = None

  def metadata(self) -> dict[str, Any]:
    """What a checkpoint keeps of it beside arrays."""
    names = ('rows', 'best_step', 'best_score', 'diverged')
    return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class Feed:
  """The data of a group.

  Attributes:
    source: of training clips, for a layout, a largest number of steps that it
      is asked for at a time, and an order of clips.
    validate: clips that the best epoch is chosen by.
    of_teacher: `variables` and `fits` of one that runs in every step, else {}.
    distilled: validation clips with the teacher's targets, where these stand
      in for labels that there are not.
  """

  source: Callable[[sources.Order, devices.Layout, int], Source]
  validate: evaluate.Clips
  of_teacher: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  distilled: evaluate.Clips | None = None


def fit(
  jobs: Sequence[Job],
  feed: Feed,
  workdir: pathlib.Path | None,
  on_nan: str = 'mask',
  metrics_dir: pathlib.Path | None = None,
  profile_steps: int = 0,
  chunk_steps: int = 0,
  identities: Sequence[str] = (),
) -> list[Member]:
  """Trains jobs that differ in seed and weights alone.

  Continues a group that was stopped.

  Args:
    jobs: the members.
    feed: their data.
    workdir: for checkpoints of the whole group, in `training/`; None for none.
    on_nan: 'mask' leaves out a member that diverges and goes on with the
      others; for a group of one also 'stop' or 'roll_back'.
    metrics_dir: where rows are written as they come, for a group of one.
    profile_steps: to trace into `workdir/profile`.
    chunk_steps: at most so many steps in a chunk; 0 for as many as take about
      `CHUNK_SECONDS`.
    identities: a fingerprint a member of what it is made from; a checkpoint of
      others is refused.

  Returns:
    One `Member` a job, in order.

  Raises:
    NotFinite: where a run of one diverges and may not go on.
    ValueError: where the jobs cannot share a program, or the batch does not
      fit the devices, the data or the memory.
    OSError: where a checkpoint cannot be written.
    Preempted: after a notice, when all is saved.
  """
  _check(jobs)
  group = Group(jobs, feed, workdir, on_nan, chunk_steps, identities)
  skipped: set[int] = set()
  while True:
    try:
      return group.run(skipped, metrics_dir, profile_steps)
    except finite.NotFinite as error:
      number = batch_number(error.step - 1, skipped)
      if workdir is not None:
        split = jobs[0].dataset.splits['train']
        path = workdir / 'nan_batch.npz'
        finite.save_batch(path, error, split, group.order, number)
      processes.barrier()  # A process that stops ends the others.
      if on_nan == 'stop' or len(skipped) == finite.MAX_SKIPPED:
        raise
      logs.log(
        f'{jobs[0].name}: non-finite values at step {error.step}; rolls back '
        f'to the last checkpoint and leaves out batch {number}'
      )
      skipped.add(number)


def train_without_validation(job: Job, feed: Feed, num_steps: int) -> Any:
  """Variables of one job after some steps of its plan."""
  group = Group([job], feed, None)
  state = jax.tree.map(lambda x: x[None], initial_state(job, group.plan))
  settings = jax.tree.map(lambda x: np.asarray(x)[None], job.settings())
  layout = group.layout
  state, settings = layout.put(state), layout.put(settings)
  teacher = layout.share(feed.of_teacher)
  for first in range(0, num_steps, group.source.max_steps):
    preemption.check()
    numbers = range(first, min(first + group.source.max_steps, num_steps))
    arrays, places = group.source.take(numbers)
    count = layout.share(np.int32(len(numbers)))
    state, _ = group.advance(
      (state, settings, places), (arrays, teacher, count)
    )
  return jax.tree.map(lambda x: x[0], layout.get(state.variables()))


def batch_number(step: int, skipped: set[int]) -> int:
  """The number of the batch that step `step` (from 0) takes."""
  number = step
  for left_out in sorted(skipped):
    number += left_out <= number
  return number


def _check(jobs: Sequence[Job]) -> None:
  first = jobs[0]
  training = first.recipe.training
  accumulate.check(training, first.objective.compares_clips)
  size = len(first.dataset.splits['train'])
  datasets.check_batch_size(first.dataset.splits['train'], training.batch_size)
  for job in jobs:
    if not job.shares_program(first):
      raise ValueError(
        f'{job.name} and {first.name} differ in more than seed and weights: '
        f'expected one recipe, data set ({size} clips) and set of terms'
      )


class Group:
  """The members of one `fit`, their data and their compiled step."""

  def __init__(
    self, jobs, feed: Feed, workdir, on_nan='stop', chunk_steps=0, identities=()
  ):
    job = jobs[0]
    training = job.recipe.training
    split = job.dataset.splits['train']
    self.jobs, self._feed, self._workdir = jobs, feed, workdir
    self._on_nan, self._chunk_steps = on_nan, chunk_steps
    self._training, self._identities = training, list(identities)
    self.plan = optim.Plan.of(training, len(split))
    self._rates = jax.jit(jax.vmap(optim.schedule(training, self.plan)))
    self.layout = devices.Layout(len(jobs))
    seeds = tuple(job.seed for job in jobs)
    self.order = sources.Order(
      len(split),
      training.batch_size,
      seeds,
      job.recipe.augment.mixup_alpha,
      job.num_versions,
    )
    self.source = feed.source(
      self.order, self.layout, self.plan.eval_every_steps
    )
    if self.source.notice:
      logs.log(f'{job.name}: {self.source.notice}')
    vmap_size = devices.best_vmap_size()
    step = self.layout.over_batch(make_step(job, self.plan))
    self.advance = self.layout.map(_make_advance(step), vmap_size)
    self._model = job.student()
    self._measured = measurable(job.objective) if feed.distilled else ()
    self._of_output = distillation_of(job)
    self.name = job.name
    if len(jobs) > 1:
      self.name += f' and {len(jobs) - 1} more'
    if processes.is_primary():  # It scores.
      self._truth = datasets.truth(job.dataset.splits['validate'])

  def run(self, skipped, metrics_dir, profile_steps) -> list[Member]:
    """From the newest checkpoint to the end of the plan.

    Raises:
      NotFinite: at the first step with non-finite values, for a run of one
        that may not mask it.
      Preempted: after a notice, when all is saved.
    """
    self._skipped = skipped
    state, self._validated = self._restore()
    self._step = int(state.step[0])
    profile = (self._workdir or pathlib.Path()) / 'profile'
    self._trace = trace.Trace(profile, profile_steps)
    self._progress = logs.Progress(self.name, self._step, self.plan.num_steps)
    self._writer = None
    if metrics_dir is not None:
      rows = self.members[0].rows
      self._writer = metrics_log.MetricsWriter(metrics_dir, rows)
    try:
      self._run(self.layout.put(state))
    finally:
      self._trace.close()
      self._progress.close()
      if self._writer:
        self._writer.close()
    return self.members

  def _restore(self) -> tuple[State, bool]:
    """The members' states `[M, ...]`, and whether no validation is due."""
    self.members = [Member(job) for job in self.jobs]
    states = [initial_state(job, self.plan) for job in self.jobs]
    state = jax.tree.map(lambda *x: np.stack(x), *states)
    restored = None
    if self._workdir is not None:
      restored = checkpoint.restore_newest(self._workdir / 'training')
    found = restored[0] if restored else None
    if found != (first := processes.by_primary(lambda: found)):
      raise ValueError(
        f'process {jax.process_index()} finds the checkpoint of step {found} '
        f'in {self._workdir}, process 0 that of step {first}: expected storage '
        'that all processes share'
      )
    if restored is None:
      return state, True
    step, arrays, metadata = restored
    if metadata['identities'] != self._identities:
      raise ValueError(
        f'the checkpoint of step {step} in {self._workdir} was made from '
        'another recipe, other data or another teacher: choose another '
        '--workdir, or delete it to start over'
      )
    kept: Any = dict(arrays['state'])
    wanted = flax.serialization.to_state_dict(state)
    if problem := checkpoint.other_shapes(kept, wanted):
      raise ValueError(
        f'the checkpoint of step {step} in {self._workdir} is of another model '
        f'({problem}): choose another --workdir'
      )
    state: Any = flax.serialization.from_state_dict(state, kept)
    for m, (member, of) in enumerate(
      zip(self.members, metadata['members'], strict=True)
    ):
      for name, value in of.items():
        setattr(member, name, value)
      if member.best_score is not None:
        member.best = jax.tree.map(lambda x, m=m: x[m], arrays['best'])
    self._skipped.update(metadata['skipped'])  # Numbers of later steps follow.
    logs.log(f'{self.name}: continues after step {step}')
    return state, metadata['validated']

  def _run(self, state: Any) -> None:
    """The loop; see the law at the head of this module."""
    if not self._validated:
      self._validate_and_save(state)
    settings = [job.settings() for job in self.jobs]
    settings = self.layout.put(jax.tree.map(lambda *x: np.stack(x), *settings))
    teacher = self.layout.share(self._feed.of_teacher)
    pending, self._seconds, self._clock = None, None, time.monotonic()
    self._spent: list[float] = []  # Seconds a step, by chunk.
    self._first_step, self._looked = self._step, -np.inf
    while self._step < self.plan.num_steps and self._alive():
      first = self._step
      count = self._next_chunk()
      numbers = [batch_number(first + k, self._skipped) for k in range(count)]
      arrays, places = self.source.take(numbers)
      state, outputs = self.advance(
        (state, settings, places), (arrays, teacher, self._count(count))
      )
      self._step += count
      self._trace.after(outputs, count)
      if first == self._first_step:
        jax.block_until_ready(outputs)
        spent = time.monotonic() - self._clock
        logs.log(f'{self.name}: compiled the train step in {spent:.1f} s')
        self._clock = time.monotonic()
      if pending is not None:
        self._log(*pending)
      pending = first, count, outputs
      if self._step == self.plan.next_milestone(first):
        self._log(*pending)
        pending = None
        self._validate_and_save(state)
        self._clock = time.monotonic()
      if self._must_stop():
        if pending is not None:  # Not saved yet.
          self._log(*pending)
          self._save(self.layout.get(state), validated=True)
        raise preemption.Preempted
    self._finish(state)

  def _finish(self, state) -> None:
    variables = self.layout.get(state.variables())
    for m, member in enumerate(self.members):
      member.last = jax.tree.map(lambda x, m=m: x[m], variables)
      if self._spent:
        member.step_seconds = float(np.median(self._spent)) / len(self.members)

  def _alive(self) -> bool:
    return not all(member.diverged for member in self.members)

  def _count(self, count: int) -> Any:
    return self.layout.share(np.int32(count))

  def _next_chunk(self) -> int:
    """How many steps to take: one until their time is known."""
    count = 1
    if self._seconds is not None:
      count = max(1, int(CHUNK_SECONDS / max(self._seconds, 1e-6)))
    if self._trace.steps_left:
      count = min(count, self._trace.steps_left)
    if jax.process_count() > 1:  # Their clocks differ.
      count, self._looks = processes.by_primary(
        lambda: (count, time.monotonic() - self._looked >= CHUNK_SECONDS),
        interruptible=False,
      )
    left = self.plan.next_milestone(self._step) - self._step
    count = min(count, left, self.source.max_steps)
    return min(count, self._chunk_steps) if self._chunk_steps else count

  def _must_stop(self) -> bool:
    """Whether a notice has come: to any process, as all look together."""
    if jax.process_count() == 1:
      return preemption.requested()
    if not self._looks:
      return False
    self._looked = time.monotonic()
    return devices.any_host(preemption.requested())

  def _log(self, first: int, count: int, outputs: Any) -> None:
    """Looks at a chunk's outputs and keeps the rows that are due.

    Raises:
      NotFinite: for a run of one that may not mask it.
    """
    found = {k: v[:, :count] for k, v in self.layout.get(outputs).items()}
    now = time.monotonic()
    if first != self._first_step:  # Of which most is compiling.
      self._seconds = (now - self._clock) / count
      self._spent.append(self._seconds)
    self._clock = now
    every = self._training.log_every_steps
    rates = np.asarray(self._rates(np.arange(first, first + count)))
    for m, member in enumerate(self.members):
      if member.diverged:
        continue
      own = {name: values[m] for name, values in found.items()}
      bad = finite.first_bad_step(own)
      for k in range(count if bad is None else bad):
        step = first + k + 1
        self._note_skipped(member, step)
        if step % every and step != self.plan.next_milestone(step - 1):
          continue
        values = {f'train/{name}': float(x[k]) for name, x in own.items()}
        values['train/learning_rate'] = float(rates[k])
        values['train/epoch'] = step / self.plan.steps_per_epoch
        self._add_row(member, step, values)
      if bad is not None:
        values = {name: float(x[bad]) for name, x in own.items()}
        self._diverge(
          member,
          first + bad + 1,
          f'the loss of step {first + bad + 1} is {values["loss"]}, its '
          f'gradient_norm {values["gradient_norm"]}',
          values,
        )
    losses = [
      float(found['loss'][m, count - 1])
      for m, member in enumerate(self.members)
      if not member.diverged
    ]
    if losses:
      self._progress.update(first + count, float(np.mean(losses)))

  def _note_skipped(self, member: Member, step: int) -> None:
    """A row for every batch that was left out before a step."""
    if not self._skipped:
      return
    number = batch_number(step - 1, self._skipped)
    before = batch_number(step - 2, self._skipped) if step > 1 else -1
    for left_out in range(before + 1, number):
      logs.log(f'{self.name}: leaves out batch {left_out}')
      self._add_row(member, step, {'train/skipped_batch': left_out})

  def _add_row(self, member: Member, step: int, values) -> None:
    row = {'step': step, **values}
    member.rows.append(row)
    if self._writer:
      self._writer.write(row)

  def _diverge(self, member, step: int, why: str, values) -> None:
    """Leaves out a member with non-finite values, or raises for a run of one.

    Raises:
      NotFinite: unless `on_nan` is 'mask'.
    """
    if self._on_nan != 'mask':
      raise finite.NotFinite(
        f'{member.job.name}: {why} (all: {values}): lower the learning_rate or '
        'the weights of the objective. What was saved at the last validation '
        f'is kept in {self._workdir}',
        step,
        values,
      )
    member.diverged = why
    logs.log(f'{member.job.name}: diverged, {why}; the others go on')

  def _validate_and_save(self, state: Any) -> None:
    """Scores the validation split; a notice comes between its batches."""

    def between():
      if jax.process_count() == 1:  # Other processes would wait for this one.
        preemption.check()

    step = self._step
    try:
      scores_MNC = evaluate.predict(
        self._model,
        state.variables(),
        self._feed.validate,
        self.layout,
        between=between,
      )
      losses_MNK = self._distillation(state, between)
    except preemption.Preempted:
      self._save(self.layout.get(state), validated=False)
      raise
    host_state = self.layout.get(state)
    variables = host_state.variables()
    for m, member in enumerate(self.members):
      if not member.diverged and not np.isfinite(scores_MNC[m]).all():
        why = (
          f'predictions for validation clips after step {step} are not finite'
        )
        self._diverge(member, step, why, {})
    rows = processes.by_primary(
      lambda: self._score(scores_MNC), interruptible=False
    )
    for row, job, loss_NK in zip(rows, self.jobs, losses_MNK, strict=True):
      if row and self._measured:
        mean_K = loss_NK.mean(axis=0)
        row[evaluate.DISTILLATION] = sum(
          float(job.objective.weights[name] * mean)
          for name, mean in zip(self._measured, mean_K, strict=True)
        )
    self._keep_best(rows, variables)
    self._save(host_state, validated=True)

  def _distillation(self, state: Any, between) -> np.ndarray:
    """The terms' losses of validation clips, without weights: `[M, N, K]`."""
    if not self._measured:
      return np.zeros((len(self.jobs), 0, 0))
    assert self._feed.distilled is not None
    return evaluate.map_clips(
      self._model,
      state.variables(),
      self._feed.distilled,
      self.layout,
      self._of_output,
      between,
    )

  def _keep_best(self, rows: list[dict[str, float]], variables) -> None:
    """Keeps the members' scores, and the variables of those that gained."""
    step = self._step
    metric = evaluate.selection_metric(self.jobs[0].dataset)
    for m, (member, row) in enumerate(zip(self.members, rows, strict=True)):
      if member.diverged:
        continue
      self._add_row(member, step, row)
      score = row[metric]
      if member.best_score is None or score > member.best_score:
        member.best_score, member.best_step = score, step
        member.best = jax.tree.map(lambda x, m=m: x[m], variables)
    live = [not member.diverged for member in self.members]
    if any(live):
      scored = zip(rows, live, strict=True)
      now = np.mean([row[metric] for row, is_live in scored if is_live])
      kept = zip(self.members, live, strict=True)
      best = np.mean([m.best_score or 0.0 for m, is_live in kept if is_live])
      losses = [
        row[evaluate.DISTILLATION]
        for row in rows
        if evaluate.DISTILLATION in row
      ]
      also = (
        f', {evaluate.DISTILLATION} {np.mean(losses):.4f}' if losses else ''
      )
      logs.log(
        f'{self.name}: step {step}/{self.plan.num_steps}, {metric} {now:.4f}, '
        f'best {best:.4f}{also}'
      )

  def _score(self, scores_MNC: np.ndarray) -> list[dict[str, float]]:
    """A row of validation scores for every member; {} for a diverged one."""
    dataset, split = self.jobs[0].dataset, 'validate'
    by_teacher = dataset.splits[split].agreed is not None
    return [
      {}
      if member.diverged
      else evaluate.scalars(
        split,
        evaluate.score_split(
          dataset, self._truth, scores_NC, by_teacher=by_teacher
        ),
      )
      for member, scores_NC in zip(self.members, scores_MNC, strict=True)
    ]

  def _save(self, state: State, validated: bool) -> None:
    """A checkpoint from which the group continues."""
    arrays = {'state': flax.serialization.to_state_dict(state)}
    for m, member in enumerate(self.members):
      own = jax.tree.map(lambda x, m=m: x[m], state)
      if not member.diverged and (why := finite.bad_arrays(own)):
        self._diverge(member, self._step, f'{why} after step {self._step}', {})
    if self._workdir is None:
      return
    # A member without a validation has no best yet; its arrays stand in.
    best = [
      jax.tree.map(lambda x, m=m: x[m], state.variables())
      if member.best is None
      else member.best
      for m, member in enumerate(self.members)
    ]
    arrays['best'] = jax.tree.map(lambda *x: np.stack(x), *best)
    if self._writer:
      self._writer.sync()
    metadata = {
      'members': [member.metadata() for member in self.members],
      'validated': validated,
      'identities': self._identities,
      'skipped': sorted(self._skipped),
    }
    folder = self._workdir / 'training'
    checkpoint.save(folder, self._step, arrays, metadata, keep=2)


def _make_advance(step: Callable) -> Callable:
  """One member through the first `count` of the steps that places are for."""

  def advance(member, shared):
    state, settings, places = member
    arrays, of_teacher, count = shared

    def one(state, at: Mapping[str, jax.Array]):
      batch = sources.take(arrays, at)
      return step(state, settings, of_teacher, batch)

    def at(k):
      return {name: values[k] for name, values in places.items()}

    shapes = jax.eval_shape(one, state, at(0))[1]
    max_steps = places['own'].shape[0]
    outputs = jax.tree.map(
      lambda x: jnp.zeros((max_steps, *x.shape), x.dtype), shapes
    )

    def body(k, carry):
      state, outputs = carry
      state, values = one(state, at(k))
      outputs = jax.tree.map(lambda o, v: o.at[k].set(v), outputs, values)
      return state, outputs

    # One program for any number of steps, so that chunks change no bits.
    return jax.lax.fori_loop(0, count, body, (state, outputs))

  return advance
