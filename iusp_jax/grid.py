"""The cells of a table: which they are, what each leaves, what is left to do.

A cell is a run: one student, one objective, one seed, one rotation of the
folds. Its folder is a run's workdir, as `run.py --mode=train` leaves one, less
the pictures, and `cell.json`, which is written last: what the report reads.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from iusp_jax import logs, step, teacher

Rotation = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a table.

  Attributes:
    rotation: folds of validate and test; None for fixed splits.
    student: name of its model in `config.table.models`.
    objective: name of its weights in `config.table.weights`.
    seed: of the student.
  """

  rotation: Rotation | None
  student: str
  objective: str
  seed: int

  @property
  def name(self) -> str:
    """Of its folder."""
    parts = [self.student, self.objective, f'seed{self.seed}']
    if self.rotation:
      parts = ['folds{}-{}'.format(*self.rotation), *parts]
    return '-'.join(parts)

  def facts(self) -> dict[str, Any]:
    """As the report wants it."""
    return dataclasses.asdict(self) | {'rotation': describe(self.rotation)}


def describe(rotation: Rotation | None) -> str:
  """A rotation in words; empty for fixed splits."""
  return 'validate {}, test {}'.format(*rotation) if rotation else ''


def rotations(config: Mapping[str, Any]) -> Sequence[Rotation | None]:
  """The rotations of a table; a single None where the splits are fixed."""
  return [tuple(pair) for pair in config['table']['rotations']] or [None]


def groups(config: Mapping[str, Any]) -> list[list[Cell]]:
  """The cells of a table; those that one program trains stand together."""
  table = config['table']
  first = table['first_seed']
  return [
    [Cell(rotation, student, objective, seed) for seed in seeds]
    for rotation in rotations(config)
    for student in table['students']
    for objective in table['objectives']
    for seeds in [range(first, first + table['seeds'])]
  ]


def config_of(
  config: Any, rotation: Rotation | None, student: str = ''
) -> dict[str, Any]:
  """The config of a run of the table, without objective and seed."""
  own = teacher.plain(config)
  models = own.pop('table')['models']
  if rotation:
    validate_fold, test_fold = rotation
    own['dataset']['builder']['validate_fold'] = validate_fold
    own['dataset']['builder']['test_fold'] = test_fold
  if student:
    own['student']['model'] = models[student]
  return own


def objective(
  config: Mapping[str, Any], student: str, name: str
) -> dict[str, float]:
  """All fields of `config.objective` for one objective of a student."""
  fields = {f'{term}_weight': 0.0 for term in step.DISTILLATION_TERMS}
  weights = config['table']['weights'][student][name]
  return dict(config['objective']) | fields | dict(weights)


def check(config: Mapping[str, Any]) -> None:
  """Facts about the grid, before any work is done.

  Raises:
    ValueError: naming the field, the value and what is expected.
  """
  table = config['table']
  legal = {
    'students': table['models'],
    'objectives': next(iter(table['weights'].values())),
  }
  for field, known in legal.items():
    for name in table[field]:
      if name not in known:
        raise ValueError(
          f'config.table.{field} has {name!r}: expected some of '
          f'{", ".join(known)}'
        )
  for field in ('seeds', 'tune_seeds'):
    if table[field] < 1:
      raise ValueError(f'config.table.{field} is {table[field]}: expected >= 1')
  if table['first_seed'] < table['tune_seeds']:
    raise ValueError(
      f'config.table.first_seed is {table["first_seed"]}, within the '
      f'{table["tune_seeds"]} seeds of tuning: expected at least that many'
    )
  if table['rotations'] and 'test_fold' not in config['dataset']['builder']:
    raise ValueError(
      f'config.table.rotations is {table["rotations"]}, but '
      f'{config["dataset"]["name"]} has no folds: expected ()'
    )


def parse_shard(text: str) -> tuple[int, int]:
  """'i/n' as numbers; an empty text is '0/1'.

  Raises:
    ValueError: for anything else.
  """
  number, _, count = (text or '0/1').partition('/')
  if not number.isdigit() or not count.isdigit() or int(number) >= int(count):
    raise ValueError(
      f'--shard is {text!r}: expected i/n with i from 0 to n - 1, such as 0/2'
    )
  return int(number), int(count)


def folder(workdir: pathlib.Path, cell: Cell) -> pathlib.Path:
  """Where a cell is kept."""
  return workdir / 'cells' / cell.name


def done(workdir: pathlib.Path, cell: Cell) -> bool:
  """Whether a cell has its record."""
  return (folder(workdir, cell) / 'cell.json').exists()


def start(
  config: Mapping[str, Any], workdir: pathlib.Path, facts: Mapping[str, Any]
) -> None:
  """Writes `grid.json`: what the report needs beside the cells."""
  cells = [cell.facts() for group in groups(config) for cell in group]
  text = logs.to_json({**facts, 'cells': cells})
  logs.write_atomically(workdir / 'grid.json', text)


def collect(folders: Iterable[pathlib.Path]) -> dict[str, Any]:
  """The table of one or several folders (of shards), for the report.

  Raises:
    ValueError: if a folder holds no table, or tables of different grids.
  """
  table: dict[str, Any] = {}
  records, teachers, repetitiveness = {}, {}, []
  for path in folders:
    if not (path / 'grid.json').is_file():
      raise ValueError(
        f'{path} holds no table: expected a --workdir of --mode=table, with '
        'grid.json and cells'
      )
    grid = json.loads((path / 'grid.json').read_text())
    if table and grid['cells'] != table['cells']:
      raise ValueError(
        f'{path} holds another grid than the folders before it: expected '
        'shards of one table'
      )
    table = table or grid
    for file in sorted(path.glob('teachers/*.json')):
      facts = json.loads(file.read_text())
      if facts['rotation'] not in teachers:
        repetitiveness.append(facts.pop('repetitiveness'))
        teachers[facts['rotation']] = facts
    for file in sorted(path.glob('cells/*/cell.json')):
      record = json.loads(file.read_text())
      records[_key(record)] = record
  missing = {'status': 'missing', 'reason': 'not run yet'}
  table['cells'] = [
    records.get(_key(cell), cell | missing) for cell in table['cells']
  ]
  table['teachers'] = list(teachers.values())
  table['repetitiveness'] = {
    tag: sum(part[tag] for part in repetitiveness) / len(repetitiveness)
    for tag in (repetitiveness[0] if repetitiveness else {})
  }
  return table


def _key(record: Mapping[str, Any]):
  return tuple(
    record[name] for name in ('rotation', 'student', 'objective', 'seed')
  )
