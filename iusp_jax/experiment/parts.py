"""The parts of a table joined into one: of shards, and of earlier reports."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from iusp_jax.experiment import grid, identity, results
from iusp_jax.runtime import files


def start(
  config: Mapping[str, Any], workdir: pathlib.Path, metadata: Mapping[str, Any]
) -> None:
  """Writes `grid.json`: what the report needs beside the cells.

  Cells, command and environment join those of shards and earlier commands.
  """
  cells = [
    cell.key() | {'name': cell.name}
    for group in grid.groups(config)
    for cell in group
  ]
  path = workdir / 'grid.json'
  with files.lock_for_all_processes(workdir, 'another process uses this table'):
    earlier = [files.read_json(path)] if path.exists() else []
    kept = [cell for part in earlier for cell in part['cells']]
    joined = {
      **metadata,
      **_origin([*earlier, metadata]),
      'recipe': recipe(config),
      'cells': kept + [cell for cell in cells if cell not in kept],
    }
    files.write_atomically(path, files.to_json(joined))


def load(path: pathlib.Path) -> dict[str, Any]:
  """What a part of a table says of itself: its grid.json, or a cells.json.

  Raises:
    ValueError: where the path is no part of a table.
  """
  expected = (
    'expected a --workdir of --mode=table with its grid.json and cells, or the '
    'cells.json of a report'
  )
  if not path.exists():
    raise ValueError(f'{path} is not there: {expected}')
  fields = ['dataset', 'tags', 'command', 'environment', 'cells']
  file = path
  if path.is_dir():
    file = path / 'grid.json'
    if not file.is_file():
      raise ValueError(f'{path} holds no table: {expected}')
  else:
    fields.append('teachers')
  try:
    found = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f'{file} is no JSON ({error}): {expected}') from error
  lacking = [
    name for name in fields if not isinstance(found, dict) or name not in found
  ]
  if lacking:
    raise ValueError(f'{file} has no {", ".join(lacking)}: {expected}')
  return found


def collect(paths: Sequence[pathlib.Path]) -> dict[str, Any]:
  """One table of several parts, for the report.

  Args:
    paths: workdirs of tables or shards, or the `cells.json` of earlier
      reports; where two have the same cell, the later one counts.

  Returns:
    What `tables.write` wants; cells that no part has are 'missing'. `command`
    has a line for every part's; a field of `environment` in which parts differ
    lists what they have. `recipe` is what `recipe` gives, as far as parts have
    it: those of older versions do not.

  Raises:
    ValueError: if a path holds no table, or the parts do not belong together.
  """
  table: dict[str, Any] = {}
  found = [_read_part(path) for path in paths]
  recipes: dict[str, Any] = {}
  cells: dict[tuple, dict] = {}
  teachers: dict[str, dict] = {}
  models: dict[str, dict] = {}
  for path, part in zip(paths, found, strict=True):
    for field in ('dataset', 'tags'):
      if table and part[field] != table[field]:
        raise ValueError(
          f'{path} has {field} {part[field]}, {paths[0]} has {table[field]}: '
          'expected parts of one table'
        )
    _check_same_recipe(path, part.get('recipe') or {}, recipes)
    recipes |= part.get('recipe') or {}
    for found_teacher in part['teachers']:
      rotation = found_teacher['rotation']
      first = teachers.setdefault(rotation, found_teacher)
      _check_same_teacher(path, found_teacher, first)
    for cell in part['cells']:
      key = _key(cell)
      if cell['status'] != 'missing' or key not in cells:
        _check_same_weights(path, cell, cells.get(key, {}))
        _check_same_model(path, cell, models)
        cells[key] = cell
    table = table or part
  means = [of['repetitiveness'] for of in teachers.values()]
  return table | {
    **_origin(found),
    'recipe': recipes,
    'cells': list(cells.values()),
    'teachers': list(teachers.values()),
    'repetitiveness': {
      tag: _mean(mean[tag] for mean in means)
      for tag in (means[0] if means else {})
    },
  }


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
  """What cells depend on beside their names, weights, teacher and data set.

  Args:
    config: of a table.

  Returns:
    Fields of the config by their dotted names.
  """
  own = identity.plain(config)
  of = {
    'dataset': identity.of_data(own),
    'student': {
      name: own['student'][name] for name in ('frontend', 'training', 'augment')
    },
    'objective': {
      name: value
      for name, value in own['objective'].items()
      if not name.endswith(('_weight', '_ratio'))
    },
    'teacher': {'store': identity.of_teacher(own)['store']},
  }
  folds = ('dataset.builder.validate_fold', 'dataset.builder.test_fold')
  found = identity.fields(of)
  return {name: found[name] for name in found.keys() - {*folds}}


def _check_same_recipe(path, own, first) -> None:
  """Raises ValueError naming the fields.

  One that a part of an older version lacks is no other; one of
  `identity.NEUTRAL` is left out where it has its default.
  """
  if not (own and first):
    return
  own, first = identity.fields(own), identity.fields(first)
  names = (own.keys() & first.keys()) | {
    name for name in own.keys() ^ first.keys() if identity.came_later(name)
  }
  differing = [
    f'config.{name} {own.get(name, "default")}, not '
    f'{first.get(name, "default")}'
    for name in sorted(names)
    if own.get(name) != first.get(name)
  ]
  if differing:
    raise ValueError(
      f'the students of {path} have {"; ".join(differing)} as those of the '
      'parts before it: expected parts of one table; report them apart'
    )


def _check_same_teacher(path, own, first) -> None:
  """Raises ValueError for another teacher or other data of a rotation.

  An older part does not say which arrays and which data.
  """
  for field, what in (
    ('fingerprint', 'teacher'),
    ('weights', 'trained arrays of the teacher'),
    ('dataset', 'data set'),
  ):
    if field in own and own[field] != first.get(field, own[field]):
      raise ValueError(
        f'{path} has the {what} {own[field]}, a part before it '
        f'{first[field]}: their students cannot be compared; machines that '
        'share a table need the same config.cache_dir/teachers'
      )


def _check_same_model(path, cell, models) -> None:
  """Raises ValueError where two students are of one name only."""
  fields = ('model', 'parameters', 'macs')
  own = {name: cell[name] for name in fields if name in cell}
  first = models.setdefault(cell['student'], {})
  for name in own.keys() & first.keys():
    if own[name] != first[name]:
      raise ValueError(
        f'{path} has a {cell["student"]} with {name} {own[name]}, a part '
        f'before it with {first[name]}: expected one student of a name; '
        'report the parts apart'
      )
  first |= own


def _check_same_weights(path, cell, first) -> None:
  """Raises ValueError where two finished cells are of one name only."""
  both = all(one.get('status') == 'done' for one in (cell, first))
  own, earlier = cell.get('weights'), first.get('weights')
  if both and None not in (own, earlier) and own != earlier:
    raise ValueError(
      f'{path} has {cell["student"]} {cell["objective"]} seed {cell["seed"]} '
      f'with the weights {own}, a part before it with {earlier}: expected one '
      'run of a cell; report the parts apart'
    )


def _mean(values) -> float | None:
  """Of the numbers among them; None where there are none."""
  found = [value for value in values if value is not None]
  return sum(found) / len(found) if found else None


def _origin(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Command and environment of several parts together, see `collect`."""
  commands: dict[str, None] = {}
  environments: dict[str, list] = {}
  for part in parts:
    commands |= dict.fromkeys(part['command'].splitlines())
    for name, value in part['environment'].items():
      values = environments.setdefault(name, [])
      values += [v for v in _listed(value) if v not in values]
  return {
    'command': '\n'.join(commands),
    'environment': {
      name: values[0] if len(values) == 1 else values
      for name, values in environments.items()
    },
  }


def _listed(value) -> list:
  return value if isinstance(value, list) else [value]


def _read_part(path: pathlib.Path) -> dict[str, Any]:
  """A workdir, or a file of cells, as `collect` gives it."""
  part = load(path)
  if path.is_file():
    return part
  for number, key in enumerate(part['cells']):
    name = key.pop('name')
    record = results.read_if_whole(path / 'cells' / name)
    part['cells'][number] = key | _cell(record)
  part['teachers'] = [
    files.read_json(file) for file in sorted(path.glob('teachers/*.json'))
  ]
  return part


def _cell(record: Mapping[str, Any] | None) -> dict[str, Any]:
  """What the report wants of a cell's record."""
  if record is None:
    return {'status': 'missing', 'reason': 'not run yet'}
  names = ('weights', 'frame_distance', 'seconds', 'status', 'reason', 'curve')
  found = {name: record[name] for name in names}
  # Records of earlier runs lack these.
  later = ('ratios', 'clipped_share', 'stored_bytes', 'step_seconds')
  found |= {name: record[name] for name in later if name in record}
  found['model'] = record['identity']['student']['model']
  if record['status'] == 'diverged':
    return found
  student = record['student']
  return found | {
    **{name: student[name] for name in ('parameters', 'macs')},
    **scores_of(student),
    'last_test_micro_auprc': student['last']['test']['coarse']['micro_auprc'],
    'resampled': record['resampled'],
  }


_SCORES = ('micro_auprc', 'macro_auprc', 'map', 'lwlrap', 'class_auprc')


def scores_of(model: Mapping[str, Any]) -> dict[str, Any]:
  """What the report wants of the scores of a model in a record.

  A tag without a clip that has it has no AUPRC: None.
  """
  found = {}
  for split, scores in model['best'].items():
    coarse = scores['coarse']
    found[split] = {name: coarse[name] for name in _SCORES}
    found[split]['class_auprc'] = [
      None if k in coarse['undefined'] else value
      for k, value in enumerate(coarse['class_auprc'])
    ]
  return found


def _key(record: Mapping[str, Any]):
  return tuple(
    record[name] for name in ('rotation', 'student', 'objective', 'seed')
  )
