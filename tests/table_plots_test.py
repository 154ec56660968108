"""The table's plots and the numbers beside them."""

import itertools
import json
import math

import images
import numpy as np
import pytest
import table_fakes
from conftest import ROOT

from iusp_jax.reporting.table import plots

NAMES = [
  'score_against_cost.png',
  'gain_per_tag.png',
  'learning_curves.png',
  'frame_distance.png',
]
TWO = ('crnn_16', 'cnn_8')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  folder = tmp_path_factory.mktemp('table') / 'new'
  table = table_fakes.table()
  assert plots.draw(table, folder) == NAMES
  return table, folder


def rows(path):
  return [line.split() for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize('name', NAMES)
def test_a_plot_with_its_numbers(drawn, name):
  pixels = images.pixels(drawn[1] / name)
  assert pixels.shape[1] == 1050
  assert 0.02 < np.mean((pixels < 1).any(axis=-1)) < 0.5
  # Nothing is cut off: the edges are white but for a tick's end.
  assert np.mean(pixels[[0, -1]] < 1) < 0.01
  assert len(rows((drawn[1] / name).with_suffix('.txt'))) > 15


def test_the_costs_table(drawn):
  table, folder = drawn
  found = rows(folder / 'score_against_cost.txt')
  assert len(found) == 6 * 5 + 1
  values = [
    c['test']['micro_auprc']
    for c in table['cells']
    if (c['student'], c['objective']) == ('cnn_16', 'iusp')
  ]
  (row,) = [r for r in found if r[:2] == ['cnn_16', 'iusp']]
  assert float(row[4]) == pytest.approx(np.mean(values), abs=6e-5)
  assert float(row[5]) == pytest.approx(np.std(values, ddof=1), abs=6e-5)
  assert found[-1][0] == 'teacher'


def test_tags_are_ordered_by_repetitiveness(drawn):
  table, folder = drawn
  found = rows(folder / 'gain_per_tag.txt')
  tags = list(dict.fromkeys(row[0] for row in found))
  assert tags == sorted(
    table['tags'], key=lambda t: -table['repetitiveness'][t]
  )
  (row,) = [r for r in found if (r[0], r[2]) == ('dog', 'iusp')]
  score = {
    (c['student'], c['seed'], c['objective']): c['test']['class_auprc'][-1]
    for c in table['cells']
  }
  gains = [
    score[student, seed, 'iusp'] - score[student, seed, 'baseline']
    for student, seed, objective in score
    if objective == 'iusp'
  ]
  assert float(row[3]) == pytest.approx(np.mean(gains), abs=6e-5)
  assert float(row[4]) < float(row[3]) < float(row[5])


def test_gain_of_a_tag_is_of_the_seeds_that_no_student_lacks(tmp_path):
  table = table_fakes.table(students=TWO, seeds=(1, 2, 3))
  gains = {}
  for cell in table['cells']:
    key = cell['student'], cell['seed']
    if key in {(TWO[0], 1), (TWO[1], 2)} and cell['objective'] == 'iusp':
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
    elif cell['seed'] == 3:
      gains[cell['student'], cell['objective']] = cell['test']['class_auprc'][0]
  plots.draw(table, tmp_path)
  tag = table['tags'][0]
  (row,) = [
    r
    for r in rows(tmp_path / 'gain_per_tag.txt')
    if (r[0], r[2]) == (tag, 'iusp')
  ]
  assert row[-1] == '1'
  expected = [gains[s, 'iusp'] - gains[s, 'baseline'] for s in TWO]
  assert float(row[3]) == pytest.approx(np.mean(expected), abs=6e-5)


def test_tag_has_no_gain_where_students_share_no_seed(tmp_path):
  table = table_fakes.table(students=TWO, seeds=(1, 2, 3))
  for cell in table['cells']:
    mine = (1, 2) if cell['student'] == TWO[0] else (3,)
    if cell['seed'] not in mine and cell['objective'] == 'iusp':
      cell |= {'status': 'missing', 'test': None, 'resampled': None}
  plots.draw(table, tmp_path)
  found = {row[2] for row in rows(tmp_path / 'gain_per_tag.txt')}
  assert 'iusp' not in found
  assert 'sp' in found


@pytest.mark.parametrize(
  'students',
  [('crnn_16',), ('crnn_16', 'crnn_32'), tuple(table_fakes.STUDENTS)],
)
def test_points_stand_at_the_cost_of_their_student(
  tmp_path, monkeypatch, students
):
  """Within 4 % of the axis, and the numbers of the axes apart."""
  kept = images.keep_figures(monkeypatch)
  plots.draw(table_fakes.table(seeds=(1, 2), students=students), tmp_path)
  panels = kept[0].axes
  assert len(panels) == 2
  ticks = []
  for axes, cost in zip(panels, (0, 1), strict=True):
    low, high = map(math.log, axes.get_xlim())
    sizes = [math.log(table_fakes.STUDENTS[s][cost]) for s in students]
    assert low < min(sizes) <= max(sizes) < high
    points = [x for c in axes.containers for x in c.lines[0].get_xdata()]
    assert len(points) == 5 * len(students)
    for x in points:
      off = min(abs(math.log(x) - size) for size in sizes)
      assert off < 0.04 * (high - low)
    shown = [t for t in axes.get_xticklabels() if t.get_text()]
    shown = [t for t in shown if low <= math.log(t.get_position()[0]) <= high]
    assert 1 <= len(shown) <= 8
    ticks += [t.get_window_extent() for t in shown]
  for one, two in itertools.combinations(ticks, 2):
    assert not one.overlaps(two)


def test_any_name_of_a_student_tag_or_objective_is_drawn(tmp_path, monkeypatch):
  table = table_fakes.table(seeds=(1, 2), students=TWO)
  table['tags'][0] = '$car$ ^_horn'
  table['repetitiveness'][table['tags'][0]] = 0.9
  for cell in table['cells']:
    if cell['student'] == 'cnn_8':
      cell['student'] = '$cnn$_8'
    if cell['objective'] == 'iusp_sp':
      cell |= {'objective': '_$x$', 'weights': None}
  kept = images.keep_figures(monkeypatch)
  assert plots.draw(table, tmp_path) == NAMES
  found = [text for figure in kept for text in images.texts(figure)]
  for name in ('$car$ ^_horn', '$cnn$_8', ' _$x$'):
    assert name in found


def test_results_of_an_earlier_version_are_drawn(tmp_path):
  path = ROOT / 'docs/results/clips-study_centred.json'
  assert plots.draw(json.loads(path.read_text()), tmp_path) == [
    'score_against_cost.png', 'learning_curves.png', 'frame_distance.png',
  ]  # fmt: skip  # Without the baseline no tag has a gain.


def test_what_has_no_numbers_is_left_out(tmp_path):
  table = table_fakes.table(students=TWO, seeds=(1, 2))
  table['repetitiveness'] = {}
  for cell in table['cells']:
    cell |= {'curve': [], 'frame_distance': None}
  assert plots.draw(table, tmp_path) == NAMES[:1]
  assert len(list(tmp_path.iterdir())) == 2


def test_holes_are_drawn_around(tmp_path):
  """Diverged cells, undefined tags, a strange objective, one seed."""
  table = table_fakes.table(
    seeds=(1,), students=(*TWO, 'crnn_32', 'mobilenet_0.5')
  )
  table_fakes.fail(table, 'diverged', 4, 'NaN')
  table['cells'][0]['test']['class_auprc'][0] = None
  table['cells'][-1]['objective'] = 'centred'
  table['teachers'] = []
  assert plots.draw(table, tmp_path) == NAMES


def test_bad_input_is_named(tmp_path):
  with pytest.raises(ValueError, match="no field 'cells'"):
    plots.draw({'dataset': '', 'tags': [], 'teachers': []}, tmp_path / 'new')
