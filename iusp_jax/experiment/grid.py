"""The cells of a table: which they are, what each leaves, what is left to do.

A cell is a run: one student, one objective, one seed, one rotation of the
folds. Its folder is a run's workdir, as `run.py --mode=train` leaves one, less
the pictures, and `cell.json`, which is written last: what the report reads.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.data import datasets, store
from iusp_jax.experiment import experiment, teacher
from iusp_jax.runtime import files
from iusp_jax.training import accumulate, step

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


def terms(
  config: Mapping[str, Any], student: str, name: str
) -> tuple[str, ...]:
  """The distillation terms of one objective of a student."""
  weights = objective(config, student, name)
  return tuple(
    term for term in step.DISTILLATION_TERMS if weights[f'{term}_weight']
  )


def check(config: Mapping[str, Any]) -> None:
  """Facts about the grid, before any work is done.

  Raises:
    ValueError: naming the field, the value and what is expected.
  """
  table = config['table']
  _check_names(table)
  for student in table['students']:
    for name in table['objectives']:
      _check_weights(student, name, table['weights'][student][name])
      accumulate.check(
        config['student']['training'], terms(config, student, name)
      )
  _check_rotations(config)
  _refuse_ignored(config)
  for field in ('seeds', 'tune_seeds'):
    if table[field] < 1:
      raise ValueError(f'config.table.{field} is {table[field]}: expected >= 1')
  ratios = table['tune_ratios']
  if not ratios or not all(0 < ratio < float('inf') for ratio in ratios):
    raise ValueError(
      f'config.table.tune_ratios is {ratios}: expected finite numbers > 0, at '
      'least one'
    )
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
  if reason := store.obstacle(config, num_clips=0):
    raise ValueError(
      'a table needs the stored outputs of the teacher, which cannot be: '
      f'{reason}. Switch that off, or distil run by run with --mode=train'
    )


def _check_names(table: Mapping[str, Any]) -> None:
  """Students and objectives are known, and named once."""
  _refuse_repeated('students', table['students'])
  _refuse_repeated('objectives', table['objectives'])
  for student in table['students']:
    known = [name for name in table['models'] if name in table['weights']]
    _refuse_unknown('students', student, known)
    for name in table['objectives']:
      _refuse_unknown('objectives', name, table['weights'][student])


def _refuse_repeated(field: str, values: Sequence[Any]) -> None:
  for value in values:
    if (count := sum(value == other for other in values)) > 1:
      raise ValueError(
        f'config.table.{field} has {value!r} {count} times: expected once'
      )


def _refuse_unknown(field: str, name: str, known) -> None:
  if name not in known:
    raise ValueError(
      f'config.table.{field} has {name!r}: expected some of {", ".join(known)}'
    )


def _check_weights(student: str, name: str, weights: Mapping[str, Any]) -> None:
  legal = [f'{term}_weight' for term in step.DISTILLATION_TERMS]
  for field, value in weights.items():
    place = f'config.table.weights.{student}.{name}'
    if field not in legal:
      raise ValueError(
        f'{place} has {field!r}: expected some of {", ".join(legal)}'
      )
    if not 0 <= value < float('inf'):
      raise ValueError(
        f'{place}.{field} is {value}: expected a finite number >= 0'
      )


def _check_rotations(config: Mapping[str, Any]) -> None:
  pairs = [tuple(pair) for pair in config['table']['rotations']]
  if pairs and 'test_fold' not in config['dataset']['builder']:
    raise ValueError(
      f'config.table.rotations is {pairs}, but {config["dataset"]["name"]} has '
      'no folds: expected ()'
    )
  _refuse_repeated('rotations', pairs)
  if len(pairs) > 1 and config['teacher']['checkpoint']:
    raise ValueError(
      f'config.teacher.checkpoint is {config["teacher"]["checkpoint"]!r} for '
      f'the rotations {pairs}: it has heard the test fold of one of them in '
      "training; expected '', for a teacher of each"
    )
  for pair in pairs:
    if len(pair) != 2 or pair[0] == pair[1]:
      raise ValueError(
        f'config.table.rotations has {pair}: expected pairs of two different '
        'folds, of validate and of test'
      )


def _refuse_ignored(config: Mapping[str, Any]) -> None:
  """Fields of a single run that a table sets itself: set, they did nothing."""
  run_by_run = '--mode=train'
  instead = {
    'seed': (0, 'config.table.first_seed'),
    'fit': ('student', run_by_run),
    'compare_with': ('', run_by_run),
  } | {
    f'objective.{term}_weight': (0.0, 'config.table.weights.STUDENT.OBJECTIVE')
    for term in step.DISTILLATION_TERMS
  }
  own = teacher.plain(config)
  fields = experiment.flat(own)
  found = [
    f'config.{field} is {fields[field]!r}: expected {default!r}; use {other}'
    for field, (default, other) in instead.items()
    if fields[field] != default
  ]
  model, models = own['student']['model'], own['table']['models']
  if model not in models.values():
    found.append(
      f'config.student.model is {model}, no model of the table: use '
      'config.table.models.STUDENT'
    )
  if found:
    raise ValueError('a table does not look at ' + '; '.join(found))


def check_dataset(config: Mapping[str, Any], dataset: datasets.Dataset) -> None:
  """Facts about grid and data, before a teacher is trained.

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
  size = len(dataset.splits['train'])
  batch_size = config['student']['training']['batch_size']
  if batch_size > size:
    raise ValueError(
      f'config.student.training.batch_size is {batch_size}, but the train '
      f'split of {dataset.name} has {size} clips: expected at most that many'
    )
  for name in ('train', 'test'):
    count = len(dataset.splits[name])
    if reason := store.obstacle(config, count):
      raise ValueError(
        f'the {name} split of {dataset.name}: a table stores the outputs of '
        f'the teacher, and {reason}. Distil run by run with --mode=train, '
        'which does without'
      )


def untuned(config: Mapping[str, Any]) -> list[str]:
  """Students and objectives whose weights are defaults that nobody tuned."""
  table = config['table']
  return [
    f'{student} {name}'
    for student in table['students']
    for name in table['objectives']
    if terms(config, student, name)
    and name not in table['tuned'].get(student, ())
  ]


def keep_config(
  config: Mapping[str, Any], workdir: pathlib.Path, free: Sequence[str] = ()
) -> None:
  """Writes down the config of a table; refuses to mix it with another.

  Args:
    config: of the table.
    workdir: of the table.
    free: dotted names of fields in which an earlier one may differ.

  Raises:
    ValueError: if the workdir holds results of another config.
  """
  own = teacher.plain(config)
  own['table'].pop('tuned')  # Only said: the weights themselves are compared.
  with files.lock(workdir, 'another process looks at this folder'):
    experiment.refuse_other_config(own, workdir, free)
    files.write_atomically(experiment.config_path(workdir), files.to_json(own))


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
