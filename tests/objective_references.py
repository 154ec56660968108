"""Float64 references of the objectives, and frames to hold them against.

They follow the papers' formulas and share no code with the package.
"""

import jax
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from iusp_jax.objectives import losses, similarity

SEEDS = st.integers(0, 2**32 - 1)
SCALES = st.floats(1e-3, 1e3)
few = settings(max_examples=8)
both = pytest.mark.parametrize('name', ['sp', 'iusp'])

# One program a loss and shape gives value and gradient: compiling is what
# takes the time here, so student [3, 5, 4] and teacher [3, 5, 6] are the rule.
VALUE_AND_GRADIENT = {
  'sp': jax.jit(jax.value_and_grad(losses.sp_loss)),
  'iusp': jax.jit(jax.value_and_grad(losses.iusp_loss)),
}


def loss(name, *arguments):
  return VALUE_AND_GRADIENT[name](*arguments)[0]


def gradient(name, *arguments):
  return np.asarray(VALUE_AND_GRADIENT[name](*arguments)[1])


iusp_per_clip = jax.jit(losses.iusp_per_clip)
sp_per_clip = jax.jit(losses.sp_per_clip)
frame_grams = jax.jit(jax.vmap(similarity.gram))
tagging_per_tag = jax.jit(losses.tagging_per_tag)
tagging = jax.jit(jax.value_and_grad(losses.tagging_loss))


def draw(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pair(seed, num_clips=3, num_frames=5):
  """Frames of a student and a teacher; no row is near the floor."""
  return tuple(
    unit(draw(part, num_clips, num_frames, size))
    for part, size in ((seed, 4), (seed + 1, 6))
  )


def unit(frames):
  """Frames of length between 1 and 2."""
  length = np.linalg.norm(frames, axis=-1, keepdims=True)
  return frames * (1 + np.tanh(length)) / np.maximum(length, 1e-6)


def rotated(frames, seed, scale):
  size = frames.shape[-1]
  normal = np.random.default_rng(seed).normal(size=(size, size))
  return (scale * frames @ np.linalg.qr(normal)[0]).astype(np.float32)


def teacher_gram(teacher_BTD):
  """Unnormalised similarities of clips, as a teacher hands them over."""
  flat = teacher_BTD.reshape(len(teacher_BTD), -1)
  return flat @ flat.T


# The references, float64.


def rows_of_length_one(vectors, floor=0.0):
  """Gram matrix with normalised rows; shorter ones over a relative floor."""
  vectors = np.asarray(vectors, np.float64)
  gram = vectors @ vectors.T
  length = np.sqrt(np.sum(gram**2, axis=1))
  least = floor * np.sqrt(np.mean(length**2))
  return gram / np.maximum(length, least)[:, None]


def sp_reference(student_BTD, teacher_BTD, floor=0.0):
  num_clips = len(student_BTD)
  student_BB, teacher_BB = (
    rows_of_length_one(frames.reshape(num_clips, -1), floor)
    for frames in (student_BTD, teacher_BTD)
  )
  return np.sum((teacher_BB - student_BB) ** 2) / num_clips**2


def iusp_of_each(student_BTD, teacher_BTD, floor=0.0):
  values = []
  for student_TD, teacher_TD in zip(student_BTD, teacher_BTD, strict=True):
    num_frames = min(len(student_TD), len(teacher_TD))
    student_TT, teacher_TT = (
      rows_of_length_one(pooled(frames, num_frames), floor)
      for frames in (student_TD, teacher_TD)
    )
    values.append(np.sum((teacher_TT - student_TT) ** 2) / num_frames**2)
  return np.array(values)


def iusp_reference(student_BTD, teacher_BTD, floor=0.0):
  return np.mean(iusp_of_each(student_BTD, teacher_BTD, floor))


REFERENCE = {'sp': sp_reference, 'iusp': iusp_reference}


def pooled(frames_TD, num_out):
  cut_TD = np.repeat(np.asarray(frames_TD, np.float64), num_out, axis=0)
  return cut_TD.reshape(num_out, len(frames_TD), -1).mean(1)


def entropy(logits, tags):
  """Bernoulli cross-entropy, float64, from log(1 + e^x)."""
  logits, tags = np.asarray(logits, np.float64), np.asarray(tags, np.float64)
  return np.logaddexp(0, logits) - tags * logits


def sigmoid(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def slopes(function, x, step=1e-5):
  """Central differences in every number of x, float64."""
  x = np.asarray(x, np.float64)
  found = np.zeros_like(x)
  for i in np.ndindex(x.shape):
    moved = np.zeros_like(x)
    moved[i] = step
    found[i] = (function(x + moved) - function(x - moved)) / (2 * step)
  return found


def agree(found, expected):
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def slopes_agree(found, expected):
  size = np.abs(expected).max()
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * size)
