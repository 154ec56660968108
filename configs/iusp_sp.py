r"""IUSP and SP together (our addition to the paper's comparison).

  python run.py --config=configs/iusp_sp.py:clips \
    --config.dataset.manual_dir=DIR

crnn_64 with the learning rate .003, which was too low (docs/findings/table.md),
test micro-AUPRC: street scenes .741 ± .005 (8 seeds), ESC-10 scenes .662 ± .019
(2 rotations, 5 seeds each). One run takes about 4 minutes on 2 cores once the
teacher is there.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with both terms."""
  return base.distilled('iusp_sp', arg)
