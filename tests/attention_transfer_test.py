"""Attention transfer over time, against its formula and as a row of a table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base, table
from iusp_jax.experiment import grid, identity
from iusp_jax.objectives import losses, similarity, terms

PER_CLIP = losses.attention_transfer_per_clip


def reference(student_BTD, teacher_BTD, mask_BT):
  """The formula in float64, clip by clip, for equal frame rates."""
  found = []
  for student_TD, teacher_TD, mask_T in zip(
    student_BTD, teacher_BTD, mask_BT, strict=True
  ):
    maps = []
    for frames_TD in (student_TD, teacher_TD):
      energy = [
        sum(float(x) ** 2 for x in frame) * keep
        for frame, keep in zip(frames_TD, mask_T, strict=True)
      ]
      maps.append(np.array(energy) / np.linalg.norm(energy))
    found.append(((maps[0] - maps[1]) ** 2).sum() / mask_T.sum())
  return np.array(found)


def frames(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gram(frames_BTD):
  return jax.vmap(similarity.gram)(jnp.asarray(frames_BTD))


@pytest.mark.parametrize('shape', [(3, 7, 4), (2, 2, 1)])
def test_value_is_that_of_the_formula(shape):
  student, teacher = frames(0, *shape), frames(1, *shape[:2], 5)
  mask_BT = np.ones(shape[:2])
  mask_BT[0, -1] = 0
  found = PER_CLIP(student, gram(teacher), jnp.asarray(mask_BT))
  np.testing.assert_allclose(
    found, reference(student, teacher, mask_BT), rtol=1e-5
  )


def test_only_how_energy_is_spread_counts():
  """Not the scale of either, nor a rotation; order in time does."""
  student, teacher = frames(0, 2, 6, 4), frames(1, 2, 6, 3)
  rotation, _ = np.linalg.qr(frames(2, 4, 4))
  expected = PER_CLIP(student, gram(teacher))
  other = PER_CLIP(9 * student @ rotation, 1e-3 * gram(teacher))
  np.testing.assert_allclose(other, expected, rtol=1e-4)
  np.testing.assert_allclose(PER_CLIP(student, gram(student)), 0, atol=1e-12)
  assert not np.allclose(PER_CLIP(student[:, ::-1], gram(teacher)), expected)


def test_finer_frames_are_averaged_as_for_the_other_terms():
  student, teacher = frames(0, 2, 8, 4), frames(1, 2, 4, 3)
  pooled = student.reshape(2, 4, 2, 4).mean(2)
  for own, other in ((student, teacher), (teacher, student)):
    coarse = [pooled if x is student else x for x in (own, other)]
    np.testing.assert_allclose(
      PER_CLIP(own, gram(other)),
      PER_CLIP(coarse[0], gram(coarse[1])),
      rtol=1e-4,
    )


def test_silence_and_padding_have_finite_gradients():
  student = frames(0, 2, 5, 3)
  student[0] = 0.0
  student[1, 3:] = np.nan
  mask_BT = jnp.asarray([[1.0] * 5, [1.0, 1.0, 1.0, 0.0, 0.0]])
  teacher = gram(frames(1, 2, 5, 3))

  def loss(student_BTD):
    return PER_CLIP(student_BTD, teacher, mask_BT).sum()

  assert np.isfinite(loss(jnp.asarray(student)))
  gradient = jax.jit(jax.grad(loss))(jnp.asarray(student))
  assert np.isfinite(gradient[1, :3]).all()
  assert np.isfinite(gradient[0]).all()


def test_it_is_a_row_of_the_table():
  config = table.get_config('student=crnn_32')
  config.table.objectives = ('baseline', 'attention_transfer')
  config = identity.plain(config)
  grid.check_grid(config)
  found = grid.objective(config, 'crnn_32', 'attention_transfer')
  assert found.ratios == {'attention_transfer': base.UNTUNED}
  assert found.targets == ('frame_gram',)
  assert terms.TERMS['attention_transfer'].title == 'AT'
