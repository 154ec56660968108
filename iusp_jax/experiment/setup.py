"""What runs on the same data share: data set, teacher, outputs, features."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, preparation, sources, teacher_outputs
from iusp_jax.experiment import feeds, teacher
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import targets, terms
from iusp_jax.runtime import files, logs
from iusp_jax.training import engine, step
from iusp_jax.training.recipe import Recipe


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
  recipe: Recipe, names: Sequence[str], cache_dir: str, num_clips: int = 0
) -> str:
  """Why a teacher has to run in every step; empty if it need not.

  Args:
    recipe: of the student.
    names: of the targets that are wanted.
    cache_dir: where outputs would be stored.
    num_clips: of the split.
  """
  if field := recipe.augment.is_random():
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
    self._cache_dir = config['cache_dir']
    self._store = config['teacher']['store']
    self.dataset = load_dataset(config['dataset'])
    self.features = feeds.Features(self.dataset)
    self.teacher: trained.Trained | None = None

  def get_teacher(self, required: bool) -> trained.Trained | None:
    """Finds the teacher, or trains it where it is required and not there."""
    own, source = self._config['teacher'], teacher.source(self._config)
    named = own[source] if source else ''
    recipe = teacher.recipe_of(self._config)
    logs.log(
      f'teacher: {describe_model(recipe, self.dataset)}'
      + (f', from {named}' if named else '')
    )
    get = teacher.get_or_train if required else teacher.find
    self.teacher = get(self._config, self.dataset)
    return self.teacher

  def job(
    self, name: str, recipe: Recipe, objective: terms.Objective, seed: int
  ) -> step.Job:
    """A student's run.

    Raises:
      ValueError: where stored outputs are demanded and cannot be right.
    """
    runs_in_step = None
    if objective.terms and not self._stores(recipe, objective.targets):
      assert self.teacher is not None
      runs_in_step = self.teacher.model
    return step.Job(name, recipe, objective, self.dataset, seed, runs_in_step)

  def stores(self) -> bool:
    """Whether outputs of the teacher may be stored at all."""
    return self._store != 'off' and not files.is_remote(self._cache_dir)

  def _stores(self, recipe: Recipe, names: Sequence[str]) -> bool:
    if self._store == 'off':
      return False
    count = len(self.dataset.splits['train'])
    reason = teacher_must_run(recipe, names, self._cache_dir, count)
    if reason and self._store != 'auto':
      raise ValueError(
        f'config.teacher.store is {self._store!r}, but the outputs of the '
        f"teacher cannot be stored: {reason}. Set it to 'auto' or switch that "
        'off'
      )
    if reason:
      logs.log(f'teacher: runs in every step, since {reason}')
    return not reason

  def outputs(self, split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Stored outputs of the teacher for a split, by target."""
    assert self.teacher is not None
    precision = self._store
    if precision not in teacher_outputs.PRECISIONS:
      precision = 'float32'
    name = teacher_outputs.folder_name(
      self.teacher, self.dataset.fingerprint(), f'{split} {precision}'
    )
    folder = teacher_outputs.Folder(
      files.resolve(self._cache_dir) / 'outputs' / name,
      self.teacher,
      self.dataset.splits[split],
      precision,
      f'config.cache_dir is {self._cache_dir}',
    )
    return folder.get_or_build(names)

  def feed(self, job: step.Job) -> engine.Feed:
    """Training and validation clips for jobs like this one."""
    runs_in_step = job.teacher is not None
    outputs = {}
    if job.objective.terms and not runs_in_step:
      found = self.outputs('train', job.objective.targets)
      outputs = {sources.TARGET + name: x for name, x in found.items()}
    variables = {}
    if runs_in_step:
      assert self.teacher is not None
      variables = self.teacher.variables
    return self.features.feed(job, outputs, variables)


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
  if not setup.stores():
    return dict.fromkeys(setup.dataset.coarse)
  split = setup.dataset.splits['train']
  stored = setup.outputs('train', ['frame_gram'])['frame_gram']
  length_N = np.array(
    [split.source[k]['num_samples'] for k in range(len(split))]
  )
  mask_NT = np.asarray(
    step.frame_mask(
      jnp.asarray(length_N), setup.dataset.num_samples, stored.shape[1]
    )
  )
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
