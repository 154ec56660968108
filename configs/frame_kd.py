r"""The teacher's soft tags frame by frame (our addition).

  python run.py --config=configs/frame_kd.py:clips \
    --config.dataset.manual_dir=DIR
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the soft tags of frames."""
  return base.distilled('frame_kd', arg)
