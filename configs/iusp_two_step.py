r"""IUSP alone for half of the training, then the labels alone.

  python run.py --config=configs/iusp_two_step.py:clips \
    --config.dataset.manual_dir=DIR

Similarities first, then labels, as for intra-activation Gram matrices in
arXiv 2309.08144 (by a note on that paper).
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the IUSP term and both schedules."""
  return base.distilled('iusp_two_step', arg)
