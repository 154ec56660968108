r"""SP: keeps the teacher's similarities between the clips of a batch.

  python run.py --config=configs/sp.py:clips \
    --config.dataset.manual_dir=DIR

crnn_64 with the learning rate .003, which was too low (docs/findings/table.md),
test micro-AUPRC: street scenes .723 ± .009 (8 seeds), ESC-10 scenes .643 ± .018
(2 rotations, 5 seeds each). One run takes about 4 minutes on 2 cores once the
teacher is there.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the SP term."""
  return base.distilled('sp', arg)
