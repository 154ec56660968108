"""How one model is made, fed and trained, as plain values from a config."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from iusp_jax.audio import frontend
from iusp_jax.audio.augment import ClipAugment, spec_augment_config


@dataclasses.dataclass(frozen=True)
class Training:
  """`training` of configs/base.py, which has the units.

  Raises:
    TypeError: for a field that is unknown.
  """

  batch_size: int
  epochs: float
  learning_rate: float
  warmup_epochs: float
  weight_decay: float
  clip_factor: float
  ema_decay: float
  eval_every_epochs: float
  log_every_steps: int
  accumulate_steps: int = 1
  compute_dtype: str = 'float32'


@dataclasses.dataclass(frozen=True)
class Augment:
  """`augment` of configs/base.py, which has the units."""

  mixup_alpha: float = 0.0
  time_roll_seconds: float = 0.0
  num_time_masks: int = 0
  max_time_fraction: float = 0.1
  num_mel_masks: int = 0
  max_mel_fraction: float = 0.2

  def needs_waves(self) -> str:
    """The field for which log-mel cannot be made in advance, or ''."""
    for name in ('mixup_alpha', 'time_roll_seconds'):
      if getattr(self, name):
        return name
    return ''

  def is_random(self) -> str:
    """The field for which a clip differs from epoch to epoch, or ''."""
    for name in ('num_time_masks', 'num_mel_masks'):
      if getattr(self, name):
        return name
    return self.needs_waves()


@dataclasses.dataclass(frozen=True)
class Recipe:
  """One model: architecture, front end, training, augmentation."""

  model: Mapping[str, Any]
  frontend: frontend.FrontendConfig
  training: Training
  augment: Augment

  @classmethod
  def from_config(cls, section: Mapping[str, Any]) -> 'Recipe':
    """From `config.student`, `config.teacher`, or a run's model.json."""
    training = dict(section['training'])
    # Of a model that an earlier version trained, which is not trained on.
    if training.pop('clip_norm', None) is not None:
      training.setdefault('clip_factor', 0.0)
    return cls(
      model=dict(section['model']),
      frontend=frontend.FrontendConfig(**section['frontend']),
      training=Training(**training),
      augment=Augment(**section['augment']),
    )

  def clip_augment(self) -> ClipAugment:
    """What is done to each clip by itself in training."""
    fields = self.augment
    masks = spec_augment_config(dataclasses.asdict(fields))
    return ClipAugment(masks, self.frontend, fields.time_roll_seconds)

  def plain(self) -> dict[str, Any]:
    """As JSON holds it."""
    return {
      'model': dict(self.model),
      'frontend': dataclasses.asdict(self.frontend),
      'training': dataclasses.asdict(self.training),
      'augment': dataclasses.asdict(self.augment),
    }
