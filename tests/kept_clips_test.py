"""Clips that travel with a checkpoint, and an export from a copy of it."""

import json
import shutil

import experiments
import fakes
import numpy as np
import pytest
from export_test import golden, names, written

import iusp_jax
from iusp_jax.data import datasets
from iusp_jax.deploy import add_onnx, examples, export, kept_clips, litert
from iusp_jax.experiment import run
from iusp_jax.scoring import metrics

INT8 = 'tagger_log_mel_int8.tflite'


@pytest.fixture
def copied(tiny_run, tmp_path):
  """A workdir without the data that it was trained on."""
  workdir = shutil.copytree(tiny_run, tmp_path / 'copied')
  config = json.loads((workdir / 'config.json').read_text())
  config['dataset']['data_dir'] = str(tmp_path / 'nowhere')
  (workdir / 'config.json').write_text(json.dumps(config))
  return workdir


@pytest.fixture
def without_litert(monkeypatch):
  monkeypatch.setattr(litert, 'why_missing', lambda: 'install it')
  monkeypatch.setattr(examples, '_NOISE', 6)


@pytest.mark.parametrize('level', datasets.LEVELS)
def test_clips_are_those_of_the_data_set(tmp_path, level):
  data = fakes.dataset(level)
  examples.keep(tmp_path, data, 12)
  found = kept_clips.load(tmp_path, data.fingerprint())
  assert found is not None
  assert found.tags == data.tags
  assert (found.name, found.sample_rate) == (data.name, data.sample_rate)
  sizes = {name: len(split) for name, split in found.splits.items()}
  assert sizes == {'train': 12, 'validate': 11, 'test': 12}
  for name, split in found.splits.items():
    for k in range(len(split)):
      own = datasets.read_clip(data.splits[name], k)
      for key, value in datasets.read_clip(split, k).items():
        np.testing.assert_array_equal(value, own[key])
    truth, own = datasets.truth(split), datasets.truth(data.splits[name])
    assert truth.keys() == own.keys()
    for key, values in truth.items():
      np.testing.assert_array_equal(values, own[key][: len(values)])


def test_no_more_clips_are_kept_than_are_looked_at(tmp_path, monkeypatch):
  monkeypatch.setattr(examples, 'RANGES', 3)
  monkeypatch.setattr(examples, 'TEST', 5)
  data = fakes.dataset('coarse')
  examples.keep(tmp_path, data, 12)
  found = kept_clips.load(tmp_path, data.fingerprint())
  assert found is not None
  assert [len(split) for split in found.splits.values()] == [3, 11, 5]


def test_none_are_kept_unless_asked_for(tmp_path, tiny_run):
  examples.keep(tmp_path, fakes.dataset('coarse'), 0)
  assert not list(tmp_path.iterdir())
  assert not (tiny_run / kept_clips.NAME).exists()


def test_without_clips_int8_is_refused_and_says_how(
  copied, tmp_path, without_litert, monkeypatch
):
  monkeypatch.setattr(litert, 'why_missing', lambda: '')
  for name in ('_litert_waveform', '_litert_log_mel', '_litert_step'):
    monkeypatch.setattr(export, name, lambda *_: None)
  export.run(str(copied), str(tmp_path / 'out'))
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'on 6 clips of noise and on the golden vectors' in card
  assert f'`{INT8}`: int8 needs clips that the model was trained on' in card
  assert '--config.keep_examples=300' in card
  assert f'{tmp_path}/nowhere' in card
  assert INT8 not in names(tmp_path / 'out')


def test_a_copy_is_compared_on_the_clips_that_it_has(
  copied, tmp_path, without_litert
):
  data = experiments.load_dataset('coarse')
  examples.keep(copied, data, 10)
  export.run(str(copied), str(tmp_path / 'out'))
  waves_NS = np.stack(
    [data.splits['test'].source[k]['audio'] for k in range(4)]
  )
  np.testing.assert_allclose(
    golden(tmp_path / 'out')['waveform'], waves_NS / 32768, atol=1e-7
  )
  card = ' '.join((tmp_path / 'out' / 'README.md').read_text().split())
  assert 'the first 10 clips of fake/0, test, which were kept with' in card
  assert 'with 10 of train and 10 of validate for int8' in card
  assert f'{tmp_path}/nowhere' in card
  # Scores of the loaded tagger itself, by the metric alone.
  loaded = iusp_jax.load(copied)
  truth_NC, scores = [], []
  for clip in data.splits['test'].source[:10]:
    truth_NC.append(clip['coarse'])
    scores.append(loaded(clip['audio'], 16_000).probabilities_C)
  wanted = metrics.score(np.stack(truth_NC), np.stack(scores))['micro_auprc']
  (record,) = (
    r for r in written(tmp_path / 'out') if r['file'] == 'weights.safetensors'
  )
  assert record['compared'] == 10
  np.testing.assert_allclose(record['micro_auprc'], wanted, atol=1e-6)
  again, _ = add_onnx.load(tmp_path / 'out')  # Finds them from the export.
  found = examples.find(again, export.functions.Functions.of(again))
  assert len(found.splits['validate'].mel_NTF) == 10


def test_clips_without_a_tag_choose_no_int8(copied, tmp_path, monkeypatch):
  monkeypatch.setattr(export, '_convert_log_mel', lambda given: b'')
  for name in ('_litert_waveform', '_litert_log_mel', '_litert_step'):
    monkeypatch.setattr(export, name, lambda *_: None)
  monkeypatch.setattr(litert, 'why_missing', lambda: '')
  data = fakes.dataset('coarse')
  for clip in data.splits['validate'].source:
    clip['coarse'][:] = 0
  examples.keep(copied, data, 10)
  export.run(str(copied), str(tmp_path / 'out'))
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'its 10 clips here have no tag' in card


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda content: content[: len(content) // 2], 'examples.npz cannot be'),
    (lambda content: b'', 'examples.npz cannot be read'),
    (None, 'of other data than the model was trained on'),
  ],
)
def test_clips_that_cannot_be_read_are_named(
  copied, tmp_path, without_litert, damage, message
):
  sizes = (24, 11, 13) if damage else (24, 11, 14)
  examples.keep(copied, fakes.dataset('coarse', sizes), 10)
  if damage:
    path = copied / kept_clips.NAME
    path.write_bytes(damage(path.read_bytes()))
  export.run(str(copied), str(tmp_path / 'out'))
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'on 6 clips of noise' in card
  assert message in card


@pytest.mark.slow
@pytest.mark.skipif(
  bool(litert.why_missing()), reason=litert.why_missing() or 'it is there'
)
def test_a_run_keeps_clips_and_its_copy_is_exported_as_int8(
  tiny, tiny_run, on_fakes, tmp_path
):
  """The same model as without the field; its copy has no data set."""
  fields = {'keep_examples': 12, 'dataset.data_dir': str(tmp_path / 'data')}
  config = experiments.run_config(tiny, seed=100, **fields)
  record = run.run(config, tmp_path / 'run')
  before = json.loads((tiny_run / 'results.json').read_text())
  assert record['fingerprint'] == before['fingerprint']
  assert record['student'] == before['student']
  copied = shutil.copytree(tmp_path / 'run', tmp_path / 'elsewhere' / 'copied')
  shutil.rmtree(tmp_path / 'run')
  export.run(str(copied), str(tmp_path / 'out'), max_int8_loss=1.0)
  (record,) = (r for r in written(tmp_path / 'out') if r['file'] == INT8)
  assert record['compared'] == 12
  assert 0 < record['micro_auprc'] <= 1
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert 'kept with the checkpoint' in card
