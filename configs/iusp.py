"""IUSP: keeps the teacher's similarities between the frames of each clip."""

from configs import base


def get_config(arg: str = ''):
  """Base with the IUSP term."""
  config = base.get_config(arg)
  config.name = 'iusp'
  config.objective.iusp_weight = 300.0
  return config
