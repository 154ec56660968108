"""Differences, intervals and tests, against closed forms and brute force."""

import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from scipy import stats

from iusp_jax.scoring import metrics, statistics

SEEDS = st.integers(0, 2**32 - 1)
few = hypothesis.settings(max_examples=15, deadline=None, database=None)


def scores(seed, n=8, num_resamples=40, rotations=1, clip_noise=0.01):
  """Scores of three objectives: [3, S], [3, S, R] and the rotations."""
  rng = np.random.default_rng(seed)
  score_KS = 0.5 + 0.02 * rng.normal(size=(3, n))
  clips = clip_noise * rng.normal(size=(3, rotations, num_resamples))
  rotation_S = np.arange(n) % rotations
  return score_KS, score_KS[..., None] + clips[:, rotation_S], rotation_S


def difference(score_KS, score_KSR, rotation_S, own=0, other=1, **more):
  return statistics.paired_difference(
    score_KS[own],
    score_KS[other],
    score_KSR[own],
    score_KSR[other],
    rotation_S,
    **{'draws': 500, **more},
  )


def ratio(score_KS, score_KSR=(None,) * 3, rotation_S=None, **more):
  return statistics.gain_ratio(*score_KS, *score_KSR, rotation_S, **more)


def numbers(result):
  return np.array([result.mean, result.sd, result.low, result.high], np.float64)


class TestSummary:
  def test_closed_form(self):
    found = statistics.summarise([1, 2, 3, 4])
    assert found.mean == 2.5
    assert found.sd == pytest.approx(math.sqrt(5 / 3))
    assert found.n == 4

  def test_one_value_has_no_sd(self):
    assert statistics.summarise([0.3]) == statistics.Summary(0.3, None, 1)


class TestSignTest:
  @pytest.mark.parametrize('n', [1, 2, 5, 8, 13])
  def test_is_the_binomial_test(self, n):
    for wins in range(n + 1):
      difference_S = np.repeat([1.0, -1.0], [wins, n - wins])
      expected = stats.binomtest(wins, n).pvalue
      assert statistics.sign_test(difference_S) == pytest.approx(expected)

  def test_ties_do_not_count(self):
    assert statistics.sign_test([1, 1, 1, 0, 0, 0]) == 0.25
    assert statistics.sign_test([0, 0]) == 1

  def test_five_seeds_cannot_reach_five_percent(self):
    assert statistics.sign_test([1.0] * 5) == 0.0625
    assert statistics.sign_test([1.0] * 8) == pytest.approx(2 / 256)


class TestPermutationTest:
  @pytest.mark.parametrize('n', [1, 2, 3, 7, 10])
  def test_brute_force(self, n):
    value_S = np.random.default_rng(n).normal(0.5, 1, n)
    means = [
      abs(np.dot(flip, value_S))
      for flip in itertools.product([1, -1], repeat=n)
    ]
    expected = np.mean(np.array(means) >= abs(value_S.sum()) - 1e-9)
    assert statistics.permutation_test(value_S) == pytest.approx(expected)

  def test_agrees_with_scipy(self):
    value_S = np.random.default_rng(3).normal(0.4, 1, 9)
    expected = stats.permutation_test(
      (value_S,), np.mean, permutation_type='samples', n_resamples=np.inf
    ).pvalue
    assert statistics.permutation_test(value_S) == pytest.approx(expected)

  def test_equal_sums_are_equally_far(self):
    # 0.1 + 0.2 is not 0.3 in floating point; of the 8 flips 6 tie or exceed 0.
    value_S = np.array([0.1, 0.2, -0.3])
    assert statistics.permutation_test(value_S) == 1.0
    assert statistics.permutation_test([0.1, 0.2, 0.3]) == 2 / 8

  def test_sampled_flips_come_near_the_exact(self):
    """17 pairs are the fewest whose flips are sampled."""
    value_S = np.random.default_rng(5).normal(0.6, 1, 17)
    flip_WS = 1 - 2 * (np.arange(2**17)[:, None] >> np.arange(17) & 1)
    exact = np.mean(np.abs(flip_WS @ value_S) >= abs(value_S.sum()) - 1e-9)
    found = statistics.permutation_test(value_S)
    assert found != exact
    assert found == pytest.approx(exact, abs=3e-3)
    assert exact > 0.01

  def test_many_pairs(self):
    value_S = np.random.default_rng(0).normal(1, 1, 40)
    assert 0 < statistics.permutation_test(value_S) < 1e-4

  @pytest.mark.parametrize('n', [9, 20])
  def test_neither_order_nor_direction_matters(self, n):
    rng = np.random.default_rng(n)
    value_S = rng.normal(0.3, 1, n).round(1)  # Some are equal but for the sign.
    found = statistics.permutation_test(value_S)
    assert statistics.permutation_test(rng.permutation(value_S)) == found
    assert statistics.permutation_test(-value_S) == found

  def test_one_pair_and_ties_tell_nothing(self):
    assert statistics.permutation_test([0.3]) == 1
    for n in (1, 2, 20):
      assert statistics.permutation_test([0.0] * n) == 1


class TestPairedDifference:
  def test_mean_and_sd_are_those_of_the_pairs(self):
    score_KS, score_KSR, _ = scores(0)
    found = difference(score_KS, score_KSR, None)
    pair_S = score_KS[0] - score_KS[1]
    assert found.mean == pytest.approx(pair_S.mean(), abs=1e-12)
    assert found.sd == pytest.approx(pair_S.std(ddof=1), abs=1e-12)
    assert found.n == 8
    assert found.wins + found.losses == 8
    assert found.sign_p == pytest.approx(stats.binomtest(found.wins, 8).pvalue)
    assert found.resamples == 40

  @pytest.mark.parametrize('n', [8, 12, 30])
  def test_without_clips_it_is_close_to_students_interval(self, n):
    own_S = np.random.default_rng(n).normal(0.5, 0.02, n)
    found = statistics.paired_difference(own_S, np.zeros(n))
    low, high = stats.t.interval(0.95, n - 1, own_S.mean(), stats.sem(own_S))
    assert found.high - found.low == pytest.approx(high - low, rel=0.1)
    assert found.low == pytest.approx(low, abs=0.15 * (high - low))
    assert found.resamples == 0

  def test_without_noise_of_seeds_it_is_the_quantile_over_clips(self):
    clip_R = np.random.default_rng(1).normal(size=2000)
    own_SR = np.tile(clip_R, (6, 1))
    found = statistics.paired_difference(
      np.zeros(6), np.zeros(6), own_SR, np.zeros_like(own_SR)
    )
    expected = np.quantile(clip_R, [0.025, 0.975])
    assert [found.low, found.high] == pytest.approx(expected, abs=0.1)

  def test_rotations_draw_their_clips_independently(self):
    # Two rotations of equal noise: independent draws narrow it by √2.
    clip_R = np.random.default_rng(1).normal(size=2000)
    own_SR = np.tile(clip_R, (8, 1))
    args = np.zeros(8), np.zeros(8), own_SR, np.zeros_like(own_SR)
    one = statistics.paired_difference(*args)
    two = statistics.paired_difference(*args, [0, 1] * 4)
    assert (one.high - one.low) / (two.high - two.low) == pytest.approx(
      math.sqrt(2), rel=0.06
    )

  def test_differences_between_rotations_do_not_widen_it(self):
    own_S = np.array([0.1, 0.101, 0.102, 0.5, 0.501, 0.502])
    rotation_S = ['a'] * 3 + ['b'] * 3
    apart = statistics.paired_difference(own_S, np.zeros(6))
    found = statistics.paired_difference(
      own_S, np.zeros(6), rotation_S=rotation_S
    )
    assert found.low > 0.29
    assert apart.low < 0.2

  def test_a_recomputation_in_plain_python(self):
    """The draws are reproduced by hand for one pair of runs a rotation."""
    score_KS, score_KSR, _ = scores(4, n=4, num_resamples=3, rotations=2)
    rotation_S = [0, 1, 0, 1]
    found = difference(score_KS, score_KSR, rotation_S, draws=20_000)
    pair_SR = score_KSR[0] - score_KSR[1]
    wide = math.sqrt(2) * stats.t.ppf(0.975, 2) / stats.norm.ppf(0.975)
    means = []
    # With two runs each of 2 · 2 draws, and each resample, is equally likely.
    for rows in ([0, 2], [1, 3]):
      means.append(
        [
          centre + wide * (pair_SR[list(pick), r].mean() - centre)
          for r in range(3)
          for centre in [pair_SR[rows, r].mean()]
          for pick in itertools.product(rows, repeat=2)
        ]
      )
    expected = [(a + b) / 2 for a, b in itertools.product(*means)]
    tails = np.quantile(expected, [0.025, 0.975])
    spread = tails[1] - tails[0]
    assert [found.low, found.high] == pytest.approx(tails, abs=0.02 * spread)

  @pytest.mark.parametrize('rotation_S', [None, ['a', 'a', 'b']])
  def test_one_pair_has_no_interval(self, rotation_S):
    n = 1 if rotation_S is None else 3
    found = statistics.paired_difference(
      np.arange(n) + 0.5, np.zeros(n), rotation_S=rotation_S
    )
    assert found.low is None
    assert found.high is None
    assert found.mean == pytest.approx(n / 2)

  @few
  @hypothesis.given(SEEDS, st.sampled_from([1, 2, 3]))
  def test_swapping_changes_the_sign(self, seed, rotations):
    args = scores(seed, n=9, rotations=rotations)
    here, there = difference(*args), difference(*args, own=1, other=0)
    swapped = [-there.mean, there.sd, -there.high, -there.low]
    np.testing.assert_allclose(numbers(here), swapped, atol=1e-12)
    assert here.sign_p == there.sign_p
    assert here.permutation_p == there.permutation_p
    assert (here.wins, here.losses) == (there.losses, there.wins)

  @few
  @hypothesis.given(SEEDS, st.floats(-2, 2))
  def test_a_shift_of_both_changes_nothing(self, seed, shift):
    score_KS, score_KSR, rotation_S = scores(seed)
    here = difference(score_KS, score_KSR, rotation_S)
    there = difference(score_KS + shift, score_KSR + shift, rotation_S)
    np.testing.assert_allclose(numbers(here), numbers(there), atol=1e-12)

  @few
  @hypothesis.given(SEEDS, st.sampled_from([1, 2]), st.sampled_from([8, 18]))
  def test_the_order_of_the_runs_does_not_matter(self, seed, rotations, n):
    score_KS, score_KSR, rotation_S = scores(seed, n=n, rotations=rotations)
    order = np.random.default_rng(seed).permutation(n)
    here = difference(score_KS, score_KSR, rotation_S)
    there = difference(
      score_KS[:, order], score_KSR[:, order], rotation_S[order]
    )
    np.testing.assert_allclose(numbers(here), numbers(there), atol=1e-12)
    assert here.permutation_p == there.permutation_p

  @few
  @hypothesis.given(SEEDS)
  def test_noise_widens_it(self, seed):
    score_KS, _, _ = scores(seed)
    _, calm_KSR, _ = scores(seed, clip_noise=0.001)
    _, loud_KSR, _ = scores(seed, clip_noise=0.05)
    calm, loud = (difference(score_KS, x, None) for x in (calm_KSR, loud_KSR))
    assert loud.high - loud.low > calm.high - calm.low
    wide_KS = score_KS.mean(axis=1, keepdims=True) * 0 + 3 * score_KS
    wide = statistics.paired_difference(wide_KS[0], wide_KS[1], draws=500)
    narrow = statistics.paired_difference(score_KS[0], score_KS[1], draws=500)
    assert wide.high - wide.low == pytest.approx(3 * (narrow.high - narrow.low))

  def test_is_deterministic(self):
    args = scores(7)
    assert difference(*args) == difference(*args)

  @pytest.mark.parametrize('clip_noise', [0.0, 1.0])
  def test_coverage(self, clip_noise):
    """Normal seeds and clips: about 95 % of intervals hold the true 0."""
    rng, num, n = np.random.default_rng(11), 400, 6
    held = 0
    for _ in range(num):
      own_S = rng.normal(size=n) + clip_noise * rng.normal()
      own_SR = own_S[:, None] + clip_noise * rng.normal(size=200)
      found = statistics.paired_difference(
        own_S, np.zeros(n), own_SR, np.zeros_like(own_SR), draws=400
      )
      held += found.low <= 0 <= found.high
    # The plain bootstrap over six seeds holds it in 86 %.
    assert 0.91 < held / num < 0.985

  @pytest.mark.parametrize(
    ('args', 'message'),
    [
      (([1, 2], [1]), 'other_S has shape'),
      (([], []), 'own_S has shape'),
      (([1, math.nan], [1, 2]), r'own_S\[1\] is not a finite'),
      ((['a'], [1]), 'could not convert'),
      (([1, 2], [1, 2], [[1], [2]]), 'other_SR.* not given, but .*own_SR'),
      (([1, 2], [1, 2], [[1]], [[1]]), 'own_SR has 1 rows for 2'),
      (([1, 2], [1, 2], [[1], [1]], [[1, 2]] * 2), 'other_SR has shape'),
      (([1, 2], [1, 2], None, None, ['a']), 'rotation_S has 1 entries'),
    ],
  )
  def test_bad_input_is_named(self, args, message):
    with pytest.raises(ValueError, match=message):
      statistics.paired_difference(*args)


class TestGainRatio:
  base_S = np.array([0.50, 0.52, 0.48, 0.51])
  sp_gain_S = np.array([0.019, 0.021, 0.020, 0.020])

  def scores(self, factor, noise=0.0):
    iusp_S = self.base_S + factor * self.sp_gain_S
    return iusp_S + noise, self.base_S + self.sp_gain_S, self.base_S

  @pytest.mark.parametrize('factor', [-0.5, 0.0, 1.0, 1.271, 2.224])
  def test_closed_form(self, factor):
    found = ratio(self.scores(factor))
    assert found.value == pytest.approx(factor - 1)
    # Exactly proportional gains leave nothing to vary.
    assert [found.low, found.high] == pytest.approx([factor - 1] * 2)
    assert found.reason == ''
    assert found.n == 4

  def test_the_interval_holds_the_value_and_widens(self):
    noise_S = np.array([0.004, -0.004, 0.002, -0.002])
    calm = ratio(self.scores(1.5, noise_S / 4))
    loud = ratio(self.scores(1.5, noise_S))
    assert loud.low < loud.value < loud.high
    assert loud.high - loud.low > 2 * (calm.high - calm.low)

  @pytest.mark.parametrize(
    ('gain_S', 'reason'),
    [
      ([-0.02, -0.021, -0.019, -0.02], 'does not gain'),
      ([0.0, 0.0, 0.0, 0.0], 'does not gain'),
      ([0.02, -0.01, 0.01, -0.005], "SP's gain ["),
    ],
  )
  def test_withheld(self, gain_S, reason):
    base_S = self.base_S
    found = ratio((base_S + 0.05, base_S + np.array(gain_S), base_S))
    assert found.value is None
    assert found.low is None
    assert reason in found.reason

  def test_withheld_by_the_clips_alone(self):
    clip_R = np.random.default_rng(0).normal(0, 0.03, 100)
    iusp_S, sp_S, base_S = self.scores(1.5)
    base_SR = np.tile(base_S[:, None], 100)
    sp_SR = sp_S[:, None] + clip_R
    iusp_SR = np.tile(iusp_S[:, None], 100)
    found = ratio((iusp_S, sp_S, base_S), (iusp_SR, sp_SR, base_SR))
    assert "SP's gain [-0.0" in found.reason
    assert found.reason.endswith('holds 0')

  def test_too_few_pairs(self):
    assert '1 pair' in ratio(([0.6], [0.55], [0.5])).reason
    two = ratio(([0.6, 0.6], [0.55, 0.56], [0.5, 0.5]), rotation_S=['a', 'b'])
    assert 'rotation with one pair' in two.reason

  def test_agrees_with_the_gate_of_the_difference(self):
    """Printed exactly where SP's own interval lies above 0."""
    printed = 0
    for seed in range(30):
      score_KS, score_KSR, rotation_S = scores(seed)
      score_KS[1] += 0.02
      score_KSR[1] += 0.02
      found = ratio(score_KS, score_KSR, rotation_S, draws=500)
      gain = difference(score_KS, score_KSR, rotation_S, own=1, other=2)
      assert (found.value is not None) == (gain.low > 0)
      if found.value is not None:
        printed += 1
        assert found.low <= found.high
        assert math.isfinite(found.low)
    assert 3 < printed < 27

  def test_bad_input_is_named(self):
    with pytest.raises(ValueError, match='sp_S has shape'):
      ratio(([1, 2], [1], [1, 2]))


class TestClipDifference:
  @pytest.fixture(scope='class')
  def scored(self):
    """Truth of 60 clips, a good model, and one that is a little worse."""
    rng = np.random.default_rng(0)
    truth_NC = rng.random((60, 4)) < 0.4
    good_NC = np.clip(
      0.5 * truth_NC + 0.25 + rng.normal(0, 0.25, (60, 4)), 0, 1
    )
    worse_NC = np.clip(good_NC + rng.normal(0, 0.1, (60, 4)), 0, 1)
    return truth_NC, good_NC, worse_NC

  def test_the_difference_is_that_of_the_scores(self, scored):
    truth_NC, good_NC, worse_NC = scored
    found = statistics.clip_difference(truth_NC, good_NC, worse_NC)
    own, other = (
      metrics.score(truth_NC, scores)['micro_auprc']
      for scores in (good_NC, worse_NC)
    )
    assert found['difference'] == own - other
    assert found['low'] < found['difference'] < found['high']
    assert (found['num_clips'], found['resamples']) == (60, 1000)

  def test_both_are_scored_on_the_same_resamples(self, scored):
    """Draw by draw, and much narrower than of clips drawn apart."""
    truth_NC, good_NC, worse_NC = scored
    found = statistics.clip_difference(*scored, resamples=100)
    rng, together, apart = np.random.default_rng(0), [], []

    def score(scores_NC, pick_N):
      picked = truth_NC[pick_N], scores_NC[pick_N]
      return metrics.score(*picked)['micro_auprc']

    before_N = rng.integers(60, size=60)
    for pick_N in [before_N, *rng.integers(60, size=(99, 60))]:
      together.append(score(good_NC, pick_N) - score(worse_NC, pick_N))
      apart.append(score(good_NC, pick_N) - score(worse_NC, before_N))
      before_N = pick_N
    ends = np.quantile(together, [0.025, 0.975])
    assert [found['low'], found['high']] == pytest.approx(ends, abs=1e-9)
    low, high = np.quantile(apart[1:], [0.025, 0.975])
    assert found['high'] - found['low'] < 0.7 * (high - low)

  def test_is_deterministic_and_changes_sign(self, scored):
    truth_NC, good_NC, worse_NC = scored
    found = statistics.clip_difference(*scored, resamples=50)
    assert found == statistics.clip_difference(*scored, resamples=50)
    other = statistics.clip_difference(
      truth_NC, worse_NC, good_NC, resamples=50
    )
    assert other['low'] == pytest.approx(-found['high'])
    assert other['difference'] == -found['difference']

  def test_a_model_does_not_differ_from_itself(self, scored):
    truth_NC, good_NC, _ = scored
    found = statistics.clip_difference(truth_NC, good_NC, good_NC, resamples=20)
    assert [found[k] for k in ('difference', 'low', 'high')] == [0, 0, 0]

  def test_without_positives_there_is_no_difference(self, scored):
    _, good_NC, worse_NC = scored
    none_NC = np.zeros((60, 4))
    found = statistics.clip_difference(none_NC, good_NC, worse_NC, resamples=9)
    assert [found[k] for k in ('difference', 'low', 'high')] == [None] * 3
    one_NC = np.arange(240).reshape(60, 4) == 7  # Not in every resample.
    found = statistics.clip_difference(one_NC, good_NC, worse_NC, resamples=99)
    assert np.isfinite([found['difference'], found['low'], found['high']]).all()

  def test_without_resamples_there_is_no_interval(self, scored):
    found = statistics.clip_difference(*scored, resamples=0)
    assert (found['low'], found['high']) == (None, None)

  def test_bad_input_is_named(self, scored):
    truth_NC, good_NC, worse_NC = scored
    with pytest.raises(ValueError, match='scores'):
      statistics.clip_difference(truth_NC, good_NC, worse_NC[:-1])


class TestHolm:
  @pytest.mark.parametrize(
    ('given', 'expected'),
    [
      ([], []),
      ([0.04], [0.04]),
      # Step by step, as R's p.adjust(…, 'holm') does it.
      ([0.01, 0.02, 0.03, 0.04, 0.05], [0.05, 0.08, 0.09, 0.09, 0.09]),
      ([0.04, 0.001, 0.5, 0.03], [0.09, 0.004, 0.5, 0.09]),
      ([0.6, 0.7], [1.0, 1.0]),
    ],
  )
  def test_is_the_step_down_procedure(self, given, expected):
    np.testing.assert_allclose(statistics.holm(given), expected, 1e-12)

  @hypothesis.given(p=st.lists(st.floats(0, 1), min_size=1, max_size=9))
  def test_lies_between_no_correction_and_bonferronis(self, p):
    found = np.array(statistics.holm(p))
    assert (found >= p).all()
    assert (found <= np.minimum(1.0, len(p) * np.array(p))).all()
    # Equal p values have equal corrections, smaller ones no larger ones.
    order = np.argsort(p)
    assert (np.diff(found[order]) >= 0).all()
