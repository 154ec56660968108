"""Several teachers as one: its outputs, and how it is made and found."""

import jax
import numpy as np
import pytest
from experiments import changed
from fakes import TINY, dataset, recipe, teacher_recipe

from configs import iusp
from iusp_jax.experiment import check, identity, teacher
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import losses

NUM_TAGS = 5


def built(model, size):
  """An ensemble and one of its members."""
  made = recipe(model, bands=24)
  together = {'architecture': 'ensemble', 'member': made['model'], 'size': size}
  ensemble = tagger.build({**made, 'model': together}, NUM_TAGS)
  return ensemble, tagger.build(made, NUM_TAGS)


def variables_of(model, size):
  ensemble, member = built(model, size)
  own = [member.initialise(seed, 16_000) for seed in range(size)]
  return ensemble, member, own, teacher._together(own)


@pytest.mark.parametrize('model', [teacher_recipe()['model'], TINY])
def test_outputs_are_the_means_of_its_members(model):
  """Against the members one by one, in float64."""
  ensemble, member, own, together = variables_of(model, 3)
  mel_BTF = jax.random.normal(jax.random.key(0), (2, 40, 24))
  found = tagger.apply(ensemble, together, mel_BTF)
  each = [tagger.apply(member, v, mel_BTF) for v in own]
  for name in ('logits_BC', 'frame_logits_BTC'):
    expected = np.mean([np.float64(getattr(x, name)) for x in each], 0)
    np.testing.assert_allclose(getattr(found, name), expected, 1e-5, 1e-6)
  gram_BTT = 0.0
  for x in each:
    frames_BTD = np.float64(x.frames_BTD)
    own_BTT = np.einsum('btd,bud->btu', frames_BTD, frames_BTD)
    norm_B = np.linalg.norm(own_BTT, axis=(1, 2))
    gram_BTT = gram_BTT + own_BTT / norm_B[:, None, None]
  frames_BTD = np.float64(found.frames_BTD)
  made_BTT = np.einsum('btd,bud->btu', frames_BTD, frames_BTD)
  np.testing.assert_allclose(made_BTT, gram_BTT, 1e-4, 1e-7)


def test_ensemble_of_one_model_twice_is_that_model():
  model = teacher_recipe()['model']
  ensemble, member = built(model, 2)
  own = member.initialise(0, 16_000)
  mel_BTF = jax.random.normal(jax.random.key(0), (2, 40, 24))
  one = tagger.apply(member, own, mel_BTF)
  two = tagger.apply(ensemble, teacher._together([own, own]), mel_BTF)
  np.testing.assert_allclose(one.logits_BC, two.logits_BC, 1e-6)
  assert losses.iusp_loss(two.frames_BTD, one.frames_BTD) < 1e-12
  own_shapes = jax.tree.map(np.shape, dict(teacher._together([own, own])))
  shapes = jax.tree.map(lambda x: x.shape, dict(ensemble.shapes(16_000)))
  assert own_shapes == shapes
  count = member.num_parameters(own)
  assert ensemble.num_parameters(teacher._together([own, own])) == 2 * count
  assert ensemble.num_macs(16_000) == 2 * member.num_macs(16_000)


def test_silence_has_finite_frames_and_gradients():
  ensemble, _, _, together = variables_of(TINY, 2)
  zeros = jax.tree.map(np.zeros_like, together)

  def total(mel_BTF):
    return tagger.apply(ensemble, zeros, mel_BTF).frames_BTD.sum()

  value, gradient = jax.value_and_grad(total)(np.zeros((1, 40, 24), np.float32))
  assert np.isfinite(value)
  assert np.isfinite(gradient).all()


@pytest.fixture(scope='module')
def fake():
  return dataset('coarse', sizes=(8, 4, 4))


def config_of(folder, **fields):
  config = iusp.get_config('smoke')
  with config.unlocked():
    del config.teacher['model']
    short = teacher_recipe(epochs=1.0, batch_size=4)
    config.teacher.update({k: short[k] for k in ('model', 'frontend')})
    config.teacher.training.update(epochs=1.0, batch_size=4)
  config.cache_dir = str(folder)
  return identity.plain(changed(config, **fields))


@pytest.mark.slow
def test_members_are_teachers_of_the_next_seeds(fake, tmp_path, capsys):
  config = config_of(
    tmp_path, **{'teacher.ensemble_size': 2, 'teacher.seed': 3}
  )
  check.check(config)
  assert teacher.find(config, fake) is None
  found = teacher.get_or_train(config, fake)
  members = [
    teacher.get_or_train(config_of(tmp_path, **{'teacher.seed': seed}), fake)
    for seed in (3, 4)
  ]
  assert capsys.readouterr().out.count('teacher: trains in') == 2
  assert len({each.weights() for each in [found, *members]}) == 3
  for k, member in enumerate(members):
    own = found.variables['params'][f'member_{k}']
    jax.tree.map(np.testing.assert_array_equal, own, member.variables['params'])
  again = teacher.find(config, fake)
  assert isinstance(again, trained.Trained)
  assert again.weights() == found.weights()


def test_one_teacher_of_an_ensemble_of_1_is_the_one_of_before(tmp_path):
  config = config_of(tmp_path)
  older = {**config, 'teacher': dict(config['teacher'])}
  del older['teacher']['ensemble_size']
  one, two = (identity.of_teacher(each) for each in (config, older))
  assert identity.fingerprint(one) == identity.fingerprint(two)
  three = identity.of_teacher(
    config_of(tmp_path, **{'teacher.ensemble_size': 3})
  )
  assert identity.differences(one, three)


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({'teacher.pretrained': 'mn04_as'}, 'ensemble_size is 2, and .*mn04_as'),
    (
      {'objective.cluster_iusp_ratio': 1.0},
      'ensemble_size is 2, and an ensemble has no inner layers, for cluster',
    ),
  ],
)
def test_what_an_ensemble_cannot_be_is_refused(fields, expected, tmp_path):
  config = config_of(tmp_path, **{'teacher.ensemble_size': 2}, **fields)
  with pytest.raises(ValueError, match=expected):
    check.check(config)
