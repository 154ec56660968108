"""Tests of the builder of a user's labelled folder."""

import logging as py_logging
import sys

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from absl import logging

import tfds_dcase
from iusp_jax.data import datasets
from iusp_jax.runtime import logs
from tfds_dcase import folder, notes
from tfds_dcase.folder import labels


def tone(seconds, rate=16000, frequency=440.0):
  time_S = np.arange(int(seconds * rate)) / rate
  return 0.5 * np.sin(2 * np.pi * frequency * time_S)


ROWS = [
  ('a/one.wav', 'train', 1, 0),
  ('a/two.flac', 'train', 0, 1),
  ('three.wav', 'validate', 1, 1),
  ('four.wav', 'test', 0, 0),
]


def write_labels(path, text):
  (path / 'labels.csv').write_text(text, encoding='utf-8')


@pytest.fixture
def user_dir(tmp_path):
  """Four recordings: short, long, stereo at 44.1 kHz, of exactly 10 s."""
  path = tmp_path / 'user'
  (path / 'a').mkdir(parents=True)
  soundfile.write(path / 'a/one.wav', tone(2), 16000)
  soundfile.write(path / 'a/two.flac', tone(12), 16000)
  stereo = np.stack([tone(1, 44100)] * 2, 1)
  soundfile.write(path / 'three.wav', stereo, 44100)
  soundfile.write(path / 'four.wav', tone(10), 16000)
  rows = [f'{f},{s},{x},{y}' for f, s, x, y in ROWS]
  write_labels(path, '\n'.join(['file,split,dog,siren', *rows]) + '\n')
  return path


def build(tmp_path, user_dir, **settings):
  builder = folder.make_builder(tmp_path / 'data', user_dir, **settings)
  builder.download_and_prepare()
  source = builder.as_data_source()
  examples = {
    e['clip_id'].decode(): e for s in source.values() for e in list(s)
  }
  return builder, source, examples


def test_builds_what_the_labels_say(tmp_path, user_dir):
  builder, source, examples = build(tmp_path, user_dir)
  assert {k: len(v) for k, v in source.items()} == {
    'train': 2,
    'validate': 1,
    'test': 1,
  }
  assert builder.info.metadata['coarse'] == ['dog', 'siren']
  lengths = {k: e['num_samples'] for k, e in examples.items()}
  assert lengths == {
    'a/one.wav': 32000,
    'a/two.flac': 160000,
    'three.wav': 16000,
    'four.wav': 160000,
  }
  for file, _, dog, siren in ROWS:
    example = examples[file]
    assert example['coarse'].tolist() == [dog, siren]
    assert example['audio'].shape == (160000,)
    assert example['audio'].dtype == np.int16
    assert not example['audio'][example['num_samples'] :].any()
  expected_S = np.rint(tone(2) * 32767)
  found_S = examples['a/one.wav']['audio'][:32000]
  np.testing.assert_allclose(found_S, expected_S, atol=1.1)
  assert 'tensorflow' not in sys.modules


def test_tfds_finds_it_by_name(tmp_path, user_dir):
  assert tfds_dcase.folder is folder
  builder = tfds.builder('folder', data_dir=tmp_path / 'd', manual_dir=user_dir)
  builder.download_and_prepare(file_format='array_record')
  name = f'folder/{builder.builder_config.name}'
  again = tfds.builder(name, data_dir=tmp_path / 'd')
  assert len(again.as_data_source()['train']) == 2


def told(caplog):
  """The lines of our own builders."""
  return [r.getMessage() for r in caplog.records if r.name == 'tfds_dcase']


def test_what_was_cut_is_said_and_kept(tmp_path, user_dir, caplog):
  builder, _, _ = build(tmp_path, user_dir)
  line = 'train: 1 of 2 recordings cut to 10 s: a/two.flac'
  assert line in told(caplog)
  assert 'a/two.flac' in (builder.data_path / notes.FILE_NAME).read_text()
  caplog.clear()
  config = {
    'name': 'folder',
    'level': 'coarse',
    'aggregation': 'any',
    'data_dir': str(tmp_path / 'data'),
    'manual_dir': str(user_dir),
    'builder': {},
  }
  datasets.load(config)  # Who opens it later is told where that is.
  (line,) = told(caplog)
  assert str(builder.data_path / notes.FILE_NAME) in line


def test_notes_are_lines_of_the_log(capsys):
  logger = notes.LOGGER
  before = logger.handlers, logger.propagate, logger.level
  try:
    logs.relay('tfds_dcase')
    logger.warning('%d recordings', 3)
  finally:
    logger.handlers, logger.propagate = before[:2]
    logger.setLevel(before[2])
  assert capsys.readouterr().out == '3 recordings\n'


def test_errors_of_a_muted_package_are_left_out():
  handler = logging.get_absl_handler()
  before = list(handler.filters)
  logs.mute('orbax')
  added = handler.filters[len(before) :]
  for one in added:
    handler.removeFilter(one)

  def passes(path):
    record = py_logging.LogRecord('absl', 40, path, 1, 'no room', (), None)
    return all(bool(one(record)) for one in added)

  assert not passes('/lib/site-packages/orbax/checkpoint/future.py')
  assert passes('/somewhere/iusp_jax/checkpoint.py')


@pytest.mark.parametrize('joined', ['dog;siren', 'dog|siren', '"dog, siren"'])
def test_one_column_of_tags(tmp_path, joined):
  write_labels(
    tmp_path,
    f'file,split,tags\na.wav,train,{joined}\nb.wav,validate,dog\nc.wav,test,\n',
  )
  read = labels.read(tmp_path)
  assert read.tags == ('dog', 'siren')
  assert read.tags_NC.tolist() == [[1, 1], [1, 0], [0, 0]]
  assert read.files == ('a.wav', 'b.wav', 'c.wav')


def test_spreadsheet_dialects(tmp_path):
  text = '\ufefffile;split;dog;cat\r\nx\\a.wav;Train;1;0.0\r\n'
  text += 'b.wav;validate;0;1.0\r\n;;;\r\nc.wav;test;0;1\r\n'
  (tmp_path / 'labels.csv').write_bytes(text.encode())
  read = labels.read(tmp_path)
  assert read.files == ('x/a.wav', 'b.wav', 'c.wav')
  assert read.splits == ('train', 'validate', 'test')
  assert read.tags_NC.tolist() == [[1, 0], [0, 1], [0, 1]]


GOOD = 'a.wav,train,1\nb.wav,validate,0\nc.wav,test,1\n'


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('', "no column 'file'"),
    ('file,split,dog\n', 'no rows'),
    ('name,split,dog\n' + GOOD, "no column 'file'"),
    ('files,split,dog\n' + GOOD, "found 'files': rename"),
    ('file,subset,dog\n' + GOOD, "no column 'split'"),
    ('file,split\na.wav,train\n', 'no tag column'),
    ('file,split,dog,dog\n', 'name of their own'),
    ('file,split,tags,dog\n', "'tags' and others"),
    ('file,split,dog\n' + GOOD + 'd.wav,val,1\n', "line 5: split='val'"),
    ('file,split,dog\n' + GOOD + 'd.wav,train,2\n', "line 5: dog='2'; must"),
    ('file,split,dog\n' + GOOD + 'd.wav,train,\n', "line 5: dog=''; must"),
    ('file,split,dog\n' + GOOD + 'd.wav,train\n', 'line 5: 2 cells'),
    ('file,split,dog\n' + GOOD + 'a.wav,test,1\n', 'lines 2 and 5'),
    ('file,split,dog\n' + GOOD + '../d.wav,test,1\n', 'below the folder'),
    ('file,split,dog\na.wav,train,1\nb.wav,test,1\n', 'no rows for validate'),
    ('file,split,tags\na.wav,train,\nb.wav,validate,\nc.wav,test,\n', 'no tag'),
  ],
)
def test_faulty_labels_are_refused(tmp_path, text, message):
  write_labels(tmp_path, text)
  with pytest.raises(ValueError, match=message) as caught:
    labels.read(tmp_path)
  assert 'labels.csv' in str(caught.value)


def test_missing_labels_show_an_example(tmp_path):
  with pytest.raises(ValueError, match='file,split,dog,siren'):
    folder.make_builder(tmp_path / 'data', tmp_path)


def test_the_examples_in_the_message_are_legal(tmp_path):
  one, other = labels.EXAMPLE.split('or, with one column')
  write_labels(tmp_path, one)
  expected = labels.read(tmp_path)
  write_labels(tmp_path, other.split('\n', 1)[1])
  found = labels.read(tmp_path)
  assert found.tags == expected.tags
  np.testing.assert_array_equal(found.tags_NC, expected.tags_NC)


def test_unmatched_rows_and_files_are_in_one_message(tmp_path, user_dir):
  (user_dir / 'three.wav').rename(user_dir / 'THREE.WAV')
  soundfile.write(user_dir / 'extra.wav', tone(1), 16000)
  with pytest.raises(ValueError, match='1 rows') as caught:
    folder.make_builder(tmp_path / 'data', user_dir)
  message = str(caught.value)
  assert 'three.wav (did you mean THREE.WAV?)' in message
  assert 'extra.wav' in message


@pytest.mark.parametrize('unlabelled', [0, 1, 30])
@pytest.mark.parametrize('missing', [0, 1, 30])
def test_all_that_does_not_match_is_listed(
  tmp_path, user_dir, caplog, missing, unlabelled
):
  absent = [f'absent{k}.wav' for k in range(missing)]
  extra = [f'extra{k}.wav' for k in range(unlabelled)]
  with (user_dir / 'labels.csv').open('a') as file:
    file.writelines(f'{name},train,0,1\n' for name in absent)
  for name in extra:
    (user_dir / name).write_bytes(b'')
  said = []
  if missing:
    with pytest.raises(ValueError, match='without their file') as error:
      folder.make_builder(tmp_path / 'data', user_dir)
    said.append(str(error.value))
  folder.make_builder(tmp_path / 'data', user_dir, on_bad_recording='skip')
  said.append('\n'.join(told(caplog)))
  path = tmp_path / 'data' / 'unmatched-user.txt'
  for text in said:
    if max(missing, unlabelled) > 10:
      assert str(path) in text
      text = path.read_text()
    assert all(name in text for name in absent + extra)
  assert len(told(caplog)) == bool(missing) + bool(unlabelled)


def test_a_replaced_recording_of_equal_size_is_noticed(tmp_path, user_dir):
  before = folder.make_builder(tmp_path, user_dir).data_path
  path = user_dir / 'four.wav'
  size = path.stat().st_size
  for seconds in (5.0, 1.0):  # Within the first and the last 64 kB.
    wave = tone(10)
    wave[int(seconds * 1000)] = 0.9
    soundfile.write(path, wave if seconds > 1 else wave[::-1], 16000)
    assert path.stat().st_size == size
    after = folder.make_builder(tmp_path, user_dir).data_path
    assert after != before
    before = after


def test_missing_rows_can_be_skipped(tmp_path, user_dir):
  (user_dir / 'a/one.wav').unlink()
  _, source, _ = build(tmp_path, user_dir, on_bad_recording='skip')
  assert len(source['train']) == 1
  (user_dir / 'a/two.flac').unlink()
  with pytest.raises(ValueError, match='train'):
    build(tmp_path, user_dir, on_bad_recording='skip')


def test_bad_recordings_stop_or_are_skipped(tmp_path, user_dir):
  soundfile.write(user_dir / 'a/one.wav', np.zeros(16000), 16000)
  with pytest.raises(ValueError, match=r'one\.wav.*silent'):
    build(tmp_path, user_dir)
  _, source, _ = build(tmp_path, user_dir, on_bad_recording='skip')
  assert len(source['train']) == 1
  (user_dir / 'four.wav').write_bytes(b'no sound')
  with pytest.raises(ValueError, match='test: no usable recording'):
    build(tmp_path, user_dir, on_bad_recording='skip')


def test_settings_are_checked(tmp_path, user_dir):
  with pytest.raises(ValueError, match='did you mean on_bad_recording'):
    folder.make_builder(tmp_path, user_dir, on_bad_recordings='skip')
  with pytest.raises(ValueError, match="'stop', 'skip'"):
    folder.make_builder(tmp_path, user_dir, on_bad_recording='ask')
  with pytest.raises(ValueError, match='no such folder'):
    folder.make_builder(tmp_path, tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='manual_dir is not set'):
    tfds.builder('folder', data_dir=tmp_path)


def test_other_content_other_place(tmp_path, user_dir):
  def place():
    return folder.make_builder(tmp_path, user_dir).data_path

  first = place()
  assert place() == first
  text = (user_dir / 'labels.csv').read_text()
  write_labels(user_dir, text.replace('one.wav,train,1', 'one.wav,train,0'))
  second = place()
  soundfile.write(user_dir / 'four.wav', tone(9), 16000)
  third = place()
  assert len({first, second, third}) == 3
