"""SP: keeps the teacher's similarities between the clips of a batch."""

from configs import base


def get_config(arg: str = ''):
  """Base with the SP term."""
  config = base.get_config(arg)
  config.name = 'sp'
  config.objective.sp_weight = 30.0
  return config
