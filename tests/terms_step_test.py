"""Every term of the objective in the train step, with its targets.

All of them at once, since compiling is what takes the time.
"""

import functools

import fits
import numpy as np
from fits import bits, fit, make_job

from iusp_jax.objectives import terms

PLAN = {'epochs': 1.0, 'eval_every_epochs': 1.0}  # Three steps.
NAMES = tuple(terms.TERMS)
WEIGHTS = dict.fromkeys(NAMES, 1.0)


def job(weights=WEIGHTS, **fields):
  return make_job(weights, **PLAN | fields)


@functools.cache
def run_of_all():
  """With the outputs of the teacher stored; nothing in it may be changed."""
  (member,) = fit([job()])
  return member


def test_every_term_is_finite_and_more_than_zero():
  found = fits.losses(run_of_all())
  for name in NAMES:
    assert np.isfinite(found[name]).all(), name
    assert (found[name] > 0).all(), name
  total = found['tagging'] + sum(found[name] for name in NAMES)
  np.testing.assert_allclose(found['loss'], total, 1e-5)


def test_losses_do_not_depend_on_the_number_of_devices():
  with fits.num_devices(1):
    (one,) = fit([job()])
  fits.assert_same_losses(one, run_of_all())


def test_losses_are_those_of_a_teacher_that_runs_in_every_step():
  (running,) = fit([job(teacher=True)])
  fits.assert_same_losses(running, run_of_all())


def test_terms_of_weight_0_leave_the_student_as_it_is():
  """Also those with parameters of their own, to the last bit."""
  fields = {'clip_norm': 0.5, 'ema_decay': 0.9}
  (member,) = fit([job(dict.fromkeys(NAMES, 0.0), **fields)])
  (plain,) = fit([job({}, **fields)])
  for row in member.rows:
    for name in NAMES:
      row.pop(f'train/{name}', None)
  assert bits(member) == bits(plain)
