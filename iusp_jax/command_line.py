"""The flags of run.py and of the command iusp, and what each mode starts.

`iusp MODE …` is `python run.py --mode=MODE …`. Configs are found in the current
folder, in the checkout, or inside the installed package, and also by their
names: `iusp train --config=iusp:demo`.
"""

import difflib
import importlib
import itertools
import pathlib
import re
import runpy
import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_PACKAGE = pathlib.Path(__file__).resolve().parent
_INSTALLED = (_PACKAGE / 'configs').is_dir()  # Not so in a checkout.
ROOT = _PACKAGE if _INSTALLED else _PACKAGE.parent  # Of configs/.
MODES = (
  'train',
  'score',
  'table',
  'tune',
  'report',
  'write_clips',
  'tag',
  'export',
  'serve',
)
_WITH_NAMES = (
  'report',
  'tag',
  'serve',
)  # Modes with file names after the flags.

CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, with arguments after a colon.'
)
WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Where the run goes; default: runs/<config>-<arguments>.'
)
MODE = flags.DEFINE_enum('mode', 'train', MODES, 'What to do.')
PROFILE = flags.DEFINE_integer(
  'profile', 0, 'train: steps to trace into WORKDIR/profile.'
)
CONTINUE_ANYWAY = flags.DEFINE_bool(
  'continue_anyway',
  False,
  'train: continue under other settings of JAX or XLA than at the start.',
)
SHARD = flags.DEFINE_string('shard', '', 'table: i/n, a part of the grid.')
JOBS = flags.DEFINE_integer(
  'jobs',
  1,
  'table, tune: processes that share the cores of a CPU; 0: is one of them, '
  'and leaves the report to others.',
  lower_bound=0,
)
OUTPUT = flags.DEFINE_string(
  'output',
  '',
  'score: a JSON file to write; tag: a .csv or .json file; export, '
  'write_clips: a folder.',
)
CHECKPOINT = flags.DEFINE_string(
  'checkpoint', '', 'tag, export, serve: the workdir of a finished run.'
)
SCORE = (
  flags.DEFINE_string('predictions', '', 'score: a CSV file.'),
  flags.DEFINE_string('annotations', '', 'score: a CSV file.'),
  flags.DEFINE_string('split', 'validate', 'score: of the annotations.'),
  flags.DEFINE_enum(
    'level', '', ['', 'coarse', 'fine'], 'score: default both.'
  ),
  flags.DEFINE_enum(
    'labels', 'recomputed', ['recomputed', 'as_shipped'], 'score: coarse tags.'
  ),
  flags.DEFINE_integer('bootstrap', 1000, 'score: resamples for intervals.'),
  OUTPUT,
)
TAG = (
  CHECKPOINT,
  OUTPUT,
  flags.DEFINE_integer(
    'top_k', 0, 'tag: so many tags, instead of those above their thresholds.'
  ),
  flags.DEFINE_bool(
    'frames', False, 'tag: write the probabilities of frames as well.'
  ),
  flags.DEFINE_string('plot', '', 'tag: a folder for a plot of each file.'),
  flags.DEFINE_float('start', 0.0, 'tag: where to begin in a file, s.'),
  flags.DEFINE_float('seconds', 0.0, 'tag: how much of a file; 0: all, s.'),
)
EXPORT = (
  CHECKPOINT,
  OUTPUT,
  flags.DEFINE_float(
    'max_int8_loss', 0.01, 'export: of micro-AUPRC on validate.'
  ),
)
SERVE = (
  CHECKPOINT,
  flags.DEFINE_string('host', '127.0.0.1', 'serve: the address to listen at.'),
  flags.DEFINE_integer('port', 8000, 'serve: the port; 0: any that is free.'),
)
TEACHER_SCENES = flags.DEFINE_bool(
  'teacher_scenes',
  False,
  'write_clips: the training scenes of config.teacher.train_scenes.',
)
ORIGINAL = flags.DEFINE_bool(
  'original',
  False,
  'write_clips: the recordings of a labelled folder as they are.',
)
HOSTS = (
  flags.DEFINE_bool('multihost', False, 'On every host of a TPU pod, Slurm…'),
  flags.DEFINE_string(
    'coordinator', '', 'Instead of --multihost: host:port of process 0.'
  ),
  flags.DEFINE_integer(
    'num_processes', None, 'With --coordinator: how many processes there are.'
  ),
  flags.DEFINE_integer(
    'process_id', None, 'With --coordinator: which one this is, from 0.'
  ),
  flags.DEFINE_float('start_timeout', 300.0, 'Wait for all processes, s.'),
)


def main(argv) -> None:
  """Starts what --mode asks for; an error of the user's is one line.

  Heavy imports are inside, so that --help is instant.
  """
  if len(argv) > 1 and MODE.value not in _WITH_NAMES:
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  from iusp_jax.runtime import logs, memory, parent, preemption

  parent.watch()
  logs.relay('tfds_dcase')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)  # The libraries' own messages.
    logs.mute('orbax')  # Tracebacks of what is logged in one line.
    logs.mute('asyncio')  # Repeats why a checkpoint was not written.
    logs.mute_closed_loop()
  try:
    if MODE.value in ('score', 'report'):
      _report(argv)
      return
    if MODE.value in ('tag', 'export', 'serve'):
      _deploy(argv)
      return
    preemption.listen()
    with preemption.stop_instead_of_errors():
      _train()
  except (ValueError, OSError, FloatingPointError) as error:
    if flags.FLAGS.verbosity > 0:  # --verbosity=1 shows where it came from.
      raise
    sys.exit(f'error: {error}')
  except (MemoryError, RuntimeError) as error:
    reason = memory.is_exhausted(error)
    if not reason or flags.FLAGS.verbosity > 0:
      raise
    sys.exit(
      f'error: not enough memory ({reason}): end other programs, lower '
      "config.student.training.batch_size (or the teacher's), or set "
      'accumulate_steps'
    )


def _report(argv) -> None:
  """The modes that read what is there."""
  from iusp_jax.experiment import table
  from iusp_jax.runtime import files
  from iusp_jax.scoring import score_file

  if MODE.value == 'score':
    score_file.main_score(**values(SCORE))
    return
  place = WORKDIR.value
  table.report(
    [files.resolve(name) for name in argv[1:]],
    files.resolve(place) if place else None,
  )


def _deploy(argv) -> None:
  """The modes that use a trained model."""
  from iusp_jax.deploy import export, page, tag_files

  try:
    if MODE.value == 'export':
      export.run(**values(EXPORT))
      return
    if MODE.value == 'serve':
      page.run(names=argv[1:], **values(SERVE))
      return
    if tag_files.run(names=argv[1:], **values(TAG)):
      sys.exit(1)
  except KeyboardInterrupt:
    sys.exit('interrupted')


def _train() -> None:
  """The modes that take a config."""
  from iusp_jax.experiment import (
    clips,
    fields,
    identity,
    run,
    table,
    teacher,
    tuning,
  )
  from iusp_jax.runtime import (
    devices,
    environment,
    files,
    hosts,
    memory,
    preemption,
  )
  from tfds_dcase import interrupt

  interrupt.CHECKS.append(preemption.check)
  with hosts.joined(MODE.value, **values(HOSTS)):
    devices.check_backend()
    environment.check()
    memory.check()
    found = config()
    fields.check(identity.plain(found))
    devices.keep_compiled(files.resolve(found.cache_dir))
    teacher.check_overrides(found, overrides())
    folder = files.resolve(workdir())
    if MODE.value == 'table':
      table.run(found, folder, SHARD.value, JOBS.value)
    elif MODE.value == 'tune':
      tuning.run(found, folder, JOBS.value)
    elif MODE.value == 'write_clips':
      if not OUTPUT.value:
        raise ValueError('--output is missing: the folder to write clips to')
      place = files.resolve(OUTPUT.value)
      clips.write(found, place, TEACHER_SCENES.value, ORIGINAL.value)
    else:
      run.run(found, folder, CONTINUE_ANYWAY.value)


def values(group) -> dict[str, Any]:
  """Flags as keyword arguments."""
  return {flag.name: flag.value for flag in group}


def config() -> Any:
  """The config, with what flags of their own set in it.

  Raises:
    ValueError: where --config is missing, or is none of the mode.
  """
  found, mode = CONFIG.value, MODE.value
  if found is None:
    raise ValueError('--config is missing: try --config=configs/iusp.py:demo')
  if (mode in ('table', 'tune')) != ('table' in found):
    table = '--mode=table' if 'table' in found else '--config=configs/table.py'
    raise ValueError(
      f'--mode={mode} with the config {found.name!r}: expected {table}'
    )
  for flag, modes in ((SHARD, ['table']), (JOBS, ['table', 'tune'])):
    if mode not in modes and flag.value != flag.default:
      raise ValueError(
        f'--{flag.name}={flag.value} with --mode={mode}: expected '
        f'--mode={" or ".join(modes)}'
      )
  if PROFILE.value:
    found.profile_steps = PROFILE.value
  return found


def overrides() -> list[str]:
  """The fields of the config that the command line sets."""
  return list(flags.FLAGS['config'].override_values)  # pyright: ignore


def workdir() -> str:
  """--workdir, or runs/<config>-<arguments>."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, arguments = name.partition(':')
  parts = [pathlib.Path(path).stem, *filter(None, arguments.split(','))]
  return WORKDIR.value or f'runs/{"-".join(parts)}'


def parse(argv):
  """Reads the flags; a typo in a config or argument is one plain line."""
  flags.FLAGS.set_gnu_getopt(True)  # Flags may follow file names.
  if _INSTALLED:  # So that `from configs import base` finds it.
    sys.modules['configs'] = importlib.import_module('iusp_jax.configs')
  try:
    argv = _find_config(argv)
    return flags.FLAGS(argv)
  except (AttributeError, KeyError) as error:
    sys.exit(f'error: {_unknown_field(argv) or error}')
  except (flags.Error, ValueError) as error:
    message = str(error.args[0] if error.args else error)
    # ml_collections hands on a config's own error inside a traceback.
    message = message.rpartition('ValueError: ')[2].strip()
    sys.exit(f'error: {message}')


_CONFIG_FLAG = re.compile(r'(--?config)(?:=(.*))?')


def _config_name(argv) -> str:
  """What --config is, arguments included; empty where it is not there."""
  for arg, following in itertools.zip_longest(argv, argv[1:], fillvalue=''):
    if match := _CONFIG_FLAG.fullmatch(arg):
      return following if match[2] is None else match[2]
  return ''


def _find_config(argv) -> list[str]:
  """The words of a command, with --config where its file is.

  A relative path that is not in the current folder is looked for where the
  program is, so that it can be run from any folder; `iusp` is
  `configs/iusp.py` there.

  Raises:
    ValueError: where there is no such file.
  """
  name = _config_name(argv)
  if not name:
    return list(argv)
  path, colon, arguments = name.partition(':')
  places = [pathlib.Path(path).expanduser(), ROOT / path]
  by_name = re.fullmatch(r'\w+', path) is not None
  if by_name:
    places.append(ROOT / 'configs' / f'{path}.py')
  for place in places:
    if place.is_file():
      found = f'{place}{colon}{arguments}'
      return [_replace_config(word, name, found) for word in argv]
  legal = sorted(
    file.stem if by_name else str(file.relative_to(ROOT))
    for file in ROOT.glob('configs/*.py')
    if file.stem != '__init__'
  )
  here = pathlib.Path.cwd()
  raise ValueError(
    f'--config={path}: no such file'
    + (f' in {here} or {ROOT}' if here != ROOT else '')
    + f': expected one of {", ".join(legal)}{_did_you_mean(path, legal)}'
  )


def start() -> None:
  """The command iusp."""
  for flag in flags.FLAGS.get_key_flags_for_module(__name__):
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # For --help.
  app.run(main, with_mode(sys.argv), flags_parser=parse)


def with_mode(argv) -> list[str]:
  """A command whose first word is a mode, with --mode; another as it is."""
  program, *words = argv
  if not words:
    sys.exit(f'usage: iusp {"|".join(MODES)} [flags]; iusp --help lists them')
  if words[0].startswith('-'):
    return list(argv)
  mode, *words = words
  if mode not in MODES:
    near = _did_you_mean(mode, MODES)
    sys.exit(f'error: iusp {mode}: expected one of {", ".join(MODES)}{near}')
  return [program, f'--mode={mode}', *words]


def _replace_config(word: str, name: str, found: str) -> str:
  if word == name:
    return found
  match = _CONFIG_FLAG.fullmatch(word)
  return f'{match[1]}={found}' if match and match[2] == name else word


def _unknown_field(argv) -> str:
  """What is wrong with the first --config.FIELD that the config lacks."""
  path, *arguments = _config_name(argv).split(':', 1)
  whole = runpy.run_path(path)['get_config'](*arguments)
  asked = [re.match(r'--?(?:no)?config\.([^=]+)', arg) for arg in argv]
  for field in (match[1] for match in asked if match):
    level: Any = whole
    path = 'config'
    for name in field.split('.'):
      fields = list(level) if isinstance(level, ConfigDict) else []
      if name not in fields:
        near = _did_you_mean(name, fields) or _elsewhere(name, whole)
        expected = (
          f'one of {", ".join(sorted(fields))}' if fields else 'a value'
        )
        return (
          f'--config.{field}: {path} has no field {name!r}: expected '
          f'{expected}{near}'
        )
      level, path = level[name], f'{path}.{name}'
  return ''


def _elsewhere(name: str, whole: ConfigDict) -> str:
  """A hint at the fields of that name at other levels, or nothing."""

  def find(level, path):
    for key, value in level.items():
      if isinstance(value, ConfigDict):
        yield from find(value, f'{path}.{key}')
      elif key == name:
        yield f'--{path}.{key}'

  found = ' or '.join(find(whole, 'config'))
  return f'; did you mean {found}?' if found else ''


def _did_you_mean(name: str, legal) -> str:
  """A hint at the legal name nearest to a wrong one, or nothing."""
  close = difflib.get_close_matches(name, legal, 1)
  return f'; did you mean {close[0]!r}?' if close else ''
