"""The cells of a table: which they are, what each leaves, what is left to do.

A cell is a run: one student, one objective, one seed, one rotation of the
folds. Its folder is a run's workdir, as `run.py --mode=train` leaves one, less
the pictures, and `cell.json`, which is written last: what the report reads.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
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
  return with_weights(config, config['table']['weights'][student][name])


def with_weights(
  config: Mapping[str, Any], weights: Mapping[str, float]
) -> dict[str, float]:
  """All fields of `config.objective`, with these weights and no others."""
  none = {f'{term}_weight': 0.0 for term in step.DISTILLATION_TERMS}
  return dict(config['objective']) | none | dict(weights)


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
  if config['teacher']['store'] == 'off':
    raise ValueError(
      "config.teacher.store is 'off': a table needs the stored outputs of the "
      "teacher; expected 'auto', 'float32' or 'float16'"
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
  cells = [
    cell.facts() | {'name': cell.name}
    for group in groups(config)
    for cell in group
  ]
  text = logs.to_json({**facts, 'cells': cells})
  logs.write_atomically(workdir / 'grid.json', text)


def collect(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
  """One table of several parts, for the report.

  Args:
    paths: workdirs of tables or shards, or the `cells.json` of earlier
      reports; where two have the same cell, the later one counts.

  Returns:
    What `tables.write` wants; cells that no part has are 'missing'. `command`
    has a line for every part's; a field of `environment` in which parts differ
    lists what they have.

  Raises:
    ValueError: if a path holds no table, or the parts do not belong together.
  """
  table: dict[str, Any] = {}
  commands: dict[str, None] = {}
  environments: dict[str, list] = {}
  cells: dict[tuple, dict] = {}
  teachers: dict[str, dict] = {}
  for path in paths:
    part = _read_part(path)
    for field in ('dataset', 'tags'):
      if table and part[field] != table[field]:
        raise ValueError(
          f'{path} has {field} {part[field]}, {paths[0]} has {table[field]}: '
          'expected parts of one table'
        )
    commands |= dict.fromkeys(part['command'].splitlines())
    for name, value in part['environment'].items():
      values = environments.setdefault(name, [])
      values += [v for v in _listed(value) if v not in values]
    for facts in part['teachers']:
      known = teachers.setdefault(facts['rotation'], facts)
      if known['fingerprint'] != facts['fingerprint']:
        raise ValueError(
          f'{path} has the teacher {facts["fingerprint"]}, {paths[0]} has '
          f'{known["fingerprint"]}: their students cannot be compared'
        )
    for cell in part['cells']:
      key = _key(cell)
      if cell['status'] != 'missing' or key not in cells:
        cells[key] = cell
    table = table or part
  means = [facts['repetitiveness'] for facts in teachers.values()]
  return table | {
    'command': '\n'.join(commands),
    'environment': {
      name: values[0] if len(values) == 1 else values
      for name, values in environments.items()
    },
    'cells': list(cells.values()),
    'teachers': list(teachers.values()),
    'repetitiveness': {
      tag: sum(mean[tag] for mean in means) / len(means)
      for tag in (means[0] if means else {})
    },
  }


def _listed(value) -> list:
  return value if isinstance(value, list) else [value]


def _read_part(path: pathlib.Path) -> dict[str, Any]:
  """A workdir, or a file of cells, as `collect` gives it."""
  if path.is_file():
    return json.loads(path.read_text())
  if not (path / 'grid.json').is_file():
    raise ValueError(
      f'{path} holds no table: expected a --workdir of --mode=table with its '
      'grid.json and cells, or the cells.json of a report'
    )
  part = json.loads((path / 'grid.json').read_text())
  missing = {'status': 'missing', 'reason': 'not run yet'}
  for number, facts in enumerate(part['cells']):
    record = path / 'cells' / facts.pop('name') / 'cell.json'
    found = json.loads(record.read_text()) if record.exists() else missing
    part['cells'][number] = facts | found
  part['teachers'] = [
    json.loads(file.read_text())
    for file in sorted(path.glob('teachers/*.json'))
  ]
  return part


def _key(record: Mapping[str, Any]):
  return tuple(
    record[name] for name in ('rotation', 'student', 'objective', 'seed')
  )
