"""Writes the pages of the reference that follow from the code.

  python docs/reference/generate.py

`config.md` has every field of configs/base.py and configs/table.py with its
default, its legal values and the comment that stands beside it there,
`flags.md` the flags of run.py. tests/docs_test.py holds the committed pages
against the code.
"""

import dataclasses
import inspect
import pathlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from absl import flags  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from configs import base, table  # noqa: E402
from iusp_jax import command_line, models  # noqa: E402
from iusp_jax.experiment import fields  # noqa: E402
from iusp_jax.objectives import terms  # noqa: E402

_HEAD = (
  '<!-- Written by `python docs/reference/generate.py`; edit the code. -->\n'
)


def pages() -> dict[str, str]:
  """The text of every generated page, by its name in this folder."""
  return {'config.md': config_page(), 'flags.md': flags_page()}


def comments(function: Callable) -> dict[str, str]:
  """What a function says of the fields of `config` that it sets.

  The comment at the end of the line of a field's first assignment, after those
  on the lines above it.
  """
  found: dict[str, str] = {}
  above: list[str] = []
  for line in inspect.getsource(function).splitlines():
    if match := re.match(r'\s*# (.*)', line):
      above.append(match[1])
      continue
    if match := re.match(r'\s*config\.([\w.]+) = .*?(?:  # (.*))?$', line):
      text = ' '.join([*above, match[2] or ''])
      found.setdefault(match[1], text.strip())
    above = []
  return found


def leaves(config: Any, prefix: str = '') -> Iterator[tuple[str, Any]]:
  """Fields that are no section, by their dotted names."""
  for name in config:
    if isinstance(config[name], ConfigDict):
      yield from leaves(config[name], f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}', config[name]


def grid(columns: list[str], rows: list[list[str]]) -> str:
  """A table in markdown."""
  lines = [columns, ['---'] * len(columns), *rows]
  escaped = [[_escaped(cell) for cell in line] for line in lines]
  return ''.join(f'| {" | ".join(line)} |\n' for line in escaped)


def _escaped(cell: str) -> str:
  cell = cell.replace('|', r'\|')
  return cell if '`' in cell else cell.replace('<', r'\<')


def code(value: Any) -> str:
  """A value as it is typed."""
  return f'`{value!r}`'


def legal(field: str) -> str:
  """The values that a field may have, in words."""
  return str(fields.range_of(field) or '')


def config_page() -> str:
  """All fields of a config."""
  config: Any = base.get_config('')
  of_run = comments(base.get_config)
  own = [
    [f'`{name}`', code(value), legal(name), of_run[name]]
    for name, value in leaves(config)
    if '.' not in name
  ]
  parts = [
    _HEAD + '# Config fields',
    'A field is set on the command line by `--config.FIELD=VALUE`, such as '
    '`--config.student.training.epochs=40`. Defaults are those of '
    '`configs/base.py` for the data set `urban_scenes`; other configs, data '
    'sets and arguments change some of them. An unknown field or value ends '
    'the command before any work, with what is expected.',
    '## Arguments after the colon\n\n```' + _arguments() + '```',
    '## The run\n\n' + grid(['field', 'default', 'legal', ''], own),
    '## `dataset`\n\n' + _dataset(),
    '## `student` and `teacher`\n\n' + _recipes(config),
    '## `student.model` and `teacher.model`\n\n' + _models(),
    '## `objective`\n\n' + _objective(),
    '## `table` (`configs/table.py`)\n\n' + _table(),
  ]
  return '\n\n'.join(part.strip() for part in parts) + '\n'


def _arguments() -> str:
  """From the docstring of configs/base.py."""
  text = inspect.getdoc(base) or ''
  start = text.index('  --config=')
  return '\n' + text[start : text.index('\n\nAs it stands')] + '\n'


def _dataset() -> str:
  found: dict[str, list[str]] = {}
  said = comments(base.dataset)
  for argument, name in base.DATASETS.items():
    for field, value in leaves(base.dataset(name)):
      row = found.setdefault(field, [code(value), ''])
      if field.startswith('builder.'):
        row[1] += f', `{argument}`' if row[1] else f'`{argument}`'
  rows = [
    [
      f'`dataset.{field}`',
      default,
      legal(f'dataset.{field}'),
      said[field] + (f' Of {of}.' if of else ''),
    ]
    for field, (default, of) in found.items()
  ]
  return grid(['field', 'default', 'legal', ''], rows)


def _recipes(config) -> str:
  of_recipe, of_teacher = comments(base.recipe), comments(base.teacher)
  student, teacher = dict(leaves(config.student)), dict(leaves(config.teacher))
  both = [name for name in student if not name.startswith('model.')]
  shared = [
    [
      f'`{name}`',
      code(student[name]),
      code(teacher[name]),
      legal(f'student.{name}'),
      of_recipe[name],
    ]
    for name in both
  ]
  alone = [
    [
      f'`teacher.{name}`',
      code(value),
      legal(f'teacher.{name}'),
      of_teacher[name],
    ]
    for name, value in teacher.items()
    if '.' not in name
  ]
  return '\n'.join(
    [
      'All of these fields are below `student` and below `teacher`:\n',
      grid(['field', 'student', 'teacher', 'legal', ''], shared),
      grid(['field', 'default', 'legal', ''], alone),
      *_other_defaults(teacher),
    ]
  )


def _other_defaults(teacher: Mapping[str, Any]) -> Iterator[str]:
  """Of data sets whose teacher is another one."""
  for argument in base.DATASETS:
    other = dict(leaves(base.get_config(argument).teacher))
    found = [
      f'`teacher.{name}` {code(value)}'
      for name, value in other.items()
      if value != teacher[name]
    ]
    if found:
      yield f'With `:{argument}`: {", ".join(found)}.\n'


def _models() -> str:
  names = ', '.join(
    f'`{name}` ({", ".join(f"{k}={v!r}" for k, v in fields.items())})'
    for name, fields in base.STUDENTS.items()
  )
  parts = [
    f'`student=NAME` after the colon sets these fields of `student.model`: '
    f'{names}. `--config.teacher.model.FIELD` and `--config.student.model.'
    'FIELD` change those that are set; a config of your own may set others.\n'
  ]
  for name, module in models.ARCHITECTURES.items():
    said = _attributes(module)
    rows = [
      [f'`{field.name}`', _default(field.default), said[field.name]]
      for field in dataclasses.fields(module)
      if field.name in said
      and field.name not in ('num_tags', 'axis_name', 'dtype')
    ]
    parts += [f"`architecture='{name}'`:\n", grid(['field', '', ''], rows)]
  return '\n'.join(parts)


def _default(value: Any) -> str:
  return code(value) if isinstance(value, int | float | str) else ''


def _attributes(module: type) -> Mapping[str, str]:
  """What the docstring of a module says of its fields."""
  text = (inspect.getdoc(module) or '').partition('Attributes:\n')[2]
  found = re.findall(r'^  (\w+): (.*(?:\n    .*)*)', text, re.MULTILINE)
  return {name: ' '.join(said.split()) for name, said in found}


def _objective() -> str:
  rows = [
    [
      f'`{name}`',
      term.title,
      ', '.join(f'`{name}_{key}={v!r}`' for key, v in term.settings.items()),
    ]
    for name, term in terms.TERMS.items()
  ]
  schedules = ', '.join(f'`{name!r}`' for name in terms.SCHEDULES)
  said = ' '.join((inspect.getdoc(base.objective) or '').split())
  return (
    f'{said} The ratios of the single runs and tables are in '
    f'`configs/tuned.json` and, where nothing was tuned, {base.UNTUNED:g}. '
    f'Schedules: {schedules}. A weight is {legal("objective.kd_weight")}.\n\n'
    + grid(['term', 'title', 'settings'], rows)
  )


def _table() -> str:
  said = comments(table.get_config)
  config: Any = table.get_config('')
  rows = []
  for field in config.table:
    value = config.table[field]
    name = f'table.{field}'
    default = code(value)
    if isinstance(value, ConfigDict):
      default = 'see `configs/table.py`'
    rows.append([f'`{name}`', default, legal(name), said[name]])
  return grid(['field', 'default', 'legal', ''], rows)


def flags_page() -> str:
  """The flags of run.py."""
  found = flags.FLAGS.get_flags_for_module(command_line)
  rows = []
  for flag in found:
    default = '' if flag.default in (None, '') else code(flag.default)
    if flag.name == 'config':
      default = ''
    rows.append([f'`--{flag.name}`', default, flag.help])
  text = (
    'Where the help begins with a mode, the flag is for '
    '`--mode` of that name. `--help` shows the same.'
  )
  return f'{_HEAD}# Flags of `run.py`\n\n{text}\n\n' + grid(
    ['flag', 'default', ''], rows
  )


if __name__ == '__main__':
  for page, content in pages().items():
    (HERE / page).write_text(content)
