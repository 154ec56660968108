r"""Study: six systems that may do better than logit distillation.

  python run.py --mode=tune --config=configs/study_leads.py \
    --workdir=runs/tune-leads --jobs=2
  python run.py --mode=table --config=configs/study_leads.py \
    --workdir=runs/study-leads --jobs=2

The family of tests is stated here, before any run: each of `LEADS` less KD, as
the mean over the students, with Holm's correction. All else is exploratory.
With `:clips` the students and seeds are those of three rotations of the folds;
the rotation (2, 3) is left for confirmation.
"""

from configs import base, table

LEADS = (
  'frame_kd',
  'kd_iusp_centred',
  'frame_kd_iusp_centred',
  'emphasised_kd',
  'multilevel_kd',
  'clip_frame_kd',
)
STUDENTS = ('crnn_32', 'crnn_64', 'cnn_4', 'mobilenet_020')
_OF_CLIPS = ('crnn_32', 'cnn_4', 'mobilenet_020')


def get_config(arg: str = ''):
  """The table, with these objectives and students."""
  config, options = table.get_config(arg), base.parse(arg)
  config.name = 'study_leads'
  config.table.objectives = (
    *('baseline', 'kd', 'sp', 'iusp', 'iusp_centred'),
    *LEADS,
  )
  config.table.leads = LEADS
  if 'student=' not in arg:
    config.table.students = STUDENTS
  if options['dataset'] == 'urban_scenes/clips':
    config.table.seeds = 4
    config.table.rotations = ((4, 5), (1, 2), (5, 1))
    if 'student=' not in arg:
      config.table.students = _OF_CLIPS
  return config
