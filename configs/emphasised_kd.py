r"""KD with more weight on the tags that are not there.

  python run.py --config=configs/emphasised_kd.py:clips \
    --config.dataset.manual_dir=DIR

After arXiv 2309.14838; see soft_tags.emphasised_kd_loss. Its ramp over the
first 13 % of training is `--config.objective.emphasised_kd_schedule=ramp`.
"""

from configs import base


def get_config(arg: str = ''):
  """Base with the emphasised KD term."""
  return base.distilled('emphasised_kd', arg)
