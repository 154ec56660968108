"""What teacher and student get of one sound, and at which frames."""

import functools

import jax
import numpy as np
import pytest
from fakes import fake, recipe, teacher_recipe

from iusp_jax.audio import augment
from iusp_jax.data import sources
from iusp_jax.models import tagger
from iusp_jax.objectives import similarity, terms
from iusp_jax.training import step
from iusp_jax.training.recipe import Recipe

AUGMENT = {
  'time_roll_seconds': 0.2,
  'num_time_masks': 2,
  'max_time_fraction': 0.3,
  'num_mel_masks': 2,
  'max_mel_fraction': 0.3,
}
SMALL = {
  'crnn': {'width': 4, 'hidden': 6},
  'cnn': {'width': 4, 'num_blocks': 3},
  'mobilenet': {'width_multiplier': 0.05, 'expansion': 2, 'num_stages': 3},
}


def batch_of(mixup_alpha=0.0, clips=4):
  """The first batch of a run, its clips mixed where there is mixup."""
  arrays = waves()
  order = sources.Order(len(arrays['index']), clips, (3,), mixup_alpha)
  places = {name: clips[0, 0] for name, clips in order.clips([0]).items()}
  if mixup_alpha:
    places['share'] = order.shares([0])[0, 0]
  return step._mixed(sources.take(arrays, places))


@functools.cache
def waves():
  return sources.features(fake().splits['train'], None)


@functools.cache
def teacher():
  return tagger.build(teacher_recipe(), 8)


@functools.cache
def teacher_variables():
  return teacher().initialise(3, fake().num_samples)


def prepared(bands, batch, **augmentation):
  """What a step makes of a batch: log-mel, the teacher's frame Grams.

  Returns:
    The log-mel, the Grams, and the student; the teacher has 24 bands.
  """
  made = recipe(bands=bands)
  made['augment'] |= augmentation
  objective = terms.Objective({'iusp': 1.0})
  made = Recipe.from_config(made)
  job = step.Job('student', made, objective, fake(), 5, teacher())

  @jax.jit
  def prepare(batch, of_teacher):
    keys_B = augment.clip_keys(5, 7, batch['index'])
    return step._make_prepare(job)(batch, keys_B, of_teacher)

  found = prepare(batch, {'variables': teacher_variables(), 'fits': {}})
  return found['mel'], found[sources.TARGET + 'frame_gram'], job.student()


@functools.cache
def compiled_grams():
  def grams(variables, mel_BTF):
    output = tagger.apply(teacher(), variables, mel_BTF)
    gram_BTT = jax.vmap(similarity.gram)(output.frames_BTD)
    return gram_BTT / gram_BTT.max((1, 2), keepdims=True)

  return jax.jit(grams)


def frame_grams(mel_BTF):
  """The teacher's, of this log-mel; at most 1."""
  return compiled_grams()(teacher_variables(), mel_BTF)


def apart(a, b):
  """Greatest difference, relative to the greatest value."""
  return float(abs(a - b).max() / abs(b).max())


@pytest.mark.parametrize('mixup_alpha', [0.0, 0.5])
def test_teacher_and_student_get_the_same_sound(mixup_alpha):
  """With one front end, its Gram is that of the student's own log-mel."""
  batch = batch_of(mixup_alpha)
  mel_BTF, gram_BTT, student = prepared(24, batch, **AUGMENT)
  assert student.frontend == teacher().frontend
  assert apart(gram_BTT, frame_grams(mel_BTF)) < 1e-4
  # And something did happen to every clip, which shows in the teacher's.
  plain_BTF = tagger.log_mel(student, batch['wave'])
  for own, untouched in zip(gram_BTT, frame_grams(plain_BTF), strict=True):
    assert apart(own, untouched) > 0.02
  own_BS = waves()['wave'][batch['index']]
  mixed_B = np.any(np.asarray(batch['wave']) != own_BS, axis=1)
  assert all(mixed_B) == any(mixed_B) == (mixup_alpha > 0)


def test_other_front_ends_get_the_same_roll():
  """The shift is found again in the student's log-mel, sample by sample."""
  batch = batch_of()
  mel_BTF, gram_BTT, student = prepared(16, batch, time_roll_seconds=0.0005)
  assert student.frontend != teacher().frontend
  rolled = np.stack([np.roll(batch['wave'], s, 1) for s in range(-8, 9)])
  every = jax.jit(lambda wave_BS: tagger.log_mel(student, wave_BS))(
    rolled.reshape(-1, rolled.shape[-1])
  )
  every = every.reshape(17, -1, *every.shape[1:])
  difference = abs(every - mel_BTF[None]).max((2, 3))
  best_B = np.asarray(difference.argmin(0))
  np.testing.assert_allclose(np.min(difference, 0), 0, atol=1e-4)
  assert len(set(best_B)) > 1  # Every clip has a shift of its own.
  wave_BS = rolled[best_B, np.arange(len(best_B))]
  expected = frame_grams(tagger.log_mel(teacher(), wave_BS))
  assert apart(gram_BTT, expected) < 1e-4
  plain = frame_grams(tagger.log_mel(teacher(), batch['wave']))
  assert apart(gram_BTT, plain) > 1e-3


# Time order ------------------------------------------------------------------

HOPS = 8  # Log-mel frames a frame embedding, for all models.


def unlike(a_TD, b_TD):
  """Greatest difference, relative to what happens in time."""
  return float(abs(a_TD - b_TD).max() / np.ptp(b_TD, axis=0).max())


def random_variables(model, num_samples):
  """Variables in which BatchNorm does something, and the LSTM forgets."""
  rng = np.random.default_rng(1)

  def fill(path, leaf):
    name = jax.tree_util.keystr(path)
    value = rng.normal(size=leaf.shape).astype(np.float32)
    affine = ('scale' in name or 'bias' in name) and 'Lstm' not in name
    if 'batch_stats' in name or affine:
      return abs(value) + 0.5 if 'var' in name else value
    return leaf

  variables = model.initialise(0, num_samples)
  return jax.tree_util.tree_map_with_path(fill, variables)


@pytest.mark.parametrize('name', SMALL)
def test_later_sound_is_in_later_frames(name):
  """From the waveform on: k frames later in, k frames later out.

  Each frame of the LSTM depends on all of the past, but less and less of it:
  far from the beginning another beginning is forgotten.
  """
  model = tagger.build(recipe({'architecture': name, **SMALL[name]}), 4)
  frame = HOPS * model.frontend.hop_samples
  rng = np.random.default_rng(0)
  # Noise whose level goes up and down, another one in front of it.
  num_samples, later = 80 * frame, 5
  level_S = 10 ** rng.uniform(-3, -1, 80).repeat(frame)
  sound_S = level_S * rng.normal(size=num_samples)
  ahead_S = 0.1 * rng.normal(size=later * frame)
  late_S = np.concatenate([ahead_S, sound_S])[:num_samples]
  order = np.concatenate([np.arange(40), 40 + rng.permutation(40)])
  scrambled_S = sound_S.reshape(80, frame)[order].reshape(-1)
  variables = random_variables(model, num_samples)

  @jax.jit
  def embed(wave_BS):
    return tagger.apply(model, variables, tagger.log_mel(model, wave_BS))

  wave_BS = np.stack([sound_S, late_S, scrambled_S]).astype(np.float32)
  first, moved, scrambled = np.asarray(embed(wave_BS).frames_BTD)
  assert first.shape[0] == 80
  far = slice(45, 72)
  shifted = slice(far.start + later, far.stop + later)
  assert unlike(moved[shifted], first[far]) < 1e-3
  # At the wrong place, or of sounds in another order, they are others.
  for wrong in (-1, 1):
    place = slice(shifted.start + wrong, shifted.stop + wrong)
    assert unlike(moved[place], first[far]) > 0.1
  assert unlike(scrambled[far], first[far]) > 0.1
  if name == 'crnn':  # Not only of the same place: also of the past.
    back = np.argsort(order)
    assert unlike(scrambled[back][far], first[far]) > 0.1
