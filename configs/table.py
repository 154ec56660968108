r"""The paper's table: objectives by students by seeds, one teacher.

  python run.py --mode=table --config=configs/table.py --workdir=runs/table \
    --jobs=2
  python run.py --mode=table --config=configs/table.py:clips \
    --config.dataset.manual_dir=DIR --workdir=runs/table-clips

`--mode=tune` finds the ratios of the objectives and the learning rates of the
students beforehand, with other seeds and without a look at the test split;
`--mode=report` writes the tables anew.
The argument `student=NAME` makes it a table of that student alone.
"""

import os

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
  config.table.leads = ()  # Objectives of the one family of tests, against KD.
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
  dataset_name = options['dataset']
  config.table.weights = ConfigDict(
    {
      student: {
        name: base.fields_of(name, dataset_name) for name in base.OBJECTIVES
      }
      for student in base.STUDENTS
    }
  )
  # Learning rates are of the students, whatever the objective.
  config.table.learning_rates = ConfigDict(
    {
      student: base.tuned_training(dataset_name, student).get(
        'learning_rate', base.LEARNING_RATE
      )
      for student in base.STUDENTS
    }
  )
  config.student.training.learning_rate = (
    config.table.learning_rates.get_oneway_ref(options['student'])
  )
  tuned = base.TUNED.get(dataset_name, {})
  config.table.tuned = tuple(tuned.get('ratios', {}))  # By --mode=tune.
  # Tuning: the best of these, looked at with one seed, and both its neighbours
  # (one beyond the edge where it is there) are looked at with all seeds.
  config.table.tune_ratios = (0.3, 1.0, 3.0, 10.0, 30.0)
  config.table.tune_learning_rates = (1.5e-3, 3e-3, 6e-3, 1.2e-2, 2.4e-2)
  config.table.tune_seeds = 3  # From 0 on.
  # Where tuning merges what it finds; '': nowhere but into the workdir.
  config.table.tuned_file = ''
  if not (options['smoke'] or options['demo']) and base.is_checkout():
    config.table.tuned_file = os.path.relpath(base.TUNED_FILE)
  if options['dataset'] == 'urban_scenes/clips':
    config.table.students = ('crnn_32', 'crnn_64', 'cnn_4')
    config.table.seeds = 5
    config.table.rotations = ((4, 5), (1, 2))
  if options['smoke']:
    config.table.students = ('crnn_32',)
    config.table.seeds = 2
    config.table.tune_ratios = (0.3, 3.0)
    config.table.tune_learning_rates = (1.5e-3, 3e-3)
    config.table.tune_seeds = 2
  if 'student=' in arg:
    config.table.students = (options['student'],)
  return config
