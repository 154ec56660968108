"""A LiteRT file says what it takes and gives, as MediaPipe reads it."""

import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from deploy_fakes import TAGS, write_workdir
from export_test import golden

from iusp_jax.deploy import examples, export, litert, litert_metadata

pytestmark = pytest.mark.skipif(
  bool(litert.why_missing()), reason=litert.why_missing() or 'there'
)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
  workdir = write_workdir(tmp_path_factory.mktemp('run'), 'cnn')
  folder = tmp_path_factory.mktemp('export') / 'out'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examples, '_NOISE', 6)
    export.run(str(workdir), str(folder))
  return folder


def test_labels_follow_the_model(exported):
  with zipfile.ZipFile(exported / 'tagger_waveform.tflite') as archive:
    assert archive.read('labels.txt').decode().split() == list(TAGS)


def test_the_same_model_is_the_same_file():
  content = litert.convert(lambda x: {'y': 2 * x}, {'x': np.zeros(3, 'f4')})
  once, again = (
    litert_metadata.add(content, ('a', 'b'), 8_000, 3) for _ in range(2)
  )
  assert once == again
  assert b'M001' in once
  assert b'3 samples (0.000375 s) at 8000 Hz' in once
  run = litert.Interpreter(once)
  np.testing.assert_array_equal(run(x=np.ones(3, 'f4'))['y'], 2)
  assert zipfile.ZipFile(io.BytesIO(once)).read('labels.txt') == b'a\nb\n'


MEDIAPIPE = """
import json, sys
import numpy as np
from mediapipe.tasks.python import audio
from mediapipe.tasks.python.components import containers

folder, rate = sys.argv[1], int(sys.argv[2])
path = folder + '/tagger_waveform.tflite'
found = []
with audio.AudioClassifier.create_from_model_path(path) as classifier:
  for wave in np.load(folder + '/golden.npz')['waveform']:
    data = containers.AudioData.create_from_array(wave, rate)
    (result,) = classifier.classify(data)
    (scores,) = result.classifications
    found.append({c.category_name: c.score for c in scores.categories})
print(json.dumps(found))
"""


@pytest.mark.slow
def test_mediapipe_gives_the_same_names_and_scores(exported, tmp_path):
  """In an environment of its own; this one's packages stay as they are."""
  python = tmp_path / 'env' / 'bin' / 'python'
  subprocess.run([sys.executable, '-m', 'venv', tmp_path / 'env'], check=True)
  made = subprocess.run(
    [python, '-m', 'pip', 'install', '-q', 'mediapipe'],
    capture_output=True,
    text=True,
    check=False,
  )
  if made.returncode:
    pytest.skip(f'pip cannot install mediapipe: {made.stderr.strip()[-200:]}')
  done = subprocess.run(
    [python, '-c', MEDIAPIPE, str(exported), '16000'],
    capture_output=True,
    text=True,
    check=False,
  )
  if 'cannot open shared object file' in done.stderr:
    pytest.skip(f'mediapipe lacks a library: {done.stderr.strip()[-200:]}')
  assert done.returncode == 0, done.stderr
  print(done.stdout)
  found = json.loads(done.stdout)
  wanted_NC = golden(exported)['probabilities']
  assert len(found) == len(wanted_NC)
  for own, wanted_C in zip(found, wanted_NC, strict=True):
    assert sorted(own) == sorted(TAGS)
    scores_C = [own[name] for name in TAGS]
    np.testing.assert_allclose(scores_C, wanted_C, atol=1e-5)
