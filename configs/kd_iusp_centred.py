r"""Logit distillation and centred IUSP together (our addition).

  python run.py --config=configs/kd_iusp_centred.py:clips \
    --config.dataset.manual_dir=DIR
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the both terms."""
  return base.distilled('kd_iusp_centred', arg)
