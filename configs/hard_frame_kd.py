r"""The teacher's decisions frame by frame.

  python run.py --config=configs/hard_frame_kd.py:clips \
    --config.dataset.manual_dir=DIR

After the idea of arXiv 2305.13899; see soft_tags.hard_frame_kd_loss.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the hard frame tags."""
  return base.distilled('hard_frame_kd', arg)
