"""The linear probe: the minimum of its loss, and nothing left to chance."""

import numpy as np
import pytest
from sklearn import linear_model

from iusp_jax.training import probe


def clips(count=200, features=6, tags=3, seed=0, truth=0):
  """Features of very different sizes, and tags that depend on some."""
  rng = np.random.default_rng(seed)
  sizes_P = 10.0 ** np.linspace(-1, 1, features)
  features_NP = rng.standard_normal((count, features)) * sizes_P + 5 * sizes_P
  kernel_PC = np.random.default_rng(truth).standard_normal((features, tags))
  logits_NC = (features_NP / sizes_P - 5) @ kernel_PC - 1
  tags_NC = (rng.random((count, tags)) < 1 / (1 + np.exp(-logits_NC))) * 1.0
  return probe.Labelled(features_NP, tags_NC, np.ones_like(tags_NC))


def test_probe_is_the_minimum_that_another_program_finds():
  train = clips()
  x_NP = train.features_NP
  standard_NP = (x_NP - x_NP.mean(0)) / x_NP.std(0)
  for penalty, found in zip(probe.PENALTIES, probe.fit(train), strict=True):
    for tag in range(3):
      other = linear_model.LogisticRegression(
        C=1 / (penalty * len(x_NP)), tol=1e-8, max_iter=1000
      ).fit(standard_NP, train.tags_NC[:, tag])
      np.testing.assert_allclose(
        found.logits(x_NP)[:, tag],
        other.decision_function(standard_NP),
        atol=0.02,
      )


def test_tags_that_do_not_count_teach_nothing():
  train = clips()
  rng = np.random.default_rng(1)
  mask_NC = np.broadcast_to(rng.random((200, 1)) < 0.7, (200, 3)) * 1.0
  wrong_NC = np.where(mask_NC > 0, train.tags_NC, 1 - train.tags_NC)
  one, other = (
    probe.fit(train._replace(tags_NC=tags_NC, mask_NC=mask_NC))[4]
    for tags_NC in (train.tags_NC, wrong_NC)
  )
  np.testing.assert_array_equal(one.kernel_PC, other.kernel_PC)
  masked = train._replace(mask_NC=mask_NC)
  flipped = masked._replace(tags_NC=wrong_NC)
  assert probe.loss(one, masked) == probe.loss(one, flipped)


def test_loss_is_the_cross_entropy_of_a_clip():
  train = clips()
  found = probe.fit(train)[2]
  p_NC = 1 / (1 + np.exp(-found.logits(train.features_NP)))
  y_NC = train.tags_NC
  each_NC = -(y_NC * np.log(p_NC) + (1 - y_NC) * np.log(1 - p_NC))
  assert probe.loss(found, train) == pytest.approx(each_NC.sum(1).mean())


def test_weaker_penalties_fit_better_and_the_same_twice():
  train = clips()
  losses = [probe.loss(found, train) for found in probe.fit(train)]
  assert losses == sorted(losses, reverse=True)
  assert losses == [probe.loss(found, train) for found in probe.fit(train)]


def test_feature_that_is_constant_in_training_does_no_harm():
  train = clips()
  train.features_NP[:, 0] = 7.0
  for found in probe.fit(train):
    logits_NC = found.logits(train.features_NP)
    assert np.isfinite(logits_NC).all()
    assert (found.kernel_PC[0] == 0).all()
