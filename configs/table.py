r"""The paper's table: objectives by students by seeds, one teacher.

  python run.py --mode=table --config=configs/table.py --workdir=runs/table \
    --jobs=2
  python run.py --mode=table --config=configs/table.py:clips \
    --config.dataset.manual_dir=DIR --workdir=runs/table-clips

`--mode=tune` finds the weights of the objectives beforehand, with other seeds
and without a look at the test split; `--mode=report` writes the tables anew.
The argument `student=NAME` makes it a table of that student alone.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = ''):
  """Base, and what the grid is made of."""
  config, options = base.get_config(arg), base.parse(arg)
  config.name = 'table'
  if not options['smoke']:
    config.bootstrap = 300  # Resamples of the test clips, for every cell.
  config.table = ConfigDict()
  config.table.objectives = ('baseline', 'kd', 'sp', 'iusp', 'iusp_sp')
  config.table.students = tuple(base.STUDENTS)
  config.table.seeds = 8  # Of the students, from first_seed on.
  config.train_baseline = False  # It is an objective here.
  config.table.first_seed = 100  # Seeds below are for tuning.
  config.table.rotations = ()  # ((validate_fold, test_fold), …) of clips.
  config.table.models = ConfigDict(base.STUDENTS)
  # A table trains models of its own list, and refuses a student.model that is
  # not in there: the default one follows its entry until it is set by hand.
  listed: base.Config = config.table.models[options['student']]
  for field in listed:
    config.student.model[field] = listed.get_oneway_ref(field)
  config.table.weights = ConfigDict(
    {
      student: {
        name: base.weights(name, options['dataset'], student)
        for name in base.WEIGHTS
      }
      for student in base.STUDENTS
    }
  )
  tuned = base.TUNED.get(options['dataset'], {})
  config.table.tuned = ConfigDict(  # Which of these are from --mode=tune.
    {student: tuple(found) for student, found in tuned.items()}
  )
  config.tuned_with = base.tuned_with(options['dataset'])
  # Tuning: each term's weight is a multiple of the one at which its gradient
  # is as long as that of the tags, after an epoch without distillation.
  config.table.tune_ratios = (0.1, 0.3, 1.0, 3.0, 10.0)
  config.table.tune_seeds = 2  # From 0 on.
  if options['dataset'] == 'urban_scenes/clips':
    config.table.students = ('crnn_32', 'crnn_64', 'cnn_4')
    config.table.seeds = 5
    config.table.rotations = ((4, 5), (1, 2))
  if options['smoke']:
    config.table.students = ('crnn_32',)
    config.table.seeds = 2
    config.table.tune_ratios = (0.3, 3.0)
  if 'student=' in arg:
    config.table.students = (options['student'],)
  return config
