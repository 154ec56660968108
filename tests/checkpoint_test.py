"""Checkpoints in folders of any name, of earlier steps, and damaged ones."""

import pathlib
import re
import shutil
import subprocess
import sys

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


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    ('flip', 'is damaged: 1 of 2 arrays'),
    ('flipped metadata', 'is damaged: its metadata'),
    ('truncate', 'cannot be read'),
    ('delete', 'cannot be read'),
    ('cut metadata', 'cannot be read'),
  ],
)
def test_damaged_newest_checkpoint_is_reported_and_passed_over(
  tmp_path, damage, message, caplog
):
  """A flipped bit of array or metadata is what only the manifest finds."""
  noise = np.random.default_rng(0).normal(size=20_000)  # Not to be compressed.
  arrays = {'a': noise, 'b': {'c': np.ones((3, 4), np.float32)}}
  for number in (1, 2):
    checkpoint.save(tmp_path, number, arrays, {'number': number}, keep=2)
  newest = tmp_path / f'{2:08d}'
  path = newest / 'arrays' / 'a' / '0'
  assert path.stat().st_size > 100_000
  content = bytearray(path.read_bytes())
  manifest = newest / 'manifest' / 'metadata'
  match damage:
    case 'flip':
      content[len(content) // 2] ^= 1
      path.write_bytes(content)
    case 'flipped metadata':
      manifest.write_text(
        manifest.read_text().replace('"number": 2', '"number": 3')
      )
    case 'truncate':
      path.write_bytes(content[: len(content) // 2])
    case 'delete':
      path.unlink()
    case 'cut metadata':
      manifest.write_text(manifest.read_text()[:-5])
  with pytest.raises(checkpoint.DamagedCheckpoint, match=f'{newest} {message}'):
    checkpoint.restore(newest)
  caplog.clear()
  restored = checkpoint.restore_newest(tmp_path)
  assert f'{newest} {message}' in caplog.text
  assert 'trying the one before' in caplog.text
  assert restored is not None
  assert restored[0] == restored[2]['number'] == 1
  assert checkpoint.checksums(restored[1]) == checkpoint.checksums(arrays)


# A process of its own, since the limit is one of a process.
FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from iusp_jax.runtime import checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
folder, step = Path(sys.argv[1]), int(sys.argv[2])
small, large = ({'a': np.random.default_rng(0).normal(size=size)}
                for size in (1_000, 200_000))
checkpoint.save(folder, 1, small, {'is': 'good'}, keep=2)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
try:
  checkpoint.save(folder, step, large, {'is': 'too large'}, keep=2)
except OSError as error:
  sys.exit(f'error: {error}')
"""


@pytest.mark.parametrize('step', [2, 1])
def test_full_disk_keeps_the_last_good_checkpoint(tmp_path, step):
  """For a new step, and for one that is written anew."""
  done = subprocess.run(
    [sys.executable, '-c', FULL_DISK, str(tmp_path), str(step)],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1, done.stderr
  assert f'{step:08d} could not be written' in done.stderr
  assert 'the last good one is 1: free some' in done.stderr
  assert checkpoint.steps(tmp_path) == [1]
  restored = checkpoint.restore_newest(tmp_path)
  assert restored is not None
  assert restored[2] == {'is': 'good'}
  checkpoint.save(tmp_path, step, {'a': np.ones(3)}, {'is': 'new'}, keep=1)
  restored = checkpoint.restore_newest(tmp_path)
  assert restored is not None
  assert restored[2] == {'is': 'new'}
  assert [path.name for path in tmp_path.iterdir()] == [f'{step:08d}']
