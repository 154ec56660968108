"""A teacher in an ONNX file: the tagger of teacher_scripts_test.py."""

import json
import sys

import fakes
import numpy as np
import pytest
from experiments import run_config
from teacher_scripts_test import (
  METADATA,
  NUM_FRAMES,
  NUM_TAGS,
  SIZE,
  expected_of,
  save_onnx,
)

from iusp_jax.data import datasets, foreign_outputs, onnx_file
from iusp_jax.experiment import check, identity, onnx_teacher, run, teacher

needs_onnx = pytest.mark.skipif(
  bool(onnx_file.why_missing()),
  reason=onnx_file.why_missing() or 'it is there',
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
  """tagger.onnx and tagger.json."""
  pytest.importorskip('onnx', reason='onnx is not installed')
  folder = tmp_path_factory.mktemp('onnx')
  save_onnx(folder / 'tagger.onnx')
  of = {**METADATA, 'tags': list(fakes.dataset('coarse').tags)}
  (folder / 'tagger.json').write_text(json.dumps(of))
  return folder


@pytest.fixture
def one_second(monkeypatch):
  """The fake data set's clips have a second, which no config says."""
  form = datasets.clip_format.ClipFormat(1.0)
  monkeypatch.setattr(datasets, 'format_of', lambda config: form)


def fields_of(place, **fields):
  own = {
    'checkpoint': '',
    'onnx': str(place / 'tagger.onnx'),
    'onnx_json': str(place / 'tagger.json'),
    'onnx_logits': 'scores',
    'onnx_frames': 'embeddings',
    **fields,
  }
  return {f'teacher.{name}': value for name, value in own.items()}


def config_of(place, cache, **fields):
  config = run_config(cache, **fields_of(place, **fields))
  return identity.plain(config)


@needs_onnx
def test_outputs_are_those_of_the_file_and_kept(
  place, tmp_path, monkeypatch, one_second
):
  data = fakes.dataset('coarse')
  config = teacher.identified(config_of(place, tmp_path))
  assert teacher.find(config, data) is None
  found = teacher.get_or_train(config, data)
  assert isinstance(found, foreign_outputs.Foreign)
  for split in data.splits.values():
    read = found.read(split.name, found.rows(split), ['logits', 'frames'])
    for k in range(len(split)):
      frames_TD, logits_C = expected_of(datasets.read_clip(split, k)['wave'])
      np.testing.assert_allclose(read['frames'][k], frames_TD, 1e-4, 1e-5)
      np.testing.assert_allclose(read['logits'][k], logits_C, 1e-4, 1e-5)

  def refuse(*_):
    raise AssertionError

  monkeypatch.setattr(onnx_teacher, '_compute', refuse)
  again = teacher.find(config, data)
  assert again is not None
  assert again.fingerprint == found.fingerprint
  other = fakes.dataset('coarse', seed=1)  # Other clips.
  with pytest.raises(AssertionError):
    teacher.get_or_train(config, other)


@needs_onnx
def test_what_was_cut_short_is_computed_again(
  place, tmp_path, monkeypatch, one_second
):
  data = fakes.dataset('coarse')
  config = teacher.identified(config_of(place, tmp_path))
  real, done = onnx_file.Tagger.__call__, []

  def stops(self, wave_BS):
    done.append(wave_BS)
    if len(done) == 3:
      raise KeyboardInterrupt
    return real(self, wave_BS)

  with monkeypatch.context() as patch:
    patch.setattr(onnx_file.Tagger, '__call__', stops)
    with pytest.raises(KeyboardInterrupt):
      teacher.get_or_train(config, data)
  assert teacher.find(config, data) is None
  found = teacher.get_or_train(config, data)
  assert isinstance(found, foreign_outputs.Foreign)
  assert found.contents.gives('frames', 'test')


@needs_onnx
@pytest.mark.slow
def test_run_is_that_with_the_outputs(
  place, tiny, on_fakes, one_second, tmp_path
):
  weights = {'objective.kd_weight': 1.0, 'objective.iusp_weight': 3.0}
  cache = {'cache_dir': str(tmp_path / 'cache')}
  config = run_config(tiny, seed=100, **fields_of(place), **weights, **cache)
  record = run.run(config, tmp_path / 'onnx')
  (folder,) = (tmp_path / 'cache/onnx').glob('*/outputs')
  named = {'teacher.checkpoint': '', 'teacher.outputs': str(folder)}
  config = run_config(tiny, seed=100, **named, **weights, **cache)
  own = run.run(config, tmp_path / 'outputs')
  assert record['student']['best'] == own['student']['best']
  assert record['teacher']['name'] == 'Tiny'


@needs_onnx
@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'onnx_logits': 'logits'}, "has no output 'logits' for logits: expected"),
    ({'onnx_wave': 'sound'}, "has the inputs 'wave': expected one"),
    ({'onnx_logits': '', 'onnx_frames': ''}, 'no output of .* is named'),
    ({'onnx_json': ''}, "onnx_json is '': expected a JSON file with the"),
    ({'onnx_rate': 8_000}, 'takes 16000 samples a clip: expected 8000'),
    ({'onnx': 'nowhere.onnx'}, 'nowhere.onnx is no file'),
    ({'checkpoint': 'x'}, 'checkpoint is .x. and config.teacher.onnx is'),
    ({'onnx_frames': ''}, "onnx_frames is '', of which frame_gram is made"),
  ],
)
def test_what_cannot_be_is_refused_before_any_work(
  place, tmp_path, one_second, fields, message
):
  with pytest.raises(ValueError, match=message):
    check.check(config_of(place, tmp_path, **fields))


@needs_onnx
def test_times_are_needed_with_frames(place, tmp_path, one_second):
  of = json.loads((place / 'tagger.json').read_text())
  del of['frame_hop_seconds']
  path = tmp_path / 'of.json'
  path.write_text(json.dumps(of))
  message = 'lacks frame_hop_seconds, and config.teacher.onnx_frames is set'
  with pytest.raises(ValueError, match=message):
    check.check(config_of(place, tmp_path, onnx_json=str(path)))


def test_fields_of_a_file_without_it_are_refused(tmp_path):
  config = run_config(tmp_path, **{'teacher.onnx_rate': 32_000})
  with pytest.raises(ValueError, match=r"and config.teacher.onnx is ''"):
    check.check(identity.plain(config))


def test_says_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'onnxruntime', None)
  path = tmp_path / 'tagger.onnx'
  path.write_bytes(b'')
  with pytest.raises(ValueError, match=r"pip install 'iusp-jax\[onnx\]'$"):
    onnx_file.Tagger(path, '', {'logits': 'y'})


@needs_onnx
def test_file_of_one_clip_at_a_time(place, tmp_path):
  onnx = pytest.importorskip('onnx', reason='onnx is not installed')

  model = onnx.load(place / 'tagger.onnx')
  for each in (*model.graph.input, *model.graph.output):
    each.type.tensor_type.shape.dim[0].dim_value = 4
  onnx.save(model, tmp_path / 'four.onnx')
  tagger = onnx_file.Tagger(
    tmp_path / 'four.onnx', 'wave', {'logits': 'scores'}
  )
  assert tagger.batch_size == 4
  wave_BS = np.random.default_rng(0).normal(size=(3, NUM_FRAMES * SIZE))
  found = tagger(wave_BS.astype(np.float32))['logits']
  assert found.shape == (3, NUM_TAGS)
  _, logits_C = expected_of(wave_BS[2] * 32_768)
  np.testing.assert_allclose(found[2], logits_C, 1e-4, 1e-4)
