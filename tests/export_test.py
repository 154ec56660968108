"""An export holds what the model computes, or says why not."""

import ctypes
import errno
import importlib.util
import json
import shutil
import subprocess

import fakes
import jax
import jax.export
import numpy as np
import pytest
from deploy_fakes import TAGS, write_workdir

import iusp_jax
from iusp_jax.audio import frontend
from iusp_jax.deploy import (
  c_header,
  examples,
  export,
  functions,
  litert,
  safetensors,
)
from iusp_jax.models import tagger

HAS_LITERT = not litert.why_missing()
LITERT = {
  'tagger_waveform.tflite',
  'tagger_log_mel.tflite',
  'tagger_log_mel_int8.tflite',
  'stream_step.tflite',
}
HAS_FLATBUFFERS = importlib.util.find_spec('flatbuffers') is not None
ALWAYS = {
  'README.md',
  'artefacts.json',
  'config.json',
  'frontend.h',
  'frontend.npz',
  'golden.npz',
  'labels.txt',
  'weights.safetensors',
  *(['tagger.stablehlo'] if HAS_FLATBUFFERS else []),
}
needs_flatbuffers = pytest.mark.skipif(
  not HAS_FLATBUFFERS,
  reason='JAX exports with flatbuffers, of iusp-jax[export]',
)


def names(folder):
  return {path.name for path in folder.iterdir()}


def written(folder):
  return json.loads((folder / 'artefacts.json').read_text())['written']


@pytest.fixture(scope='module')
def few_clips():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examples, '_NOISE', 6)
    yield


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def exported(workdir, tmp_path_factory, few_clips):
  """An export where the data set is not there."""
  folder = tmp_path_factory.mktemp('export') / 'deep' / 'out'
  export.run(str(workdir), str(folder))
  return folder


def golden(folder):
  with np.load(folder / 'golden.npz') as arrays:
    return dict(arrays)


def test_what_is_written(exported):
  without_data = LITERT - {'tagger_log_mel_int8.tflite'}
  assert names(exported) == ALWAYS | (without_data if HAS_LITERT else set())
  assert names(exported.parent) == {'out'}  # Nothing unfinished is left.
  assert (exported / 'labels.txt').read_text().split() == list(TAGS)
  card = (exported / 'README.md').read_text()
  assert 'config.json, which names the data set' in card
  assert '`tagger_log_mel_int8.tflite`: ' in card
  assert 'Not calibrated' in card


def test_errors_are_in_the_card(exported):
  records = written(exported)
  card = (exported / 'README.md').read_text()
  for record in records:
    assert record['largest_error'] < 1e-5
    assert record['mean_error'] <= record['largest_error']
    assert (exported / record['file']).stat().st_size == record['bytes']
    assert f'`{record["file"]}`' in card
    assert f'{record["bytes"]:,}' in card
    assert f'{record["largest_error"]:.1e}' in card


def test_golden_vectors_are_the_models(exported, workdir):
  arrays = golden(exported)
  loaded = iusp_jax.load(workdir)
  for wave_S, mel_TF, own_C in zip(
    arrays['waveform'], arrays['log_mel'], arrays['probabilities'], strict=True
  ):
    found = loaded(wave_S, loaded.sample_rate)
    np.testing.assert_allclose(own_C, found.probabilities_C, atol=1e-6)
    cfg = loaded.trained.model.frontend
    np.testing.assert_allclose(
      mel_TF, frontend.log_mel(wave_S[None], cfg)[0], atol=1e-5
    )


def test_weights_make_the_model_again(exported):
  """From the folder alone."""
  of = json.loads((exported / 'config.json').read_text())
  content = (exported / 'weights.safetensors').read_bytes()
  variables = functions.unflatten(safetensors.from_bytes(content))
  model = tagger.build(of, len(of['tags']))
  arrays = golden(exported)
  output = tagger.apply(model, variables, arrays['log_mel'])
  np.testing.assert_allclose(
    jax.nn.sigmoid(output.logits_BC), arrays['probabilities'], atol=1e-6
  )


@needs_flatbuffers
@pytest.mark.parametrize('count', [1, 3])
def test_stablehlo_takes_any_number_of_clips(exported, count):
  content = (exported / 'tagger.stablehlo').read_bytes()
  found = jax.export.deserialize(bytearray(content))
  assert set(found.platforms) >= {'cpu', 'cuda', 'tpu'}
  arrays = golden(exported)
  np.testing.assert_allclose(
    found.call(arrays['waveform'][:count]),
    arrays['probabilities'][:count],
    atol=1e-5,
  )


@pytest.mark.skipif(not HAS_LITERT, reason=litert.why_missing() or 'there')
@pytest.mark.parametrize('name', ['waveform', 'log_mel'])
def test_litert_files_alone_give_the_golden_vectors(exported, name):
  from ai_edge_litert.interpreter import Interpreter  # pyright: ignore

  path = exported / f'tagger_{name}.tflite'
  run = Interpreter(str(path)).get_signature_runner()
  arrays = golden(exported)
  for array, own_C in zip(arrays[name], arrays['probabilities'], strict=True):
    found = run(**{name: array[None]})['probabilities'][0]
    np.testing.assert_allclose(found, own_C, atol=1e-5)


def test_without_litert_the_rest_is_written(
  workdir, tmp_path, monkeypatch, few_clips
):
  monkeypatch.setattr(litert, 'why_missing', lambda: 'install it')
  export.run(str(workdir), str(tmp_path / 'out'))
  assert names(tmp_path / 'out') == ALWAYS
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert '`tagger_waveform.tflite`: install it' in card


def test_without_flatbuffers_the_rest_is_written(
  workdir, tmp_path, monkeypatch, few_clips
):
  def missing(self):
    raise ImportError("Please install 'flatbuffers'")

  monkeypatch.setattr(jax.export.Exported, 'serialize', missing)
  monkeypatch.setattr(litert, 'why_missing', lambda: 'install it')
  export.run(str(workdir), str(tmp_path / 'out'))
  assert names(tmp_path / 'out') == ALWAYS - {'tagger.stablehlo'}
  card = (tmp_path / 'out' / 'README.md').read_text()
  assert "install 'flatbuffers'" in card


@needs_flatbuffers
def test_an_artefact_that_differs_is_not_written(
  workdir, tmp_path, monkeypatch, few_clips, capsys
):
  def wrong(self, wave_BS):
    return self.from_log_mel(self.log_mel(wave_BS)) + 2e-4

  monkeypatch.setattr(functions.Functions, 'from_wave', wrong)
  monkeypatch.setattr(litert, 'why_missing', lambda: 'install it')
  export.run(str(workdir), str(tmp_path / 'out'))
  assert 'tagger.stablehlo' not in names(tmp_path / 'out')
  assert 'weights.safetensors' in names(tmp_path / 'out')
  card = (tmp_path / 'out' / 'README.md').read_text()
  reason = 'a probability is off by 0.0002 on noise, expected at most 0.0001'
  assert f'`tagger.stablehlo`: {reason}' in card
  assert f'not written: tagger.stablehlo: {reason}' in capsys.readouterr().out


# With the data set -----------------------------------------------------------


@pytest.fixture(scope='module')
def with_data(tmp_path_factory):
  """A workdir, and examples of the data set that it was trained on."""
  fake = fakes.dataset('coarse', sizes=(24, 40, 40))
  workdir = write_workdir(tmp_path_factory.mktemp('data'), tags=fake.tags)
  loaded = iusp_jax.load(workdir)
  own = functions.Functions.of(loaded)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examples, '_dataset', lambda loaded: (fake, ''))
    found = examples.find(loaded, own)
  return workdir, found


def test_clips_of_the_data_set(with_data):
  _, found = with_data
  assert found.tested == 'test'
  sizes = {name: len(clips.mel_NTF) for name, clips in found.splits.items()}
  assert sizes == {'train': 24, 'validate': 40, 'test': 40}
  split = found.dataset.splits['test']
  np.testing.assert_array_equal(
    found.splits['test'].wave_NS[7], split.source[7]['audio']
  )
  assert len(found.splits['train'].wave_NS) == 0
  truth_NC = np.stack([clip['coarse'] for clip in split.source])
  assert found.score('test', truth_NC.astype(float))['micro_auprc'] == 1.0
  low, high = found.score('test', 0.9 * truth_NC[:20], 50)['interval']
  assert low <= high


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LITERT, reason=litert.why_missing() or 'there')
@pytest.mark.parametrize('losses', [(0.0,), (0.5, 0.0), (0.5, 0.5, 0.5)])
def test_int8_is_the_first_kind_that_loses_little(
  with_data, tmp_path, monkeypatch, losses
):
  """Scores are made up: their rule is what is tested."""
  workdir, found = with_data
  left = [0.9, *(0.9 - loss for loss in losses)]

  def score(self, split, scores_NC, bootstrap=0):
    if split == 'validate':
      return {'micro_auprc': left.pop(0), 'interval': None}
    return {'micro_auprc': 0.5, 'interval': [0.4, 0.6]}

  monkeypatch.setattr(examples.Examples, 'score', score)
  monkeypatch.setattr(examples, 'find', lambda *_: found)
  export.run(str(workdir), str(tmp_path / 'out'))
  card = (tmp_path / 'out' / 'README.md').read_text()
  is_written = 'tagger_log_mel_int8.tflite' in names(tmp_path / 'out')
  assert is_written == (min(losses) == 0.0)
  assert not left
  if not is_written:
    assert 'int8 weights lost 0.5000' in card
    assert '--max_int8_loss=0.01' in card
    return
  kind = list(litert.INT8)[len(losses) - 1]
  records = written(tmp_path / 'out')
  (record,) = (r for r in records if r['file'].endswith('int8.tflite'))
  assert record['note'].startswith(f'{kind}; loss on validate +0.0000')
  assert ('int8 lost 0.5000' in record['note']) == (len(losses) == 2)
  assert record['micro_auprc'] == 0.5
  assert '.500 [.400, .600]' in card


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LITERT, reason=litert.why_missing() or 'there')
def test_a_kind_of_int8_that_cannot_be_made_is_passed_over(
  with_data, tmp_path, monkeypatch
):
  workdir, found = with_data
  whole = litert.quantize

  def quantize(content, kind, samples):
    if kind == 'int8':
      raise ValueError('no scales')
    return whole(content, kind, samples)

  monkeypatch.setattr(litert, 'quantize', quantize)
  monkeypatch.setattr(examples, 'find', lambda *_: found)
  export.run(str(workdir), str(tmp_path / 'out'), max_int8_loss=1.0)
  records = written(tmp_path / 'out')
  (record,) = (r for r in records if r['file'].endswith('int8.tflite'))
  assert record['note'].startswith('int8 weights, int16 activations; loss on')
  assert 'int8 cannot be made (ValueError: no scales)' in record['note']


# Where it is written ---------------------------------------------------------


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'checkpoint': ''}, '--checkpoint is missing'),
    ({'output': ''}, '--output is missing'),
    ({'checkpoint': 'nowhere'}, 'holds no trained model'),
  ],
)
def test_flags_that_cannot_be_right(workdir, tmp_path, changes, message):
  good = {'checkpoint': str(workdir), 'output': str(tmp_path / 'out')}
  with pytest.raises(ValueError, match=message):
    export.run(**{**good, **changes})


def test_a_folder_with_other_files_is_kept(workdir, tmp_path):
  (tmp_path / 'mine.txt').write_text('mine')
  with pytest.raises(ValueError, match='holds other files'):
    export.run(str(workdir), str(tmp_path))
  (tmp_path / 'config.json').write_text('{}')
  with pytest.raises(ValueError, match='holds other files'):
    export.run(str(workdir), str(tmp_path))
  with pytest.raises(ValueError, match='is a file'):
    export.run(str(workdir), str(tmp_path / 'mine.txt'))
  assert names(tmp_path) == {'mine.txt', 'config.json'}


def test_a_full_disk_is_named_and_nothing_is_left(
  workdir, tmp_path, few_clips, monkeypatch
):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(np, 'savez_compressed', full)
  (tmp_path / 'in').mkdir()
  with pytest.raises(OSError, match='No space left') as error:
    export.run(str(workdir), str(tmp_path / 'in' / 'out'))
  assert str(tmp_path / 'in' / 'out') in str(error.value)
  assert names(tmp_path / 'in') == set()


def test_an_earlier_export_is_replaced(
  exported, workdir, tmp_path, few_clips, monkeypatch
):
  monkeypatch.setattr(litert, 'why_missing', lambda: 'install it')
  folder = tmp_path / 'out'
  shutil.copytree(exported, folder)
  (folder / 'old').write_text('')
  export.run(str(workdir), str(folder))
  assert names(folder) == ALWAYS


# The C header ----------------------------------------------------------------

PROGRAM = """
#include "frontend.h"
#include <string.h>
// A plain Fourier transform, in place of the platform's.
void log_mel(const float *wave, float *out) {
  for (int t = 0; t < IUSP_CLIP_FRAMES; ++t) {
    float magnitudes[IUSP_FFT_LENGTH / 2 + 1];
    for (int k = 0; k <= IUSP_FFT_LENGTH / 2; ++k) {
      double re = 0, im = 0;
      for (int s = 0; s < IUSP_WINDOW; ++s) {
        double angle = -2 * M_PI * k * s / IUSP_FFT_LENGTH;
        double x = wave[t * IUSP_HOP + s] * iusp_window[s];
        re += x * cos(angle);
        im += x * sin(angle);
      }
      magnitudes[k] = (float)sqrt(re * re + im * im);
    }
    iusp_log_mel(magnitudes, out + t * IUSP_MEL_BANDS);
  }
}
"""


@pytest.mark.parametrize(
  'fields',
  [
    {},
    {'num_mel_bands': 20, 'sample_rate': 8_000, 'max_hertz': 4_000.0,
     'min_hertz': 0.0, 'log_offset': 1.0, 'window_seconds': 0.032},
  ],
)  # fmt: skip
def test_a_c_program_computes_the_same_log_mel(tmp_path, fields):
  compiler = shutil.which('cc') or shutil.which('gcc')
  if compiler is None:
    pytest.skip('there is no C compiler')
  cfg = frontend.FrontendConfig(**fields)
  num_samples = cfg.sample_rate // 8
  frames = frontend.num_frames(num_samples, cfg)
  (tmp_path / 'frontend.h').write_text(c_header.header(cfg, frames))
  (tmp_path / 'program.c').write_text(PROGRAM)
  subprocess.run(
    [compiler, '-O1', '-Wall', '-Werror', '-shared', '-fPIC', 'program.c',
     '-o', 'program.so', '-lm'],
    cwd=tmp_path, check=True,
  )  # fmt: skip
  library = ctypes.CDLL(str(tmp_path / 'program.so'))
  rng = np.random.default_rng(0)
  wave_S = rng.uniform(-0.5, 0.5, num_samples).astype(np.float32)
  found_TF = np.zeros((frames, cfg.num_mel_bands), np.float32)
  pointer = ctypes.POINTER(ctypes.c_float)
  library.log_mel(
    wave_S.ctypes.data_as(pointer), found_TF.ctypes.data_as(pointer)
  )
  wanted_TF = frontend.log_mel(wave_S[None], cfg)[0]
  np.testing.assert_allclose(found_TF, wanted_TF, atol=1e-5)
