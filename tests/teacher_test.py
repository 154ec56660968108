"""Which teacher a run gets, which it must not get, and what is stored of it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from experiments import changed, save_teacher
from fakes import dataset, teacher_recipe

from configs import base
from iusp_jax.experiment import identity, teacher
from iusp_jax.models import tagger, trained
from iusp_jax.runtime import checkpoint
from iusp_jax.training.recipe import Recipe


@pytest.fixture(scope='module')
def fake():
  return dataset('coarse', sizes=(8, 4, 4))


@pytest.fixture(scope='module')
def model(fake, tmp_path_factory):
  """A workdir with a model of these data; nothing in it may be changed."""
  return save_teacher(tmp_path_factory.mktemp('model'), made=fake)


def test_loads_what_was_saved(model, fake):
  loaded = teacher.load(model, fake)
  untrained = tagger.build(teacher_recipe(), len(fake.tags))
  expected = jax.tree.map(np.asarray, untrained.initialise(3, 16_000))
  assert checkpoint.checksums(loaded.variables) == checkpoint.checksums(
    expected
  )
  assert loaded.fingerprint == teacher.load(model, fake).fingerprint
  assert loaded.weights() == teacher.load(model, fake, 'last').weights()


def test_folder_that_is_no_run_is_refused(tmp_path, fake):
  with pytest.raises(ValueError, match='holds no trained model'):
    teacher.load(tmp_path, fake)


def test_model_of_other_tags_is_refused(model):
  with pytest.raises(ValueError, match='expected those of'):
    teacher.load(model, dataset('fine', sizes=(8, 4, 4)))


def changed_metadata(folder, fake, change):
  """A saved model whose `model.json` is changed afterwards."""
  save_teacher(folder, made=fake)
  path = folder / 'model.json'
  of = json.loads(path.read_text())
  change(of)
  path.write_text(json.dumps(of))
  return folder


def test_checkpoint_of_another_architecture_is_refused(tmp_path, fake):
  changed_metadata(tmp_path, fake, lambda of: of['model'].update(width=8))
  with pytest.raises(ValueError, match='another architecture'):
    teacher.load(tmp_path, fake)


def test_model_of_a_version_with_another_law_of_clipping_is_used(
  tmp_path, fake, model
):
  """`training` of its `model.json` has `clip_norm`: it is not trained on."""

  def older(of):
    del of['training']['clip_factor']
    of['training']['clip_norm'] = 1.0

  changed_metadata(tmp_path, fake, older)
  found = teacher.load(tmp_path, fake)
  assert found.weights() == teacher.load(model, fake).weights()
  made = Recipe.from_config(found.metadata)
  assert made.training.clip_factor == 0.0
  assert made.training.epochs == found.metadata['training']['epochs']


def test_run_without_a_checkpoint_is_refused(tmp_path, fake):
  save_teacher(tmp_path, made=fake)
  for path in (tmp_path / 'checkpoints' / 'last').iterdir():
    path.rename(tmp_path / 'elsewhere')
  with pytest.raises(ValueError, match='last has no checkpoint'):
    teacher.load(tmp_path, fake, 'last')


def test_model_that_was_trained_on_the_test_clips_is_refused(tmp_path, fake):
  changed_metadata(
    tmp_path,
    fake,
    lambda of: of['dataset'].update(name='sonyc_ust/v2/1.0.0'),
  )
  v1 = dataclasses.replace(fake, name='sonyc_ust/v1/1.0.0')
  with pytest.raises(ValueError, match='refused'):
    teacher.load(tmp_path, v1)


def config_of(**fields):
  return identity.plain(changed(base.get_config('smoke'), **fields))


def test_field_that_a_named_teacher_does_not_meet_is_refused(model):
  named = {'teacher.checkpoint': str(model)}
  # Only what the user asked for counts: defaults may differ.
  teacher.check_overrides(config_of(**named), ['seed', 'teacher.checkpoint'])
  same = config_of(**named, **{'teacher.frontend.num_mel_bands': 24})
  teacher.check_overrides(same, ['teacher.frontend.num_mel_bands'])
  other = config_of(**named, **{'teacher.model.width': 32})
  message = 'config.teacher.model.width is 32, but 4 in the model of'
  with pytest.raises(ValueError, match=message):
    teacher.check_overrides(other, ['teacher.model.width'])


def test_run_of_a_teacher_alone_names_the_place_of_its_model(tmp_path, fake):
  record = {'teacher': {'workdir': 'cache/teachers/0'}}
  (tmp_path / 'results.json').write_text(json.dumps(record))
  with pytest.raises(ValueError, match='this run is in cache/teachers/0'):
    teacher.load(tmp_path, fake)


def fingerprint(config, data):
  recipe = Recipe.from_config(config['teacher']).plain()
  seed = config['teacher']['seed']
  return teacher.metadata(recipe, seed, data)['fingerprint']


@pytest.mark.parametrize(
  'fields',
  [
    {'teacher.model.width': 5},
    {'teacher.frontend.num_mel_bands': 40},
    {'teacher.training.epochs': 3.0},
    {'teacher.training.compute_dtype': 'bfloat16'},
    {'teacher.augment.mixup_alpha': 0.9},
    {'teacher.seed': 1},
  ],
)
def test_fingerprint_tells_teachers_apart(fields, fake):
  plain, other = config_of(), config_of(**fields)
  assert fingerprint(plain, fake) != fingerprint(other, fake)


def test_fingerprint_is_of_the_teacher_and_the_data_alone(fake):
  plain = fingerprint(config_of(), fake)
  student = config_of(
    **{'seed': 7, 'student.training.epochs': 9.0, 'objective.sp_weight': 1.0}
  )
  assert fingerprint(student, fake) == plain
  other = dataset('coarse', sizes=(9, 4, 4))
  assert fingerprint(config_of(), other) != plain


def test_teacher_that_is_not_trained_is_not_found(tmp_path, fake):
  assert teacher.find(config_of(cache_dir=str(tmp_path)), fake) is None


def put_in_cache(config, fake):
  """The config's teacher, as if it had been trained."""
  recipe = Recipe.from_config(config['teacher']).plain()
  of = teacher.metadata(recipe, config['teacher']['seed'], fake)
  folder = teacher._cached(config, of)
  made = tagger.build(of, len(fake.tags))
  variables = jax.tree.map(np.asarray, made.initialise(0, fake.num_samples))
  both = {'best': variables, 'last': variables}
  trained.save(folder, of, both, {'best': 1, 'last': 1})
  (folder / 'done').write_text('0.1 minutes\n')
  return folder


# Orbax leaves a closed event loop behind where it fails to read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('what', ['recipe', 'arrays'])
def test_damaged_teacher_of_the_cache_names_what_to_delete(
  what, tmp_path, fake
):
  config = config_of(cache_dir=str(tmp_path))
  folder = put_in_cache(config, fake)
  found = teacher.find(config, fake)
  assert found is not None
  assert found.workdir == folder
  if what == 'recipe':
    path = folder / 'model.json'
    text = path.read_text().replace('"seed": 0', '"seed": 1')
    path.write_text(text)
    message = 'has been changed: seed: 1 there, 0 now. Delete '
  else:
    for path in folder.glob('checkpoints/best/*/arrays/**/*'):
      if path.is_file():
        path.write_bytes(b'')
    message = f'the teacher in {folder} is damaged'
  with pytest.raises(ValueError, match=message) as error:
    teacher.get_or_train(config, fake)
  assert 'elete' in str(error.value)
