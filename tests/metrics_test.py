"""The DCASE metric: worked examples, the definition, the official scores."""

import csv
import gzip
import json

import metrics_reference
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from iusp_jax.scoring import metrics
from tfds_dcase import annotations, taxonomy

Q = len(taxonomy.FINE_COLUMNS)
NUMBERS = ('micro_auprc', 'macro_auprc', 'micro_f1', 'class_auprc')
# Below, at and above the smallest threshold, and around that of F1.
LADDER = [0.0, 0.005, 0.01, 0.2, 0.4, 0.5, 0.6, 0.99, 1.0]


def number(value):
  """As float64, with NaN for None."""
  return np.asarray(value, np.float64)


def agree(found, expected, tolerance=1e-12):
  for name in NUMBERS:
    np.testing.assert_allclose(
      number(found[name]),
      number(expected[name]),
      rtol=0,
      atol=tolerance,
      err_msg=name,
    )
  assert found['f1_row'] == expected['f1_row']


def fine(**tags):
  """One row [29] from e.g. fine(x1=1, t12=.4): class 1's X, tag 1-2."""
  row = np.zeros(Q)
  for name, value in tags.items():
    prefix = f'{name[1]}-{"X" if name[0] == "x" else name[2]}_'
    (place,) = [
      q for q, n in enumerate(taxonomy.FINE_COLUMNS) if n.startswith(prefix)
    ]
    row[place] = value
  return row


@st.composite
def splits(draw, columns=None, max_clips=12):
  """Truth and scores with many ties, constants and empty classes."""
  N = draw(st.integers(1, max_clips))
  C = columns or draw(st.integers(1, 5))
  value = st.one_of(
    st.sampled_from(LADDER), st.floats(0, 1, allow_subnormal=False)
  )
  scores = draw(hnp.arrays(np.float64, (N, C), elements=value))
  share = draw(st.sampled_from([0.1, 0.5, 0.9]))
  seed = draw(st.integers(0, 2**16))
  truth = np.random.default_rng(seed).random((N, C)) < share
  truth[:, draw(st.integers(0, C - 1))] = draw(st.booleans())
  scores[:, draw(st.integers(0, C - 1))] = draw(st.sampled_from(LADDER))
  return truth, scores


class TestByHand:
  def test_a_perfect_ranking(self):
    # Points (0, 1), (0, 0) at 1.0, (1/2, 1), (1, 1), (1, 1/2), (1, 0): the
    # rise from (0, 0) to (1/2, 1) is a triangle, so the area is 3/4, not 1.
    found = metrics.score([[1], [1], [0], [0]], [[0.9], [0.8], [0.4], [0.0]])
    assert found['class_auprc'] == [0.75]
    assert found['micro_auprc'] == found['macro_auprc'] == 0.75
    assert found['micro_f1'] == 1
    assert found['f1_row'] == {'threshold': 0.8, 'TP': 2, 'FP': 0, 'FN': 0}
    assert found['undefined'] == []
    assert found['num_clips'] == 4

  def test_micro_takes_a_class_at_its_next_higher_threshold(self):
    truth, scores = [[1, 0], [0, 1]], [[0.9, 0.6], [0.7, 0.3]]
    # At 0.9, 0.7, 0.6, 0.3 together: TP 1 1 1 2, FP 0 1 2 2, FN 1 1 1 0.
    # Points (0, 1) (0, 0) (.5, 1) (.5, .5) (.5, 1/3) (1, 1/2) (1, 0).
    found = metrics.score(truth, scores)
    assert found['micro_auprc'] == pytest.approx(
      0.25 + 0.5 * (1 / 3 + 1 / 2) / 2
    )
    # Class 0: (0, 0) (1, 1) (1, 1/2); class 1: (0, 0) at .6, (1, 1/2) at .3.
    assert found['class_auprc'] == pytest.approx([0.5, 0.25])
    assert found['f1_row'] == {'threshold': 0.6, 'TP': 1, 'FP': 2, 'FN': 1}
    assert found['micro_f1'] == pytest.approx(2 / 5)

  def test_scores_below_one_percent_are_no_threshold(self):
    # The second positive is never reached: (0, 0) (1/2, 1) and then (1, 0).
    found = metrics.score([[1], [1], [0]], [[0.5], [0.0099], [0.0]])
    assert found['class_auprc'] == [0.25 + 0.25]
    at = metrics.score([[1], [1], [0]], [[0.5], [0.01], [0.0]])
    assert at['class_auprc'] == [0.25 + 0.5]

  def test_one_is_always_a_threshold(self):
    found = metrics.score([[1], [0], [0], [0]], [[1.0]] * 4)
    # From (0, 1) straight to (1, 1/4).
    assert found['class_auprc'] == [0.625]
    assert found['undefined'] == []
    assert found['constant'] == [0]

  def test_f1_at_the_first_threshold_from_a_half(self):
    found = metrics.score([[1], [1]], [[0.7], [0.49999]])
    assert found['f1_row'] == {'threshold': 0.7, 'TP': 1, 'FP': 0, 'FN': 1}
    none = metrics.score([[1], [1]], [[0.4], [0.4]])
    assert none['f1_row'] == {'threshold': 1.0, 'TP': 0, 'FP': 0, 'FN': 2}
    assert none['micro_f1'] == 0

  @pytest.mark.parametrize(
    ('truth', 'scores', 'counts'),
    [
      # Without X in the truth.
      ({'t11': 1}, {'t11': 0.9}, (1, 0, 0)),
      ({'t11': 1}, {'t12': 0.9}, (0, 1, 1)),
      ({'t11': 1}, {'x1': 0.9}, (0, 0, 1)),
      ({}, {'x1': 0.9}, (0, 1, 0)),
      ({}, {'x1': 0.9, 't11': 0.9}, (0, 2, 0)),
      ({}, {'x1': 0.9, 't11': 0.9, 't12': 0.9, 't13': 0.9}, (0, 3, 0)),
      # With X in the truth: no false alarms, one hit for anything.
      ({'x1': 1}, {}, (0, 0, 1)),
      ({'x1': 1}, {'x1': 0.9}, (1, 0, 0)),
      ({'x1': 1}, {'t12': 0.9, 't13': 0.9}, (1, 0, 0)),
      # X and a tag in the truth.
      ({'x1': 1, 't11': 1}, {}, (0, 0, 1)),
      ({'x1': 1, 't11': 1}, {'t11': 0.9}, (1, 0, 0)),
      ({'x1': 1, 't11': 1}, {'t12': 0.9}, (1, 0, 1)),
      ({'x1': 1, 't11': 1}, {'x1': 0.9}, (1, 0, 1)),
      ({'x1': 1, 't11': 1, 't12': 1}, {'t11': 0.9}, (1, 0, 1)),
      ({'x1': 1, 't11': 1}, {'x1': 0.9, 't11': 0.9, 't12': 0.9}, (1, 0, 0)),
    ],
  )
  def test_what_x_does_at_one_threshold(self, truth, scores, counts):
    # A second clip, empty, lets 0.9 be a threshold of every class.
    empty = np.where(taxonomy.IS_UNKNOWN, 0, 0.9)
    extra = np.stack([fine(**scores), empty])
    found = metrics.score(np.stack([fine(**truth), np.zeros(Q)]), extra, 'fine')
    tp, fp, fn = counts
    row = {'threshold': 0.9, 'TP': tp, 'FP': fp + 23, 'FN': fn}
    assert found['f1_row'] == row
    agree(
      found, metrics_reference.score([fine(**truth), [0] * Q], extra, 'fine')
    )

  def test_x_waits_for_a_threshold_of_its_class(self):
    # X scores 0.8, but class 1's tags make no threshold before 0.3: at class
    # 2's 0.6 the false alarm of X is not counted yet.
    truth = np.stack([fine(), fine(t21=1)])
    scores = np.stack([fine(x1=0.8, t11=0.3), fine(t21=0.6)])
    found = metrics.score(truth, scores, 'fine')
    assert found['f1_row'] == {'threshold': 0.6, 'TP': 1, 'FP': 0, 'FN': 0}
    agree(found, metrics_reference.score(truth, scores, 'fine'))


class TestDefinition:
  @given(splits())
  @settings(max_examples=200, deadline=None)
  def test_coarse(self, split):
    agree(metrics.score(*split), metrics_reference.score(*split))

  @given(splits(columns=Q, max_clips=8))
  @settings(max_examples=60)
  def test_fine(self, split):
    found = metrics.score(*split, level='fine')
    agree(found, metrics_reference.score(*split, level='fine'))

  @given(splits(), st.randoms(use_true_random=False))
  def test_order_of_clips_and_classes(self, split, random):
    truth, scores = split
    N, C = truth.shape
    n, c = random.sample(range(N), N), random.sample(range(C), C)
    found = metrics.score(truth[n][:, c], scores[n][:, c])
    expected = metrics.score(truth, scores)
    expected['class_auprc'] = [expected['class_auprc'][i] for i in c]
    agree(found, expected)

  @given(splits())
  def test_every_clip_twice_changes_no_area(self, split):
    twice = metrics.score(*(np.concatenate([a, a]) for a in split))
    once = metrics.score(*split)
    for name in NUMBERS:
      np.testing.assert_allclose(
        number(twice[name]), number(once[name]), atol=1e-12
      )

  @given(splits())
  def test_bounds_and_what_is_undefined(self, split):
    truth, scores = split
    found = metrics.score(truth, scores)
    for name in NUMBERS:
      value = number(found[name])
      assert (np.isnan(value) | (value >= 0) & (value <= 1)).all()
    classes = range(truth.shape[1])
    absent = [c for c in classes if not truth[:, c].any()]
    assert found['undefined'] == absent
    assert [c for c in classes if found['class_auprc'][c] is None] == absent
    assert (found['micro_auprc'] is None) == (len(absent) == len(classes))
    assert found['constant'] == [
      c for c in classes if truth[:, c].any() and len(set(scores[:, c])) == 1
    ]
    json.dumps(found, allow_nan=False)
    assert found['positives'] == truth.sum(axis=0).tolist()

  @given(splits(columns=8), st.sampled_from([0.5, 0.25]))
  def test_a_fine_level_without_x_pools_tags(self, split, factor):
    # Classes 3 and 8 have one tag and no X: there fine is coarse. Halving
    # twice-spread scores keeps all of them thresholds.
    truth, scores = split
    wide_truth, wide = np.zeros((len(truth), Q)), np.zeros((len(truth), Q))
    wide_truth[:, [9, 28]] = truth[:, [2, 7]]
    wide[:, [9, 28]] = scores[:, [2, 7]] * factor
    found = metrics.score(wide_truth, wide, 'fine')['class_auprc']
    expected = metrics.score(truth, scores * factor)['class_auprc']
    np.testing.assert_allclose(
      number([found[2], found[7]]),
      number([expected[2], expected[7]]),
      atol=1e-12,
    )

  def test_truth_as_scores(self):
    truth = np.random.default_rng(0).random((50, Q)) < 0.3
    for level, cut in (('coarse', truth[:, :8]), ('fine', truth)):
      found = metrics.score(cut, cut, level)
      assert found['micro_auprc'] == found['macro_auprc'] == 1
      assert found['micro_f1'] == 1
      assert found['undefined'] == []

  def test_classes_without_positives(self):
    truth, scores = np.zeros((4, 3)), np.random.default_rng(0).random((4, 3))
    truth[0, 1] = 1
    found = metrics.score(truth, scores)
    assert found['undefined'] == [0, 2]
    assert found['constant'] == []
    assert found['class_auprc'][0] is found['class_auprc'][2] is None
    assert found['macro_auprc'] == found['class_auprc'][1] > 0
    assert metrics.mean_rule(found['positives']) == (
      'mean over the 1 of 3 tags with positives'
    )
    nothing = metrics.score(np.zeros((4, 3)), scores, bootstrap=5)
    for name in ('micro_auprc', 'macro_auprc', 'micro_f1'):
      assert nothing[name] is nothing[f'{name}_ci'] is None
    assert nothing['class_auprc'] == nothing['class_auprc_ci'] == [None] * 3

  @given(splits())
  @settings(deadline=None)
  def test_all_means_over_tags_leave_out_the_same_tags(self, split):
    truth, scores = split
    found = metrics.score(truth, scores, bootstrap=3)
    json.dumps(found, allow_nan=False)
    kept = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    if not kept:
      assert metrics.mean_average_precision(truth, scores) is None
      return
    # As if the tags without positives were not there.
    few = metrics.score(truth[:, kept], scores[:, kept], bootstrap=3)
    assert found['macro_auprc'] == pytest.approx(few['macro_auprc'])
    assert found['macro_auprc_ci'] == pytest.approx(few['macro_auprc_ci'])
    assert metrics.mean_average_precision(truth, scores) == pytest.approx(
      metrics.mean_average_precision(truth[:, kept], scores[:, kept])
    )
    assert metrics.mean_over_tags(found['class_auprc']) == found['macro_auprc']

  def test_constant_tags_with_a_varying_x_are_undefined(self):
    scores = np.full((3, Q), 0.5)
    scores[:, 3] = [0.1, 0.2, 0.9]
    found = metrics.score(np.eye(Q)[[0, 4, 9]], scores, 'fine')
    assert found['constant'] == [0, 1, 2]
    assert found['undefined'] == [3, 4, 5, 6, 7]

  def test_inputs_of_other_types(self):
    truth = np.array([[1, 0], [0, 1], [1, 1]])
    scores = np.array([[0.75, 0.5], [0.25, 0.5], [1, 0.125]])
    expected = metrics.score(truth, scores)
    for kind in (bool, np.int8, np.float32):
      assert metrics.score(truth.astype(kind), scores) == expected
    assert metrics.score(truth.tolist(), scores.astype(np.float16)) == expected

  def test_scores_without_x_columns(self):
    rng = np.random.default_rng(0)
    truth, scores = rng.random((20, Q)) < 0.3, rng.random((20, Q))
    scores[:, taxonomy.IS_UNKNOWN] = 0
    assert metrics.score(truth, scores, 'fine') == metrics.score(
      truth, scores[:, ~taxonomy.IS_UNKNOWN], 'fine'
    )


class TestOfficialScores:
  @pytest.fixture(scope='class')
  def truth(self, sonyc_dir):
    read = annotations.read(sonyc_dir / 'annotations.csv')
    rows = np.flatnonzero((read.split == 'validate') & (read.annotator_id == 0))
    rows = rows[np.argsort(read.audio_filename[rows])]
    return {
      'names': read.audio_filename[rows].tolist(),
      'coarse': read.coarse_as_shipped[rows],
      'fine': read.presence[rows],
    }

  @pytest.mark.parametrize('name', ['uniform', 'ties'])
  @pytest.mark.parametrize('level', ['coarse', 'fine'])
  def test_reference_files(self, truth, metric_reference_dir, name, level):
    with gzip.open(metric_reference_dir / f'{name}.csv.gz', 'rt') as file:
      rows = {row['audio_filename']: row for row in csv.DictReader(file)}
    columns = taxonomy.COARSE if level == 'coarse' else taxonomy.FINE_COLUMNS
    scores = [[float(rows[n][c]) for c in columns] for n in truth['names']]
    file = metric_reference_dir / 'reference.json'
    expected = json.loads(file.read_text())[name][level]
    expected['micro_f1'] = expected.pop('micro_f1_at_0.5')
    expected['class_auprc'] = list(expected['class_auprc'].values())
    agree(metrics.score(truth[level], scores, level), expected, 1e-9)

  def test_constants(self, truth):
    half = {
      level: metrics.score(
        truth[level], np.full(truth[level].shape, 0.5), level
      )
      for level in metrics.LEVELS
    }
    micro = pytest.approx(0.102003386005, abs=1e-11)
    assert half['coarse']['micro_auprc'] == micro
    assert half['fine']['micro_auprc'] == pytest.approx(
      0.034981064381, abs=1e-11
    )
    assert half['fine']['macro_auprc'] == pytest.approx(
      0.037261293179, abs=1e-11
    )
    for level in metrics.LEVELS:
      assert half[level]['constant'] == list(range(8))
      zero = metrics.score(truth[level], np.zeros_like(truth[level]), level)
      assert zero['micro_auprc'] == zero['macro_auprc'] == 0
      same = metrics.score(truth[level], truth[level], level)
      assert same['micro_auprc'] == same['macro_auprc'] == 1


class TestBootstrap:
  def naive(self, truth, scores, level, resamples, seed):
    rng, N = np.random.default_rng(seed), len(truth)
    drawn = []
    for _ in range(resamples):
      clips = rng.integers(N, size=N)
      drawn.append(metrics.score(truth[clips], scores[clips], level))
    return {
      f'{name}_ci': np.nanquantile(
        number([d[name] for d in drawn]), [0.025, 0.975], axis=0
      ).T
      for name in NUMBERS
    }

  @pytest.mark.parametrize('level', ['coarse', 'fine'])
  @pytest.mark.parametrize('decimals', [1, 8])
  @pytest.mark.parametrize('block', [1, 2**19])
  def test_equals_scoring_the_resamples(
    self, monkeypatch, level, decimals, block
  ):
    # Few clips and a varying X: thresholds vanish in the resamples, and X
    # must then wait for the next one that is there.
    monkeypatch.setattr(metrics, '_BLOCK', block)
    rng = np.random.default_rng(7)
    truth = rng.random((15, Q)) < 0.15
    scores = np.round(rng.random((15, Q)), decimals)
    if level == 'coarse':
      truth, scores = truth[:, :4], scores[:, :4]
    found = metrics.score(truth, scores, level, bootstrap=60, seed=3)
    for name, expected in self.naive(truth, scores, level, 60, 3).items():
      np.testing.assert_allclose(found[name], expected, atol=1e-12)

  def test_every_resample_alone(self):
    rng = np.random.default_rng(1)
    truth = rng.random((9, Q)) < 0.2
    scores = np.round(rng.random((9, Q)), 1)
    for seed in range(40):
      clips = np.random.default_rng(seed).integers(9, size=9)
      one = metrics.score(truth, scores, 'fine', bootstrap=1, seed=seed)
      again = metrics_reference.score(truth[clips], scores[clips], 'fine')
      for name in NUMBERS:
        found = one[f'{name}_ci']
        if name != 'class_auprc':
          found = [found]
        values = np.atleast_1d(number(again[name]))
        for interval, value in zip(found, values, strict=True):
          assert interval == (
            None if np.isnan(value) else pytest.approx([value] * 2, abs=1e-12)
          )

  def test_same_seed_same_intervals(self):
    rng = np.random.default_rng(0)
    truth, scores = rng.random((30, 3)) < 0.3, rng.random((30, 3))
    one = metrics.score(truth, scores, bootstrap=50, seed=1)
    assert one == metrics.score(truth, scores, bootstrap=50, seed=1)
    other = metrics.score(truth, scores, bootstrap=50, seed=2)
    assert one['micro_auprc_ci'] != other['micro_auprc_ci']
    assert one['micro_auprc'] == other['micro_auprc']

  def test_covers_the_true_value(self):
    # Splits of 60 clips from one population of 6,000: the 95 % interval of a
    # split holds the population's value in most of them.
    rng = np.random.default_rng(0)
    truth = rng.random((6000, 3)) < 0.3
    scores = np.clip(0.3 * truth + 0.7 * rng.random((6000, 3)), 0, 1)
    whole = metrics.score(truth, scores)['micro_auprc']
    held = 0
    for start in range(0, 6000, 60):
      part = slice(start, start + 60)
      low, high = metrics.score(truth[part], scores[part], bootstrap=200)[
        'micro_auprc_ci'
      ]
      held += low <= whole <= high
    assert 85 <= held <= 100

  def test_no_intervals_unless_asked(self):
    found = metrics.score([[1], [0]], [[0.7], [0.2]])
    assert not [name for name in found if name.endswith('_ci')]


class TestRefusals:
  good = np.array([[1, 0], [0, 1.0]])

  @pytest.mark.parametrize(
    ('value', 'message'),
    [
      (np.nan, r'scores\[1, 0\] is nan; expected a number from 0 to 1'),
      (1.0000001, r'scores\[1, 0\] is 1.0000001'),
      (-1e-9, r'scores\[1, 0\] is -1e-09'),
      (np.inf, r'scores\[1, 0\] is inf'),
    ],
  )
  def test_scores(self, value, message):
    scores = self.good.copy()
    scores[1, 0] = value
    with pytest.raises(ValueError, match=message):
      metrics.score(self.good, scores)

  @given(splits(), st.floats().filter(lambda v: not 0 <= v <= 1), st.data())
  def test_a_bad_score_anywhere(self, split, value, data):
    truth, scores = split
    n = data.draw(st.integers(0, truth.shape[0] - 1))
    c = data.draw(st.integers(0, truth.shape[1] - 1))
    scores[n, c] = value
    with pytest.raises(ValueError, match=rf'scores\[{n}, {c}\] is'):
      metrics.score(truth, scores)

  @pytest.mark.parametrize('value', [-1, 0.5, 2, np.nan])
  def test_truth(self, value):
    truth = self.good.copy()
    truth[0, 1] = value
    with pytest.raises(ValueError, match=r'truth\[0, 1\] is .*expected 0 or 1'):
      metrics.score(truth, self.good)

  @pytest.mark.parametrize(
    ('truth', 'scores', 'level', 'message'),
    [
      (np.ones((3, 2)), np.ones((3, 3)), 'coarse', r'\(3, 2\).*\(3, 3\)'),
      (np.ones((3, 2)), np.ones((2, 2)), 'coarse', r'\(3, 2\).*\(2, 2\)'),
      (np.ones(3), np.ones(3), 'coarse', r'shape \(3,\); expected \[clips'),
      (np.ones((0, 2)), np.ones((0, 2)), 'coarse', 'at least one'),
      (np.ones((2, 0)), np.ones((2, 0)), 'coarse', 'at least one'),
      (np.ones((2, 8)), np.ones((2, 8)), 'fine', r'expected \[N, 29\]'),
      (np.ones((2, 23)), np.ones((2, 23)), 'fine', r'expected \[N, 29\]'),
      (np.ones((2, 29)), np.ones((2, 8)), 'fine', r'\(2, 29\).*\(2, 8\)'),
      ([['a']], [[1]], 'coarse', 'truth is not an array of numbers'),
      ([[1], [1, 0]], [[1]], 'coarse', 'truth is not an array of numbers'),
      ([[1]], [[None, 'x']], 'coarse', 'scores is not an array of numbers'),
      ([[1]], [[1]], 'medium', "level 'medium'; legal: coarse, fine"),
    ],
  )
  def test_shapes_and_levels(self, truth, scores, level, message):
    with pytest.raises(ValueError, match=message):
      metrics.score(truth, scores, level)

  @pytest.mark.parametrize('bootstrap', [-1, 0.5, '10', None])
  def test_bootstrap(self, bootstrap):
    with pytest.raises(ValueError, match='number of resamples >= 0'):
      metrics.score(self.good, self.good, bootstrap=bootstrap)


class TestFieldsOwn:
  @given(splits())
  def test_average_precision(self, split):
    truth, scores = split
    found = metrics.average_precision(truth, scores)
    expected = [
      sklearn.metrics.average_precision_score(t, s) if t.any() else np.nan
      for t, s in zip(truth.T, scores.T, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    mean = pytest.approx(np.nanmean(expected)) if truth.any() else None
    assert metrics.mean_average_precision(truth, scores) == mean

  @given(splits())
  def test_lwlrap(self, split):
    truth, scores = split
    found = metrics.lwlrap(truth, scores)
    if not truth.any():
      assert found is None
      return
    expected = sklearn.metrics.label_ranking_average_precision_score(
      truth, scores, sample_weight=truth.sum(axis=1)
    )
    assert found == pytest.approx(expected)

  @given(splits())
  def test_only_the_order_matters(self, split):
    truth, scores = split
    ranks = np.unique(scores, return_inverse=True)[1].reshape(scores.shape)
    for measure in (metrics.mean_average_precision, metrics.lwlrap):
      np.testing.assert_equal(measure(truth, ranks), measure(truth, scores))

  def test_by_hand(self):
    truth = [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    scores = [[0.9, 0.8, 0.1], [0.8, 0.7, 0.9], [0.5, 0.2, 0.3]]
    # Class 0: 1st and 3rd of the ranking: (1 + 2/3)/2; class 1: 2nd, 3rd.
    np.testing.assert_allclose(
      metrics.average_precision(truth, scores),
      [5 / 6, (1 / 2 + 2 / 3) / 2, np.nan],
    )
    # Tags: clip 0 rank 1; clip 1 rank 3; clip 2 ranks 1 and 3 (2 of 3 true).
    assert metrics.lwlrap(truth, scores) == pytest.approx(
      (1 + 1 / 3 + 1 + 2 / 3) / 4
    )

  def test_refusals(self):
    for measure in (metrics.mean_average_precision, metrics.lwlrap):
      with pytest.raises(ValueError, match='finite number'):
        measure([[1]], [[np.nan]])
      with pytest.raises(ValueError, match='0 or 1'):
        measure([[0.5]], [[0.5]])
