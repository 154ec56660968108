"""Class folders that are folds, splits or a known data set; their counts."""

import numpy as np
import pytest
import soundfile

from tfds_dcase import urban_scenes
from tfds_dcase.urban_scenes import class_names, recordings


@pytest.mark.parametrize(
  ('folders', 'named'),
  [
    (['fold1', 'fold2'], "'fold1', 'fold2'"),
    (['Fold 1', 'dog', 'rain'], "'Fold 1'"),
    (['train', 'test'], "'test', 'train'"),
    (['train', 'val', 'dog'], "'train', 'val'"),
    (['Train', 'Validation', 'Test'], "'Test', 'Train', 'Validation'"),
    (['eval', 'dog'], "'eval'"),
    (['train'], "'train'"),
  ],
)
def test_folds_and_splits_are_no_tags(tmp_path, folders, named):
  for name in folders:
    (tmp_path / 'own' / name / 'dog').mkdir(parents=True)
    wave = np.random.default_rng(0).standard_normal(800)
    soundfile.write(tmp_path / 'own' / name / 'dog/a.wav', 0.1 * wave, 16000)
  with pytest.raises(ValueError, match='not tags') as error:
    urban_scenes.make_builder(tmp_path, 'clips', tmp_path / 'own')
  assert f'folders called {named} are' in str(error.value)
  assert 'labels.csv' in str(error.value)


@pytest.mark.parametrize(
  'folders',
  [
    ['train', 'bus', 'tram'],
    ['training shoes', 'test tone', 'fold', 'dev 1'],
    ['001 - Dog bark', '002 - Rain'],
    [],
  ],
)
def test_sounds_with_similar_names_are_tags(tmp_path, folders):
  class_names.check(tmp_path, folders)


def test_recordings_by_tag_and_split_are_one_line(caplog):
  caplog.set_level('INFO', logger='tfds_dcase')
  listed = [
    recordings.Recording(f'{tag}/{k}.wav', tag, 1, split)
    for tag, sizes in (('rain', (3, 1, 2)), ('Rain_', (1, 1, 1)))
    for split, n in zip(('train', 'validate', 'test'), sizes, strict=True)
    for k in range(n)
  ]
  recordings.log_counts(listed, '/own')
  line, warning = [r.getMessage() for r in caplog.records]
  assert line == (
    "/own: recordings in train/validate/test: 'Rain_' 1/1/1, 'rain' 3/1/2"
  )
  assert 'nearly equal' in warning
