r"""Directions of mean frames, and of frames with those nearby.

  python run.py --config=configs/span_alignment.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2303.03600; see embeddings.span_alignment_loss.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the span alignment term."""
  return base.distilled('span_alignment', arg)
