"""Similarities and losses: what a student is trained on."""

from iusp_jax.objectives.clusters import cluster_iusp_loss
from iusp_jax.objectives.embeddings import span_alignment_loss, vic_parts
from iusp_jax.objectives.losses import (
  iusp_loss,
  kd_loss,
  sp_loss,
  tagging_loss,
)
from iusp_jax.objectives.similarity import batch_similarity, frame_similarity
from iusp_jax.objectives.soft_tags import (
  clip_frame_kd_parts,
  dist_tags_loss,
  emphasised_kd_loss,
  frame_kd_loss,
  hard_frame_kd_loss,
  multilevel_kd_parts,
)

__all__ = [
  'batch_similarity',
  'clip_frame_kd_parts',
  'cluster_iusp_loss',
  'dist_tags_loss',
  'emphasised_kd_loss',
  'frame_kd_loss',
  'frame_similarity',
  'hard_frame_kd_loss',
  'iusp_loss',
  'kd_loss',
  'multilevel_kd_parts',
  'sp_loss',
  'span_alignment_loss',
  'tagging_loss',
  'vic_parts',
]
