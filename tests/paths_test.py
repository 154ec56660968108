"""Paths that a user writes: `~`, other spellings, other places."""

import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from commands import ROOT
from experiments import run_config, save_teacher

from configs import base
from iusp_jax.data import datasets, preparation, sources
from iusp_jax.experiment import (
  feeds,
  fields,
  identity,
  onnx_teacher,
  run,
  teacher,
  tuning,
)
from iusp_jax.runtime import checkpoint
from iusp_jax.scoring import score_file


def of(config):
  """What the workdir of a run is compared by."""
  return run.run_identity(teacher.identified(identity.plain(config)))


def test_teacher_is_known_by_its_model_and_not_by_its_path(tiny, tmp_path):
  config = run_config(tiny)
  own = of(config)
  copy = shutil.copytree(tiny / 'teacher', tmp_path / 'copy')
  for path in (copy, f'{copy}/', f'{tmp_path}/x/../copy'):
    config.teacher.checkpoint = str(path)
    assert of(config) == own
  # The same recipe with other arrays, as of another machine.
  arrays, metadata = checkpoint.restore(copy / 'checkpoints/best/00000003')
  other = jax.tree.map(lambda x: np.asarray(x + 1.0, x.dtype), arrays)
  checkpoint.save(copy / 'checkpoints' / 'best', 3, other, metadata, 1)
  assert identity.differences(own, of(config))
  config.teacher.checkpoint = str(
    save_teacher(tmp_path / 'other', model={'architecture': 'cnn', 'width': 2})
  )
  assert identity.differences(own, of(config))
  config.teacher.checkpoint = str(tmp_path / 'nowhere')
  with pytest.raises(ValueError, match=r'config.teacher.checkpoint is .*nowh'):
    of(config)


@pytest.fixture
def home(monkeypatch, tmp_path):
  """The user's own folder."""
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.chdir('/')
  return tmp_path


def test_home_is_meant_by_a_tilde_in_every_field(
  home, tiny, monkeypatch, on_fakes
):
  monkeypatch.undo()  # The fakes; the folders are set again.
  monkeypatch.setenv('HOME', str(home))
  given = {}
  monkeypatch.setattr(datasets, 'load', given.update)
  settings = identity.plain(base.get_config('clips').dataset)
  settings |= {'data_dir': '~/data', 'manual_dir': '~/sounds'}
  preparation.load(settings)
  assert given['data_dir'] == f'{home}/data'
  assert given['manual_dir'] == f'{home}/sounds'
  config = identity.plain(run_config(tiny, cache_dir='~/cache'))
  place = teacher._cached(config, {'fingerprint': 'f'})
  assert place == home / 'cache' / 'teachers' / 'f'
  shutil.copytree(tiny / 'teacher', home / 'teacher')
  config['teacher']['checkpoint'] = '~/teacher'
  assert teacher.identified(config)['teacher']['checkpoint_model']
  config['teacher'] |= {'checkpoint': '', 'outputs': '~/outputs'}
  config['teacher']['tag_map'] = '~/map.json'
  with pytest.raises(ValueError, match=f'{home}/outputs is no folder'):
    teacher.contents(config)
  with pytest.raises(ValueError, match=f'{home}/map.json is not there'):
    teacher.tag_map(config)
  config['teacher'] |= {'outputs': '', 'pretrained': 'mn04_as'}
  config['teacher'] |= {'tag_map': '', 'weights': '~/weights.pt'}
  with pytest.raises(ValueError, match=f'{home}/weights.pt is no file'):
    teacher.identified(config)
  own = config['teacher'] | {'onnx': '~/t.onnx', 'onnx_json': '~/t.json'}
  with pytest.raises(ValueError, match=f'{home}/t.json'):
    onnx_teacher._metadata(own)
  with pytest.raises(FileNotFoundError, match=f'{home}/t.onnx'):
    onnx_teacher.content({'teacher': own})
  config['compare_with'] = '~/nothing'
  with pytest.raises(ValueError, match=f'{home}/nothing holds no trained'):
    run.named_runs(config, None)  # pyright: ignore
  tuning._merge('~/tuned.json', 'folder', {'ratios': {'kd': 2.0}})
  tuned = json.loads((home / 'tuned.json').read_text())
  assert tuned == {'folder': {'ratios': {'kd': 2.0}}}


def test_every_field_that_is_a_path_is_tried_above():
  tried = {'cache_dir', 'compare_with', 'dataset.data_dir'}
  tried |= {'dataset.manual_dir', 'teacher.checkpoint', 'teacher.outputs'}
  tried |= {'teacher.tag_map', 'teacher.weights', 'table.tuned_file'}
  tried |= {'teacher.onnx', 'teacher.onnx_json'}
  found = {
    name
    for name, range_of in fields.RANGES.items()
    if isinstance(range_of, fields.Text)
    and any(word in range_of.what for word in ('folder', 'workdir', 'file'))
  }
  assert found == tried


def test_home_is_meant_by_a_tilde_in_the_flags_of_scoring(home):
  with pytest.raises(FileNotFoundError, match=f'{home}/annotations.csv'):
    score_file.main_score('~/predictions.csv', '~/annotations.csv')


# Settings that fight.


def test_tags_that_are_rarer_than_a_batch_has_clips_are_named_once(
  setup, capsys
):
  own = feeds.Features(setup.dataset)
  counts = sources.features(setup.dataset.splits['train'], None)['tags'].sum(0)
  rare = [
    f'{tag!r} {int(n)}'
    for tag, n in zip(setup.dataset.tags, counts, strict=True)
    if 0 < n < 8
  ]
  tags_NC = sources.features(setup.dataset.splits['train'], None)['tags']
  for _ in range(2):
    own._log_rare_tags(tags_NC, 8)
  (line,) = capsys.readouterr().out.splitlines()
  assert rare
  assert f'fewer clips in train than a batch has, 8: {", ".join(rare)};' in line
  own._log_rare_tags(tags_NC, 1)
  assert not capsys.readouterr().out


# make.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('make') is None, reason='there is no make')
def test_environment_without_pip_is_completed_by_make(tmp_path):
  folder = tmp_path / 'my [tagger] runs'
  folder.mkdir()
  shutil.copy(ROOT / 'Makefile', folder)
  python = sys.executable
  words = [python, '-m', 'venv', '--without-pip', str(folder / '.venv')]
  subprocess.run(words, check=True)
  kept = folder / '.venv' / 'kept'
  kept.touch()
  pip = pathlib.Path('.venv', 'bin', 'pip')
  assert not (folder / pip).exists()
  base_python = str(pathlib.Path(python).resolve())
  subprocess.run(
    ['make', str(pip), f'PYTHON={base_python}'], cwd=folder, check=True
  )
  subprocess.run([pip, '--version'], cwd=folder, check=True)
  assert kept.exists()
