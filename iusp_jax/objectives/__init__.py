"""Similarities and losses: what a student is trained on."""

from iusp_jax.objectives.losses import (
  iusp_loss,
  kd_loss,
  sp_loss,
  tagging_loss,
)
from iusp_jax.objectives.similarity import batch_similarity, frame_similarity

__all__ = [
  'batch_similarity',
  'frame_similarity',
  'iusp_loss',
  'kd_loss',
  'sp_loss',
  'tagging_loss',
]
