r"""Whitened embeddings: invariance, variance and covariance.

  python run.py --config=configs/vic.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2309.12914; see embeddings.vic_parts.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the VIC term."""
  return base.distilled('vic', arg)
