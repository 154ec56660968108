r"""Study: IUSP on frames less their clip's mean.

After a ReLU all frames are positive, and what they have in common dominates a
teacher's similarities. Without it, similarities show how the clip changes. A
table of its own, with weights tuned as for the others:

  python run.py --mode=tune --config=configs/study_centred.py:clips \
    --config.dataset.manual_dir=DIR --workdir=runs/tune-centred
  python run.py --mode=table --config=configs/study_centred.py:clips \
    --config.dataset.manual_dir=DIR --workdir=runs/study-centred

docs/findings/table.md has the results.
"""

from configs import table


def get_config(arg: str = ''):
  """The table, of no distillation, IUSP and centred IUSP alone."""
  config = table.get_config(arg)
  config.name = 'study_centred'
  config.table.objectives = ('baseline', 'iusp', 'iusp_centred')
  return config
