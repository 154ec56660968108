"""Damaged files: found before they are used, named, and their advice holds."""

import json
import re
import shutil

import numpy as np
import pytest
from experiments import one_cell_config, run_config

from configs import base
from iusp_jax.data import datasets, teacher_outputs
from iusp_jax.experiment import grid, identity, results, run, table, teacher
from iusp_jax.models import trained
from iusp_jax.runtime import files


def flip(path, place=0.6):
  """Changes one bit of a file."""
  content = bytearray(path.read_bytes())
  content[int(place * len(content))] ^= 1
  path.write_bytes(content)


def cut(path, part=0.5):
  """Leaves the beginning of a file."""
  content = path.read_bytes()
  path.write_bytes(content[: int(part * len(content))])


def reshape(path):
  """As many numbers in another shape."""
  np.save(path, np.load(path).reshape(-1, 1))


def retype(path):
  np.save(path, np.load(path).astype('float64'))


def write(text):
  return lambda path: path.write_text(text)


def first_file(path):
  """The largest file of a folder: of arrays or records."""
  found = [file for file in path.rglob('*') if file.is_file()]
  return max(found, key=lambda file: file.stat().st_size)


# Stored outputs of a teacher.

OUTPUT_DAMAGE = {
  'flipped bit': ('.npy', flip),
  'flipped header': ('.npy', lambda path: flip(path, 0.0)),
  'cut': ('.npy', cut),
  'empty': ('.npy', write('')),
  'other shape': ('.npy', reshape),
  'other type': ('.npy', retype),
  'no metadata': ('.json', lambda path: path.unlink()),
  'cut metadata': ('.json', cut),
  'empty metadata': ('.json', write('')),
  'metadata of nothing': ('.json', write('[]')),
  'other format': ('.json', write('{"format": 0, "sha256": ""}')),
}


@pytest.fixture(scope='module')
def outputs(setup, tmp_path_factory):
  folder = teacher_outputs.Folder(
    tmp_path_factory.mktemp('outputs') / 'o',
    setup.teacher,
    setup.dataset.splits['test'],
  )
  found = folder.get_or_build(['logits', 'frame_gram'])
  return folder, {name: np.array(x) for name, x in found.items()}


@pytest.mark.parametrize('damage', OUTPUT_DAMAGE)
def test_damaged_outputs_of_a_teacher_are_named_and_made_anew(
  damage, outputs, capsys, monkeypatch
):
  """As by another process: this one has verified them already."""
  folder, whole = outputs
  suffix, change = OUTPUT_DAMAGE[damage]
  target = 'frame_gram'
  monkeypatch.setattr(teacher_outputs, '_verified', set())
  path = folder.file(target)
  change(path.with_suffix(suffix))
  found = folder.get_or_build(['logits', 'frame_gram'])
  lines = capsys.readouterr().out.splitlines()
  (line,) = [line for line in lines if 'made anew' in line]
  assert str(path) in line
  stored = [line for line in lines if 'stores' in line]
  assert len(stored) == 1
  assert f'stores {target} of' in stored[0]
  for name, values in whole.items():
    np.testing.assert_array_equal(found[name], values)
    assert found[name].dtype == values.dtype
  monkeypatch.setattr(teacher_outputs, '_verified', set())
  folder.get_or_build(['logits', 'frame_gram'])
  assert 'anew' not in capsys.readouterr().out


# A teacher of the cache.


def edit_metadata(path):
  found = files.read_json(path)
  found['training']['epochs'] += 1.0
  path.write_text(json.dumps(found))


TEACHER_DAMAGE = {
  'flipped bit in an array': lambda path: flip(first_file(path / 'best')),
  'no checkpoint': lambda path: shutil.rmtree(path / 'best'),
  'cut metadata': lambda path: cut(path.parent / 'model.json'),
  'no metadata': lambda path: (path.parent / 'model.json').unlink(),
  'metadata of nothing': lambda path: (path.parent / 'model.json').write_text(
    '[]'
  ),
  'changed metadata': lambda path: edit_metadata(path.parent / 'model.json'),
}


@pytest.fixture(scope='module')
def cached(tiny, setup, tmp_path_factory):
  """A config whose teacher is trained and in a cache, and its folder."""
  folder = tmp_path_factory.mktemp('cached')
  own = identity.plain(run_config(tiny, cache_dir=str(folder)))
  own['teacher'] = dict(own['student']) | {
    'checkpoint': '', 'store': 'auto', 'seed': 0, 'train_scenes': 0
  }  # fmt: skip
  found = teacher.get_or_train(own, setup.dataset)
  return own, found


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.slow
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('damage', TEACHER_DAMAGE)
def test_damaged_teacher_is_refused_and_trained_again_as_advised(
  damage, cached, setup
):
  config, whole = cached
  TEACHER_DAMAGE[damage](whole.workdir / 'checkpoints')
  with pytest.raises(ValueError, match=r'[Dd]elete') as error:
    teacher.get_or_train(config, setup.dataset)
  (folder, *_) = re.findall(r'[Dd]elete (\S+?),? ', str(error.value))
  assert folder == str(whole.workdir)
  shutil.rmtree(folder)
  again = teacher.get_or_train(config, setup.dataset)
  assert again.weights() == whole.weights()
  assert again.metadata == whole.metadata


# What a run or a table has left.


CUT_RECORDS = '', '{"status": "do'


@pytest.mark.slow
def test_cut_record_of_a_run_is_named_and_made_anew_as_advised(
  tiny, tiny_run, on_fakes, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run, workdir)
  path = workdir / 'results.json'
  whole = files.read_json(path)
  config = run_config(tiny, seed=100)
  for content in CUT_RECORDS:
    path.write_text(content)
    with pytest.raises(ValueError, match=r'delete it and run the') as error:
      run.run(config, workdir)
    assert str(path) in str(error.value)
  path.unlink()
  run.run(config, workdir)
  again = files.read_json(path)
  for name in ('student', 'curve', 'identity', 'status'):
    assert again[name] == whole[name]


@pytest.mark.slow
def test_files_without_part_in_the_result_end_no_run(
  tiny, tiny_run, on_fakes, tmp_path
):
  """A run that is complete, and one that goes on."""
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run, workdir)
  for name in ('environment.json', 'wall_seconds.json'):
    cut(workdir / name)
  run.run(run_config(tiny, seed=100), workdir)
  (workdir / 'results.json').unlink()
  run.run(run_config(tiny, seed=100), workdir)
  assert files.read_json(workdir / 'environment.json')['packages']
  assert len(files.read_json(workdir / 'wall_seconds.json')) == 1


def test_cut_metadata_of_a_model_names_the_run_to_delete(tiny_run, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run, workdir)
  cut(workdir / 'model.json')
  with pytest.raises(ValueError, match=f'delete {workdir} and run') as error:
    trained.load(workdir)
  assert str(workdir / 'model.json') in str(error.value)


@pytest.mark.slow
def test_cell_whose_record_is_cut_is_run_again(
  tiny, tiny_table, on_fakes, tmp_path, capsys
):
  workdir = tmp_path / 'table'
  shutil.copytree(tiny_table, workdir)
  config = one_cell_config(tiny)
  ((cell,),) = grid.groups(identity.plain(config))
  path = results.path_of(grid.folder(workdir, cell))
  whole = files.read_json(path)
  for content in CUT_RECORDS:
    path.write_text(content)
    assert not grid.done(workdir, cell)
    table.report([workdir], None)
    (row,) = files.read_json(workdir / 'cells.json')['cells']
    assert row['status'] == 'missing'
  table.run(config, workdir)
  assert f'{path}: expected JSON' in capsys.readouterr().out
  again = files.read_json(path)
  for name in ('student', 'curve', 'identity', 'status', 'resampled'):
    assert again[name] == whole[name]


# Prepared records.


@pytest.fixture
def scenes(tmp_path):
  config = identity.plain(base.get_config('smoke').dataset)
  for split in ('train', 'validate', 'test'):
    config['builder'][f'{split}_scenes'] = 2
  return config | {'data_dir': str(tmp_path / 'data')}


@pytest.mark.parametrize('change', [flip, cut, write('')])
def test_damaged_records_name_their_folder_and_are_made_anew_as_advised(
  change, scenes, tmp_path
):
  def read():
    dataset = datasets.load(scenes)
    clips = [
      datasets.read_clip(split, k)
      for split in dataset.splits.values()
      for k in range(len(split))
    ]
    return [clip['wave'] for clip in clips]

  whole = read()
  (path, *_) = (tmp_path / 'data').rglob('*-train.array_record*')
  change(path)
  with pytest.raises(ValueError, match=r'delete (\S+), and the same') as error:
    read()
  (folder,) = re.findall(r'delete (\S+), and', str(error.value))
  assert path.parent.samefile(folder)
  shutil.rmtree(folder)
  np.testing.assert_array_equal(read(), whole)
