"""The README: its length, and the snippet for a loop of one's own."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from commands import ROOT

README = (ROOT / 'README.md').read_text()


def test_the_readme_is_short():
  assert len(README.splitlines()) <= 120


def snippet():
  """The one block of Python."""
  (block,) = re.findall(r'```python\n(.*?)```', README, re.DOTALL)
  return block


def run_snippet(text):
  """What the snippet leaves, for a linear student of other size and rate."""

  def student(params, mel_BTF):
    frames_BTD = mel_BTF @ params['frames']
    return frames_BTD.mean(1) @ params['tags'], frames_BTD

  def draw(*shape):
    rng = np.random.default_rng(len(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32)

  names = {
    'student': student,
    'params': {'frames': draw(20, 6), 'tags': draw(6, 3)},
    'mel': draw(4, 16, 20),
    'tags': (draw(4, 3) > 0).astype(jnp.float32),
    'teacher_frames': draw(4, 8, 9),
  }
  exec(text, names)
  return names


def test_the_snippet_has_six_lines():
  assert len(snippet().strip().splitlines()) == 6


def test_the_snippet_gives_gradients_of_both_terms():
  found = run_snippet(snippet())['gradients']
  assert {name: x.shape for name, x in found.items()} == {
    'frames': (20, 6),
    'tags': (6, 3),
  }
  assert all(np.isfinite(x).all() and np.any(x) for x in found.values())
  alone = run_snippet(snippet().replace('300 *', '0 *'))['gradients']
  # The tags' own layer gets nothing from the frames' similarities.
  np.testing.assert_allclose(alone['tags'], found['tags'], 1e-6)
  assert np.abs(alone['frames'] - found['frames']).max() > 1e-3


def test_steps_along_the_gradient_come_nearer_to_the_teacher():
  names = run_snippet(snippet())
  loss, grad = jax.jit(names['loss']), jax.jit(jax.grad(names['loss']))
  args = names['mel'], names['tags'], names['teacher_frames']
  params, first = names['params'], loss(names['params'], *args)
  for _ in range(20):
    params = jax.tree.map(
      lambda p, g: p - 0.01 * g, params, grad(params, *args)
    )
  assert loss(params, *args) < first
