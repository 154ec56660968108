"""Pictures of a run and the numbers beside them."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib import image

from iusp_jax.reporting import plots, similarity_plot
from tfds_dcase import taxonomy

BACKGROUND = 1.0  # white


def pixels(path):
  """`[height, width, 3]` from 0 to 1; the size is in the file's header."""
  assert path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
  return image.imread(path)[..., :3]


def inked(path):
  return np.mean((pixels(path) < BACKGROUND).any(axis=-1))


def names(folder):
  return sorted(p.name for p in folder.iterdir())


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


def similarity(seed, num_frames=20):
  frames_TD = np.random.default_rng(seed).random((num_frames, 6))
  gram_TT = frames_TD @ frames_TD.T
  return gram_TT / np.linalg.norm(gram_TT, axis=1, keepdims=True)


def clip(**changes):
  panel = similarity_plot.SimilarityPanel(
    title='00_000066.wav',
    tags=('5-1_car-horn', '8_dog'),
    log_mel_TF=np.random.default_rng(0).normal(size=(100, 20)),
    seconds=10.0,
    similarity={'teacher': similarity(1), 'student': similarity(2)},
  )
  return dataclasses.replace(panel, **changes)


@pytest.fixture(scope='module')
def curves(tmp_path_factory):
  path = tmp_path_factory.mktemp('curves') / 'curves.png'
  plots.plot_learning_curves(rows(), path)
  return path


@pytest.fixture(scope='module')
def three_clips(tmp_path_factory):
  path = tmp_path_factory.mktemp('clips') / 'deep' / 'similar.png'
  panels = [clip(title=f'clip{i}') for i in range(3)]
  similarity_plot.plot_similarities(panels, path)
  return path


def test_similarities_come_back_from_a_file():
  panels = [clip(title='a'), clip(title='b', tags=())]
  found = similarity_plot.from_bytes(similarity_plot.to_bytes(panels))
  for own, other in zip(found, panels, strict=True):
    assert (own.title, own.tags) == (other.title, other.tags)
    assert own.seconds == other.seconds
    np.testing.assert_allclose(own.log_mel_TF, other.log_mel_TF, 1e-6)
    assert list(own.similarity) == list(other.similarity)
    for model, matrix_TT in other.similarity.items():
      np.testing.assert_allclose(own.similarity[model], matrix_TT, 1e-6)


class TestLearningCurves:
  def test_picture_and_numbers(self, curves):
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

  def test_refuses_nothing_to_draw(self, tmp_path):
    with pytest.raises(ValueError, match=r'metrics\.jsonl'):
      plots.plot_learning_curves([{'step': 1}], tmp_path / 'curves.png')
    assert names(tmp_path) == []

  def test_refuses_another_format(self, tmp_path):
    with pytest.raises(ValueError, match=r"'\.png'"):
      plots.plot_learning_curves(rows(), tmp_path / 'curves.txt')
    assert names(tmp_path) == []


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
    assert lines[3].split() == ['mean', 'of', 'the', 'defined', '0.5000']
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
    assert 'mean of the defined             undefined' in (
      path.with_suffix('.txt').read_text()
    )

  @pytest.mark.parametrize(
    ('models', 'support'),
    [({}, {'8_dog': 1}), ({'t': {}}, {}), ({'t': {'8_dgo': 1}}, {'8_dog': 1})],
  )
  def test_refusals(self, tmp_path, models, support):
    with pytest.raises(ValueError, match='support'):
      plots.plot_tag_scores(models, support, tmp_path / 'tags.png')


class TestSimilarities:
  def test_three_clips_and_their_distances(self, three_clips):
    path = three_clips
    assert names(path.parent) == ['similar.png', 'similar.txt']
    assert inked(path) > 0.2
    teacher, student = similarity(1), similarity(2)
    expected = np.linalg.norm(teacher - student) ** 2 / 20**2
    text = path.with_suffix('.txt').read_text()
    assert text.count(f'{expected:.3e}') == 3
    assert text.count('0.000e+00') == 3
    assert '5-1_car-horn,8_dog' in text

  def test_one_clip_is_a_third_as_high(self, three_clips, tmp_path):
    similarity_plot.plot_similarities([clip()], tmp_path / 'one.png')
    assert len(pixels(tmp_path / 'one.png')) < len(pixels(three_clips)) / 2

  def test_contrast_is_seen_whatever_the_constant(self, tmp_path):
    """A pattern of 1 % on a constant is drawn as strongly as one of 50 %."""
    pattern = np.kron(np.eye(2), np.ones((10, 10))) - 0.5
    shares = []
    for strength in (0.01, 0.5):
      matrix = (1 + strength * pattern) / math.sqrt(20)
      path = tmp_path / f'{strength}.png'
      similarity_plot.plot_similarities(
        [clip(similarity={'teacher': matrix})], path
      )
      red, _, blue = np.moveaxis(pixels(path), -1, 0)
      shares.append((np.mean(red > blue + 0.3), np.mean(blue > red + 0.3)))
    np.testing.assert_allclose(shares[0], shares[1], atol=0.01)
    assert min(shares[0]) > 0.02

  def test_rounding_errors_are_not_shown_as_contrast(self, tmp_path):
    rng = np.random.default_rng(0)
    matrix = np.full((20, 20), 20**-0.5) + 1e-9 * rng.normal(size=(20, 20))
    path = tmp_path / 'similar.png'
    similarity_plot.plot_similarities(
      [clip(similarity={'teacher': matrix})], path
    )
    flat = pixels(path)[:, 560:820]  # within the teacher's matrix
    assert np.mean(np.ptp(flat, axis=-1) > 0.1) < 0.01

  def test_same_colours_for_all_models_of_a_clip(self, tmp_path):
    """A matrix of a hundredth of the teacher's contrast looks flat."""
    teacher = similarity(1)
    pale = teacher.mean() + (teacher - teacher.mean()) / 100

    def coloured(student):
      path = tmp_path / 'similar.png'
      panels = {'teacher': teacher, 'student': student}
      similarity_plot.plot_similarities([clip(similarity=panels)], path)
      half = pixels(path)[:, 600:]  # what is right of the teacher's matrix
      return np.mean(np.ptp(half, axis=-1) > 0.2)

    assert coloured(pale) < 0.5 * coloured(teacher)

  def test_other_frame_rates_have_no_distance(self, tmp_path):
    path = tmp_path / 'similar.png'
    panels = {'teacher': similarity(1), 'student': similarity(2, 10)}
    similarity_plot.plot_similarities([clip(similarity=panels)], path)
    student = path.with_suffix('.txt').read_text().splitlines()[2].split()
    assert student[1:4] == ['student', '10', '-']

  def test_odd_matrices(self, tmp_path):
    path = tmp_path / 'similar.png'
    odd = {
      'alone': {'student': similarity(2)},
      'silence': {'teacher': np.zeros((20, 20))},
      'moment': {'teacher': np.ones((1, 1))},
      'diverged': {
        'teacher': similarity(1),
        'student': np.full((20, 20), np.nan),
      },
    }
    clips = [clip(title=t, similarity=m, tags=()) for t, m in odd.items()]
    similarity_plot.plot_similarities(clips, path)
    lines = path.with_suffix('.txt').read_text().splitlines()
    assert [line.split()[:4] for line in lines[1:-1]] == [
      ['alone', 'student', '20', '-'],
      ['silence', 'teacher', '20', '0.000e+00'],
      ['moment', 'teacher', '1', '0.000e+00'],
      ['diverged', 'teacher', '20', '0.000e+00'],
      ['diverged', 'student', '20', 'nan'],
    ]

  def test_refusals(self, tmp_path):
    path = tmp_path / 'similar.png'
    with pytest.raises(ValueError, match='expected at least one'):
      similarity_plot.plot_similarities([], path)
    bad = clip(similarity={'teacher': np.zeros((3, 4))})
    with pytest.raises(ValueError, match=r"'teacher'.*\(3, 4\)"):
      similarity_plot.plot_similarities([bad], path)
    assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'curves.png'
  path.write_bytes(b'old')

  def refuse(*_):
    raise OSError('disk full')

  monkeypatch.setattr(plots.os, 'replace', refuse)
  with pytest.raises(OSError, match='disk full'):
    plots.plot_tag_scores({'t': {'a': 1.0}}, {'a': 1}, path)
  assert names(tmp_path) == ['curves.png']
  assert path.read_bytes() == b'old'


def test_import_is_light(tmp_path):
  """Neither matplotlib before it is needed, nor JAX, nor ever pyplot."""
  code = (
    'import sys; from iusp_jax.reporting import plots; '
    'assert not {"jax", "matplotlib"} & {*sys.modules}; '
    'plots.plot_tag_scores({"t": {"a": 1.0}}, {"a": 1}, sys.argv[1]); '
    'assert not {"jax", "matplotlib.pyplot"} & {*sys.modules}'
  )
  subprocess.run([sys.executable, '-c', code, tmp_path / 'a.png'], check=True)
