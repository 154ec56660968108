"""The student alone: cross-entropy with the tags, no teacher."""

from configs import base


def get_config(arg: str = ''):
  """Base as it is."""
  config = base.get_config(arg)
  config.name = 'baseline'
  return config
