r"""Study: related systems beside KD and IUSP, and what may go with them.

  python run.py --mode=tune --config=configs/study_related.py \
    --workdir=runs/tune-related
  python run.py --mode=table --config=configs/study_related.py \
    --workdir=runs/study-related

No body of a related paper was at hand: a row is after an abstract or public
code, and says what is ours. `--config.table.objectives` takes some of them.
"""

from configs import table

OBJECTIVES = (
  'baseline',
  'kd',
  'iusp',
  'iusp_centred',
  'frame_kd',
  'emphasised_kd',
  'multilevel_kd',
  'clip_frame_kd',
  'hard_frame_kd',
  'dist_tags',
  'vic',
  'span_alignment',
  'inter_kd',
  'deep_supervision',
  'cluster_iusp',
  'kd_iusp',
  'kd_iusp_centred',
  'frame_kd_iusp_centred',
  'iusp_decay',
  'iusp_two_step',
)


def get_config(arg: str = ''):
  """The table, with all of these objectives."""
  config = table.get_config(arg)
  config.name = 'study_related'
  config.table.objectives = OBJECTIVES
  return config
