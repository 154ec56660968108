r"""Attention transfer over time: where in a clip the frames are strong.

  python run.py --config=configs/attention_transfer.py:clips \
    --config.dataset.manual_dir=DIR

After Zagoruyko and Komodakis, 2017; see losses.attention_transfer_per_clip.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the term of attention transfer."""
  return base.distilled('attention_transfer', arg)
