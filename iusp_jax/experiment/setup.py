"""What runs on the same data share: data set, teacher, outputs, features."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iusp_jax.data import (
  datasets,
  foreign_outputs,
  frame_order,
  preparation,
  sources,
  teacher_outputs,
)
from iusp_jax.experiment import check, feeds, teacher
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import alignment, targets, terms
from iusp_jax.runtime import files, logs
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe
from tfds_dcase import tag_counts


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
  """The prepared data set of `config.dataset`; logs what is in it."""
  started = time.monotonic()
  dataset = preparation.load(settings)
  sizes = ', '.join(
    f'{len(split)} {name}' for name, split in dataset.splits.items()
  )
  logs.log(
    f'data set {dataset.name}: {sizes} clips; {len(dataset.tags)} '
    f'{dataset.level} tags ({time.monotonic() - started:.0f} s)'
  )
  return dataset


def teacher_must_run(
  recipe: Recipe,
  names: Sequence[str],
  cache_dir: str,
  num_clips: int = 0,
  num_versions: int = 0,
) -> str:
  """Why a teacher has to run in every step; empty if it need not.

  Args:
    recipe: of the student.
    names: of the targets that are wanted.
    cache_dir: where outputs would be stored.
    num_clips: of the split.
    num_versions: of each clip that would be stored.
  """
  field = recipe.augment.is_random()
  if field and not num_versions:
    return (
      f'config.student.augment.{field} is {getattr(recipe.augment, field)}: an '
      'augmented clip differs from epoch to epoch'
    )
  pairwise = [name for name in names if targets.is_pairwise(name)]
  if pairwise and num_clips > teacher_outputs.MAX_PAIRWISE_CLIPS:
    return (
      f'{pairwise[0]} of {num_clips} clips is a matrix of as many rows and '
      f'columns, more than {teacher_outputs.MAX_PAIRWISE_CLIPS}'
    )
  if files.is_remote(cache_dir):
    return f'config.cache_dir is {cache_dir}, not a file system'
  return ''


class Setup:
  """The data, teacher and features that runs share.

  Attributes:
    cache_dir: for what later runs find again.
    dataset: to train and score on.
    features: of its clips, in memory.
    teacher: the frozen one, after `get_teacher`; None where there is none.
  """

  def __init__(self, config: Mapping[str, Any]):
    """Loads the data set.

    Args:
      config: plain; `dataset`, `teacher`, `cache_dir` and what the training of
        a teacher looks at count.
    """
    self._config = config
    self.cache_dir = config['cache_dir']
    self._store = config['teacher']['store']
    self.dataset = load_dataset(config['dataset'])
    self.features = feeds.Features(self.dataset)
    self.teacher: teacher_outputs.Teacher | None = None

  @property
  def foreign(self) -> foreign_outputs.Foreign | None:
    """The teacher, where there are its outputs and no model."""
    own = self.teacher
    return own if isinstance(own, foreign_outputs.Foreign) else None

  def get_teacher(self, required: bool) -> teacher_outputs.Teacher | None:
    """Finds the teacher, or trains it where it is required and not there."""
    own, source = self._config['teacher'], teacher.source(self._config)
    named = own[source] if source else ''
    if not teacher.is_foreign(self._config):
      recipe = teacher.recipe_of(self._config)
      logs.log(
        f'teacher: {describe_model(recipe, self.dataset)}'
        + (f', from {named}' if named else '')
      )
    get = teacher.get_or_train if required else teacher.find
    self.teacher = get(self._config, self.dataset)
    if self.foreign:
      _log_foreign(self.foreign, self.dataset)
    self._agree()
    return self.teacher

  def _agree(self) -> None:
    """Takes the teacher's tags to score splits without labels against.

    Raises:
      ValueError: where the teacher does not give them.
    """
    without = datasets.without_labels(self.dataset)
    splits = dict(self.dataset.splits)
    for name in without:
      if name != 'train':
        splits[name] = dataclasses.replace(
          splits[name], agreed=self._teacher_tags(name)
        )
    if splits != self.dataset.splits:
      self.dataset = dataclasses.replace(self.dataset, splits=splits)
      self.features = feeds.Features(self.dataset)

  def _teacher_tags(self, split: str) -> np.ndarray:
    """Where its probability is at least .5: int8 `[N, C]`."""
    place = f'{self.dataset.name} has no labels in {split}'
    if self.teacher is None:
      raise ValueError(f'{place}, and there is no teacher to agree with')
    if files.is_remote(self.cache_dir):
      raise ValueError(
        f"{place}, and the teacher's tags are kept in config.cache_dir, "
        f'{self.cache_dir}: expected a folder of a file system'
      )
    if self.foreign and (reason := self.foreign.scores(split)):
      raise ValueError(f'{place}, and of the teacher, {reason}')
    logits_NC = np.asarray(self.outputs(split, ['logits'])['logits'])
    tags_NC = (logits_NC >= 0).astype(np.int8)
    counts = tag_counts.count(tags_NC, [split] * len(tags_NC))
    logs.log(
      f'{split} has no labels: students are scored by their agreement with the '
      "teacher's tags, of a probability of .5 and more; "
      f'{tag_counts.line(self.dataset.tags, counts)}'
    )
    if not tags_NC.any():
      raise ValueError(
        f'{place}, and the teacher finds no tag there with a probability of .5 '
        'or more: there is nothing to agree with; expected other tags (see '
        'config.teacher.tag_map), another teacher or labels'
      )
    return tags_NC

  def job(
    self, name: str, recipe: Recipe, objective: terms.Objective, seed: int
  ) -> step.Job:
    """A student's run.

    Raises:
      ValueError: where stored outputs are demanded and cannot be right.
    """
    runs_in_step, versions = None, None
    if self.foreign:
      known_tags = self.foreign.known_tags
      check.check_outputs(self.foreign.contents, objective.terms, known_tags)
    if objective.terms and not self._stores(recipe, objective.targets):
      assert isinstance(self.teacher, trained.Trained)
      runs_in_step = self.teacher.model
    elif objective.terms:
      versions = self._versions(recipe)
    shapes = {}
    if objective.has_params:
      stored = runs_in_step is None
      shapes = self._target_shapes(objective.targets, stored, versions)
    return step.Job(
      name,
      recipe,
      objective,
      self.dataset,
      seed,
      runs_in_step,
      shapes,
      self.beside(recipe),
      versions.count if versions else 0,
    )

  def _versions(self, recipe: Recipe) -> teacher_outputs.Versions | None:
    """Of the clips that a student is trained on; None for these as they are."""
    count = self._config['teacher']['store_augmentations']
    if not count or not recipe.augment.is_random():
      return None
    return teacher_outputs.Versions(count, recipe.clip_augment())

  def _target_shapes(
    self,
    names: Sequence[str],
    stored: bool,
    versions: teacher_outputs.Versions | None,
  ) -> dict[str, tuple[int, ...]]:
    """Of a clip's targets."""
    if stored:
      found = self.outputs('train', names, versions)
      first = 2 if versions else 1
      return {name: x.shape[first:] for name, x in found.items()}
    assert isinstance(self.teacher, trained.Trained)
    found = teacher_outputs.shapes(
      self.teacher, names, self.dataset.num_samples, self.fits(names)
    )
    return {name: x.shape[1:] for name, x in found.items()}

  def beside(self, recipe: Recipe) -> terms.Correspondence:
    """How the teacher's outputs lie beside those of a student."""
    timings, theirs = None, self.teacher_timing()
    known_tags = self.foreign.known_tags if self.foreign else ()
    if theirs is not None:
      model = tagger.build(recipe.plain(), len(self.dataset.tags))
      timings = alignment.Timings(tagger.frame_timing(model), theirs)
    return terms.Correspondence(timings, () if all(known_tags) else known_tags)

  def teacher_timing(self) -> alignment.Timing | None:
    """Of the teacher's frames, where they are not equal parts of a clip."""
    if self.foreign:
      return self.foreign.contents.timing
    if isinstance(self.teacher, trained.Trained):
      return tagger.given_timing(self.teacher.model)
    return None

  def stores(self) -> bool:
    """Whether outputs of the teacher may be stored at all."""
    return self._store != 'off' and not files.is_remote(self.cache_dir)

  def _stores(self, recipe: Recipe, names: Sequence[str]) -> bool:
    if self._store == 'off':
      return False
    count = len(self.dataset.splits['train'])
    reason = teacher_must_run(
      recipe,
      names,
      self.cache_dir,
      count,
      self._config['teacher']['store_augmentations'],
    )
    if reason and self.foreign:
      raise ValueError(
        f'{self.foreign.contents.path} has outputs of a teacher that cannot be '
        f'run, and {reason}: leave that term out, or switch that off'
      )
    if reason and self._store != 'auto':
      raise ValueError(
        f'config.teacher.store is {self._store!r}, but the outputs of the '
        f"teacher cannot be stored: {reason}. Set it to 'auto' or switch that "
        'off'
      )
    if reason:
      logs.log(f'teacher: runs in every step, since {reason}')
    return not reason

  def outputs(
    self,
    split: str,
    names: Sequence[str],
    versions: teacher_outputs.Versions | None = None,
  ) -> dict[str, np.ndarray]:
    """Stored outputs of the teacher for a split, by target.

    With frames of which clips have different numbers also `num_frames`.
    """
    if self.foreign:
      names = [*names, *self.foreign.more_targets(split, names)]
    return self._folder(split, versions).get_or_build(names)

  def fits(self, names: Sequence[str]) -> dict[str, np.ndarray]:
    """What fitted targets are made with, of the training clips, by target."""
    if self.stores():
      return self._folder('train').fits(names)
    assert isinstance(self.teacher, trained.Trained)
    split = self.dataset.splits['train']
    return {
      name: teacher_outputs.solve_fit(self.teacher, split, name)
      for name in targets.fitted(names)
    }

  def _folder(
    self, split: str, versions: teacher_outputs.Versions | None = None
  ) -> teacher_outputs.Folder:
    assert self.teacher is not None
    precision = self._store
    if precision not in teacher_outputs.PRECISIONS:
      precision = 'float32'
    name = teacher_outputs.folder_name(
      self.teacher,
      self.dataset.fingerprint(),
      f'{split} {precision}',
      versions,
    )
    return teacher_outputs.Folder(
      files.resolve(self.cache_dir) / 'outputs' / name,
      self.teacher,
      self.dataset.splits[split],
      precision,
      f'config.cache_dir is {self.cache_dir}',
      versions,
    )

  def stored_bytes(self, job: step.Job) -> float | None:
    """Bytes a training clip that are stored of the teacher for a job.

    None where it runs in every step.
    """
    if job.teacher is not None:
      return None
    found = self._of_job(job)
    return sum(x.nbytes for x in found.values()) / len(
      self.dataset.splits['train']
    )

  def _of_job(self, job: step.Job) -> dict[str, np.ndarray]:
    """Stored outputs of the training clips, by target."""
    if not job.objective.terms:
      return {}
    versions = self._versions(job.recipe)
    return self.outputs('train', job.objective.targets, versions)

  def feed(self, job: step.Job) -> engine.Feed:
    """Training and validation clips for jobs like this one."""
    runs_in_step = job.teacher is not None
    found = {} if runs_in_step else self._of_job(job)
    outputs = {sources.TARGET + name: x for name, x in found.items()}
    of_teacher = {}
    if runs_in_step:
      assert isinstance(self.teacher, trained.Trained)
      fits = self.fits(job.objective.targets)
      of_teacher = {'variables': self.teacher.variables, 'fits': fits}
    feed = self.features.feed(job, outputs, of_teacher)
    if self.dataset.splits['validate'].agreed is None:
      return feed
    names = [
      target
      for name in step.measurable(job.objective)
      for target in terms.TERMS[name].targets
    ]
    found = self.outputs('validate', list(dict.fromkeys(names)))
    found = {sources.TARGET + name: x for name, x in found.items()}
    clips = self.features.clips(job.recipe.frontend, 'validate', found)
    return dataclasses.replace(feed, distilled=clips)


def _log_foreign(
  found: foreign_outputs.Foreign, dataset: datasets.Dataset
) -> None:
  """Logs whose outputs they are, and a warning where frames look wrong."""
  of = found.contents.metadata
  outputs = ', '.join(found.contents.splits['train'].arrays)
  logs.log(
    f'teacher: {of["name"]} ({of["source"]}; {of["licence"]}), {outputs} from '
    f'{found.contents.path}'
  )
  unknown = found.known_tags.count(False)
  if unknown and found.contents.gives('logits'):
    logs.log(
      f'teacher: {unknown} of {len(found.known_tags)} tags have none of its own'
    )
  if found.contents.gives('frames'):
    likeness = frame_order.compare(
      found, dataset.splits['train'], dataset.sample_rate
    )
    if likeness and (problem := likeness.problem()):
      logs.log(
        f'warning: teacher: {problem}: frames.npy should be in order of time, '
        f'and of the times in {foreign_outputs.METADATA}'
      )


def describe_model(recipe: Mapping[str, Any], dataset: datasets.Dataset) -> str:
  """Architecture and size in words."""
  model = tagger.build(recipe, len(dataset.tags))
  num_samples = dataset.num_samples
  variables = model.shapes(num_samples)
  return (
    f'{recipe["model"]["architecture"]}, '
    f'{model.num_parameters(variables):,} parameters, '
    f'{model.num_macs(num_samples) / 1e6:.1f} M '
    'multiply-accumulates a clip'
  )


def repetitiveness(setup: Setup) -> dict[str, float | None]:
  """How alike the frames of a tag's training clips are, by the teacher.

  The mean cosine of two different frames of a clip, padding left out, then the
  mean over the clips that have the tag: 1 for a steady hum, lower for what
  changes. None for a tag that no training clip has, and for all where no
  outputs of the teacher are stored.
  """
  own = setup.foreign
  if not setup.stores() or (own and not own.contents.gives('frames')):
    return dict.fromkeys(setup.dataset.coarse)
  split = setup.dataset.splits['train']
  outputs = setup.outputs('train', ['frame_gram'])
  stored, starts_T = outputs['frame_gram'], None
  if timing := setup.teacher_timing():
    starts_T = timing.edges(stored.shape[1])[0] / setup.dataset.clip_seconds
  length_N = np.array(
    [split.source[k]['num_samples'] for k in range(len(split))]
  )
  mask_NT = np.asarray(
    targets.frame_mask(
      jnp.asarray(length_N),
      setup.dataset.num_samples,
      stored.shape[1],
      starts_T,
    )
  )
  if targets.NUM_FRAMES in outputs:
    count_N1 = outputs[targets.NUM_FRAMES][:, None]
    mask_NT = mask_NT * (np.arange(stored.shape[1])[None] < count_N1)
  mean_N = np.concatenate(
    [
      _mean_cosine(stored[k : k + 256], mask_NT[k : k + 256])
      for k in range(0, len(split), 256)
    ]
  )
  tags_NC = datasets.truth(split)['coarse'] > 0
  return {
    tag: float(mean_N[tags_N].mean()) if tags_N.any() else None
    for tag, tags_N in zip(setup.dataset.coarse, tags_NC.T, strict=True)
  }


def _mean_cosine(gram_NTT: np.ndarray, mask_NT: np.ndarray) -> np.ndarray:
  """Of two different frames of a clip, padding left out: `[N]`."""
  gram_NTT = np.asarray(gram_NTT, np.float32)
  size_NT = np.sqrt(np.einsum('ntt->nt', gram_NTT))
  size_NT = np.maximum(size_NT, 1e-6 * size_NT.max(1, keepdims=True))
  size_NT = np.where(size_NT > 0, size_NT, 1.0)
  cosine_NTT = gram_NTT / size_NT[:, :, None] / size_NT[:, None]
  total_N = np.einsum('nt,ntu,nu->n', mask_NT, cosine_NTT, mask_NT)
  total_N -= np.einsum('nt,ntt->n', mask_NT, cosine_NTT)
  frames_N = mask_NT.sum(1)
  return total_N / np.maximum(1, frames_N * (frames_N - 1))
