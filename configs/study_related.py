r"""Study: the related systems that are no leads, for one student.

  python run.py --mode=tune --config=configs/study_related.py \
    --workdir=runs/tune-related --jobs=2
  python run.py --mode=table --config=configs/study_related.py \
    --workdir=runs/study-related --jobs=2

No body of a related paper was at hand: a row is after an abstract or public
code, and says what is ours. `--config.table.objectives` takes some of them;
study_leads.py has those that four students are trained with.
"""

from configs import table

OBJECTIVES = (
  'baseline',
  'kd',
  'iusp',
  'iusp_centred',
  'attention_transfer',
  'hard_frame_kd',
  'dist_tags',
  'vic',
  'span_alignment',
  'inter_kd',
  'deep_supervision',
  'cluster_iusp',
  'kd_iusp',
  'iusp_decay',
  'iusp_two_step',
)


def get_config(arg: str = ''):
  """The table, with these objectives."""
  config = table.get_config(arg)
  config.name = 'study_related'
  config.table.objectives = OBJECTIVES
  if 'student=' not in arg:
    config.table.students = ('crnn_32',)
    config.table.seeds = 4
  return config
