"""The data of a run: clips in memory wherever they fit, else from the disk."""

import functools
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.data import datasets, sources
from iusp_jax.runtime import logs, memory
from iusp_jax.training import engine, evaluate, step


class Features:
  """Features of a data set's clips, made once and kept in memory."""

  def __init__(self, dataset: datasets.Dataset):
    self._dataset = dataset
    self._kept: dict = {}
    self._warned: set[int] = set()  # Batch sizes.

  def feed(
    self,
    job: step.Job,
    outputs: Mapping[str, np.ndarray] | None = None,
    of_teacher: Mapping[str, Any] | None = None,
  ) -> engine.Feed:
    """Training and validation clips for jobs like this one.

    Args:
      job: of the data set.
      outputs: stored outputs of the teacher, as `target/<name>`.
      of_teacher: `variables` and `fits` of one that runs in every step.
    """
    waves = job.teacher is not None or job.recipe.augment.needs_waves()
    config = None if waves else job.recipe.frontend
    return engine.Feed(
      functools.partial(self._source, config, outputs or {}),
      self.clips(job.recipe.frontend, 'validate'),
      of_teacher or {},
    )

  def _source(self, config, outputs, order, layout, max_steps):
    """Clips in memory wherever they fit, see `engine.Feed`."""
    split = self._dataset.splits['train']
    if reason := self._too_large(config, split):
      logs.log(f'clips are read from the disk in every step, since {reason}')
      return sources.Stream(split, outputs, order, layout)
    arrays = {**self.get(config, 'train'), **outputs}
    self._log_rare_tags(arrays['tags'], order.batch_size)
    budget = memory.device_budget()
    return sources.Resident(arrays, order, layout, budget, max_steps)

  def _log_rare_tags(self, tags_NC: np.ndarray, batch_size: int) -> None:
    """Warns once of tags that most batches have no clip of."""
    count_C = (tags_NC > 0).sum(axis=0)
    rare = [
      f'{tag!r} {count}'
      for tag, count in zip(self._dataset.tags, count_C, strict=True)
      if 0 < count < batch_size
    ]
    if rare and batch_size not in self._warned:
      logs.log(
        f'warning: tags with fewer clips in train than a batch has, '
        f'{batch_size}: {", ".join(rare)}; many batches have none of them, see '
        'training.batch_size'
      )
    self._warned.add(batch_size)

  def _too_large(self, config, split) -> str:
    needed = sources.feature_bytes(self._dataset, config) * len(split)
    budget = memory.host_budget()
    if needed <= budget:
      return ''
    what = 'log-mel' if config else 'waveforms'
    return (
      f'the {what} of {len(split)} clips are {needed / 1e9:.1f} GB, more than '
      f'{budget / 1e9:.1f} GB, half of the memory that is free'
    )

  def get(
    self, config: frontend.FrontendConfig | None, split: str
  ) -> dict[str, np.ndarray]:
    """Log-mel (or waveforms) and labels of a split, made once a front end."""
    key = config, split
    if key not in self._kept:
      started = time.monotonic()
      self._kept[key] = sources.features(self._dataset.splits[split], config)
      what = f'log-mel of {config.num_mel_bands} bands' if config else 'waves'
      logs.log(
        f'{split}: {what} in memory ({time.monotonic() - started:.1f} s)'
      )
    return self._kept[key]

  def clips(
    self,
    config: frontend.FrontendConfig,
    split: str,
    outputs: Mapping[str, np.ndarray] | None = None,
  ) -> evaluate.Clips:
    """A split's clips to score, for a front end; with outputs of a teacher."""
    own = self._dataset.splits[split]
    if self._too_large(config, own):
      return evaluate.Clips(own, None, outputs)
    return evaluate.Clips(own, self.get(config, split), outputs)
