"""Clips of other lengths and rates, from recordings to a tagged file."""

import csv
import json
import re

import jax
import numpy as np
import pytest
import soundfile
from experiments import changed
from folder_test import tone

import iusp_jax
from configs import base
from iusp_jax.data import datasets
from iusp_jax.deploy import export, stream
from iusp_jax.experiment import check, clips, identity, pretrained, run, teacher
from iusp_jax.models import tagger
from iusp_jax.scoring import calibration
from tfds_dcase import folder
from tfds_dcase.clip_format import ClipFormat
from tfds_dcase.urban_scenes import clips as scenes
from tfds_dcase.urban_scenes import mixer

RATE = 22_050  # Of the recordings.
FORMATS = [(3.0, 8_000), (1.0, 44_100), (60.0, 16_000)]


@pytest.fixture(scope='module')
def user_dir(tmp_path_factory):
  """Recordings of low and high tones, of half a second to five seconds."""
  path = tmp_path_factory.mktemp('tones')
  rng = np.random.default_rng(0)
  rows = []
  for k in range(24):
    split, high = ('train', 'train', 'validate', 'test')[k % 4], k // 4 % 2
    wave_S = tone(0.5 + 4.5 * k / 23, RATE, (400, 2_000)[high] + 7 * k)
    wave_S += 0.05 * rng.standard_normal(len(wave_S))
    soundfile.write(path / f'{k}.wav', wave_S, RATE)
    rows.append(f'{k}.wav,{split},{1 - high},{high}')
  (path / 'labels.csv').write_text('\n'.join(['file,split,low,high', *rows]))
  return path


def config_of(user_dir, cache, seconds, rate, **fields):
  """A run of seconds over the recordings."""
  config = base.get_config('folder,smoke')
  builder = {'clip_seconds': seconds, 'sample_rate': rate}
  fields = {f'dataset.builder.{k}': v for k, v in builder.items()} | fields
  for part, bands in (('student', 16), ('teacher', 24)):
    fields |= {
      f'{part}.frontend.max_hertz': min(7_500.0, rate / 2),
      f'{part}.frontend.num_mel_bands': bands,
    }
  with config.unlocked():
    config.student.model = {'architecture': 'crnn', 'width': 4, 'hidden': 6}
  return changed(
    config,
    **{
      'cache_dir': f'{cache}/cache',
      'dataset.data_dir': f'{cache}/data',
      'dataset.manual_dir': str(user_dir),
      'objective.iusp_weight': 10.0,
      'bootstrap': 10,
      'student.training.batch_size': 4,
      'teacher.training.batch_size': 4,
      **fields,
    },
  )


def test_format_is_checked():
  assert ClipFormat().num_samples == 160_000
  assert ClipFormat(1.5, 44_100).num_samples == 66_150
  for seconds in (0.5, 61, float('nan'), '3', True):
    with pytest.raises(ValueError, match=r'clip_seconds=.* from 1 to 60'):
      ClipFormat(seconds)
  with pytest.raises(ValueError, match='sample_rate=22050: must be one of 80'):
    ClipFormat(sample_rate=22_050)


@pytest.mark.parametrize(('seconds', 'rate'), FORMATS)
def test_folder_stores_the_format(tmp_path, user_dir, seconds, rate):
  builder = folder.make_builder(
    tmp_path, user_dir, clip_seconds=seconds, sample_rate=rate
  )
  builder.download_and_prepare()
  size = round(seconds * rate)
  for source in builder.as_data_source().values():
    for example in source:
      wave_S, length = example['audio'], int(example['num_samples'])
      name = example['clip_id'].decode()
      original_S, _ = soundfile.read(user_dir / name)
      expected = min(size, round(len(original_S) * rate / RATE))
      assert wave_S.shape == (size,)
      assert abs(length - expected) <= 1
      assert not wave_S[length:].any()
      peak = np.argmax(np.abs(np.fft.rfft(wave_S.astype(float)[:length])))
      high = example['coarse'][1]
      hertz = (400, 2_000)[high] + 7 * int(name.removesuffix('.wav'))
      assert peak * rate / length == pytest.approx(hertz, abs=3)


def test_default_format_is_no_other_data_set(tmp_path, user_dir):
  def name(**given):
    return folder.make_builder(tmp_path, user_dir, **given).builder_config.name

  same = {'clip_seconds': 10, 'sample_rate': 16_000}
  assert name(**same) == name()
  others = [name(clip_seconds=3), name(sample_rate=8_000)]
  assert len({name(), *others}) == 3
  assert name(clip_seconds=3) == name(clip_seconds=3.0)


def test_identity_has_the_format_where_it_is_another(tmp_path, user_dir):
  def of(seconds, rate):
    config = identity.plain(config_of(user_dir, tmp_path, seconds, rate))
    return identity.fields({'dataset': identity.of_data(config)})

  names = {f'dataset.builder.{x}' for x in ('clip_seconds', 'sample_rate')}
  assert not names & of(10.0, 16_000).keys()
  assert names <= of(3.0, 8_000).keys()


@pytest.mark.parametrize(('seconds', 'rate'), FORMATS)
def test_scenes_of_clips_have_the_format(tmp_path, seconds, rate):
  for k, (tag, hertz) in enumerate((('low', 500), ('high', 2_500))):
    for fold in range(1, 6):
      path = tmp_path / tag / f'{fold}-{k}.wav'
      path.parent.mkdir(exist_ok=True)
      soundfile.write(path, tone(2.0, RATE, hertz + fold), RATE)
  config = scenes.make_config(
    tmp_path, clip_seconds=seconds, sample_rate=rate,
    sources=(1, 1), snr_db=(20, 20),
  )  # fmt: skip
  library = scenes.Library(config)
  for index in range(6):
    example = scenes.scene(config, library, 'validate', index)
    size = round(seconds * rate)
    assert example['audio'].shape == (size,)
    assert example['num_samples'] == size
    power = np.abs(np.fft.rfft(example['audio'].astype(float))) ** 2
    found = np.argmax(power) / seconds
    expected = 2_504 if example['coarse'][0] else 504  # Sorted by name.
    assert found == pytest.approx(expected, abs=3)


@pytest.mark.parametrize('rate', [8_000, 44_100])
def test_levels_of_sounds_compare_as_at_the_default_rate(rate):
  def difference(at):
    low, high = (
      mixer.level_db(tone(2, at, hertz), at) for hertz in (500, 1500)
    )
    return high - low

  assert difference(rate) == pytest.approx(difference(16_000), abs=0.6)


def test_excerpt_is_around_the_loudest_scene(tmp_path):
  wave_S = 0.01 * np.random.default_rng(0).standard_normal(90 * RATE)
  wave_S[70 * RATE : 72 * RATE] += tone(2, RATE, 1_000)
  soundfile.write(tmp_path / 'long.wav', wave_S, RATE)
  for seconds, kept in ((3.0, 30), (60.0, 60)):
    form = ClipFormat(seconds, 8_000)
    found_S = scenes.excerpt(tmp_path / 'long.wav', form=form)
    assert len(found_S) == pytest.approx(kept * 8_000, abs=8)
    loud = np.abs(found_S).reshape(-1, 800).max(1) > 0.3
    assert loud.sum() == pytest.approx(20, abs=2)
    arranged_S = scenes.arrange(np.random.default_rng(0), found_S, form)
    assert len(arranged_S) <= form.num_samples
    assert np.abs(arranged_S).max() > 0.4


@pytest.mark.parametrize('rate', [8_000, 48_000])
def test_front_ends_follow_the_data_set(tmp_path, user_dir, rate):
  config = config_of(user_dir, tmp_path, 10.0, rate)
  for part in ('student', 'teacher'):
    assert config[part].frontend.sample_rate == rate
  check.check(identity.plain(config))
  other = changed(config, **{'student.frontend.sample_rate': 32_000})
  message = f'sample_rate is 32000: expected {rate}, that of folder'
  with pytest.raises(ValueError, match=message):
    check.check(identity.plain(other))


def test_bands_above_half_of_the_rate_are_refused(tmp_path, user_dir):
  fields = {'student.frontend.max_hertz': 7_500.0}
  config = changed(config_of(user_dir, tmp_path, 3.0, 8_000), **fields)
  message = (
    'config.student.frontend.max_hertz is 7500: expected at most 4000 Hz, half '
    "of the data set's sample_rate, 8000; set "
    '--config.student.frontend.max_hertz=4000'
  )
  with pytest.raises(ValueError, match=re.escape(message)):
    check.check(identity.plain(config))
  both = changed(config, **{'teacher.frontend.max_hertz': 7_500.0})
  with pytest.raises(ValueError, match=r'set --config.stud.* --config.teach'):
    check.check(identity.plain(both))


def test_pretrained_teacher_takes_the_rate(tmp_path, user_dir):
  fields = {'teacher.pretrained': 'mn01_as'}
  config = config_of(user_dir, tmp_path, 1.0, 44_100, **fields)
  # Its own front end counts, not that of a teacher that would be trained.
  config = changed(config, **{'teacher.frontend.max_hertz': 24_000.0})
  config = identity.plain(config)
  check.check(config)
  model = tagger.build(pretrained.recipe(config), 2)
  assert model.frontend.sample_rate == 44_100
  num_samples = datasets.format_of(config['dataset']).num_samples
  output = jax.eval_shape(
    lambda variables: tagger.apply(
      model,
      variables,
      tagger.log_mel(model, np.zeros((1, num_samples), np.int16)),
    ),
    model.shapes(num_samples),
  )
  # 100 log-mel frames of one second, four of .32 s.
  assert output.frames_BTD.shape[1] == 4
  timing = tagger.given_timing(model)
  assert timing.edges(4)[1][-1] == pytest.approx(3 * 0.32 + 0.16)


@pytest.fixture(scope='module', params=FORMATS)
def trained(request, user_dir, tmp_path_factory):
  """Config, workdir and record of a distilled student."""
  seconds, rate = request.param
  folder = tmp_path_factory.mktemp(f'{seconds:g}-{rate}')
  config = config_of(user_dir, folder, seconds, rate)
  record = run.run(config, folder / 'run')
  return config, folder / 'run', record


@pytest.mark.slow
def test_run_tags_streams_and_exports_what_it_was_trained_on(
  trained, user_dir, tmp_path
):
  config, workdir, record = trained
  builder = config.dataset.builder
  size = round(builder.clip_seconds * builder.sample_rate)
  of = json.loads((workdir / 'model.json').read_text())
  assert of['num_samples'] == size
  assert of['frontend']['sample_rate'] == builder.sample_rate
  assert np.isfinite(record['student']['best']['test']['coarse']['macro_auprc'])

  loaded = iusp_jax.load(str(workdir))
  assert loaded.sample_rate == builder.sample_rate
  assert loaded.window_seconds == builder.clip_seconds
  # Tagging and streaming a clip give what it was scored by.
  split = datasets.load(identity.plain(config)['dataset']).splits['test']
  with (workdir / 'predictions_test.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  for k, row in enumerate(rows):
    wave_S = datasets.read_clip(split, k)['wave']
    scores_C = np.array([float(row[tag]) for tag in loaded.names])
    expected_C = loaded.calibration.probabilities(calibration.logit(scores_C))
    found = loaded(wave_S, loaded.sample_rate)
    np.testing.assert_allclose(found.probabilities_C, expected_C, atol=1e-3)
  listener = stream.Listener(loaded)
  assert listener.sample_rate == builder.sample_rate
  parts = np.array_split(wave_S, 7)
  frames = [listener(part_S)[1] for part_S in parts] + [listener.finish()[1]]
  np.testing.assert_allclose(
    listener.stream.pool(np.concatenate(frames)), expected_C, atol=1e-3
  )

  export.run(str(workdir), str(tmp_path / 'export'))
  exported = json.loads((tmp_path / 'export/config.json').read_text())
  assert exported['sample_rate'] == builder.sample_rate
  assert exported['clip_samples'] == size


@pytest.mark.slow
def test_clips_are_written_in_the_format(trained, tmp_path):
  config, _, _ = trained
  clips.write(config, tmp_path, False)
  of = json.loads((tmp_path / 'clips.json').read_text())
  builder = config.dataset.builder
  assert of['sample_rate'] == builder.sample_rate
  for path in tmp_path.rglob('*.wav'):
    info = soundfile.info(path)
    assert info.samplerate == builder.sample_rate
    assert info.frames == of['num_samples']
    assert info.frames == round(builder.clip_seconds * builder.sample_rate)


@pytest.mark.slow
def test_checkpoint_of_another_rate_is_no_teacher(trained, user_dir, tmp_path):
  config, workdir, _ = trained
  rate = 48_000
  named = {'teacher.checkpoint': str(workdir)}
  other = identity.plain(config_of(user_dir, tmp_path, 1.0, rate, **named))
  dataset = datasets.load(other['dataset'])
  own = config.dataset.builder.sample_rate
  with pytest.raises(ValueError, match=f'sound of {own} Hz: expected .*48000'):
    teacher.get_or_train(other, dataset)
