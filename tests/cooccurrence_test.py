"""Which tags share a procedural scene, against SONYC-UST's annotations."""

import numpy as np
import pytest
from scipy import stats

from tfds_dcase import annotations, taxonomy
from tfds_dcase.urban_scenes import procedural

PAIRS = np.triu_indices(len(taxonomy.COARSE), 1)


@pytest.fixture(scope='module')
def sonyc(sonyc_dir):
  """Coarse tags [2351, 8] of the train clips.

  The 443 validate clips are no reference for pairs: several never occur there.
  """
  read = annotations.read(sonyc_dir / 'annotations.csv')
  return annotations.clips(read, 'train', 'any').coarse > 0


@pytest.fixture(scope='module')
def drawn():
  """Coarse tags [3000, 8] of scenes whose sounds nobody makes."""
  rng = np.random.default_rng(0)
  tags_NC = np.zeros((3000, len(taxonomy.COARSE)), bool)
  for tags_C in tags_NC:
    columns = procedural.draw_columns(rng, (1, 4))
    tags_C[taxonomy.COARSE_OF_COLUMN[columns]] = True
  return tags_NC


def lift(tags_NC):
  """How much oftener than by chance each pair of classes shares a clip."""
  share_C = tags_NC.mean(axis=0)
  together_CC = tags_NC.T.astype(float) @ tags_NC / len(tags_NC)
  return (together_CC / np.outer(share_C, share_C))[PAIRS]


def test_classes_share_scenes_as_they_share_clips(drawn, sonyc):
  # As often as here, but each class by itself.
  alone = np.random.default_rng(1).permuted(drawn, axis=0)
  expected = lift(sonyc)
  assert stats.spearmanr(lift(drawn), expected)[0] > 0.8
  assert stats.spearmanr(lift(alone), expected)[0] < 0.5
  assert abs(lift(drawn) - expected).mean() < 0.15
  assert abs(lift(alone) - expected).mean() > 0.3


def test_scenes_have_as_many_classes_as_clips(drawn, sonyc):
  found, expected = (
    np.bincount(tags_NC.sum(axis=1), minlength=9) / len(tags_NC)
    for tags_NC in (drawn, sonyc)
  )
  np.testing.assert_allclose(found, expected, atol=0.08)
  alone = np.random.default_rng(1).permuted(drawn, axis=0).sum(axis=1)
  assert (
    abs(np.bincount(alone, minlength=9) / len(alone) - expected).max() > 0.1
  )
