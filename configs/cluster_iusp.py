r"""IUSP with clusters of the teacher's layers.

  python run.py --config=configs/cluster_iusp.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2402.16830; see clusters.cluster_iusp_loss.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the cluster term."""
  return base.distilled('cluster_iusp', arg)
