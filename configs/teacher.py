"""The teacher alone, with its scores; later runs find it in the cache."""

from configs import base


def get_config(arg: str = ''):
  """Base that stops after the teacher."""
  config = base.get_config(arg)
  config.name = 'teacher'
  config.fit = 'teacher'
  return config
