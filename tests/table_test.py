"""Cells of a table, its parts and its tuning, on students of a test's size."""

import contextlib
import json
import pathlib

import jax
import numpy as np
import pytest
from fakes import dataset, recipe, teacher_recipe

from configs import base
from configs import table as table_config
from iusp_jax import (
  data,
  ensemble,
  logs,
  objectives,
  outcome,
  step,
  store,
  tagger,
  teacher,
)
from iusp_jax.table import cells, grid, parts, runner, tuning, workers
from iusp_jax.table.world import World, repetitiveness

ROOT = pathlib.Path(__file__).resolve().parent.parent


def tiny_config():
  config = table_config.get_config('smoke')
  made = recipe(epochs=3.0, log_every_steps=1)
  with config.unlocked():
    config.student.update(made)
    config.table.models = {'tiny': made['model']}
    config.table.students = ('tiny',)
    config.table.weights = {'tiny': base.WEIGHTS}
    config.bootstrap = 10
  return config


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """A rotation over the fake data; its teacher is not trained."""
  folder = tmp_path_factory.mktemp('world')
  made = World.__new__(World)
  made.config, made.rotation = tiny_config(), None
  made.dataset = dataset('coarse')
  model = tagger.build(teacher_recipe(), len(made.dataset.tags))
  variables = model.initialise(3, 16_000)
  made.guide = teacher.Trained(model, variables, 'f', folder)
  made.outputs, made._features = {}, {}
  for name in ('train', 'test'):
    split = made.dataset.splits[name]
    store.build(folder / name, made.guide, split, 'float32')
    made.outputs[name] = store.open_store(folder / name)
  return made


def cells_of(world, objective):
  groups = grid.groups(world.config)
  return next(g for g in groups if g[0].objective == objective)


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
    rows = logs.read_metrics(folder / 'metrics.jsonl')
    assert [row['step'] for row in rows if 'train/loss' in row] == [
      *range(1, 10)
    ]


def test_frame_distance_is_the_iusp_loss_of_the_test_split(world):
  from iusp_jax import objectives

  job = world.job('tiny', grid.objective(world.config, 'tiny', 'baseline'), 1)
  model = tagger.build(job.recipe, len(world.dataset.tags))
  variables = model.initialise(1, 16_000)
  member = ensemble.Member(job, best=variables, last=variables)
  ((_, distance),) = cells.score_members(world, model, [member])
  values = []
  for example in world.dataset.splits['test'].source:
    wave = example['audio'][None]
    frames = [
      tagger.apply(m, v, tagger.hear(m, wave)).frames_BTD
      for m, v in (
        (model, variables),
        (world.guide.model, world.guide.variables),
      )
    ]
    num_frames = min(f.shape[1] for f in frames)
    mask = step.frame_mask(
      np.array([example['num_samples']]), 16_000, num_frames
    )
    values.append(float(objectives.iusp_loss(*frames, mask)))
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


def part(world, folder, objective, dataset='d', cell=None, teacher_facts=None):
  """A table of which one group is done."""
  facts = {'dataset': dataset, 'tags': ['x'], 'command': objective}
  facts['environment'] = {'num_cores': 2, 'git_commit': objective}
  parts.start(world.config, folder, facts)
  guide = {'rotation': '', 'fingerprint': 'f', 'weights': 'w', 'dataset': 'd_1'}
  guide |= {'repetitiveness': {'x': 0.5}, **(teacher_facts or {})}
  logs.write_atomically(folder / 'teachers' / 'a.json', json.dumps(guide))
  changes = cell or {}
  for cell in cells_of(world, objective):
    text = json.dumps(cell.facts() | {'status': 'done'} | changes)
    logs.write_atomically(grid.folder(folder, cell) / 'cell.json', text)
  return folder


def test_collect_merges_parts_and_names_what_is_missing(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(world, tmp_path / 'b', 'sp')
  one = parts.collect([first])
  (tmp_path / 'one.json').write_text(json.dumps(one))
  for paths in ([first, second], [second, tmp_path / 'one.json']):
    found = parts.collect(paths)
    status = [cell['status'] for cell in found['cells']]
    assert status.count('done') == 4
    assert status.count('missing') == len(status) - 4 == 6
    assert found['repetitiveness'] == {'x': 0.5}
    assert sorted(found['command'].splitlines()) == ['baseline', 'sp']
    assert found['environment']['num_cores'] == 2
    assert sorted(found['environment']['git_commit']) == ['baseline', 'sp']


def test_parts_of_two_rotations_are_one_table(world, tmp_path):
  """Builders name data sets of other folds by other numbers."""
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(
    world,
    tmp_path / 'b',
    'sp',
    teacher_facts={'rotation': 'r', 'dataset': 'd_2'},
  )
  found = parts.collect([first, second])
  assert [facts['dataset'] for facts in found['teachers']] == ['d_1', 'd_2']


@pytest.mark.parametrize('field', ['weights', 'dataset'])
def test_one_rotation_has_one_teacher_and_one_data_set(world, tmp_path, field):
  first = part(world, tmp_path / 'a', 'baseline')
  other = part(world, tmp_path / 'b', 'sp', teacher_facts={field: 'g'})
  with pytest.raises(ValueError, match=r'has the .* g, a part before it'):
    parts.collect([first, other])


def test_students_of_one_name_and_two_models_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline', cell={'model': {'width': 1}})
  other = part(world, tmp_path / 'b', 'sp', cell={'model': {'width': 2}})
  with pytest.raises(ValueError, match=r"tiny with model \{'width': 2\}"):
    parts.collect([first, other])


def test_parts_that_do_not_belong_together_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'baseline')
  other = part(world, tmp_path / 'b', 'sp', teacher_facts={'fingerprint': 'g'})
  with pytest.raises(ValueError, match='cannot be compared'):
    parts.collect([first, other])
  other = part(world, tmp_path / 'c', 'sp', dataset='e')
  with pytest.raises(ValueError, match='parts of one table'):
    parts.collect([first, other])
  with pytest.raises(ValueError, match='holds no table'):
    parts.collect([tmp_path])
  with pytest.raises(ValueError, match='needs the --workdir'):
    runner.report([], tmp_path)
  with pytest.raises(ValueError, match='needs a folder for the report'):
    runner.report([first, other], None)


def test_parts_of_students_trained_otherwise_are_refused(world, tmp_path):
  """A field that one part lacks, as those of older versions do, is none."""
  first = part(world, tmp_path / 'a', 'baseline')
  second = part(world, tmp_path / 'b', 'sp')
  keep_config(world.config, first)
  parts.collect([first, second])
  other = tiny_config()
  other.student.training.compute_dtype = 'bfloat16'
  other.objective.kd_temperature = 3.0
  keep_config(other, second)
  with pytest.raises(ValueError, match='expected parts of one') as error:
    parts.collect([first, second])
  for text in ('compute_dtype bfloat16, not float32', 'temperature 3.0, not 2'):
    assert text in str(error.value)
  (tmp_path / 'one.json').write_text(json.dumps(parts.collect([first])))
  with pytest.raises(ValueError, match='expected parts of one'):
    parts.collect([tmp_path / 'one.json', second])
  old = json.loads((second / 'config.json').read_text())
  del old['student']['training']['compute_dtype']  # It was float32.
  old['objective']['kd_temperature'] = 2.0
  (second / 'config.json').write_text(json.dumps(old))
  parts.collect([first, second])


def keep_config(config, folder):
  (folder / 'config.json').unlink(missing_ok=True)
  grid.keep_config(config, folder)


def test_cells_of_one_name_and_two_weights_are_refused(world, tmp_path):
  first = part(world, tmp_path / 'a', 'iusp', cell={'weights': {'iusp': 3.0}})
  same = part(world, tmp_path / 'b', 'iusp', cell={'weights': {'iusp': 3.0}})
  other = part(world, tmp_path / 'c', 'iusp', cell={'weights': {'iusp': 4.0}})
  parts.collect([first, same])
  with pytest.raises(ValueError, match=r'tiny iusp seed 100 .*4.0.*3.0'):
    parts.collect([first, other])


def test_shards_of_one_workdir_are_all_named(world, tmp_path):
  part(world, tmp_path, 'baseline')
  part(world, tmp_path, 'sp')
  found = parts.collect([tmp_path])
  assert found['command'].splitlines() == ['baseline', 'sp']
  assert found['environment']['git_commit'] == ['baseline', 'sp']
  assert found['environment']['num_cores'] == 2


def test_committed_results_can_be_read():
  files = sorted((ROOT / 'docs' / 'results').glob('*.json'))
  assert files
  for file in files:
    assert parts.collect([file])['cells']


def test_cells_of_another_teacher_are_not_continued(world, tmp_path):
  path = tmp_path / 'teachers' / 'teacher.json'
  logs.write_atomically(path, json.dumps({'fingerprint': 'g'}))
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
      logs.write_atomically(grid.folder(workdir, cell) / 'cell.json', '{}')
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
  other.enter_context(logs.lock(folder, 'held'))

  def say(text):
    if text.endswith('waiting'):  # From here on it would wait for ever.
      assert ran == [second[0].objective]
      if not dies:
        runner.run_group(None, first, tmp_path)
      other.close()

  monkeypatch.setattr(logs, 'say', say)
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
    mel = tagger.hear(model, example['audio'][None])
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


def test_units_make_gradients_equally_long(world):
  """At ratio 1, the gradient of the weighted term is that of the tags.

  Against the public losses of waveforms that both models hear.
  """
  job = world.job('tiny', grid.with_weights(world.config, {}), 0)
  student = tagger.build(job.recipe, len(world.dataset.tags))
  variables, order_KB = ensemble.first_epoch(
    job, world.features(student, 'train')
  )
  whole = next(data.eval_batches(world.dataset.splits['train'], 24))
  guide = world.guide

  def losses(params, batch):
    output, _ = student.module.apply(
      {**variables, 'params': params},
      tagger.hear(student, batch['wave']),
      train=True,
      mutable=['batch_stats'],
    )
    heard = tagger.hear(guide.model, batch['wave'])
    own, theirs = output, tagger.apply(guide.model, guide.variables, heard)
    frames = own.frames_BTD, theirs.frames_BTD
    mask_BT = step.frame_mask(
      batch['length'], 16_000, min(x.shape[1] for x in frames)
    )
    logits = own.logits_BC, theirs.logits_BC
    temperature = world.config.objective.kd_temperature
    tagging = own.logits_BC, batch['tags'], batch['mask']
    return {
      'tagging': objectives.tagging_loss(*tagging),
      'kd': objectives.kd_loss(*logits, temperature),
      'sp': objectives.sp_loss(*frames),
      'iusp': objectives.iusp_loss(*frames, mask_BT),
      'iusp_centred': objectives.iusp_loss(*frames, mask_BT, centred=True),
    }

  lengths = {term: [] for term in ('tagging', *step.DISTILLATION_TERMS)}
  jacobian = jax.jit(jax.jacrev(losses))
  for index_B in order_KB[:4]:
    batch = {key: np.asarray(whole[key])[index_B] for key in whole}
    for term, gradient in jacobian(variables['params'], batch).items():
      leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(gradient)]
      lengths[term].append(np.sqrt(sum(np.sum(x**2) for x in leaves)))
  units = tuning.gradient_units(world, 'tiny')
  assert set(units) == set(step.DISTILLATION_TERMS)
  for term, unit in units.items():
    ratio = np.mean(lengths['tagging']) / np.mean(lengths[term])
    np.testing.assert_allclose(unit, ratio, rtol=1e-3)


def test_tuning_tries_every_ratio_with_every_seed(world, monkeypatch):
  seen = []

  def fit(jobs):
    seen.extend(jobs)
    return [
      ensemble.Member(job, best_score=job.objective['sp_weight'] % 7 / 10)
      for job in jobs
    ]

  monkeypatch.setattr(world, 'fit', fit)
  units = {'kd': 1.0, 'sp': 20.0, 'iusp': 100.0}
  found = tuning.tune(world, 'tiny', ('sp', 'iusp'), units)
  config = world.config.table
  assert len(seen) == len(config.tune_ratios) * config.tune_seeds
  assert {job.seed for job in seen} == set(range(config.tune_seeds))
  # 0.3 and 3, shared by two terms: sp 3 and 30, of which 3 % 7 is the best.
  assert found['weights'] == {'sp_weight': 3.0, 'iusp_weight': 15.0}
  assert found['ratio'] == 0.3
  assert np.shape(found['validate']) == (2, 2)


def test_ratio_of_runs_that_diverged_is_never_the_best(world, monkeypatch):
  def fit(jobs, good):
    return [
      ensemble.Member(job, best_score=0.5)
      if job.objective['sp_weight'] in good
      else ensemble.Member(job, diverged='the loss of step 1 is nan')
      for job in jobs
    ]

  units = {'sp': 10.0}
  monkeypatch.setattr(world, 'fit', lambda jobs: fit(jobs, {30.0}))
  assert tuning.tune(world, 'tiny', ('sp',), units)['ratio'] == 3.0
  monkeypatch.setattr(world, 'fit', lambda jobs: fit(jobs, {}))
  with pytest.raises(FloatingPointError, match=r'all 4 runs diverged.*is nan'):
    tuning.tune(world, 'tiny', ('sp',), units)


@pytest.fixture
def tuned(monkeypatch):
  """Tuning in which SP diverges, without training; which pairs it tried."""
  tried = []

  def tune(world, student, terms, units):
    tried.append(terms)
    if terms == ('sp',):
      raise FloatingPointError('all 4 runs diverged')
    weights = {f'{term}_weight': 1.0 for term in terms}
    ratio = 3.0 if terms == ('kd',) else 1.0
    ratios, scores = [0.3, 1.0, 3.0], [[0.0], [0.1], [0.2]]
    return {
      'ratio': ratio, 'ratios': ratios, 'validate': scores, 'weights': weights,
    }  # fmt: skip

  monkeypatch.setattr(tuning, 'World', lambda *_: object())
  monkeypatch.setattr(tuning, 'gradient_units', lambda *_: {'kd': 1.0})
  monkeypatch.setattr(tuning, 'tune', tune)
  return tried


def test_tuning_keeps_the_others_where_one_diverges(tuned, tmp_path, capsys):
  with pytest.raises(FloatingPointError, match='tiny sp: all 4 runs diverged'):
    tuning.run(tiny_config(), tmp_path)
  found = json.loads((tmp_path / 'tuned.json').read_text())
  assert set(found['urban_scenes/procedural']['tiny']) == {
    'kd', 'iusp', 'iusp_sp',
  }  # fmt: skip
  assert len(tuned) == 4
  said = capsys.readouterr().out
  assert said.count('at an edge of the grid') == 1
  assert 'tiny kd: the best ratio, 3, is at an edge' in said
  assert '0.3: none' in said


def test_tuning_of_another_config_is_refused(tuned, tmp_path):
  config = tiny_config()
  config.table.objectives = ('kd', 'iusp')
  tuning.run(config, tmp_path)
  config.table.weights.tiny.kd.kd_weight = 7.0  # As found, and taken over.
  tuning.run(config, tmp_path)
  assert len(tuned) == 2
  config.student.training.learning_rate = 0.1
  with pytest.raises(ValueError, match=r'learning_rate: 0\.003 there'):
    tuning.run(config, tmp_path)


def test_tuning_weights_are_what_configs_use(tmp_path, monkeypatch):
  from configs import iusp

  tuned = {
    'urban_scenes/procedural': {'crnn_64': {'iusp': {'iusp_weight': 9.0}}}
  }
  monkeypatch.setattr(base, 'TUNED', tuned)
  assert iusp.get_config('').objective.iusp_weight == 9.0
  assert iusp.get_config('student=cnn_4').objective.iusp_weight == 300.0
  found = table_config.get_config('').table.weights
  assert found.crnn_64.iusp.iusp_weight == 9.0
  assert found.crnn_64.sp.sp_weight == 30.0
