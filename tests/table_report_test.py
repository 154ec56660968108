"""The table's files, against numbers recomputed from its cells."""

import copy
import csv
import json
import math

import numpy as np
import pytest
import table_fakes

from iusp_jax.reporting.table import aggregates, layout, tables
from iusp_jax.scoring import statistics

TWO = ('crnn_16', 'cnn_8')


@pytest.fixture(scope='module')
def table():
  return table_fakes.table()


@pytest.fixture(scope='module')
def numbers(table):
  return aggregates.aggregate(table)


def cells_of(table, student, objective):
  return [
    c
    for c in table['cells']
    if (c['student'], c['objective']) == (student, objective)
  ]


def micro(table, student, objective):
  found = cells_of(table, student, objective)
  return np.array([c['test']['micro_auprc'] for c in found])


def find(differences, own, other):
  (found,) = [d for d in differences if (d['own'], d['other']) == (own, other)]
  return found


class TestAggregate:
  def test_scores_are_those_of_the_cells(self, table, numbers):
    for student, of in numbers['students'].items():
      for objective, scores in of['scores'].items():
        value_S = micro(table, student, objective)
        found = scores['micro_auprc']
        assert found['mean'] == pytest.approx(value_S.mean())
        assert found['sd'] == pytest.approx(value_S.std(ddof=1))
        assert (found['n'], scores['expected']) == (8, 8)

  def test_differences_are_paired(self, table, numbers):
    of = numbers['students']['crnn_16']['differences']
    assert len(of) == 6
    own_S, other_S = (micro(table, 'crnn_16', o) for o in ('iusp', 'sp'))
    found = find(of, 'iusp', 'sp')
    assert found['mean'] == pytest.approx((own_S - other_S).mean())
    assert found['sd'] == pytest.approx((own_S - other_S).std(ddof=1))
    assert found['resamples'] == 50

  def test_the_order_of_the_cells_does_not_matter(self, table, numbers):
    other = table | {'cells': table['cells'][::-1]}
    found = aggregates.aggregate(other)['students']['cnn_8']
    expected = numbers['students']['cnn_8']['differences']
    for own, wanted in zip(found['differences'], expected, strict=True):
      assert own['low'] == pytest.approx(wanted['low'])
      assert own['permutation_p'] == wanted['permutation_p']

  def test_the_pool_is_a_mean_over_students(self, table, numbers):
    found = find(numbers['pooled']['differences'], 'iusp', 'baseline')
    gains = [
      micro(table, s, 'iusp') - micro(table, s, 'baseline')
      for s in table_fakes.STUDENTS
    ]
    assert found['n'] == 8
    assert found['mean'] == pytest.approx(np.mean(gains))
    assert found['sd'] == pytest.approx(np.mean(gains, axis=0).std(ddof=1))

  def test_the_ratio(self, table, numbers):
    ratio = numbers['students']['crnn_16']['ratio']
    base, sp, iusp = (
      micro(table, 'crnn_16', o).mean() for o in ('baseline', 'sp', 'iusp')
    )
    assert ratio['value'] == pytest.approx((iusp - base) / (sp - base) - 1)
    assert ratio['low'] < ratio['value'] < ratio['high']

  def test_printed_where_the_difference_is_beyond_its_interval(self, numbers):
    withheld = 0
    for of in numbers['students'].values():
      sure = find(of['differences'], 'sp', 'baseline')['low'] > 0
      assert (of['ratio']['value'] is not None) == sure
      withheld += not sure
    assert withheld

  def test_best_needs_a_lead_beyond_its_interval(self, numbers):
    assert numbers['students']['crnn_16']['best'] is None
    clear = table_fakes.table(students=TWO)
    for cell in cells_of(clear, 'cnn_8', 'kd'):
      cell['test']['micro_auprc'] += 0.2
      cell['resampled'] = [v + 0.2 for v in cell['resampled']]
    found = aggregates.aggregate(clear)['students']
    assert (found['cnn_8']['best'], found['crnn_16']['best']) == ('kd', None)
    text = tables.markdown(aggregates.aggregate(clear))
    (row,) = [r for r in text.splitlines() if r.startswith('| cnn_8 ')][:1]
    assert row.count('**') == 2

  def test_best_leads_every_other_where_both_have_cells(self):
    """A mean over luckier seeds is no lead."""
    table = table_fakes.table(
      students=('cnn_8',), objectives=('baseline', 'kd', 'iusp')
    )
    gains = {'baseline': 0.0, 'kd': 0.1, 'iusp': 0.2}
    for cell in table['cells']:
      lucky = cell['seed'] >= 104
      gain = gains[cell['objective']] + 0.5 * lucky
      cell['test']['micro_auprc'] += gain
      cell['resampled'] = [value + gain for value in cell['resampled']]
      if lucky and cell['objective'] == 'iusp':
        cell |= {'status': 'missing', 'test': None, 'resampled': None}
    found = aggregates.aggregate(table)['students']['cnn_8']
    means = {o: of['micro_auprc']['mean'] for o, of in found['scores'].items()}
    assert means['kd'] > means['baseline'] > means['iusp']
    assert found['best'] == 'iusp'

  def test_a_missing_cell_leaves_only_its_own_pair(self):
    table = table_fakes.table(students=TWO)
    lost = cells_of(table, 'cnn_8', 'sp')[2]
    lost |= {'status': 'missing', 'test': None, 'resampled': None}
    found = aggregates.aggregate(table)
    of = found['students']['cnn_8']['differences']
    assert find(of, 'sp', 'baseline')['n'] == 7
    assert find(of, 'iusp', 'baseline')['n'] == 8
    assert found['students']['cnn_8']['ratio']['n'] == 7
    assert find(found['pooled']['differences'], 'iusp', 'sp')['n'] == 7
    assert found['counts'] == {'done': 79, 'diverged': 0, 'missing': 1}

  def test_a_student_leaves_the_pools_of_the_objective_that_it_lacks(self):
    table = table_fakes.table(students=(*TWO, 'crnn_32'))
    for cell in cells_of(table, 'cnn_8', 'kd'):
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    found = aggregates.aggregate(table)
    pooled = found['pooled']['differences']
    kd, iusp = (find(pooled, o, 'baseline') for o in ('kd', 'iusp'))
    assert (kd['students'], iusp['students']) == (2, 3)
    assert found['pooled']['ratio']['students'] == 3
    gains = [
      micro(table, s, 'iusp') - micro(table, s, 'baseline')
      for s in (*TWO, 'crnn_32')
    ]
    assert iusp['mean'] == pytest.approx(np.mean(gains))
    rows = layout.difference_rows(found)
    assert [row[1] for row in rows if 'students' in row[1]] == [
      '2 of 3 students', 'all students', 'all students', 'all students',
      'all students', '2 of 3 students',
    ]  # fmt: skip

  def test_the_pooled_ratio_is_not_beside_gains_of_other_students(self):
    table = table_fakes.table(students=(*TWO, 'crnn_32'))
    for cell in cells_of(table, 'cnn_8', 'sp'):
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    row = layout.ratio_rows(aggregates.aggregate(table))[-1]
    assert row[0] == '2 of 3 students'
    assert row[2] != '-'  # SP's gain: over these two as well.
    assert row[3] == '-'  # IUSP's is over all three.

  def test_the_ratio_is_not_beside_gains_of_other_seeds(self):
    table = table_fakes.table(students=('cnn_8',))
    lost = cells_of(table, 'cnn_8', 'sp')[0]
    lost |= {'status': 'missing', 'test': None, 'resampled': None}
    row = layout.ratio_rows(aggregates.aggregate(table))[-1]
    assert row[1] == '7'
    assert row[2] != '-'  # SP's gain: of these 7.
    assert row[3] == '-'  # IUSP's is of all 8.

  def test_rotations_stay_apart(self):
    table = table_fakes.table(rotations=('a', 'b'), students=TWO)
    found = aggregates.aggregate(table)
    assert found['rotations'] == ['a', 'b']
    of = found['students']['cnn_8']
    difference = find(of['differences'], 'iusp', 'baseline')
    assert difference['n'] == 16
    own, other = (cells_of(table, 'cnn_8', o) for o in ('iusp', 'baseline'))
    expected = statistics.paired_difference(
      [c['test']['micro_auprc'] for c in own],
      [c['test']['micro_auprc'] for c in other],
      [c['resampled'] for c in own],
      [c['resampled'] for c in other],
      [c['rotation'] for c in own],
    )
    assert difference['low'] == pytest.approx(expected.low)
    values = [c['test']['micro_auprc'] for c in own if c['rotation'] == 'b']
    by_rotation = of['scores']['iusp']['by_rotation']
    assert by_rotation['b']['mean'] == pytest.approx(np.mean(values))

  def test_unknown_objectives_sort_last(self):
    table = table_fakes.table(students=TWO, seeds=(1, 2))
    for cell in cells_of(table, 'cnn_8', 'kd'):
      cell['objective'] = 'centred'
    names = aggregates.aggregate(table)['objectives']
    assert names == ['baseline', 'kd', 'sp', 'iusp', 'iusp_sp', 'centred']


class TestFiles:
  def test_all_are_written(self, table, numbers, tmp_path):
    text = tables.write(table, tmp_path / 'new')
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [
      'table.csv', 'table.json', 'table.md',
    ]  # fmt: skip
    read = json.loads((tmp_path / 'new/table.json').read_text())
    assert read == json.loads(json.dumps(numbers))
    for part in ('crnn_32', 'IUSP − SP', 'withheld: ', '.729', 'p sign'):
      assert part in text
      assert part in (tmp_path / 'new/table.md').read_text()

  def test_the_csv_has_a_row_a_cell(self, table):
    rows = list(csv.DictReader(tables.cells_csv(table).splitlines()))
    assert len(rows) == 240
    for row, cell in zip(rows, table['cells'], strict=True):
      assert float(row['test_micro_auprc']) == cell['test']['micro_auprc']
      assert float(row['test_auprc/dog']) == cell['test']['class_auprc'][-1]
    assert rows[3]['weights'] == 'iusp=300'

  def test_markdown_tables_are_regular(self, numbers):
    for block in tables.markdown(numbers).split('\n\n'):
      if block.startswith('|'):
        lines = block.splitlines()
        assert len({line.count('|') for line in lines}) == 1
        assert len({len(line) for line in lines}) == 1

  def test_cells_that_are_not_done_are_counted_and_listed(self, tmp_path):
    table = table_fakes.fail(
      table_fakes.table(students=TWO), 'diverged', 3, 'NaN at step 17'
    )
    text = tables.write(table, tmp_path)
    page = (tmp_path / 'table.md').read_text()
    assert '80 cells: 77 done, 3 diverged.' in text
    assert page.count('NaN at step 17') == 3
    assert ' 7/8 |' in page

  def test_nothing_but_missing_cells_is_still_a_table(self, tmp_path):
    table = table_fakes.table(students=TWO, seeds=(1,))
    for cell in table['cells']:
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    text = tables.write(table, tmp_path)
    assert '10 cells: 10 missing.' in text
    assert 'no pair of all three' in text

  def test_one_seed_one_objective(self, tmp_path):
    table = table_fakes.table(students=TWO, seeds=(1,), objectives=('iusp',))
    assert '±' in tables.write(table, tmp_path)
    assert '## Differences' not in (tmp_path / 'table.md').read_text()

  def test_without_resamples_it_says_so(self, tmp_path):
    table = table_fakes.table(students=TWO)
    cells_of(table, 'cnn_8', 'iusp')[0]['resampled'] = []
    tables.write(table, tmp_path)
    page = (tmp_path / 'table.md').read_text()
    assert 'intervals are over seeds alone' in page

  def test_infinity_is_no_json(self):
    values = {
      'a': math.inf,
      'b': [math.nan, np.float32(1)],
      'c': (np.int64(2),),
    }
    expected = {'a': None, 'b': [None, 1.0], 'c': [2]}
    assert aggregates.plain(values) == expected


class TestBadInput:
  @pytest.mark.parametrize(
    ('change', 'message'),
    [
      (lambda t: t.pop('tags'), "no field 'tags'"),
      (lambda t: t.update(cells=[]), "'cells'.* is empty"),
      (lambda t: t['cells'][2].pop('seed'), r"\[2\] has no field 'seed'"),
      (lambda t: t['cells'][1].update(status='ok'), "'status'.* is 'ok'"),
      (lambda t: t['cells'].append(t['cells'][0]), 'one cell of each'),
      (lambda t: t['cells'][0].pop('test'), r"\['micro_auprc'\] is None"),
      (
        lambda t: t['cells'][0]['test'].update(micro_auprc=math.nan),
        r"\['test'\]\['micro_auprc'\] is nan",
      ),
      (
        lambda t: t['cells'][0]['test'].update(class_auprc=[0.5]),
        "class_auprc.* has 1 scores for 8",
      ),
      (lambda t: t['cells'][3].update(resampled=[0.5]), 'as many resamples'),
      (lambda t: t['cells'][3].update(resampled=['x']), "'resampled'.*finite"),
    ],
  )  # fmt: skip
  def test_the_field_is_named_and_nothing_written(
    self, change, message, tmp_path
  ):
    table = copy.deepcopy(table_fakes.table(students=TWO, seeds=(1, 2)))
    change(table)
    with pytest.raises(ValueError, match=message):
      tables.write(table, tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
