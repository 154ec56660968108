"""Tagging recordings: windows, frames, formats, the files that are written."""

import csv
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
import soxr
from conftest import ROOT
from deploy_fakes import TAGS, sound, write_workdir
from images import inked

import iusp_jax
from iusp_jax.deploy import export, tag_files, tagging
from iusp_jax.models import tagger, trained
from iusp_jax.scoring import calibration
from tfds_dcase import audio


@pytest.fixture(scope='module', params=['crnn', 'cnn'])
def loaded(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  return iusp_jax.load(write_workdir(folder, request.param))


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return write_workdir(tmp_path_factory.mktemp('run'))


def direct(loaded, wave_S):
  """Probabilities of one window by the model itself."""
  own = loaded.trained
  mel_BTF = tagger.log_mel(own.model, audio.to_int16(wave_S)[None])
  output = tagger.apply(own.model, own.variables, mel_BTF)
  return (
    np.asarray(jax.nn.sigmoid(output.logits_BC))[0],
    np.asarray(jax.nn.sigmoid(output.frame_logits_BTC))[0],
  )


# Windows and frames ----------------------------------------------------------

GRID = tagging.Grid(size=16_000, step=1280)


@pytest.mark.parametrize('block', [700, 16_000, 200_000])
@pytest.mark.parametrize(
  'length', [400, 15_999, 16_000, 16_001, 23_680, 23_681, 31_360, 100_003]
)
def test_windows_cover_a_recording(length, block):
  rng = np.random.default_rng(0)
  wave_S = rng.integers(1, 30_000, length).astype(np.int16)
  blocks = (wave_S[i : i + block] for i in range(0, length, block))
  windows = list(GRID.windows(blocks))
  starts = [window.start for window in windows]
  assert starts[0] == 0
  assert all(start % GRID.step == 0 for start in starts)
  gaps = np.diff(starts)
  assert (gaps > 0).all()
  assert (gaps <= GRID.hop).all()
  end = starts[-1] + GRID.size
  assert length <= end
  assert len(windows) == 1 or end < length + GRID.step
  for window in windows:
    expected, _ = audio.fit_length(wave_S[window.start :], GRID.size)
    np.testing.assert_array_equal(window.wave_S, expected)


@pytest.mark.parametrize('length', [1, 1280, 16_000, 16_001, 40_000, 100_003])
def test_frames_of_windows_are_joined_on_one_grid(length):
  wave_S = np.ones(length, np.int16)
  starts = [window.start for window in GRID.windows([wave_S])]
  parts = [
    [start // GRID.step + np.arange(13)[:, None], np.full(13, i)]
    for i, start in enumerate(starts)
  ]
  frames, source = GRID.join_frames(starts, parts, length)
  np.testing.assert_array_equal(frames[:, 0], np.arange(-(-length // 1280)))
  # Each frame is of the window whose middle is nearest, as far as they cover.
  middles = np.array(starts) + GRID.size / 2
  for j, i in enumerate(source):
    distance = np.abs((j + 0.5) * GRID.step - middles)
    assert distance[i] <= distance.min() + GRID.step


# Probabilities ---------------------------------------------------------------


def test_a_clip_of_the_models_length_is_the_models_output(loaded):
  wave_S = sound()
  found = loaded(wave_S, 16_000)
  clip_C, frames_TC = direct(loaded, wave_S)
  np.testing.assert_allclose(found.probabilities_C, clip_C, atol=1e-6)
  np.testing.assert_allclose(found.frames_TC, frames_TC, atol=1e-6)
  assert np.ptp(found.frames_TC) > 0.01
  assert found.names == TAGS
  assert list(found.probabilities) == [
    TAGS[c] for c in np.argsort(-clip_C, kind='stable')
  ]
  assert found.present == [
    name for name, p in found.probabilities.items() if p >= 0.5
  ]
  assert found.frame_seconds == 0.08
  assert found.seconds == found.window_seconds == 1.0


def test_a_short_sound_is_padded_as_in_training(loaded):
  wave_S = sound(0.4)
  found = loaded(wave_S, 16_000)
  clip_C, frames_TC = direct(loaded, np.pad(wave_S, (0, 9_600)))
  np.testing.assert_allclose(found.probabilities_C, clip_C, atol=1e-6)
  np.testing.assert_allclose(found.frames_TC, frames_TC[:5], atol=1e-6)


def test_a_long_sound_has_the_maxima_of_its_windows(loaded):
  wave_S = sound(6.3)
  found = loaded(wave_S, 16_000)
  assert len(found.window_starts_W) == 13  # More than a batch.
  for start, own_C in zip(found.window_starts_W, found.windows_WC, strict=True):
    first = round(start * 16_000)
    window_S = audio.fit_length(wave_S[first:], 16_000)[0]
    np.testing.assert_allclose(own_C, direct(loaded, window_S)[0], atol=1e-6)
  np.testing.assert_array_equal(
    found.probabilities_C, found.windows_WC.max(axis=0)
  )
  assert len(found.frames_TC) == 79


def test_a_part_of_a_recording(loaded, tmp_path):
  wave_S = audio.to_int16(sound(5.0))
  soundfile.write(tmp_path / 'long.wav', wave_S, 16_000)
  found = loaded.tag(tmp_path / 'long.wav', 2.0, 1.5, frames=True)
  alone = loaded(wave_S[32_000:56_000], 16_000)
  np.testing.assert_allclose(found.windows_WC, alone.windows_WC, atol=1e-6)
  np.testing.assert_allclose(found.frames_TC, alone.frames_TC, atol=1e-6)
  assert (found.start_seconds, found.seconds) == (2.0, 1.5)
  assert loaded.log_mel(tmp_path / 'long.wav', 2.0, 1.5).shape == (148, 16)
  with pytest.raises(ValueError, match=r'long.wav: ends after 5.00 s.*--start'):
    loaded.tag(tmp_path / 'long.wav', 5.0)


@pytest.mark.parametrize(
  ('subtype', 'rate', 'channels', 'tolerance'),
  [
    ('PCM_24', 16_000, 1, 1e-4),  # Rounded twice.
    ('FLOAT', 16_000, 12, 1e-6),
    ('DOUBLE', 16_000, 2, 1e-6),
    ('PCM_16', 8_000, 1, None),  # Half of the band is not there.
    ('PCM_16', 44_100, 1, 0.02),
    ('PCM_16', 192_000, 1, 0.02),
  ],
)
def test_formats_rates_and_channels(
  loaded, tmp_path, subtype, rate, channels, tolerance
):
  path = tmp_path / 'sound.wav'
  wave_S = soxr.resample(sound(), 16_000, rate)
  wave_SH = np.repeat(wave_S[:, None], channels, axis=1)
  soundfile.write(path, wave_SH, rate, subtype=subtype)
  found = loaded.tag(path)
  assert np.isfinite(found.probabilities_C).all()
  assert found.seconds == pytest.approx(1.0, abs=1e-3)
  expected = loaded(sound(), 16_000)
  if tolerance:
    np.testing.assert_allclose(
      found.probabilities_C, expected.probabilities_C, atol=tolerance
    )
  in_memory = loaded(soundfile.read(path)[0], rate)
  np.testing.assert_allclose(
    in_memory.probabilities_C, found.probabilities_C, atol=1e-5
  )


@pytest.mark.parametrize('fault', ['one byte', 'header', 'NaN', 'truncated'])
def test_broken_recordings_are_not_tagged(loaded, tmp_path, fault):
  path = tmp_path / 'sound.wav'
  wave_S = sound()
  if fault == 'NaN':
    wave_S[999] = np.nan
  soundfile.write(path, wave_S, 16_000, 'FLOAT')
  content = path.read_bytes()
  data = content.index(b'data') + 8
  kept = {'one byte': 1, 'header': data, 'truncated': len(content) // 2}
  path.write_bytes(content[: kept.get(fault, len(content))])
  with pytest.raises(audio.BadRecordingError, match=r'sound\.wav'):
    loaded.tag(path)


def test_silence_is_tagged_with_a_note(loaded):
  found = loaded(np.zeros(40_000, np.float32), 16_000)
  assert 'every sample is silent' in found.notes
  assert np.isfinite(found.probabilities_C).all()
  assert 'every sample is silent' not in loaded(sound(), 16_000).notes


@pytest.mark.parametrize(
  ('wave', 'rate', 'message'),
  [
    (np.full(16_000, np.nan), 16_000, 'NaN or infinite'),
    (sound(0.001), 16_000, 'at least 0.02 s needed'),
    (1000 * sound(), 16_000, 'scaled like integers'),
    (np.zeros(16_000, np.uint8), 16_000, 'waveform is uint8'),
    (np.zeros((2, 16_000, 1)), 16_000, 'shape'),
    (np.zeros((2, 16_000)), 16_000, 'transpose it'),
    (np.zeros(0), 16_000, 'no samples'),
    (sound(), 16_000.5, 'sample_rate is 16000.5'),
    (sound(), -1, 'sample_rate is -1'),
  ],
)
def test_bad_waveforms_are_refused(loaded, wave, rate, message):
  with pytest.raises(ValueError, match=message):
    loaded(wave, rate)


# Calibration -----------------------------------------------------------------


def test_temperatures_and_thresholds_of_the_checkpoint_are_used(tmp_path):
  folder = write_workdir(tmp_path / 'run')
  before = iusp_jax.load(folder)(sound(2.0), 16_000)
  own = calibration.Calibration(
    np.array([0.5, 1.0, 2.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.4]), (), 'v'
  )
  calibration.save(folder, own, TAGS)
  found = iusp_jax.load(folder)(sound(2.0), 16_000)

  def logits(p):
    return np.log(p) - np.log1p(-p)

  for part in ('windows_WC', 'frames_TC'):
    expected = logits(getattr(before, part)) / own.temperatures_C
    np.testing.assert_allclose(
      logits(getattr(found, part)), expected, atol=1e-5
    )
  np.testing.assert_array_equal(found.thresholds_C, own.thresholds_C)


# Folders that are no run -----------------------------------------------------


def test_what_is_no_checkpoint_is_refused(tmp_path):
  with pytest.raises(ValueError, match='holds no trained model'):
    iusp_jax.load(tmp_path / 'nowhere')
  folder = write_workdir(tmp_path / 'run')
  metadata = json.loads((folder / 'model.json').read_text())
  for change in ({'frontend': {'hop': 3}}, {'tags': None}):
    (folder / 'model.json').write_text(json.dumps(metadata | change))
    with pytest.raises(ValueError, match='another version'):
      iusp_jax.load(folder)


OTHER_VERSIONS = {
  'architecture': {'model': {'architecture': 'conformer', 'width': 4}},
  'field of the model': {'model.heads': 4},
  'field of the front end': {'frontend.gain': 2.0},
  'kind of front end': {'frontend.kind': 'pcen'},
  'value of the front end': {'frontend.num_mel_bands': -1},
  'training': {'training': None},
  'length': {'num_samples': 3},
  'tags': {'tags': 'engine'},
  'data': {'dataset': 'urban_scenes'},
}


@pytest.mark.parametrize('name', OTHER_VERSIONS)
@pytest.mark.parametrize('command', ['load', 'tag', 'export'])
def test_checkpoints_of_another_version_are_refused(tmp_path, name, command):
  """Each with its file, what is wrong, and what to do."""
  folder = write_workdir(tmp_path / 'run')
  metadata = json.loads((folder / 'model.json').read_text())
  for field, value in OTHER_VERSIONS[name].items():
    first, _, last = field.partition('.')
    if last:
      metadata[first][last] = value
    else:
      metadata[first] = value
  (folder / 'model.json').write_text(json.dumps(metadata))
  soundfile.write(tmp_path / 'a.wav', sound(), 16_000)
  call = {
    'load': lambda: iusp_jax.load(folder),
    'tag': lambda: tag_files.run(str(folder), [str(tmp_path / 'a.wav')]),
    'export': lambda: export.run(str(folder), str(tmp_path / 'out')),
  }[command]
  with pytest.raises(ValueError, match='another version') as error:
    call()
  assert str(folder / 'model.json') in str(error.value)
  assert f'delete {folder} and run the command' in str(error.value)
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('command', [iusp_jax.load, trained.load])
def test_arrays_of_another_version_are_refused(tmp_path, command):
  folder = write_workdir(tmp_path / 'run')
  other = write_workdir(tmp_path / 'other', 'cnn')
  shutil.rmtree(folder / 'checkpoints')
  shutil.copytree(other / 'checkpoints', folder / 'checkpoints')
  with pytest.raises(ValueError, match='is of another architecture than'):
    command(folder)
  (checkpoint,) = (folder / 'checkpoints' / 'best').iterdir()
  (checkpoint / 'facts').mkdir()  # As version 0.1.0 had it.
  with pytest.raises(ValueError, match='an earlier version') as error:
    command(folder)
  assert f'Delete {folder}' in str(error.value)


# Files -----------------------------------------------------------------------


@pytest.fixture(scope='module')
def recordings(tmp_path_factory):
  """A folder with good and bad recordings, and other files."""
  folder = tmp_path_factory.mktemp('recordings')
  (folder / 'deep').mkdir()
  soundfile.write(folder / 'a.wav', sound(), 16_000)
  soundfile.write(folder / 'deep' / 'long.flac', sound(9.0, 22_050), 22_050)
  soundfile.write(folder / 'header.wav', np.zeros(0), 16_000)
  soundfile.write(folder / 'nan.wav', np.full(16_000, np.nan), 16_000, 'FLOAT')
  (folder / 'one.wav').write_bytes(b'R')
  whole = (folder / 'a.wav').read_bytes()
  (folder / 'cut.wav').write_bytes(whole[: len(whole) // 2])
  (folder / 'notes.txt').write_text('no sound')
  return folder


BAD = ('cut.wav', 'header.wav', 'nan.wav', 'one.wav')


@pytest.mark.parametrize('frames', [False, True])
def test_folder_to_csv(workdir, recordings, tmp_path, capsys, frames):
  path = tmp_path / 'deep' / 'tags.csv'
  bad = tag_files.run(str(workdir), [str(recordings)], str(path), 0, frames)
  assert bad == len(BAD)
  shown = capsys.readouterr().out
  assert '2 of 6 recordings tagged' in shown
  assert 'no calibration.json: every threshold is .5' in shown
  for name in BAD:
    assert f'not tagged: {recordings / name}: ' in shown
  with path.open() as file:
    rows = list(csv.DictReader(file))
  assert {row['file'] for row in rows} == {
    str(recordings / 'a.wav'),
    str(recordings / 'deep' / 'long.flac'),
  }
  loaded = iusp_jax.load(workdir)
  found = loaded.tag(recordings / 'deep' / 'long.flac', frames=True)
  own = [row for row in rows if row['file'].endswith('flac')]
  expected = {
    'recording': found.probabilities_C[None],
    'window': found.windows_WC,
    'frame': found.frames_TC if frames else np.zeros((0, 4)),
  }
  for part, values in expected.items():
    of = [row for row in own if row['part'] == part]
    values_NC = [[float(row[tag]) for tag in TAGS] for row in of]
    np.testing.assert_allclose(
      np.array(values_NC).reshape(-1, 4), values, atol=1e-6
    )
    for row in of:
      wanted = {tag for tag in TAGS if float(row[tag]) >= 0.5}
      assert set(filter(None, row['tags'].split(';'))) == wanted
    if of:
      assert float(of[0]['start_seconds']) == 0.0
      assert float(of[-1]['end_seconds']) == pytest.approx(9.0, abs=1e-3)


def test_json_has_the_same_numbers(workdir, recordings, tmp_path):
  path = tmp_path / 'tags.json'
  names = [str(recordings / 'deep'), str(recordings / 'a.wav')]
  assert tag_files.run(str(workdir), names, str(path), 2, True) == 0
  whole = json.loads(path.read_text())
  assert whole['tags'] == list(TAGS)
  assert whole['thresholds'] == dict.fromkeys(TAGS, 0.5)
  loaded = iusp_jax.load(workdir)
  for record, name in zip(
    whole['recordings'], ('deep/long.flac', 'a.wav'), strict=True
  ):
    found = loaded.tag(recordings / name, frames=True)
    assert record['file'] == str(recordings / name)
    assert record['present'] == list(found.probabilities)[:2]
    assert record['probabilities'] == pytest.approx(
      dict(zip(TAGS, found.probabilities_C, strict=True))
    )
    np.testing.assert_allclose(
      record['frames']['probabilities'], found.frames_TC
    )
    np.testing.assert_allclose(
      record['windows']['probabilities'], found.windows_WC
    )


def test_plots_of_files_of_one_name_do_not_replace_each_other(
  workdir, tmp_path, monkeypatch
):
  targets = []
  monkeypatch.setattr(
    tag_files, 'draw', lambda *given: targets.append((given[1], given[4].name))
  )
  names = [
    tmp_path / name for name in ('a.wav', 'b/a.wav', 'a-2.wav', 'a.flac')
  ]
  (tmp_path / 'b').mkdir()
  for name in names:
    soundfile.write(name, sound(), 16_000)
  tag_files.run(str(workdir), list(map(str, names)), plot=str(tmp_path / 'p'))
  wanted = ['a.png', 'a-2.png', 'a-2-2.png', 'a-3.png']
  assert targets == list(zip(names, wanted, strict=True))


@pytest.mark.slow
def test_plots(workdir, recordings, tmp_path):
  paths = [str(recordings / 'a.wav'), str(recordings / 'deep' / 'long.flac')]
  folder = tmp_path / 'plots'
  tag_files.run(str(workdir), paths, plot=str(folder), start=0.5)
  assert sorted(path.name for path in folder.iterdir()) == [
    'a.png', 'a.txt', 'long.png', 'long.txt',
  ]  # fmt: skip
  assert inked(folder / 'long.png') > 0.2
  lines = (folder / 'long.txt').read_text().splitlines()
  assert lines[0].split() == ['seconds', *TAGS]
  assert len(lines) == 1 + 107  # 8.5 s in frames of .08 s.
  assert lines[1].split()[0] == '0.50'


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'checkpoint': ''}, '--checkpoint is missing'),
    ({'names': []}, 'expected a sound file'),
    ({'names': ['nowhere.wav']}, r'nowhere.wav: no such file'),
    ({'output': 'tags.txt'}, r'--output=tags.txt: expected .* .csv or .json'),
    ({'start': -1.0}, 'no negative'),
    ({'frames': True}, 'expected --output'),
  ],
)
def test_flags_that_cannot_be_right(workdir, recordings, changes, message):
  good = {'checkpoint': str(workdir), 'names': [str(recordings / 'a.wav')]}
  with pytest.raises(ValueError, match=message):
    tag_files.run(**{**good, **changes})


def test_folder_without_sounds_is_refused(workdir, tmp_path):
  with pytest.raises(ValueError, match='no sound file in this folder'):
    tag_files.run(str(workdir), [str(tmp_path)])


def test_output_that_cannot_be_written_is_refused_at_once(
  workdir, recordings, tmp_path, capsys
):
  (tmp_path / 'file').write_text('')
  output = str(tmp_path / 'file' / 'tags.csv')
  with pytest.raises(OSError, match='file'):
    tag_files.run(str(workdir), [str(recordings / 'a.wav')], output)
  assert '0:01.0' not in capsys.readouterr().out


def test_what_was_tagged_before_an_interrupt_is_kept(
  workdir, recordings, tmp_path, monkeypatch
):
  whole = tagging.LoadedTagger.tag

  def tag(self, source, *args, **kwargs):
    if str(source).endswith('flac'):
      raise KeyboardInterrupt
    return whole(self, source, *args, **kwargs)

  monkeypatch.setattr(tagging.LoadedTagger, 'tag', tag)
  names = [str(recordings / 'a.wav'), str(recordings / 'deep')]
  with pytest.raises(KeyboardInterrupt):
    tag_files.run(str(workdir), names, str(tmp_path / 'tags.csv'))
  assert [path.name for path in tmp_path.iterdir()] == ['tags.csv.partial']
  assert (
    'a.wav,recording,0.000,1.000' in (tmp_path / 'tags.csv.partial').read_text()
  )


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(0.04, '0:00.0'), (59.96, '1:00.0'), (61.25, '1:01.2'),
   (3661.0, '1:01:01.0'), (36_000.0, '10:00:00.0')],
)  # fmt: skip
def test_clock(seconds, text):
  assert tag_files.clock(seconds) == text


# The command -----------------------------------------------------------------


def run(*arguments):
  return subprocess.run(
    [sys.executable, 'run.py', *map(str, arguments)],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.slow
def test_the_command(workdir, recordings, tmp_path):
  """Flags may follow the names; a bad recording makes the exit status 1."""
  output = tmp_path / 'tags.csv'
  done = run(
    '--mode=tag', recordings / 'a.wav', f'--checkpoint={workdir}',
    f'--output={output}', '--top_k=2',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert '1 of 1 recordings tagged' in done.stdout
  assert output.exists()
  bad = run('--mode=tag', f'--checkpoint={workdir}', recordings / 'one.wav')
  assert bad.returncode == 1
  assert 'Traceback' not in bad.stderr
  assert 'one.wav' in bad.stdout


MEMORY = """
import resource, sys
from iusp_jax.deploy import tag_files
checkpoint, sound, output, plots = sys.argv[1:]
assert not tag_files.run(checkpoint, [sound], output, plot=plots)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_depend_on_the_length(workdir, tmp_path):
  """A recording of 10 hours takes what one of a minute takes, with a plot."""
  minute = np.tile((3000 * sound(60.0, 8_000)).astype(np.int16), 1)
  peaks = []
  for name, count in (('minute', 1), ('hours', 600)):
    path = tmp_path / f'{name}.wav'
    with soundfile.SoundFile(path, 'w', 8_000, 1, 'PCM_U8') as file:
      for _ in range(count):
        file.write(minute)
    output, plots = tmp_path / f'{name}.csv', tmp_path / 'plots'
    words = [sys.executable, '-c', MEMORY, workdir, path, output, plots]
    done = subprocess.run(
      list(map(str, words)),
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=True,
    )
    windows = output.read_text().count(',window,')
    assert windows == pytest.approx(count * 60 / 0.48, rel=0.02)
    assert inked(plots / f'{name}.png') > 0.2
    peaks.append(int(done.stdout.split()[-1]))
  assert peaks[1] < peaks[0] + 100, peaks  # MiB; the sound alone is 275.
