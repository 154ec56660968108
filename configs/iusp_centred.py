r"""IUSP on frames less their clip's mean (ours; see docs/findings/table.md).

  python run.py --config=configs/iusp_centred.py:clips \
    --config.dataset.manual_dir=DIR

crnn_64 with the learning rate .003, which was too low (docs/findings/table.md),
test micro-AUPRC: street scenes .739 ± .006 (8 seeds), ESC-10 scenes .686 ± .018
(2 rotations, 5 seeds each). One run takes about 4 minutes on 2 cores once the
teacher is there.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the centred IUSP term."""
  return base.distilled('iusp_centred', arg)
