"""What tests look at in a plot: its file, and the figure it is made of."""

import numpy as np
from matplotlib import image
from matplotlib.text import Text

from iusp_jax.reporting import figures

BACKGROUND = 1.0  # white


def pixels(path):
  """`[height, width, 3]` from 0 to 1; the size is in the file's header."""
  assert path.read_bytes()[:8] == b'\x89PNG\r\n\x1a\n'
  return image.imread(path)[..., :3]


def inked(path):
  return np.mean((pixels(path) < BACKGROUND).any(axis=-1))


def names(folder):
  return sorted(p.name for p in folder.iterdir())


def keep_figures(monkeypatch):
  """A list of all figures that are drawn from now on."""
  kept, render = [], figures._render

  def keep(canvas):
    kept.append(canvas.figure)
    return render(canvas)

  monkeypatch.setattr(figures, '_render', keep)
  return kept


def texts(figure):
  return [text.get_text() for text in figure.findobj(Text)]
