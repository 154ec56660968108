"""Distillation of soft tags: float64 loops of the formulas, and their laws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objective_references import SEEDS, draw, few

from iusp_jax import objectives
from iusp_jax.objectives import losses, soft_tags

# Clips, frames of the student and of the teacher, tags.
SHAPES = [(3, 6, 6, 4), (2, 4, 12, 3), (2, 9, 6, 3), (1, 1, 1, 1)]
shapes = pytest.mark.parametrize('shape', SHAPES)


def close(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# The references: float64, number by number.


def probability(logit, temperature=1.0):
  """(p, 1 − p), each exact where it is small."""
  x = float(logit) / temperature
  small = math.exp(-abs(x)) / (1 + math.exp(-abs(x)))
  large = 1 / (1 + math.exp(-abs(x)))
  return (large, small) if x >= 0 else (small, large)


def kl(teacher, student):
  """Of two (p, 1 − p)."""
  return sum(
    q * (math.log(q) - math.log(p))
    for q, p in zip(teacher, student, strict=True)
    if q
  )


def pooled(pairs_TC, num_out):
  """Means of (p, 1 − p) over equal spans of time, by shares of frames."""
  num_in = len(pairs_TC)
  fine = [pairs_TC[k // num_out] for k in range(num_in * num_out)]
  return [
    [
      tuple(np.mean([fine[k][c] for k in span], axis=0))
      for c in range(len(pairs_TC[0]))
    ]
    for span in np.arange(num_in * num_out).reshape(num_out, num_in)
  ]


def frame_pairs(logits_TC, num_out, temperature=1.0):
  pairs = [[probability(x, temperature) for x in row] for row in logits_TC]
  return pooled(pairs, num_out)


def frames_of(student_BTC, teacher_BTC, mask_BT, temperature=1.0):
  """By clip: pairs of both models in the frames of the recording."""
  num_frames = min(student_BTC.shape[1], teacher_BTC.shape[1])
  for b in range(len(student_BTC)):
    both = [
      frame_pairs(x[b], num_frames, temperature)
      for x in (student_BTC, teacher_BTC)
    ]
    keep = [t for t in range(num_frames) if mask_BT is None or mask_BT[b, t]]
    yield [[pairs[t] for t in keep] for pairs in both]


def mean(values):
  values = list(values)
  return sum(values) / len(values) if values else 0.0


def frame_kd(student_BTC, teacher_BTC, temperature, mask_BT, mask_C):
  tags = [c for c in range(student_BTC.shape[2]) if mask_C is None or mask_C[c]]
  return temperature**2 * mean(
    mean(
      kl(r[c], s[c])
      for s, r in zip(student, teacher, strict=True)
      for c in tags
    )
    for student, teacher in frames_of(
      student_BTC, teacher_BTC, mask_BT, temperature
    )
  )


def clip_kd(student_BC, teacher_BC, temperature=1.0, weight=lambda b, c: 1.0):
  return temperature**2 * mean(
    weight(b, c)
    * kl(
      probability(teacher_BC[b, c], temperature),
      probability(student_BC[b, c], temperature),
    )
    for b, c in np.ndindex(student_BC.shape)
  )


def linear_softmax(pairs_TC):
  """Σ p² / Σ p and 1 less it, for each tag."""
  found = []
  for c in range(len(pairs_TC[0])):
    total = sum(pairs[c][0] for pairs in pairs_TC)
    on = sum(pairs[c][0] ** 2 for pairs in pairs_TC) / total
    off = sum(pairs[c][0] * pairs[c][1] for pairs in pairs_TC) / total
    found.append((on, off))
  return found


def clip_frame_kd(s_BC, s_BTC, r_BC, r_BTC, mask_BT):
  intra, inter = [], []
  for b, (student, teacher) in enumerate(frames_of(s_BTC, r_BTC, mask_BT)):
    if not student:
      intra.append(0.0)
      inter.append(0.0)
      continue
    own = [probability(x) for x in s_BC[b]]
    others = [probability(x) for x in r_BC[b]]
    tags = range(len(own))
    intra.append(
      mean(kl(others[c], own[c]) for c in tags)
      + mean(
        kl(r[c], s[c])
        for s, r in zip(student, teacher, strict=True)
        for c in tags
      )
    )
    of_student, of_teacher = linear_softmax(student), linear_softmax(teacher)
    inter.append(
      mean(
        kl(others[c], of_student[c]) + kl(of_teacher[c], own[c]) for c in tags
      )
    )
  return mean(intra), mean(inter)


def multilevel_kd(student_BC, teacher_BC, temperature):
  p, q = (
    np.array([[probability(x, temperature)[0] for x in row] for row in rows])
    for rows in (student_BC, teacher_BC)
  )
  num_clips, num_tags = p.shape
  batch = mean(
    (q[i] @ q[j] - p[i] @ p[j]) ** 2 / num_tags**2
    for i in range(num_clips)
    for j in range(num_clips)
  )
  of_class = mean(
    (q[:, c] @ q[:, d] - p[:, c] @ p[:, d]) ** 2 / num_clips**2
    for c in range(num_tags)
    for d in range(num_tags)
  )
  return clip_kd(student_BC, teacher_BC, temperature), batch, of_class


def hard_frame_kd(student_BTC, teacher_BTC, width, mask_BT):
  num_frames = min(student_BTC.shape[1], teacher_BTC.shape[1])
  num_fine, values = teacher_BTC.shape[1], []
  for b in range(len(student_BTC)):
    share = num_fine // num_frames if num_fine > num_frames else 1
    there = [
      mask_BT is None or bool(mask_BT[b, t // share]) for t in range(num_fine)
    ]
    hard = np.zeros(teacher_BTC.shape[1:])
    for t, c in np.ndindex(hard.shape):
      window = range(t - width // 2, t - width // 2 + width)
      votes = [
        teacher_BTC[b, u, c] >= 0
        for u in window
        if 0 <= u < num_fine and there[u]
      ]
      hard[t, c] = 2 * sum(votes) > len(votes)
    student = frame_pairs(student_BTC[b], num_frames)
    target = pooled([[(h, 1 - h) for h in row] for row in hard], num_frames)
    values.append(
      mean(
        -target[t][c][0] * math.log(student[t][c][0])
        - target[t][c][1] * math.log(student[t][c][1])
        for t in range(num_frames)
        if mask_BT is None or mask_BT[b, t]
        for c in range(hard.shape[1])
      )
    )
  return mean(values)


def dist_tags(student_BC, teacher_BC, temperature):
  values = []
  for c in range(student_BC.shape[1]):
    p, q = (
      np.array([probability(x, temperature)[0] for x in rows[:, c]])
      for rows in (student_BC, teacher_BC)
    )
    p, q = p - p.mean(), q - q.mean()
    if np.abs(p).max() > 1e-12 and np.abs(q).max() > 1e-12:
      values.append(1 - p @ q / np.linalg.norm(p) / np.linalg.norm(q))
  return mean(values)


# Values ----------------------------------------------------------------------


def logits_of(shape, seed=0, scale=3.0):
  """Clip and frame logits of both models, and a mask of the coarser frames."""
  num_clips, num_s, num_r, num_tags = shape
  found = [
    scale * draw(seed + k, *size)
    for k, size in enumerate(
      [
        (num_clips, num_tags),
        (num_clips, num_s, num_tags),
        (num_clips, num_tags),
        (num_clips, num_r, num_tags),
      ]
    )
  ]
  mask_BT = np.ones((num_clips, min(num_s, num_r)), np.float32)
  if mask_BT.shape[1] > 2:
    mask_BT[0, -2:] = 0
  if num_clips > 2:
    mask_BT[2] = 0  # Nothing but padding.
  return *found, mask_BT


@shapes
@pytest.mark.parametrize('masked', [False, True])
def test_losses_of_frames_follow_their_formulas(shape, masked):
  s_BC, s_BTC, r_BC, r_BTC, mask_BT = logits_of(shape)
  mask_C = np.ones(shape[3], np.float32)
  mask_C[: shape[3] // 2] = 0
  if not masked:
    mask_BT = mask_C = None
  for temperature in (1.0, 3.0):
    close(
      objectives.frame_kd_loss(s_BTC, r_BTC, temperature, mask_BT, mask_C),
      frame_kd(s_BTC, r_BTC, temperature, mask_BT, mask_C),
    )
  close(
    objectives.clip_frame_kd_parts(s_BC, s_BTC, r_BC, r_BTC, mask_BT),
    clip_frame_kd(s_BC, s_BTC, r_BC, r_BTC, mask_BT),
  )


@pytest.mark.parametrize('shape', [SHAPES[0], SHAPES[1], SHAPES[3]])
@pytest.mark.parametrize('width', [1, 2, 3, 7])
@pytest.mark.parametrize('masked', [False, True])
def test_hard_frame_kd_follows_its_formula(shape, width, masked):
  _, s_BTC, _, r_BTC, mask_BT = logits_of(shape)
  mask_BT = mask_BT if masked else None
  close(
    objectives.hard_frame_kd_loss(s_BTC, r_BTC, width, mask_BT),
    hard_frame_kd(s_BTC, r_BTC, width, mask_BT),
  )


@pytest.mark.parametrize('shape', [(5, 4), (4, 1), (1, 3), (2, 2)])
def test_losses_of_clips_follow_their_formulas(shape):
  s_BC, r_BC = 3 * draw(0, *shape), 3 * draw(1, *shape)
  tags_BC = (draw(2, *shape) > 0).astype(np.float32)
  mask_BC = (draw(3, *shape) > -0.5).astype(np.float32)
  tags_BC[mask_BC == 0] = np.nan
  for temperature in (1.0, 2.0):
    close(
      objectives.emphasised_kd_loss(
        s_BC, r_BC, tags_BC, mask_BC, 2.5, temperature
      ),
      clip_kd(
        s_BC,
        r_BC,
        temperature,
        lambda b, c: 2.5 if mask_BC[b, c] and tags_BC[b, c] == 0 else 1.0,
      ),
    )
    close(
      objectives.multilevel_kd_parts(s_BC, r_BC, temperature),
      multilevel_kd(s_BC, r_BC, temperature),
    )
    close(
      objectives.dist_tags_loss(s_BC, r_BC, temperature),
      dist_tags(s_BC, r_BC, temperature),
    )


def test_mostly_sure_tags_are_correlated_exactly():
  """p near 1, where float32 probabilities have no digits left."""
  s_BC, r_BC = 12 + draw(0, 6, 3), -14 + draw(1, 6, 3)
  close(objectives.dist_tags_loss(s_BC, r_BC, 1.0), dist_tags(s_BC, r_BC, 1.0))


# Laws ------------------------------------------------------------------------

LOSSES = {
  'frame_kd': lambda s, f, r, g: soft_tags.frame_kd_loss(f, g, 2.0),
  'emphasised_kd': lambda s, f, r, g: soft_tags.emphasised_kd_loss(
    s, r, jnp.ones_like(s) * jnp.asarray([1.0, 0.0, 0.0])[None]
  ),
  'multilevel_kd': lambda s, f, r, g: sum(soft_tags.multilevel_kd_parts(s, r)),
  'clip_frame_kd': lambda s, f, r, g: sum(
    soft_tags.clip_frame_kd_parts(s, f, r, g)
  ),
  'hard_frame_kd': lambda s, f, r, g: soft_tags.hard_frame_kd_loss(f, g, 3),
  'dist_tags': lambda s, f, r, g: soft_tags.dist_tags_loss(s, r),
}
every = pytest.mark.parametrize('name', LOSSES)


@functools.cache
def compiled(name):
  return jax.jit(jax.value_and_grad(LOSSES[name], argnums=(0, 1)))


@every
@few
@given(seed=SEEDS)
def test_zero_and_flat_where_both_models_agree(name, seed):
  """Clips are steady; the hard tags of frames are those of sure logits."""
  s_BC = 2 * draw(seed, 3, 3)
  if name == 'hard_frame_kd':
    s_BC = 100 * np.sign(s_BC)
  s_BTC = np.repeat(s_BC[:, None], 5, axis=1)
  value, gradients = compiled(name)(s_BC, s_BTC, s_BC, s_BTC)
  np.testing.assert_allclose(value, 0, atol=1e-6)
  for gradient in gradients:
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
  other, _ = compiled(name)(0.5 - s_BC, 0.5 - s_BTC, s_BC, s_BTC)
  assert other > 1e-5


@every
@pytest.mark.parametrize('student', [-100.0, 0.0, 100.0])
@pytest.mark.parametrize('teacher', [-100.0, 0.0, 100.0])
@pytest.mark.parametrize('num_clips', [1, 3])
def test_gradients_of_sure_and_silent_models_are_finite(
  name, student, teacher, num_clips
):
  s_BC, r_BC = (
    np.full((num_clips, 3), x, np.float32) for x in (student, teacher)
  )
  s_BTC, r_BTC = (
    np.full((num_clips, 5, 3), x, np.float32) for x in (student, teacher)
  )
  value, gradients = compiled(name)(s_BC, s_BTC, r_BC, r_BTC)
  assert 0 <= value < 1e5
  for gradient in gradients:
    assert np.abs(gradient).max() < 100
    assert np.isfinite(gradient).all()


@every
def test_half_precision_gives_a_float32_loss(name):
  arrays = logits_of((3, 5, 5, 3))[:4]
  half = [jnp.asarray(x, jnp.bfloat16) for x in arrays]
  value, gradients = compiled(name)(*half)
  expected, _ = compiled(name)(*(x.astype(jnp.float32) for x in half))
  assert value.dtype == jnp.float32
  close(value, expected)
  for gradient in gradients:
    assert gradient.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(gradient, np.float32)).all()


def masked_losses(s_BC, s_BTC, r_BC, r_BTC, mask_BT):
  return jnp.stack(
    [
      soft_tags.frame_kd_loss(s_BTC, r_BTC, 2.0, mask_BT),
      *soft_tags.clip_frame_kd_parts(s_BC, s_BTC, r_BC, r_BTC, mask_BT),
      soft_tags.hard_frame_kd_loss(s_BTC, r_BTC, 3, mask_BT),
    ]
  )


@pytest.mark.parametrize('padding', [np.nan, np.inf, 1e9])
@pytest.mark.parametrize('shape', [(2, 6, 6, 3), (2, 3, 6, 3), (2, 6, 3, 3)])
def test_padding_has_no_influence(shape, padding):
  arrays = logits_of(shape)[:4]
  mask_BT = np.ones((2, min(shape[1:3])), np.float32)
  mask_BT[0, -1:], mask_BT[1] = 0, 0  # The second is nothing but padding.
  jacobian = jax.jit(jax.jacrev(masked_losses, argnums=1))
  expected = masked_losses(*arrays, mask_BT), jacobian(*arrays, mask_BT)
  filled = [np.array(x) for x in arrays]
  for k in (1, 3):
    num_last = filled[k].shape[1] // mask_BT.shape[1]
    filled[k][0, -num_last:], filled[k][1] = padding, padding
  found = masked_losses(*filled, mask_BT), jacobian(*filled, mask_BT)
  for x, y in zip(found, expected, strict=True):
    np.testing.assert_array_equal(x, y)


@few
@given(seed=SEEDS, temperature=st.sampled_from([1.0, 2.0]))
def test_emphasis_of_1_has_the_gradient_of_kd(seed, temperature):
  s_BC, r_BC = 3 * draw(seed, 4, 3), 3 * draw(seed + 1, 4, 3)
  tags_BC = (draw(seed + 2, 4, 3) > 0).astype(np.float32)

  def emphasised(x):
    return soft_tags.emphasised_kd_loss(
      x, r_BC, tags_BC, gamma=1.0, temperature=temperature
    )

  np.testing.assert_allclose(
    jax.grad(emphasised)(s_BC),
    jax.grad(lambda x: losses.kd_loss(x, r_BC, temperature))(s_BC),
    1e-4,
    1e-6,
  )


def test_frame_kd_of_one_frame_has_the_gradient_of_kd():
  s_BTC, r_BTC = 3 * draw(0, 4, 1, 3), 3 * draw(1, 4, 1, 3)
  np.testing.assert_allclose(
    jax.grad(soft_tags.frame_kd_loss)(s_BTC, r_BTC, 2.0)[:, 0],
    jax.grad(losses.kd_loss)(s_BTC[:, 0], r_BTC[:, 0], 2.0),
    1e-4,
    1e-6,
  )


@few
@given(seed=SEEDS)
def test_parts_of_multilevel_kd_do_not_see_permutations(seed):
  """Of tags for the batch part, of clips for the class part."""
  s_BC, r_BC = 2 * draw(seed, 4, 3), 2 * draw(seed + 1, 4, 3)
  rng = np.random.default_rng(seed)
  parts = soft_tags.multilevel_kd_parts(s_BC, r_BC, 2.0)
  tags = soft_tags.multilevel_kd_parts(s_BC[:, rng.permutation(3)], r_BC, 2.0)
  clips = soft_tags.multilevel_kd_parts(s_BC[rng.permutation(4)], r_BC, 2.0)
  close(tags[1], parts[1])
  close(clips[2], parts[2])


@few
@given(seed=SEEDS)
def test_inter_part_does_not_see_the_order_of_the_students_frames(seed):
  arrays = logits_of((2, 5, 5, 3), seed)[:4]
  order = np.random.default_rng(seed).permutation(5)
  moved = arrays[0], arrays[1][:, order], *arrays[2:]
  close(
    soft_tags.clip_frame_kd_parts(*moved)[1],
    soft_tags.clip_frame_kd_parts(*arrays)[1],
  )


@few
@given(seed=SEEDS, scale=st.floats(0.1, 10))
def test_hard_tags_do_not_see_increasing_maps_of_the_teachers_logits(
  seed, scale
):
  _, s_BTC, _, r_BTC, _ = logits_of((2, 5, 5, 3), seed)
  mapped = np.where(r_BTC > 0, scale * r_BTC, r_BTC**3)
  np.testing.assert_array_equal(
    soft_tags.hard_frame_kd_loss(s_BTC, mapped, 3),
    soft_tags.hard_frame_kd_loss(s_BTC, r_BTC, 3),
  )


def test_hard_tags_of_one_frame_are_rounded():
  s_BC, r_BC = 3 * draw(0, 4, 3), 3 * draw(1, 4, 3)
  found = soft_tags.hard_frame_kd_loss(s_BC[:, None], r_BC[:, None], 1)
  sure_BC = np.where(r_BC >= 0, 1e4, -1e4)
  close(found, losses.kd_loss(s_BC, sure_BC, 1.0))


@few
@given(seed=SEEDS, scale=st.floats(0.05, 0.9))
def test_dist_tags_does_not_see_affine_maps_of_a_tags_probabilities(
  seed, scale
):
  s_BC, r_BC = 2 * draw(seed, 5, 3), 2 * draw(seed + 1, 5, 3)
  p_BC = scale / (1 + np.exp(-s_BC.astype(float))) + (1 - scale) / 3
  mapped_BC = np.log(p_BC / (1 - p_BC)).astype(np.float32)
  np.testing.assert_allclose(
    soft_tags.dist_tags_loss(mapped_BC, r_BC),
    soft_tags.dist_tags_loss(s_BC, r_BC),
    1e-4,
    1e-5,
  )


def test_constant_tags_are_left_out_and_counted():
  s_BC, r_BC = draw(0, 5, 4), draw(1, 5, 4)
  s_BC[:, 1], r_BC[:, 2] = 0.3, -100.0  # A tag that nobody has.
  loss, left_out = soft_tags.dist_tags_parts(s_BC, r_BC)
  close(loss, soft_tags.dist_tags_loss(s_BC[:, ::3], r_BC[:, ::3]))
  assert left_out == 2


# Refusals --------------------------------------------------------------------


def test_shapes_that_do_not_fit_are_refused():
  x_BTC = draw(0, 2, 4, 3)
  with pytest.raises(ValueError, match=r'student frame logits have shape'):
    soft_tags.frame_kd_loss(x_BTC[0], x_BTC)
  with pytest.raises(ValueError, match=r'\(2, 3\), of the teacher \(2, 2\)'):
    soft_tags.frame_kd_loss(x_BTC, x_BTC[..., :2])
  with pytest.raises(ValueError, match=r'frame mask has shape \(2, 3\)'):
    soft_tags.frame_kd_loss(x_BTC, x_BTC, mask_BT=np.ones((2, 3)))
  x_BC, narrow_BC = x_BTC[:, 0], x_BTC[:, 0, :1]
  for loss in (
    soft_tags.multilevel_kd_parts,
    soft_tags.dist_tags_loss,
    lambda s, r: soft_tags.emphasised_kd_loss(s, r, s),
    lambda s, r: soft_tags.emphasised_kd_loss(s, s, r),
    lambda s, r: soft_tags.clip_frame_kd_parts(s, x_BTC, r, x_BTC),
  ):
    with pytest.raises(ValueError, match=r'\(2, 3\), others .*\(2, 1\)'):
      loss(x_BC, narrow_BC)
  for temperature in (0, -1.0, float('nan')):
    for x, loss in (
      (x_BTC, soft_tags.frame_kd_loss),
      (x_BC, soft_tags.multilevel_kd_parts),
      (x_BC, soft_tags.dist_tags_loss),
    ):
      with pytest.raises(ValueError, match=r'temperature is .*more than 0'):
        loss(x, x, temperature)
  with pytest.raises(ValueError, match='width is 0'):
    soft_tags.hard_frame_kd_loss(x_BTC, x_BTC, 0)
