"""The paper's table: every objective for every student with many seeds.

The teacher of a rotation is trained once, its outputs are stored once, and
runs that differ in their seed alone are one program (`ensemble`). What a
killed table has finished is kept; the rest is the same when it goes on.
"""

import dataclasses
import functools
import json
import pathlib
import shlex
import time
from collections.abc import Callable, Sequence
from typing import Any

from iusp_jax.experiment import (
  cells,
  experiment,
  grid,
  outcome,
  parts,
  teacher,
  workers,
)
from iusp_jax.experiment.grid import Cell
from iusp_jax.experiment.world import World, repetitiveness
from iusp_jax.models import tagger
from iusp_jax.reporting import similarity_plot
from iusp_jax.reporting.table import objectives, plots, tables
from iusp_jax.runtime import devices, files, logs

PANELS = 'similarities.npz'


def run(
  config: Any, workdir: pathlib.Path, shard: str = '', jobs: int = 1
) -> None:
  """Runs the cells of a table that are not there yet.

  Several processes with one workdir share the groups of cells between them.

  Args:
    config: as configs/table.py makes it.
    workdir: for the cells and what is made of them.
    shard: 'i/n', to run every n-th group of cells, the i-th first.
    jobs: processes at a time, of this very command: more than one are for
      run.py alone. 0: this is one of them, and leaves the report to others.

  Raises:
    ValueError: for a config, a workdir, flags or data that cannot be right.
  """
  experiment.check(config)
  grid.check(config)
  number, count = grid.parse_shard(shard)
  workers.check(jobs, workdir)
  if jobs:
    logs.log(devices.describe())
  grid.keep_config(config, workdir)
  mine = grid.groups(config)[number::count]
  if not mine:
    logs.log(f'table: no group of cells is left for shard {number}/{count}')
    return
  todo = undone(mine, workdir)
  if jobs:
    _say_plan(config, len(mine), len(todo))

  @functools.lru_cache(maxsize=1)
  def world_of(rotation: grid.Rotation | None) -> World:
    world = World(config, rotation)
    save_world(config, world, workdir)
    return world

  if jobs > 1 and todo:
    share_groups(todo, world_of, workdir, jobs)
  else:
    run_groups(todo, world_of, workdir)
  if jobs:
    rotation = mine[-1][0].rotation
    if todo or not _has_similarities(config, rotation, workdir):
      keep_similarities(world_of(rotation), workdir)
    report([workdir], workdir)


def _say_plan(config: Any, num_groups: int, num_todo: int) -> None:
  if names := grid.untuned(config):
    logs.log(
      f'table: weights of {", ".join(names)} were not tuned for '
      f'{config["dataset"]["name"]}, see --mode=tune'
    )
  logs.log(f'table: {num_groups} groups of cells, {num_todo} to run')


def undone(
  groups: Sequence[Sequence[Cell]], workdir: pathlib.Path
) -> list[Sequence[Cell]]:
  """The groups that have a cell to run."""
  return [
    group
    for group in groups
    if not all(grid.done(workdir, cell) for cell in group)
  ]


def share_groups(
  groups: Sequence[Sequence[Cell]],
  world_of: Callable[[grid.Rotation | None], World],
  workdir: pathlib.Path,
  jobs: int,
) -> None:
  """Has groups of cells run by several processes.

  Raises:
    ValueError: if a group was not run.
  """
  for rotation in dict.fromkeys(group[0].rotation for group in groups):
    world_of(rotation)  # Its teacher is trained with all the cores.
  ended = workers.run(jobs)
  if left := undone(groups, workdir):
    raise ValueError(
      f'{len(left)} of {len(groups)} groups of cells were not run: the '
      f'processes of --jobs={jobs} ended with the exit codes {ended}, what '
      'they said stands above; the same command continues'
    )


def run_groups(
  groups: Sequence[Sequence[Cell]],
  world_of: Callable[[grid.Rotation | None], World],
  workdir: pathlib.Path,
) -> None:
  """Runs groups of cells, first those that no other process is at."""
  started, busy = time.monotonic(), []

  def attempt(group, wait: bool) -> None:
    first = group[0]
    folder = workdir / 'groups' / first.name.rpartition('-')[0]
    with files.lock(folder, 'another process runs this group', wait):
      if not undone([group], workdir):
        return
      seconds = run_group(world_of(first.rotation), group, workdir)
    left = len(undone(groups, workdir))
    # Others' groups count as well: they are of the same pace.
    each = (time.monotonic() - started) / max(1, len(groups) - left)
    logs.log(
      f'table: {len(groups) - left}/{len(groups)} {first.student} '
      f'{first.objective}, {len(group)} seeds in {seconds:.0f} s; '
      f'{each * left / 60:.0f} min to go'
    )

  for group in groups:
    try:
      attempt(group, wait=False)
    except files.Busy:
      busy.append(group)
  for group in busy:  # In case the process that was at it has died.
    attempt(group, wait=True)


def keep_similarities(world: World, workdir: pathlib.Path) -> None:
  """Frame similarities of the same test clips: teacher and one student's runs.

  Of the first student and its first seed in the world's rotation; the report
  draws them.
  """
  table = world.config['table']
  runs = f'{table["students"][0]}, seed {table["first_seed"]}'
  if world.rotation:
    runs += f', {grid.describe(world.rotation)}'
  # Another process may have more runs by now: the last one draws them all.
  with files.lock(workdir / 'groups', 'another process compares frames'):
    folders = _drawn(world.config, world.rotation, workdir)
    shown = {'teacher': world.guide} | {
      name: teacher.load(folder, world.dataset)
      for name, folder in folders.items()
    }
    panels = [
      dataclasses.replace(panel, runs=runs)
      for panel in outcome.similarity_panels(world.dataset, shown)
    ]
    content = similarity_plot.to_bytes(panels)
    files.write_atomically(workdir / PANELS, content)


def _drawn(config: Any, rotation, workdir) -> dict[str, pathlib.Path]:
  """By objective, the runs whose similarities are drawn, as far as ready."""
  table, found = config['table'], {}
  student = table['students'][0]
  weights = {
    name: {
      field.removesuffix('_weight'): value
      for field, value in table['weights'][student][name].items()
    }
    for name in table['objectives']
  }
  for name, objective in objectives.from_weights(weights).items():
    cell = Cell(rotation, table['students'][0], name, table['first_seed'])
    folder = grid.folder(workdir, cell)
    # Another shard may be writing it; one that diverged has no checkpoints.
    ready = grid.done(workdir, cell) and (folder / 'checkpoints').exists()
    shown = name == objectives.BASELINE or objective.compares_similarities
    if shown and ready:
      found[name] = folder
  return found


def _has_similarities(config: Any, rotation, workdir) -> bool:
  """Whether the panels that are kept lack no run: a killed table's may."""
  path = workdir / PANELS
  if not path.exists():
    return False
  panels = similarity_plot.read(path)
  return {*_drawn(config, rotation, workdir)} <= {*panels[0].similarity}


def save_world(config: Any, world: World, workdir: pathlib.Path) -> None:
  """Writes what the report needs of the data set and the teacher.

  Raises:
    ValueError: if the cells that are there have another teacher.
  """
  name = grid.describe(world.rotation)
  path = workdir / 'teachers' / f'{name or "teacher"}.json'
  with files.lock(path.parent, 'another process scores the teacher'):
    if not _is_known(path, world.guide):
      result, _ = outcome.measure(config, world.dataset, world.guide)
      facts = {
        'rotation': name,
        'dataset': world.dataset.name,
        'weights': world.guide.weights(),
        **{key: result[key] for key in _MODEL_FACTS},
        **cells.scores_of(result),
        'repetitiveness': repetitiveness(world),
      }
      files.write_atomically(path, files.to_json(facts))
  facts = {
    # Builders name data sets of other folds by other numbers.
    'dataset': config['dataset']['name'] if name else world.dataset.name,
    'tags': list(world.dataset.coarse),
    'environment': outcome.environment(),
    'command': shlex.join(['python', *workers.command()]),
  }
  parts.start(config, workdir, facts)


def _is_known(path: pathlib.Path, guide: teacher.Trained) -> bool:
  """Whether a file is of this teacher; raises ValueError for another's."""
  if not path.exists():
    return False
  known = json.loads(path.read_text())
  own = {'fingerprint': guide.fingerprint, 'weights': guide.weights()}
  for field, value in own.items():
    if value != known.get(field, value):
      raise ValueError(
        f'{path} is of a teacher with the {field} {known[field]}, this command '
        f'has {value}: students of two teachers cannot be compared; expected '
        'the first one (see config.teacher.checkpoint), or another --workdir'
      )
  return True


_MODEL_FACTS = ('fingerprint', 'parameters', 'macs', 'trained_in')


def run_group(
  world: World, group: Sequence[Cell], workdir: pathlib.Path
) -> float:
  """Trains and scores the cells of a group; gives the seconds it took."""
  started, first = time.monotonic(), group[0]
  weights = grid.objective(world.config, first.student, first.objective)
  jobs = [world.job(first.student, weights, cell.seed) for cell in group]
  members = world.fit(jobs)
  seconds = (time.monotonic() - started) / len(group)  # Of its training.
  todo = [
    (cell, member)
    for cell, member in zip(group, members, strict=True)
    if not grid.done(workdir, cell)
  ]
  model = tagger.build(jobs[0].recipe, len(world.dataset.tags))
  scored = cells.score_members(world, model, [member for _, member in todo])
  for (cell, member), (scores, distance) in zip(todo, scored, strict=True):
    facts = {'frame_distance': distance, 'seconds': seconds}
    folder = grid.folder(workdir, cell)
    cells.write_cell(world, cell, member, scores, facts, folder)
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
  for path in paths:
    parts.load(path)  # Raises, before a folder is made.
  if place is None and (len(paths) > 1 or not paths[0].is_dir()):
    raise ValueError(
      '--mode=report of several parts, or of a cells.json, needs a folder for '
      'the report: --workdir=runs/report'
    )
  place = place or paths[0]
  with files.lock(place / 'report', 'another process writes this report'):
    found = parts.collect(paths)
    text = json.dumps(found, separators=(',', ':')) + '\n'
    files.write_atomically(place / 'cells.json', text)
    logs.log(tables.write(found, place))
    for name in [
      *_draw_similarities(paths, place, objectives.of_table(found)),
      *plots.draw(found, place),
    ]:
      logs.log(f'Picture: {place / name}')
    logs.log(f'Table: {place}/table.md, table.csv, table.json; cells.json')


def _draw_similarities(paths, place, named) -> list[str]:
  """Of the parts that drew what the first one did; a `cells.json` has none.

  Shards have different objectives of one student's runs. Other students,
  seeds and rotations (whose clips may have the same names) are left out.
  """
  parts, runs = [], ''
  for path in paths:
    if not (path / PANELS).is_file():
      continue
    found = similarity_plot.read(path / PANELS)
    runs = runs or found[0].runs
    if found[0].runs == runs:
      parts.append(found)
    else:
      logs.log(
        f'similarities.png is of {runs}; left out: {found[0].runs} of {path}'
      )
  if not parts:
    return []
  panels = similarity_plot.merge(parts, ['teacher', *named])
  titles = {name: objective.title for name, objective in named.items()}
  path = place / 'similarities.png'
  similarity_plot.plot_similarities(panels, path, titles)
  return ['similarities.png']
