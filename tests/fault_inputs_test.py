"""Inputs that people reported trouble with, from ../shared/data/faults."""

import json
import runpy

import numpy as np
import pytest
from commands import command, execute, finish
from conftest import SHARED

from configs import base
from iusp_jax.data import datasets
from iusp_jax.experiment import identity
from tfds_dcase import notes
from tfds_dcase.urban_scenes import clips


@pytest.fixture(scope='session')
def inputs(make_once):
  """A folder a kind of fault, as make_inputs.py writes them."""
  program = SHARED / 'faults' / 'make_inputs.py'
  if not program.is_file():
    pytest.skip(f'the program that makes the inputs is not at {program}')
  main = runpy.run_path(str(program))['main']
  folder = make_once('fault_inputs', lambda folder: main(folder / 'in'))
  return folder / 'in'


@pytest.fixture
def prepare(inputs, tmp_path, monkeypatch):
  """Prepares one of them; gives the data set and what was logged."""
  lines = []
  for level in ('info', 'warning'):
    monkeypatch.setattr(
      notes.LOGGER, level, lambda text, *values: lines.append(text % values)
    )

  def load(name, argument='folder'):
    config = identity.plain(base.get_config(f'{argument},smoke').dataset)
    config |= {'manual_dir': str(inputs / name), 'data_dir': str(tmp_path)}
    return datasets.load(config), '\n'.join(lines)

  return load


def test_gsm_is_read_to_its_end_and_padded(prepare):
  dataset, _ = prepare('gsm')
  split = dataset.splits['train']
  clips_read = [datasets.read_clip(split, k) for k in range(len(split))]
  names = datasets.clip_ids(split, range(len(split)))
  (clip,) = [
    clip for clip, name in zip(clips_read, names, strict=True) if 'call' in name
  ]
  assert abs(int(clip['length']) - 32_000) <= 320  # A frame of the codec.
  assert not clip['wave'][clip['length'] :].any()
  # The tone of 500 Hz, not another recording's sound.
  spectrum = np.abs(np.fft.rfft(clip['wave'][:32_000].astype(float)))
  assert np.argmax(spectrum) / 2.0 == pytest.approx(500, abs=5)


@pytest.mark.parametrize(
  ('name', 'messages'),
  [
    ('cut_mp3', ['cut.mp3: truncated', 'ends after 2.9', 'gives 9.0']),
    ('scaled_floats', ['loud.wav: its samples reach 6', 'expected at most 1']),
    ('duplicates', ['street/0014.wav (test)', 'street/0000.wav (train)']),
  ],
)
def test_bad_recordings_are_refused(name, messages, prepare):
  with pytest.raises(ValueError, match='street/') as error:
    prepare(name)
  for message in messages:
    assert message in str(error.value)


def test_loudest_stretch_of_a_long_recording_is_taken(inputs):
  for tag, hertz in (('dog', 400), ('siren', 2000)):
    for path in sorted((inputs / 'long_clips' / tag).iterdir()):
      wave_S = clips.excerpt(path)
      spectrum = np.abs(np.fft.rfft(wave_S))
      found = np.argmax(spectrum) * 16_000 / len(wave_S)
      assert found == pytest.approx(hertz, abs=10)


def test_commas_within_a_tag_do_not_divide_it(prepare):
  dataset, text = prepare('commas')
  assert dataset.tags == ('Bark', 'Vehicle horn, car horn, honking')
  assert "'Bark' 5/2/2" in text


@pytest.mark.parametrize(
  ('name', 'tags', 'lacking'),
  [
    ('case', ('Dog', 'dog'), "no positives in train: 'dog'"),
    ('typo', ('dgo', 'dog'), "no positives in train: 'dgo'"),
  ],
)
def test_tags_that_may_be_one_are_named(name, tags, lacking, prepare):
  dataset, text = prepare(name)
  assert dataset.tags == tags
  assert 'nearly equal each other; are they one?' in text
  assert lacking in text
  assert "no positives in test: '" in text


@pytest.mark.slow
@pytest.mark.parametrize(
  ('name', 'argument'),
  [
    ('no_positive', 'folder'),
    ('dollars', 'folder'),
    ('long_clips', 'clips'),
    ('good', 'folder'),
  ],
)
def test_command_ends_well(name, argument, inputs, tmp_path):
  text = finish(
    command(
      tmp_path,
      f'--config.dataset.manual_dir={inputs / name}',
      f'--workdir={tmp_path}/run',
      config=f'configs/baseline.py:{argument},smoke',
    )
  )
  content = (tmp_path / 'run' / 'results.json').read_text()

  def refuse(constant):
    raise AssertionError(f'{constant} is not JSON')

  found = json.loads(content, parse_constant=refuse)
  test = found['student']['best']['test']['coarse']
  assert (test['micro_auprc'] is None) == (name == 'no_positive')
  assert ('nothing can be scored there' in text) == (name == 'no_positive')
  if name == 'dollars':
    table = (tmp_path / 'run' / 'tag_scores.txt').read_text()
    assert 'Ke$ha a_$' in table


@pytest.mark.slow
def test_data_that_moved_are_no_other_config(inputs, tmp_path):
  """Nor are they with a slash at the end, or relative; the data are read-only
  for another user below.
  """
  (tmp_path / 'a').symlink_to(inputs / 'good')
  (tmp_path / 'b').symlink_to(inputs / 'good')

  def run(place, data):
    return execute(
      [
        *command(
          tmp_path,
          f'--config.dataset.manual_dir={place}',
          f'--workdir={tmp_path}/run',
          config='configs/baseline.py:folder,smoke',
        ),
        f'--config.dataset.data_dir={data}',
      ]
    )

  done = run(tmp_path / 'a', tmp_path / 'data')
  assert done.returncode == 0, done.stderr
  (tmp_path / 'a').unlink()
  (tmp_path / 'data').rename(tmp_path / 'moved')
  done = run(f'{tmp_path}/b/', f'{tmp_path}/moved/')
  assert done.returncode == 0, done.stderr
  assert 'This run is complete' in done.stdout
  (tmp_path / 'run' / 'results.json').unlink()
  (tmp_path / 'run' / 'training').mkdir()
  done = run(f'{tmp_path}/b/', f'{tmp_path}/moved/')
  assert done.returncode == 0, done.stderr
  assert 'prepares it' not in done.stdout
