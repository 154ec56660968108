r"""IUSP and SP together (our addition to the paper's comparison).

  python run.py --config=configs/iusp_sp.py:clips \
    --config.dataset.manual_dir=DIR

Not measured yet.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with both terms."""
  return base.distilled('iusp_sp', arg)
