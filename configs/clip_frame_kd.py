r"""Soft tags of clips and of frames, each and across.

  python run.py --config=configs/clip_frame_kd.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2310.02594; see soft_tags.clip_frame_kd_parts.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the clip-and-frame KD term."""
  return base.distilled('clip_frame_kd', arg)
