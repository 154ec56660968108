"""Sound files as users have them: truncated, unfinished, mis-scaled, cancelled.

Each fault was reported by people who do this job; what is right is stated by
the test's name.
"""

import contextlib
import io
import os
import signal
import struct
import tracemalloc

import numpy as np
import pytest
import soundfile

from tfds_dcase import audio, mpeg, sound_header

RATE = 16_000


def tone(seconds=3.0, rate=RATE, gain=0.3):
  """A tone over soft noise. [S]"""
  time_S = np.arange(int(seconds * rate)) / rate
  noise_S = np.random.default_rng(0).standard_normal(len(time_S))
  return gain * np.sin(2 * np.pi * 440 * time_S) + 0.01 * noise_S


def encode(wave, rate=RATE, **options) -> bytes:
  file = io.BytesIO()
  soundfile.write(file, wave, rate, **options)
  return file.getvalue()


def mp3(wave, rate=44_100, mode='VARIABLE') -> bytes:
  file = io.BytesIO()
  with soundfile.SoundFile(
    file, 'w', rate, 1, format='MP3', bitrate_mode=mode, compression_level=0.5
  ) as sound:
    sound.write(wave)
  return file.getvalue()


def untagged(data: bytes) -> bytes:
  """An MP3 without the frame that counts its frames."""
  first = mpeg.frame(data[:4])
  assert first is not None
  assert data[4 : first.size].count(b'Xing') + data.count(b'Info') == 1
  return data[first.size :]


# Format and subtype to what their message names; None where nothing in the
# file tells how long it was.
TRUNCATED = [
  (form, subtype)
  for form, subtypes in {
    'WAV': ['PCM_16', 'PCM_24', 'FLOAT', 'ULAW', 'GSM610', 'IMA_ADPCM'],
    'WAVEX': ['PCM_16'],
    'RF64': ['PCM_16'],
    'W64': ['PCM_16', 'GSM610'],
    'AIFF': ['PCM_16', 'GSM610', 'IMA_ADPCM'],
    'AU': ['PCM_16', 'G721_32'],
    'SVX': ['PCM_16'],
    'AVR': ['PCM_16'],
    'NIST': ['PCM_16', 'ULAW'],
    'CAF': ['PCM_16', 'ALAC_16'],
    'VOC': ['PCM_16'],
    'WVE': ['ALAW'],
    'SDS': ['PCM_16'],
    'FLAC': ['PCM_16', 'PCM_24'],
    'MP3': ['MPEG_LAYER_III'],
  }.items()
  for subtype in subtypes
]


@pytest.mark.parametrize(('form', 'subtype'), TRUNCATED)
@pytest.mark.parametrize('fraction', [0.34, 0.9])
def test_a_truncated_file_is_bad_in_every_format_with_a_length(
  tmp_path, form, subtype, fraction
):
  rate = 8000 if subtype in ('GSM610', 'ALAW') else RATE
  wave_S = tone(rate=rate)
  data = encode(wave_S, rate, format=form, subtype=subtype)
  path = tmp_path / 'a.sound'
  path.write_bytes(data)
  whole_S = audio.read(path)
  assert len(whole_S) == pytest.approx(3 * RATE, abs=RATE / 10)
  path.write_bytes(data[: int(len(data) * fraction)])
  for source in (path, path.read_bytes()):
    with pytest.raises(audio.BadRecordingError, match='truncated') as caught:
      audio.read(source)
    with pytest.raises(audio.BadRecordingError, match='truncated'):
      next(audio.blocks(source))
  assert 'download it again' in caught.value.reason


@pytest.mark.parametrize('form', ['WAV', 'FLAC', 'MP3', 'AIFF', 'CAF'])
def test_what_is_not_wanted_has_to_be_there_too(form):
  """Whether a recording is bad does not depend on how much is used of it."""
  data = encode(tone(9.0), format=form)
  assert len(audio.read(data, max_seconds=2.0)) == 2 * RATE
  for fraction in (0.5, 0.95):
    with pytest.raises(audio.BadRecordingError, match='truncated'):
      audio.read(data[: int(len(data) * fraction)], max_seconds=2.0)


def test_lengths_found_and_declared_are_in_the_message():
  data = encode(tone(), format='WAV')
  with pytest.raises(ValueError, match=r'ends after 1\.00 s.* gives 3\.00 s'):
    audio.read(data[: 44 + 32_000])
  data = mp3(tone(rate=44_100))
  with pytest.raises(ValueError, match=r'ends after 1\.\d\d s.* gives 3\.\d\d'):
    audio.read(data[: len(data) * 2 // 5])
  data = encode(tone(), format='FLAC')
  with pytest.raises(ValueError, match=r'truncated after \d\.\d\d s of 3\.00'):
    audio.read(data[: len(data) // 2])


def test_no_memory_that_was_never_read_becomes_sound(tmp_path):
  """A block that the decoder did not fill was handed on whole, as it was."""
  path = tmp_path / 'call.wav'
  wave_S = tone(2.0, 8000)
  soundfile.write(path, wave_S, 8000, format='WAV', subtype='GSM610')
  notes = []
  read_S = audio.read(path, max_seconds=10.1, notes=notes)
  assert len(read_S) == 2 * RATE
  assert notes == []
  expected_S, _ = soundfile.read(path, dtype='float32')
  again_S = audio.read(path, sample_rate=8000, max_seconds=10.1)
  np.testing.assert_array_equal(again_S, expected_S)


@pytest.mark.parametrize('mode', ['CONSTANT', 'AVERAGE', 'VARIABLE'])
@pytest.mark.parametrize('rate', [44_100, 22_050, 8_000])
def test_an_mp3_without_a_count_is_read_whole(mode, rate):
  """libsndfile guesses its length from the first frame: 3.7 of 9 s, say."""
  wave_S = tone(9.0, rate)
  wave_S[: 3 * rate] *= 0.001  # a soft beginning: small first frames
  data = mp3(wave_S, rate, mode)
  counted_S, bare_S = audio.read(data), audio.read(untagged(data))
  assert len(counted_S) == 9 * RATE
  assert len(bare_S) == pytest.approx(9 * RATE, abs=0.15 * RATE)
  # The same sound, later by what the encoder put before it.
  size = 1 << 18
  spectra = [np.fft.rfft(wave_S, size) for wave_S in (counted_S, bare_S)]
  correlation = np.fft.irfft(spectra[0].conj() * spectra[1], size)
  assert correlation.max() > 0.98 * float(np.dot(counted_S, counted_S))


def test_frames_are_counted_behind_tags_and_over_junk():
  data = untagged(mp3(tone(rate=44_100)))
  tag = b'ID3\x04\0\0' + bytes([0, 0, 2, 0]) + bytes(256)
  plain = sound_header.look(io.BytesIO(data)).stream
  assert plain is not None
  assert plain.lost == plain.rest == 0
  assert plain.samples == pytest.approx(3 * 44_100, abs=3 * 1152)
  for before, after in (
    (tag, b''),
    (tag + tag, b''),
    (b'', b'TAG' + bytes(125)),
    (b'', b'APETAGEX' + bytes(24)),
  ):
    header = sound_header.look(io.BytesIO(before + data + after))
    assert header.stream is not None
    assert header.stream.frames == plain.frames
    assert header.note is None
    assert len(audio.read(before + data + after)) == len(audio.read(data))
  middle = plain.start
  for _ in range(20):
    middle += mpeg.frame(data[middle : middle + 4]).size  # pyright: ignore
  broken = data[:middle] + b'\xff\xfb' * 40 + data[middle:]
  header = sound_header.look(io.BytesIO(broken))
  assert header.stream is not None
  assert (header.stream.frames, header.stream.lost) == (plain.frames, 80)


@pytest.mark.parametrize('data', [b'', b'\xff', b'\xff\xfb', b'ID3', b'RIFF'])
def test_a_few_bytes_are_no_stream(data):
  assert sound_header.look(io.BytesIO(data)).stream is None


def test_an_mp3_that_ends_within_a_frame_is_read_and_noted():
  data, notes = untagged(mp3(tone(rate=44_100))), []
  wave_S = audio.read(data[: len(data) // 2], notes=notes)
  assert RATE < len(wave_S) < 2 * RATE
  (note,) = notes
  assert 'last MPEG frame is not whole' in note


def test_an_mp3_in_a_wav_is_counted_too():
  data = untagged(mp3(tone(9.0, 44_100)))
  form = struct.pack('<HHIIHHHHIHHH', 0x55, 1, 44_100, 16_000, 1, 0, 12, 1, 2,
                     417, 1, 1393)  # fmt: skip
  head = b'WAVEfmt ' + struct.pack('<I', len(form)) + form + b'data'
  body = head + struct.pack('<I', len(data)) + data
  riff = b'RIFF' + struct.pack('<I', len(body)) + body
  assert len(audio.read(riff)) == len(audio.read(data))
  with pytest.raises(ValueError, match='truncated'):
    audio.read(riff[:-5000])


def test_concatenated_mp3s_are_read_whole():
  one = mp3(tone(rate=44_100))
  wave_S = audio.read(one + one)
  assert len(wave_S) == pytest.approx(6 * RATE, abs=0.3 * RATE)


# --- Headers that were never finished --------------------------------------


def with_sizes(data: bytes, riff: int, size: int) -> bytes:
  assert data[36:40] == b'data'
  return (
    b''.join(
      [data[:4], struct.pack('<I', riff), data[8:40], struct.pack('<I', size)]
    )
    + data[44:]
  )


def test_an_unfinished_wav_is_named_as_such_and_its_repair_works():
  data = encode(tone(), format='WAV')
  for riff in (0, 36, 0xFFFFFFFF):
    with pytest.raises(ValueError, match='never finished') as caught:
      audio.read(with_sizes(data, riff, 0))
  message = str(caught.value)
  assert 'sox --ignore-length' in message
  assert 'record it anew' not in message
  # What those programs do: they write the sizes that belong there.
  mended = with_sizes(data, len(data) - 8, len(data) - 44)
  assert len(audio.read(mended)) == 3 * RATE


def test_an_empty_wav_is_no_unfinished_one():
  for data in (
    encode(np.zeros(0), format='WAV'),
    encode(np.zeros(0), format='WAV') + b'LIST\x04\0\0\0abcd',
  ):
    with pytest.raises(ValueError, match='no samples'):
      audio.read(data)


@pytest.mark.parametrize('size', [0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000])
def test_a_wav_from_a_pipe_is_read_to_its_end_and_noted(size):
  notes = []
  data = with_sizes(encode(tone(), format='WAV'), size, size)
  assert len(audio.read(data, notes=notes)) == 3 * RATE
  (note,) = notes
  assert 'gives no length' in note


def test_unfinished_aiff_au_and_caf():
  data = encode(tone(), format='AIFF')
  place = data.index(b'SSND') + 4
  for size in (0, 8):
    with pytest.raises(ValueError, match='never finished'):
      audio.read(data[:place] + struct.pack('>I', size) + data[place + 4 :])
  data = encode(tone(), format='AU')
  with pytest.raises(ValueError, match='never finished'):
    audio.read(data[:8] + bytes(4) + data[12:])
  data, notes = encode(tone(), format='AU'), []
  data = data[:8] + b'\xff' * 4 + data[12:]
  assert len(audio.read(data, notes=notes)) == 3 * RATE
  assert 'gives no length' in notes[0]
  data = encode(tone(), format='CAF')
  place = data.index(b'data') + 4
  with pytest.raises(ValueError, match='never finished'):
    audio.read(data[:place] + b'\xff' * 8 + data[place + 8 :])


def test_a_flac_of_unknown_length_is_named_as_such():
  data = bytearray(encode(tone(), format='FLAC'))
  data[21] &= 0xF0  # the 36 bits of STREAMINFO's number of samples
  data[22:26] = bytes(4)
  with pytest.raises(ValueError, match='FLAC file whose header does not give'):
    audio.read(bytes(data))


def test_an_ogg_without_its_end_is_read_and_noted():
  for subtype in ('VORBIS', 'OPUS'):
    data, notes = encode(tone(9.0), format='OGG', subtype=subtype), []
    assert len(audio.read(data, notes=notes)) == 9 * RATE
    assert notes == []
    wave_S = audio.read(data[: len(data) // 2], notes=notes)
    assert RATE < len(wave_S) < 8 * RATE
    assert 'last Ogg page is not whole' in notes[0]
    notes = []
    last = data.rindex(b'OggS')  # stopped between two pages
    audio.read(data[:last], notes=notes)
    assert 'is not closed' in notes[0]


def test_a_damaged_sample_rate_is_bad():
  data = bytearray(encode(tone(), format='WAV'))
  for rate in (1, 2_000_000_000):
    data[24:28] = struct.pack('<I', rate)
    with pytest.raises(ValueError, match=f'sample rate of {rate} Hz'):
      audio.read(bytes(data))


@pytest.mark.parametrize(
  ('form', 'subtype'), [*TRUNCATED, ('OGG', 'VORBIS'), ('OGG', 'OPUS')]
)
def test_damaged_headers_are_bad_recordings_or_sound(form, subtype):
  """Whatever stands in a header: a recording, or an error with a reason."""
  rng = np.random.default_rng(0)
  rate = 8000 if subtype in ('GSM610', 'ALAW') else RATE
  data = encode(tone(0.3, rate), rate, format=form, subtype=subtype)
  for _ in range(60):
    damaged = bytearray(data)
    for place in rng.integers(0, min(120, len(data)), rng.integers(1, 6)):
      damaged[place] = rng.choice([0, 1, 127, 128, 255, rng.integers(256)])
    with contextlib.suppress(audio.BadRecordingError):
      wave_S = audio.read(bytes(damaged))
      assert np.isfinite(wave_S).all()
      assert np.abs(wave_S).max() < 2


# --- Scale, offset, channels ------------------------------------------------


def test_floats_a_little_over_full_scale_are_scaled_down():
  notes = []
  wave_S = tone()
  expected_S = wave_S / np.abs(wave_S).max()
  data = encode(wave_S * 10, format='WAV', subtype='FLOAT')
  read_S = audio.read(data, notes=notes)
  np.testing.assert_allclose(read_S, expected_S, atol=1e-6)
  (note,) = notes
  assert note.startswith('its peak of 3.')
  assert 'scaled down' in note


@pytest.mark.parametrize('scale', [20.0, 20_000.0])
def test_floats_scaled_like_integers_are_bad(scale):
  data = encode(tone() * scale, format='WAV', subtype='FLOAT')
  with pytest.raises(audio.BadRecordingError, match='expected at most 1') as e:
    audio.read(data)
  peak = float(np.abs(tone() * scale).max())
  assert f'{peak:.6g}' in str(e.value)
  assert 'divide them by 32768' in str(e.value)


def test_a_large_offset_is_removed_and_noted():
  for subtype in ('PCM_16', 'FLOAT'):
    notes = []
    data = encode(tone() + 0.4, format='WAV', subtype=subtype)
    read_S = audio.read(data, notes=notes)
    np.testing.assert_allclose(read_S, tone() - tone().mean(), atol=1e-4)
    assert notes == ['a constant offset of 0.4 was removed']
  # One that makes no difference is left as it is.
  data, notes = encode(tone() + 0.002, format='WAV', subtype='FLOAT'), []
  np.testing.assert_allclose(audio.read(data), tone() + 0.002, atol=1e-6)
  # An offset is no peak.
  data = encode(tone() * 2 + 3.5, format='WAV', subtype='FLOAT')
  assert np.abs(audio.read(data)).max() < 0.7


@pytest.mark.parametrize('bits', [1.0, 0.95])
def test_channels_that_cancel_each_other_out_are_not_mixed(bits):
  notes = []
  both_SH = np.stack([bits * tone(), -tone()], 1)
  data = encode(both_SH, format='WAV', subtype='FLOAT')
  expected_S = both_SH[:, np.argmax(both_SH.var(axis=0))]
  np.testing.assert_allclose(
    audio.read(data, notes=notes), expected_S, atol=1e-6
  )
  (note,) = notes
  assert 'was taken instead' in note
  assert f'channel {2 if bits < 1 else 1}' in note


def test_channels_that_do_not_cancel_are_mixed_as_ever():
  for right_S in (0.5 * tone(), -0.5 * tone(), np.zeros(len(tone()))):
    notes, both_SH = [], np.stack([tone(), right_S], 1)
    data = encode(both_SH, format='WAV', subtype='FLOAT')
    read_S = audio.read(data, notes=notes)
    np.testing.assert_allclose(read_S, both_SH.mean(axis=1), atol=1e-6)
    assert notes == []
  # Both silent: nothing is taken for louder.
  data = encode(np.zeros((9000, 2)), format='WAV')
  assert audio.is_silent(audio.read(data, notes=notes))
  assert notes == []


def test_lossy_overshoot_is_scaled_without_a_note():
  square_S = 0.8 * np.sign(tone(1.0))
  data, notes = encode(square_S, format='OGG'), []
  decoded_S, _ = soundfile.read(io.BytesIO(data))
  assert np.abs(decoded_S).max() > 1.05  # so that this shows something
  assert np.abs(audio.read(data, notes=notes)).max() == pytest.approx(1)
  assert [n for n in notes if 'peak' in n] == []


# --- Any length, any file ----------------------------------------------------


@pytest.mark.parametrize('form', ['WAV', 'FLAC', 'OGG', 'MP3'])
@pytest.mark.parametrize('rate', [16_000, 44_100])
def test_blocks_joined_are_the_whole(form, rate, monkeypatch):
  wave_S = tone(4.3, rate)
  both_SH = np.stack([wave_S + 0.2, 0.3 * wave_S], 1)
  data = encode(both_SH, rate, format=form)
  whole_notes, notes = [], []
  whole_S = audio.read(data, notes=whole_notes)
  monkeypatch.setattr(audio, '_BLOCK', 4096)
  blocks = list(audio.blocks(data, block_seconds=0.7, notes=notes))
  assert {len(block_S) for block_S in blocks[:-1]} == {11_200}
  assert 0 < len(blocks[-1]) <= 11_200
  np.testing.assert_array_equal(np.concatenate(blocks), whole_S)
  assert notes == whole_notes != []
  np.testing.assert_array_equal(audio.read(data), whole_S)
  monkeypatch.setattr(audio, '_HELD', 0)  # too long to be kept: decoded twice
  np.testing.assert_array_equal(audio.read(data), whole_S)


def test_a_long_file_takes_no_more_memory_than_a_short_one(tmp_path):
  path = tmp_path / 'long.wav'
  second = (10_000 * tone(1.0)).astype(np.int16)
  peaks = []
  for seconds in (120, 1200):
    with soundfile.SoundFile(path, 'w', RATE, 1, 'PCM_16') as file:
      for _ in range(seconds):
        file.write(second)
    tracemalloc.start()
    count = sum(len(block_S) for block_S in audio.blocks(path, 16_000))
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert count == seconds * RATE
  assert peaks[1] < 1.2 * peaks[0]
  assert peaks[1] < 64 << 20


def test_a_file_of_macos_beside_an_mp3_changes_nothing(tmp_path, monkeypatch):
  """libsndfile takes ._NAME for a part of it, and then reads neither."""
  path = tmp_path / 'a.mp3'
  path.write_bytes(mp3(tone(rate=44_100)))
  expected_S = audio.read(path)
  (tmp_path / '._a.mp3').write_bytes(b'\0\5\x16\7' + bytes(200))
  np.testing.assert_array_equal(audio.read(path), expected_S)


def test_names_decide_nothing(tmp_path):
  data = encode(tone(), format='WAV')
  for name in ('a.raw', 'a.mp3', 'a', 'a [1].wav', 'ä\\b.wav'):
    (tmp_path / name).write_bytes(data)
    assert len(audio.read(tmp_path / name)) == 3 * RATE
  name = os.fsencode(tmp_path) + b'/\xff.wav'
  with open(name, 'wb') as file:
    file.write(data)
  assert len(audio.read(os.fsdecode(name))) == 3 * RATE


def pipe(path):
  os.mkfifo(path)


def device(path):
  path.symlink_to('/dev/zero')


def dangling(path):
  path.symlink_to(path.parent / 'nowhere.wav')


def circle(path):
  path.symlink_to(path)


def folder(path):
  path.mkdir()


UNUSABLE = {
  pipe: r'a pipe \(FIFO\)',
  device: 'a device',
  dangling: r"a link to '.*nowhere\.wav', which does not exist",
  circle: 'cannot be looked at',
  folder: 'is a folder',
}


@pytest.fixture
def ends():
  """A read that never ends is an error, not a test run that never ends."""

  def fail(number, frame):
    raise TimeoutError

  before = signal.signal(signal.SIGALRM, fail)
  signal.alarm(20)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures('ends')
@pytest.mark.parametrize('make', UNUSABLE, ids=lambda make: make.__name__)
def test_what_is_no_regular_file_is_refused_unopened(tmp_path, make):
  path = tmp_path / 'a.wav'
  make(path)
  for reader in (audio.read, lambda source: next(audio.blocks(source))):
    with pytest.raises(audio.BadRecordingError, match=UNUSABLE[make]) as e:
      reader(path)
    assert e.value.name == str(path)
  problems = []
  assert audio.read_usable(path, problems, 'skip') is None
  assert len(problems) == 1


def test_a_file_without_permission_is_a_bad_recording(tmp_path, monkeypatch):
  path = tmp_path / 'a.wav'
  path.write_bytes(encode(tone(), format='WAV'))
  path.chmod(0)
  # Root may read anything: the system's answer to others.
  monkeypatch.setattr(os, 'access', lambda p, mode: False)
  with pytest.raises(audio.BadRecordingError, match='no permission'):
    audio.read(path)
