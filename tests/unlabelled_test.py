"""Recordings without labels: unknown is not absent, and students agree."""

import csv
import json
import re

import numpy as np
import pytest
import soundfile
from clip_formats_test import RATE, tone
from experiments import changed
from pretrained_test import NAME
from pretrained_test import weights as weights

from configs import base, kd
from iusp_jax.data import datasets, sources
from iusp_jax.experiment import check, grid, identity, run, teacher
from iusp_jax.objectives import losses
from iusp_jax.training import evaluate
from tfds_dcase import folder
from tfds_dcase.folder import labels

TAGS = ('low', 'high')


def write_recordings(path, count=24):
  """Tones, of which every other is high; which split they go to."""
  path.mkdir()
  rng = np.random.default_rng(0)
  for k in range(count):
    wave_S = tone(1.0, RATE, (400, 2_000)[k % 2] + 7 * k)
    wave_S += 0.05 * rng.standard_normal(len(wave_S))
    soundfile.write(path / f'{k:02}.wav', wave_S, RATE)
  splits = ('train', 'train', 'validate', 'validate', 'test', 'test')
  return {f'{k:02}.wav': splits[k % 6] for k in range(count)}


def write_labels(path, header, rows):
  (path / 'labels.csv').write_text('\n'.join([header, *rows]) + '\n')


@pytest.fixture
def place(tmp_path):
  return tmp_path / 'recordings', write_recordings(tmp_path / 'recordings')


def read(path, tags=TAGS):
  found = labels.read(path, tags)
  return dict(zip(found.files, found.tags_NC.tolist(), strict=True))


def test_rows_that_are_not_labelled_are_unknown(place):
  path, splits = place
  rows = [
    f'{file},{split},{k % 3 != 0 or split != "train":d},{1 - k % 2},{k % 2}'
    for k, (file, split) in enumerate(splits.items())
  ]
  write_labels(path, 'file,split,labelled,low,high', rows)
  found = read(path)
  for k, (file, split) in enumerate(splits.items()):
    known = [1 - k % 2, k % 2]
    unknown = k % 3 == 0 and split == 'train'
    assert found[file] == ([-1, -1] if unknown else known)


def test_order_and_missing_columns(place):
  path, splits = place
  rows = [f'{f},{s},{k % 2}' for k, (f, s) in enumerate(splits.items())]
  write_labels(path, 'file,split,high', rows)
  assert read(path)['01.wav'] == [-1, 1]
  assert read(path, ('high', 'low'))['01.wav'] == [1, -1]
  write_labels(path, 'file,split', [f'{f},{s}' for f, s in splits.items()])
  assert {tuple(tags) for tags in read(path).values()} == {(-1, -1)}
  rows = [f'{f},{s},high' for f, s in splits.items()]
  write_labels(path, 'file,split,tags', rows)
  assert read(path)['00.wav'] == [0, 1]


@pytest.mark.parametrize(
  ('header', 'row', 'message'),
  [
    ('file,split,hihg', '1', r"'hihg' is not in dataset.builder.tags.*'high'"),
    ('file,split,labelled,high', 'x,1', r"labelled='x'; must be 0 or 1"),
    ('file,split,labelled', '1', r'line 2: labelled is 1, but there is no col'),
  ],
)
def test_wrong_labels_are_refused(place, header, row, message):
  path, splits = place
  write_labels(path, header, [f'{f},{s},{row}' for f, s in splits.items()])
  with pytest.raises(ValueError, match=message):
    read(path)


def test_a_scored_split_has_all_labels_or_none(place):
  path, splits = place
  rows = [
    f'{f},{s},{f != "02.wav":d},{k % 2}'
    for k, (f, s) in enumerate(splits.items())
  ]
  write_labels(path, 'file,split,labelled,high', rows)
  message = 'validate has 7 rows with labels and 1 without: expected labels for'
  with pytest.raises(ValueError, match=message):
    read(path)


def test_a_tag_called_labelled_stays_one_without_the_setting(place):
  path, splits = place
  rows = [f'{f},{s},{k % 2}' for k, (f, s) in enumerate(splits.items())]
  write_labels(path, 'file,split,labelled', rows)
  assert labels.read(path).tags == ('labelled',)


def test_recordings_without_a_row_or_a_table(place, tmp_path):
  path, splits = place
  kept = dict(list(splits.items())[:18])
  rows = [
    f'{f},{s},{k % 2},{1 - k % 2}' for k, (f, s) in enumerate(kept.items())
  ]
  write_labels(path, 'file,split,high,low', rows)
  found = folder.folder.make_config(path, tmp_path, tags=TAGS).labels
  unknown = {
    f: s
    for f, s, known in zip(
      found.files, found.splits, labels.is_labelled(found), strict=True
    )
    if not known
  }
  assert unknown == dict.fromkeys(splits.keys() - kept.keys(), 'train')
  # Without the tags they are left out, as ever.
  assert set(folder.folder.make_config(path, tmp_path).labels.files) == {*kept}
  (path / 'labels.csv').unlink()
  found = folder.folder.make_config(path, tmp_path, tags=TAGS).labels
  assert set(found.files) == set(splits)
  assert set(found.splits) == set(labels.SPLITS)
  assert not labels.is_labelled(found).any()
  with pytest.raises(ValueError, match='must be different names'):
    folder.folder.make_config(path, tmp_path, tags=('dog', 'dog'))


def config_of(path, cache, module=kd, **fields):
  config = module.get_config('folder,smoke')
  with config.unlocked():
    config.student.model = {'architecture': 'crnn', 'width': 4, 'hidden': 6}
  return changed(
    config,
    **{
      'cache_dir': f'{cache}/cache',
      'dataset.data_dir': f'{cache}/data',
      'dataset.manual_dir': str(path),
      'dataset.builder.tags': TAGS,
      'dataset.builder.clip_seconds': 1.0,
      'student.training.batch_size': 4,
      'student.training.epochs': 60.0,
      'student.training.eval_every_epochs': 10.0,
      'student.training.learning_rate': 1e-2,
      'student.frontend.num_mel_bands': 16,
      'bootstrap': 10,
      **fields,
    },
  )


def write_outputs(folder, dataset, right=4.0):
  """Logits of a teacher that knows the tones, and frames."""
  for name, split in dataset.splits.items():
    place = folder / name
    place.mkdir(parents=True)
    ids = datasets.clip_ids(split, range(len(split)))
    high_N = np.array([int(name[:2]) % 2 for name in ids])
    logits = np.stack([1 - 2 * high_N, 2 * high_N - 1], 1) * right
    np.save(place / 'logits.npy', logits.astype(np.float32))
    (place / 'clip_id.txt').write_text(''.join(f'{x}\n' for x in ids))
  of = {
    'format': 1, 'name': 'Ears', 'source': 'a test', 'licence': 'none',
    'tags': list(TAGS),
  }  # fmt: skip
  (folder / 'teacher.json').write_text(json.dumps(of))
  return folder


@pytest.fixture
def unlabelled(place, tmp_path):
  """A config of recordings without labels, and a teacher's outputs."""
  path, splits = place
  write_labels(path, 'file,split', [f'{f},{s}' for f, s in splits.items()])
  config = config_of(path, tmp_path)
  dataset = datasets.load(identity.plain(config)['dataset'])
  outputs = write_outputs(tmp_path / 'outputs', dataset)
  return changed(config, **{'teacher.outputs': str(outputs)})


def test_unknown_labels_are_masked(unlabelled):
  dataset = datasets.load(identity.plain(unlabelled)['dataset'])
  assert datasets.without_labels(dataset) == ['train', 'validate', 'test']
  found = sources.features(dataset.splits['train'], None)
  assert found['mask'].shape == (8, 2)
  assert not found['mask'].any()
  entropy = losses.tagging_per_tag(
    np.ones((8, 2), np.float32), found['tags'], found['mask']
  )
  assert not np.asarray(entropy).any()


@pytest.mark.slow
def test_student_agrees_with_its_teacher(unlabelled, tmp_path):
  record = run.run(unlabelled, tmp_path / 'run')
  best = record['student']['best']
  for split in ('validate', 'test'):
    assert set(best[split]) == {'agreement'}
    # A tone is high or low: the student has learnt it from the teacher alone.
    assert best[split]['agreement']['micro_auprc'] > 0.9
    assert best[split]['agreement']['positives'] == [4, 4]
  assert record['teacher']['best'] == {}
  rows = [
    json.loads(line)
    for line in (tmp_path / 'run/metrics.jsonl').read_text().splitlines()
  ]
  scored = [row for row in rows if evaluate.DISTILLATION in row]
  assert len(scored) == 6
  assert not any('coarse' in name for row in rows for name in row)
  assert all(row['train/tagging'] == 0 for row in rows if 'train/loss' in row)
  losses_N = [row[evaluate.DISTILLATION] for row in scored]
  assert losses_N[-1] < losses_N[0]
  # That of the best model's predictions, by the definition.
  with (tmp_path / 'run/predictions_validate.csv').open(newline='') as file:
    predicted = list(csv.DictReader(file))
  values = []
  for row in predicted:
    high = int(row['audio_filename'][:2]) % 2
    for tag, sign in (('low', 1 - 2 * high), ('high', 2 * high - 1)):
      own = float(row[tag])
      student = np.log(own / (1 - own))
      t = unlabelled.objective.kd_temperature
      p, q = (1 / (1 + np.exp(-x / t)) for x in (4.0 * sign, student))
      entropy = -p * np.log(q) - (1 - p) * np.log(1 - q)
      values.append(t**2 * entropy)
  assert record['ratios'] == {'kd': base.UNTUNED}
  weight = record['weights']['kd']
  assert weight > 0  # Though there is no gradient of labels.
  assert record['distillation_loss'] == pytest.approx(
    weight * np.mean(values), rel=1e-3
  )
  text = (tmp_path / 'run/learning_curves.txt').read_text()
  assert 'agreement' in text
  assert not (tmp_path / 'run/calibration.json').exists()


@pytest.mark.slow
def test_pretrained_teacher_needs_no_labels(place, weights, tmp_path):
  """With names of its own for the tags; frames and tags are distilled."""
  path, _ = place
  tag_map = tmp_path / 'map.json'
  tag_map.write_text('{"low": ["Hum", "Rumble"], "high": "Whistle"}')
  fields = {
    'teacher.pretrained': NAME,
    'teacher.weights': str(weights),
    'teacher.head': 'zero_shot',
    'teacher.tag_map': str(tag_map),
    'objective.iusp_weight': 1.0,
    'student.training.epochs': 2.0,
    'student.training.eval_every_epochs': 1.0,
  }
  record = run.run(config_of(path, tmp_path, **fields), tmp_path / 'run')
  assert set(record['student']['best']['validate']) == {'agreement'}
  assert np.isfinite(record['distillation_loss'])
  assert record['teacher']['best'] == {}


@pytest.mark.slow
def test_labelled_clips_train_beside_unlabelled_ones(place, tmp_path):
  path, splits = place
  rows = [
    f'{f},{s},{k % 2},{1 - k % 2}'
    for k, (f, s) in enumerate(splits.items())
    if s != 'train' or k < 12
  ]
  write_labels(path, 'file,split,high,low', rows)
  config = config_of(path, tmp_path)
  dataset = datasets.load(identity.plain(config)['dataset'])
  outputs = write_outputs(tmp_path / 'outputs', dataset)
  config = changed(config, **{'teacher.outputs': str(outputs)})
  mask_NC = datasets.labels(dataset.splits['train'])[1]
  assert (mask_NC.sum(1) > 0).sum() == 4
  assert len(mask_NC) == 8
  record = run.run(config, tmp_path / 'run')
  assert set(record['student']['best']['validate']) == {'coarse'}
  assert 'distillation_loss' not in record


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'teacher.outputs': ''}, 'a teacher would be trained on them: expected'),
    (
      {'teacher.outputs': '', 'teacher.pretrained': 'mn01_as'},
      "config.teacher.head is 'probe', which is trained on them: expected 'z",
    ),
    ({'objective.kd_ratio': 0.0}, 'the student has no term of the teacher'),
    (
      {'objective.kd_ratio': 0.0, 'objective.iusp_weight': 1.0},
      'nothing trains the tags of the student, with the terms iusp alone: add',
    ),
    ({'train_baseline': True}, 'config.train_baseline is True: expected False'),
  ],
)
def test_what_needs_labels_is_refused(unlabelled, fields, message):
  config = identity.plain(changed(unlabelled, **fields))
  dataset = datasets.load(config['dataset'])
  with pytest.raises(ValueError, match=re.escape(message)):
    check.check_labels(config, dataset)


def test_tables_need_labels(unlabelled):
  dataset = datasets.load(identity.plain(unlabelled)['dataset'])
  with pytest.raises(ValueError, match='no labels in train and validate and t'):
    grid.check_dataset(identity.plain(unlabelled), dataset)


def test_teacher_without_any_tag_is_refused(unlabelled, tmp_path):
  config = identity.plain(unlabelled)
  dataset = datasets.load(config['dataset'])
  outputs = write_outputs(tmp_path / 'quiet', dataset)
  for name, split in dataset.splits.items():
    np.save(outputs / name / 'logits.npy', np.full((len(split), 2), -3, 'f4'))
  config = changed(unlabelled, **{'teacher.outputs': str(outputs)})
  with pytest.raises(ValueError, match='the teacher finds no tag there with a'):
    run.run(config, tmp_path / 'run')


def test_data_sets_with_labels_are_what_they_were():
  config = identity.plain(base.get_config('folder'))
  assert config['dataset']['builder']['tags'] == []
  found = identity.fields({'dataset': identity.of_data(config)})
  assert 'dataset.builder.tags' not in found
  assert teacher.source(config) == ''
