"""Many students of one shape trained in one program.

What a table needs: runs that differ in their seed and in the weights of their
objective, and in nothing else. One compiled step serves them all (see
`step.Job.settings`); log-mel and stored teacher outputs of the split stay on
the device, and what lies between two validations is one `lax.scan`. Where they
do not fit there, the clips of as many steps as do are brought in turn; where
not even one step's do, the members train in groups. Every member sees the clips
in the order of its own seed, and ends where `train.fit` would have ended by
itself.

Members are spread over the devices, each of which works through its share,
`together` of them at a time under `vmap`.
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, in_memory
from iusp_jax.data.in_memory import Resident
from iusp_jax.models import tagger
from iusp_jax.runtime import devices, logs, preemption
from iusp_jax.training import accumulate, evaluate, optim, train
from iusp_jax.training.step import Job, initial_state, make_step

SECONDS_BETWEEN_LINES = 30.0


@dataclasses.dataclass
class Member:
  """What is left of one run.

  Attributes:
    job: the run.
    rows: of metrics.jsonl.
    best: variables at the best validation score.
    best_step: steps done by then.
    best_score: that score.
    last: variables after the last step.
    diverged: why the run has no result; empty for a good one.
  """

  job: Job
  rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
  best: Any = None
  best_step: int = 0
  best_score: float = -1.0
  last: Any = None
  diverged: str = ''


@functools.cache
def compile_predict(model: tagger.Tagger) -> Callable:
  """`predict(variables, mel_NTF)`: logits `[N, C]` of a whole split."""
  return jax.jit(functools.partial(_predict, model))


@functools.cache
def _compile_predict_members(model: tagger.Tagger, together: int) -> Callable:
  return devices.map_members(functools.partial(_predict, model), together)


def fit(
  jobs: Sequence[Job],
  resident: Resident,
  validate: Resident,
  together: int | None = None,
  room: int | None = None,
) -> list[Member]:
  """Trains jobs that differ in seed and weights alone.

  Args:
    jobs: of one recipe, data set and set of terms; `workdir` is not used.
    resident: from `in_memory.with_targets`, of the training split.
    validate: from `in_memory.features`, of the validation split.
    together: members under one `vmap`; by default as is fastest.
    room: bytes of a device for features and teacher outputs of the training
      split; by default half of its memory, and no limit on a CPU. Jobs whose
      clips of one step exceed it are trained one group after the other.

  Returns:
    One `Member` a job, in order.

  Raises:
    ValueError: where the jobs cannot share a program, or the batch does not
      fit the devices, the data or the room.
  """
  _check(jobs)
  if room is None:
    room = in_memory.device_room()
  members = []
  for few in groups(jobs, resident, room):
    run = Run(few, together or best_together())
    members += run.train(resident, validate, room)
  return members


def first_epoch(job: Job, resident: Resident) -> tuple[Any, np.ndarray]:
  """Variables of one job after an epoch, and the clips of the next `[K, B]`."""
  _check([job])
  room = in_memory.device_room()
  groups([job], resident, room)  # Raises where a batch exceeds the room.
  run = Run([job], 1)
  steps = max(1, round(run.plan.steps_per_epoch))
  run.take_steps(0, steps, run.feed(resident, room))
  variables = jax.tree.map(lambda x: np.asarray(x)[0], run.state.variables())
  return variables, run.order(steps, 2 * steps)[0]


def best_together() -> int:
  """How many members share a `vmap`; see benchmarks/ensemble.py."""
  return 1 if jax.default_backend() == 'cpu' else 64


def groups(
  jobs: Sequence[Job], resident: Resident, room: int
) -> list[Sequence[Job]]:
  """As few and as equal groups of jobs as have room for a step's clips.

  Args:
    jobs: to share a program.
    resident: a split on the host, from `in_memory.with_targets`.
    room: bytes of a device.

  Returns:
    The jobs in order: one group of all where the split fits as a whole.

  Raises:
    ValueError: where one job's batch exceeds the room.
  """
  if in_memory.size(resident) <= room:
    return [jobs]
  batch_size = jobs[0].recipe['training']['batch_size']
  at_once = in_memory.clips_in(resident, room) // batch_size
  if not at_once:
    megabytes = (
      in_memory.size(resident) / len(resident['index']) * batch_size / 1e6
    )
    raise ValueError(
      f'{jobs[0].name}: batch_size is {batch_size}, and the features and '
      f'teacher outputs of so many clips are {megabytes:.1f} MB, more than the '
      f'{room / 1e6:.1f} MB for them on a device: lower batch_size'
    )
  count = -(-len(jobs) // at_once)
  if count > 1:
    logs.log(
      f'{jobs[0].name} and {len(jobs) - 1} more: in {count} groups, one after '
      f'the other, as a step of {at_once} of them fills the '
      f'{room / 1e6:.0f} MB for features and teacher outputs on a device'
    )
  ends = [len(jobs) * k // count for k in range(count + 1)]
  return [jobs[i:j] for i, j in itertools.pairwise(ends)]


def _check(jobs: Sequence[Job]) -> None:
  first = jobs[0]
  training = first.recipe['training']
  accumulate.check(training, first.terms())
  datasets.check_batch_size(
    first.dataset.splits['train'], training['batch_size']
  )
  for field in ('mixup_alpha', 'time_roll_seconds'):
    value = first.recipe['augment'][field]
    if value:
      raise ValueError(
        f'config.student.augment.{field} is {value}: it changes waveforms, '
        'and what stays on the device is log-mel; expected 0'
      )
  for job in jobs:
    same = (
      job.recipe == first.recipe
      and job.terms() == first.terms()
      and job.dataset is first.dataset
      and job.objective['kd_temperature'] == first.objective['kd_temperature']
    )
    if not same:
      raise ValueError(
        f'{job.name} and {first.name} differ in more than seed and weights: '
        'expected one recipe, data set and set of terms'
      )


class Run:
  """One `fit`."""

  def __init__(self, jobs: Sequence[Job], together: int):
    self._jobs = jobs
    job = jobs[0]
    training = job.recipe['training']
    self._num_clips = len(job.dataset.splits['train'])
    self.plan = optim.Plan.of(training, self._num_clips)
    rate = optim.schedule(
      training, self.plan.num_steps, self.plan.steps_per_epoch
    )
    self._rates = np.asarray(jax.vmap(rate)(np.arange(self.plan.num_steps)))
    optimizer = optim.optimizer(training, rate)
    num_tags = len(job.dataset.tags)
    student = tagger.build(job.recipe, num_tags, devices.AXIS)
    step = make_step(student, optimizer, job)
    self.advance = devices.map_members(
      functools.partial(_advance, step), together
    )
    plain = tagger.build(job.recipe, num_tags)
    self.predict = _compile_predict_members(plain, together)
    states = [initial_state(student, optimizer, job) for job in jobs]
    self.state = jax.tree.map(lambda *x: np.stack(x), *states)
    self._rounds = 0  # Most steps that `advance` was called for.
    settings = [job.settings() for job in jobs]
    self._settings = jax.tree.map(lambda *x: np.stack(x), *settings)

  def order(self, first: int, last: int) -> np.ndarray:
    """Clips of the steps from `first` to `last` of every member, [M, K, B]."""
    size = self._jobs[0].recipe['training']['batch_size']
    index = [
      _order(self._num_clips, job.seed, first * size, last * size)
      for job in self._jobs
    ]
    return np.array(index).reshape(len(index), last - first, size)

  def arguments(self, clips_MKB: np.ndarray):
    """What `advance` takes, with the member axis in front."""
    return self.state, self._settings, clips_MKB

  def train(self, resident, validate, room: int) -> list[Member]:
    """From the first to the last step of the plan."""
    members = [Member(job) for job in self._jobs]
    truth = datasets.truth(self._jobs[0].dataset.splits['validate'])
    plan, said = self.plan, time.monotonic()
    mel = jax.device_put(validate['mel'])
    feed = self.feed(resident, room)
    stops = [*range(0, plan.num_steps, plan.eval_every_steps), plan.num_steps]
    for first, last in itertools.pairwise(stops):
      preemption.check()
      outputs = self.take_steps(first, last, feed)
      logits_MNC = np.asarray(self.predict(self.state.variables(), mel))
      variables = self.state.variables()
      for m, member in enumerate(members):
        self._log(member, first, {k: v[m] for k, v in outputs.items()})
        own = jax.tree.map(lambda x, m=m: x[m], variables)
        self._validate(member, last, own, logits_MNC[m], truth)
      if time.monotonic() - said > SECONDS_BETWEEN_LINES:
        said = time.monotonic()
        logs.log(self._progress(members, last))
    return members

  def feed(self, resident: Resident, room: int) -> Callable:
    """A function of clips `[M, K, B]`: pairs of clips and where to find them.

    One pair with all of the split, where that fits into the room on a device;
    otherwise one for every few steps, with what these need. One step must have
    room; see `groups`.
    """
    if (size := in_memory.size(resident)) <= room:
      arrays = jax.device_put(dict(resident))
      return lambda clips_MKB: [(clips_MKB, arrays)]
    of_step = self.order(0, 1).size
    steps = in_memory.clips_in(resident, room) // of_step
    steps = min(steps, self.plan.eval_every_steps)  # No more are asked for.
    logs.log(
      f'{self._jobs[0].name}: features and teacher outputs of the split are '
      f'{size / 1e6:.0f} MB, more than the {room / 1e6:.0f} MB for them on a '
      f'device: it gets the clips of {steps} steps at a time'
    )

    def feed(clips_MKB):
      for k in range(0, clips_MKB.shape[1], steps):
        arrays, places = in_memory.part(
          resident, clips_MKB[:, k : k + steps], steps * of_step
        )
        yield places, jax.device_put(arrays)

    return feed

  def take_steps(self, first, last, feed) -> dict[str, np.ndarray]:
    """Takes the steps from `first` to `last`.

    Args:
      first: step.
      last: step, not taken.
      feed: from `feed`.

    Returns:
      Their losses, terms and lengths of the gradient, `[M, K]` each.
    """
    found = []
    for clips_MKB, arrays in feed(self.order(first, last)):
      count = clips_MKB.shape[1]
      # The last validation comes after fewer steps: no second program for them.
      self._rounds = max(self._rounds, count)
      padding = ((0, 0), (0, self._rounds - count), (0, 0))
      own = self.arguments(np.pad(clips_MKB, padding))
      state, outputs = self.advance(own, (arrays, np.int32(count)))
      # On the host, as at the start: from elsewhere it would be compiled anew.
      self.state = jax.tree.map(np.asarray, state)
      found.append({k: np.asarray(v)[:, :count] for k, v in outputs.items()})
      del arrays  # Before the next part comes: there is room for one.
    return {key: np.concatenate([f[key] for f in found], 1) for key in found[0]}

  def _progress(self, members, step) -> str:
    scores = [m.best_score for m in members if not m.diverged]
    best = f'{np.mean(scores):.4f}' if scores else 'none, all diverged'
    job = members[0].job
    return (
      f'{job.name} and {len(members) - 1} more, '
      f'{" + ".join(job.terms()) or "no distillation"}: '
      f'step {step}/{self.plan.num_steps}, mean of best scores {best}'
    )

  def _log(self, member: Member, first: int, outputs_K) -> None:
    """Rows as `train.Loop` writes them, up to a step that is not finite."""
    if member.diverged:
      return
    every = member.job.recipe['training']['log_every_steps']
    count = len(outputs_K['loss'])
    for k in range(count):
      step = first + k + 1
      values = {f'train/{name}': float(v[k]) for name, v in outputs_K.items()}
      if not np.isfinite(list(values.values())).all():
        member.diverged = (
          f'the loss of step {step} is {values["train/loss"]}, its '
          f'gradient_norm {values["train/gradient_norm"]}'
        )
        return
      if step % every and k < count - 1:
        continue
      values['train/learning_rate'] = float(self._rates[step - 1])
      values['train/epoch'] = step / self.plan.steps_per_epoch
      member.rows.append({'step': step, **values})

  def _validate(self, member, step, variables, logits_NC, truth) -> None:
    """Scores the member; keeps its variables if they are the best so far."""
    if member.diverged:
      return
    if not np.isfinite(logits_NC).all():
      member.diverged = f'after step {step} the model gives no numbers'
      return
    dataset = member.job.dataset
    scores_NC = evaluate.probabilities(logits_NC)
    scores = evaluate.score_split(dataset, truth, scores_NC)
    rows = evaluate.scalars('validate', scores)
    member.rows.append({'step': step, **rows})
    score = rows[train.selection_metric(dataset)]
    if score > member.best_score:
      member.best, member.best_step = variables, step
      member.best_score = score
    member.last = variables


@functools.lru_cache(maxsize=1024)  # Groups of cells have the same seeds.
def _order(num_clips: int, seed: int, first: int, last: int) -> np.ndarray:
  """Clips of a run's stream from the place `first` to `last`, int32 `[K·B]`."""
  order = datasets.train_order(num_clips, seed)
  return np.array([order[k] for k in range(first, last)], np.int32)


def _advance(step, member, shared):
  """One member through the first steps of those whose clips are given.

  Args:
    step: from `make_step`.
    member: state, settings and the clips of K steps, int32 `[K, B]`.
    shared: the split on the device, and how many of the K steps are taken.

  Returns:
    The state after them, and what they gave, `[K]` each; 0 for those that were
    not taken.
  """
  state, settings, index_KB = member
  resident, count = shared

  def one(state, index_B):
    # The batch is in one place: an axis of one device for its collectives.
    # Only the batch has it; convolutions with mapped kernels are twice as slow.
    batch = jax.tree.map(lambda x: x[None], in_memory.take(resident, index_B))
    one_device = jax.vmap(
      step,
      in_axes=(None, None, None, 0),
      out_axes=None,
      axis_name=devices.AXIS,
    )
    return one_device(state, {}, settings, batch)

  _, outputs = jax.eval_shape(one, state, index_KB[0])
  nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)

  def scanned(state, at):
    k, index_B = at
    return jax.lax.cond(
      k < count, one, lambda state, _: (state, nothing), state, index_B
    )

  return jax.lax.scan(scanned, state, (jnp.arange(len(index_KB)), index_KB))


def _predict(model, variables, mel_NTF, batch_size=64):
  """Logits `[N, C]` of one member for a whole split."""

  def one(mel_TF):
    return tagger.apply(model, variables, mel_TF[None]).logits_BC[0]

  return jax.lax.map(one, mel_NTF, batch_size=batch_size)
