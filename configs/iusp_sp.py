r"""IUSP and SP together (our addition to the paper's comparison).

  python run.py --config=configs/iusp_sp.py:clips \
    --config.dataset.manual_dir=DIR

Synthesised scenes, crnn_32, 8 seeds at the tuned weights: test micro-AUPRC
.707 ± .011, without distillation .693 ± .005 (docs/reproduction.md).
"""

from configs import base


def get_config(arg: str = ''):
  """Base with both terms."""
  return base.distilled('iusp_sp', arg)
