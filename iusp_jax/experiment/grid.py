"""The cells of a table: which they are, what each is made from, what is done.

A cell is a run: one student, one objective, one seed, one rotation of the
folds. Its folder is a run's workdir, less the plots.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.data import datasets
from iusp_jax.experiment import check, identity, results, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.objectives import terms
from iusp_jax.runtime import processes
from iusp_jax.training.recipe import Recipe

Rotation = tuple[int, int]

KINDS = ('weight', 'ratio')  # Of a term's share in an objective.


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

  def key(self) -> dict[str, Any]:
    """What tells it from other cells, as the report wants it."""
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
  seeds = range(table['first_seed'], table['first_seed'] + table['seeds'])
  return [
    [Cell(rotation, student, objective, seed) for seed in seeds]
    for rotation in rotations(config)
    for student in table['students']
    for objective in table['objectives']
  ]


def config_of(
  config: Any, rotation: Rotation | None, student: str = ''
) -> dict[str, Any]:
  """The plain config of a run of the table, without objective and seed."""
  own = identity.plain(config)
  table = own.pop('table')
  if rotation:
    validate_fold, test_fold = rotation
    own['dataset']['builder']['validate_fold'] = validate_fold
    own['dataset']['builder']['test_fold'] = test_fold
  if student:
    own['student']['model'] = table['models'][student]
    if rate := table['learning_rates'].get(student):
      own['student']['training']['learning_rate'] = rate
  return own


def with_weights(
  config: Mapping[str, Any], weights: Mapping[str, float]
) -> dict[str, Any]:
  """All fields of `config.objective`, with these weights (or ratios) alone.

  Schedules and settings that stand beside the weights count as well.
  """
  none = {f'{n}_{kind}': 0.0 for n in terms.TERMS for kind in KINDS}
  return dict(config['objective']) | none | dict(weights)


def is_weight(field: str) -> bool:
  """Whether a field of `config.objective` is a weight or a ratio."""
  return field.endswith(tuple(f'_{kind}' for kind in KINDS))


def objective(
  config: Mapping[str, Any], student: str, name: str
) -> terms.Objective:
  """One objective of a student."""
  weights = config['table']['weights'][student][name]
  return terms.Objective.from_config(with_weights(config, weights))


def run_of(
  config: Mapping[str, Any], cell: Cell, workdir: pathlib.Path
) -> results.Run:
  """Where a cell is kept, its config and identity as a run by itself."""
  own = config_of(config, cell.rotation, cell.student)
  weights = config['table']['weights'][cell.student][cell.objective]
  own |= {
    'name': cell.objective,
    'seed': cell.seed,
    'objective': with_weights(own, weights),
  }
  recipe = Recipe.from_config(own['student']).plain()
  of = identity.of_student(own, recipe, cell.seed)
  return results.Run(folder(workdir, cell), own, of)


def check_grid(config: Mapping[str, Any]) -> None:
  """Checks the grid before any work is done.

  Raises:
    ValueError: naming the field, the value and what is expected.
  """
  table = config['table']
  _check_names(table)
  num_samples = datasets.format_of(config['dataset']).num_samples
  for student in table['students']:
    for name in table['objectives']:
      own = config_of(config, None, student)
      recipe = Recipe.from_config(own['student'])
      check.check_recipe(recipe, objective(config, student, name), num_samples)
  _check_rotations(config)
  _check_ignored(config)
  for student in table['students']:
    for name in table['objectives']:
      found = objective(config, student, name)
      check.check_teacher_layers(config, found)
      check.check_augmentations(config, found)
  if table['first_seed'] < table['tune_seeds']:
    raise ValueError(
      f'config.table.first_seed is {table["first_seed"]}, within the '
      f'{table["tune_seeds"]} seeds of tuning: expected at least that many'
    )


def _check_names(table: Mapping[str, Any]) -> None:
  """Students and objectives are known, and named once."""
  _check_repeated('students', table['students'])
  _check_repeated('objectives', table['objectives'])
  for student in table['students']:
    known = [name for name in table['models'] if name in table['weights']]
    _check_known('students', student, known)
    for name in table['objectives']:
      _check_known('objectives', name, table['weights'][student])
  for name in table['leads']:
    _check_known('leads', name, table['objectives'])
  if table['leads'] and 'kd' not in table['objectives']:
    raise ValueError(
      f'config.table.leads is {table["leads"]}, which are compared with KD: '
      "expected 'kd' among config.table.objectives"
    )


def _check_repeated(field: str, values: Sequence[Any]) -> None:
  for value in values:
    if (count := sum(value == other for other in values)) > 1:
      raise ValueError(
        f'config.table.{field} has {value!r} {count} times: expected once'
      )


def _check_known(field: str, name: str, known) -> None:
  if name not in known:
    raise ValueError(
      f'config.table.{field} has {name!r}: expected some of {", ".join(known)}'
    )


def _check_rotations(config: Mapping[str, Any]) -> None:
  pairs = [tuple(pair) for pair in config['table']['rotations']]
  if pairs and 'test_fold' not in config['dataset']['builder']:
    raise ValueError(
      f'config.table.rotations is {pairs}, but {config["dataset"]["name"]} has '
      'no folds: expected ()'
    )
  _check_repeated('rotations', pairs)
  named = teacher.source(config)
  why = {
    'checkpoint': 'it was trained on the test fold of one of them',
    'outputs': 'their clips are others of the same names',
  }
  if len(pairs) > 1 and named in why:
    raise ValueError(
      f'config.teacher.{named} is {config["teacher"][named]!r} for the '
      f"rotations {pairs}: {why[named]}; expected '', for a teacher of each"
    )
  for pair in pairs:
    if pair[0] == pair[1]:
      raise ValueError(
        f'config.table.rotations has {pair}: expected pairs of two different '
        'folds, of validate and of test'
      )


def _check_ignored(config: Mapping[str, Any]) -> None:
  """Fields of a single run that a table sets itself: set, they did nothing."""
  run_by_run = '--mode=train'
  instead = {
    'seed': (0, 'config.table.first_seed'),
    'fit': ('student', run_by_run),
    'compare_with': ('', run_by_run),
    'keep_examples': (0, run_by_run),
    'train_baseline': (False, 'the objective baseline'),
  } | {
    f'objective.{term}_{kind}': (0.0, 'config.table.weights.STUDENT.OBJECTIVE')
    for term in terms.TERMS
    for kind in KINDS
  }
  own = identity.plain(config)
  fields = identity.flat(own)
  found = [
    f'config.{field} is {fields[field]!r}: expected {default!r}; use {other}'
    for field, (default, other) in instead.items()
    if fields[field] != default
  ]
  rate = own['student']['training']['learning_rate']
  if rate not in own['table']['learning_rates'].values():
    found.append(
      f'config.student.training.learning_rate is {rate:g}, of no student of '
      'the table: use config.table.learning_rates.STUDENT'
    )
  model, models = own['student']['model'], own['table']['models']
  if model not in models.values():
    found.append(
      f'config.student.model is {model}, no model of the table: use '
      'config.table.models.STUDENT'
    )
  if found:
    raise ValueError('a table does not look at ' + '; '.join(found))


def check_dataset(config: Mapping[str, Any], dataset: datasets.Dataset) -> None:
  """Checks grid and data before a teacher is trained.

  Raises:
    ValueError: naming the data set, and what is expected.
  """
  for split in ('train', 'validate', 'test'):
    if split not in dataset.splits:
      raise ValueError(
        f'{dataset.name} has no split {split!r} (but '
        f'{", ".join(dataset.splits)}): a table is scored on test, at the '
        'epoch that is best on validate'
      )
  if without := datasets.without_labels(dataset):
    raise ValueError(
      f'{dataset.name} has no labels in {" and ".join(without)}: a table and '
      'tuning compare scores by labels; expected --mode=train'
    )
  check.check_batches(config, dataset, distils=True)


def untuned(config: Mapping[str, Any]) -> list[str]:
  """Objectives whose ratios are defaults that nobody tuned."""
  table = config['table']
  return [
    name
    for name in table['objectives']
    if objective(config, table['students'][0], name).terms
    and name not in table['tuned']
  ]


def check_cells(
  runs: Sequence[results.Run], setup: Setup | None = None
) -> None:
  """Refuses to mix cells that are there with others of the same name.

  Args:
    runs: the cells of the grid.
    setup: their data and teacher; None before these are there.

  Raises:
    ValueError: naming the cell and the fields in which it differs.
  """
  for run in runs:
    record = processes.by_primary(
      lambda run=run: results.read_if_whole(run.workdir)
    )
    if record is None:
      continue
    if setup is None:
      there, now = _of_config(record, run), run.identity
    else:
      there = record['identity']
      now = results.complete_identity(run.identity, setup)
    if differing := identity.differences(there, now):
      raise ValueError(
        f'{run.workdir} holds a finished run that was made otherwise: '
        f'{"; ".join(differing)}. Choose another --workdir, or delete that '
        'folder to run it again'
      )


def _of_config(record: Mapping[str, Any], run: results.Run) -> dict[str, Any]:
  """The part of a finished run's identity that follows from its config."""
  try:
    config = record['config']
    recipe = record['identity']['student']
    return identity.of_student(config, recipe, record['seed'])
  except KeyError as error:
    raise ValueError(
      f'{results.path_of(run.workdir)} is of another version of this program '
      f'(it has no {error}): choose another --workdir, or delete it'
    ) from error


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
  """Whether a cell has its record; one that is cut short is none."""
  return results.read_if_whole(folder(workdir, cell)) is not None
