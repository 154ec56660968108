"""Stored outputs of augmented clips: the same sound for teacher and student."""

import dataclasses
import functools

import experiments
import fits
import jax
import numpy as np
import pytest
from fits import fake

from configs import iusp
from iusp_jax.audio import augment, frontend
from iusp_jax.data import sources, teacher_outputs
from iusp_jax.experiment import check, identity, setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import targets
from iusp_jax.runtime import devices

AUGMENT = {
  'time_roll_seconds': 0.3,
  'num_time_masks': 2,
  'num_mel_masks': 1,
  'max_mel_fraction': 0.5,
}
WEIGHTS = {'kd': 1.0, 'iusp': 300.0}
NAMES = ('logits', 'frame_gram')
COUNT = 3  # Versions of a clip.


@functools.cache
def changes():
  """As the student is augmented, whose mel axis is not the teacher's."""
  return fits.make_recipe(augment=AUGMENT).clip_augment()


def teacher():
  """Hears other frequencies than the student, in other bands."""
  model, variables = fits.frozen()
  other = dataclasses.replace(model.frontend, min_hertz=20.0, max_hertz=8000.0)
  model = dataclasses.replace(model, frontend=other)
  return trained.Trained(model, variables, {'fingerprint': 'abc'}, None)


def folder_in(path, count=COUNT):
  versions = teacher_outputs.Versions(count, changes()) if count else None
  return teacher_outputs.Folder(
    path, teacher(), fake().splits['train'], versions=versions
  )


def test_versions_are_those_of_each_augmented_clip(tmp_path):
  """Against each clip by itself: rolled, masked in hertz, then the model."""
  found = folder_in(tmp_path).get_or_build(NAMES)
  own = teacher()
  waves_NS = sources.features(fake().splits['train'], None)['wave']
  axis = (
    frontend.hertz_to_mel((20.0, 8000.0)),
    frontend.hertz_to_mel((changes().axis.min_hertz, changes().axis.max_hertz)),
  )
  bands = own.model.frontend.num_mel_bands
  centre_F = np.linspace(*axis[0], bands + 2)[1:-1]
  places_F = (centre_F - axis[1][0]) / (axis[1][1] - axis[1][0])
  for clip, version in ((0, 0), (0, 2), (7, 1), (23, 2)):
    key = jax.random.key(2**31 - 1)
    for number in (version, clip):
      key = jax.random.fold_in(key, number)
    roll_key, mask_key = (jax.random.fold_in(key, k)[None] for k in (0, 1))
    rate = changes().axis.sample_rate
    wave_1S = augment.time_roll(waves_NS[[clip]], roll_key, 0.3, rate)
    mel = augment.spec_augment(
      tagger.log_mel(own.model, wave_1S),
      mask_key,
      changes().masks,
      np.float32(places_F),
    )
    output = tagger.apply(own.model, own.variables, mel)
    np.testing.assert_allclose(
      found['logits'][clip, version], output.logits_BC[0], 1e-4, 1e-5
    )
    frames_TD = np.asarray(output.frames_BTD[0], np.float64)
    gram_TT = frames_TD @ frames_TD.T
    np.testing.assert_allclose(
      found['frame_gram'][clip, version], gram_TT / gram_TT.max(), 1e-3, 1e-4
    )
  assert found['logits'].shape[:2] == (24, COUNT)
  assert len(np.unique(found['logits'][..., 0])) == 24 * COUNT


def test_more_versions_begin_with_the_same(tmp_path):
  few = folder_in(tmp_path / '3').get_or_build(NAMES)
  more = folder_in(tmp_path / '5', 5).get_or_build(NAMES)
  for name in NAMES:
    np.testing.assert_allclose(more[name][:, :COUNT], few[name], 1e-5, 1e-6)


def test_devices_share_the_clips(tmp_path):
  one = folder_in(tmp_path / 'all').get_or_build(NAMES)
  with fits.num_devices(1):
    teacher_outputs._compile.cache_clear()
    other = folder_in(tmp_path / '1').get_or_build(NAMES)
  teacher_outputs._compile.cache_clear()
  for name in NAMES:
    np.testing.assert_allclose(one[name], other[name], 1e-5, 1e-6)


def test_every_kind_of_version_has_its_own_folder():
  def name(*versions):
    return teacher_outputs.folder_name(teacher(), {'name': 'a'}, 'x', *versions)

  other = fits.make_recipe(augment={'num_time_masks': 1}).clip_augment()
  assert name() == name(None)
  found = [
    name(),
    *(
      name(teacher_outputs.Versions(count, of))
      for count, of in ((1, changes()), (2, changes()), (2, other))
    ),
  ]
  assert len(set(found)) == 4


# In training -----------------------------------------------------------------


def jobs(running=False, seeds=(5, 6)):
  of_teacher = fits.frozen()[0] if running else None
  return [
    dataclasses.replace(
      fits.make_job(WEIGHTS, seed=seed, augment=AUGMENT),
      num_versions=COUNT,
      teacher=of_teacher,
    )
    for seed in seeds
  ]


@functools.cache
def stored():
  """Of `fits.frozen`, by the definition of a version."""
  model, variables = fits.frozen()
  clips = sources.features(fake().splits['train'], None)
  found = []
  for version in range(COUNT):
    keys_N = augment.stored_keys(
      clips['index'], np.full_like(clips['index'], version)
    )
    mel = tagger.log_mel(model, clips['wave'], keys_N, changes())
    x = teacher_outputs.apply(
      model, variables, mel, clips['length'], fits.NUM_SAMPLES, NAMES
    )
    found.append(targets.compute(NAMES, x, lambda x: x, {}))
  return {
    sources.TARGET + name: np.stack([each[name] for each in found], axis=1)
    for name in NAMES
  }


def feed(job):
  return fits.features(job.dataset).feed(job, stored())


@functools.cache
def members():
  return fits.fit(jobs(), feed=feed(jobs()[0]))


def test_student_learns_as_from_the_teacher_in_every_step():
  """That gets the same augmented clips."""
  for one, other in zip(members(), fits.fit(jobs(running=True)), strict=True):
    fits.assert_same_losses(one, other)


def test_versions_differ_from_the_clips_as_they_are():
  clean = dataclasses.replace(jobs()[0], num_versions=0)
  (other,) = fits.fit([clean], feed=fits.make_feed(clean))
  losses = [fits.losses(each)['iusp'] for each in (members()[0], other)]
  assert abs(losses[0] / losses[1] - 1).max() > 0.01


@pytest.mark.parametrize('how', ['alone', 'streamed', 'in parts', 'by steps'])
def test_member_is_the_same_however_its_clips_come(how):
  (job,) = jobs(seeds=(6,))
  named = {
    'alone': {},
    'streamed': {'stream': True},
    'in parts': {'budget': sum(x.nbytes for x in all_arrays()) * 17 // 24},
    'by steps': {'chunk_steps': 1},
  }[how]
  (found,) = fits.fit([job], feed=feed(job), **named)
  fits.assert_same_losses(found, members()[1])


def all_arrays():
  own = fits.features(fake()).get(None, 'train')
  return [*own.values(), *stored().values()]


def test_versions_are_drawn_alike_and_of_seed_and_step_alone():
  order = sources.Order(100, 50, (3, 4), num_versions=4)
  found_MKB = order.versions(range(40))
  counts = np.bincount(found_MKB.reshape(-1))
  assert len(counts) == 4
  # 4,000 draws: 1000 each, with a standard deviation of 27.
  assert abs(counts - 1000).max() < 140
  np.testing.assert_array_equal(
    sources.Order(100, 50, (4,), num_versions=4).versions([7])[0, 0],
    found_MKB[1, 7],
  )
  assert (found_MKB[0, 7] != found_MKB[1, 7]).any()
  assert (found_MKB[0, 7] != found_MKB[0, 8]).any()


# As a config has it ----------------------------------------------------------


def config_of(folder, **fields):
  config = iusp.get_config('smoke')
  config.cache_dir = str(folder)
  fields = {'teacher.store_augmentations': 4, **fields}
  return identity.plain(experiments.changed(config, **fields))


MASKS = {'student.augment.num_time_masks': 2}


@pytest.mark.parametrize(
  ('fields', 'expected'),
  [
    ({}, 'store_augmentations is 4, and the fields of config.student.augment'),
    (
      {'student.augment.mixup_alpha': 0.2},
      'store_augmentations is 4, .*mixup_alpha is 0.2: a mix is of two clips',
    ),
    (
      MASKS | {'teacher.store': 'off'},
      "is 4, and config.teacher.store is 'off",
    ),
    (
      MASKS | {'objective.sp_weight': 1.0},
      'store_augmentations is 4, and sp compares clips',
    ),
    (MASKS | {'teacher.store_augmentations': -1}, 'store_augmentations is -1'),
  ],
)
def test_what_cannot_be_stored_is_refused(fields, expected, tmp_path):
  with pytest.raises(ValueError, match=expected):
    check.check(config_of(tmp_path, **fields))


def test_student_gets_the_versions_that_are_asked_for(tmp_path):
  config = config_of(tmp_path, **MASKS)
  check.check(config)
  made = fits.make_recipe(augment={'num_time_masks': 2})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(setup, 'load_dataset', lambda settings: fake())
    own = setup.Setup(config)
  own.teacher = teacher()
  job = own.job('a', made, fits.objective(WEIGHTS), 0)
  assert job.num_versions == 4
  assert job.teacher is None
  source = own.feed(job).source(
    sources.Order(24, 8, (0,), num_versions=4), devices.Layout(1), 3
  )
  arrays, places = source.take([0])
  assert arrays['target/logits'].shape[1:3] == (24, 4)
  assert places['version'].shape == places['own'].shape
  # A student whose clips stay as they are takes what is stored of these.
  plain = own.job('a', fits.make_recipe(), fits.objective(WEIGHTS), 0)
  assert plain.num_versions == 0


def test_older_run_has_stored_none(tmp_path):
  config = config_of(tmp_path, **{'teacher.store_augmentations': 0})
  older = {**config, 'teacher': dict(config['teacher'])}
  del older['teacher']['store_augmentations']
  one, two = (identity.of_teacher(each) for each in (config, older))
  assert identity.fingerprint(one) == identity.fingerprint(two)
  assert identity.differences(one, identity.of_teacher(config_of(tmp_path)))
