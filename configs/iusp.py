r"""IUSP: keeps the teacher's similarities between the frames of each clip.

  python run.py --config=configs/iusp.py:clips \
    --config.dataset.manual_dir=DIR

crnn_64, test micro-AUPRC: street scenes .740 ± .007 (8 seeds), ESC-10
scenes .668 ± .020 (2 rotations, 5 seeds each); docs/findings/table.md. One run
takes about 4 minutes on 2 cores once the teacher is there.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the IUSP term."""
  return base.distilled('iusp', arg)
