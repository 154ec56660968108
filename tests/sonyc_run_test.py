"""From recordings and annotations.csv to a scored student, at true size."""

import csv
import json

import numpy as np
import pytest
from commands import command, finish
from sonyc_ust_world import wav

from iusp_jax.scoring import metrics
from tfds_dcase import annotations, taxonomy

HEADER = wav(rate=16_000)[:44]
TONES = 250.0 * 1.5 ** np.arange(8)  # Hz, one a coarse class.


def sounding(coarse_C, index) -> bytes:
  """A 10-s recording in which every coarse class of the clip is a tone."""
  seconds = np.arange(160_000) / 16_000
  wave = np.random.default_rng(index).normal(0, 300, 160_000)
  for tone in TONES[np.asarray(coarse_C) > 0]:
    wave += 2500 * np.sin(2 * np.pi * tone * seconds)
  return HEADER + np.clip(wave, -32768, 32767).astype('<i2').tobytes()


@pytest.mark.slow
def test_whole_path_on_the_real_annotations(tmp_path, sonyc_dir):
  manual = tmp_path / 'manual'
  (manual / 'audio').mkdir(parents=True)
  source = sonyc_dir / 'annotations.csv'
  (manual / 'annotations.csv').write_bytes(source.read_bytes())
  read = annotations.read(source)
  for split in ('train', 'validate'):
    clips = annotations.clips(read, split)
    for index, name in enumerate(clips.audio_filename):
      path = manual / 'audio' / str(name)
      path.write_bytes(sounding(clips.coarse[index], index))
  flags = [
    f'--workdir={tmp_path}/run',
    f'--config.dataset.manual_dir={manual}',
    '--config.dataset.level=both',
    '--config.student.training.epochs=0.5',
    '--config.student.training.eval_every_epochs=0.5',
    '--config.teacher.training.epochs=0.5',
    '--config.teacher.training.eval_every_epochs=0.5',
  ]
  config = 'configs/iusp.py:sonyc_ust,smoke'
  finish(command(tmp_path, *flags, config=config))
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['dataset']['sizes'] == {'train': 2351, 'validate': 443}
  scores = results['student']['best']['validate']
  assert 0 < scores['fine']['micro_auprc'] <= 1
  truth = annotations.clips(read, 'validate').coarse
  chance = metrics.score(truth, np.full(truth.shape, 0.5))['micro_auprc']
  assert scores['coarse']['micro_auprc'] > 2 * chance
  path = tmp_path / 'run' / 'predictions_validate.csv'
  with path.open() as file:
    columns = set(next(csv.reader(file)))
  assert set(taxonomy.COARSE) | set(taxonomy.FINE) <= columns
  finish(
    [
      *command(tmp_path)[:2],
      '--mode=score',
      f'--predictions={path}',
      f'--annotations={source}',
      f'--output={tmp_path}/score.json',
    ]
  )
  official = json.loads((tmp_path / 'score.json').read_text())
  np.testing.assert_allclose(
    official['coarse_micro_auprc'], scores['coarse']['micro_auprc'], atol=1e-3
  )
