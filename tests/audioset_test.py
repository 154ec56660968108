"""AudioSet's names, and which of them stand for a tag."""

import numpy as np
import pytest

from iusp_jax.models.pretrained import audioset
from tfds_dcase import taxonomy


def test_names_are_in_the_order_of_the_outputs():
  names = audioset.names()
  assert len(names) == len(set(names)) == audioset.NUM_CLASSES
  assert names[0] == 'Speech'
  assert names[74] == 'Dog'
  assert names[526] == 'Field recording'


def test_names_that_the_package_lists_are_there():
  mapped = audioset.map_tags(audioset.NAMES_OF_TAG)
  assert (audioset.matrix(mapped).sum(1) > 0).all()
  assert mapped == {k: list(v) for k, v in audioset.NAMES_OF_TAG.items()}


def test_tags_of_known_data_sets_have_names():
  assert all(audioset.map_tags(taxonomy.COARSE).values())
  found = audioset.map_tags(['001 - Dog bark', 'Dog bark', 'dog_bark'])
  assert list(found.values()) == [['Dog', 'Bark']] * 3


def test_other_tags_have_the_name_that_is_equal_but_for_case():
  found = audioset.map_tags(['car alarm', 'Waves, surf', 'drilling', 'dog'])
  assert found['car alarm'] == ['Car alarm']
  assert found['Waves, surf'] == ['Waves, surf']
  assert found['drilling'] == []
  assert found['dog'] == list(audioset.NAMES_OF_TAG['dog'])


def test_matrix_has_the_classes_of_each_tag():
  found = audioset.matrix({'a': ['Dog', 'Speech'], 'b': []})
  assert found.shape == (2, 527)
  assert np.flatnonzero(found[0]).tolist() == [0, 74]
  assert not found[1].any()
  with pytest.raises(ValueError, match="'Dogs', of the tag 'a', is no Audio"):
    audioset.matrix({'a': ['Dogs']})
