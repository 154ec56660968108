r"""IUSP and SP together (our addition to the paper's comparison).

  python run.py --config=configs/iusp_sp.py:clips \
    --config.dataset.manual_dir=DIR

Not measured yet.
"""

from configs import base, iusp, sp


def get_config(arg: str = ''):
  """Base with both terms, each at its own weight."""
  config = base.get_config(arg)
  config.name = 'iusp_sp'
  config.objective.iusp_weight = iusp.get_config(arg).objective.iusp_weight
  config.objective.sp_weight = sp.get_config(arg).objective.sp_weight
  return config
