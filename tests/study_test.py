"""The studies are tables of the objectives that they are about."""

import pytest

from configs import base, study_centred, table
from iusp_jax.experiment import grid


def test_the_paper_s_table_has_the_five_objectives():
  config = table.get_config('')
  assert config.table.objectives == ('baseline', 'kd', 'sp', 'iusp', 'iusp_sp')


@pytest.mark.parametrize('arg', ['', 'clips', 'smoke', 'student=cnn_8'])
@pytest.mark.slow
def test_centred_study_trains_the_centred_term(arg):
  config = study_centred.get_config(arg)
  grid.check_grid(config)
  for student in config.table.students:
    for name in ('iusp_centred', 'iusp'):
      assert grid.objective(config, student, name).terms == (name,)
  names = {cell.objective for group in grid.groups(config) for cell in group}
  assert names == {'baseline', 'iusp', 'iusp_centred'}
  if arg == 'student=cnn_8':
    assert config.table.students == ('cnn_8',)
  assert base.get_config(arg).objective.iusp_centred_weight == 0.0
