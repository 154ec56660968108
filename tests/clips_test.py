"""The clips of a data set as WAV files."""

import csv
import importlib
import json
import sys

import fakes
import numpy as np
import pytest
import soundfile
from commands import ROOT, command, execute

from configs import base
from iusp_jax.data import datasets
from iusp_jax.experiment import clips, identity


def rows_of(folder):
  with (folder / 'clips.csv').open() as file:
    return list(csv.DictReader(file))


def test_files_are_what_a_student_is_trained_and_scored_on(on_fakes, tmp_path):
  clips.write(base.get_config('smoke'), tmp_path, False)
  data = fakes.dataset('coarse')
  rows = rows_of(tmp_path)
  assert len(rows) == 24 + 11 + 13
  metadata = json.loads((tmp_path / 'clips.json').read_text())
  assert metadata['tags'] == list(data.tags)
  assert metadata['sample_rate'] == 16_000
  for row in rows:
    split = data.splits[row['split']]
    k = datasets.clip_ids(split, range(len(split))).index(row['clip_id'])
    clip = datasets.read_clip(split, k)
    wave_S, rate = soundfile.read(tmp_path / row['path'], dtype='int16')
    assert rate == metadata['sample_rate']
    np.testing.assert_array_equal(wave_S, clip['wave'])
    assert int(row['num_samples']) == clip['length']
    found = [row[tag] for tag in data.tags]
    expected = [
      f'{tag:g}' if labelled else ''
      for tag, labelled in zip(clip['tags'], clip['mask'], strict=True)
    ]
    assert found == expected


def test_a_tag_that_nobody_looked_for_is_empty(on_fakes, tmp_path):
  config = base.get_config('smoke')
  config.dataset.level = 'both'
  clips.write(config, tmp_path, False)
  values = {v for row in rows_of(tmp_path) for k, v in row.items() if '-' in k}
  assert '' in values


def test_goes_on_where_it_was_stopped(on_fakes, tmp_path, monkeypatch):
  written = []
  original = clips._write_wave

  def stops(*args):
    if len(written) == 5:
      raise KeyboardInterrupt
    written.append(args[1])
    original(*args)

  with monkeypatch.context() as patch:
    patch.setattr(clips, '_write_wave', stops)
    with pytest.raises(KeyboardInterrupt):
      clips.write(base.get_config('smoke'), tmp_path, False)
  times = [path.stat().st_mtime_ns for path in written]
  assert not (tmp_path / 'clips.csv').exists()
  clips.write(base.get_config('smoke'), tmp_path, False)
  assert [path.stat().st_mtime_ns for path in written] == times
  assert not list(tmp_path.rglob('*.partial'))
  assert len(rows_of(tmp_path)) == 24 + 11 + 13


def test_folder_of_other_clips_is_refused(on_fakes, tmp_path):
  clips.write(base.get_config('smoke'), tmp_path, False)
  config = base.get_config('smoke')
  config.dataset.level = 'fine'
  with pytest.raises(ValueError, match=r'of other clips .*level: coarse there'):
    clips.write(config, tmp_path, False)


def test_names_of_files():
  long = 'x' * 300
  found = clips.file_names(['a', 'b.wav', 'c/d', 'E', 'e', long, 'é'])
  assert found == [
    *('a.wav', 'b.wav', 'c%2Fd.wav', 'clip-3.wav', 'clip-4.wav'),
    *('clip-5.wav', '%C3%A9.wav'),
  ]


def test_recordings_are_copied_as_they_are(tmp_path, monkeypatch):
  source = tmp_path / 'recordings'
  (source / 'a').mkdir(parents=True)
  names = {'a/x.wav': 'train', 'y.flac': 'validate', 'z.wav': 'test'}
  rng = np.random.default_rng(0)
  for name in names:
    soundfile.write(
      source / name, 0.1 * rng.standard_normal((24_000, 2)), 8_000
    )
  rows = [f'{name},{split},1,{k % 2}' for k, (name, split) in enumerate(
    names.items())]  # fmt: skip
  (source / 'labels.csv').write_text('\n'.join(['file,split,p,q', *rows]))
  config = base.get_config('folder,smoke')
  config.dataset.data_dir = str(tmp_path / 'data')
  config.dataset.manual_dir = str(source)
  config.dataset.builder.clip_seconds = 2.0
  clips.write(config, tmp_path / 'clips', False, original=True)
  rows = rows_of(tmp_path / 'clips')
  assert {row['clip_id']: row['split'] for row in rows} == names
  for row in rows:
    copied = (tmp_path / 'clips' / row['path']).read_bytes()
    assert copied == (source / row['clip_id']).read_bytes()
  of = json.loads((tmp_path / 'clips' / 'clips.json').read_text())
  assert of['clip_seconds'] == 2.0
  assert of['sample_rate'] is of['num_samples'] is None
  # A tagger of another rate gets the part that a clip has, mixed to mono.
  monkeypatch.syspath_prepend(str(ROOT / 'examples' / 'teachers'))
  monkeypatch.delitem(sys.modules, 'clips', raising=False)
  script = importlib.import_module('clips')
  seen = {}

  def outputs_of(wave_BS):
    seen[len(seen)] = wave_BS
    return {'logits': wave_BS[:, :2]}

  script.write_outputs(
    tmp_path / 'clips', tmp_path / 'out', {}, outputs_of, rate=16_000
  )
  assert [x.shape for x in seen.values()] == [(1, 32_000)] * 3
  wave_SH, _ = soundfile.read(source / 'a/x.wav')
  np.testing.assert_allclose(
    seen[0][0, 2_000:-2_000:2], wave_SH.mean(1)[1_000:15_000], atol=0.1
  )
  monkeypatch.delitem(sys.modules, 'clips', raising=False)
  with pytest.raises(SystemExit, match='give the rate'):
    script.write_outputs(tmp_path / 'clips', tmp_path / 'out', {}, outputs_of)


def test_only_recordings_are_copied(tmp_path):
  with pytest.raises(ValueError, match='--original with urban_scenes'):
    clips.write(base.get_config('smoke'), tmp_path, False, original=True)


@pytest.mark.slow
def test_the_scenes_of_a_teacher_begin_with_the_students(tmp_path):
  words = command(tmp_path, '--mode=write_clips')
  missing = execute(words)
  assert missing.returncode == 1
  assert '--output is missing' in missing.stderr
  scenes = '--config.teacher.train_scenes=60'
  for name, flags in {'own': [], 'all': ['--teacher_scenes']}.items():
    done = execute([*words, f'--output={tmp_path}/{name}', scenes, *flags])
    assert done.returncode == 0, done.stderr
  own, more = (
    [row for row in rows_of(tmp_path / name) if row['split'] == 'train']
    for name in ('own', 'all')
  )
  assert more[: len(own)] == own
  assert len(more) == 60
  first = own[0]['path']
  bytes_of = [(tmp_path / x / first).read_bytes() for x in ('own', 'all')]
  assert bytes_of[0] == bytes_of[1]
  config = identity.plain(base.get_config('smoke'))
  assert len(own) == config['dataset']['builder']['train_scenes']
