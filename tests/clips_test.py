"""The clips of a data set as WAV files."""

import csv
import json

import fakes
import numpy as np
import pytest
import soundfile
from commands import command, execute

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

  def stops(path, wave_S, sample_rate):
    if len(written) == 5:
      raise KeyboardInterrupt
    written.append(path)
    original(path, wave_S, sample_rate)

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
