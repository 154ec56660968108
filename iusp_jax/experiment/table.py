"""The paper's table: every objective for every student with many seeds.

The teacher of a rotation is trained once, its outputs are stored once, and runs
that differ in their seed alone are one group (`training.engine`). What a killed
table has finished is kept; the rest ends in the same scores when it goes on.
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
  check,
  gradient_units,
  grid,
  identity,
  parts,
  plots,
  results,
  teacher,
  workers,
)
from iusp_jax.experiment.grid import Cell
from iusp_jax.experiment.setup import Setup, repetitiveness
from iusp_jax.objectives import terms
from iusp_jax.reporting import similarity_plot
from iusp_jax.reporting.table import objectives, tables
from iusp_jax.reporting.table import plots as table_plots
from iusp_jax.runtime import devices, environment, files, logs, processes
from iusp_jax.training import engine
from iusp_jax.training.recipe import Recipe

PANELS = 'similarities.npz'

SetupOf = Callable[[grid.Rotation | None], Setup]


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
  config = identity.plain(config)
  check.check(config)
  grid.check_grid(config)
  config = teacher.identified(config)
  number, count = grid.parse_shard(shard)
  workers.check(jobs, workdir)
  if jobs:
    logs.log(devices.describe(), everywhere=True)
  mine = grid.groups(config)[number::count]
  if not mine:
    logs.log(f'table: no group of cells is left for shard {number}/{count}')
    return
  grid.check_cells([grid.run_of(config, c, workdir) for g in mine for c in g])
  todo = undone(mine, workdir)
  if jobs:
    _log_plan(config, len(mine), len(todo))

  @functools.lru_cache(maxsize=1)
  def setup_of(rotation: grid.Rotation | None) -> Setup:
    own = Setup(grid.config_of(config, rotation))
    grid.check_dataset(config, own.dataset)
    own.get_teacher(required=True)
    cells = [c for g in mine for c in g if c.rotation == rotation]
    grid.check_cells([grid.run_of(config, c, workdir) for c in cells], own)
    save_setup(config, own, rotation, workdir)
    return own

  if jobs > 1 and todo:
    share_groups(todo, setup_of, workdir, jobs)
  else:
    run_groups(config, todo, setup_of, workdir)
  if jobs:
    for group in mine:  # Left by a process that was killed at its end.
      files.remove_folder(group_folder(workdir, group))
    rotation = mine[-1][0].rotation
    if todo or not _has_similarities(config, rotation, workdir):
      keep_similarities(config, setup_of(rotation), rotation, workdir)
    if processes.is_primary():
      report([workdir], workdir)
    processes.barrier()


def _log_plan(config: Any, num_groups: int, num_todo: int) -> None:
  if names := grid.untuned(config):
    logs.log(
      f'table: ratios of {", ".join(names)} were not tuned for '
      f'{config["dataset"]["name"]}, see --mode=tune'
    )
  logs.log(f'table: {num_groups} groups of cells, {num_todo} to run')


def undone(
  groups: Sequence[Sequence[Cell]], workdir: pathlib.Path
) -> list[Sequence[Cell]]:
  """The groups that have a cell to run, as process 0 sees it."""
  left = processes.by_primary(
    lambda: [
      k
      for k, group in enumerate(groups)
      if not all(grid.done(workdir, cell) for cell in group)
    ]
  )
  return [groups[k] for k in left]


def share_groups(
  groups: Sequence[Sequence[Cell]],
  setup_of: SetupOf,
  workdir: pathlib.Path,
  jobs: int,
) -> None:
  """Has groups of cells run by several processes.

  Raises:
    ValueError: if a group was not run.
  """
  for rotation in dict.fromkeys(group[0].rotation for group in groups):
    setup_of(rotation)  # Its teacher is trained with all the cores.
  ended = workers.run(jobs)
  if left := undone(groups, workdir):
    raise ValueError(
      f'{len(left)} of {len(groups)} groups of cells were not run: the '
      f'processes of --jobs={jobs} ended with the exit codes {ended}, their '
      'messages stand above; the same command continues'
    )


def run_groups(
  config: Any,
  groups: Sequence[Sequence[Cell]],
  setup_of: SetupOf,
  workdir: pathlib.Path,
) -> None:
  """Runs groups of cells, first those that no other process is at."""
  started = time.monotonic()

  def attempt(group, wait: bool) -> None:
    first = group[0]
    folder = group_folder(workdir, group)
    message = 'another process runs this group'
    with files.lock_for_all_processes(folder, message, wait):
      if not undone([group], workdir):
        return
      seconds = run_group(config, setup_of(first.rotation), group, workdir)
    left = len(undone(groups, workdir))
    # Others' groups count as well: they are of the same pace.
    each = (time.monotonic() - started) / max(1, len(groups) - left)
    logs.log(
      f'table: {len(groups) - left}/{len(groups)} {first.student} '
      f'{first.objective}, {len(group)} seeds in {seconds:.0f} s; '
      f'{each * left / 60:.0f} min to go'
    )

  workers.attempt_all(groups, attempt)


def group_folder(workdir: pathlib.Path, group: Sequence[Cell]) -> pathlib.Path:
  """Where a group is kept while it is trained."""
  return workdir / 'groups' / group[0].name.rpartition('-')[0]


def run_group(
  config: Any, setup: Setup, group: Sequence[Cell], workdir: pathlib.Path
) -> float:
  """Trains and scores the cells of a group; gives the seconds it took.

  Cells that are finished are used as they are: the others are trained.
  """
  started = time.monotonic()
  todo = [cell for (cell,) in undone([[cell] for cell in group], workdir)]
  folder = group_folder(workdir, group)
  cells = processes.by_primary(lambda: _begun(config, setup, todo, workdir))
  cells = [dataclasses.replace(todo[0], seed=seed) for seed in cells]
  first = cells[0]
  objective = grid.objective(config, first.student, first.objective)
  runs = [grid.run_of(config, cell, workdir) for cell in cells]
  recipe = Recipe.from_config(runs[0].config['student'])
  objective = gradient_units.weigh(setup, recipe, objective)
  jobs = [
    setup.job(
      f'{cell.student} {cell.objective} seed {cell.seed}',
      recipe,
      objective,
      cell.seed,
    )
    for cell in cells
  ]
  members = engine.fit(
    jobs,
    setup.feed(jobs[0]),
    folder,
    identities=[_fingerprint(setup, run) for run in runs],
  )
  seconds = (time.monotonic() - started) / len(cells)  # Of its training.
  left = [k for k, cell in enumerate(cells) if cell in todo]
  runs = [runs[k] for k in left]
  members = [members[k] for k in left]
  cost = {
    'seconds': seconds,
    'step_seconds': members[0].step_seconds,
    'stored_bytes': setup.stored_bytes(jobs[0]),
  }
  records = results.write(setup, members, runs, cost)
  for run, record in zip(runs, records, strict=True):
    results.finish(run.workdir, record)
  processes.barrier()
  files.remove_folder(folder)
  devices.forget_programs()
  return time.monotonic() - started


def _fingerprint(setup: Setup, run: results.Run) -> str:
  return identity.fingerprint(results.complete_identity(run.identity, setup))


def _begun(
  config: Any, setup: Setup, todo: Sequence[Cell], workdir: pathlib.Path
) -> list[int]:
  """The seeds of the group that trains these cells.

  Those of a killed table's group, where it has all of these, made from the
  same: its checkpoint is continued. Else the seeds of the cells.
  """
  folder = group_folder(workdir, todo)
  path = folder / 'group.json'
  own = {
    str(cell.seed): _fingerprint(setup, grid.run_of(config, cell, workdir))
    for cell in todo
  }
  if path.exists():
    there = files.read_json(path)
    if own.items() <= there.items():
      return [int(seed) for seed in there]
    files.remove_folder(folder / 'training')
  files.write_atomically(path, files.to_json(own))
  return [cell.seed for cell in todo]


def keep_similarities(
  config: Any, setup: Setup, rotation: grid.Rotation | None, workdir
) -> None:
  """Frame similarities of the same test clips: teacher and one student's runs.

  Of the first student and its first seed in a rotation; the report draws them.
  """
  table = config['table']
  runs = f'{table["students"][0]}, seed {table["first_seed"]}'
  if rotation:
    runs += f', {grid.describe(rotation)}'
  # Another process may have more runs by now: the last one draws them all.
  message = 'another process compares frames'
  of_teacher = plots.teacher_shown(setup)  # By all processes.
  with files.lock_for_all_processes(workdir / 'groups', message):
    if not processes.is_primary():
      return
    folders = _drawn(config, rotation, workdir)
    shown: dict[str, plots.Shown] = of_teacher | {
      name: teacher.load(folder, setup.dataset)
      for name, folder in folders.items()
    }
    if not shown:
      return
    panels = [
      dataclasses.replace(panel, runs=runs)
      for panel in plots.similarity_panels(setup.dataset, shown)
    ]
    content = similarity_plot.to_bytes(panels)
    files.write_atomically(workdir / PANELS, content)


def _drawn(config: Any, rotation, workdir) -> dict[str, pathlib.Path]:
  """By objective, the runs whose similarities are drawn, as far as ready."""
  table, found = config['table'], {}
  for name in table['objectives']:
    student = table['students'][0]
    cell = Cell(rotation, student, name, table['first_seed'])
    folder = grid.folder(workdir, cell)
    # Another shard may be writing it; one that diverged has no checkpoints.
    ready = grid.done(workdir, cell) and (folder / 'checkpoints').exists()
    own = grid.objective(config, student, name).terms
    if ready and _is_shown(own):
      found[name] = folder
  return found


def _is_shown(names: Sequence[str]) -> bool:
  """Whether similarities are drawn of an objective with these terms."""
  alone = len(names) == 1 and terms.TERMS[names[0]].compares_similarities
  return not names or alone


def _has_similarities(config: Any, rotation, workdir) -> bool:
  """Whether the panels that are kept lack no run: a killed table's may."""

  def ask():
    path = workdir / PANELS
    if not path.exists():
      return False
    panels = similarity_plot.read(path)
    drawn = _drawn(config, rotation, workdir)
    return {*drawn} <= {*panels[0].similarity}

  return processes.by_primary(ask)


def save_setup(
  config: Any, setup: Setup, rotation: grid.Rotation | None, workdir
) -> None:
  """Writes what the report needs of the data set and the teacher.

  Raises:
    ValueError: if the cells that are there have another teacher.
  """
  name = grid.describe(rotation)
  path = workdir / 'teachers' / f'{name or "teacher"}.json'
  message = 'another process scores the teacher'
  assert setup.teacher is not None
  with files.lock_for_all_processes(path.parent, message):
    if not processes.by_primary(lambda: _is_there(path, setup.teacher)):
      result, _ = results.measure_trained(
        setup, setup.teacher, config['bootstrap']
      )
      of = {'repetitiveness': repetitiveness(setup)}
      if processes.is_primary():
        of |= {
          'rotation': name,
          'dataset': setup.dataset.name,
          **{key: result[key] for key in _MODEL_FIELDS if key in result},
          **parts.scores_of(result),
        }
      files.write_atomically(path, files.to_json(of))
  metadata = {
    # Builders name data sets of other folds by other numbers.
    'dataset': config['dataset']['name'] if name else setup.dataset.name,
    'tags': list(setup.dataset.coarse),
    'environment': environment.collect(),
    'command': shlex.join(['python', *workers.command()]),
    'leads': config['table']['leads'],
  }
  parts.start(config, workdir, metadata)


def _is_there(path: pathlib.Path, own) -> bool:
  """Whether a file is of this teacher; raises ValueError for another's."""
  if not path.exists():
    return False
  there = files.read_json(path)
  for field, value in (
    ('fingerprint', own.fingerprint),
    ('weights', own.weights()),
  ):
    if value != there[field]:
      raise ValueError(
        f'{path} is of a teacher with the {field} {there[field]}, this command '
        f'has {value}: students of two teachers cannot be compared; expected '
        'the first one (see config.teacher.checkpoint), or another --workdir'
      )
  return True


_MODEL_FIELDS = (
  *('fingerprint', 'weights', 'parameters', 'macs', 'trained_in'),
  *('name', 'source', 'licence'),  # Of a teacher from elsewhere.
)


def report(paths: Sequence[pathlib.Path], place: pathlib.Path | None) -> None:
  """Writes tables and plots anew from the cells that are there.

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
      *table_plots.draw(found, place),
    ]:
      logs.log(f'Plot: {place / name}')
    logs.log(f'Table: {place}/table.md, table.csv, table.json; cells.json')


def _draw_similarities(paths, place, named) -> list[str]:
  """Of the parts that drew what the first one did; a `cells.json` has none.

  Shards have different objectives of one student's runs. Other students,
  seeds and rotations (whose clips may have the same names) are left out.
  """
  kept, runs = [], ''
  for path in paths:
    if not (path / PANELS).is_file():
      continue
    found = similarity_plot.read(path / PANELS)
    runs = runs or found[0].runs
    if found[0].runs == runs:
      kept.append(found)
    else:
      logs.log(
        f'similarities.png is of {runs}; left out: {found[0].runs} of {path}'
      )
  if not kept:
    return []
  panels = similarity_plot.merge(kept, ['teacher', *named])
  titles = {name: objective.title for name, objective in named.items()}
  path = place / 'similarities.png'
  similarity_plot.plot_similarities(panels, path, titles)
  return ['similarities.png']
