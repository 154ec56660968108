r"""IUSP whose weight falls to 0 by half of the training.

  python run.py --config=configs/iusp_decay.py:clips \
    --config.dataset.manual_dir=DIR
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the IUSP term and its schedule."""
  return base.distilled('iusp_decay', arg)
