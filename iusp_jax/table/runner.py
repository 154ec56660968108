"""The paper's table: every objective for every student with many seeds.

The teacher of a rotation is trained once, its outputs are stored once, and
runs that differ in their seed alone are one program (`ensemble`). What a
killed table has finished is kept; the rest is the same when it goes on.
"""

import json
import pathlib
import shlex
import sys
import time
from collections.abc import Sequence
from typing import Any

from iusp_jax import (
  experiment,
  logs,
  outcome,
  parallel,
  similarity_picture,
  tagger,
  teacher,
)
from iusp_jax.table import cells, grid, parts, pictures, records, tables
from iusp_jax.table.grid import Cell
from iusp_jax.table.world import World, repetitiveness

PANELS = 'similarities.npz'


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
  number, count = grid.parse_shard(shard_text)
  logs.say(parallel.describe())
  grid.keep_config(config, workdir)
  if names := grid.untuned(config):
    logs.say(
      f'table: weights of {", ".join(names)} were not tuned for '
      f'{config["dataset"]["name"]}, see --mode=tune'
    )
  mine = grid.groups(config)[number::count]
  if not mine:
    logs.say(f'table: no group of cells is left for shard {number}/{count}')
    return
  busy = 'another process runs this shard; --shard=i/n shares a table'
  with logs.lock(workdir / 'shards' / f'{number}-of-{count}', busy, wait=False):
    run_groups(config, mine, workdir)
  report([workdir], workdir)


def run_groups(
  config: Any, groups: Sequence[Sequence[Cell]], workdir: pathlib.Path
) -> None:
  """Runs groups of cells, those of a rotation after each other."""
  todo = [
    group
    for group in groups
    if not all(grid.done(workdir, cell) for cell in group)
  ]
  logs.say(f'table: {len(groups)} groups of cells, {len(todo)} to run')
  world, started = None, time.monotonic()
  for number, group in enumerate(todo):
    if world is None or world.rotation != group[0].rotation:
      world = World(config, group[0].rotation)
      save_world(config, world, workdir)
    # Shards of other counts, i/2 and i/3, share groups.
    name = group[0].name.rpartition('-')[0]
    with logs.lock(
      workdir / 'groups' / name, 'another process runs this group'
    ):
      seconds = run_group(world, group, workdir)
    left = (time.monotonic() - started) / (number + 1) * len(todo[number + 1 :])
    logs.say(
      f'table: {number + 1}/{len(todo)} {group[0].student} '
      f'{group[0].objective}, {len(group)} seeds in {seconds:.0f} s; '
      f'{left / 60:.0f} min to go'
    )
  if world is None and not (workdir / PANELS).exists():
    world = World(config, groups[-1][0].rotation)  # Of a killed table.
  if world is not None:
    keep_similarities(world, workdir)


def keep_similarities(world: World, workdir: pathlib.Path) -> None:
  """Frame similarities of the same test clips: teacher and one student's runs.

  Of the first student and its first seed, in the rotation that was run last;
  the report draws them.
  """
  table = world.config['table']
  shown = {'teacher': world.guide}
  for name in table['objectives']:
    cell = Cell(world.rotation, table['students'][0], name, table['first_seed'])
    folder = grid.folder(workdir, cell)
    # Another shard may be writing it; one that diverged has no checkpoints.
    ready = grid.done(workdir, cell) and (folder / 'checkpoints').exists()
    if name in ('baseline', *records.SIMILARITIES) and ready:
      shown[name] = teacher.load(folder, world.dataset)
  panels = outcome.similarity_panels(world.dataset, shown)
  content = similarity_picture.to_bytes(panels)
  logs.write_atomically(workdir / PANELS, content)


def save_world(config: Any, world: World, workdir: pathlib.Path) -> None:
  """Writes what the report needs of the data set and the teacher.

  Raises:
    ValueError: if the cells that are there have another teacher.
  """
  name = grid.describe(world.rotation)
  path = workdir / 'teachers' / f'{name or "teacher"}.json'
  own = {
    'fingerprint': world.guide.fingerprint,
    'weights': world.guide.weights(),
  }
  known = json.loads(path.read_text()) if path.exists() else {}
  for field, value in own.items():
    if value != known.get(field, value):
      raise ValueError(
        f'{path} is of a teacher with the {field} {known[field]}, this command '
        f'has {value}: students of two teachers cannot be compared; expected '
        'the first one (see config.teacher.checkpoint), or another --workdir'
      )
  facts = {
    # Builders name data sets of other folds by other numbers.
    'dataset': config['dataset']['name'] if name else world.dataset.name,
    'tags': list(world.dataset.coarse),
    'environment': outcome.environment(),
    'command': shlex.join(['python', *sys.argv]),
  }
  parts.start(config, workdir, facts)
  if known:
    return
  result, _ = outcome.measure(config, world.dataset, world.guide)
  facts = {
    'rotation': name,
    'dataset': world.dataset.name,
    'weights': own['weights'],
    **{key: result[key] for key in _MODEL_FACTS},
    **cells.scores_of(result),
    'repetitiveness': repetitiveness(world),
  }
  logs.write_atomically(path, logs.to_json(facts))


_MODEL_FACTS = ('fingerprint', 'parameters', 'macs', 'trained_in')


def run_group(
  world: World, group: Sequence[Cell], workdir: pathlib.Path
) -> float:
  """Trains and scores the cells of a group; gives the seconds it took."""
  started = time.monotonic()
  if all(grid.done(workdir, cell) for cell in group):
    return 0.0
  first = group[0]
  weights = grid.objective(world.config, first.student, first.objective)
  jobs = [world.job(first.student, weights, cell.seed) for cell in group]
  members = world.fit(jobs)
  model = tagger.build(jobs[0].recipe, len(world.dataset.tags))
  scored = cells.score_members(world, model, members)
  seconds = time.monotonic() - started
  for cell, member, (scores, distance) in zip(
    group, members, scored, strict=True
  ):
    if not grid.done(workdir, cell):
      cells.write_cell(
        world,
        cell,
        member,
        scores,
        {'frame_distance': distance, 'seconds': seconds / len(group)},
        grid.folder(workdir, cell),
      )
  return time.monotonic() - started


def report(paths: Sequence[pathlib.Path], place: pathlib.Path | None) -> None:
  """Writes tables and pictures anew from the cells that are there.

  Args:
    paths: workdirs of one table, of its shards or parts, or files of cells
      that a report left.
    place: the folder for the report; None: a table's own workdir.

  Raises:
    ValueError: if no path is named, one holds no table, or it is not clear
      where the report goes.
  """
  if not paths:
    raise ValueError(
      '--mode=report needs the --workdir of a table, or those of its shards: '
      'python run.py --mode=report runs/table'
    )
  if place is None and (len(paths) > 1 or not paths[0].is_dir()):
    raise ValueError(
      '--mode=report of several parts, or of a cells.json, needs a folder for '
      'the report: --workdir=runs/report'
    )
  place = place or paths[0]
  with logs.lock(place / 'report', 'another process writes this report'):
    found = parts.collect(paths)
    text = json.dumps(found, separators=(',', ':')) + '\n'
    logs.write_atomically(place / 'cells.json', text)
    logs.say(tables.write(found, place))
    for name in [
      *_draw_similarities(paths, place),
      *pictures.draw(found, place),
    ]:
      logs.say(f'Picture: {place / name}')
    logs.say(f'Table: {place}/table.md, table.csv, table.json; cells.json')


def _draw_similarities(paths, place) -> list[str]:
  """From the first part that has the panels; a `cells.json` has none."""
  kept = [path / PANELS for path in paths if (path / PANELS).is_file()]
  if not kept:
    return []
  panels = similarity_picture.from_bytes(kept[0].read_bytes())
  similarity_picture.plot_similarities(panels, place / 'similarities.png')
  return ['similarities.png']
