"""Temperatures and thresholds: rules, files, and what a run leaves."""

import json

import fakes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iusp_jax.data import datasets
from iusp_jax.experiment import results
from iusp_jax.scoring import calibration

NAMES = ('a', 'b', 'c')


def drawn(count=4000, temperature=2.5, seed=0):
  """Logits that are too confident by a factor, and what is there."""
  rng = np.random.default_rng(seed)
  logits_N = rng.normal(-1, 2, count)
  present_N = rng.random(count) < 1 / (1 + np.exp(-logits_N))
  return temperature * logits_N, present_N


@pytest.mark.parametrize('temperature', [0.3, 1.0, 2.5, 8.0])
def test_the_temperature_is_found_again(temperature):
  logits_N, present_N = drawn(20_000, temperature)
  found = calibration.fit_temperature(logits_N, present_N)
  assert found == pytest.approx(temperature, rel=0.06)


def test_temperatures_stay_within_their_range():
  logits_N = np.array([1.0, 1.0, -1.0, -1.0])
  right_N = logits_N > 0
  assert calibration.fit_temperature(logits_N, right_N) < 0.06
  assert calibration.fit_temperature(logits_N, ~right_N) > 19


def test_reliability_against_loops():
  rng = np.random.default_rng(0)
  scores_NC = np.append(rng.random((50, 3)) ** 2, [[0.0, 1.0, 0.5]], 0)
  tags_NC = (rng.random((51, 3)) < scores_NC).astype(np.float64)
  mask_NC = (rng.random((51, 3)) < 0.8).astype(np.float64)
  found = calibration.reliability(scores_NC, tags_NC, mask_NC)
  total, error = mask_NC.sum(), 0.0
  for k in range(10):
    inside = [
      (scores_NC[n, c], tags_NC[n, c])
      for n in range(51)
      for c in range(3)
      if mask_NC[n, c]
      and (
        k / 10 <= scores_NC[n, c] < (k + 1) / 10
        or (k == 9 and scores_NC[n, c] == 1.0)
      )
    ]
    assert found['count'][k] == len(inside)
    if not inside:
      assert found['probability'][k] is found['present'][k] is None
      continue
    mean, present = np.mean(inside, axis=0)
    assert found['probability'][k] == pytest.approx(mean)
    assert found['present'][k] == pytest.approx(present)
    error += len(inside) / total * abs(mean - present)
  assert found['error'] == pytest.approx(error)


def test_nothing_labelled_has_no_bins():
  zeros = np.zeros((4, 2))
  found = calibration.reliability(zeros, zeros, zeros)
  assert found['error'] == 0.0
  assert found['present'] == [None] * 10


def f1(scores_N, present_N, threshold):
  found_N = scores_N >= threshold
  return 2 * (found_N & present_N).sum() / (found_N.sum() + present_N.sum())


@given(
  st.lists(
    st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=30
  ).filter(lambda pairs: any(present for _, present in pairs))
)
def test_the_threshold_has_the_best_f1(pairs):
  scores_N = np.array([score / 10 + 0.05 for score, _ in pairs])
  present_N = np.array([present for _, present in pairs])
  found = calibration.best_threshold(scores_N, present_N)
  own = f1(scores_N, present_N, found)
  others = [f1(scores_N, present_N, s) for s in scores_N]
  assert own == pytest.approx(max(others))
  lowest = min(s for s in scores_N if s >= found)
  higher = [s for s in scores_N if s > lowest]
  assert all(f1(scores_N, present_N, s) < own for s in higher)


def test_fit_names_tags_with_few_positives_and_passes_over_what_is_unknown():
  logits_N, present_N = drawn(500)
  probabilities_N = 1 / (1 + np.exp(-logits_N))
  tags_NC = np.zeros((500, 3))
  tags_NC[:, 0] = tags_NC[:, 1] = present_N
  tags_NC[:4, 2] = 1  # One too few.
  mask_NC = np.ones((500, 3))
  mask_NC[250:, 1] = 0
  wrong_NC = np.stack([probabilities_N] * 3, axis=1)
  wrong_NC[250:, 1] = 1 - wrong_NC[250:, 1]  # Must not count.
  found = calibration.fit(wrong_NC, tags_NC, mask_NC, NAMES, 'validate')
  assert found.uncalibrated == ('c',)
  assert (found.temperatures_C[2], found.thresholds_C[2]) == (1.0, 0.5)
  for c, size in ((0, 500), (1, 250)):
    wanted = calibration.fit_temperature(logits_N[:size], present_N[:size])
    assert found.temperatures_C[c] == pytest.approx(wanted, rel=1e-3)
  assert found.temperatures_C[0] == pytest.approx(2.5, rel=0.2)
  probabilities = found.probabilities(np.stack([logits_N] * 3, axis=1))
  np.testing.assert_allclose(probabilities[:, 2], probabilities_N)
  assert found.probabilities(np.array([-1e4, 1e4, 0.0])).tolist() == [0, 1, 0.5]


def test_files_come_back(tmp_path):
  own = calibration.Calibration(
    np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.5, 0.9]), ('b',), 'validate'
  )
  calibration.save(tmp_path, own, NAMES)
  found = calibration.load(tmp_path, NAMES)
  np.testing.assert_array_equal(found.temperatures_C, own.temperatures_C)
  np.testing.assert_array_equal(found.thresholds_C, own.thresholds_C)
  assert (found.uncalibrated, found.fitted_on) == (('b',), 'validate')


def test_without_a_file_there_is_no_calibration(tmp_path):
  found = calibration.load(tmp_path, NAMES)
  assert found.temperatures_C.tolist() == [1, 1, 1]
  assert found.thresholds_C.tolist() == [0.5] * 3
  assert found.fitted_on == ''


@pytest.mark.parametrize(
  'change',
  [
    {'thresholds': {'a': 0.5}},
    {'temperatures': {'a': -1.0, 'b': 1.0, 'c': 1.0}},
    {'temperatures': {'a': None, 'b': 1.0, 'c': 1.0}},
    {'temperatures': {'b': 1.0, 'a': 1.0, 'c': 1.0}},
    {'temperatures': 3},
    {'uncalibrated': None},
  ],
)
def test_files_that_are_wrong_are_named(tmp_path, change):
  calibration.save(tmp_path, calibration.default(NAMES), NAMES)
  path = tmp_path / calibration.NAME
  path.write_text(json.dumps(json.loads(path.read_text()) | change))
  with pytest.raises(ValueError, match=r'calibration.json: expected .* delete'):
    calibration.load(tmp_path, NAMES)
  path.write_text('{')
  with pytest.raises(ValueError, match=r'calibration\.json'):
    calibration.load(tmp_path, NAMES)


def test_a_run_leaves_the_calibration_of_its_validation_split(tmp_path):
  data = fakes.dataset('coarse', sizes=(8, 60, 4))
  tags_NC, mask_NC = datasets.labels(data.splits['validate'])
  assert tags_NC.shape == mask_NC.shape == (60, 8)
  rng = np.random.default_rng(0)
  scores_NC = np.clip(0.6 * tags_NC + 0.3 * rng.random((60, 8)), 0.01, 0.99)
  results._write_calibration(data, {'validate': scores_NC}, tmp_path)
  found = calibration.load(tmp_path, data.tags)
  assert found.fitted_on == 'validate'
  for c in range(8):
    if data.tags[c] in found.uncalibrated:
      assert tags_NC[:, c].sum() < calibration.MIN_POSITIVES
      continue
    # The scores tell the tag apart: so does the threshold.
    probabilities = found.probabilities(
      np.log(scores_NC) - np.log1p(-scores_NC)
    )[:, c]
    np.testing.assert_array_equal(
      probabilities >= found.thresholds_C[c], tags_NC[:, c] > 0
    )
