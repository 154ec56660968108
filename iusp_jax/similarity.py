"""Public names of `iusp_jax.objectives.similarity`."""

from iusp_jax.objectives.similarity import batch_similarity, frame_similarity

__all__ = ['batch_similarity', 'frame_similarity']
