"""A table: cells are runs, its workdir grows, a killed one goes on."""

import contextlib
import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from experiments import (
  assert_same_scores,
  cells_of,
  one_cell_config,
  run_config,
  table_config_of,
)
from fakes import TINY, recipe

from iusp_jax.experiment import (
  grid,
  identity,
  plots,
  results,
  run,
  table,
  teacher,
  workers,
)
from iusp_jax.experiment.setup import Setup, repetitiveness
from iusp_jax.models import tagger
from iusp_jax.objectives import losses, targets
from iusp_jax.reporting import similarity_plot
from iusp_jax.reporting.table import objectives
from iusp_jax.runtime import files, logs, metrics_log
from iusp_jax.training import engine


def record_of(workdir, name):
  return json.loads((workdir / 'cells' / name / 'results.json').read_text())


def test_run_and_table_of_one_cell_are_the_same(tiny_run, tiny_table):
  alone = json.loads((tiny_run / 'results.json').read_text())
  cell = record_of(tiny_table, 'tiny-iusp-seed100')
  assert alone['identity'] == cell['identity']
  assert alone['fingerprint'] == cell['fingerprint']
  assert_same_scores(cell['student'], alone['student'], 0)
  for name in ('curve', 'resampled', 'weights', 'frame_distance'):
    assert cell[name] == alone[name]
  rows = [
    metrics_log.read_metrics(folder / 'metrics.jsonl')
    for folder in (tiny_run, tiny_table / 'cells' / 'tiny-iusp-seed100')
  ]
  assert rows[0] == rows[1]
  left = {path.name for path in tiny_run.iterdir()} - {'tensorboard', '.lock'}
  of_cell = {path.name for path in (tiny_table / 'cells').glob('*/*')}
  missing = left - of_cell
  assert missing == {
    'environment.json',
    'wall_seconds.json',
    *plots.NAMES,
    *(name.replace('.png', '.txt') for name in plots.NAMES),
  }


def test_table_leaves_its_report_and_it_can_be_written_anew(
  tiny_table, tmp_path, capsys
):
  names = {path.name for path in tiny_table.iterdir()}
  assert {'table.md', 'table.csv', 'table.json', 'cells.json'} <= names
  assert {'similarities.png', 'score_against_cost.png'} <= names
  assert {'learning_curves.png', 'frame_distance.png'} <= names
  assert not list((tiny_table / 'groups').glob('*/training'))
  table.report([tiny_table], tmp_path)
  for name in ('table.json', 'table.md', 'table.csv', 'cells.json'):
    assert (tmp_path / name).read_bytes() == (tiny_table / name).read_bytes()
  assert (tmp_path / 'similarities.png').exists()
  assert 'tiny' in capsys.readouterr().out


@pytest.fixture
def grown(tiny_table, tmp_path):
  """A copy of the finished table, to be given more cells."""
  shutil.copytree(tiny_table, tmp_path / 'table')
  return tmp_path / 'table'


@pytest.mark.slow
def test_finished_table_takes_seeds_students_and_objectives(
  tiny, grown, on_fakes, capsys
):
  """Finished cells are used as they are; their files are not touched."""
  first = grown / 'cells' / 'tiny-iusp-seed100' / 'results.json'
  kept = first.read_bytes(), first.stat().st_mtime_ns
  fields = {'table.seeds': 2, 'table.objectives': ('iusp', 'baseline')}
  config = table_config_of(tiny, **fields)
  other = recipe(TINY | {'width': 3})['model']
  with config.unlocked():
    config.table.models['wide'] = other
    config.table.weights['wide'] = {'iusp': {'iusp_weight': 7.0}}
    config.table.weights['wide']['baseline'] = {}
    config.table.students = ('tiny', 'wide')
  table.run(config, grown)
  printed = capsys.readouterr().out
  assert '4 groups of cells, 4 to run' in printed
  assert 'tiny iusp, 1 seeds in' not in printed
  assert (first.read_bytes(), first.stat().st_mtime_ns) == kept
  cells = json.loads((grown / 'cells.json').read_text())['cells']
  assert [cell['status'] for cell in cells] == ['done'] * 8
  wide = record_of(grown, 'wide-iusp-seed101')
  assert wide['identity']['student']['model'] == other
  assert wide['weights'] == {'iusp': 7.0}

  # The smaller grid again: nothing to do, and the report has all cells.
  table.run(one_cell_config(tiny), grown)
  assert '1 groups of cells, 0 to run' in capsys.readouterr().out
  cells = json.loads((grown / 'cells.json').read_text())['cells']
  assert len(cells) == 8


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'student.training.epochs': 3.0},
      r'student\.training\.epochs: 2\.0 there, 3\.0 now',
    ),
    (
      {'table.weights.tiny.iusp.iusp_weight': 5.0},
      r'objective\.iusp_weight: 300\.0 there, 5\.0 now',
    ),
    (
      {'objective.iusp_schedule': 'ramp'},
      'iusp_schedule: not set there, ramp now',
    ),
    (
      {'table.models.tiny.width': 3, 'student.model.width': 3},
      r'model\.width: 2 there, 3 now',
    ),
    ({'dataset.builder.seed': 3}, r'dataset\.builder\.seed: 0 there, 3 now'),
    ({'teacher.store': 'float16'}, 'teacher.store: float32 there, float16 now'),
  ],
)
def test_cell_of_another_recipe_is_refused_before_any_work(
  fields, message, tiny, tiny_table, monkeypatch
):
  monkeypatch.setattr(table, 'Setup', None)
  config = one_cell_config(tiny, **fields)
  with pytest.raises(ValueError, match=message) as error:
    table.run(config, tiny_table)
  assert 'tiny-iusp-seed100' in str(error.value)


def test_cells_of_another_recipe_outside_of_the_grid_are_no_matter(
  tiny, tiny_table, on_fakes, monkeypatch, tmp_path
):
  """Another student may be trained otherwise, in the same workdir."""
  shutil.copytree(tiny_table, tmp_path / 'table')
  groups = []
  monkeypatch.setattr(
    table, 'run_groups', lambda config, todo, *_: groups.extend(todo)
  )
  monkeypatch.setattr(table, 'keep_similarities', lambda *_: None)
  fields = {'table.first_seed': 200, 'student.training.epochs': 3.0}
  table.run(one_cell_config(tiny, **fields), tmp_path / 'table')
  assert [[cell.name for cell in group] for group in groups] == [
    ['tiny-iusp-seed200']
  ]


@pytest.mark.parametrize('what', ['teacher', 'data'])
def test_cell_of_other_data_or_another_teacher_is_refused(
  what, tiny, tiny_table, setup, monkeypatch
):
  """What the config does not tell: of files, not of fields."""
  config = one_cell_config(tiny)
  one = grid.run_of(config, cells_of(config, 'iusp')[0], tiny_table)
  grid.check_cells([one], setup)
  other = Setup.__new__(Setup)
  other.__dict__ |= setup.__dict__
  if what == 'teacher':
    metadata = {**setup.teacher.metadata, 'fingerprint': 'abc'}
    other.teacher = dataclasses.replace(setup.teacher, metadata=metadata)
    message = r'teacher\.fingerprint: \w+ there, abc now'
  else:
    other.dataset = dataclasses.replace(setup.dataset, name='fake/1')
    message = r'data\.name: fake/0 there, fake/1 now'
  with pytest.raises(ValueError, match=message):
    grid.check_cells([one], other)


def test_field_that_came_later_changes_no_fingerprint(
  tiny, tiny_run, tiny_table, on_fakes, monkeypatch, capsys
):
  """As it will be in the next version: in the config, and in the list."""
  neutral = {'student.training.momentum': 0.9, 'dataset.builder.echoes': True}
  monkeypatch.setattr(identity, 'NEUTRAL', identity.NEUTRAL | neutral)
  plain = identity.plain

  def later(config):
    made = plain(config)
    if 'builder' in made.get('dataset', {}):
      made['dataset']['builder'].setdefault('echoes', True)
    return made

  monkeypatch.setattr(identity, 'plain', later)
  run.run(run_config(tiny, seed=100), tiny_run)
  table.run(one_cell_config(tiny), tiny_table)
  assert '1 groups of cells, 0 to run' in capsys.readouterr().out
  config = one_cell_config(tiny)
  with config.unlocked():
    config.dataset.builder.echoes = False
  with pytest.raises(ValueError, match='echoes: not set there, False now'):
    table.run(config, tiny_table)


def test_fingerprints_of_identities():
  of = {'seed': 0, 'student': {'training': {'epochs': 2.0}}}
  name = identity.fingerprint(of)
  assert len(name) == 12
  for pattern, neutral in identity.NEUTRAL.items():
    path = pattern.replace('*training', 'student.training').replace('*', 'x')
    *parents, field = path.split('.')
    later = json.loads(json.dumps(of))
    level = later
    for parent in parents:
      level = level.setdefault(parent, {})
    level[field] = neutral
    assert identity.fingerprint(later) == name, pattern
    assert identity.differences(of, later) == []
    level[field] = 'other'
    assert identity.fingerprint(later) != name, pattern
    assert identity.differences(of, later) == [
      f'{path}: not set there, other now'
    ]


def run_group(config, setup, objective, workdir):
  group = cells_of(config, objective)
  table.run_group(config, setup, group, workdir)
  return group


@pytest.fixture(scope='module')
def group(tiny, setup, tmp_path_factory):
  """Two finished cells with IUSP and SP: config, cells, workdir."""
  workdir = tmp_path_factory.mktemp('group')
  config = table_config_of(tiny)
  return config, run_group(config, setup, 'iusp_sp', workdir), workdir


def test_cell_is_a_run_whose_scores_its_checkpoints_give(group, setup):
  """Scored again as a trained model, from files."""
  _, cells, workdir = group
  for cell in cells:
    folder = grid.folder(workdir, cell)
    record = results.read(folder)
    assert record is not None
    found = teacher.load(folder, setup.dataset)
    again, _ = results.measure_trained(setup, found, 0)
    for which in ('best', 'last'):
      for split in ('validate', 'test'):
        one, two = (
          x[which][split]['coarse'] for x in (record['student'], again)
        )
        np.testing.assert_allclose(one['micro_auprc'], two['micro_auprc'], 1e-3)
        for a, b in zip(one['class_auprc'], two['class_auprc'], strict=True):
          assert a == b or abs(a - b) < 1e-3
    assert again['parameters'] == record['student']['parameters']
    assert record['weights'] == {'iusp': 300.0, 'sp': 30.0}
    assert record['status'] == 'done'
    assert record['step_seconds'] > 0
    num_frames = setup.outputs('train', ['frame_gram'])['frame_gram'].shape[1]
    num_clips = len(setup.dataset.splits['train'])
    expected = 4 * num_frames**2 + 4 * num_clips  # A matrix, and a row of one.
    assert record['stored_bytes'] == expected
    assert len(record['resampled']) == 10
    rows = metrics_log.read_metrics(folder / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'train/loss' in row] == [
      *range(1, 7)
    ]


@pytest.mark.slow
def test_killed_table_goes_on_with_what_is_missing(group, setup, tmp_path):
  """Of a group killed while its cells were written."""
  config, cells, workdir = group
  shutil.copytree(workdir, tmp_path / 'table')
  paths = [
    results.path_of(grid.folder(tmp_path / 'table', cell)) for cell in cells
  ]
  before = [json.loads(path.read_text()) for path in paths]
  kept = paths[0].stat().st_mtime_ns
  paths[1].unlink()
  run_group(config, setup, 'iusp_sp', tmp_path / 'table')
  assert paths[0].stat().st_mtime_ns == kept
  again = json.loads(paths[1].read_text())
  assert again['identity'] == before[1]['identity']
  assert_same_scores(again['student'], before[1]['student'])


def test_frame_distance_is_the_iusp_loss_of_the_test_split(group, setup):
  _, cells, workdir = group
  record = results.read(grid.folder(workdir, cells[0]))
  assert record is not None
  student = teacher.load(grid.folder(workdir, cells[0]), setup.dataset)
  values = []
  for example in setup.dataset.splits['test'].source:
    wave = example['audio'][None]
    frames = [
      tagger.apply(m.model, m.variables, tagger.log_mel(m.model, wave))
      for m in (student, setup.teacher)
    ]
    frames = [output.frames_BTD for output in frames]
    num_frames = min(f.shape[1] for f in frames)
    mask = targets.frame_mask(
      np.array([example['num_samples']]), 16_000, num_frames
    )
    values.append(float(losses.iusp_loss(*frames, mask)))
  np.testing.assert_allclose(record['frame_distance'], np.mean(values), 1e-4)


@pytest.mark.skipif(
  not pathlib.Path('/proc/self/maps').exists(), reason='only on Linux'
)
@pytest.mark.slow
def test_groups_leave_no_compiled_programs(tiny, setup, tmp_path):
  """A table of a hundred groups would take all memory maps of a process."""

  def num_maps():
    with open('/proc/self/maps') as file:
      return sum(1 for _ in file)

  config = table_config_of(tiny)
  numbers = []
  for name in ('baseline', 'kd', 'iusp'):
    cells = cells_of(config, name)
    table.run_group(config, setup, cells, tmp_path)
    numbers.append(num_maps())
  assert max(numbers[1:]) < numbers[0] + 200


def test_cell_that_diverges_stops_no_other(tiny, setup, tmp_path):
  config = table_config_of(tiny)
  cells = cells_of(config, 'baseline')
  fit = engine.fit

  def diverging(jobs, *rest, **named):
    members = fit(jobs, *rest, **named)
    members[0].diverged = 'the loss of step 1 is nan'
    members[0].best = members[0].best_score = None
    return members

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, 'fit', diverging)
    table.run_group(config, setup, cells, tmp_path)
  bad, good = (grid.folder(tmp_path, cell) for cell in cells)
  record = results.read(bad)
  assert record is not None
  assert record['status'] == 'diverged'
  assert 'nan' in record['reason']
  assert not (bad / 'checkpoints').exists()
  found = results.read(good)
  assert found is not None
  assert found['status'] == 'done'
  assert not table.undone([cells], tmp_path)


AUGMENT = {
  'student.augment.mixup_alpha': 0.5,
  'student.augment.time_roll_seconds': 0.2,
  'student.augment.num_time_masks': 1,
  'student.augment.num_mel_masks': 1,
}


@pytest.mark.parametrize(
  'fields',
  [
    AUGMENT,
    *[
      pytest.param({name: value}, marks=pytest.mark.slow)
      for name, value in AUGMENT.items()
    ],
  ],
)
@pytest.mark.slow
def test_table_with_augmentation(fields, tiny, on_fakes, tmp_path, capsys):
  """The teacher runs in every step, on what the student gets."""
  config = one_cell_config(tiny, **fields)
  table.run(config, tmp_path)
  record = record_of(tmp_path, 'tiny-iusp-seed100')
  assert record['status'] == 'done'
  assert record['frame_distance'] is None
  folder = tmp_path / 'cells' / 'tiny-iusp-seed100'
  rows = metrics_log.read_metrics(folder / 'metrics.jsonl')
  assert rows[0]['train/iusp'] > 0
  assert 'teacher: runs in every step, since' in capsys.readouterr().out


@pytest.mark.slow
def test_table_with_stored_augmentations(tiny, on_fakes, tmp_path, capsys):
  """Of 2 versions; cells of 3 versions are other cells."""
  fields = {'student.augment.num_time_masks': 2}
  config = one_cell_config(tiny, **fields, **{'teacher.store_augmentations': 2})
  table.run(config, tmp_path)
  record = record_of(tmp_path, 'tiny-iusp-seed100')
  assert record['identity']['teacher']['store_augmentations'] == 2
  assert record['frame_distance'] > 0
  printed = capsys.readouterr().out
  assert 'of 2 versions of 24 train clips' in printed
  assert 'runs in every step' not in printed
  config = one_cell_config(tiny, **fields, **{'teacher.store_augmentations': 3})
  with pytest.raises(ValueError, match=r'store_augmentations: 2 there, 3 now'):
    table.run(config, tmp_path)


@pytest.mark.slow
def test_table_that_stores_nothing(tiny, tiny_table, on_fakes, tmp_path):
  """The teacher runs in every step: the same scores, and nothing is stored."""
  fields = {'table.objectives': ('baseline', 'iusp'), 'table.seeds': 1}
  config = table_config_of(tiny, **fields, **{'teacher.store': 'off'})
  config.cache_dir = str(tmp_path / 'cache')
  table.run(config, tmp_path / 'table')
  assert not (tmp_path / 'cache').exists()
  found = record_of(tmp_path / 'table', 'tiny-iusp-seed100')
  expected = record_of(tiny_table, 'tiny-iusp-seed100')
  assert_same_scores(found['student'], expected['student'])
  for name in ('tiny-iusp-seed100', 'tiny-baseline-seed100'):
    record = record_of(tmp_path / 'table', name)
    assert record['status'] == 'done'
    assert record['frame_distance'] is None
  report = json.loads((tmp_path / 'table' / 'cells.json').read_text())
  assert set(report['repetitiveness'].values()) == {None}


def test_cells_of_another_teacher_are_not_continued(tiny, setup, tmp_path):
  path = tmp_path / 'teachers' / 'teacher.json'
  files.write_atomically(path, json.dumps({'fingerprint': 'g'}))
  own = setup.teacher.fingerprint
  with pytest.raises(
    ValueError, match=f'the fingerprint g, this command has {own}'
  ):
    table.save_setup(table_config_of(tiny), setup, None, tmp_path)
  assert not (tmp_path / 'grid.json').exists()


def test_shard_without_groups_ends_well(tiny, tmp_path, capsys):
  table.run(table_config_of(tiny), tmp_path, '7/8')
  assert 'no group of cells is left for shard 7/8' in capsys.readouterr().out


@pytest.fixture
def ran(monkeypatch):
  """Objectives of the groups that `run_group` ran; it leaves empty cells."""
  order = []

  def run_group(config, setup, group, workdir):
    del config, setup
    order.append(group[0].objective)
    for cell in group:
      path = results.path_of(grid.folder(workdir, cell))
      files.write_atomically(path, '{}')
    return 0.0

  monkeypatch.setattr(table, 'run_group', run_group)
  return order


@pytest.mark.parametrize('dies', [False, True])
def test_group_of_another_process_comes_last_and_again_if_that_dies(
  dies, tiny, ran, tmp_path, monkeypatch
):
  config = table_config_of(tiny)
  first, second = groups = grid.groups(config)[:2]
  folder = table.group_folder(tmp_path, first)
  other = contextlib.ExitStack()
  other.enter_context(files.lock(folder, 'held'))

  def log(text):
    if text.endswith('waiting'):  # From here on it would wait for ever.
      assert ran == [second[0].objective]
      if not dies:
        table.run_group(config, None, first, tmp_path)
      other.close()

  monkeypatch.setattr(logs, 'log', log)
  table.run_groups(config, groups, lambda rotation: rotation, tmp_path)
  # If it lives, its own run of the group is the only one.
  assert ran == [second[0].objective, first[0].objective]
  assert not table.undone(groups, tmp_path)


def test_groups_that_no_process_runs_are_an_error(
  tiny, ran, tmp_path, monkeypatch
):
  config = table_config_of(tiny)
  groups = grid.groups(config)
  seen = []

  def run(jobs):
    assert seen == [None]  # The teacher is there before they start.
    table.run_group(config, None, groups[0], tmp_path)
    return [0] * (jobs - 1) + [1]

  monkeypatch.setattr(workers, 'run', run)
  with pytest.raises(ValueError, match=r'were not run.*exit codes \[0, 1\]'):
    table.share_groups(groups, seen.append, tmp_path, 2)
  assert ran == [groups[0][0].objective]


@pytest.fixture
def calls(monkeypatch):
  """What `table.run` calls around its groups, by name, without doing it."""
  found = []
  for name in ('save_setup', 'keep_similarities', 'report'):
    monkeypatch.setattr(table, name, lambda *_, name=name: found.append(name))
  monkeypatch.setattr(grid, 'check_cells', lambda *_: None)
  monkeypatch.setattr(grid, 'check_dataset', lambda *_: None)

  class Nothing:
    dataset = None

    def __init__(self, config):
      pass

    def get_teacher(self, required):
      assert required

  monkeypatch.setattr(table, 'Setup', Nothing)
  return found


@pytest.mark.parametrize('drawn', [True, False])
def test_what_a_kill_took_from_the_end_is_made_up_for(
  drawn, calls, tiny, ran, tmp_path, monkeypatch
):
  """All cells are there, and of the similarities of frames not all."""
  table.run(table_config_of(tiny), tmp_path)
  calls.clear()
  monkeypatch.setattr(table, '_has_similarities', lambda *_: drawn)
  table.run(table_config_of(tiny), tmp_path)
  wanted = [] if drawn else ['save_setup', 'keep_similarities']
  assert calls == [*wanted, 'report']


@pytest.mark.parametrize(
  ('jobs', 'shares', 'reports'), [(0, 0, 0), (1, 0, 1), (2, 1, 1)]
)
def test_one_process_leaves_the_report(
  jobs, shares, reports, calls, tiny, ran, tmp_path, monkeypatch
):
  config = table_config_of(tiny)
  monkeypatch.setattr(workers, 'check', lambda *_: None)

  def run(jobs):
    calls.append('run')
    table.run(config, tmp_path, jobs=0)
    return [0] * jobs

  monkeypatch.setattr(workers, 'run', run)
  table.run(config, tmp_path, jobs=jobs)
  assert len(ran) == 5
  assert calls.count('run') == shares
  assert calls.count('report') == calls.count('keep_similarities') == reports


@pytest.mark.parametrize('scored', [True, False])
def test_teacher_is_scored_once(scored, tiny, setup, tmp_path, monkeypatch):
  """Another process may be at it: what that leaves is not done again."""
  path = tmp_path / 'teachers' / 'teacher.json'
  measured, other = [], contextlib.ExitStack()
  other.enter_context(files.lock(path.parent, 'held'))

  def log(text):
    assert text.endswith('another process scores the teacher; waiting')
    if scored:
      metadata = {
        'fingerprint': setup.teacher.fingerprint,
        'weights': setup.teacher.weights(),
      }
      files.write_atomically(path, json.dumps(metadata))
    other.close()

  def measure(*_):
    measured.append(1)
    raise InterruptedError

  monkeypatch.setattr(logs, 'log', log)
  monkeypatch.setattr(results, 'measure_trained', measure)
  with contextlib.suppress(InterruptedError):
    table.save_setup(table_config_of(tiny), setup, None, tmp_path)
  assert measured == ([] if scored else [1])


def test_cell_that_is_being_written_is_not_drawn(
  tiny, setup, tmp_path, monkeypatch
):
  config = table_config_of(tiny)
  for name in ('baseline', 'sp'):
    folder = grid.folder(tmp_path, cells_of(config, name)[0])
    (folder / 'checkpoints').mkdir(parents=True)
  results.path_of(folder).write_text('{}')  # Of SP alone.
  drawn = {}
  monkeypatch.setattr(teacher, 'load', lambda *_: None)

  def panels(_, shown):
    drawn.update(shown)
    return []

  monkeypatch.setattr(plots, 'similarity_panels', panels)
  table.keep_similarities(config, setup, None, tmp_path)
  assert set(drawn) == {'teacher', 'sp'}


def test_similarities_of_shards_are_drawn_in_one_plot(tmp_path, monkeypatch):
  rng, drawn = np.random.default_rng(0), []
  logged = []
  for folder, runs, models in (
    ('a', 'tiny, seed 1, validate 4, test 5', ('teacher', 'iusp')),
    ('b', 'tiny, seed 1, validate 4, test 5', ('teacher', 'baseline', 'sp')),
    # Another rotation's clips may have the same names.
    ('c', 'tiny, seed 1, validate 1, test 2', ('teacher', 'iusp_sp')),
  ):
    matrices = {m: rng.random((3, 3)) for m in models}
    panel = similarity_plot.SimilarityPanel(
      'x', (), np.zeros((4, 2)), 1.0, matrices, runs
    )
    content = similarity_plot.to_bytes([panel])
    files.write_atomically(tmp_path / folder / table.PANELS, content)
  monkeypatch.setattr(
    similarity_plot,
    'plot_similarities',
    lambda clips, *_: drawn.extend(clips),
  )
  monkeypatch.setattr(logs, 'log', logged.append)
  paths = [tmp_path / folder for folder in 'abcd']
  named = objectives.from_weights(dict.fromkeys(['baseline', 'sp', 'iusp']))
  found = table._draw_similarities(paths, tmp_path, named)
  assert found == ['similarities.png']
  (panel,) = drawn
  assert panel.runs == 'tiny, seed 1, validate 4, test 5'
  assert 'left out: tiny, seed 1, validate 1, test 2 of ' in logged[0]
  assert list(panel.similarity) == ['teacher', 'baseline', 'sp', 'iusp']


def test_panels_of_a_killed_table_lack_a_run(tiny, tmp_path):
  config, wanted = table_config_of(tiny), ('baseline', 'sp', 'iusp')

  def kept(models):
    panel = similarity_plot.SimilarityPanel(
      'x', (), np.zeros((4, 2)), 1.0, {m: np.zeros((3, 3)) for m in models}
    )
    content = similarity_plot.to_bytes([panel])
    files.write_atomically(tmp_path / table.PANELS, content)
    return table._has_similarities(config, None, tmp_path)

  assert not table._has_similarities(config, None, tmp_path)
  for name in wanted:
    folder = grid.folder(tmp_path, cells_of(config, name)[0])
    (folder / 'checkpoints').mkdir(parents=True)
    results.path_of(folder).write_text('{}')
  assert not kept(('teacher', 'baseline'))
  assert kept(('teacher', *wanted))


@pytest.mark.slow
def test_repetitiveness_is_the_mean_cosine(setup):
  found = repetitiveness(setup)
  model, variables = setup.teacher.model, setup.teacher.variables
  means = []
  for example in setup.dataset.splits['train'].source:
    mel = tagger.log_mel(model, example['audio'][None])
    frames = np.asarray(
      tagger.apply(model, variables, mel).frames_BTD[0], float
    )
    # Those that begin before the padding; some clips have 0.4 s of it.
    share = example['num_samples'] / len(example['audio'])
    frames = frames[: int(np.ceil(share * len(frames)))]
    frames /= np.maximum(np.linalg.norm(frames, axis=1, keepdims=True), 1e-9)
    cosine = frames @ frames.T
    T = len(cosine)
    means.append((cosine.sum() - np.trace(cosine)) / (T * (T - 1)))
  tags = np.stack([e['coarse'] for e in setup.dataset.splits['train'].source])
  for c, name in enumerate(setup.dataset.coarse):
    if tags[:, c].any():
      expected = np.mean(np.array(means)[tags[:, c] > 0])
      np.testing.assert_allclose(found[name], expected, 1e-3)
