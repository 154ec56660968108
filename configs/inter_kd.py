r"""KD and labels for heads on inner layers of the student.

  python run.py --config=configs/inter_kd.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2211.15075: λ = .25. configs/deep_supervision.py is its control.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the heads."""
  return base.distilled('inter_kd', arg)
