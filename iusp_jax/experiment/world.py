"""A rotation of a table: its data, its teacher, what all its cells share."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, in_memory, store
from iusp_jax.experiment import experiment, grid, teacher
from iusp_jax.models import tagger
from iusp_jax.training import ensemble, step


class World:
  """A rotation's data, teacher and stored outputs, shared by its cells."""

  def __init__(self, config: Any, rotation: grid.Rotation | None):
    self.config, self.rotation = config, rotation
    own = grid.config_of(config, rotation)
    self.dataset = experiment.load_dataset(own)
    grid.check_dataset(own, self.dataset)
    self.guide = teacher.obtain(own, self.dataset)
    if own['teacher']['store'] == 'auto':
      own['teacher']['store'] = 'float32'  # Demanded: it is no option here.
    self.outputs: dict[str, store.Store] = {}
    for split in ('train', 'test'):
      found = store.obtain(own, self.guide, self.dataset, split)
      assert found is not None  # `grid.check` has refused 'off'.
      self.outputs[split] = found
    self._features: dict[Any, in_memory.Resident] = {}

  def features(self, model: tagger.Tagger, split: str) -> in_memory.Resident:
    """Log-mel and tags of a split, made once a front end."""
    key = model.frontend, split
    if key not in self._features:
      self._features[key] = in_memory.features(
        model, self.dataset.splits[split]
      )
    return self._features[key]

  def job(self, student: str, weights: Mapping[str, float], seed: int):
    """A student's run; weights are fields of `config.objective`."""
    own = grid.config_of(self.config, self.rotation, student)
    return step.Job(
      name=f'{student} seed {seed}',
      recipe={key: own['student'][key] for key in teacher.RECIPE},
      objective=dict(weights),
      dataset=self.dataset,
      seed=seed,
      workdir=pathlib.Path(),
      teacher=step.Teacher(self.guide.model, self.guide.variables),
    )

  def fit(self, jobs: Sequence[step.Job]) -> list[ensemble.Member]:
    """Trains jobs of one student and one set of terms together."""
    first = jobs[0]
    model = tagger.build(first.recipe, len(self.dataset.tags))
    resident = in_memory.with_targets(
      self.features(model, 'train'), self.outputs['train'], first.terms()
    )
    return ensemble.fit(jobs, resident, self.features(model, 'validate'))


def repetitiveness(world: World) -> dict[str, float | None]:
  """How alike the frames of a tag's training clips are, by the teacher.

  The mean cosine of two different frames of a clip, padding left out, then the
  mean over the clips that have the tag: 1 for a steady hum, lower for what
  changes. None for a tag that no training clip has.
  """
  split = world.dataset.splits['train']
  gram_NTT = np.asarray(world.outputs['train'].frame_gram, np.float32)
  size_NT = np.sqrt(np.einsum('ntt->nt', gram_NTT))
  size_NT = np.maximum(size_NT, 1e-6 * size_NT.max(1, keepdims=True))
  size_NT = np.where(size_NT > 0, size_NT, 1.0)
  cosine_NTT = gram_NTT / size_NT[:, :, None] / size_NT[:, None]
  length_N = np.array(
    [split.source[k]['num_samples'] for k in range(len(split))]
  )
  mask_NT = np.asarray(
    step.frame_mask(
      jnp.asarray(length_N), world.dataset.num_samples, gram_NTT.shape[1]
    )
  )
  total_N = np.einsum('nt,ntu,nu->n', mask_NT, cosine_NTT, mask_NT)
  total_N -= np.einsum('nt,ntt->n', mask_NT, cosine_NTT)
  frames_N = mask_NT.sum(1)
  mean_N = total_N / np.maximum(1, frames_N * (frames_N - 1))
  tags_NC = datasets.truth(split)['coarse'] > 0
  return {
    tag: float(mean_N[tags_N].mean()) if tags_N.any() else None
    for tag, tags_N in zip(world.dataset.coarse, tags_NC.T, strict=True)
  }
