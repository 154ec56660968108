r"""IUSP and SP together (our addition to the paper's comparison).

  python run.py --config=configs/iusp_sp.py:clips \
    --config.dataset.manual_dir=DIR

Not run by itself. Synthesised scenes, crnn_32, 8 seeds at the tuned weights,
test micro-AUPRC .707 ± .011, without distillation .693 ± .005
(docs/reproduction.md), by

  python run.py --mode=table --config=configs/table.py \
    --config.table.students="('crnn_32',)" --workdir=runs/table-crnn_32

About 28 minutes for all objectives and seeds on one core of a shared Intel
Xeon, after less than an hour of tuning.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with both terms."""
  return base.distilled('iusp_sp', arg)
