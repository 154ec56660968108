"""Tests of the urban scenes: sources, mixing, votes, folders, builders."""

import pickle
import sys
import types

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import base
from tfds_dcase import taxonomy, urban_scenes
from tfds_dcase.urban_scenes import clips, mixer, procedural, recordings
from tfds_dcase.urban_scenes import settings as settings_lib
from tfds_dcase.urban_scenes.synthesis import SOURCES, ambience, dsp

SMALL = {'train_scenes': 6, 'validate_scenes': 3, 'test_scenes': 3}


def generator(seed=0):
  return np.random.default_rng(seed)


# --- sources --------------------------------------------------------------


def test_every_fine_tag_has_a_source():
  assert set(taxonomy.FINE) <= set(SOURCES)


@pytest.mark.parametrize('name', list(SOURCES))
def test_a_source_sounds_and_depends_on_its_generator_alone(name):
  for num_samples in (32000, 80001):
    first_S = SOURCES[name](generator(3), num_samples)
    assert first_S.shape == (num_samples,)
    assert np.isfinite(first_S).all()
    assert np.std(first_S) > 1e-3
    np.testing.assert_array_equal(
      first_S, SOURCES[name](generator(3), num_samples)
    )
  assert not np.array_equal(first_S, SOURCES[name](generator(4), 80001))


@pytest.mark.parametrize('source', ambience.UNTAGGED)
def test_untagged_sounds_sound(source):
  wave_S = source(generator(1), 160000)
  assert wave_S.shape == (160000,)
  assert np.isfinite(wave_S).all()
  assert np.abs(wave_S).max() > 1e-3


def periodicity(wave_S, shortest):
  """Highest autocorrelation of the envelope beyond the shortest lag."""
  envelope = np.abs(wave_S)[: len(wave_S) // 160 * 160].reshape(-1, 160).mean(1)
  envelope = envelope - envelope.mean()
  spectrum = np.abs(np.fft.rfft(envelope, 2 * len(envelope))) ** 2
  correlation = np.fft.irfft(spectrum)[: len(envelope) // 2]
  return (correlation / correlation[0])[int(shortest * 100) :].max()


@pytest.mark.parametrize(
  'name', ['5-4_reverse-beeper', '2-4_pile-driver', '5-2_car-alarm']
)
def test_repetitive_sources_repeat(name):
  shortest = 0.12
  scores = [
    periodicity(SOURCES[name](generator(s), 128000), shortest) for s in range(5)
  ]
  noise = periodicity(dsp.noise(generator(), 128000), shortest)
  assert np.median(scores) > 0.5 > noise


def test_harmonics_are_where_the_pitch_says_and_do_not_alias():
  wave_S = dsp.harmonics(generator(), np.full(16000, 1000.0), tilt=0.5)
  power = np.abs(np.fft.rfft(wave_S)) ** 2
  at_harmonics = power[1000:8000:1000].sum()
  assert at_harmonics > 0.98 * power.sum()


def test_band_keeps_and_removes():
  time_S = np.arange(16000) / 16000
  low_S, high_S = (np.sin(2 * np.pi * f * time_S) for f in (200, 6000))
  kept_S = dsp.band(low_S + high_S, 0, 800)[4000:]
  assert np.abs(kept_S - low_S[4000:]).max() < 0.5
  assert dsp.band(high_S, 0, 800)[4000:].std() < 0.03
  assert dsp.band(low_S, 2000, 7900)[4000:].std() < 0.1


def test_place_adds_and_cuts():
  event = np.array([1.0, 2.0], np.float32)
  placed = dsp.place(4, [event, event, event], [0, 1, 3], [1, 1, 10])
  np.testing.assert_array_equal(placed, [1, 3, 2, 10])
  np.testing.assert_array_equal(dsp.place(4, [event], [4]), np.zeros(4))


def test_coloured_noise_has_its_slope():
  wave_S = ambience.coloured_noise(generator(), 160000, 2.0, (1e3, 1.0, 0.0))
  power = np.abs(np.fft.rfft(wave_S)) ** 2
  low, high = power[5000:10000].mean(), power[40000:80000].mean()
  # Three octaves at 6 dB an octave: a factor of 64.
  assert 10 * np.log10(low / high) == pytest.approx(18.06, abs=0.5)
  assert np.mean(np.square(wave_S)) == pytest.approx(1.0, rel=1e-4)


# --- mixing ---------------------------------------------------------------


@given(st.floats(-20, 20), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_level_follows_gain_and_energy(gain_db, seed):
  wave_S = dsp.noise(generator(seed), 16000)
  level = mixer.level_db(wave_S)
  louder_S = wave_S * np.float32(10 ** (gain_db / 20))
  assert mixer.level_db(louder_S) == pytest.approx(level + gain_db, abs=0.01)
  # The same energy over three times the time: a third of the power.
  gaps_S = np.concatenate([wave_S, np.zeros(32000, np.float32)])
  assert mixer.level_db(gaps_S) == pytest.approx(level - 4.771, abs=0.01)
  # Below a second, only the energy counts.
  halved = mixer.level_db(wave_S[:8000]) - mixer.level_db(wave_S[:4000])
  assert halved == pytest.approx(3.01, abs=0.3)


@pytest.mark.parametrize('snr_db', [-6.0, 0.0, 12.0])
def test_mix_reaches_the_snr(snr_db):
  noise_S = 0.3 * dsp.noise(generator(1), 32000)
  source_S = 5 * dsp.noise(generator(2), 16000)
  mixed_S = mixer.mix(noise_S, [(source_S, 4000, snr_db)], -40)
  alone_S = mixer.mix(noise_S, [], -40)
  added_S = (mixed_S - alone_S)[4000:20000]
  found = mixer.level_db(added_S) - mixer.level_db(alone_S)
  assert found == pytest.approx(snr_db, abs=0.05)
  assert np.sqrt(np.mean(alone_S**2)) == pytest.approx(0.01, rel=1e-3)


def test_mix_never_clips():
  noise_S = dsp.noise(generator(1), 32000)
  click_S = np.eye(1, 4000, dtype=np.float32)[0]
  mixed_S = mixer.mix(noise_S, [(click_S, 31999, 60.0)], -10)
  assert np.abs(mixed_S).max() <= 0.951


def test_farther_is_duller():
  wave_S = dsp.noise(generator(), 32000)

  def brightness(distance):
    power = np.abs(np.fft.rfft(mixer.carry(generator(), wave_S, distance))) ** 2
    return power[8000:].sum() / power.sum()

  assert brightness(0.0) > 2 * brightness(0.5) > 4 * brightness(1.0)


# --- procedural scenes ----------------------------------------------------


def config(**changes):
  return settings_lib.ProceduralConfig(name='test', **changes)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_scene_has_as_many_columns_as_asked(seed, low, more):
  columns = procedural.draw_columns(generator(seed), (low, low + more))
  assert low <= len(columns) <= low + more
  assert len(set(columns)) == len(columns)


def test_tag_frequencies_have_the_shape_of_sonyc():
  rng = generator()
  counts = np.zeros(8)
  for _ in range(3000):
    drawn = procedural.draw_columns(rng, (1, 4))
    counts[np.unique(taxonomy.COARSE_OF_COLUMN[drawn])] += 1
  sonyc = np.array([1269, 634, 276, 244, 549, 125, 778, 151]) / 2351
  found = counts / 3000
  # Music is kept above its 5 %, so that every fine tag of it occurs.
  np.testing.assert_allclose(found, sonyc, atol=0.08)
  assert np.corrcoef(found, sonyc)[0, 1] > 0.97


def test_a_scene_depends_on_seed_split_and_index_alone():
  first = procedural.scene(config(), 'train', 5)
  again = procedural.scene(config(train_scenes=7), 'train', 5)
  for name, value in first.items():
    np.testing.assert_array_equal(value, again[name])
  for other in (
    procedural.scene(config(seed=1), 'train', 5),
    procedural.scene(config(), 'train', 6),
    procedural.scene(config(), 'test', 5),
  ):
    assert not np.array_equal(first['audio'], other['audio'])


@pytest.mark.parametrize('index', range(6))
def test_scenes_are_neither_silent_nor_clipped(index):
  audio_S = procedural.scene(config(), 'validate', index)['audio']
  assert audio_S.shape == (160000,)
  assert audio_S.dtype == np.int16
  assert 100 < np.abs(audio_S.astype(int)).max() < 32000
  by_second = audio_S.astype(float).reshape(10, 16000).std(axis=1)
  assert by_second.min() > 5


@pytest.mark.parametrize('split', procedural.SPLITS)
def test_tags_are_the_aggregate_of_the_votes(split):
  for index in range(4):
    example = procedural.scene(config(), split, index)
    votes_AQ = example['votes']
    assert votes_AQ.shape == (3, 29)
    present_Q = (votes_AQ == 1).any(axis=0)
    fine, unknown = (
      present_Q[~taxonomy.IS_UNKNOWN],
      present_Q[taxonomy.IS_UNKNOWN],
    )
    np.testing.assert_array_equal(example['fine'], fine)
    np.testing.assert_array_equal(example['fine_unknown'], unknown)
    coarse = [
      any(present_Q[q] for q in range(29) if taxonomy.COARSE_OF_COLUMN[q] == c)
      for c in range(8)
    ]
    np.testing.assert_array_equal(example['coarse'], coarse)
    if split != 'train':
      assert (votes_AQ == votes_AQ[0]).all()


ANNOTATOR = types.SimpleNamespace(
  detect_half_db=-5.0, confusion=0.2, unknown=0.1
)


def vote_many(column, snr_db, annotator=ANNOTATOR, count=4000):
  rng = generator(7)
  return [procedural.vote(rng, column, snr_db, annotator) for _ in range(count)]


def test_votes_miss_weak_sounds_and_confuse_within_a_class():
  jackhammer = taxonomy.FINE_COLUMNS.index('2-2_jackhammer')
  missed = [
    vote_many(jackhammer, snr_db).count(None) / 4000 for snr_db in (-15, -5, 5)
  ]
  # The logistic law: 1 / (1 + exp((snr + 5) / 5)).
  np.testing.assert_allclose(missed, [0.8808, 0.5, 0.1192], atol=0.025)
  votes = vote_many(jackhammer, 60.0)
  names = {taxonomy.FINE_COLUMNS[v][0] for v in votes}
  assert names == {'2'}
  share = np.bincount(votes, minlength=29) / 4000
  assert share[jackhammer] == pytest.approx(0.7, abs=0.025)
  assert share[taxonomy.IS_UNKNOWN].sum() == pytest.approx(0.1, abs=0.025)
  assert (share > 0).sum() == 5  # four fine tags and the X


def test_a_class_of_one_tag_cannot_be_confused():
  dog = taxonomy.FINE_COLUMNS.index('8-1_dog-barking-whining')
  assert set(vote_many(dog, 60.0)) == {dog}


# --- folders of recordings ------------------------------------------------


def test_tag_names_lose_their_number():
  assert recordings.tag_names(['001 - Dog bark', '2-Rain', '3_saw']) == {
    '001 - Dog bark': 'Dog bark',
    '2-Rain': 'Rain',
    '3_saw': 'saw',
  }
  for kept in (['1 - dog', '2 - Dog'], ['808', '4x4'], ['2-stroke', 'dog']):
    assert recordings.tag_names(kept) == {f: f for f in kept}


@pytest.mark.parametrize(
  ('path', 'expected'),
  [
    ('x/1-28135-A.ogg', '1-28135'),
    ('x/1-28135-B.ogg', '1-28135'),
    ('bark12b.wav', 'bark12'),
    ('bark_12_b.wav', 'bark_12'),
    ('door.wav', 'door'),
    ('A.wav', 'a'),
  ],
)
def test_takes_share_an_original(path, expected):
  assert recordings.original(path) == expected


def listing(names, tags=('dog', 'rain')):
  return [recordings.Recording(f'{t}/{n}', t, 1) for t in tags for n in names]


def test_folds_in_names_decide():
  names = [f'{f}-{100 + f}-{t}.ogg' for f in range(1, 6) for t in 'AB']
  result = recordings.assign_splits(listing(names), 2, 3)
  for recording in result:
    fold = recording.path.split('/')[1][0]
    expected = {'2': 'validate', '3': 'test'}.get(fold, 'train')
    assert recording.split == expected


@given(st.sets(st.integers(0, 9999), min_size=1, max_size=30))
@settings(deadline=None)
def test_hashed_folds_keep_takes_together_and_never_move(numbers):
  names = [f'r{n}{take}.wav' for n in sorted(numbers) for take in 'ab']
  for split_by in ('hash', 'balanced'):
    fold_N = recordings.folds(listing(names), split_by)
    by_original = {}
    for recording, fold in zip(listing(names), fold_N, strict=True):
      key = recordings.original(recording.path)
      assert by_original.setdefault(key, fold) == fold
    assert set(fold_N) <= {1, 2, 3, 4, 5}
  alone = recordings.folds(listing(names[:1]), 'hash')
  assert alone[0] == recordings.folds(listing(names), 'hash')[0]


@given(st.sets(st.integers(0, 9999), min_size=3, max_size=12))
@settings(deadline=None)
def test_balanced_folds_reach_every_split(numbers):
  names = [f'r{n}.wav' for n in numbers]
  result = recordings.assign_splits(listing(names), 4, 5, 'balanced')
  assert recordings.absent(result) == []


def test_wrong_folds_are_refused():
  names = [f'{f}-1{f}-A.ogg' for f in (1, 2, 4)]
  with pytest.raises(ValueError, match=r'test_fold=5: .* \[1, 2, 4\]'):
    recordings.assign_splits(listing(names))
  with pytest.raises(ValueError, match='both 4'):
    recordings.assign_splits(listing(names), 4, 4)
  with pytest.raises(ValueError, match="split_by='fold', but 2 of 2"):
    recordings.folds(listing(['a.wav']), 'fold')
  only = [recordings.Recording('dog/3-1.ogg', 'dog', 1)]
  with pytest.raises(ValueError, match="'cat' in train"):
    recordings.assign_splits(
      [*listing(names), *listing(names[1:], ['cat']), *only], 2, 4
    )


def test_a_class_without_a_split_is_told_folds_that_would_do():
  few = [recordings.Recording(f'cat/{f}-1.ogg', 'cat', 1) for f in (1, 2, 3)]
  many = listing([f'{f}-2.ogg' for f in range(1, 6)])
  with pytest.raises(ValueError, match='validate_fold=1, test_fold=2 would do'):
    recordings.assign_splits(many + few)


@pytest.fixture
def clip_dir(tmp_path):
  """Two classes of five recordings of many kinds, beside other files."""
  path = tmp_path / 'clips'
  rng = generator(5)
  for number, tag in enumerate(('1 - tone', '2 - hiss')):
    (path / tag).mkdir(parents=True)
    for fold in range(1, 6):
      rate = (8000, 16000, 44100)[fold % 3]
      seconds = (0.1, 0.4, 6.0, 1.0, 12.0)[fold - 1]
      size = int(rate * seconds)
      pitch = 300 + 100 * fold
      wave = np.sin(2 * np.pi * pitch * np.arange(size) / rate)
      wave = wave if number == 0 else rng.standard_normal(size)
      name = f'{fold}-{10 * number + fold}-A'
      kind = ('wav', 'flac')[fold % 2]
      soundfile.write(path / tag / f'{name}.{kind}', 0.3 * wave, rate)
    (path / tag / 'notes.txt').write_text('x')
  (path / 'README.md').write_text('no recording')
  (path / '.hidden').mkdir()
  return path


def test_lists_what_is_a_recording(clip_dir):
  found = recordings.list_recordings(clip_dir)
  assert len(found) == 10
  assert {r.tag for r in found} == {'tone', 'hiss'}
  assert all((clip_dir / r.path).stat().st_size == r.size for r in found)
  # Known to be a recording, though none that can be read: refused later.
  (clip_dir / '1 - tone/1-7-A.m4a').write_bytes(b'x')
  with pytest.raises(ValueError, match=r'1-7-A\.m4a.*use WAV'):
    clips.Library(clips.make_config(clip_dir))


def test_folders_without_use_are_refused(tmp_path, clip_dir):
  with pytest.raises(ValueError, match='manual_dir is not set'):
    urban_scenes.make_builder(tmp_path, 'clips')
  with pytest.raises(ValueError, match='no such folder'):
    urban_scenes.make_builder(tmp_path, 'clips', tmp_path / 'nowhere')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(ValueError, match='no recordings in its 0 folders'):
    urban_scenes.make_builder(tmp_path, 'clips', tmp_path / 'empty')
  (clip_dir / 'third').mkdir()
  with pytest.raises(ValueError, match='no recordings in third'):
    urban_scenes.make_builder(tmp_path, 'clips', clip_dir)
  (clip_dir / 'third').rmdir()
  (clip_dir / '2 - hiss').rename(tmp_path / 'away')
  with pytest.raises(ValueError, match="'1 - tone' is the only class"):
    urban_scenes.make_builder(tmp_path, 'clips', clip_dir)


def test_clip_scenes_use_only_their_split(clip_dir):
  made = clips.make_config(clip_dir, sources=(1, 1), **SMALL)
  library = clips.Library(made)
  used = {'train': set(), 'validate': set(), 'test': set()}
  decode = library.wave
  for split, paths in used.items():
    library.wave = lambda path, p=paths: p.add(path) or decode(path)
    for index in range(40):
      clips.scene(made, library, split, index)
  folds = {s: {p.split('/')[1][0] for p in paths} for s, paths in used.items()}
  assert folds == {'train': {'1', '2', '3'}, 'validate': {'4'}, 'test': {'5'}}


def test_clip_scenes_hold_the_sound_of_their_tag(clip_dir):
  made = clips.make_config(clip_dir, sources=(1, 1), snr_db=(20, 20), **SMALL)
  library = clips.Library(made)
  assert made.classes == ('hiss', 'tone')
  for index in range(8):
    example = clips.scene(made, library, 'validate', index)
    power = np.abs(np.fft.rfft(example['audio'].astype(float))) ** 2
    peak = 6980 < np.argmax(power) < 7020  # fold 4: 700 Hz, ten seconds
    assert example['coarse'].tolist() == [int(not peak), int(peak)]


@given(st.integers(200, 40 * 16000), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_arranged_sounds_fit_a_scene(length, seed):
  wave_S = np.zeros(length, np.float32)
  wave_S[length // 3 : length // 3 + 50] = np.tile([1, -1], 25)  # of mean 0
  arranged_S = clips.arrange(generator(seed), wave_S)
  assert 1 <= len(arranged_S) <= 160000
  assert arranged_S.max() == 1


def test_the_same_sound_in_two_splits_is_refused(clip_dir):
  first = clip_dir / '1 - tone/1-1-A.flac'
  (clip_dir / '1 - tone/5-77-A.flac').write_bytes(first.read_bytes())
  with pytest.raises(ValueError, match='the same sound'):
    clips.Library(clips.make_config(clip_dir))
  library = clips.Library(clips.make_config(clip_dir, on_bad_recording='skip'))
  assert len(library.problems) == 1


def test_bad_clips_stop_or_are_skipped(clip_dir):
  silent = clip_dir / '1 - tone/1-1-A.flac'
  soundfile.write(silent, np.zeros(1600), 16000)
  with pytest.raises(ValueError, match=r'1-1-A.*silent'):
    clips.Library(clips.make_config(clip_dir))
  library = clips.Library(clips.make_config(clip_dir, on_bad_recording='skip'))
  assert '1-1-A' in library.summary(10)
  soundfile.write(clip_dir / '1 - tone/4-4-A.wav', np.zeros(1600), 16000)
  with pytest.raises(ValueError, match="'tone', 'validate'"):
    clips.Library(clips.make_config(clip_dir, on_bad_recording='skip'))


# --- builders -------------------------------------------------------------


def read_all(builder):
  source = builder.as_data_source()
  return {s: sorted(v, key=lambda e: e['clip_id']) for s, v in source.items()}


def test_builds_procedural_scenes_without_tensorflow(tmp_path):
  builder = urban_scenes.make_builder(tmp_path, workers=2, **SMALL)
  builder.download_and_prepare()
  read = read_all(builder)
  assert {s: len(v) for s, v in read.items()} == {
    'train': 6,
    'validate': 3,
    'test': 3,
  }
  for split, examples in read.items():
    for index, example in enumerate(examples):
      expected = procedural.scene(builder.builder_config, split, index)
      assert example.keys() == expected.keys()
      assert example['clip_id'].decode() == f'{split}_{index:06d}.wav'
      for name in set(expected) - {'clip_id'}:
        np.testing.assert_array_equal(example[name], expected[name])
  assert builder.info.metadata['coarse'] == list(taxonomy.COARSE)
  assert builder.info.metadata['fine'] == list(taxonomy.FINE)
  assert builder.info.citation
  assert builder.info.redistribution_info.license
  assert 'tensorflow' not in sys.modules


def test_tfds_finds_the_variants_by_name(tmp_path, clip_dir):
  builder = tfds.builder('urban_scenes/procedural', data_dir=tmp_path)
  assert builder.data_path == urban_scenes.make_builder(tmp_path).data_path
  assert builder.builder_config.name == 'procedural'
  builder = tfds.builder(
    'urban_scenes/clips', data_dir=tmp_path, manual_dir=clip_dir, **SMALL
  )
  builder.download_and_prepare(file_format='array_record')
  again = tfds.builder(
    f'urban_scenes/{builder.builder_config.name}', data_dir=tmp_path
  )
  assert again.info.metadata['coarse'] == ['hiss', 'tone']
  read = read_all(again)
  assert len(read['train']) == 6
  assert set(read['train'][0]) == {'audio', 'num_samples', 'clip_id', 'coarse'}
  copy = pickle.loads(pickle.dumps(builder))
  assert copy.data_path == builder.data_path


def test_workers_do_not_change_the_scenes(tmp_path, clip_dir):
  one, four = (
    urban_scenes.make_builder(
      tmp_path / str(w), 'clips', clip_dir, workers=w, **SMALL
    )
    for w in (1, 4)
  )
  for builder in (one, four):
    builder.download_and_prepare()
  for first, second in zip(
    read_all(one)['train'], read_all(four)['train'], strict=True
  ):
    np.testing.assert_array_equal(first['audio'], second['audio'])
    np.testing.assert_array_equal(first['coarse'], second['coarse'])


def test_other_settings_or_files_other_place(tmp_path, clip_dir):
  def place(variant='clips', folder=clip_dir, **given):
    return urban_scenes.make_builder(
      tmp_path, variant, folder, **given
    ).data_path

  places = [
    place(),
    place(seed=1),
    place(validate_fold=1),
    place('procedural', None),
    place('procedural', None, train_scenes=400),
    place('procedural', None, snr_db=(0, 12)),
  ]
  assert len(set(places)) == len(places)
  assert place('procedural', None, train_scenes=1200.0) == places[3]
  assert place('procedural', None, snr_db=[0.0, 12]) == places[5]
  moved = clip_dir.rename(tmp_path / 'moved')
  assert place(folder=moved) == places[0]
  soundfile.write(moved / '1 - tone/1-99-A.wav', np.ones(999) * 0.1, 16000)
  assert place(folder=moved) != places[0]


def test_a_replaced_recording_of_equal_size_is_noticed(tmp_path, clip_dir):
  def place():
    return urban_scenes.make_builder(tmp_path, 'clips', clip_dir).data_path

  before = place()
  path = clip_dir / '1 - tone/4-4-A.wav'
  sound = bytearray(path.read_bytes())
  sound[-2] ^= 1
  path.write_bytes(sound)
  assert place() != before


def test_what_is_passed_over_or_left_out_is_said(tmp_path, clip_dir, caplog):
  soundfile.write(clip_dir / '1 - tone/1-1-A.flac', np.zeros(1600), 16000)
  builder = urban_scenes.make_builder(
    tmp_path, 'clips', clip_dir, on_bad_recording='skip', **SMALL
  )
  builder.download_and_prepare()
  said = '\n'.join(caplog.messages)
  assert '2 files of the class folders are no recordings: 1 - tone/n' in said
  assert '1 of 10 recordings left out: ' in said
  kept = (builder.data_path / 'notes.txt').read_text()
  assert '1-1-A' in kept
  assert '2 - hiss/notes.txt' in kept
  assert 'README' not in kept


@pytest.mark.parametrize(
  ('given_settings', 'message'),
  [
    ({'train_scene': 4}, 'did you mean train_scenes'),
    ({'validate_fold': 4}, 'unknown setting'),
    ({'train_scenes': 0}, 'at least 1'),
    ({'train_scenes': 1.5}, 'a whole number'),
    ({'train_scenes': 'many'}, 'a number'),
    ({'seed': -1}, 'seed=-1'),
    ({'snr_db': 3}, 'a pair'),
    ({'snr_db': (1, 2, 3)}, 'a pair'),
    ({'snr_db': (5, 1)}, 'must not be greater'),
    ({'snr_db': (0, float('nan'))}, 'a number'),
    ({'snr_db': (0, 90)}, 'within -60 and 60'),
    ({'sources': (0, 2)}, 'at least 1 source'),
    ({'sources': (1, 20)}, 'at most 8'),
    ({'confusion': 0.9}, 'confusion=0.9'),
    ({'variant': 'clip'}, "'procedural' or 'clips'"),
    ({'manual_dir': '/tmp'}, 'only for clips'),
  ],
)
def test_senseless_settings_are_refused(tmp_path, given_settings, message):
  with pytest.raises(ValueError, match=message):
    urban_scenes.make_builder(tmp_path, **given_settings)


@pytest.mark.parametrize(
  ('argument', 'name'),
  [
    ('', 'procedural'),
    ('demo', 'procedural_a257e7e8'),
    ('smoke', 'procedural_e5e7a568'),
  ],
)
def test_configs_name_the_scenes_that_were_prepared(tmp_path, argument, name):
  """What was prepared, and the teachers trained on it, stay in use."""
  config = base.get_config(argument).dataset
  made = urban_scenes.make_builder(tmp_path, **config.builder)
  assert made.builder_config.name == name


def test_configs_have_the_builders_own_defaults(tmp_path, clip_dir):
  for argument, variant, folder in (
    ('', 'procedural', None),
    ('clips', 'clips', clip_dir),
  ):
    given = base.get_config(argument).dataset.builder
    # Two classes: fewer than the scenes' default of up to four sources.
    places = [
      urban_scenes.make_builder(tmp_path, variant, folder, **each).data_path
      for each in (given, {}, {**given, 'snr_db': (0, 12)})
    ]
    assert places[0] == places[1] != places[2]


def test_more_classes_than_there_are_is_refused(tmp_path, clip_dir):
  with pytest.raises(ValueError, match='only 2 classes'):
    urban_scenes.make_builder(tmp_path, 'clips', clip_dir, sources=(1, 3))


@pytest.mark.slow
def test_esc10_mixes(tmp_path, esc10_dir):
  builder = urban_scenes.make_builder(tmp_path, 'clips', esc10_dir, **SMALL)
  made = builder.builder_config
  assert len(made.classes) == 10
  assert len(made.recordings) == 400
  assert [r.split for r in made.recordings].count('test') == 80
  builder.download_and_prepare()
  assert len(read_all(builder)['test']) == 3
