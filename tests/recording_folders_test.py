"""What every builder does with a recording that is bad, odd or far too long."""

import hashlib
import importlib.util
import os
import pathlib
import signal
import time

import numpy as np
import pytest
import soundfile
from conftest import SHARED
from sonyc_ust_world import WAVS, write_annotations, write_folder
from sonyc_ust_world import build as build_sonyc
from sound_faults_test import UNUSABLE, encode, mp3, tone

from tfds_dcase import files, folder, notes, urban_scenes
from tfds_dcase.sonyc_ust import sources
from tfds_dcase.urban_scenes import clips, mixer, recordings

SMALL = {'train_scenes': 6, 'validate_scenes': 3, 'test_scenes': 3}
ROWS = ('train', 'train', 'validate', 'test')


@pytest.fixture(autouse=True)
def ends():
  """A read that never ends is an error, not a test run that never ends."""

  def fail(number, frame):
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, fail)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


def write_clips(path):
  """Two classes of five folds, and of one fold a second recording."""
  for number, tag in enumerate(('hiss', 'tone')):
    (path / tag).mkdir(parents=True)
    for fold in range(1, 6):
      rng = np.random.default_rng(10 * number + fold)
      wave_S = 0.2 * rng.standard_normal(6400)
      if tag == 'tone':
        wave_S = wave_S / 100 + tone(0.4, gain=0.3)
      soundfile.write(path / tag / f'{fold}-{fold}-A.wav', wave_S, 16_000)
  return path / 'tone/1-77-A.wav'


def write_labelled(path):
  path.mkdir(parents=True)
  lines = ['file,split,dog']
  for n, split in enumerate(ROWS):
    soundfile.write(path / f'{n}.wav', tone(0.5) * (n + 1) / 5, 16_000)
    lines.append(f'{n}.wav,{split},{int(n > 0)}')
  (path / 'labels.csv').write_text('\n'.join([*lines, 'odd.wav,train,1', '']))
  return path / 'odd.wav'


def write_sonyc(path):
  path.mkdir(parents=True)
  write_annotations(path / 'annotations.csv')
  write_folder(path / 'audio', WAVS)
  odd = path / 'audio/00_000002.wav'
  odd.unlink()
  return odd


def build_clips(data, path, **given):
  builder = urban_scenes.make_builder(data, 'clips', path, **SMALL, **given)
  builder.download_and_prepare()
  return builder


def build_folder(data, path, **given):
  builder = folder.make_builder(data, path, **given)
  builder.download_and_prepare()
  return builder


def build_ust(data, path, **given):
  return build_sonyc(data.parent, path, data.name, **given)


KINDS = {
  'clips': (write_clips, build_clips),
  'folder': (write_labelled, build_folder),
  'sonyc_ust': (write_sonyc, build_ust),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path):
  """(folder, path of a recording that is not there yet, how to build)."""
  write, build = KINDS[request.param]
  path = tmp_path / 'recordings'
  return path, write(path), build


def split_of(builder, name='train'):
  return list(builder.as_data_source(name))


def text_of(builder):
  return (pathlib.Path(builder.data_path) / notes.FILE_NAME).read_text()


@pytest.mark.parametrize('make', UNUSABLE, ids=lambda make: make.__name__)
def test_skip_holds_for_whatever_is_no_file(tmp_path, kind, make):
  path, odd, build = kind
  make(odd)
  if make.__name__ == 'folder' and build is not build_folder:
    return  # A folder of that name is one more folder to look into.
  with pytest.raises(ValueError, match=UNUSABLE[make]) as caught:
    build(tmp_path / 'data', path)
  assert odd.name in str(caught.value)
  assert "on_bad_recording='skip'" in str(caught.value)
  builder = build(tmp_path / 'data', path, on_bad_recording='skip')
  assert odd.name in text_of(builder)
  assert len(split_of(builder)) >= 2


FAULTS = {
  'truncated': (encode(tone(10), format='WAV')[:-999], 'truncated: it ends'),
  'unfinished': (
    encode(tone(10), format='AU')[:8] + bytes(4) + bytes(300_000),
    'never finished',
  ),
  'scaled': (
    encode(9999 * tone(10), format='WAV', subtype='FLOAT'),
    'scaled like integers',
  ),
  'cut mp3': (mp3(tone(10, 44_100))[:-20_000], 'truncated: it ends'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_skip_holds_for_every_reason(tmp_path, kind, fault, monkeypatch):
  path, odd, build = kind
  data, words = FAULTS[fault]
  odd.write_bytes(data)
  with pytest.raises(ValueError, match=words) as caught:
    build(tmp_path / 'data', path)
  assert odd.name in str(caught.value)
  builder = build(tmp_path / 'data', path, on_bad_recording='skip')
  assert words in text_of(builder)


def test_skip_holds_where_reading_is_not_allowed(tmp_path, kind, monkeypatch):
  path, odd, build = kind
  odd.write_bytes(encode(tone(10), format='WAV'))
  allowed = os.access  # Root may read anything: what others are answered.

  def access(of, mode):
    return str(of) != str(odd) and allowed(of, mode)

  monkeypatch.setattr(os, 'access', access)
  with pytest.raises(ValueError, match='no permission') as caught:
    build(tmp_path / 'data', path)
  assert odd.name in str(caught.value)
  builder = build(tmp_path / 'data', path, on_bad_recording='skip')
  assert 'no permission' in text_of(builder)


def test_what_was_done_to_a_recording_is_noted(tmp_path, kind, caplog):
  path, odd, build = kind
  both_SH = np.stack([tone(10), -tone(10)], 1)
  odd.write_bytes(encode(both_SH, format='WAV'))
  builder = build(tmp_path / 'data', path)
  for text in (text_of(builder), caplog.text):
    assert '1 corrections of recordings' in text
    assert f'{odd.name}: the mix of its channels lies' in text


def test_links_to_folders_are_followed_once(tmp_path, kind):
  path, odd, build = kind
  elsewhere = tmp_path / 'elsewhere'
  elsewhere.mkdir()
  (elsewhere / odd.name).write_bytes(encode(tone(10), format='WAV'))
  (elsewhere / 'back').symlink_to(elsewhere)  # for ever, if not once
  if build is build_folder:
    text = (path / 'labels.csv').read_text().replace('odd', 'linked/odd')
    (path / 'labels.csv').write_text(text)
  (odd.parent / 'linked').symlink_to(elsewhere)
  builder = build(tmp_path / 'data', path)
  if build is build_clips:
    listed = builder.builder_config.recordings  # pyright: ignore
    assert 'tone/linked/1-77-A.wav' in [each.path for each in listed]
    assert len(listed) == 11
  else:
    assert len(split_of(builder)) == 3


def test_a_folder_is_named_by_its_own_path_where_links_lead_there_too(tmp_path):
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b/x.wav').write_bytes(b'')
  (tmp_path / 'a').symlink_to(tmp_path / 'b')
  (tmp_path / 'c').symlink_to(tmp_path)
  found = [p.relative_to(tmp_path).as_posix() for p in files.below(tmp_path)]
  assert found == ['b/x.wav']
  assert recordings.find_sound_files(tmp_path) == ['b/x.wav']


def test_a_checksum_is_computed_once_but_for_files_just_written(
  tmp_path, monkeypatch
):
  path = tmp_path / 'a.wav'
  path.write_bytes(b'one')
  first = files.digest(path)
  path.write_bytes(b'two')  # within the same tick, perhaps
  second = files.digest(path)
  assert first != second
  now = time.time()
  monkeypatch.setattr(time, 'time', lambda: now + 60)
  assert files.digest(path) == second
  monkeypatch.setattr(hashlib, 'sha256', None)  # not computed again
  assert files.digest(path) == second
  monkeypatch.undo()
  time.sleep(0.02)
  path.write_bytes(b'one')
  assert files.digest(path) == first


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
  (tmp_path / 'locked').mkdir()
  scan = os.scandir

  def scandir(path):
    if str(path).endswith('locked'):
      raise PermissionError(13, 'Permission denied', str(path))
    return scan(path)

  monkeypatch.setattr(os, 'scandir', scandir)
  with pytest.raises(ValueError, match='locked: cannot be listed'):
    list(files.below(tmp_path))


@pytest.mark.parametrize('name', ['annotations.csv', 'audio-dev.tar.gz'])
@pytest.mark.parametrize(
  'make', [m for m in UNUSABLE if m.__name__ != 'folder']
)
def test_sonyc_opens_no_pipe_in_place_of_its_files(tmp_path, name, make):
  make(tmp_path / name)
  with pytest.raises(ValueError, match=name):
    sources.find(tmp_path)


@pytest.mark.parametrize('kind', ['clips', 'folder'], indirect=True)
def test_a_recording_edited_in_its_middle_is_another_one(tmp_path, kind):
  path, odd, _ = kind
  wave_S = tone(30)

  def place():
    if (path / 'labels.csv').exists():
      return folder.make_builder(tmp_path, path).data_path
    return urban_scenes.make_builder(tmp_path, 'clips', path).data_path

  soundfile.write(odd, wave_S, 16_000)
  before = place()
  size = odd.stat().st_size
  assert place() == before
  wave_S[15 * 16_000] += 0.1
  soundfile.write(odd, wave_S, 16_000)
  assert odd.stat().st_size == size
  assert place() != before


# --- Long recordings, offsets -------------------------------------------------


@pytest.mark.parametrize('at', [0, 3, 45, 58])
@pytest.mark.parametrize('rate', [16_000, 22_050])
def test_the_loudest_stretch_of_a_whole_recording_is_taken(tmp_path, at, rate):
  path = tmp_path / 'call.wav'
  wave_S = 0.001 * np.random.default_rng(at).standard_normal(60 * rate)
  wave_S[at * rate : (at + 2) * rate] += tone(2.0, rate)
  soundfile.write(path, wave_S, rate)
  found = []
  kept_S = clips.excerpt(path, found)
  assert len(kept_S) == 30 * 16_000
  (note,) = found
  assert note.startswith('of 60 s the loudest are used, ')
  start = int(note.split(', ')[1].split()[0])
  assert start <= at <= start + 28
  call_S = kept_S[(at - start) * 16_000 : (at - start + 2) * 16_000]
  assert np.std(call_S) == pytest.approx(np.std(tone(2.0)), rel=0.02)
  # A scene has the call in its ten seconds, wherever they begin.
  for seed in range(5):
    arranged_S = clips.arrange(np.random.default_rng(seed), kept_S)
    assert np.abs(arranged_S).max() > 0.2


def test_up_to_thirty_seconds_are_kept_whole(tmp_path):
  for seconds in (0.5, 30.0):
    path, found = tmp_path / 'a.wav', []
    soundfile.write(path, tone(seconds), 16_000, subtype='FLOAT')
    np.testing.assert_allclose(
      clips.excerpt(path, found), tone(seconds), atol=1e-6
    )
    assert found == []


@pytest.mark.parametrize('at', [0.5, 4.0, 9.4])
def test_what_a_tag_is_for_is_in_its_scene(tmp_path, at):
  """A soft recording with one call, which the scene's end used to cut off."""
  write_clips(tmp_path / 'clips')
  wave_S = 0.002 * np.random.default_rng(0).standard_normal(160_000)
  begin = int(at * 16_000)
  wave_S[begin : begin + 8000] += tone(0.5, gain=0.5)
  for path in (tmp_path / 'clips/tone').iterdir():
    soundfile.write(path, wave_S + 1e-4 * int(path.name[0]), 16_000)
  config = clips.make_config(
    tmp_path / 'clips', sources=(1, 1), snr_db=(20, 20), on_bad_recording='skip'
  )
  library = clips.Library(config)
  assert config.classes == ('hiss', 'tone')
  found = 0
  for index in range(40):
    scene = clips.scene(config, library, 'train', index)
    if scene['coarse'][1]:
      found += 1
      power = np.abs(np.fft.rfft(scene['audio'].astype(float))) ** 2
      assert power[4350:4450].max() > 100 * np.median(power[1000:40_000])
  assert found > 10


@pytest.mark.parametrize('offset', [0.0, 0.01, 0.2])
def test_an_offset_decides_neither_ends_nor_level(tmp_path, offset):
  """It kept the silence at the ends, and a sound then was 20 dB too soft."""
  wave_S = np.zeros(8 * 16_000)
  wave_S[4 * 16_000 : 5 * 16_000] = tone(1.0)
  path = tmp_path / 'a.wav'
  soundfile.write(path, wave_S + offset, 16_000, subtype='FLOAT')
  arranged_S = clips.arrange(np.random.default_rng(1), clips.excerpt(path))
  expected_S = clips.arrange(
    np.random.default_rng(1), wave_S.astype(np.float32)
  )
  assert len(arranged_S) == pytest.approx(len(expected_S), abs=16)
  assert mixer.level_db(arranged_S) == pytest.approx(
    mixer.level_db(expected_S), abs=0.1
  )


def test_versions_tell_new_clips_from_old_ones(tmp_path):
  path = tmp_path / 'recordings'
  write_clips(path)
  builder = urban_scenes.make_builder(tmp_path, 'clips', path)
  assert str(builder.version) == '1.1.0'
  # Its scenes are what they were.
  assert str(urban_scenes.make_builder(tmp_path).version) == '1.0.0'


# --- The inputs that were handed in -------------------------------------------


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
  path = SHARED / 'faults/make_inputs.py'
  if not path.is_file():
    pytest.skip(f'the inputs that failed are not at {path}')
  spec = importlib.util.spec_from_file_location('make_inputs', path)
  assert spec is not None
  assert spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  result = tmp_path_factory.mktemp('faults') / 'inputs'
  module.main(result)
  return result


def test_inputs_that_failed_are_right(tmp_path, inputs):
  builder = build_folder(tmp_path / 'data', inputs / 'gsm')
  examples = {e['clip_id'].decode(): e for e in split_of(builder)}
  assert examples['street/call.wav']['num_samples'] == 32_000
  for name, words in (
    ('cut_mp3', r'cut\.mp3: truncated: it ends after 2\.\d+ s, .* 9\.\d+ s'),
    (
      'scaled_floats',
      r'loud\.wav: its samples reach [0-9.]+, expected at most 1',
    ),
  ):
    with pytest.raises(ValueError, match=words):
      build_folder(tmp_path / 'data', inputs / name)
    builder = build_folder(
      tmp_path / 'data', inputs / name, on_bad_recording='skip'
    )
    assert len(split_of(builder)) == 10
  builder = build_clips(
    tmp_path / 'data', inputs / 'long_clips', sources=(1, 1), snr_db=(12, 12)
  )
  tags = builder.info.metadata['coarse']  # pyright: ignore
  for example in split_of(builder, 'test'):
    power = np.abs(np.fft.rfft(example['audio'].astype(float))) ** 2
    (tag,) = (
      t for t, is_there in zip(tags, example['coarse'], strict=True) if is_there
    )
    hertz = {'dog': 400, 'siren': 2000}[tag]
    band = power[10 * hertz - 100 : 10 * hertz + 100]
    assert band.max() > 50 * np.median(power[1000:40_000])
