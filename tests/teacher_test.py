"""Which teacher a run gets, and which it must not get."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest
from fakes import dataset, teacher_recipe

from configs import base
from iusp_jax.data import store
from iusp_jax.experiment import teacher
from iusp_jax.models import tagger
from iusp_jax.runtime import checkpoint


@pytest.fixture(scope='module')
def fake():
  return dataset('coarse', sizes=(8, 4, 4))


def write_model(folder, fake, recipe=None, arrays_of=None):
  """A run's workdir with an untrained model."""
  recipe = recipe or teacher_recipe()
  of = recipe | {'seed': 0, 'dataset': fake.fingerprint()}
  teacher.save_facts(folder, of, fake)
  model = tagger.build(arrays_of or recipe, len(fake.tags))
  variables = jax.tree.map(np.asarray, model.initialise(0, 16_000))
  series = folder / 'checkpoints' / 'best'
  checkpoint.save(series, 3, variables, {'score': 0.5}, keep=1)
  return variables


def test_loads_what_was_saved(tmp_path, fake):
  variables = write_model(tmp_path, fake)
  loaded = teacher.load(tmp_path, fake)
  assert checkpoint.checksums(loaded.variables) == checkpoint.checksums(
    variables
  )
  assert loaded.fingerprint == teacher.load(tmp_path, fake).fingerprint


def test_folder_that_is_no_run_is_refused(tmp_path, fake):
  with pytest.raises(ValueError, match='holds no trained model'):
    teacher.load(tmp_path, fake)


def test_model_of_other_tags_is_refused(tmp_path, fake):
  write_model(tmp_path, fake)
  with pytest.raises(ValueError, match='expected those of'):
    teacher.load(tmp_path, dataset('fine', sizes=(8, 4, 4)))


def test_checkpoint_of_another_architecture_is_refused(tmp_path, fake):
  wider = teacher_recipe()
  wider['model']['width'] = 8
  write_model(tmp_path, fake, arrays_of=wider)
  with pytest.raises(ValueError, match='another architecture'):
    teacher.load(tmp_path, fake)


def test_run_without_a_checkpoint_is_refused(tmp_path, fake):
  write_model(tmp_path, fake)
  with pytest.raises(ValueError, match='last has no checkpoint'):
    teacher.load(tmp_path, fake, 'last')


def test_model_that_has_heard_the_test_clips_is_refused(tmp_path, fake):
  write_model(tmp_path, fake)
  path = tmp_path / 'model.json'
  of = json.loads(path.read_text())
  of['dataset']['name'] = 'sonyc_ust/v2/1.0.0'
  path.write_text(json.dumps(of))
  import dataclasses

  v1 = dataclasses.replace(fake, name='sonyc_ust/v1/1.0.0')
  with pytest.raises(ValueError, match='refused'):
    teacher.load(tmp_path, v1)


def changed(**fields):
  config = base.get_config('smoke')
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


def test_wish_that_a_named_teacher_does_not_meet_is_refused(tmp_path, fake):
  write_model(tmp_path, fake)
  config = changed(**{'teacher.checkpoint': str(tmp_path)})
  # Only what the user asked for counts: defaults may differ.
  teacher.refuse_other_model(config, ['seed', 'teacher.checkpoint'])
  config.teacher.frontend.num_mel_bands = 24
  teacher.refuse_other_model(config, ['teacher.frontend.num_mel_bands'])
  config.teacher.model.width = 32
  message = 'config.teacher.model.width is 32, but 4 in the model of'
  with pytest.raises(ValueError, match=message):
    teacher.refuse_other_model(config, ['teacher.model.width'])


def test_run_of_a_teacher_alone_says_where_its_model_is(tmp_path, fake):
  results = {'teacher': {'workdir': 'cache/teachers/0'}}
  (tmp_path / 'results.json').write_text(json.dumps(results))
  with pytest.raises(ValueError, match='this run is in cache/teachers/0'):
    teacher.load(tmp_path, fake)


@pytest.mark.parametrize(
  'fields',
  [
    {'teacher.model.width': 5},
    {'teacher.frontend.num_mel_bands': 40},
    {'teacher.training.epochs': 3.0},
    {'teacher.augment.mixup_alpha': 0.9},
    {'teacher.seed': 1},
  ],
)
def test_fingerprint_tells_teachers_apart(fields, fake):
  plain, other = (
    teacher.fingerprint(teacher.facts(config, fake))
    for config in (changed(), changed(**fields))
  )
  assert plain != other


def test_fingerprint_is_of_the_teacher_and_the_data_alone(fake):
  plain = teacher.fingerprint(teacher.facts(changed(), fake))
  student = changed(
    **{'seed': 7, 'student.training.epochs': 9.0, 'objective.sp_weight': 1.0}
  )
  assert teacher.fingerprint(teacher.facts(student, fake)) == plain
  other = dataset('coarse', sizes=(9, 4, 4))
  assert teacher.fingerprint(teacher.facts(changed(), other)) != plain


def test_teacher_that_is_not_trained_is_not_found(tmp_path, fake):
  assert teacher.find(changed(cache_dir=str(tmp_path)), fake) is None


@pytest.mark.parametrize(
  ('fields', 'reason'),
  [
    ({'student.augment.mixup_alpha': 0.5}, 'mixup_alpha is 0.5'),
    ({'student.augment.num_time_masks': 2}, 'num_time_masks is 2'),
    ({'student.augment.time_roll_seconds': 1.0}, 'time_roll_seconds'),
  ],
)
def test_store_is_refused_where_sounds_change(tmp_path, fake, fields, reason):
  write_model(tmp_path / 'model', fake)
  trained = teacher.load(tmp_path / 'model', fake)
  fields = {'cache_dir': str(tmp_path), **fields}
  demanded = changed(**fields, **{'teacher.store': 'float32'})
  with pytest.raises(ValueError, match=reason):
    store.obtain(demanded, trained, fake)
  assert store.obtain(changed(**fields), trained, fake) is None
  assert not (tmp_path / 'outputs').exists()


def test_store_that_is_cut_off_is_not_there(tmp_path, fake, monkeypatch):
  write_model(tmp_path / 'model', fake)
  trained = teacher.load(tmp_path / 'model', fake)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    # Room is asked for before a number is written: a write into a mapped file
    # without room ends the process.
    patch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match='No space left'):
      store.build(tmp_path / 's', trained, fake.splits['train'], 'float32', 4)
  assert not list(tmp_path.glob('s*'))


def test_every_teacher_split_and_precision_has_its_own_store(tmp_path, fake):
  write_model(tmp_path / 'model', fake)
  trained = teacher.load(tmp_path / 'model', fake)
  # Of the same recipe, as another machine or version would train it.
  twin = dataclasses.replace(
    trained, variables=jax.tree.map(lambda x: x + 1e-6, trained.variables)
  )
  assert twin.fingerprint == trained.fingerprint
  assert twin.weights() != trained.weights()
  smaller = dataset('coarse', sizes=(9, 4, 4))
  plain = changed(cache_dir=str(tmp_path))
  half = changed(cache_dir=str(tmp_path), **{'teacher.store': 'float16'})
  for count, arguments in enumerate(
    [
      (plain, trained, fake),
      (plain, twin, fake),
      (plain, trained, fake, 'test'),
      (plain, trained, smaller),
      (half, trained, fake),
    ],
    start=1,
  ):
    store.obtain(*arguments)
    store.obtain(*arguments)
    folders = {path.parent for path in tmp_path.glob('outputs/*/logits.npy')}
    assert len(folders) == count


def test_store_holds_each_clips_own_outputs(tmp_path, fake):
  write_model(tmp_path / 'model', fake)
  trained = teacher.load(tmp_path / 'model', fake)
  config = changed(cache_dir=str(tmp_path))
  outputs = store.obtain(config, trained, fake)
  assert outputs is not None
  index_B = np.array([5, 2, 7])
  found = outputs.lookup({'index': index_B}, ('kd', 'sp', 'iusp'))
  wave_BS = np.stack([fake.splits['train'].source[k]['audio'] for k in index_B])
  mel_BTF = tagger.log_mel(trained.model, wave_BS)
  output = tagger.apply(trained.model, trained.variables, mel_BTF)
  frames_BTD = np.asarray(output.frames_BTD, np.float64)
  gram_BTT = frames_BTD @ frames_BTD.swapaxes(1, 2)
  scale_B = outputs.frame_scale[index_B][:, None, None]
  flat = frames_BTD.reshape(3, -1)
  np.testing.assert_allclose(
    found['teacher_logits'], output.logits_BC, 1e-4, 1e-5
  )
  np.testing.assert_allclose(
    found['teacher_frame_gram'] * scale_B, gram_BTT, 1e-4, 1e-5
  )
  np.testing.assert_allclose(
    found['teacher_batch_gram'], flat @ flat.T, 1e-4, 1e-4
  )
  assert store.obtain(config, trained, fake) is not None  # From the cache.
