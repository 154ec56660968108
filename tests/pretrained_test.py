"""A teacher that others trained: its head, its place, what it depends on."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from efficientat_test import build, predict, random_tensors
from experiments import changed, run_config
from fakes import dataset
from sonyc_ust_world import Server
from torch_files import write_tensors

from configs import base
from iusp_jax.deploy import export
from iusp_jax.experiment import (
  check,
  identity,
  pretrained,
  run,
  teacher,
)
from iusp_jax.models import trained
from iusp_jax.models.pretrained import audioset, efficientat, torch_file
from iusp_jax.runtime import logs

NAME = 'mn01_as'  # The narrowest.


@pytest.fixture(scope='module')
def fake():
  return dataset('coarse', sizes=(12, 6, 4))


@pytest.fixture(scope='session')
def weights(make_once):
  """A file as the published one of `NAME`, with random numbers."""

  def fill(folder):
    shapes = build(width=pretrained.RELEASES[NAME].width).shapes(32_000)
    write_tensors(folder / 'weights.pt', random_tensors(shapes))

  return make_once('pretrained_weights', fill) / 'weights.pt'


def config_of(folder, weights='', **fields):
  """A plain config that `teacher.identified` has seen."""
  fields = {
    'cache_dir': f'{folder}/cache',
    'teacher.pretrained': NAME,
    'teacher.weights': str(weights),
    **{f'teacher.{name}': value for name, value in fields.items()},
  }
  config = changed(base.get_config('smoke'), **fields)
  return teacher.identified(identity.plain(config))


def logits(found, split):
  wave_BS = np.stack([clip['audio'] for clip in split.source])
  return np.asarray(predict(found.model, found.variables, wave_BS).logits_BC)


@pytest.mark.slow
def test_probe_is_trained_once_and_found(tmp_path, weights, fake, monkeypatch):
  config = config_of(tmp_path, weights)
  assert teacher.find(config, fake) is None
  found = teacher.get_or_train(config, fake)
  assert found.workdir.parent == tmp_path / 'cache/teachers'
  assert found.metadata['pretrained'] == NAME
  assert found.metadata['head'] == 'probe'
  assert list(found.metadata['tag_map']) == list(fake.tags)

  def refuse(*_):
    raise AssertionError

  monkeypatch.setattr(pretrained, 'make', refuse)
  again = teacher.find(config, fake)
  assert again is not None
  assert again.weights() == found.weights()
  # The file is not needed any more: what it holds is known by its checksum.
  assert trained.load(found.workdir, 'last').weights() == found.weights()


@pytest.mark.slow
def test_probe_fits_the_training_clips_better_than_zero_shot(
  tmp_path, weights, fake
):
  tags_NC = np.stack([c['coarse'] for c in fake.splits['train'].source])
  losses = {}
  for head in pretrained.HEADS:
    found = teacher.get_or_train(config_of(tmp_path, weights, head=head), fake)
    x_NC = logits(found, fake.splits['train'])
    losses[head] = np.mean(np.logaddexp(0, x_NC) - x_NC * tags_NC)
  assert losses['probe'] < 0.69  # Of logits of 0.
  assert losses['probe'] < losses['zero_shot']


def test_tag_without_a_class_needs_the_probe(tmp_path, weights, fake):
  names = ('glug', *fake.coarse[1:])
  other = dataclasses.replace(fake, coarse=names)
  config = config_of(tmp_path, weights, head='zero_shot')
  with pytest.raises(ValueError, match="known for the tags 'glug': expected"):
    teacher.get_or_train(config, other)
  assert teacher.find(config, other) is None
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(logs, 'log', lambda line, **_: lines.append(line))
    teacher.get_or_train(config_of(tmp_path, weights), other)
  assert 'no AudioSet class is known for glug' in '\n'.join(lines)


def write_map(folder, **mapping):
  path = folder / 'map.json'
  path.write_text(json.dumps(mapping))
  return str(path)


def test_own_mapping_goes_before_the_known_names(tmp_path, weights, fake):
  names = ('glug', *fake.coarse[1:])
  other = dataclasses.replace(fake, coarse=names)
  mapping = {'glug': ['Gurgling', 'Pour'], names[1]: 'Tick'}
  zero = {'head': 'zero_shot'}
  path = write_map(tmp_path, **mapping)
  config = config_of(tmp_path, weights, **zero, tag_map=path)
  found = teacher.get_or_train(config, other)
  of = found.metadata['tag_map']
  assert of['glug'] == ['Gurgling', 'Pour']
  assert of[names[1]] == ['Tick']
  assert of[names[2]] == audioset.map_tags(names)[names[2]]
  # Of the model without any head, the largest logit of those classes.
  shapes = found.model.shapes(other.num_samples)
  one = {key: ['Pour'] for key in names} | {'glug': ['Gurgling']}
  alone = efficientat.zero_shot(
    shapes, torch_file.read(weights, 1 << 30), audioset.matrix(one)
  )
  split = other.splits['test']
  wave_BS = np.stack([clip['audio'] for clip in split.source])
  each_BC = np.asarray(predict(found.model, alone, wave_BS).logits_BC)
  np.testing.assert_allclose(
    logits(found, split)[:, 0], each_BC[:, :2].max(1), atol=1e-5
  )


def test_another_mapping_is_another_teacher(tmp_path, weights):
  plain = config_of(tmp_path, weights)
  path = write_map(tmp_path, dog=['Dog'])
  one = config_of(tmp_path, weights, tag_map=path)
  write_map(tmp_path, dog=['Bark'])
  two = config_of(tmp_path, weights, tag_map=path)
  found = [
    identity.fingerprint(identity.of_teacher(c)) for c in (plain, one, two)
  ]
  assert len(set(found)) == 3
  assert 'tag_map' not in identity.of_teacher(plain)


@pytest.mark.parametrize(
  ('mapping', 'message'),
  [
    (
      {'dog': ['Barc']},
      r"tag_map has 'Barc': .* AudioSet .*did you mean 'Bark'",
    ),
    ({'dog': 3}, 'expected a tag or a list of tags'),
  ],
)
def test_wrong_mapping_is_refused_at_once(tmp_path, mapping, message):
  fields = {
    'teacher.pretrained': NAME,
    'teacher.tag_map': write_map(tmp_path, **mapping),
  }
  config = changed(base.get_config('smoke'), **fields)
  with pytest.raises(ValueError, match=message):
    check.check(identity.plain(config))


def test_mapping_of_a_tag_that_is_not_there_is_refused(tmp_path, weights, fake):
  path = write_map(tmp_path, dogg=['Dog'])
  config = config_of(tmp_path, weights, tag_map=path)
  with pytest.raises(
    ValueError, match=r"has 'dogg': expected a tag of the dat"
  ):
    teacher.get_or_train(config, fake)


def test_other_weights_or_head_are_another_teacher(tmp_path, weights, fake):
  config = config_of(tmp_path, weights)
  copy = tmp_path / 'copy.pt'
  shutil.copy(weights, copy)
  other = tmp_path / 'other.pt'
  shapes = build(width=0.1).shapes(32_000)
  write_tensors(other, random_tensors(shapes, seed=1))

  def differing(config_of_other):
    return identity.differences(
      identity.of_teacher(config), identity.of_teacher(config_of_other)
    )

  assert differing(config_of(tmp_path, copy)) == []
  assert 'weights' in differing(config_of(tmp_path, other))[0]
  assert 'head' in differing(config_of(tmp_path, weights, head='zero_shot'))[0]


def test_configs_of_older_runs_have_the_same_teacher():
  config = identity.plain(base.get_config('smoke'))
  older = {**config, 'teacher': dict(config['teacher'])}
  for field in ('pretrained', 'weights', 'head'):
    del older['teacher'][field]
  assert identity.of_teacher(older) == identity.of_teacher(config)


def padded(path, weights):
  """A file that is too large to be of the model."""
  path.write_bytes(weights.read_bytes() + bytes(2**23))
  return path


def test_weights_of_another_width_are_refused(tmp_path, weights, fake):
  config = config_of(tmp_path, weights, pretrained='mn02_as')
  with pytest.raises(ValueError, match='file of another config'):
    teacher.get_or_train(config, fake)
  wider = config_of(tmp_path, padded(tmp_path / 'large.pt', weights))
  with pytest.raises(ValueError, match='bytes: expected at most'):
    teacher.get_or_train(wider, fake)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'checkpoint': 'runs/a'},
      "checkpoint is 'runs/a' and config.teacher.pretrained is 'mn01_as': exp",
    ),
    ({'pretrained': '', 'weights': 'a.pt'}, "weights is 'a.pt', and"),
    ({'pretrained': '', 'head': 'zero_shot'}, "head is 'zero_shot', and"),
    ({'pretrained': 'mn04'}, "one of '', mn01_as"),
    ({'weights': 'nowhere.pt'}, 'nowhere.pt is no file: expected the weights'),
  ],
)
def test_fields_that_do_not_agree_are_refused(fields, message):
  fields = {f'teacher.{name}': value for name, value in fields.items()}
  config = changed(
    base.get_config('smoke'), **{'teacher.pretrained': NAME, **fields}
  )
  plain = identity.plain(config)

  def begin():
    check.check(plain)
    teacher.identified(plain)

  with pytest.raises(ValueError, match=r'config\.teacher') as error:
    begin()
  assert message in str(error.value)


def test_field_of_a_recipe_that_it_does_not_have_is_refused(tmp_path, weights):
  config = config_of(tmp_path, weights)
  teacher.check_overrides(config, ['teacher.pretrained', 'teacher.store'])
  with pytest.raises(ValueError, match='that teacher is not trained here'):
    teacher.check_overrides(config, ['teacher.model.width'])


@pytest.fixture
def server(tmp_path, weights, monkeypatch):
  """The release's address, with its checksum, is a server of this test."""
  release = pretrained.RELEASES[NAME]
  (tmp_path / 'release').mkdir()
  shutil.copy(weights, tmp_path / 'release' / release.file)
  server = Server(tmp_path / 'release')
  monkeypatch.setattr(pretrained, '_ADDRESS', server.url)
  digest = hashlib.sha256(weights.read_bytes()).hexdigest()
  known = dataclasses.replace(release, sha256=digest)
  monkeypatch.setattr(pretrained, 'RELEASES', {NAME: known})
  yield server
  server.http.shutdown()
  server.http.server_close()


def test_release_is_downloaded_once(tmp_path, server, weights, fake):
  config = config_of(tmp_path)
  assert not server.log  # Its checksum is known.
  found = teacher.get_or_train(config, fake)
  other = teacher.get_or_train(config_of(tmp_path, head='zero_shot'), fake)
  assert found.fingerprint != other.fingerprint
  assert [method for method, *_ in server.log] == ['GET']
  local = teacher.get_or_train(config_of(tmp_path, weights), fake)
  assert local.fingerprint == found.fingerprint


def test_download_that_fails_names_what_to_do(tmp_path, server, fake):
  config = config_of(tmp_path)
  server.status = 404
  with pytest.raises(ValueError, match='by other means') as error:
    teacher.get_or_train(config, fake)
  assert "config.teacher.pretrained is 'mn01_as'" in str(error.value)
  server.status = None
  path = server.root / pretrained.RELEASES[NAME].file
  path.write_bytes(path.read_bytes()[:-1] + b'x')
  with pytest.raises(ValueError, match='sha256'):
    teacher.get_or_train(config, fake)


@pytest.mark.slow
@pytest.mark.parametrize('store', ['auto', 'off'])
def test_run_distils_from_it(tiny, weights, on_fakes, tmp_path, store):
  """From stored outputs, and from a teacher that runs in every step."""
  fields = {'checkpoint': '', 'pretrained': NAME, 'store': store}
  fields |= {'weights': str(weights)}
  config = run_config(
    tiny,
    cache_dir=f'{tmp_path}/cache',
    **{'objective.kd_weight': 1.0},
    **{f'teacher.{name}': value for name, value in fields.items()},
  )
  record = run.run(config, tmp_path / 'run')
  assert record['status'] == 'done'
  made = trained.load(tmp_path / 'run').metadata['teacher']
  assert made['fingerprint'] == record['teacher']['fingerprint']
  assert record['teacher']['trained_in'].endswith('minutes')
  assert record['teacher']['best'].keys() == {'validate', 'test'}
  stored = tmp_path / 'cache/outputs'
  assert stored.exists() == (store == 'auto')
  again = run.run(config, tmp_path / 'run')
  assert again['fingerprint'] == record['fingerprint']


@pytest.mark.slow
def test_run_may_stop_after_it(tiny, weights, on_fakes, tmp_path):
  fields = {'checkpoint': '', 'pretrained': NAME, 'weights': str(weights)}
  config = run_config(
    tiny,
    fit='teacher',
    cache_dir=f'{tmp_path}/cache',
    **{f'teacher.{name}': value for name, value in fields.items()},
  )
  record = run.run(config, tmp_path / 'run')
  assert record['teacher']['parameters'] > 123_783
  text = (tmp_path / 'run/learning_curves.txt').read_text()
  assert 'validate/coarse_micro_auprc' in text
  with pytest.raises(ValueError, match='expected the workdir of a student'):
    export.run(record['teacher']['workdir'], f'{tmp_path}/export')


def test_student_better_than_its_teacher_is_reported():
  def of(score):
    return {'best': {'validate': {'coarse': {'micro_auprc': score}}}}

  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(logs, 'log', lines.append)
    distilled = {'weights': {'kd': 1.0}, 'student': of(0.6)}
    run._log_weak_teacher({**distilled, 'teacher': of(0.7)})
    run._log_weak_teacher({**distilled, 'teacher': of(0.6)})
    run._log_weak_teacher({'student': of(0.6), 'teacher': of(0.1)})
    run._log_weak_teacher({'teacher': of(0.1)})
    assert not lines
    run._log_weak_teacher({**distilled, 'teacher': of(0.5)})
  assert (
    'weaker than the student on validate (micro-AUPRC 0.500, 0.600)'
    in (lines[0])
  )
