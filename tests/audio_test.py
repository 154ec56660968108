"""Tests of sound file reading against signals known in closed form."""

import warnings

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from tfds_dcase import audio


def tone(rate, seconds=0.5, frequency=440.0, gain=0.5):
  """The closed-form reference: a sine at any rate. [S]"""
  return gain * np.sin(
    2 * np.pi * frequency * np.arange(int(rate * seconds)) / rate
  )


def middle(wave_S):
  """Away from the ends, where a resampler's filter is not full."""
  return wave_S[1000:-1000]


@pytest.mark.parametrize(
  'rate', [8000, 11025, 16000, 22050, 44100, 48000, 192000]
)
def test_resamples_a_tone_to_the_tone(tmp_path, rate):
  path = tmp_path / 'tone.wav'
  soundfile.write(path, tone(rate), rate, subtype='FLOAT')
  wave_S = audio.read(path)
  assert wave_S.dtype == np.float32
  assert len(wave_S) == round(int(rate / 2) * 16000 / rate)
  expected_S = tone(16000)[: len(wave_S)]
  np.testing.assert_allclose(middle(wave_S), middle(expected_S), atol=2e-3)


@pytest.mark.parametrize(
  ('name', 'subtype', 'tolerance'),
  [
    ('a.wav', 'PCM_U8', 1 / 100),
    ('a.wav', 'PCM_16', 1e-4),
    ('a.wav', 'PCM_24', 1e-6),
    ('a.wav', 'DOUBLE', 1e-6),
    ('a.wav', 'ULAW', 2e-2),
    ('a.flac', 'PCM_16', 1e-4),
    ('a.aiff', 'PCM_16', 1e-4),
    ('a.ogg', 'VORBIS', 5e-2),
  ],
)
def test_reads_every_coding(tmp_path, name, subtype, tolerance):
  soundfile.write(tmp_path / name, tone(16000), 16000, subtype=subtype)
  wave_S = audio.read(tmp_path / name)
  np.testing.assert_allclose(
    middle(wave_S), middle(tone(16000)), atol=tolerance
  )


FORMATS = {
  'AIFF': ['aif', 'aifc', 'aiff'], 'AU': ['au', 'snd'], 'AVR': ['avr'],
  'CAF': ['caf'], 'FLAC': ['flac'], 'IRCAM': ['ircam', 'sf'], 'MP3': ['mp3'],
  'NIST': ['nist', 'sph'], 'OGG': ['ogg', 'oga'], 'PAF': ['paf'],
  'PVF': ['pvf'], 'RF64': ['rf64'], 'SVX': ['8svx', 'iff', 'svx'],
  'VOC': ['voc'], 'W64': ['w64'], 'WAV': ['wav', 'wave'], 'WVE': ['wve'],
  'HTK': ['htk'], 'SDS': ['sds'], 'XI': ['xi'], 'SD2': ['sd2'],
}  # fmt: skip


def test_every_format_that_is_read_is_known_by_its_extensions(tmp_path):
  # Others: header-less (RAW), matrices, and one that Musepack shares its
  # extension with; WAVEX is .wav.
  others = {'RAW', 'MAT4', 'MAT5', 'MPC2K', 'WAVEX'}
  assert set(soundfile.available_formats()) == set(FORMATS) | others
  for form, extensions in FORMATS.items():
    assert {f'.{each}' for each in extensions} <= set(audio.EXTENSIONS)
    if form in ('XI', 'SD2', 'WVE'):  # Other rates or a file beside it.
      continue
    path = tmp_path / f'a.{extensions[0]}'
    soundfile.write(path, tone(16000), 16000, format=form)
    assert len(audio.read(path)) >= 8000


def test_content_decides_not_the_name(tmp_path):
  soundfile.write(tmp_path / 'a.flac', tone(16000), 16000)
  (tmp_path / 'a.flac').rename(tmp_path / 'recording.xyz')
  assert len(audio.read(tmp_path / 'recording.xyz')) == 8000


def test_channels_are_averaged(tmp_path):
  left, right = tone(16000), tone(16000, frequency=1000, gain=0.25)
  soundfile.write(
    tmp_path / 'a.wav', np.stack([left, right], 1), 16000, subtype='FLOAT'
  )
  np.testing.assert_allclose(
    audio.read(tmp_path / 'a.wav'), (left + right) / 2, atol=1e-6
  )


def test_reads_blocks_as_a_whole(tmp_path, monkeypatch):
  soundfile.write(tmp_path / 'a.wav', tone(16000), 16000, subtype='FLOAT')
  monkeypatch.setattr(audio, '_BLOCK', 777)
  np.testing.assert_allclose(
    audio.read(tmp_path / 'a.wav'), tone(16000), atol=1e-6
  )


def test_max_seconds_reads_only_the_start(tmp_path):
  soundfile.write(tmp_path / 'a.wav', tone(16000), 16000, subtype='FLOAT')
  np.testing.assert_allclose(
    audio.read(tmp_path / 'a.wav', max_seconds=0.1),
    tone(16000)[:1600],
    atol=1e-6,
  )


def test_a_tenth_of_a_second_is_long_enough(tmp_path):
  soundfile.write(tmp_path / 'a.wav', tone(44100, 0.1), 44100)
  assert len(audio.read(tmp_path / 'a.wav')) == 1600


def write(path, wave_S, rate=16000):
  soundfile.write(path, np.asarray(wave_S), rate, subtype='FLOAT')


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (np.zeros(0), 'no samples'),
    (np.ones(100), 'at least 0.02 s'),
    ([0.1] * 999 + [np.nan], '1 of 1000 samples are NaN'),
    ([0.1] * 999 + [np.inf], '1 of 1000 samples are NaN'),
  ],
)
def test_bad_content_is_refused_by_name(tmp_path, content, message):
  write(tmp_path / 'bad one.wav', content)
  with pytest.raises(ValueError, match=message) as caught:
    audio.read(tmp_path / 'bad one.wav')
  assert 'bad one.wav' in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'not a sound', b'RIFF1234WAVEfmt '])
def test_what_is_no_sound_file_is_refused(tmp_path, content):
  (tmp_path / 'a.wav').write_bytes(content)
  with pytest.raises(ValueError, match=r'a\.wav'):
    audio.read(tmp_path / 'a.wav')


def test_missing_files_and_folders_are_refused(tmp_path):
  with pytest.raises(ValueError, match='no such file'):
    audio.read(tmp_path / 'nowhere.wav')
  with pytest.raises(ValueError, match='is a folder'):
    audio.read(tmp_path)


@pytest.mark.parametrize(
  ('wave_S', 'silent'),
  [
    (np.zeros(100), True),
    (np.full(100, 0.3), True),  # a constant: a dead microphone
    (np.zeros(0), True),
    (tone(16000, gain=1e-6), True),
    (tone(16000, gain=1e-3), False),
    (np.eye(1, 100)[0], False),
  ],
)
def test_silence(wave_S, silent):
  assert audio.is_silent(wave_S) == silent


def test_bad_recordings_stop_or_are_reported(tmp_path):
  write(tmp_path / 'good.wav', tone(16000))
  write(tmp_path / 'silent.wav', np.zeros(1000))
  (tmp_path / 'broken.wav').write_bytes(b'x')
  problems = []
  names = ['good.wav', 'silent.wav', 'broken.wav']
  waves = [audio.read_usable(tmp_path / n, problems, 'skip') for n in names]
  assert [w is None for w in waves] == [False, True, True]
  assert len(problems) == 2
  message = audio.summarise_problems(problems, 3)
  assert message.startswith('2 of 3')
  assert 'silent.wav' in message
  assert 'broken.wav' in message
  with pytest.raises(ValueError, match=r'silent\.wav.*skip'):
    audio.read_usable(tmp_path / 'silent.wav', [], 'stop')
  with pytest.raises(ValueError, match="'ignore'"):
    audio.read_usable(tmp_path / 'good.wav', [], 'ignore')


def test_long_lists_of_problems_are_cut():
  message = audio.summarise_problems([f'line {i}' for i in range(25)], 30)
  assert 'line 9' in message
  assert 'line 10' not in message
  assert '15 more' in message
  assert 'all 7' in audio.summarise_problems([], 7)


@given(st.integers(-32768, 32767))
def test_int16_round_trip(sample):
  assert audio.to_int16(np.array([sample / 32768]))[0] == sample


@given(st.floats(-100, 100, width=32))
def test_int16_is_the_nearest_or_the_limit(value):
  expected = min(max(round(float(np.float32(value)) * 32768), -32768), 32767)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert audio.to_int16(np.array([value], np.float32))[0] == expected


@given(st.integers(0, 50), st.integers(1, 50))
def test_fit_length(length, wanted):
  wave_S = np.arange(1, length + 1, dtype=np.int16)
  fitted_S, real = audio.fit_length(wave_S, wanted)
  assert fitted_S.shape == (wanted,)
  assert fitted_S.dtype == np.int16
  assert real == min(length, wanted)
  np.testing.assert_array_equal(fitted_S[:real], wave_S[:real])
  assert not fitted_S[real:].any()
