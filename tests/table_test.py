"""Cells of a table and what runs them, on students of a test's size."""

import contextlib
import json

import numpy as np
import pytest
from tables import cells_of, tiny_config

from iusp_jax.experiment import (
  cells,
  grid,
  outcome,
  runner,
  teacher,
  workers,
)
from iusp_jax.experiment.world import repetitiveness
from iusp_jax.models import tagger
from iusp_jax.objectives import losses
from iusp_jax.reporting import similarity_plot
from iusp_jax.reporting.table import objectives
from iusp_jax.runtime import files, logs, metrics_log
from iusp_jax.training import ensemble, step


def test_cell_is_a_run_whose_scores_its_checkpoints_give(world, tmp_path):
  """Scored again by the main job's path: from files, through waveforms."""
  group = cells_of(world, 'iusp_sp')
  runner.run_group(world, group, tmp_path)
  for cell in group:
    folder = grid.folder(tmp_path, cell)
    results = json.loads((folder / 'results.json').read_text())
    trained = teacher.load(folder, world.dataset)
    config = {'bootstrap': 0, 'student': world.config.student}
    again, _ = outcome.measure(config, world.dataset, trained)
    for which in ('best', 'last'):
      for split in ('validate', 'test'):
        one, two = (
          x[which][split]['coarse'] for x in (results['student'], again)
        )
        np.testing.assert_allclose(one['micro_auprc'], two['micro_auprc'], 1e-3)
        np.testing.assert_allclose(
          one['class_auprc'], two['class_auprc'], 1e-2, 1e-3
        )
    assert again['parameters'] == results['student']['parameters']
    record = json.loads((folder / 'cell.json').read_text())
    assert record['weights'] == {'iusp': 300.0, 'sp': 30.0}
    assert record['status'] == 'done'
    assert len(record['resampled']) == 10
    assert (
      record['test']['micro_auprc']
      == (results['student']['best']['test']['coarse']['micro_auprc'])
    )
    rows = metrics_log.read_metrics(folder / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'train/loss' in row] == [
      *range(1, 10)
    ]


def test_frame_distance_is_the_iusp_loss_of_the_test_split(world):
  job = world.job('tiny', grid.objective(world.config, 'tiny', 'baseline'), 1)
  model = tagger.build(job.recipe, len(world.dataset.tags))
  variables = model.initialise(1, 16_000)
  member = ensemble.Member(job, best=variables, last=variables)
  ((_, distance),) = cells.score_members(world, model, [member])
  values = []
  for example in world.dataset.splits['test'].source:
    wave = example['audio'][None]
    frames = [
      tagger.apply(m, v, tagger.log_mel(m, wave)).frames_BTD
      for m, v in (
        (model, variables),
        (world.guide.model, world.guide.variables),
      )
    ]
    num_frames = min(f.shape[1] for f in frames)
    mask = step.frame_mask(
      np.array([example['num_samples']]), 16_000, num_frames
    )
    values.append(float(losses.iusp_loss(*frames, mask)))
  np.testing.assert_allclose(distance, np.mean(values), 1e-4)


def test_killed_table_goes_on_with_what_is_missing(world, tmp_path):
  group = cells_of(world, 'kd')
  runner.run_group(world, group, tmp_path)
  paths = [grid.folder(tmp_path, cell) / 'cell.json' for cell in group]
  before = [json.loads(path.read_text()) for path in paths]
  kept = paths[0].stat().st_mtime_ns
  paths[1].unlink()  # As a kill in the middle of a cell leaves it.
  runner.run_group(world, group, tmp_path)
  assert paths[0].stat().st_mtime_ns == kept
  again = json.loads(paths[1].read_text())
  for record in (before[1], again):
    record.pop('seconds')
  assert again == before[1]


def test_cell_that_diverges_stops_no_other(world, tmp_path):
  weights = grid.objective(world.config, 'tiny', 'iusp')
  good = world.job('tiny', weights, 7)
  bad = world.job('tiny', weights | {'iusp_weight': float('nan')}, 8)
  alone, together = world.fit([good]), world.fit([bad, good])
  assert not together[1].diverged
  assert together[1].best_score == alone[0].best_score
  assert 'loss of step 1 is nan' in together[0].diverged
  cell = grid.Cell(None, 'tiny', 'iusp', 8)
  folder = grid.folder(tmp_path, cell)
  cells.write_cell(world, cell, together[0], {}, {'seconds': 1.0}, folder)
  record = json.loads((folder / 'cell.json').read_text())
  assert record['status'] == 'diverged'
  assert 'nan' in record['reason']
  assert not (folder / 'checkpoints').exists()


def test_cells_of_another_teacher_are_not_continued(world, tmp_path):
  path = tmp_path / 'teachers' / 'teacher.json'
  files.write_atomically(path, json.dumps({'fingerprint': 'g'}))
  with pytest.raises(ValueError, match='the fingerprint g, this command has f'):
    runner.save_world(world.config, world, tmp_path)
  assert not (tmp_path / 'grid.json').exists()


def test_shard_without_groups_ends_well(tmp_path, capsys):
  runner.run(tiny_config(), tmp_path, '7/8')
  assert 'no group of cells is left for shard 7/8' in capsys.readouterr().out


@pytest.fixture
def ran(monkeypatch):
  """Objectives of the groups that `run_group` ran; it leaves empty cells."""
  order = []

  def run_group(world, group, workdir):
    del world
    order.append(group[0].objective)
    for cell in group:
      files.write_atomically(grid.folder(workdir, cell) / 'cell.json', '{}')
    return 0.0

  monkeypatch.setattr(runner, 'run_group', run_group)
  return order


@pytest.mark.parametrize('dies', [False, True])
def test_group_of_another_process_comes_last_and_again_if_that_dies(
  dies, ran, tmp_path, monkeypatch
):
  first, second = groups = grid.groups(tiny_config())[:2]
  folder = tmp_path / 'groups' / first[0].name.rpartition('-')[0]
  other = contextlib.ExitStack()
  other.enter_context(files.lock(folder, 'held'))

  def say(text):
    if text.endswith('waiting'):  # From here on it would wait for ever.
      assert ran == [second[0].objective]
      if not dies:
        runner.run_group(None, first, tmp_path)
      other.close()

  monkeypatch.setattr(logs, 'log', say)
  runner.run_groups(groups, lambda rotation: rotation, tmp_path)
  # If it lives, its own run of the group is the only one.
  assert ran == [second[0].objective, first[0].objective]
  assert not runner.undone(groups, tmp_path)


def test_groups_that_no_process_runs_are_an_error(ran, tmp_path, monkeypatch):
  groups = grid.groups(tiny_config())
  seen = []

  def run(jobs):
    assert seen == [None]  # The teacher is there before they start.
    runner.run_group(None, groups[0], tmp_path)
    return [0] * (jobs - 1) + [1]

  monkeypatch.setattr(workers, 'run', run)
  with pytest.raises(ValueError, match=r'were not run.*exit codes \[0, 1\]'):
    runner.share_groups(groups, seen.append, tmp_path, 2)
  assert ran == [groups[0][0].objective]


@pytest.mark.parametrize('drawn', [True, False])
def test_what_a_kill_took_from_the_end_is_made_up_for(
  drawn, ran, tmp_path, monkeypatch
):
  """All cells are there, and of the similarities of frames not all."""
  calls = []
  for name in ('save_world', 'keep_similarities', 'report'):
    monkeypatch.setattr(runner, name, lambda *_, name=name: calls.append(name))
  monkeypatch.setattr(runner, 'World', lambda config, rotation: rotation)
  runner.run(tiny_config(), tmp_path)
  calls.clear()
  monkeypatch.setattr(runner, '_has_similarities', lambda *_: drawn)
  runner.run(tiny_config(), tmp_path)
  wanted = [] if drawn else ['save_world', 'keep_similarities']
  assert calls == [*wanted, 'report']


@pytest.mark.parametrize('scored', [True, False])
def test_teacher_is_scored_once(scored, world, tmp_path, monkeypatch):
  """Another process may be at it: what that leaves is not done again."""
  path = tmp_path / 'teachers' / 'teacher.json'
  measured, other = [], contextlib.ExitStack()
  other.enter_context(files.lock(path.parent, 'held'))

  def say(text):
    assert text.endswith('another process scores the teacher; waiting')
    if scored:
      facts = {'weights': world.guide.weights()}
      files.write_atomically(path, json.dumps(facts))
    other.close()

  def measure(*_):
    measured.append(1)
    raise InterruptedError

  monkeypatch.setattr(logs, 'log', say)
  monkeypatch.setattr(outcome, 'measure', measure)
  with contextlib.suppress(InterruptedError):
    runner.save_world(world.config, world, tmp_path)
  assert measured == ([] if scored else [1])


@pytest.mark.parametrize(
  ('jobs', 'shares', 'reports'), [(0, 0, 0), (1, 0, 1), (2, 1, 1)]
)
def test_one_process_leaves_the_report(
  jobs, shares, reports, ran, tmp_path, monkeypatch
):
  calls = []
  for name in ('save_world', 'keep_similarities', 'report'):
    monkeypatch.setattr(runner, name, lambda *_, name=name: calls.append(name))
  monkeypatch.setattr(runner, 'World', lambda config, rotation: rotation)
  monkeypatch.setattr(workers, 'check', lambda *_: None)

  def run(jobs):
    calls.append('run')
    runner.run(tiny_config(), tmp_path, jobs=0)
    return [0] * jobs

  monkeypatch.setattr(workers, 'run', run)
  runner.run(tiny_config(), tmp_path, jobs=jobs)
  assert len(ran) == 5
  assert calls.count('run') == shares
  assert calls.count('report') == calls.count('keep_similarities') == reports


def test_cell_that_is_being_written_is_not_drawn(world, tmp_path, monkeypatch):
  for name in ('baseline', 'sp'):
    folder = grid.folder(tmp_path, cells_of(world, name)[0])
    (folder / 'checkpoints').mkdir(parents=True)
  (folder / 'cell.json').touch()  # Of SP alone.
  drawn = {}
  monkeypatch.setattr(teacher, 'load', lambda *_: None)

  def panels(_, shown):
    drawn.update(shown)
    return []

  monkeypatch.setattr(outcome, 'similarity_panels', panels)
  runner.keep_similarities(world, tmp_path)
  assert set(drawn) == {'teacher', 'sp'}


def test_similarities_of_shards_are_drawn_together(tmp_path, monkeypatch):
  rng, drawn = np.random.default_rng(0), []
  said = []
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
    files.write_atomically(tmp_path / folder / runner.PANELS, content)
  monkeypatch.setattr(
    similarity_plot,
    'plot_similarities',
    lambda clips, *_: drawn.extend(clips),
  )
  monkeypatch.setattr(logs, 'log', said.append)
  paths = [tmp_path / folder for folder in 'abcd']
  named = objectives.from_weights(dict.fromkeys(['baseline', 'sp', 'iusp']))
  found = runner._draw_similarities(paths, tmp_path, named)
  assert found == ['similarities.png']
  (panel,) = drawn
  assert panel.runs == 'tiny, seed 1, validate 4, test 5'
  assert 'left out: tiny, seed 1, validate 1, test 2 of ' in said[0]
  assert list(panel.similarity) == ['teacher', 'baseline', 'sp', 'iusp']


def test_panels_of_a_killed_table_lack_a_run(world, tmp_path):
  config, wanted = world.config, ('baseline', 'sp', 'iusp')

  def kept(models):
    panel = similarity_plot.SimilarityPanel(
      'x', (), np.zeros((4, 2)), 1.0, {m: np.zeros((3, 3)) for m in models}
    )
    content = similarity_plot.to_bytes([panel])
    files.write_atomically(tmp_path / runner.PANELS, content)
    return runner._has_similarities(config, None, tmp_path)

  assert not runner._has_similarities(config, None, tmp_path)
  for name in wanted:
    folder = grid.folder(tmp_path, cells_of(world, name)[0])
    (folder / 'checkpoints').mkdir(parents=True)
    (folder / 'cell.json').touch()
  assert not kept(('teacher', 'baseline'))
  assert kept(('teacher', *wanted))


def test_cells_without_bootstrap_are_written(world, tmp_path, monkeypatch):
  monkeypatch.setattr(world.config, 'bootstrap', 0)
  group = cells_of(world, 'baseline')[:1]
  runner.run_group(world, group, tmp_path)
  record = (grid.folder(tmp_path, group[0]) / 'cell.json').read_text()
  assert json.loads(record)['resampled'] == []


def test_tag_that_no_clip_has_has_no_score():
  coarse = dict.fromkeys(('micro_auprc', 'macro_auprc', 'map', 'lwlrap'), 0.5)
  coarse |= {'class_auprc': [0.5, 0.0, 0.0], 'undefined': [2]}
  found = cells.scores_of({'best': {'test': {'coarse': coarse}}})
  assert found['test']['class_auprc'] == [0.5, 0.0, None]


def test_repetitiveness_is_the_mean_cosine(world):
  found = repetitiveness(world)
  model, variables = world.guide.model, world.guide.variables
  means = []
  for example in world.dataset.splits['train'].source:
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
  tags = np.stack([e['coarse'] for e in world.dataset.splits['train'].source])
  for c, name in enumerate(world.dataset.coarse):
    if tags[:, c].any():
      expected = np.mean(np.array(means)[tags[:, c] > 0])
      np.testing.assert_allclose(found[name], expected, 1e-3)
