"""The paper's table: every objective for every student with many seeds.

The teacher of a rotation is trained once, its outputs are stored once, and
runs that differ in their seed alone are one program (`ensemble`). What a
killed table has finished is kept; the rest is the same when it goes on.
"""

import functools
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax import (
  checkpoint,
  data,
  ensemble,
  evaluate,
  experiment,
  grid,
  logs,
  metrics,
  objectives,
  outcome,
  parallel,
  similarity_picture,
  step,
  store,
  table_pictures,
  table_report,
  tagger,
  teacher,
)
from iusp_jax.grid import Cell


class World:
  """A rotation's data, teacher and stored outputs, shared by its cells."""

  def __init__(self, config: Any, rotation: grid.Rotation | None):
    self.config, self.rotation = config, rotation
    own = grid.config_of(config, rotation)
    self.dataset = experiment.load_dataset(own)
    self.guide = teacher.obtain(own, self.dataset)
    if own['teacher']['store'] == 'auto':
      own['teacher']['store'] = 'float32'  # A table without is out of reach.
    found = {
      split: store.obtain(own, self.guide, self.dataset, split)
      for split in ('train', *outcome.scored_splits(self.dataset)[-1:])
    }
    self.outputs: dict[str, store.Store] = {
      split: outputs for split, outputs in found.items() if outputs
    }
    self._features: dict[Any, ensemble.Resident] = {}

  def features(self, model: tagger.Tagger, split: str) -> ensemble.Resident:
    """Log-mel and tags of a split, made once a front end."""
    key = model.frontend, split
    if key not in self._features:
      self._features[key] = ensemble.features(model, self.dataset.splits[split])
    return self._features[key]

  def job(self, student: str, weights: Mapping[str, float], seed: int):
    """A student's run; weights are fields of `config.objective`."""
    own = grid.config_of(self.config, self.rotation, student)
    return step.Job(
      name=f'{student} seed {seed}',
      recipe={key: own['student'][key] for key in teacher.RECIPE},
      objective=dict(weights),
      dataset=self.dataset,
      seed=seed,
      workdir=pathlib.Path(),
      teacher=step.Teacher(self.guide.model, self.guide.variables),
    )

  def fit(self, jobs: Sequence[step.Job]) -> list[ensemble.Member]:
    """Trains jobs of one student and one set of terms together."""
    first = jobs[0]
    reason = ensemble.obstacle(first)
    if reason:
      raise ValueError(f'the table cannot train these students: {reason}')
    model = tagger.build(first.recipe, len(self.dataset.tags))
    resident = ensemble.with_targets(
      self.features(model, 'train'), self.outputs['train'], first.terms()
    )
    return ensemble.fit(jobs, resident, self.features(model, 'validate'))


def run(config: Any, workdir: pathlib.Path, shard_text: str = '') -> None:
  """Runs the cells of a table that are not there yet.

  Args:
    config: as configs/table.py makes it.
    workdir: for the cells and what is made of them; shards may share it.
    shard_text: 'i/n', to run every n-th group of cells, the i-th first.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right.
  """
  experiment.check(config)
  grid.check(config)
  shard = grid.parse_shard(shard_text)
  logs.say(parallel.describe())
  workdir.mkdir(parents=True, exist_ok=True)
  with logs.lock(workdir, 'another process looks at this table'):
    experiment.refuse_other_config(config, workdir)
    text = logs.to_json(teacher.plain(config))
    logs.write_atomically(experiment.config_path(workdir), text)
  mine = grid.groups(config)[shard[0] :: shard[1]]
  todo = [
    group
    for group in mine
    if not all(grid.done(workdir, cell) for cell in group)
  ]
  logs.say(f'table: {len(mine)} groups of cells, {len(todo)} to run')
  world, started = None, time.monotonic()
  for number, group in enumerate(todo):
    if world is None or world.rotation != group[0].rotation:
      world = World(config, group[0].rotation)
      save_world(config, world, workdir)
    seconds = run_group(world, group, workdir)
    left = (time.monotonic() - started) / (number + 1) * len(todo[number + 1 :])
    logs.say(
      f'table: {number + 1}/{len(todo)} {group[0].student} '
      f'{group[0].objective}, {len(group)} seeds in {seconds:.0f} s; '
      f'{left / 60:.0f} min to go'
    )
  if world is not None:
    draw_similarities(world, workdir)
  report([workdir])


def draw_similarities(world: World, workdir: pathlib.Path) -> None:
  """Frame similarities of the same test clips: teacher and one student's runs.

  Of the first student and its first seed, in the rotation that was run last.
  """
  table = world.config['table']
  shown = {'teacher': world.guide}
  for name in table['objectives']:
    cell = Cell(world.rotation, table['students'][0], name, table['first_seed'])
    folder = grid.folder(workdir, cell)
    if name in ('baseline', 'sp', 'iusp') and (folder / 'checkpoints').exists():
      shown[name] = teacher.load(folder, world.dataset)
  panels = outcome.similarity_panels(world.dataset, shown)
  path = workdir / 'similarities.png'
  similarity_picture.plot_similarities(panels, path)
  logs.say(f'Picture: {path}')


def save_world(config: Any, world: World, workdir: pathlib.Path) -> None:
  """Writes what the report needs of the data set and the teacher."""
  facts = {
    'dataset': world.dataset.name,
    'tags': list(world.dataset.coarse),
    'environment': outcome.environment(),
    'command': f'python run.py --mode=table --config=configs/{config.name}.py',
  }
  grid.start(config, workdir, facts)
  name = grid.describe(world.rotation)
  path = workdir / 'teachers' / f'{name or "teacher"}.json'
  if path.exists():
    return
  result, _ = outcome.measure(config, world.dataset, world.guide)
  facts = {
    'rotation': name,
    **{key: result[key] for key in _MODEL_FACTS},
    **_scores(result),
    'repetitiveness': repetitiveness(world),
  }
  logs.write_atomically(path, logs.to_json(facts))


_MODEL_FACTS = ('fingerprint', 'parameters', 'macs', 'trained_in')
_SCORES = ('micro_auprc', 'macro_auprc', 'map', 'lwlrap', 'class_auprc')


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
  """What the report wants of a results.json's model."""
  return {
    split: {name: scores['coarse'][name] for name in _SCORES}
    for split, scores in result['best'].items()
  }


def repetitiveness(world: World) -> dict[str, float]:
  """How alike the frames of a tag's training clips are, by the teacher.

  The mean cosine of two different frames of a clip, then the mean over the
  clips that have the tag: 1 for a steady hum, lower for what changes.
  """
  gram_NTT = np.asarray(world.outputs['train'].frame_gram, np.float32)
  length_NT = np.sqrt(np.einsum('ntt->nt', gram_NTT))
  length_NT = np.maximum(length_NT, 1e-6 * length_NT.max(1, keepdims=True))
  length_NT = np.where(length_NT > 0, length_NT, 1.0)
  cosine_NTT = gram_NTT / length_NT[:, :, None] / length_NT[:, None]
  T = gram_NTT.shape[1]
  total_N = cosine_NTT.sum((1, 2)) - np.einsum('ntt->n', cosine_NTT)
  mean_N = total_N / max(1, T * (T - 1))
  tags_NC = data.truth(world.dataset.splits['train'])['coarse'] > 0
  return {
    tag: float(mean_N[tags_N].mean()) if tags_N.any() else 0.0
    for tag, tags_N in zip(world.dataset.coarse, tags_NC.T, strict=True)
  }


def run_group(
  world: World, group: Sequence[Cell], workdir: pathlib.Path
) -> float:
  """Trains and scores the cells of a group; gives the seconds it took."""
  started = time.monotonic()
  first = group[0]
  weights = grid.objective(world.config, first.student, first.objective)
  jobs = [world.job(first.student, weights, cell.seed) for cell in group]
  members = world.fit(jobs)
  model = tagger.build(jobs[0].recipe, len(world.dataset.tags))
  scored = score_members(world, model, members)
  seconds = time.monotonic() - started
  for cell, member, (scores, distance) in zip(
    group, members, scored, strict=True
  ):
    if not grid.done(workdir, cell):
      write_cell(
        world,
        cell,
        member,
        scores,
        {'frame_distance': distance, 'seconds': seconds / len(group)},
        grid.folder(workdir, cell),
      )
  return time.monotonic() - started


def score_members(world: World, model: tagger.Tagger, members):
  """Probabilities by checkpoint and split, and the frame distance on test."""
  splits = outcome.scored_splits(world.dataset)
  mel = {
    split: jnp.asarray(world.features(model, split)['mel']) for split in splits
  }
  outputs = world.outputs[splits[-1]]
  length_N = world.features(model, splits[-1])['length']
  for member in members:
    if member.diverged:
      yield {}, None
      continue
    predict = ensemble.compile_predict(model)
    scores = {
      which: {
        split: evaluate.probabilities(np.asarray(predict(variables, mel_NTF)))
        for split, mel_NTF in mel.items()
      }
      for which, variables in (('best', member.best), ('last', member.last))
    }
    distances_N = compile_distance(model, world.dataset.num_samples)(
      member.best,
      mel[splits[-1]],
      jnp.asarray(outputs.frame_gram),
      jnp.asarray(length_N),
    )
    yield scores, float(np.mean(distances_N))


@functools.cache
def compile_distance(model: tagger.Tagger, num_samples: int) -> Callable:
  """The IUSP term of each clip of a split, `[N]`: how far the frame
  similarities of a student are from those of the teacher.
  """

  def of_clip(variables, mel_TF, gram_TT, length):
    frames_BTD = tagger.apply(model, variables, mel_TF[None]).frames_BTD
    num_frames = min(frames_BTD.shape[1], gram_TT.shape[0])
    mask_BT = step.frame_mask(length[None], num_samples, num_frames)
    gram_TT = gram_TT.astype(jnp.float32)
    return objectives.iusp_per_clip(frames_BTD, gram_TT[None], mask_BT)[0]

  def of_split(variables, mel_NTF, gram_NTT, length_N):
    return jax.lax.map(
      lambda clip: of_clip(variables, *clip),
      (mel_NTF, gram_NTT, length_N),
      batch_size=32,
    )

  return jax.jit(of_split)


def write_cell(
  world: World,
  cell: Cell,
  member: ensemble.Member,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  facts: Mapping[str, Any],
  folder: pathlib.Path,
) -> None:
  """Leaves a run's workdir; `cell.json` appears when all else is there."""
  shutil.rmtree(folder, ignore_errors=True)  # Of a killed table.
  job = member.job
  record = {
    **cell.facts(),
    'weights': {
      name.removesuffix('_weight'): value
      for name, value in job.objective.items()
      if name.endswith('_weight') and value
    },
    **facts,
    'status': 'diverged' if member.diverged else 'done',
    'reason': member.diverged,
  }
  name = f'validate/{"fine" if job.dataset.level == "fine" else "coarse"}'
  record['curve'] = [
    [row['step'], row[f'{name}_micro_auprc']]
    for row in member.rows
    if f'{name}_micro_auprc' in row
  ]
  if not member.diverged:
    record |= _write_run(world, cell, member, scores, folder)
  folder.mkdir(parents=True, exist_ok=True)
  text = ''.join(json.dumps(row) + '\n' for row in member.rows)
  logs.write_atomically(folder / 'metrics.jsonl', text)
  logs.write_atomically(folder / 'cell.json', logs.to_json(record))


def _write_run(world, cell, member, scores, folder) -> dict[str, Any]:
  """Config, checkpoints, scores, predictions; gives the record's scores."""
  job, dataset = member.job, world.dataset
  config = grid.config_of(world.config, cell.rotation)
  config['student']['model'] = job.recipe['model']
  config |= {'name': cell.objective, 'seed': cell.seed}
  config |= {'objective': dict(job.objective)}
  logs.write_atomically(experiment.config_path(folder), logs.to_json(config))
  of = experiment.identity(job, world.guide if job.terms() else None)
  teacher.save_facts(folder, of, dataset)
  for which, variables, at in (
    ('best', member.best, member.best_step),
    ('last', member.last, member.rows[-1]['step']),
  ):
    arrays = flax.serialization.to_state_dict(variables)
    facts = {'score': member.best_score}
    checkpoint.save(folder / 'checkpoints' / which, at, arrays, facts, keep=1)
  model = tagger.build(job.recipe, len(dataset.tags))
  trained = teacher.Trained(model, member.best, teacher.fingerprint(of), folder)
  result = outcome.describe(trained, dataset, scores, bootstrap=0)
  outcome.write_predictions(dataset, scores['best'], folder)
  results = {
    'config': config,
    'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
    'seed': cell.seed,
    'environment': outcome.environment(),
    'student': result,
  }
  logs.write_atomically(folder / 'results.json', logs.to_json(results))
  split = outcome.scored_splits(dataset)[-1]
  drawn = metrics.resample(
    data.truth(dataset.splits[split])['coarse'],
    evaluate.by_level(dataset, scores['best'][split])['coarse'],
    bootstrap=world.config['bootstrap'],
  )
  return {
    **{key: result[key] for key in ('parameters', 'macs')},
    **_scores(result),
    'last_test_micro_auprc': result['last'][split]['coarse']['micro_auprc'],
    'resampled': drawn['micro_auprc'].round(5).tolist(),
  }


def report(folders: Sequence[pathlib.Path]) -> None:
  """Writes tables and pictures anew from the cells that are there.

  Args:
    folders: workdirs of one table, of its shards or parts, or files of cells
      that a report left; the first one gets the report.

  Raises:
    ValueError: if no folder is named, or one holds no table.
  """
  if not folders:
    raise ValueError(
      '--mode=report needs the --workdir of a table, or those of its shards: '
      'python run.py --mode=report runs/table'
    )
  found = grid.collect(folders)
  place = folders[0] if folders[0].is_dir() else folders[0].with_suffix('')
  text = json.dumps(found, separators=(',', ':')) + '\n'
  logs.write_atomically(place / 'cells.json', text)
  logs.say(table_report.write(found, place))
  for name in table_pictures.draw(found, place):
    logs.say(f'Picture: {place / name}')
  logs.say(f'Table: {place}/table.md, table.csv, table.json; cells.json')
