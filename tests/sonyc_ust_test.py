"""SONYC-UST: the same examples from every layout."""

import io
import logging
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import soundfile
from sonyc_ust_world import (
  CLIPS,
  SIREN,
  WAVS,
  build,
  python,
  raw_records,
  wav,
  write_annotations,
  write_archive,
  write_folder,
)  # fmt: skip

import tfds_dcase.sonyc_ust as sonyc_ust
from tfds_dcase import taxonomy
from tfds_dcase.sonyc_ust import (
  decode,
  gather,
  records,
)


@pytest.fixture
def manual(tmp_path):
  path = tmp_path / 'manual'
  path.mkdir()
  write_annotations(path / 'annotations.csv')
  return path


@pytest.fixture
def logged(caplog):
  """What is logged."""
  caplog.set_level(logging.INFO, logger='tfds_dcase')
  return caplog


# --- What is built -----------------------------------------------------------


def test_features_of_an_example(tmp_path, manual):
  write_folder(manual / 'audio')
  builder = build(tmp_path, manual)
  splits = {s: builder.as_data_source(s) for s in builder.info.splits}
  assert {s: len(d) for s, d in splits.items()} == {'train': 3, 'validate': 2}
  for split, source in splits.items():
    for example in source:
      name = example['clip_id'].decode()
      expected, _ = soundfile.read(io.BytesIO(WAVS[name]), dtype='int16')
      np.testing.assert_array_equal(example['audio'], expected)
      assert example['num_samples'] == 160_000
      assert CLIPS[name] == split == example['split'].decode()
      assert example['sensor_id'] == int(name[:2])
      truth = split == 'validate'
      assert example['has_truth'] == truth
      # Train: siren and non-machinery by one volunteer each; never machinery,
      # though the file says so. Truth: the engine X only.
      assert np.flatnonzero(example['coarse']).tolist() == (
        [0] if truth else [2, 4]
      )
      tags = [] if truth else ['3-1_non-machinery-impact', '5-3_siren']
      assert [taxonomy.FINE[i] for i in np.flatnonzero(example['fine'])] == tags
      assert example['fine_unknown'].tolist() == [int(truth), 0, 0, 0, 0, 0]
      assert example['votes'].shape == example['proximity'].shape == (3, 29)
      assert example['annotator_id'].tolist() == [7, 8, 9]
      assert example['votes'].sum() == 2
      assert example['votes'][0, SIREN] == 1
      code = builder.info.metadata['proximity_code']
      assert code[str(example['proximity'][0, SIREN])] == 'far'
      assert (np.delete(example['proximity'].ravel(), SIREN) == -1).all()
  assert list(builder.info.metadata['coarse']) == list(taxonomy.COARSE)
  assert list(builder.info.metadata['fine']) == list(taxonomy.FINE)


def test_v2_has_time_and_place_and_sets_unverified_clips_apart(tmp_path):
  manual = tmp_path / 'manual'
  manual.mkdir()
  write_annotations(manual / 'annotations.csv', version='v2')
  text = (manual / 'annotations.csv').read_text().splitlines()
  # The truth row of one validate clip is not there, as for most of v2's.
  text = [t for t in text if not t.startswith('validate,2,02_000005.wav,0,')]
  (manual / 'annotations.csv').write_text('\n'.join(text) + '\n')
  write_folder(manual / 'audio')
  builder = build(tmp_path, manual, version='v2')
  sizes = {s: i.num_examples for s, i in builder.info.splits.items()}
  assert sizes == {'train': 3, 'validate': 1, 'validate_unverified': 1}
  (example,) = builder.as_data_source('validate_unverified')
  assert not example['has_truth']
  assert np.flatnonzero(example['coarse']).tolist() == [2, 4]
  keys = ['year', 'week', 'day', 'hour', 'borough', 'block']
  assert [example[k] for k in keys] == [2017, 5, 6, 23, 1, 547]
  assert example['latitude'] == pytest.approx(40.72951, abs=1e-5)
  assert example['longitude'] == pytest.approx(-73.99388, abs=1e-5)


def _flat(path):
  write_folder(path)


def _audio(path):
  write_folder(path / 'audio')


def _by_split(path):
  for name, split in CLIPS.items():
    write_folder(path / 'audio-dev' / split, {name: WAVS[name]})


def _archive(path):
  write_archive(path / 'audio-dev.tar.gz')


def _first_record(path):
  write_archive(path / 'audio.tar.gz', prefix='audio/')


def _many_archives(path):
  for n, name in enumerate(reversed(CLIPS)):
    wavs = {name: WAVS[name]}
    write_archive(path / f'deep/audio-eval-{n}.tar.gz', wavs, './')


def _mixture(path):
  names = list(CLIPS)
  write_folder(path / 'audio-dev/train', {n: WAVS[n] for n in names[:2]})
  write_archive(path / 'audio-dev.tar.gz', {n: WAVS[n] for n in names[1:4]})
  write_archive(path / 'audio.tar.gz', {n: WAVS[n] for n in names[3:]})


def _linked(path):
  """A link to a folder elsewhere, with a link in it that leads back."""
  elsewhere = path.parent / 'elsewhere'
  write_folder(elsewhere)
  (elsewhere / 'back').symlink_to(elsewhere)
  (path / 'audio-dev').symlink_to(elsewhere)


def _mac(path):
  """Apple's tar adds a ._NAME.wav that is no sound."""
  members = [tarfile.TarInfo(f'audio-dev/train/._{n}') for n in CLIPS]
  for info in members:
    info.size = 200
  directory = tarfile.TarInfo('audio-dev')
  directory.type = tarfile.DIRTYPE
  write_archive(path / 'audio-dev.tar.gz', members=[*members, directory])


@pytest.mark.parametrize(
  'layout',
  [_flat, _audio, _by_split, _archive, _first_record, _many_archives, _mixture,
   _linked, _mac],
)  # fmt: skip
def test_every_layout_gives_the_same_records(tmp_path, manual, layout):
  reference = tmp_path / 'reference'
  write_folder(reference / 'audio')
  write_annotations(reference / 'annotations-dev.csv')
  layout(manual)
  got = raw_records(build(tmp_path, manual, 'a'))
  assert got == raw_records(build(tmp_path, reference, 'b', workers=1))
  assert sum(map(len, got.values())) == len(CLIPS)


def test_shards_hold_every_clip_once(tmp_path, manual, monkeypatch):
  monkeypatch.setattr(gather, 'CLIPS_PER_SHARD', 2)
  _archive(manual)
  builder = build(tmp_path, manual)
  assert builder.info.splits['train'].shard_lengths == [2, 1]
  names = [e['clip_id'].decode() for e in builder.as_data_source('train')]
  assert sorted(names) == [n for n, s in CLIPS.items() if s == 'train']
  left = {p.name for p in pathlib.Path(builder.data_dir).iterdir()}
  assert not [name for name in left if 'waiting' in name]


def test_resampling_keeps_a_tone():
  time = np.arange(441_000) / 44_100
  tone = 0.5 * np.sin(2 * np.pi * 1000 * time)
  file = io.BytesIO()
  both = np.stack([tone, 0.5 * tone], axis=1)
  soundfile.write(file, both, 44_100, format='WAV', subtype='PCM_16')
  clip = decode.decode(file.getvalue())
  expected = 0.375 * np.sin(2 * np.pi * 1000 * np.arange(160_000) / 16_000)
  inner = slice(1000, -1000)
  error = clip.audio_S[inner] / 32768 - expected[inner]
  assert np.abs(error).max() < 1e-3
  assert clip.num_samples == 160_000


@pytest.mark.parametrize(
  ('seconds', 'real'), [(9.75, 156_000), (10.25, 160_000)]
)
def test_nearly_ten_seconds_are_padded_or_cut(seconds, real):
  clip = decode.decode(wav(3, seconds))
  assert clip.num_samples == real
  assert len(clip.audio_S) == 160_000
  assert clip.audio_S[:real].any()
  assert not clip.audio_S[real:].any()


def test_without_test_truth_there_is_no_test_split(tmp_path, manual, logged):
  write_archive(manual / 'audio-dev.tar.gz')
  write_archive(manual / 'audio-eval.tar.gz', {}, 'audio-eval/')
  builder = build(tmp_path, manual)
  assert 'test' not in builder.info.splits
  assert 'has no truth for the test split' in logged.text
  assert 'record 3338310 has it' in logged.text


def test_faulty_rows_are_reported_once(tmp_path, manual, logged):
  _audio(manual)
  builder = build(tmp_path, manual)
  found = [r for r in logged.messages if 'rows ship coarse tags' in r]
  assert len(found) == 1
  assert 'v0.4' in found[0]
  # The volunteer row with non-machinery-impact, one a clip.
  assert builder.info.metadata['build']['faulty_rows'] == len(CLIPS)


def test_builder_by_name_and_pickled(tmp_path, manual):
  import tensorflow_datasets as tfds

  _audio(manual)
  builder = tfds.builder('sonyc_ust/v1', data_dir=str(tmp_path / 'data'))
  config = tfds.download.DownloadConfig(manual_dir=manual)
  builder.download_and_prepare(download_config=config)
  again = pickle.loads(pickle.dumps(builder))
  assert len(again.as_data_source('train')) == 3


def test_another_process_writes_the_same_without_tensorflow(tmp_path, manual):
  write_archive(manual / 'audio-dev.tar.gz')
  done = python(
    """
    import sys
    import tfds_dcase.sonyc_ust as sonyc_ust
    builder = sonyc_ust.make_builder(sys.argv[1], manual_dir=sys.argv[2])
    builder.download_and_prepare()
    print(len(builder.as_data_source('train')), 'tensorflow' in sys.modules)
    """,
    tmp_path / 'other',
    manual,
  )
  assert done.stdout.split()[-2:] == ['3', 'False'], done.stderr
  theirs = raw_records(sonyc_ust.make_builder(tmp_path / 'other'))
  assert theirs == raw_records(build(tmp_path, manual))


@pytest.mark.parametrize(
  ('train', 'test', 'split'),
  [
    ('v2', 'v1', 'test'),
    ('v2', 'v1', 'validate'),
    ('sonyc_ust/v2', 'sonyc_ust/v1', 'test'),
    ('v1', 'v2', 'validate'),
  ],
)
def test_mixed_versions_are_refused(train, test, split):
  with pytest.raises(ValueError, match='is refused') as error:
    sonyc_ust.check_mixed_versions(train, test, split)
  assert "v1's clips" in str(error.value)
  assert f'the {split} split' in str(error.value)


def test_builders_of_mixed_versions_are_refused(tmp_path):
  one, two = (sonyc_ust.make_builder(tmp_path, v) for v in ('v1', 'v2'))
  with pytest.raises(ValueError, match='Training on sonyc_ust/v2'):
    sonyc_ust.check_mixed_versions(two, one)
  sonyc_ust.check_mixed_versions(one, one)
  sonyc_ust.check_mixed_versions(two, two, 'validate')
  sonyc_ust.check_mixed_versions(one, two)


def test_records_are_those_published():
  v1, v2 = records.release('v1'), records.release('v2')
  assert [sum(r.num_clips.values()) for r in (v1, v2)] == [3068, 18510]
  md5 = [file.md5 for file in v2.archives]
  assert len(set(md5)) == 19
  assert {len(m) for m in md5} == {32}
  assert v2.url('audio-18.tar.gz') == (
    'https://zenodo.org/record/3966543/files/audio-18.tar.gz'
  )
  for release in (v1, v2):
    for file in release.archives:
      assert records.ARCHIVE_PATTERN.fullmatch(file.name)
