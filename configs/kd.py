r"""Logit distillation (our addition to the paper's comparison).

  python run.py --config=configs/kd.py:clips \
    --config.dataset.manual_dir=DIR

ESC-10 scenes, seed 0, 2 shared cores: test micro-AUPRC .693 in 4 minutes.
Synthesised scenes, crnn_32, 8 seeds at the tuned weight 2.4,
test micro-AUPRC .714 ± .008, without distillation .693 ± .005
(docs/reproduction.md), by

  python run.py --mode=table --config=configs/table.py \
    --config.table.students="('crnn_32',)" --workdir=runs/table-crnn_32

About 28 minutes for all objectives and seeds on one core of a shared Intel
Xeon, after less than an hour of tuning.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the teacher's soft tags."""
  return base.distilled('kd', arg)
