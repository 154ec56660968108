"""Frames of models with other rates, spans and starts, aligned by time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import recipe

from iusp_jax.models import tagger
from iusp_jax.objectives import (
  alignment,
  losses,
  similarity,
  soft_tags,
  targets,
  terms,
)
from iusp_jax.objectives.alignment import Timing, Timings

STUDENT = Timing(0.08, 0.08, 0.04)  # 125 frames of a clip of 10 s.
WIDE = Timing(0.32, 0.32, 0.16)  # 32 frames, the last one past the end.
PATCHES = Timing(0.48, 0.96, 0.48)  # 20 frames that overlap by half.


def sound(seconds):
  """A vector that changes over time: float64 `[..., D]`."""
  rates = np.array([0.13, 0.31, 0.57, 0.83, 1.1, 1.7])
  phases = np.arange(len(rates))
  return 1.2 + np.sin(2 * np.pi * rates * seconds[..., None] + phases)


def frames_of(timing, num_frames):
  """The mean of the sound over the span of each frame, float32 `[1, T, D]`."""
  start_T, end_T = timing.edges(num_frames)
  inner = (np.arange(200) + 0.5) / 200
  seconds = start_T[:, None] + (end_T - start_T)[:, None] * inner
  return sound(seconds).mean(1)[None].astype(np.float32)


def inputs(student_BTD, gram_BTT, timings=None, length=160_000, **more):
  length_B = jnp.full(len(student_BTD), length)
  return terms.Inputs(
    logits_BC=jnp.zeros((len(student_BTD), 1)),
    frame_logits_BTC=student_BTD,
    frames={'frames': student_BTD},
    inner=(),
    clip_seconds=10.0,
    tags_BC=jnp.zeros((1, 1)),
    mask_BC=jnp.zeros((1, 1)),
    targets={'frame_gram': gram_BTT, **more},
    frame_mask=lambda *of: targets.frame_mask(length_B, 160_000, *of),
    settings={'temperature': 1.0},
    params=None,
    axis_name='data',
    timings=timings,
  )


def iusp(student_BTD, teacher_BTD, timings=None, length=160_000, **more):
  gram_BTT = jax.vmap(similarity.gram)(jnp.asarray(teacher_BTD))
  x = inputs(jnp.asarray(student_BTD), gram_BTT, timings, length, **more)
  return terms.TERMS['iusp'].per_clip(x)


@pytest.mark.parametrize(('teacher', 'num_frames'), [(WIDE, 32), (PATCHES, 20)])
def test_same_sound_has_the_same_frames_by_time_and_not_by_index(
  teacher, num_frames
):
  own, theirs = frames_of(STUDENT, 125), frames_of(teacher, num_frames)
  by_time = float(iusp(own, theirs, Timings(STUDENT, teacher))[0])
  by_index = float(iusp(own, theirs)[0])
  assert by_time <= 1e-3
  assert by_index >= 10 * by_time
  # And the other way round: the finer model is the teacher.
  swapped = float(iusp(theirs, own, Timings(teacher, STUDENT))[0])
  np.testing.assert_allclose(swapped, by_time, 1e-3, 1e-9)


def kl(teacher, student):
  q, p = (1 / (1 + np.exp(-np.float64(x))) for x in (teacher, student))
  return q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))


@pytest.mark.parametrize('finer', ['student', 'teacher'])
def test_frame_kd_compares_mean_probabilities_of_the_same_time(finer):
  """Tags as logits: the averages are of probabilities, not of logits."""
  fine, coarse = frames_of(STUDENT, 125), frames_of(WIDE, 32)
  pool = alignment.pooling_by_time(STUDENT, 125, WIDE, 32)
  means_BTC = pool @ (1 / (1 + np.exp(-fine)))
  pooled = np.log(means_BTC / (1 - means_BTC))
  models = {'student': (fine, STUDENT), 'teacher': (coarse, WIDE)}
  expected = kl(coarse, pooled)
  if finer == 'teacher':
    models = {'student': (coarse, WIDE), 'teacher': (fine, STUDENT)}
    expected = kl(pooled, coarse)
  (own, timing), (theirs, other) = models['student'], models['teacher']
  x = inputs(
    jnp.asarray(own), None, Timings(timing, other), frame_logits=theirs
  )
  found = terms.TERMS['frame_kd'].per_clip(x)
  np.testing.assert_allclose(found, [expected.mean()], 1e-4, 1e-7)


def test_frames_of_which_there_are_none_give_no_nan():
  later = Timing(0.32, 0.32, 9.0)
  pool = alignment.pooling_by_time(STUDENT, 125, later, 32)
  assert (pool.sum(1) == 0).any()
  x_BTC = jnp.asarray(frames_of(STUDENT, 125))
  gradient = jax.grad(lambda x: soft_tags.pool_logits(x, pool).sum())(x_BTC)
  assert np.isfinite(gradient).all()


def reference(fine, num_fine, coarse, num_coarse):
  """Shares of hops in spans, one by one."""
  found = np.zeros((num_coarse, num_fine))
  for t in range(num_coarse):
    centre = coarse.first_seconds + t * coarse.hop_seconds
    low, high = (centre + s * coarse.span_seconds / 2 for s in (-1, 1))
    for u in range(num_fine):
      middle = fine.first_seconds + u * fine.hop_seconds
      left, right = (middle + s * fine.hop_seconds / 2 for s in (-1, 1))
      found[t, u] = max(0.0, min(high, right) - max(low, left))
    if found[t].sum() > 1e-9:
      found[t] /= found[t].sum()
    else:
      found[t] = 0
  return found


@pytest.mark.parametrize(
  ('coarse', 'num_coarse'),
  [
    (WIDE, 32),
    (PATCHES, 20),
    (Timing(0.16, 0.16, 0.0), 63),  # The first one begins before the clip.
    (Timing(0.5, 0.1, 9.0), 6),  # Gaps, and most are past the end.
  ],
)
def test_pooling_by_definition(coarse, num_coarse):
  of = STUDENT, 125, coarse, num_coarse
  found = alignment.pooling_by_time(*of)
  assert found.dtype == np.float32
  np.testing.assert_allclose(found, reference(*of), 0, 1e-5)
  sums = found.sum(1)
  assert (np.isclose(sums, 1, atol=1e-5) | (sums == 0)).all()


@pytest.mark.parametrize('num_coarse', [125, 25, 5])
def test_equal_parts_of_a_clip_are_pooled_as_by_index(num_coarse):
  hop = 10 / num_coarse
  found = alignment.pooling_by_time(
    STUDENT, 125, Timing(hop, hop, hop / 2), num_coarse
  )
  expected = similarity.pooling_matrix(125, num_coarse)
  np.testing.assert_allclose(found, expected, 0, 1e-6)


def test_finer_frames_that_overlap_are_not_blurred_once_more():
  """Every 10 ms one of .96 s, averaged over 80 ms: of eight or nine frames."""
  fine = Timing(0.01, 0.96, 0.045)
  found = alignment.pooling_by_time(fine, 992, STUDENT, 125)
  assert (found > 0).sum(1).max() <= 9


def test_same_times_are_left_as_they_are_to_the_bit():
  own, theirs = (
    jnp.asarray(np.random.default_rng(k).normal(size=(2, 125, 5 + k)), 'f4')
    for k in (0, 1)
  )
  shifted = Timing(0.08, 0.08, 0.0475)  # By less than a tenth of the hop.
  for timings in (Timings(STUDENT, STUDENT), Timings(STUDENT, shifted)):
    assert alignment.align(timings, 125, 125) is None
    found = iusp(own, theirs, timings)
    np.testing.assert_array_equal(found, iusp(own, theirs))
  mask_BT = targets.frame_mask(jnp.full(2, 160_000), 160_000, 125)
  gram_BTT = jax.vmap(similarity.gram)(theirs)
  np.testing.assert_array_equal(
    found, losses.iusp_per_clip(own, gram_BTT, mask_BT)
  )
  later = Timing(0.08, 0.08, 0.08)
  assert alignment.align(Timings(STUDENT, later), 125, 125) is not None
  assert alignment.align(Timings(STUDENT, STUDENT), 125, 124) is not None


def test_frames_of_padding_and_past_the_end_do_not_count():
  """Half a clip of sound, then anything; ten patches begin in the sound."""
  own, theirs = frames_of(STUDENT, 125), frames_of(PATCHES, 22)
  timings = Timings(STUDENT, PATCHES)
  plain = iusp(own, theirs, timings, 80_000)
  start_T = PATCHES.edges(22)[0]
  noise = np.random.default_rng(0).normal(size=theirs.shape)
  changed = np.where(start_T[None, :, None] < 5.0, theirs, 9 * noise)
  np.testing.assert_allclose(
    iusp(own, changed.astype('f4'), timings, 80_000), plain, 1e-6
  )
  assert iusp(own, changed.astype('f4'), timings)[0] > 2 * plain[0]
  # Patch 20 ends after the student's last frame, the next two begin there.
  aligned = alignment.align(timings, 125, 23)
  assert aligned is not None
  assert aligned.covered_T.tolist() == [1.0] * 21 + [0.0] * 2


@pytest.mark.parametrize('finer', ['student', 'teacher'])
def test_frames_that_a_teacher_did_not_give_do_not_count(finer):
  own, theirs = frames_of(STUDENT, 125), frames_of(PATCHES, 20)
  timings, count = Timings(STUDENT, PATCHES), 12
  if finer == 'teacher':
    own, theirs = theirs, own
    timings, count = Timings(PATCHES, STUDENT), 12 * 6
  given = {targets.NUM_FRAMES: jnp.array([float(count)])}
  cut = theirs.copy()
  cut[:, count:] = 0.0
  found = iusp(own, cut, timings, **given)
  assert found[0] < 1e-3
  assert iusp(own, cut, timings)[0] > 3 * found[0]


def test_a_model_has_the_times_of_its_log_mel():
  """crnn: eight log-mel frames of 25 ms every 10 ms for each of its own."""
  model = tagger.build(recipe(), 8)
  found = tagger.frame_timing(model)
  np.testing.assert_allclose(
    [found.hop_seconds, found.span_seconds, found.first_seconds],
    [0.08, 0.08, 0.0475],
  )


@pytest.mark.parametrize('reduction', [2, 24, 46, 62, 64])
def test_hop_of_any_reduction(reduction):
  model = {'architecture': 'crnn', 'hidden': 2, 'time_reduction': reduction}
  found = tagger.frame_timing(tagger.build(recipe(model), 8))
  np.testing.assert_allclose(found.hop_seconds, reduction * 0.01)


def test_cka_by_definition():
  rng = np.random.default_rng(0)
  x_TD, y_TD = rng.normal(size=(9, 4)), rng.normal(size=(9, 3))
  x, y = x_TD - x_TD.mean(0), y_TD - y_TD.mean(0)
  expected = np.sum((x.T @ y) ** 2) / (
    np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
  )
  found = similarity.linear_cka(x_TD @ x_TD.T, y_TD @ y_TD.T)
  np.testing.assert_allclose(found, expected, 1e-9)
  same = similarity.linear_cka(x_TD @ x_TD.T, 5 * x_TD @ x_TD.T)
  np.testing.assert_allclose(same, 1.0)
  assert similarity.linear_cka(np.ones((4, 4)), np.ones((4, 4))) == 0.0
