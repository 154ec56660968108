"""Figures: files, names as they are written, characters without a glyph."""

import subprocess
import sys

import numpy as np
import pytest
from images import inked, keep_figures, names, pixels
from matplotlib import font_manager, ft2font

from iusp_jax.reporting import figures, plots
from iusp_jax.runtime import files, logs

NAMES = (
  '$', '$x$', '$a$ and $b$', r'$\frac{', r'\alpha', 'a_b', 'a^2_3', '_a', '{}',
  '%s', '#1', '&', '~', "it's", '"quoted"', 'Straße', 'été',
)  # fmt: skip


def draw(path, name):
  support = {name: 1, 'dog': 2}
  models = {name: {name: 0.5, 'dog': None}, 'student': {name: 0.4, 'dog': 0.1}}
  plots.plot_tag_scores(models, support, path)


@pytest.fixture
def logged(monkeypatch):
  """The lines that are logged; what was reported before is forgotten."""
  lines = []
  monkeypatch.setattr(figures, '_reported', set())
  monkeypatch.setattr(logs, 'log', lines.append)
  return lines


@pytest.mark.parametrize('name', NAMES)
def test_any_name_is_drawn_as_it_is(tmp_path, logged, name):
  draw(tmp_path / 'tags.png', name)
  assert logged == []
  assert name in (tmp_path / 'tags.txt').read_text()


def test_mathematics_is_not_typeset(tmp_path):
  """A letter between dollars is as wide as three letters."""
  widths = []
  for name in ('$x$', 'x'):
    with figures.figure(1.0, tmp_path / 'a.png', None) as page:
      page.text(0.1, 0.5, name)
    _, across = np.nonzero((pixels(tmp_path / 'a.png') < 1).any(axis=-1))
    widths.append(np.ptp(across))
  assert widths[0] > 2 * widths[1]


def test_a_legend_has_names_that_start_with_an_underscore(
  tmp_path, monkeypatch
):
  kept = keep_figures(monkeypatch)
  draw(tmp_path / 'tags.png', '_a')
  legend = kept[0].axes[0].get_legend()
  assert [text.get_text() for text in legend.get_texts()] == [' _a', 'student']


def glyphs(font):
  return {*ft2font.FT2Font(font_manager.findfont(font)).get_charmap()}


def test_another_installed_font_has_the_glyph(tmp_path, logged):
  only = glyphs('STIXGeneral') - glyphs('DejaVu Sans')
  letter = next(c for c in map(chr, sorted(only)) if c.isalpha())
  draw(tmp_path / 'tags.png', f'tag {letter}')
  assert logged == []


def test_a_glyph_that_no_font_has_is_named_once(tmp_path, logged):
  dog = '\N{CJK UNIFIED IDEOGRAPH-72AC}'
  fonts = font_manager.fontManager.ttflist
  if any(ord(dog) in glyphs(f.name) for f in fonts if 'Last' not in f.name):
    pytest.skip('a font of this machine has the character')
  for name in ('a', 'b'):
    draw(tmp_path / f'{name}.png', f'{dog} and {dog}')
  (line,) = logged
  assert 'U+72AC CJK UNIFIED IDEOGRAPH-72AC' in line
  assert str(tmp_path / 'a.txt') in line
  assert dog in (tmp_path / 'a.txt').read_text()


def test_other_warnings_are_handed_on(tmp_path):
  with (
    pytest.warns(UserWarning, match='constrained_layout not applied'),
    figures.figure(0.1, tmp_path / 'a.png') as page,
  ):
    page.add_subplot().set_title('\n' * 20)


def test_another_format_is_an_error(tmp_path):
  with (
    pytest.raises(ValueError, match=r"'\.png'"),
    figures.figure(1.0, tmp_path / 'a.jpg'),
  ):
    pass
  assert names(tmp_path) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / 'tags.png'
  path.write_bytes(b'old')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(files.os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    draw(path, 'a')
  assert names(tmp_path) == ['tags.png']
  assert path.read_bytes() == b'old'


@pytest.mark.slow
def test_matplotlib_is_imported_where_it_is_used(tmp_path):
  """And pyplot never: it keeps figures, and needs a display."""
  code = (
    'import sys; from iusp_jax.reporting import plots; '
    'assert "matplotlib" not in sys.modules; '
    'plots.plot_tag_scores({"t": {"a": 1.0}}, {"a": 1}, sys.argv[1]); '
    'assert "matplotlib.pyplot" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code, tmp_path / 'a.png'], check=True)
  assert inked(tmp_path / 'a.png') > 0
