"""Tests of the builder of a user's labelled folder."""

import logging as py_logging
import shlex
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from absl import logging
from conftest import ROOT
from sonyc_ust_world import python

import tfds_dcase
from iusp_jax.data import datasets
from iusp_jax.runtime import logs
from tfds_dcase import folder, notes, urban_scenes
from tfds_dcase.folder import __main__ as folder_main
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
  soundfile.write(path / 'four.wav', tone(10, frequency=330), 16000)
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


def test_builds_what_the_labels_hold(tmp_path, user_dir):
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


def logged(caplog):
  """The lines of our own builders, those on positives left out."""
  lines = [r.getMessage() for r in caplog.records if r.name == 'tfds_dcase']
  return [line for line in lines if 'positives' not in line]


def test_what_was_cut_is_logged_and_kept(tmp_path, user_dir, caplog):
  builder, _, _ = build(tmp_path, user_dir)
  line = 'train: 1 of 2 recordings cut to 10 s: a/two.flac'
  assert line in logged(caplog)
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
  datasets.load(config)  # Later uses log where that is.
  (line,) = logged(caplog)
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


@pytest.mark.parametrize(
  'joined',
  [
    'dog;siren',
    'dog|siren',
    ' siren ; dog;',
    """"['dog', 'siren']\"""",
    """"('dog', 'siren')\"""",
    """"{'siren', 'dog'}\"""",
    """"[""dog"", ""siren""]\"""",
    """['dog' 'siren']""",
    """"['dog'\n 'siren']\"""",
    """"['dog', nan, 'siren']\"""",
  ],
)
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
    ('file,split,dog\n' + GOOD + 'd.wav,train,nan\n', "dog='nan'.*fill it in"),
    ('file,split,tag\na.wav,train,dog\n', "call this column 'tags'"),
    (',file,split,dog\n0,a.wav,train,1\n', 'index=False'),
    ('Unnamed: 0,file,split,dog\n0,a.wav,train,1\n', 'index=False'),
    ('file,split,e\u0301,\u00e9\n', 'name of their own'),
    (
      'file,split,tags\n' + GOOD + 'd.wav,train,[dog]\n',
      'line 5.*quoted names',
    ),
    ("file,split,tags\na,train,['a' ... 'z']\n", 'line 2.*quoted names'),
    ('file,split,dog\n' + GOOD + 'd.wav,nan,1\n', "split='nan'"),
    ('file,split,dog\na,train,0\nb,validate,1\nc,test,1\n', 'nothing to learn'),
    ('file,split,dog\na,train,1\nb,validate,0\nc,test,1\n', 'cannot be chosen'),
    ('file,split,dog\na,train,"1\n' + GOOD, r'line 2.*to line 5.*not closed'),
    ('file,split,dog\na,train,"' + '1' * 140_000, 'line 2.*not be closed'),
    ('file,split,dog\n' + GOOD[:-2] + '"1\n', 'line 4.*not closed'),
    (
      'file,split,tags\na,train,"dog, cat"\nb,train,dog\nc,test,cat\n',
      "line 2: 'dog, cat' is one tag.*Join tags with ;",
    ),
    (
      'file,split,tags\na,train,"a, b"\nb,train,"b, c"\nc,test,"c, a"\n',
      "'a, b' is one tag",
    ),
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
  texts = []
  if missing:
    with pytest.raises(ValueError, match='without their file') as error:
      folder.make_builder(tmp_path / 'data', user_dir)
    texts.append(str(error.value))
  folder.make_builder(tmp_path / 'data', user_dir, on_bad_recording='skip')
  texts.append('\n'.join(logged(caplog)))
  path = tmp_path / 'data' / 'unmatched-user.txt'
  for text in texts:
    if max(missing, unlabelled) > 10:
      assert str(path) in text
      text = path.read_text()
    assert all(name in text for name in absent + extra)
  assert len(logged(caplog)) == bool(missing) + bool(unlabelled)


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


HORN = 'Vehicle horn, car horn, honking'


def test_a_comma_is_part_of_a_name(tmp_path):
  rows = f'a,train,"Bark;{HORN}"\nb,validate,"{HORN}"\nc,test,Bark\n'
  write_labels(tmp_path, 'file,split,tags\n' + rows)
  assert labels.read(tmp_path).tags == ('Bark', HORN)
  for separator in ';\t':
    header = separator.join(['file', 'split', f'"{HORN}"', '"a, b, c, d"'])
    rows = 'a,train,1,0\nb,validate,True,False\nc,test,0.0,1.0\n'
    write_labels(tmp_path, header + '\n' + rows.replace(',', separator))
    read = labels.read(tmp_path)
    assert read.tags == (HORN, 'a, b, c, d')
    assert read.tags_NC.tolist() == [[1, 0], [1, 0], [0, 1]]


def test_names_in_parentheses_and_other_line_ends(tmp_path):
  rows = 'a,train,(dog);rain (heavy)\rb,validate,(dog)\rc,test,\u2028x\r'
  write_labels(tmp_path, 'file,split,tags\r' + rows)
  assert labels.read(tmp_path).tags == ('(dog)', 'rain (heavy)', 'x')


@pytest.mark.parametrize('cell', ['nan', 'NaN', 'None', '<NA>', '[]', 'set()'])
def test_no_tag_as_pandas_writes_it(tmp_path, cell):
  rows = f"a,train,dog\nb,validate,['dog']\nc,test,{cell}\nd,test,{cell}\n"
  write_labels(tmp_path, 'file,split,tags\n' + rows)
  read = labels.read(tmp_path)
  assert read.tags == ('dog',)
  assert read.tags_NC.tolist() == [[1], [1], [0], [0]]
  expected = f'2 cells of tags are {cell!r}' if cell[0] not in '[s' else ''
  assert expected in ' '.join(read.notes)
  assert bool(read.notes) == bool(expected)


def test_positives_by_split_are_one_line(tmp_path, user_dir, caplog):
  caplog.set_level('INFO', logger='tfds_dcase')
  folder.make_builder(tmp_path / 'data', user_dir)
  (line,) = [
    r.getMessage() for r in caplog.records if 'positives in t' in r.getMessage()
  ]
  assert line == (
    f"{user_dir}: 4 recordings, positives in train/validate/test: 'dog' 1/1/0, "
    "'siren' 1/1/0"
  )
  assert 'no positives of any tag in test' in caplog.text


@pytest.mark.parametrize(
  ('one', 'other', 'near'),
  [
    ('Dog', 'dog', True),
    ('car_horn', 'Car horn', True),
    ('dog', 'dgo', True),
    ('dog', 'fog', False),
    ('sirens', 'siren', True),
    ('class 1', 'class 2', False),
    ('rain', 'wind', False),
  ],
)
def test_tags_that_may_be_one_are_named(tmp_path, one, other, near):
  rows = f'a,train,{one};{other}\nb,validate,{one};{other}\n'
  test = f'c,test,{one}\n' if 'dgo' in other else f'c,test,{one};{other}\n'
  write_labels(tmp_path, 'file,split,tags\n' + rows + test)
  _, warnings = labels.report(labels.read(tmp_path))
  found = [text for text in warnings if 'nearly equal' in text]
  assert len(found) == near
  for text in found:
    assert repr(one) in text
    assert repr(other) in text
    assert '1/1/' in text


def test_tags_without_positives_in_a_split_are_named(tmp_path):
  write_labels(
    tmp_path,
    'file,split,dog,cat,cow\na,train,1,0,1\nb,validate,1,1,0\nc,test,0,1,1\n',
  )
  line, warnings = labels.report(labels.read(tmp_path))
  assert line.endswith("'dog' 1/1/0, 'cat' 0/1/1, 'cow' 1/0/1")
  assert warnings == [
    "no positives in train: 'cat'; they cannot be learnt",
    "no positives in validate: 'cow'; the best checkpoint is chosen without "
    'them',
    "no positives in test: 'dog'; they cannot be scored",
  ]


@pytest.mark.parametrize('form', ['copy', 'other format'])
def test_a_recording_in_two_splits_is_refused(tmp_path, user_dir, caplog, form):
  if form == 'copy':
    data = (user_dir / 'a/one.wav').read_bytes()
    (user_dir / 'three.wav').write_bytes(data)
    words = ('three.wav (validate)', 'a/one.wav (train)')
  else:
    wave, rate = soundfile.read(user_dir / 'a/one.wav', dtype='int16')
    soundfile.write(user_dir / 'x.flac', wave, rate)
    text = (user_dir / 'labels.csv').read_text()
    write_labels(user_dir, text.replace('three.wav', 'x.flac'))
    words = ('x.flac (validate)', 'a/one.wav (train)')
  with pytest.raises(ValueError, match='same') as error:
    build(tmp_path, user_dir)
  assert all(each in str(error.value) for each in words)
  assert "on_bad_recording='skip'" in str(error.value)
  with pytest.raises(ValueError, match='validate'):  # its only recording
    build(tmp_path, user_dir, on_bad_recording='skip')
  soundfile.write(user_dir / 'more.wav', tone(3, frequency=200), 16000)
  with (user_dir / 'labels.csv').open('a') as file:
    file.write('more.wav,validate,1,0\n')
  caplog.clear()
  _, source, _ = build(tmp_path, user_dir, on_bad_recording='skip')
  assert len(source['train']) + len(source['validate']) == 3
  assert words[0] in caplog.text


def test_a_recording_twice_in_a_split_with_other_tags_is_named(
  tmp_path, user_dir, caplog
):
  (user_dir / 'a/two.flac').write_bytes((user_dir / 'a/one.wav').read_bytes())
  folder.make_builder(tmp_path / 'data', user_dir)
  assert (
    'a/two.flac (train) is the same recording as a/one.wav, with other tags'
    in caplog.text
  )


@pytest.mark.parametrize(
  ('row', 'file', 'hint'),
  [
    ('x', 'x.wav', 'did you mean x.wav?'),
    ('x.wav', 'x.flac', 'did you mean x.flac?'),
    ('sub/x.wav', 'x.wav', 'did you mean x.wav?'),
    ('X.wav', 'sub/x.WAV', 'did you mean sub/x.WAV?'),
    ('x.wav', ' x.wav', "did you mean ' x.wav', with other white space"),
    ('x.wav', 'x.wav ', "did you mean 'x.wav ', with other white space"),
    ('x.wav', 'x .wav', "did you mean 'x .wav', with other white space"),
    ('e\u0301.wav', '\u00e9.wav', 'in another Unicode form'),
    ('\u00fc/a.wav', 'u\u0308/a.wav', 'in another Unicode form'),
    ('y.wav', 'x.wav', ''),
  ],
)
def test_the_file_that_was_meant_is_named(tmp_path, user_dir, row, file, hint):
  (user_dir / file).parent.mkdir(exist_ok=True)
  (user_dir / 'three.wav').rename(user_dir / file)
  text = (user_dir / 'labels.csv').read_text()
  write_labels(user_dir, text.replace('three.wav', row))
  with pytest.raises(ValueError, match='1 rows of') as error:
    folder.make_builder(tmp_path / 'data', user_dir)
  line = str(error.value).splitlines()[0]
  assert hint in line
  assert ('did you mean' in line) == bool(hint)


def write_public(root, name):
  """A few recordings of a public data set, laid out as distributed."""
  rng = np.random.default_rng(0)
  if name == 'ESC-50':
    table, header = 'meta/esc50.csv', 'filename,fold,target,category,esc10'
    rows = [(f'{f}-{f}-A-{t}.wav', f, t) for f in range(1, 6) for t in (0, 10)]
    lines = [f'{n},{f},{t},{["dog", "rain"][t > 0]},True' for n, f, t in rows]
    files = [f'audio/{n}' for n, _, _ in rows]
  else:
    table = 'metadata/UrbanSound8K.csv'
    header = 'slice_file_name,fsID,start,end,salience,fold,classID,class'
    names = [f'{f}{k}-3-0-0.wav' for f in range(1, 11) for k in (0, 1)]
    lines = [
      f'{n},{k},0,4,1,{1 + k // 2},3,{["dog_bark", "siren"][k % 2]}'
      for k, n in enumerate(names)
    ]
    files = [f'audio/fold{1 + k // 2}/{n}' for k, n in enumerate(names)]
  (root / table).parent.mkdir(parents=True)
  (root / table).write_text('\n'.join([header, *lines]) + '\n')
  for file in files:
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(root / file, 0.1 * rng.standard_normal(8000), 16000)


@pytest.mark.parametrize('below', ['', 'audio', '..'])
@pytest.mark.parametrize('name', ['ESC-50', 'UrbanSound8K'])
def test_public_data_sets_are_recognised(tmp_path, name, below):
  root = tmp_path / 'sets' / f'my {name}'
  write_public(root, name)
  for make in (
    lambda: folder.make_builder(tmp_path / 'data', root / below),
    lambda: urban_scenes.make_builder(tmp_path, 'clips', root / below),
  ):
    with pytest.raises(ValueError, match='as distributed') as error:
      make()
    text = str(error.value)
    assert name in text
    commands = [line for line in text.splitlines() if line.startswith('  ')]
    write, run = map(shlex.split, commands)
    assert write == ['python', '-m', 'tfds_dcase.folder', str(root)]
    assert run[-1] == f'--config.dataset.manual_dir={root}'


@pytest.mark.parametrize('name', ['ESC-50', 'UrbanSound8K'])
def test_the_labels_of_public_data_sets_are_written(tmp_path, name):
  root = tmp_path / name
  write_public(root, name)
  done = subprocess.run(
    [sys.executable, '-m', 'tfds_dcase.folder', str(root)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert f'--config.dataset.manual_dir={root}' in done.stdout
  assert not done.stderr
  _, source, examples = build(tmp_path, root)
  count = {k: len(v) for k, v in source.items()}
  if name == 'ESC-50':
    assert count == {'train': 6, 'validate': 2, 'test': 2}
    assert examples['audio/4-4-A-0.wav']['coarse'].tolist() == [1, 0]
  else:
    assert count == {'train': 16, 'validate': 2, 'test': 2}
    assert examples['audio/fold10/101-3-0-0.wav']['coarse'].tolist() == [0, 1]
  with pytest.raises(SystemExit, match='there already'):
    folder_main.main([str(root)])
  with pytest.raises(ValueError, match='as distributed') as error:
    urban_scenes.make_builder(tmp_path, 'clips', root)
  assert 'python -m' not in str(error.value)  # its labels are there


def test_no_public_data_set(tmp_path):
  with pytest.raises(SystemExit, match=r'ESC-50 .meta/esc50\.csv'):
    folder_main.main([str(tmp_path)])
  with pytest.raises(SystemExit, match='python -m tfds_dcase'):
    folder_main.main([])
  (tmp_path / 'meta').mkdir()
  (tmp_path / 'meta/esc50.csv').write_text('filename,fold\na.wav,1\n')
  with pytest.raises(SystemExit, match="no column 'category'"):
    folder_main.main([str(tmp_path)])


_FULL = """
  import resource, sys
  from tfds_dcase import folder
  data_dir, manual_dir, limit = sys.argv[1:]
  resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
  folder.make_builder(data_dir, manual_dir).download_and_prepare()
"""


@pytest.mark.slow
def test_a_full_disk_is_named_with_what_was_written(tmp_path, user_dir):
  done = python(_FULL, tmp_path / 'data', user_dir, 20_000)
  assert done.returncode == 1
  last = done.stderr.strip().splitlines()[-1]
  assert f'The disk of {tmp_path / "data"} is full' in last
  with (user_dir / 'labels.csv').open('a') as file:
    file.writelines(f'absent{k}.wav,train,0,1\n' for k in range(30))
  done = python(_FULL, tmp_path / 'data', user_dir, 10)
  assert done.returncode == 1
  path = tmp_path / 'data/unmatched-user.txt'
  assert f'The disk of {path} is full' in done.stderr.strip().splitlines()[-1]
