"""The table of scores, and numbers as text."""

import math

import pytest

from iusp_jax.reporting import formatting


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
    assert [line[:12].strip() for line in lines[2:]] == [
      'teacher best',
      'student best',
      'student last',
    ]
    assert lines[3].split() == [
      *('student', 'best', '0.751', '[0.710,', '0.790]', '0.500', '0.600'),
      *('0.550', '0.800', '0.700', '-', '83.8k', '12.3M'),
    ]
    assert lines[2].split()[-3:] == ['undefined', '3.49M', '-']
    heads = ['validate coarse', 'validate fine', 'test coarse']
    places = [lines[0].index(head) for head in heads]
    assert places == sorted(places)

  def test_columns_line_up(self):
    lines = formatting.score_table(results()).splitlines()
    assert len({len(line) for line in lines[1:]}) == 1

  def test_no_column_that_all_lack(self):
    table = formatting.score_table(
      {'student': {'last': {'test': {'coarse': {'micro_auprc': 0.1}}}}}
    )
    assert table.split() == [
      *('test', 'coarse', 'micro-AUPRC', 'student', 'last', '0.100'),
    ]

  def test_nothing(self):
    assert formatting.score_table({}).strip() == ''


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
