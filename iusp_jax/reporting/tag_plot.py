"""The plot of a recording: log-mel, tags over time, frame similarity."""

import os
from collections.abc import Sequence

import numpy as np

from iusp_jax.reporting import figures

_SHOWN = 12  # Tags, those with the highest probabilities of the recording.


def plot(
  path: str | os.PathLike,
  *,
  title: str,
  names: Sequence[str],
  frames_TC: np.ndarray,
  thresholds_C: np.ndarray,
  probabilities_C: np.ndarray,
  log_mel_TF: np.ndarray,
  similarity_TT: np.ndarray,
  start_seconds: float,
  seconds: float,
) -> None:
  """Draws a recording as a model takes it.

  Args:
    path: of the plot, `.png`; the probabilities go to `.txt` beside it.
    title: the recording's name.
    names: of the tags.
    frames_TC: probabilities of each frame; the axis of tags is that of
      `names`.
    thresholds_C: of the tags; a tag that is nowhere at or above its own is
      drawn in grey letters.
    probabilities_C: of the recording.
    log_mel_TF: of the model's front end.
    similarity_TT: row-normalised similarity of the frames.
    start_seconds: where the plot begins in the recording.
    seconds: its length.
  """
  order = np.argsort(-probabilities_C, kind='stable')[:_SHOWN]
  last = start_seconds + seconds
  with figures.figure(5.4, path) as page:
    page.suptitle(title, fontsize=8.5, weight='bold', x=0.01, ha='left')
    grid = page.add_gridspec(2, 2, width_ratios=(1.45, 1))
    axes = page.add_subplot(grid[0, 0])
    bands = log_mel_TF.shape[1]
    axes.imshow(
      log_mel_TF.T,
      origin='lower',
      aspect='auto',
      cmap='magma',
      extent=(start_seconds, last, 0, bands),
    )
    axes.set_title('log-mel', loc='left')
    axes.set_ylabel('mel band')
    _draw_tags(
      page, page.add_subplot(grid[1, 0]), names, order, frames_TC,
      thresholds_C, (start_seconds, last),
    )  # fmt: skip
    axes = page.add_subplot(grid[:, 1])
    centred_TT = _off_diagonal(similarity_TT)
    limit = float(np.quantile(np.abs(centred_TT), 0.98)) or 1.0
    image = axes.imshow(
      centred_TT,
      cmap='RdBu_r',
      vmin=-limit,
      vmax=limit,
      extent=(start_seconds, last, last, start_seconds),
    )
    axes.set_anchor('N')
    axes.set_title('similarity of frames, √T·G − mean', loc='left')
    axes.set_xlabel('time (s)')
    page.colorbar(image, ax=axes, location='bottom', shrink=0.8, aspect=30)
  rows = [
    [
      f'{start_seconds + j * seconds / max(1, len(frames_TC)):.2f}',
      *(f'{value:.4f}' for value in own_C),
    ]
    for j, own_C in enumerate(frames_TC)
  ]
  figures.save_table(['seconds', *names], rows, path)


def _draw_tags(page, axes, names, order, frames_TC, thresholds_C, ends) -> None:
  """A row of the image for each tag."""
  image = axes.imshow(
    frames_TC[:, order].T,
    aspect='auto',
    cmap='viridis',
    vmin=0.0,
    vmax=1.0,
    extent=(*ends, len(order) - 0.5, -0.5),
  )
  axes.set_title('probability of each tag', loc='left')
  axes.set_yticks(range(len(order)), [names[c] for c in order])
  for label, c in zip(axes.get_yticklabels(), order, strict=True):
    if not (frames_TC[:, c] >= thresholds_C[c]).any():
      label.set_color(figures.GREY)
  axes.set_xlabel('time (s)')
  page.colorbar(image, ax=axes, pad=0.01, aspect=25)


def _off_diagonal(similarity_TT: np.ndarray) -> np.ndarray:
  """√T·G less its mean off the diagonal, as in `similarity_plot`."""
  scaled_TT = np.asarray(similarity_TT, np.float64) * len(similarity_TT) ** 0.5
  off = scaled_TT[~np.eye(len(scaled_TT), dtype=bool)]
  return scaled_TT - (off.mean() if off.size else 0.0)
