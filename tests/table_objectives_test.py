"""Titles, colours, order and comparisons of a table's objectives."""

import dataclasses
import itertools

import pytest
import table_fakes

from iusp_jax.objectives.terms import TERMS
from iusp_jax.reporting.table import objectives

WEIGHTS = {
  'iusp_sp': {'iusp': 300.0, 'sp': 30.0},
  'strange': None,
  'iusp': {'iusp': 300.0},
  'kd_iusp': {'kd': 1.0, 'iusp': 300.0, 'sp': 0.0},
  'baseline': {},
  'kd': {'kd': 1.0},
}


def titles(weights):
  found = objectives.from_weights(weights)
  return {name: objective.title for name, objective in found.items()}


def test_titles_follow_from_the_terms_in_the_order_of_a_table():
  assert list(titles(WEIGHTS).items()) == [
    ('baseline', 'no KD'),
    ('kd', TERMS['kd'].title),
    ('iusp', TERMS['iusp'].title),
    ('kd_iusp', 'KD + IUSP'),
    ('iusp_sp', 'SP + IUSP'),
    ('strange', 'strange'),
  ]


def test_every_term_is_a_row_of_its_own():
  found = objectives.from_weights({name: {name: 2.0} for name in TERMS})
  assert list(found) == list(TERMS)
  for name, term in TERMS.items():
    own = found[name]
    assert (own.title, own.colour, own.marker) == (
      term.title,
      term.colour,
      term.marker,
    )
    assert own.compares_similarities == term.compares_similarities


def test_names_stand_for_weights_that_are_not_known():
  """As of cells that were not run, in files of earlier versions."""
  names = ('baseline', 'kd', 'iusp', 'other')
  assert titles(dict.fromkeys(names)) == {
    'baseline': 'no KD', 'kd': 'KD', 'iusp': 'IUSP', 'other': 'other',
  }  # fmt: skip


def test_terms_of_another_version_keep_their_names():
  assert titles({'both': {'gone': 1.0, 'kd': 1.0}}) == {'both': 'KD + gone'}


def test_the_same_terms_under_two_names_are_told_apart():
  weights = {'kd': {'kd': 1.0}, 'kd_soft': {'kd': 9.0}, 'off': {'kd': 0.0}}
  assert titles({'baseline': {}, **weights}) == {
    'baseline': 'no KD',
    'off': 'no KD (off)',
    'kd': 'KD',
    'kd_soft': 'KD (kd_soft)',
  }


@pytest.mark.parametrize('num_combinations', [1, 4, 40])
def test_no_two_objectives_have_one_colour(num_combinations):
  """More than any palette has, the same terms twice, and what is unknown."""
  weights = {name: {name: 1.0} for name in TERMS}
  weights |= {'baseline': {}, 'again': {'kd': 2.0}, 'strange': None}
  pairs = itertools.cycle(itertools.combinations(TERMS, 2))
  for i, pair in zip(range(num_combinations), pairs, strict=False):
    weights[f'both_{i}'] = dict.fromkeys(pair, 1.0)
  found = objectives.from_weights(weights).values()
  assert len({o.colour.upper() for o in found}) == len(weights)
  assert len({(o.colour, o.marker) for o in found}) == len(weights)
  assert len({o.title for o in found}) == len(weights)
  for o in found:  # Readable by matplotlib.
    assert len(o.colour) == 7
    assert 0 <= int(o.colour[1:], 16) < 2**24


def test_two_terms_of_one_colour_are_told_apart(monkeypatch):
  same = dataclasses.replace(TERMS['sp'], colour=TERMS['kd'].colour)
  monkeypatch.setitem(TERMS, 'sp', same)
  found = objectives.from_weights({'kd': {'kd': 1.0}, 'sp': {'sp': 1.0}})
  assert found['kd'].colour == TERMS['kd'].colour
  assert found['sp'].colour != found['kd'].colour


def test_a_term_has_its_colour_in_every_table():
  alone = objectives.from_weights({'iusp': {'iusp': 1.0}})['iusp']
  among = objectives.from_weights(WEIGHTS)['iusp']
  assert (alone.colour, alone.marker) == (among.colour, among.marker)


def test_a_combination_has_no_colour_of_a_term_of_other_tables(monkeypatch):
  weights = {'both': {'kd': 1.0, 'sp': 1.0}}
  first = objectives.from_weights(weights)['both'].colour
  new = dataclasses.replace(TERMS['sp'], colour=first)
  monkeypatch.setitem(TERMS, 'new', new)
  assert objectives.from_weights(weights)['both'].colour != first


def test_only_single_similarity_terms_are_shown_with_similarities():
  found = objectives.from_weights(WEIGHTS).values()
  assert [o.name for o in found if o.compares_similarities] == ['iusp']


def test_weights_of_a_table_are_those_of_any_student():
  table = table_fakes.table(seeds=(1,), students=('crnn_16', 'cnn_8'))
  for cell in table['cells']:
    if cell['student'] == 'crnn_16':
      cell['weights'] = dict.fromkeys(cell['weights'], 0.0)
  found = objectives.of_table(table)
  assert [o.title for o in found.values()] == [
    'no KD', 'KD', 'SP', 'IUSP', 'SP + IUSP',
  ]  # fmt: skip


def test_a_legend_shows_titles_that_start_with_an_underscore():
  (found,) = objectives.from_weights({'_new': None}).values()
  assert found.look()['label'] == ' _new'
  assert found.title == '_new'


class TestComparisons:
  def test_those_of_the_paper(self):
    names = ['baseline', 'kd', 'sp', 'iusp']
    assert objectives.comparisons(names) == [
      ('kd', 'baseline'),
      ('sp', 'baseline'),
      ('iusp', 'baseline'),
      ('iusp', 'sp'),
      ('iusp', 'kd'),
      ('sp', 'kd'),
    ]

  def test_a_new_objective_is_compared_with_the_baseline_and_kd(self):
    found = objectives.comparisons(['baseline', 'kd', 'new'])
    assert ('new', 'baseline') in found
    assert ('new', 'kd') in found
    assert len(found) == 3

  def test_nothing_is_compared_with_what_is_not_there(self):
    assert objectives.comparisons(['iusp', 'new']) == []
    assert objectives.comparisons(['baseline']) == []
