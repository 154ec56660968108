"""The table of scores, and numbers as text."""

import math

import numpy as np
import pytest

from iusp_jax.reporting import formatting, plots
from iusp_jax.scoring import metrics


def results():
  scores = {
    'micro_auprc': 0.7512,
    'macro_auprc': 0.5,
    'micro_f1': 0.6,
    'map': 0.55,
    'lwlrap': 0.8,
    'micro_auprc_ci': [0.71, 0.79],
  }
  low = {'micro_auprc': 0.7}
  return {
    'student': {
      'best': {'validate': {'coarse': scores, 'fine': low}},
      'last': {'validate': {'coarse': low}, 'test': {'coarse': low}},
      'parameters': 83_784,
      'macs': 12_345_678,
    },
    'teacher': {
      'best': {'test': {'coarse': {'micro_auprc': math.nan}}},
      'parameters': 3_491_232,
    },
  }


class TestScoreTable:
  def test_rows_and_numbers(self):
    lines = formatting.score_table(results()).splitlines()
    assert lines[0].split() == [
      'micro-AUPRC', 'macro-AUPRC', 'micro-F1', 'mAP', 'lwlrap',
    ]  # fmt: skip
    assert [line[:29].split() for line in lines[1:6]] == [
      ['teacher', 'best', 'test', 'coarse'],
      ['student', 'best', 'validate', 'coarse'],
      ['validate', 'fine'],
      ['student', 'last', 'validate', 'coarse'],
      ['test', 'coarse'],
    ]
    assert lines[1].split()[4:] == ['undefined', '-', '-', '-', '-']
    assert lines[2].split()[4:] == [
      '.751', '[.710,', '.790]', '.500', '.600', '.550', '.800',
    ]  # fmt: skip
    assert lines[6:] == [
      'teacher: 3.49M parameters, - MACs a clip',
      'student: 83.8k parameters, 12.3M MACs a clip',
    ]

  def test_fits_a_terminal_and_lines_up(self):
    full = dict.fromkeys(formatting.SCORES, 0.5) | {
      'micro_auprc_ci': [0.4, 0.6], 'macro_auprc_ci': [0.4, 0.6],
    }  # fmt: skip
    splits = {s: {'coarse': full, 'fine': full} for s in ('validate', 'test')}
    model = {'best': splits, 'last': splits, 'parameters': 1, 'macs': 1}
    text = formatting.score_table({'teacher': model, 'student': model})
    assert len({len(line) for line in text.splitlines()[:-2]}) == 1
    assert max(map(len, text.splitlines())) <= 100

  def test_no_column_that_all_lack(self):
    table = formatting.score_table(
      {'student': {'last': {'test': {'coarse': {'micro_auprc': 0.1}}}}}
    )
    assert table.split() == [
      *('micro-AUPRC', 'student', 'last', 'test', 'coarse', '.100'),
    ]

  @pytest.mark.parametrize('value', [None, math.nan])
  def test_what_cannot_be_scored_is_undefined(self, value):
    scores = {'micro_auprc': value, 'micro_auprc_ci': None, 'map': value}
    table = formatting.score_table(
      {'a': {'best': {'test': {'coarse': scores}}}}
    )
    assert table.split()[-2:] == ['undefined', 'undefined']

  def test_the_rule_of_means_over_tags_is_named_once(self):
    scores = {'macro_auprc': 0.5, 'positives': [3, 0, 1]}
    coarse = scores | {'map': 0.4}
    splits = {'test': {'coarse': coarse}, 'validate': {'fine': scores}}
    table = formatting.score_table(
      {'teacher': {'best': splits}, 'student': {'best': splits, 'last': splits}}
    )
    assert table.splitlines()[-2:] == [
      f'{of}: mean over the 2 of 3 tags with positives'
      for of in (
        'macro-AUPRC on validate fine',
        'macro-AUPRC, mAP on test coarse',
      )
    ]

  def test_the_mean_is_that_of_the_tag_scores(self, tmp_path):
    """One rule: results.json, the table of a run and the file of its tags."""
    rng = np.random.default_rng(0)
    truth_NC = rng.random((40, 4)) < [0.3, 0.5, 0.0, 0.4]
    scores = metrics.score(truth_NC, rng.random((40, 4)))
    results = {'student': {'best': {'test': {'coarse': scores}}}}
    text = formatting.score_table(results)
    tags = dict(zip('abcd', scores['class_auprc'], strict=True))
    support = dict(zip('abcd', scores['positives'], strict=True))
    plots.plot_tag_scores({'student': tags}, support, tmp_path / 'tags.png')
    *_, last = (tmp_path / 'tags.txt').read_text().splitlines()
    assert last.startswith('mean over the 3 of 4 tags with positives')
    assert formatting.decimal(float(last.split()[-1])) in text.split()
    assert float(last.split()[-1]) == pytest.approx(
      scores['macro_auprc'], abs=5e-5
    )

  def test_nothing(self):
    assert formatting.score_table({}) == ''
    assert formatting.score_table({'config': {'seed': 1}, 'seed': 1}) == ''


MODELS = {
  'teacher': {'micro_auprc': 0.622, 'micro_auprc_ci': [0.567, 0.674]},
  'student, no KD': {'micro_auprc': 0.6, 'micro_auprc_ci': [0.55, 0.64]},
  'student, IUSP': {'micro_auprc': 0.605, 'micro_auprc_ci': [0.552, 0.659]},
}
DIFFERENCE = {
  'difference': 0.005, 'low': -0.012, 'high': 0.023, 'num_clips': 160,
}  # fmt: skip


class TestComparison:
  def test_what_a_run_ends_with(self):
    text = formatting.comparison(MODELS, DIFFERENCE, 'docs/x.md')
    lines = text.splitlines()
    assert [line.split() for line in lines[1:5]] == [
      ['teacher', '.622', '[.567,', '.674]'],
      ['student,', 'no', 'KD', '.600', '[.550,', '.640]'],
      ['student,', 'IUSP', '.605', '[.552,', '.659]'],
      ['difference', 'of', 'the', 'last', 'two', '+.005', '[−.012,', '+.023]'],
    ]
    assert '160 test clips' in text
    assert 'one seed, which decides nothing' in text
    assert lines[-1].endswith(' docs/x.md')
    assert max(map(len, lines)) <= 100

  def test_without_positives(self):
    models = {name: {'micro_auprc': None} for name in MODELS}
    nothing = DIFFERENCE | dict.fromkeys(('difference', 'low', 'high'))
    text = formatting.comparison(models, nothing, 'docs/x.md')
    assert text.count('undefined') == 3
    assert 'last two                 -' in text


class TestAlign:
  lines = (('', 'a', 'bb', 'word'), ('name', '1.5', '2', 'x'))

  def test_the_first_is_left_and_numbers_right(self):
    assert formatting.align(self.lines, left=(0, 3)) == (
      '        a  bb  word\nname  1.5   2  x\n'
    )

  @pytest.mark.parametrize('width', range(1, 25))
  def test_narrow_text_has_every_cell_once(self, width):
    text = formatting.align(self.lines, width=width)
    for cell in ('1.5', '2', 'x', 'a', 'bb', 'word'):
      assert text.split().count(cell) == 1
    if width >= 10:  # Of the names and the widest column.
      assert max(map(len, text.splitlines())) <= width
    assert text.count('name') == text.count('\n\n') + 1


@pytest.mark.parametrize(
  ('function', 'value', 'text'),
  [
    (formatting.decimal, 0.5124, '.512'),
    (formatting.decimal, -0.5126, '−.513'),
    (formatting.decimal, 1.0, '1.000'),
    (formatting.decimal, None, '-'),
    (formatting.signed, 0.012, '+.012'),
    (formatting.signed, -0.012, '−.012'),
    (formatting.signed, None, '-'),
    (formatting.p_value, 0.00099, '<.001'),
    (formatting.p_value, 0.001, '.001'),
    (formatting.p_value, 0.0, '<.001'),
    (formatting.p_value, 1.0, '1.000'),
    (formatting.percent, 0.271, '+27 %'),
    (formatting.percent, -0.05, '−5 %'),
    (formatting.percent, math.inf, '+∞'),
    (formatting.percent, -math.inf, '−∞'),
    (formatting.percent, None, '-'),
    (formatting.mean_sd, {'mean': 0.5, 'sd': 0.01}, '.500 ± .010'),
    (formatting.mean_sd, {'mean': 0.5, 'sd': None}, '.500'),
    (formatting.mean_sd, None, '-'),
    (formatting.number, 0.5, '0.5000'),
    (formatting.number, math.nan, 'undefined'),
    (formatting.number, None, '-'),
  ],
)
def test_numbers(function, value, text):
  assert function(value) == text


@pytest.mark.parametrize(
  ('number', 'text'),
  [
    (None, '-'),
    (0, '0'),
    (950, '950'),
    (999.6, '1.00k'),
    (1000, '1.00k'),
    (17_049, '17.0k'),
    (999_499, '999k'),
    (999_600, '1.00M'),
    (2_100_000_000, '2100M'),
  ],
)
def test_count(number, text):
  assert formatting.count(number) == text
