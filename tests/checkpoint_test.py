"""Checkpoints in folders of any name, of earlier steps, and damaged ones."""

import pathlib
import re
import shutil

import numpy as np
import pytest

from iusp_jax.runtime import checkpoint

ARRAYS = {
  'a': np.arange(6.0, dtype=np.float32).reshape(2, 3),
  'inner': {'b': np.array(3), 'c[0]': np.ones(2, np.int8)},
}


def assert_restores(folder, step, metadata):
  restored = checkpoint.restore_newest(folder)
  assert restored is not None
  assert restored[0] == step
  assert checkpoint.checksums(restored[1]) == checkpoint.checksums(ARRAYS)
  assert restored[2] == metadata


@pytest.mark.parametrize(
  'name', ['my [tagger] runs', 'back\\slash', '{a}*?', 'a %20 #1', 'Ω\n']
)
def test_any_folder_name_works(name, tmp_path, monkeypatch):
  folder = tmp_path / name / 'run' / 'checkpoints' / 'last'
  checkpoint.save(folder, 1, ARRAYS, {'best': 0.5}, keep=2)
  assert_restores(folder, 1, {'best': 0.5})
  checkpoint.save(folder, 1, ARRAYS, {'best': 0.6}, keep=2)  # Anew.
  for step in (2, 3):
    checkpoint.save(folder, step, ARRAYS, {'best': None}, keep=2)
  assert_restores(folder, 3, {'best': None})
  assert checkpoint.steps(folder) == [2, 3]
  assert [path.name for path in tmp_path.iterdir()] == [name]
  monkeypatch.chdir(tmp_path / name)
  relative = pathlib.Path('run/checkpoints/last')
  assert_restores(relative, 3, {'best': None})


def test_later_steps_are_of_a_run_that_was_taken_back(tmp_path):
  """With `keep=1` the one just written would be deleted instead."""
  for step in (4, 6, 5):
    checkpoint.save(tmp_path, step, ARRAYS, {'step': step}, keep=1)
    assert checkpoint.steps(tmp_path) == [step]
  for step in (6, 7, 8, 7):
    checkpoint.save(tmp_path, step, ARRAYS, {'step': step}, keep=3)
  assert checkpoint.steps(tmp_path) == [6, 7]
  assert_restores(tmp_path, 7, {'step': 7})


def damage(folder):
  """Cuts the manifest of every checkpoint of a series."""
  for path in folder.glob('*/manifest/metadata'):
    path.write_text(path.read_text()[:-5])


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('series', ['checkpoints/last', 'elsewhere'])
def test_advice_for_damaged_checkpoints_starts_over(series, tmp_path):
  """In a run's folder also what else it left, such as that it is complete."""
  workdir = tmp_path / 'teacher'
  folder = workdir / series
  checkpoint.save(folder, 1, ARRAYS, {}, keep=2)
  checkpoint.save(folder, 2, ARRAYS, {}, keep=2)
  (workdir / 'done').write_text('')
  damage(folder)
  with pytest.raises(checkpoint.DamagedCheckpoint) as error:
    checkpoint.restore_newest(folder)
  message = str(error.value)
  assert '\n' not in message
  assert f'{folder / "00000001"} cannot be read' in message
  assert f'{folder / "00000002"} cannot be read' in message
  advice = re.search(r'Delete (\S+) to start over$', message)
  assert advice is not None
  expected = workdir if series == 'checkpoints/last' else folder
  assert advice[1] == str(expected)
  shutil.rmtree(advice[1])
  assert checkpoint.restore_newest(folder) is None
  assert (workdir / 'done').exists() == (series == 'elsewhere')


def test_earlier_format_is_named(tmp_path):
  (tmp_path / '00000003' / 'facts').mkdir(parents=True)
  with pytest.raises(
    checkpoint.DamagedCheckpoint, match='of an earlier version of this program'
  ):
    checkpoint.restore_newest(tmp_path)
