"""SP and IUSP where clips are silent, padded, of other rates or far apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_references import (
  VALUE_AND_GRADIENT,
  agree,
  both,
  draw,
  gradient,
  iusp_per_clip,
  iusp_reference,
  loss,
  pair,
  pooled,
  slopes,
  slopes_agree,
  sp_per_clip,
  sp_reference,
  teacher_gram,
)

from iusp_jax.objectives import losses, similarity

# Silence.


def silenced(frames_BTD, case):
  frames_BTD = frames_BTD.copy()
  num_frames = frames_BTD.shape[1]
  match case:
    case 'one frame':
      frames_BTD[0, 1] = 0
    case 'faint frame':
      frames_BTD[0, 1] *= 1e-6
    case 'half':
      frames_BTD[:, num_frames // 2 :] = 0
    case 'all but one frame':
      frames_BTD[0, 1:] = 0
    case 'one clip':
      frames_BTD[1] = 0
    case 'everything':
      frames_BTD[:] = 0
    case 'identical frames':
      frames_BTD[:] = frames_BTD[:1, :1]
    case 'one loud frame':
      frames_BTD[0, 1] *= 1e4
  return frames_BTD


SILENCES = [
  'one frame',
  'faint frame',
  'half',
  'all but one frame',
  'one clip',
  'everything',
  'identical frames',
  'one loud frame',
]


def frame_norms(name, student_BTD, teacher_BTD):
  """Of the gradient; the value must be finite."""
  assert np.isfinite(loss(name, student_BTD, teacher_BTD))
  norm_BT = np.linalg.norm(gradient(name, student_BTD, teacher_BTD), axis=-1)
  assert np.isfinite(norm_BT).all()
  return norm_BT


@both
@pytest.mark.parametrize('case', SILENCES)
@pytest.mark.parametrize('activation', ['none', 'relu'])
def test_silence_pulls_at_most_100_times_as_hard(name, case, activation):
  for seed in range(5):
    student_BTD, teacher_BTD = draw(seed, 4, 15, 6), draw(seed + 9, 4, 15, 8)
    if activation == 'relu':
      student_BTD = np.maximum(student_BTD, 0)
      teacher_BTD = np.maximum(teacher_BTD, 0)
    ordinary_BT = frame_norms(name, student_BTD, teacher_BTD)
    for student, teacher in (
      (silenced(student_BTD, case), teacher_BTD),
      (student_BTD, silenced(teacher_BTD, case)),
      (silenced(student_BTD, case), silenced(teacher_BTD, case)),
    ):
      norm_BT = frame_norms(name, student, teacher)
      assert norm_BT.max() <= 100 * np.median(ordinary_BT)


@both
def test_pull_of_silence_is_bounded_where_all_frames_are_alike(name):
  # There both losses, and so an ordinary gradient, are next to nothing, and a
  # ratio to it says little: this is the bound itself, on a vector (a frame,
  # for SP a clip) of typical length among N. Its row, once divided, moves by
  # 1 / (ROW_FLOOR · length) a unit at most, and a row is at most 2 from its
  # target, so that ‖·‖² / N² moves by 2 · 2 / N² times that.
  student_BTD = np.abs(draw(0, 4, 31, 64)) + 1
  teacher_BTD = np.abs(draw(1, 4, 31, 64)) + 1
  case = {'iusp': 'one frame', 'sp': 'one clip'}[name]
  gradient_BTD = gradient(name, silenced(student_BTD, case), teacher_BTD)
  shape = {'iusp': (4, 31, 64), 'sp': (1, 4, 31 * 64)}[name]
  num_matrices, num_rows, _ = shape
  length = np.sqrt(np.mean(np.sum(student_BTD.reshape(shape) ** 2, -1)))
  steepest = np.linalg.norm(gradient_BTD.reshape(shape), axis=-1).max()
  bound = 4 / (similarity.ROW_FLOOR * length) / num_rows**2 / num_matrices
  assert bound / 100 < steepest < bound


@both
def test_silence_under_vmap(name):
  # An axis of experiments before the batch; the silent one spoils no other.
  students, teachers = draw(0, 3, 3, 5, 4), draw(1, 3, 3, 5, 6)
  students[1] = 0
  value_N, gradient_N = jax.vmap(VALUE_AND_GRADIENT[name])(students, teachers)
  assert np.isfinite(gradient_N).all()
  for n in range(3):
    agree(value_N[n], loss(name, students[n], teachers[n]))
    slopes_agree(gradient_N[n], gradient(name, students[n], teachers[n]))


def test_zero_gradient_only_where_all_is_silent():
  # A silent frame is pulled towards the teacher's similarities.
  student_BTD, teacher_BTD = pair(3)
  student_BTD[0, 1] = 0
  gradient_BTD = gradient('iusp', student_BTD, teacher_BTD)
  assert np.linalg.norm(gradient_BTD[0, 1]) > 1e-3
  student_BTD[:] = 0
  assert not gradient('iusp', student_BTD, teacher_BTD).any()


# Alignment.


@pytest.mark.parametrize(
  ('num_student', 'num_teacher'), [(8, 4), (5, 7), (7, 5)]
)
def test_iusp_of_different_frame_rates(num_student, num_teacher):
  student_BTD = draw(0, 2, num_student, 4) + 1
  teacher_BTD = draw(1, 2, num_teacher, 6) + 1
  agree(
    loss('iusp', student_BTD, teacher_BTD),
    iusp_reference(student_BTD, teacher_BTD),
  )
  slopes_agree(
    gradient('iusp', student_BTD, teacher_BTD),
    slopes(lambda x: iusp_reference(x, teacher_BTD), student_BTD),
  )


def test_sp_aligns_nothing():
  student_BTD, teacher_BTD = draw(0, 3, 7, 4), draw(1, 3, 4, 6)
  agree(
    loss('sp', student_BTD, teacher_BTD),
    sp_reference(student_BTD, teacher_BTD),
  )


def test_a_stored_gram_serves_as_well_as_frames():
  student_BTD, teacher_BTD = draw(0, 3, 4, 4) + 1, draw(1, 3, 9, 6) + 1
  stored_BTT = np.einsum('btd,bsd->bts', teacher_BTD, teacher_BTD)
  agree(
    jnp.mean(iusp_per_clip(student_BTD, stored_BTT)),
    iusp_reference(student_BTD, teacher_BTD),
  )


# Padding.


@pytest.mark.parametrize('padding', [0.0, 1e4, np.nan, np.inf])
def test_padding_frames_have_no_influence(padding):
  student_BTD, teacher_BTD = pair(5)
  mask_BT = np.ones((3, 5), np.float32)
  mask_BT[0, 3:] = 0
  student_BTD[0, 3:] = padding
  teacher_BTD[0, 3:] = padding

  def reference(student_BTD):
    return np.mean(
      [
        iusp_reference(student_BTD[:1, :3], teacher_BTD[:1, :3]),
        iusp_reference(student_BTD[1:2], teacher_BTD[1:2]),
        iusp_reference(student_BTD[2:], teacher_BTD[2:]),
      ]
    )

  agree(loss('iusp', student_BTD, teacher_BTD, mask_BT), reference(student_BTD))
  gradient_BTD = gradient('iusp', student_BTD, teacher_BTD, mask_BT)
  assert not gradient_BTD[0, 3:].any()
  slopes_agree(gradient_BTD, slopes(reference, student_BTD))


def test_mask_of_ones_equals_no_mask():
  student_BTD, teacher_BTD = pair(6)
  mask_BT = np.ones((3, 5), np.float32)
  agree(
    loss('iusp', student_BTD, teacher_BTD, mask_BT),
    loss('iusp', student_BTD, teacher_BTD),
  )
  slopes_agree(
    gradient('iusp', student_BTD, teacher_BTD, mask_BT),
    gradient('iusp', student_BTD, teacher_BTD),
  )


@pytest.mark.parametrize('silent', ['nobody', 'student', 'teacher'])
def test_a_clip_of_one_frame_or_none_besides_padding_is_zero(silent):
  student_BTD, teacher_BTD = pair(7)
  if silent == 'student':
    student_BTD[:] = 0
  if silent == 'teacher':
    teacher_BTD[:] = 0
  mask_BT = np.zeros((3, 5), np.float32)
  mask_BT[0, 0] = mask_BT[1, 4] = 1
  assert loss('iusp', student_BTD, teacher_BTD, mask_BT) == 0
  assert not gradient('iusp', student_BTD, teacher_BTD, mask_BT).any()


def test_mask_is_of_the_coarser_frames():
  student_BTD, teacher_BTD = draw(0, 2, 8, 4), draw(1, 2, 4, 6)
  mask_BT = np.array([[1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
  value = loss('iusp', student_BTD, teacher_BTD, mask_BT)
  halves_BTD = np.stack([pooled(clip, 4) for clip in student_BTD])
  expected = (
    iusp_reference(halves_BTD[:1, :3], teacher_BTD[:1, :3])
    + iusp_reference(halves_BTD[1:], teacher_BTD[1:])
  ) / 2
  agree(value, expected)
  with pytest.raises(ValueError, match=r'\(2, 8\): expected \(2, 4\)'):
    loss('iusp', student_BTD, teacher_BTD, np.ones((2, 8)))


# SP over several devices.


def test_sp_does_not_depend_on_the_number_of_devices():
  student_BTD, teacher_BTD = pair(8, num_clips=6)
  student_BTD[1] = 0  # So that floor and scale, too, must be global.
  teacher_BTD[4] *= 1e-2
  expected, expected_BTD = VALUE_AND_GRADIENT['sp'](student_BTD, teacher_BTD)
  teacher_BB = teacher_gram(teacher_BTD)

  def share(student_bTD, teacher_bB):
    value_b = losses.sp_per_clip(student_bTD, teacher_bB, 'data')
    return jnp.sum(value_b) / 6, value_b

  gradient_bB, value_bB = jax.pmap(
    jax.grad(share, has_aux=True),
    axis_name='data',
    devices=jax.devices()[:2],
  )(student_BTD.reshape(2, 3, 5, 4), teacher_BB.reshape(2, 3, 6))
  np.testing.assert_allclose(
    value_bB.reshape(6),
    sp_per_clip(student_BTD, teacher_BB),
    rtol=1e-5,
    atol=1e-9,
  )
  agree(np.mean(value_bB), expected)
  slopes_agree(gradient_bB.reshape(6, 5, 4), expected_BTD)


def test_sp_of_one_clip_a_device_is_not_sp_of_one_clip():
  student_BTD, teacher_BTD = pair(9, num_clips=2)
  teacher_BB = teacher_gram(teacher_BTD)
  value_bB = jax.pmap(
    lambda student, teacher: losses.sp_per_clip(student, teacher, 'data'),
    axis_name='data',
    devices=jax.devices()[:2],
  )(student_BTD[:, None], teacher_BB[:, None])
  agree(np.mean(value_bB), sp_reference(student_BTD, teacher_BTD))
  assert np.mean(value_bB) > 1e-4
