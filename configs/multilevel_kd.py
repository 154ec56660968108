r"""Soft tags of clips, relations of clips and relations of tags.

  python run.py --config=configs/multilevel_kd.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2409.09389; see soft_tags.multilevel_kd_parts.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the three levels."""
  return base.distilled('multilevel_kd', arg)
