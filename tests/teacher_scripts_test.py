"""examples/teachers: other people's models over the clips of a data set."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from commands import ROOT

from configs import base
from iusp_jax.data import datasets, foreign_outputs
from iusp_jax.experiment import clips

FOLDER = ROOT / 'examples' / 'teachers'
NUM_FRAMES, SIZE, NUM_TAGS = 20, 800, 8
METADATA = {
  'name': 'Tiny',
  'source': 'a test',
  'licence': 'none',
  'frame_hop_seconds': 0.05,
  'frame_span_seconds': 0.05,
  'first_frame_seconds': 0.025,
}
WEIGHTS = np.random.default_rng(0).normal(size=(SIZE, 5)).astype(np.float32)
HEAD = np.random.default_rng(1).normal(size=(5, NUM_TAGS)).astype(np.float32)


@pytest.fixture
def written(on_fakes, tmp_path):
  """The clips of the fake data set, of a second each."""
  clips.write(base.get_config('smoke'), tmp_path / 'clips', False)
  tags = json.loads((tmp_path / 'clips' / 'clips.json').read_text())['tags']
  (tmp_path / 'of.json').write_text(json.dumps({**METADATA, 'tags': tags}))
  return tmp_path


def module_of(name, monkeypatch):
  monkeypatch.syspath_prepend(str(FOLDER))
  monkeypatch.delitem(sys.modules, 'clips', raising=False)
  spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  monkeypatch.delitem(sys.modules, 'clips', raising=False)
  return module


def expected_of(wave_S):
  frames_TD = (wave_S / 32_768).reshape(NUM_FRAMES, SIZE) @ WEIGHTS
  return frames_TD, frames_TD.mean(0) @ HEAD


def assert_written(folder):
  """All clips of all splits, each with its own outputs."""
  import fakes

  contents = foreign_outputs.inspect(folder / 'outputs')
  data = fakes.dataset('coarse')
  columns = foreign_outputs.columns(contents, data.tags, {})
  teacher = foreign_outputs.Foreign(contents, columns, 'x')
  for split in data.splits.values():
    rows_N = teacher.rows(split)
    found = teacher.read(split.name, rows_N, ['logits', 'frames'])
    for k in range(len(split)):
      wave_S = datasets.read_clip(split, k)['wave']
      frames_TD, logits_C = expected_of(wave_S)
      np.testing.assert_allclose(found['frames'][k], frames_TD, 1e-4, 1e-5)
      np.testing.assert_allclose(found['logits'][k], logits_C, 1e-4, 1e-5)


def test_outputs_of_a_function(written, monkeypatch):
  module = module_of('clips', monkeypatch)

  def outputs_of(wave_BS):
    found = [expected_of(wave_S * 32_768) for wave_S in wave_BS]
    frames, logits = zip(*found, strict=True)
    return {'frames': np.stack(frames), 'logits': np.stack(logits)}

  metadata = json.loads((written / 'of.json').read_text())
  module.write_outputs(
    written / 'clips', written / 'outputs', metadata, outputs_of, batch_size=7
  )
  assert_written(written)


def test_clips_are_resampled_for_the_tagger(written, monkeypatch):
  module, lengths = module_of('clips', monkeypatch), set()

  def outputs_of(wave_BS):
    lengths.add(wave_BS.shape[1])
    return {'logits': np.zeros((len(wave_BS), NUM_TAGS))}

  metadata = json.loads((written / 'of.json').read_text())
  module.write_outputs(
    written / 'clips', written / 'outputs', metadata, outputs_of, rate=32_000
  )
  assert lengths == {32_000}


def save_onnx(path):
  """Frames of 50 ms times a matrix; their mean times another."""
  onnx = pytest.importorskip('onnx', reason='onnx is not installed')
  helper, kind = onnx.helper, onnx.TensorProto.FLOAT
  shape = np.array([-1, NUM_FRAMES, SIZE])
  nodes = [
    helper.make_node('Reshape', ['wave', 'shape'], ['cut']),
    helper.make_node('MatMul', ['cut', 'weights'], ['embeddings']),
    helper.make_node('ReduceMean', ['embeddings', 'axis'], ['m'], keepdims=0),
    helper.make_node('MatMul', ['m', 'head'], ['scores']),
  ]
  constants = {
    'shape': shape, 'weights': WEIGHTS, 'axis': np.array([1]), 'head': HEAD,
  }  # fmt: skip
  info = helper.make_tensor_value_info
  graph = helper.make_graph(
    nodes,
    'tagger',
    [info('wave', kind, ['B', NUM_FRAMES * SIZE])],
    [
      info('embeddings', kind, ['B', NUM_FRAMES, 5]),
      info('scores', kind, ['B', NUM_TAGS]),
    ],
    [onnx.numpy_helper.from_array(x, name) for name, x in constants.items()],
  )
  opset = helper.make_opsetid('', 18)
  model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
  onnx.save(model, path)


def test_outputs_of_an_onnx_file(written):
  pytest.importorskip('onnxruntime', reason='onnxruntime is not installed')
  save_onnx(written / 'tagger.onnx')
  words = [
    *(sys.executable, FOLDER / 'onnx_file.py', written / 'tagger.onnx'),
    *(written / 'clips', written / 'outputs', f'--json={written}/of.json'),
    *('--wave=wave', '--logits=scores', '--frames=embeddings'),
  ]
  done = subprocess.run(words, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  assert 'train: 24 of 24 clips' in done.stdout
  assert_written(written)


def test_outputs_of_a_pytorch_module(written, monkeypatch):
  torch = pytest.importorskip('torch', reason='torch is not installed')

  class Tiny(torch.nn.Module):
    def forward(self, wave_BS):
      cut = wave_BS.reshape(-1, NUM_FRAMES, SIZE)
      frames = cut @ torch.from_numpy(WEIGHTS).to(wave_BS.device)
      head = torch.from_numpy(HEAD).to(wave_BS.device)
      return {'frames': frames, 'logits': frames.mean(1) @ head}

  module = module_of('pytorch_module', monkeypatch)
  metadata = json.loads((written / 'of.json').read_text())
  monkeypatch.setattr(module, 'load', lambda: (metadata, Tiny()))
  monkeypatch.setattr(module, 'RATE', 0)
  module.main(written / 'clips', written / 'outputs')
  assert_written(written)


def gram(frames_TD):
  frames_TD = np.asarray(frames_TD, np.float64)
  return frames_TD @ frames_TD.T


def test_several_folders_become_one(tmp_path, monkeypatch):
  """As an ensemble: means, and the sum of Gram matrices of norm 1."""
  join = module_of('join', monkeypatch)
  rng, tags = np.random.default_rng(0), ['a', 'b', 'c']
  ids = {'one': ['x', 'y', 'z'], 'two': ['z', 'w', 'x']}
  orders = {'one': [0, 1, 2], 'two': [2, 0, 1]}
  arrays = {}
  for name, size in (('one', 4), ('two', 6)):
    arrays[name] = {
      'logits': rng.normal(size=(3, 3)).astype(np.float32),
      'frames': rng.normal(size=(3, 5, size)).astype(np.float32),
      'frame_logits': rng.normal(size=(3, 5, 3)).astype(np.float32),
    }
    arrays[name]['frames'][0] *= name == 'one'  # Silence in the other.
    place = tmp_path / name / 'train'
    place.mkdir(parents=True)
    of = {**METADATA, 'format': 1, 'tags': [tags[k] for k in orders[name]]}
    (tmp_path / name / 'teacher.json').write_text(json.dumps(of))
    (place / 'clip_id.txt').write_text('\n'.join(ids[name]) + '\n')
    for key, values in arrays[name].items():
      np.save(place / f'{key}.npy', values)
  folders = [str(tmp_path / name) for name in ids]
  monkeypatch.setattr(
    sys, 'argv', ['join.py', *folders, f'--output={tmp_path}/both']
  )
  join.main()
  contents = foreign_outputs.inspect(tmp_path / 'both')
  assert contents.tags == ('a', 'b', 'c')
  assert contents.metadata['name'] == 'Tiny'
  found = contents.splits['train'].arrays
  assert (tmp_path / 'both/train/clip_id.txt').read_text() == 'x\nz\n'
  back = np.argsort(orders['two'])
  for row, (k, j) in enumerate(((0, 2), (2, 0))):  # Of x, of z.
    for name in ('logits', 'frame_logits'):
      one, two = arrays['one'][name][k], arrays['two'][name][j][..., back]
      np.testing.assert_allclose(found[name][row], (one + two) / 2, 1e-5)
    grams = [
      gram(arrays[name]['frames'][of]) for name, of in (('one', k), ('two', j))
    ]
    expected = sum(g / max(np.linalg.norm(g), 1e-12) for g in grams)
    np.testing.assert_allclose(gram(found['frames'][row]), expected, 1e-4, 1e-6)


@pytest.mark.parametrize(
  ('field', 'value', 'expected'),
  [
    ('tags', ['a', 'b', 'd'], 'differ in the tags c, d'),
    ('frame_hop_seconds', 0.06, 'expected frames at the same times'),
  ],
)
def test_folders_that_do_not_fit_are_refused(
  field, value, expected, tmp_path, monkeypatch
):
  join = module_of('join', monkeypatch)
  for name in ('one', 'two'):
    place = tmp_path / name / 'train'
    place.mkdir(parents=True)
    of = {**METADATA, 'format': 1, 'tags': ['a', 'b', 'c']}
    of |= {field: value} if name == 'two' else {}
    (tmp_path / name / 'teacher.json').write_text(json.dumps(of))
    (place / 'clip_id.txt').write_text('x\n')
    np.save(place / 'frames.npy', np.ones((1, 5, 2), np.float32))
  folders = [str(tmp_path / name) for name in ('one', 'two')]
  monkeypatch.setattr(
    sys, 'argv', ['join.py', *folders, f'--output={tmp_path}/both']
  )
  with pytest.raises(SystemExit, match=expected):
    join.main()
