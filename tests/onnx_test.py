"""ONNX files are added to an export, or the reason is reported."""

import json
import pathlib
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from deploy_fakes import sound, write_workdir
from export_test import golden, names, written

from iusp_jax.audio import frontend
from iusp_jax.deploy import (
  add_onnx,
  examples,
  export,
  functions,
  litert,
  onnx_commands,
  onnx_files,
)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  workdir = write_workdir(tmp_path_factory.mktemp('run'), 'cnn')
  folder = tmp_path_factory.mktemp('export') / 'my export'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examples, '_NOISE', 6)
    patch.setattr(litert, 'why_missing', lambda: 'install it')
    export.run(str(workdir), str(folder))
  return folder


@pytest.fixture
def folder(exported, tmp_path, monkeypatch):
  """A copy, and files that are functions of JAX: nothing is converted."""
  monkeypatch.setattr(examples, '_NOISE', 6)
  kept = {}

  def convert(function, name, shape):
    kept[name.encode()] = function
    assert shape[0] == 'batch'
    return name.encode()

  monkeypatch.setattr(onnx_files, 'convert', convert)
  monkeypatch.setattr(
    onnx_files,
    'Session',
    lambda content: lambda inputs: np.asarray(kept[content](inputs)),
  )
  return shutil.copytree(exported, tmp_path / 'out')


def test_export_says_how_onnx_is_added(exported, capsys):
  refused = json.loads((exported / 'artefacts.json').read_text())
  files = {record['file'] for record in refused['not_written']}
  assert files >= set(onnx_files.FILES)
  assert (
    'python -m iusp_jax.deploy.add_onnx' in (exported / 'README.md').read_text()
  )


@pytest.mark.slow
def test_floats_are_added_from_the_folder_alone(folder):
  before = names(folder)
  add_onnx.run(str(folder))
  waveform, log_mel, int8 = onnx_files.FILES
  assert names(folder) == before | {waveform, log_mel}
  card = (folder / 'README.md').read_text()
  assert f'| `{waveform}` |' in card
  assert f'`{int8}`: int8 needs clips that' in card
  assert '`tagger_waveform.tflite`: install it' in card  # Still.
  (record,) = (r for r in written(folder) if r['file'] == waveform)
  assert record['compared'] == 6
  assert 0 <= record['largest_error'] < 1e-5
  add_onnx.run(str(folder))  # Once more: nothing twice.
  files = [record['file'] for record in written(folder)]
  assert len(files) == len(set(files))


def test_a_file_that_is_wrong_is_not_added(folder, monkeypatch, capsys):
  right = onnx_files.Session

  def session(content):
    run = right(content)
    return lambda inputs: run(inputs) + 2e-4

  monkeypatch.setattr(onnx_files, 'Session', session)
  add_onnx.run(str(folder))
  assert not names(folder) & set(onnx_files.FILES)
  reason = 'a probability of golden.npz is off by 0.0002'
  assert reason in (folder / 'README.md').read_text()
  assert reason in capsys.readouterr().out


def test_one_that_is_wrong_on_other_clips_is_not_added(folder, monkeypatch):
  """Golden vectors are few: the clips are looked at, too."""
  seen = golden(folder)['waveform']
  right = onnx_files.Session

  def session(content):
    run = right(content)

    def wrong(inputs):
      is_golden = any(np.array_equal(inputs[0], wave_S) for wave_S in seen)
      return run(inputs) + (0 if is_golden else 2e-4)

    return wrong

  monkeypatch.setattr(onnx_files, 'Session', session)
  add_onnx.run(str(folder))
  assert onnx_files.FILES[0] not in names(folder)
  assert 'off by 0.0002 on noise' in (folder / 'README.md').read_text()


def test_a_converter_that_fails_is_named(folder, monkeypatch):
  def fail(*_):
    raise ModuleNotFoundError("No module named 'jax2onnx'")

  monkeypatch.setattr(onnx_files, 'convert', fail)
  add_onnx.run(str(folder))
  assert "No module named 'jax2onnx'" in (folder / 'README.md').read_text()


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('config.json', None, 'is no export'),
    ('config.json', '{}', 'another version or damaged'),
    ('weights.safetensors', 'x', 'export the model again'),
  ],
)
def test_damaged_exports_are_refused(folder, name, content, message):
  (folder / name).unlink()
  if content is not None:
    (folder / name).write_text(content)
  with pytest.raises(ValueError, match=message):
    add_onnx.run(str(folder))


def test_one_that_is_wrong_for_many_clips_is_not_added(folder, monkeypatch):
  right = onnx_files.Session

  def session(content):
    run = right(content)
    return lambda inputs: run(inputs) + (2e-4 if len(inputs) > 1 else 0)

  monkeypatch.setattr(onnx_files, 'Session', session)
  add_onnx.run(str(folder))
  assert onnx_files.FILES[0] not in names(folder)
  reason = 'a probability of golden.npz is off by 0.0002'
  assert reason in (folder / 'README.md').read_text()


@pytest.mark.parametrize('size', [1, 2, 8, 256, 512, 2048])
def test_magnitudes_are_those_of_the_fourier_transform(size):
  frames_TS = np.random.default_rng(size).normal(size=(5, size))
  found = onnx_files.magnitudes(frames_TS.astype(np.float32))
  wanted = np.abs(np.fft.rfft(frames_TS))
  np.testing.assert_allclose(found, wanted, atol=3e-6 * np.sqrt(size))


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'hop_seconds': 0.05, 'window_seconds': 0.01},
    {'hop_seconds': 0.007, 'sample_rate': 22_050},
  ],
)
def test_waves_are_framed_as_in_training(fields):
  cfg = frontend.FrontendConfig(num_mel_bands=12, **fields)
  wave_BS = np.stack([sound(1.0, seed=k)[:15_999] for k in range(3)])
  model = types.SimpleNamespace(frontend=cfg)
  own = types.SimpleNamespace(
    model=model, num_samples=15_999, from_log_mel=lambda mel_BTF: mel_BTF
  )
  np.testing.assert_allclose(
    onnx_files.from_wave(own)(wave_BS),
    frontend.log_mel(wave_BS, cfg),
    atol=1e-4,
  )


def test_probabilities_without_complex_numbers(exported):
  loaded, _ = add_onnx.load(exported)
  own = functions.Functions.of(loaded)
  wave_BS = sound()[None]
  np.testing.assert_allclose(
    onnx_files.from_wave(own)(wave_BS), own.from_wave(wave_BS), atol=1e-6
  )


def test_commands_make_an_environment_on_top_of_this_one():
  venv, pth, install, add = map(
    shlex.split, onnx_commands.commands("/a b/it's")
  )
  assert venv == [sys.executable, '-m', 'venv', '.venv-onnx']
  assert str(ROOT) in pth
  assert np.__file__.rpartition('/numpy/')[0] in pth
  assert pth[-1].startswith('.venv-onnx/lib/python3')
  assert 'jax2onnx==0.17.1' in install
  assert add[-2:] == ['iusp_jax.deploy.add_onnx', "/a b/it's"]


@pytest.mark.slow
def test_the_commands_add_files_that_onnxruntime_alone_runs(exported, tmp_path):
  """jax2onnx for a model whose pooling has padding; then the example."""
  commands = '\n'.join(onnx_commands.commands(exported))
  done = subprocess.run(
    ['sh', '-ex'],
    input=commands,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  if 'No matching distribution' in done.stderr:
    pytest.skip('pip cannot download jax2onnx')
  assert done.returncode == 0, done.stderr
  waveform, log_mel, _ = onnx_files.FILES
  assert names(exported) >= {waveform, log_mel}
  for record in written(exported):
    assert record['largest_error'] < 1e-5
  assert record['compared'] == 128
  arrays = golden(exported)
  for name, kind in ((waveform, 'waveform'), (log_mel, 'log_mel')):
    session = onnx_files.Session((exported / name).read_bytes())
    for count in (1, 7):  # One file takes any number of clips.
      some = [k % len(arrays[kind]) for k in range(count)]
      np.testing.assert_allclose(
        session(arrays[kind][some]), arrays['probabilities'][some], atol=1e-5
      )
  wave_S = golden(exported)['waveform'][0]
  soundfile.write(tmp_path / 'a.wav', wave_S, 16_000, 'FLOAT')
  python = tmp_path / onnx_commands.ENVIRONMENT / 'bin' / 'python'
  example = pathlib.Path(ROOT, 'examples', 'tag_onnx.py')
  tagged = subprocess.run(
    [python, example, exported, tmp_path / 'a.wav'],
    capture_output=True,
    text=True,
    check=True,
  )
  of = json.loads((exported / 'config.json').read_text())
  own_C = golden(exported)['probabilities'][0]
  for name, probability in zip(of['tags'], own_C, strict=True):
    if probability >= 0.5005:
      assert f'{name} {probability:.3f}' in tagged.stdout
    elif probability < 0.4995:
      assert name not in tagged.stdout
