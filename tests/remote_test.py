"""Addresses such as gs://bucket/run stay as they are.

No network: a folder stands in for the object store, below fsspec.
"""

import json
import pathlib

import fsspec
import numpy as np
import pytest
from etils.epath import backend
from experiments import run_config
from fakes import dataset
from fsspec.implementations import dirfs, local

from configs import baseline, iusp
from iusp_jax.data import sources
from iusp_jax.experiment import identity, results, run, setup, teacher
from iusp_jax.reporting import figures
from iusp_jax.runtime import checkpoint, files, metrics_log
from iusp_jax.scoring import predictions
from iusp_jax.training import finite, recipe
from tfds_dcase import sonyc_ust, urban_scenes

RUN = 'gs://bucket/some/run'


@pytest.fixture
def bucket(tmp_path, monkeypatch):
  """The folder that gs://bucket is."""

  class Store(dirfs.DirFileSystem):
    protocol = ('gcs', 'gs')
    cachable = False

    def __init__(self, **_):
      super().__init__(str(tmp_path), local.LocalFileSystem(auto_mkdir=True))

    @classmethod
    def _strip_protocol(cls, path):
      return str(path).removeprefix('gs://')

    def _join(self, path):
      if isinstance(path, str):
        path = self._strip_protocol(path)
      return super()._join(path)

  monkeypatch.setattr(fsspec, 'filesystem', lambda *_, **__: Store())
  backend.fsspec_backend._get_filesystem.cache_clear()
  (tmp_path / 'bucket').mkdir()
  monkeypatch.chdir(tmp_path)
  yield tmp_path / 'bucket'
  backend.fsspec_backend._get_filesystem.cache_clear()
  assert not (tmp_path / 'gs:').exists()  # What a mangled address makes.


def test_addresses_stay_and_local_paths_become_absolute(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert str(files.resolve(RUN)) == RUN
  assert str(files.resolve(RUN) / 'a' / 'b') == f'{RUN}/a/b'
  assert str(checkpoint._absolute(files.resolve(RUN) / 'a')) == f'{RUN}/a'
  assert files.resolve('runs/a') == tmp_path / 'runs' / 'a'
  assert files.resolve('~') == pathlib.Path.home()
  assert str(results.config_path(files.resolve(RUN))) == f'{RUN}/config.json'


def test_files_of_a_run_are_written_and_read(bucket):
  workdir = files.resolve(RUN)
  with files.lock(workdir, 'busy', wait=False):
    files.write_atomically(workdir / 'config.json', '{"a": 1}')
  assert json.loads((bucket / 'some/run/config.json').read_text()) == {'a': 1}
  assert (workdir / 'config.json').exists()
  predictions.write_predictions(
    workdir / 'p.csv', ['a.wav'], {'1_engine': np.array([0.5])}
  )
  assert (bucket / 'some/run/p.csv').read_text().startswith('audio_filename')
  with figures.figure(1.0, workdir / 'p.png'):
    pass
  assert (bucket / 'some/run/p.png').read_bytes()[:4] == b'\x89PNG'


def test_metrics_continue(bucket):
  workdir = files.resolve(RUN)
  metrics = metrics_log.MetricsWriter(workdir, [])
  metrics.write({'step': 1, 'train/loss': 1.0})
  metrics.write({'step': 2, 'validate/score': 0.5})
  rows = [{'step': 1, 'train/loss': 1.0}, {'step': 2, 'validate/score': 0.5}]
  assert metrics_log.read_metrics(workdir / 'metrics.jsonl') == rows
  metrics.close()
  metrics = metrics_log.MetricsWriter(workdir, rows[:1])
  metrics.write({'step': 2, 'train/loss': 3.0})
  metrics.close()
  rows[1] = {'step': 2, 'train/loss': 3.0}
  assert metrics_log.read_metrics(workdir / 'metrics.jsonl') == rows
  assert (bucket / 'some/run/metrics.jsonl').exists()


def test_checkpoints_are_listed(bucket):
  for step in (3, 12):
    (bucket / f'some/run/checkpoints/last/{step:08d}').mkdir(parents=True)
  folder = files.resolve(RUN) / 'checkpoints' / 'last'
  assert checkpoint.steps(folder) == [3, 12]
  checkpoint._delete(folder / '00000003')
  assert checkpoint.steps(folder) == [12]
  assert checkpoint.steps(folder.parent / 'best') == []


def test_checkpoint_that_is_put_aside_is_found(bucket):
  folder = files.resolve(RUN) / 'checkpoints' / 'last'
  (bucket / 'some/run/checkpoints/last/00000003').mkdir(parents=True)
  path = checkpoint.find(folder, 3)
  path.rename(checkpoint._aside(path))
  assert checkpoint.steps(folder) == [3]
  assert str(checkpoint.find(folder, 3)).endswith('/00000003.aside')


def test_batch_of_a_nan_is_kept(bucket):
  split = dataset('coarse').splits['train']
  order = sources.Order(len(split), 8, (0,))
  error = finite.NotFinite('NaN', 3, {'loss': float('nan')})
  path = files.resolve(RUN) / 'nan_batch.npz'
  finite.save_batch(path, error, split, order, number=2)
  kept = np.load(bucket / 'some/run/nan_batch.npz')
  assert kept['step'] == 3
  assert len(kept['clip_id']) == 8


def test_builders_get_the_address(bucket):
  builder = urban_scenes.make_builder(data_dir='gs://bucket/data')
  assert str(builder.data_dir).startswith('gs://bucket/data/urban_scenes/')
  where = sonyc_ust.availability.download_dir('gs://bucket/data', 'v1')
  assert str(where).startswith('gs://bucket/data/downloads/sonyc_ust/')


def test_caches_keep_the_address(bucket):
  config = iusp.get_config('smoke')
  config.cache_dir = 'gs://bucket/cache'
  student = recipe.Recipe.from_config(identity.plain(config.student))
  reason = setup.teacher_must_run(student, ['logits'], config.cache_dir, 10)
  assert 'gs://bucket/cache' in reason
  config.teacher.checkpoint = RUN
  with pytest.raises(ValueError, match='gs://bucket/some/run holds no trained'):
    teacher.get_or_train(identity.plain(config), None)  # pyright: ignore


@pytest.mark.slow
def test_run_with_a_remote_cache_stores_nothing_of_its_teacher(
  bucket, tiny, on_fakes, tmp_path
):
  """Outputs are mapped into memory, which an object store cannot give."""
  config = run_config(tiny, baseline, cache_dir='gs://bucket/cache')
  record = run.run(config, tmp_path / 'run')
  assert record['teacher']['best']
  assert record['frame_distance'] is None
  assert not (bucket / 'cache').exists()
