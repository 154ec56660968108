"""The flags of run.py, and what they say about where a run goes."""

import pathlib
import sys
from typing import Any

from absl import flags
from ml_collections import config_flags

MODES = ('train', 'score', 'table', 'tune', 'report')

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
SHARD = flags.DEFINE_string('shard', '', 'table: i/n, a part of the grid.')
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
  flags.DEFINE_string('output', '', 'score: a JSON file to write.'),
  flags.DEFINE_integer('bootstrap', 1000, 'score: resamples for intervals.'),
)
HOSTS = (
  flags.DEFINE_bool('multihost', False, 'On every host of a TPU pod, Slurm…'),
  flags.DEFINE_string('coordinator', '', 'Or host:port of process 0, with'),
  flags.DEFINE_integer('num_processes', None, 'how many processes there are'),
  flags.DEFINE_integer('process_id', None, 'and which one this is, from 0.'),
  flags.DEFINE_float('start_timeout', 300.0, 'Wait for all processes, s.'),
)


def values(group) -> dict[str, Any]:
  """Flags as keyword arguments."""
  return {flag.name: flag.value for flag in group}


def config() -> Any:
  """The config, with what flags of their own set in it.

  Raises:
    ValueError: where --config is missing.
  """
  found = CONFIG.value
  if found is None:
    raise ValueError('--config is missing: try --config=configs/iusp.py:demo')
  if PROFILE.value:
    found.profile_steps = PROFILE.value
  return found


def workdir() -> str:
  """--workdir, or runs/<config>-<arguments>."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, arguments = name.partition(':')
  parts = [pathlib.Path(path).stem, *filter(None, arguments.split(','))]
  return WORKDIR.value or f'runs/{"-".join(parts)}'


def parse(argv):
  """Reads the flags; a typo in a config or argument is one plain line."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, ValueError, KeyError) as error:
    message = str(error.args[0] if error.args else error)
    # ml_collections hands on a config's own error inside a traceback.
    message = message.rpartition('ValueError: ')[2].strip()
    sys.exit(f'error: {message}')
