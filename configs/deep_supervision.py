r"""Labels for heads on inner layers: the control of inter_kd.

  python run.py --config=configs/deep_supervision.py:clips \
    --config.dataset.manual_dir=DIR
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the heads."""
  return base.distilled('deep_supervision', arg)
