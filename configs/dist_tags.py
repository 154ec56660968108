r"""Correlation over the clips of a batch, a tag at a time.

  python run.py --config=configs/dist_tags.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2205.10536; see soft_tags.dist_tags_loss.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the correlation term."""
  return base.distilled('dist_tags', arg)
