"""The table's rows and files, against numbers recomputed from its cells."""

import copy
import csv
import json
import math

import numpy as np
import pytest
import table_fakes
from conftest import ROOT

from iusp_jax.reporting import formatting
from iusp_jax.reporting.table import objectives, records, rows, tables
from iusp_jax.scoring import statistics

TWO = ('crnn_16', 'cnn_8')


@pytest.fixture(scope='module')
def table():
  return table_fakes.table()


def sections_of(table):
  records.check(table)
  return rows.sections(table, objectives.of_table(table))


@pytest.fixture(scope='module')
def sections(table):
  return sections_of(table)


def cells_of(table, student, objective):
  return [
    c
    for c in table['cells']
    if (c['student'], c['objective']) == (student, objective)
  ]


def micro(table, student, objective):
  found = cells_of(table, student, objective)
  return np.array([c['test']['micro_auprc'] for c in found])


def find(section, **fields):
  (found,) = [
    row
    for row in section.rows
    if all(row[key] == value for key, value in fields.items())
  ]
  return found


def difference(sections, group, own, other):
  return find(sections['differences'], group=group, own=own, other=other)


class TestRows:
  def test_scores_are_those_of_the_cells(self, table, sections):
    for row in sections['scores'].rows:
      for objective in table_fakes.GAINS:
        value_S = micro(table, row['student'], objective)
        found = row[objective]
        assert found['mean'] == pytest.approx(value_S.mean())
        assert found['sd'] == pytest.approx(value_S.std(ddof=1))
        assert (found['n'], found['expected'], found['done']) == (8, 8, 8)

  def test_differences_are_paired(self, table, sections):
    of = [r for r in sections['differences'].rows if r['group'] == 'crnn_16']
    # Each of four with the baseline, each of three with KD, IUSP with SP.
    assert len(of) == 4 + 3 + 1
    own_S, other_S = (micro(table, 'crnn_16', o) for o in ('iusp', 'sp'))
    found = difference(sections, 'crnn_16', 'iusp', 'sp')
    assert found['mean'] == pytest.approx((own_S - other_S).mean())
    assert found['sd'] == pytest.approx((own_S - other_S).std(ddof=1))
    assert found['resamples'] == 50

  def test_the_order_of_the_cells_does_not_matter(self, table, sections):
    found = sections_of(table | {'cells': table['cells'][::-1]})
    for row in found['differences'].rows:
      own, other, group = (row[key] for key in ('own', 'other', 'group'))
      wanted = difference(sections, group, own, other)
      assert row['low'] == pytest.approx(wanted['low'])
      assert row['permutation_p'] == wanted['permutation_p']

  def test_the_pool_is_a_mean_over_students(self, table, sections):
    found = difference(sections, rows.POOLED, 'iusp', 'baseline')
    gains = [
      micro(table, s, 'iusp') - micro(table, s, 'baseline')
      for s in table_fakes.STUDENTS
    ]
    assert found['n'] == 8
    assert found['mean'] == pytest.approx(np.mean(gains))
    assert found['sd'] == pytest.approx(np.mean(gains, axis=0).std(ddof=1))

  def test_leads_are_corrected_together(self, table):
    """Those that were stated, in that order; one of them has no cell."""
    found = sections_of(table | {'leads': ['iusp_sp', 'vic', 'iusp']})
    first, absent, last = found['leads'].rows
    for row, name in ((first, 'iusp_sp'), (last, 'iusp')):
      wanted = difference(found, rows.POOLED, name, 'kd')
      for key in ('mean', 'low', 'high', 'permutation_p'):
        assert row[key] == wanted[key]
    p = [first['permutation_p'], 1.0, last['permutation_p']]
    assert [first['holm_p'], last['holm_p']] == statistics.holm(p)[::2]
    assert absent['holm_p'] is None
    lines = found['leads'].lines()
    assert [line[0] for line in lines[1:]] == [
      'SP + IUSP − KD', 'vic − KD', 'IUSP − KD',
    ]  # fmt: skip
    assert lines[2][2:] == ['-'] * 5
    text = tables.markdown(table, found)
    assert text.index('Stated beforehand') < text.index('## Differences')

  def test_what_is_not_stated_is_not_shown(self, sections):
    assert 'leads' not in sections

  def test_cost_of_a_row(self, table):
    cells = copy.deepcopy(table['cells'])
    for number, cell in enumerate(cells):
      cell |= {'stored_bytes': 62_500, 'step_seconds': 0.08 - 1e-4 * number}
    section = sections_of(table | {'cells': cells})['other']
    last = cells_of({'cells': cells}, 'mobilenet_0.5', 'iusp')[-1]
    row = find(section, student='mobilenet_0.5', objective='iusp')
    assert row['step_seconds'] == last['step_seconds']
    titles = section.lines()[0]
    assert titles[-2:] == ['stored, kB', 'step, ms']
    assert section.lines()[1][-2] == '62.5'

  def test_the_ratio(self, table, sections):
    ratio = find(sections['ratio'], group='crnn_16')
    base, sp, iusp = (
      micro(table, 'crnn_16', o).mean() for o in ('baseline', 'sp', 'iusp')
    )
    assert ratio['value'] == pytest.approx((iusp - base) / (sp - base) - 1)
    assert ratio['low'] < ratio['value'] < ratio['high']
    assert ratio['sp_gain'] == pytest.approx(sp - base)
    assert ratio['iusp_gain'] == pytest.approx(iusp - base)

  def test_printed_where_the_difference_is_beyond_its_interval(self, sections):
    withheld = 0
    for row in sections['ratio'].rows:
      gain = difference(sections, row['group'], 'sp', 'baseline')
      assert (row['value'] is not None) == (gain['low'] > 0)
      withheld += row['value'] is None
    assert withheld

  def test_best_needs_a_lead_beyond_its_interval(self, sections):
    assert find(sections['scores'], student='crnn_16')['bold'] == []
    clear = table_fakes.table(students=TWO)
    for cell in cells_of(clear, 'cnn_8', 'kd'):
      cell['test']['micro_auprc'] += 0.2
      cell['resampled'] = [v + 0.2 for v in cell['resampled']]
    found = sections_of(clear)
    bold = [row['bold'] for row in found['scores'].rows]
    assert bold == [[], ['kd']]
    lines = found['scores'].lines()
    assert [cell.count('**') for cell in lines[2]] == [0, 0, 0, 0, 2, 0, 0, 0]
    assert not any('**' in cell for cell in lines[1])

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
    (found,) = sections_of(table)['scores'].rows
    means = {o: found[o]['mean'] for o in gains}
    assert means['kd'] > means['baseline'] > means['iusp']
    assert found['bold'] == ['iusp']

  def test_a_missing_cell_leaves_only_its_own_pair(self):
    table = table_fakes.table(students=TWO)
    lost = cells_of(table, 'cnn_8', 'sp')[2]
    lost |= {'status': 'missing', 'test': None, 'resampled': None}
    found = sections_of(table)
    assert difference(found, 'cnn_8', 'sp', 'baseline')['n'] == 7
    assert difference(found, 'cnn_8', 'iusp', 'baseline')['n'] == 8
    assert find(found['ratio'], group='cnn_8')['n'] == 7
    assert difference(found, rows.POOLED, 'iusp', 'sp')['n'] == 7
    assert [row['seed'] for row in found['absent'].rows] == [102]

  def test_a_student_leaves_the_pools_of_the_objective_that_it_lacks(self):
    table = table_fakes.table(students=(*TWO, 'crnn_32'))
    for cell in cells_of(table, 'cnn_8', 'kd'):
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    found = sections_of(table)
    kd, iusp = (
      difference(found, rows.POOLED, o, 'baseline') for o in ('kd', 'iusp')
    )
    assert (kd['students'], iusp['students']) == (2, 3)
    assert (kd['student'], iusp['student']) == (
      '2 of 3 students',
      'all students',
    )
    assert find(found['ratio'], group=rows.POOLED)['students'] == 3
    gains = [
      micro(table, s, 'iusp') - micro(table, s, 'baseline')
      for s in (*TWO, 'crnn_32')
    ]
    assert iusp['mean'] == pytest.approx(np.mean(gains))

  def test_the_gains_of_a_ratio_are_of_its_students_and_seeds(self):
    table = table_fakes.table(students=(*TWO, 'crnn_32'))
    for cell in cells_of(table, 'cnn_8', 'sp'):
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    lost = cells_of(table, 'crnn_16', 'sp')[0]
    lost |= {'status': 'missing', 'test': None, 'resampled': None}
    found = sections_of(table)
    pooled = find(found['ratio'], group=rows.POOLED)
    assert (pooled['student'], pooled['n']) == ('2 of 3 students', 7)
    scores = {  # Of the seeds but the first, which SP lacks.
      o: np.mean([micro(table, s, o)[1:] for s in ('crnn_16', 'crnn_32')])
      for o in ('baseline', 'iusp')
    }
    gain = scores['iusp'] - scores['baseline']
    assert pooled['iusp_gain'] == pytest.approx(gain)
    without = find(found['ratio'], group='cnn_8')
    assert without['reason'] == 'no pair of all three objectives'
    assert without.get('iusp_gain') is None

  @pytest.mark.slow
  def test_rotations_stay_apart(self):
    table = table_fakes.table(rotations=('a', 'b'), students=TWO)
    found = sections_of(table)
    own, other = (cells_of(table, 'cnn_8', o) for o in ('iusp', 'baseline'))
    expected = statistics.paired_difference(
      [c['test']['micro_auprc'] for c in own],
      [c['test']['micro_auprc'] for c in other],
      [c['resampled'] for c in own],
      [c['resampled'] for c in other],
      [c['rotation'] for c in own],
    )
    compared = difference(found, 'cnn_8', 'iusp', 'baseline')
    assert compared['n'] == 16
    assert compared['low'] == pytest.approx(expected.low)
    values = [c['test']['micro_auprc'] for c in own if c['rotation'] == 'b']
    row = find(found['by_rotation'], student='cnn_8', rotation='b')
    assert row['iusp']['mean'] == pytest.approx(np.mean(values))
    assert [row['rotation'] for row in found['teachers'].rows] == ['a', 'b']

  def test_one_rotation_has_no_section_of_its_own(self, sections):
    assert 'by_rotation' not in sections

  def test_what_the_first_column_repeats_is_left_out(self, sections):
    firsts = [line[0] for line in sections['differences'].lines()[1:9]]
    assert firsts == ['KD − no KD', *[''] * 6, 'SP − no KD']

  def test_p_below_a_thousandth_is_no_zero(self, table):
    """2 / 2^12 is .0005 and 2 / 2^10 is .002."""
    for seeds, text in ((10, '.002'), (12, '<.001')):
      many = table_fakes.table(range(seeds), students=('cnn_8',))
      for cell in cells_of(many, 'cnn_8', 'kd'):
        cell['test']['micro_auprc'] += 0.2
      section = sections_of(many)['differences']
      line = section.lines()[1]
      assert line[0] == 'KD − no KD'
      assert line[-2:] == [text, text]


class TestFiles:
  def test_all_are_written(self, table, tmp_path):
    text = tables.write(table, tmp_path / 'new')
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == [
      'table.csv', 'table.json', 'table.md',
    ]  # fmt: skip
    for part in ('crnn_32', 'IUSP − SP', 'withheld: ', '.729', 'p sign'):
      assert part in text
      assert part in (tmp_path / 'new/table.md').read_text()
    assert max(map(len, text.splitlines())) <= 100

  def test_json_has_the_rows_that_the_text_shows(self, table, tmp_path):
    text = tables.write(table, tmp_path)
    read = json.loads((tmp_path / 'table.json').read_text())
    assert read['counts'] == {'done': 240, 'diverged': 0, 'missing': 0}
    assert read['objectives'][-1] == {'name': 'iusp_sp', 'title': 'SP + IUSP'}
    row = read['scores'][0]
    mean, sd = (formatting.decimal(row['kd'][key]) for key in ('mean', 'sd'))
    assert f'{mean} ± {sd}' in text
    for row in read['differences']:
      assert formatting.signed(row['mean']) in text
      assert row['student'] in text
    assert {row['student'] for row in read['ratio']} == {
      *table_fakes.STUDENTS, 'all students',
    }  # fmt: skip

  def test_many_objectives_still_fit_a_terminal(self, tmp_path):
    table = table_fakes.table(seeds=(1, 2), students=TWO)
    more = copy.deepcopy(table['cells'])
    for cell in more:
      cell['objective'] += '_again'
    table['cells'] += more
    text = tables.write(table, tmp_path)
    assert max(map(len, text.splitlines())) <= 100
    assert text.count('\ncrnn_16') >= 2  # The names of the rows, once a part.

  def test_results_of_an_earlier_version_are_reported(self, tmp_path):
    """Cells without a model, and without the weights of those not run."""
    path = ROOT / 'docs/results/urban_scenes-crnn_64.json'
    table = json.loads(path.read_text())
    for cell in cells_of(table, 'crnn_64', 'kd'):
      del cell['weights']
    assert 'model' not in table['cells'][0]
    text = tables.write(table, tmp_path)
    read = json.loads((tmp_path / 'table.json').read_text())
    titles = [shown['title'] for shown in read['objectives']]
    assert titles == ['no KD', 'KD', 'SP', 'IUSP', 'SP + IUSP']
    # As measured with that version.
    for part in ('.721 ± .007', '+.013', '[+.005, +.023]', '.008', '.328'):
      assert part in text

  def test_the_csv_has_a_row_a_cell(self, table):
    rows = list(csv.DictReader(tables.cells_csv(table).splitlines()))
    assert len(rows) == 240
    for row, cell in zip(rows, table['cells'], strict=True):
      assert float(row['test_micro_auprc']) == cell['test']['micro_auprc']
      assert float(row['test_auprc/dog']) == cell['test']['class_auprc'][-1]
    assert rows[3]['weights'] == 'iusp=300'

  def test_markdown_tables_are_regular(self, table, sections):
    for block in tables.markdown(table, sections).split('\n\n'):
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

  def test_without_positives_there_are_no_scores(self, tmp_path):
    """Neither of some resamples, nor of a whole student."""
    table = table_fakes.table(students=TWO, seeds=(1, 2, 3))
    for cell in table['cells']:
      cell['resampled'][7] = None
      if cell['student'] == 'cnn_8':
        cell['test'] |= dict.fromkeys(('micro_auprc', 'macro_auprc', 'map'))
        cell['test']['class_auprc'] = [None] * len(table['tags'])
        cell['resampled'] = [None] * 50
    text = tables.write(table, tmp_path)
    found = json.loads((tmp_path / 'table.json').read_text())
    pooled = [r for r in found['differences'] if r['group'] == rows.POOLED]
    assert {row['student'] for row in pooled} == {'1 of 2 students'}
    assert {row['resamples'] for row in found['differences']} == {49}
    (line,) = [one for one in text.splitlines() if one.startswith('cnn_8')][:1]
    assert line.split()[3:] == ['-'] * 5
    assert 'NaN' not in (tmp_path / 'table.json').read_text()

  @pytest.mark.parametrize(
    ('name', 'extra'),
    [('urban_scenes-table', ()), ('clips-three_students', ('by_rotation',))],
  )
  def test_docs_have_the_tables_of_the_raw_results(self, name, extra):
    path = ROOT / f'docs/results/{name}.json'
    sections = sections_of(json.loads(path.read_text()))
    docs = '\n'.join(p.read_text() for p in (ROOT / 'docs').rglob('*.md'))
    for part in ('scores', 'teachers', 'differences', 'ratio', *extra):
      assert tables.grid(sections[part]) in docs


class TestBadInput:
  @pytest.mark.parametrize(
    ('change', 'message'),
    [
      (lambda t: t.pop('tags'), "no field 'tags'"),
      (lambda t: t.update(cells=[]), "'cells'.* is empty"),
      (lambda t: t['cells'][2].pop('seed'), r"\[2\] has no field 'seed'"),
      (lambda t: t['cells'][1].update(status='ok'), "'status'.* is 'ok'"),
      (lambda t: t['cells'].append(t['cells'][0]), 'one cell of each'),
      (lambda t: t['cells'][0].pop('test'), "'test'.* has no 'micro_auprc'"),
      (
        lambda t: t['cells'][0]['test'].update(micro_auprc=math.nan),
        r"\['test'\]\['micro_auprc'\] is nan",
      ),
      (
        lambda t: t['cells'][0]['test'].update(class_auprc=[0.5]),
        "class_auprc.* has 1 scores for 8",
      ),
      (lambda t: t['cells'][3].update(resampled=[0.5]), 'as many resamples'),
      (lambda t: t['cells'][3].update(resampled=['x']), r"\[0\] is 'x'; "),
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
