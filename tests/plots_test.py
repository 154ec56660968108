"""Learning curves and tag scores of a run, and the numbers beside them."""

import math

import numpy as np
import pytest
from images import BACKGROUND, inked, names, pixels

from iusp_jax.objectives.terms import TERMS
from iusp_jax.reporting import plots
from tfds_dcase import taxonomy


def rows(scale=1.0, terms=('tagging', 'iusp'), num_steps=40):
  out = []
  for step in range(1, num_steps + 1):
    values = {f'train/{t}': scale / (step + i) for i, t in enumerate(terms)}
    values |= {'train/loss': sum(values.values()), 'train/epoch': step / 4}
    out.append({'step': step, **values})
    if step % 10 == 0:
      micro = 0.5 - 0.001 * (step - 20) ** 2 / 10
      scores = {'micro_auprc': micro, 'macro_auprc': micro / 2, 'map': 0.25}
      out.append(
        {'step': step, 'validate/num_clips': 443}
        | {f'validate/coarse_{k}': v for k, v in scores.items()}
      )
  return out


@pytest.fixture(scope='module')
def curves(tmp_path_factory):
  path = tmp_path_factory.mktemp('curves') / 'curves.png'
  plots.plot_learning_curves(rows(), path)
  return path


class TestLearningCurves:
  def test_plot_and_numbers(self, curves):
    assert names(curves.parent) == ['curves.png', 'curves.txt']
    assert pixels(curves).shape[1] == 7 * 150
    assert 0.01 < inked(curves) < 0.5
    text = curves.with_suffix('.txt').read_text()
    assert 'best validate/coarse_micro_auprc: 0.5000 at step 20' in text
    assert text.splitlines()[1].split() == ['10', '0.4900', '0.2450', '0.2500']
    assert 'num_clips' not in text

  def test_shows_the_data(self, curves, tmp_path):
    bent = [r | {'train/loss': 1.0} if 'train/loss' in r else r for r in rows()]
    plots.plot_learning_curves(bent, tmp_path / 'bent.png')
    differ = (pixels(curves) != pixels(tmp_path / 'bent.png')).any(axis=-1)
    down, across = np.nonzero(differ)
    # The loss is the first of three terms: all else is drawn as before.
    assert 0 < across.max() < differ.shape[1] * 0.4
    assert down.max() < differ.shape[0] * 0.5

  @pytest.mark.parametrize('count', [0, 4])
  def test_any_number_of_terms(self, tmp_path, count):
    terms = ('gradient_norm', 'kd', 'sp', 'iusp')[:count]
    path = tmp_path / 'curves.png'
    plots.plot_learning_curves(rows(terms=terms), path)
    heights = {0: 1, 4: 2}  # `loss` is one more
    inches = 1.85 * (heights[count] + 1.35) + 0.6
    assert pixels(path).shape[0] == pytest.approx(150 * inches, abs=2)

  def test_each_kind_of_row_alone(self, tmp_path):
    both = rows()
    for kind in ('train/', 'validate/'):
      some = [r for r in both if any(k.startswith(kind) for k in r)]
      plots.plot_learning_curves(some, tmp_path / f'{kind[0]}.png')
      assert inked(tmp_path / f'{kind[0]}.png') > 0.01
    assert 'train/loss' in (tmp_path / 't.txt').read_text()
    assert 'train/loss' not in (tmp_path / 'v.txt').read_text()

  def test_one_step_and_undefined_scores(self, tmp_path):
    some = [
      {'step': 1, 'train/loss': 0.5},
      {'step': 1, 'validate/coarse_micro_auprc': math.nan},
    ]
    plots.plot_learning_curves(some, tmp_path / 'curves.png')
    text = (tmp_path / 'curves.txt').read_text()
    assert 'undefined' in text
    assert 'best' not in text

  def test_best_by_another_score(self, tmp_path):
    some = [
      {
        'step': s,
        'validate/coarse_micro_auprc': 0.1 * s,
        'validate/fine_micro_auprc': -0.1 * s,
      }
      for s in (1, 2, 3)
    ]
    path = tmp_path / 'curves.png'
    plots.plot_learning_curves(some, path, 'validate/fine_micro_auprc')
    assert 'fine_micro_auprc: -0.1000 at step 1' in (
      path.with_suffix('.txt').read_text()
    )

  def test_nothing_to_draw_is_an_error(self, tmp_path):
    with pytest.raises(ValueError, match=r'metrics\.jsonl'):
      plots.plot_learning_curves([{'step': 1}], tmp_path / 'curves.png')
    assert names(tmp_path) == []

  def test_every_term_is_drawn(self, tmp_path):
    for name in TERMS:
      path = tmp_path / f'{name}.png'
      plots.plot_learning_curves(rows(terms=(name,), num_steps=3), path)
      assert f'train/{name}, smoothed' in path.with_suffix('.txt').read_text()


class TestSmooth:
  def test_keeps_a_constant_to_the_ends(self):
    np.testing.assert_allclose(plots.smooth(np.full(200, 3.0)), 3.0)

  def test_keeps_the_middle_of_a_line(self):
    line = np.arange(200.0)
    np.testing.assert_allclose(plots.smooth(line)[20:-20], line[20:-20])

  def test_takes_noise_away(self):
    noise = np.random.default_rng(0).normal(size=400)
    assert plots.smooth(noise).std() < 0.5

  def test_skips_what_is_not_finite(self):
    values = np.full(100, 2.0)
    values[[3, 50]] = np.nan, np.inf
    np.testing.assert_allclose(plots.smooth(values), 2.0)

  def test_short_series_stay_as_they_are(self):
    np.testing.assert_allclose(plots.smooth(np.array([1.0, 5.0])), [1.0, 5.0])


class TestTagScores:
  def test_undefined_is_not_zero(self, tmp_path):
    support = {'8_dog': 6, '2-3_hoe-ram': 0}
    for name, value in (('none', None), ('nan', math.nan), ('zero', 0.0)):
      models = {'teacher': {'8_dog': 0.5, '2-3_hoe-ram': value}}
      plots.plot_tag_scores(models, support, tmp_path / f'{name}.png')
    plots.plot_tag_scores(
      {'teacher': {'8_dog': 0.5}}, support, tmp_path / 'missing.png'
    )
    none = pixels(tmp_path / 'none.png')
    np.testing.assert_array_equal(none, pixels(tmp_path / 'nan.png'))
    np.testing.assert_array_equal(none, pixels(tmp_path / 'missing.png'))
    assert (none != pixels(tmp_path / 'zero.png')).any()
    lines = (tmp_path / 'none.txt').read_text().splitlines()
    assert lines[2].split() == ['2-3_hoe-ram', '0', 'undefined']
    rule = 'mean over the 1 of 2 tags with positives'
    assert lines[3].split('  ')[0] == rule
    assert lines[3].split()[-1] == '0.5000'
    assert '0.2500' in (tmp_path / 'zero.txt').read_text()

  def test_all_fine_tags_and_four_models(self, tmp_path):
    rng = np.random.default_rng(0)
    tags = taxonomy.FINE_COLUMNS
    models = {
      m: dict(zip(tags, rng.random(len(tags)), strict=True))
      for m in ('teacher', 'student', 'baseline', 'sp')
    }
    path = tmp_path / 'tags.png'
    plots.plot_tag_scores(models, dict.fromkeys(tags, 12), path)
    height, width, _ = pixels(path).shape
    assert width == 1050
    assert 900 < height < 1500
    text = path.with_suffix('.txt').read_text()
    for tag in tags:
      assert f'{models["baseline"][tag]:.4f}' in text
    # Names are not cut: a margin of the background is left all around.
    page = pixels(path)
    for edge in (page[:3], page[-3:], page[:, :3], page[:, -3:]):
      assert (edge == BACKGROUND).all()

  def test_all_undefined(self, tmp_path):
    path = tmp_path / 'tags.png'
    plots.plot_tag_scores({'teacher': {'8_dog': None}}, {'8_dog': 0}, path)
    last = path.with_suffix('.txt').read_text().splitlines()[-1]
    assert last.split()[-1] == 'undefined'

  @pytest.mark.parametrize(
    ('models', 'support'),
    [({}, {'8_dog': 1}), ({'t': {}}, {}), ({'t': {'8_dgo': 1}}, {'8_dog': 1})],
  )
  def test_bad_input_is_named(self, tmp_path, models, support):
    with pytest.raises(ValueError, match='support'):
      plots.plot_tag_scores(models, support, tmp_path / 'tags.png')


def test_reliability_has_a_line_for_what_was_measured(tmp_path):
  measured = {
    'uncalibrated': {
      'count': [3, 0, 1],
      'probability': [0.1, None, 0.9],
      'present': [1 / 3, None, 1.0],
      'error': 0.2,
    }
  }
  plots.plot_reliability(measured, 'validate', tmp_path / 'a.png')
  lines = (tmp_path / 'a.txt').read_text().splitlines()
  assert [line.split() for line in lines[1:3]] == [
    ['uncalibrated', '0.1000', '0.3333', '3'],
    ['uncalibrated', '0.9000', '1.0000', '1'],
  ]
  assert lines[3] == 'expected calibration error: uncalibrated: 0.2000'
