"""Plots of frame similarities, their numbers, and the file of their panels."""

import dataclasses
import math

import images
import numpy as np
import pytest
from images import BACKGROUND, inked, names, pixels

from iusp_jax.reporting import similarity_plot


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
def three_clips(tmp_path_factory):
  path = tmp_path_factory.mktemp('clips') / 'deep' / 'similar.png'
  panels = [clip(title=f'clip{i}') for i in range(3)]
  similarity_plot.plot_similarities(panels, path)
  return path


def outcome(path, content):
  """The error of reading it, or '' where it is read as it should be."""
  path.write_bytes(content)
  try:
    (found,) = similarity_plot.read(path)
  except ValueError as error:
    return str(error)
  # Such as a bit of the file's date.
  np.testing.assert_allclose(
    found.similarity['teacher'], similarity(1, 4), 1e-6
  )
  return '' if (found.title, found.seconds) == ('00_000066.wav', 10.0) else '?'


class TestFile:
  def test_panels_come_back(self, tmp_path):
    panels = [
      clip(title='a'),
      clip(title='b', tags=(), runs='crnn_32, seed 100'),
    ]
    path = tmp_path / 'similarities.npz'
    path.write_bytes(similarity_plot.to_bytes(panels))
    found = similarity_plot.read(path)
    for own, other in zip(found, panels, strict=True):
      assert (own.title, list(own.tags)) == (other.title, list(other.tags))
      assert (own.seconds, own.runs) == (other.seconds, other.runs)
      np.testing.assert_allclose(own.log_mel_TF, other.log_mel_TF, 1e-6)
      assert list(own.similarity) == list(other.similarity)
      for model, matrix_TT in other.similarity.items():
        np.testing.assert_allclose(own.similarity[model], matrix_TT, 1e-6)

  def test_damage_is_named_or_changes_nothing(self, tmp_path):
    """Bits flipped all over the file, and the file cut anywhere."""
    panels = [clip(similarity={'teacher': similarity(1, 4)})]
    content = similarity_plot.to_bytes(panels)
    path = tmp_path / 'similarities.npz'
    rng = np.random.default_rng(0)
    flips = rng.integers(8 * len(content), size=150)
    damaged = [content[:n] for n in (0, 1, len(content) // 2, len(content) - 1)]
    for flip in flips:
      changed = bytearray(content)
      changed[flip // 8] ^= 1 << flip % 8
      damaged.append(bytes(changed))
    errors = [error for changed in damaged if (error := outcome(path, changed))]
    assert len(errors) > 100
    for error in errors:
      assert error.startswith(f'{path} cannot be read')
      assert 'delete it' in error

  def test_parts_are_merged(self):
    matrices = {m: np.full((2, 2), i) for i, m in enumerate('abc')}
    one = clip(title='x', similarity={m: matrices[m] for m in 'ca'})
    two = clip(title='x', similarity={m: matrices[m] + 9 for m in 'ab'})
    other = clip(title='y', similarity={'b': matrices['b']})
    found = similarity_plot.merge([[one], [two, other]], ['a', 'b', 'c'])
    assert [panel.title for panel in found] == ['x', 'y']
    assert list(found[0].similarity) == ['a', 'b', 'c']
    assert found[0].similarity['a'][0, 0] == 0  # Of the first part.
    assert found[0].similarity['b'][0, 0] == 10
    (found,) = similarity_plot.merge([[one]], ['a'])
    assert list(found.similarity) == ['a']


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
    flat = pixels(path)[:, 570:820]  # within the teacher's matrix
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

  def test_bad_input_is_named(self, tmp_path):
    path = tmp_path / 'similar.png'
    with pytest.raises(ValueError, match='expected at least one'):
      similarity_plot.plot_similarities([], path)
    bad = clip(similarity={'teacher': np.zeros((3, 4))})
    with pytest.raises(ValueError, match=r"'teacher'.*\(3, 4\)"):
      similarity_plot.plot_similarities([bad], path)
    assert names(tmp_path) == []

  def test_titles_stand_for_names(self, tmp_path):
    """The file of numbers keeps the names; the plot is that of the titles."""
    panels = {'teacher': similarity(1), 'iusp': similarity(2)}
    renamed = {'teacher': similarity(1), 'IUSP': similarity(2)}
    drawn = []
    for i, (of, titles) in enumerate(
      [(panels, {'iusp': 'IUSP'}), (renamed, None), (panels, None)]
    ):
      path = tmp_path / f'{i}.png'
      similarity_plot.plot_similarities([clip(similarity=of)], path, titles)
      drawn.append(pixels(path))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()
    assert ' iusp ' in (tmp_path / '0.txt').read_text()

  @pytest.mark.parametrize('num_bands', [5, 20, 64, 128])
  @pytest.mark.parametrize('models', [('student',), ('teacher', 'a', 'b')])
  def test_nothing_is_cut_off(self, tmp_path, num_bands, models):
    """A margin of the background is left all around."""
    rng, path = np.random.default_rng(0), tmp_path / 'similar.png'
    panel = clip(
      similarity={m: similarity(1) for m in models},
      log_mel_TF=rng.normal(size=(50, num_bands)),
    )
    similarity_plot.plot_similarities([panel], path)
    page = pixels(path)
    for edge in (page[:2], page[-2:], page[:, :2], page[:, -2:]):
      assert (edge == BACKGROUND).all()

  def test_without_a_teacher_nothing_speaks_of_one(self, tmp_path, monkeypatch):
    """Neither the caption nor the text."""
    drawn = images.keep_figures(monkeypatch)
    path = tmp_path / 'similar.png'
    panel = clip(similarity={'student': similarity(2)})
    similarity_plot.plot_similarities([panel], path)
    found = ' '.join(images.texts(drawn[0]))
    assert 'Colours: ' in found
    assert 'teacher' not in found
    note = path.with_suffix('.txt').read_text().splitlines()[-1]
    assert 'teacher' not in note
    similarity_plot.plot_similarities([clip()], path)
    assert 'G_teacher' in ' '.join(images.texts(drawn[1]))
