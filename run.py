"""Trains, distils and scores audio taggers; see README.md.

python run.py --config=configs/iusp.py:demo
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'A file of configs/, with arguments after a colon.'
)
_WORKDIR = flags.DEFINE_string(
  'workdir', '', 'Where the run goes; default: runs/<config>-<arguments>.'
)
_PROFILE = flags.DEFINE_integer(
  'profile', 0, 'Train steps to trace into WORKDIR/profile.'
)
_MODE = flags.DEFINE_enum(
  'mode', 'train', ['train', 'score', 'table', 'tune', 'report'], 'What to do.'
)
_SHARD = flags.DEFINE_string('shard', '', 'table: i/n, a part of the grid.')
_SCORE_FLAGS = [
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
]
_HOST_FLAGS = [
  flags.DEFINE_bool('multihost', False, 'On every host of a TPU pod, Slurm…'),
  flags.DEFINE_string('coordinator', '', 'Or host:port of process 0, with'),
  flags.DEFINE_integer('num_processes', None, 'how many processes there are'),
  flags.DEFINE_integer('process_id', None, 'and which one this is, from 0.'),
  flags.DEFINE_float('start_timeout', 300.0, 'Wait for all processes, s.'),
]


def main(argv):
  """Dispatches; heavy imports are inside, so that --help is instant."""
  if len(argv) > 1 and _MODE.value != 'report':
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.ERROR)  # The libraries' own chatter.
  from iusp_jax import preemption

  preemption.listen()  # SIGTERM ends the process with preemption.EXIT_CODE.
  from iusp_jax import experiment, hosts, logs, scoring
  from iusp_jax.table import runner, tuning

  try:
    with hosts.joined(_MODE.value, **{f.name: f.value for f in _HOST_FLAGS}):
      match _MODE.value:
        case 'score':
          scoring.main_score(**{f.name: f.value for f in _SCORE_FLAGS})
        case 'report':
          runner.report([pathlib.Path(name) for name in argv[1:]])
        case _ if _CONFIG.value is None:
          raise ValueError('--config is missing: try configs/iusp.py:demo')
        case 'table':
          runner.run(_CONFIG.value, logs.place(workdir()), _SHARD.value)
        case 'tune':
          tuning.run(_CONFIG.value, logs.place(workdir()))
        case _:
          if _PROFILE.value:
            _CONFIG.value.profile_steps = _PROFILE.value
          experiment.run(_CONFIG.value, logs.place(workdir()))
  except (ValueError, OSError, FloatingPointError) as error:
    if flags.FLAGS.verbosity > 0:  # --verbosity=1 shows where it came from.
      raise
    sys.exit(f'error: {error}')


def workdir():
  """--workdir, or runs/<config>-<arguments>."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  path, _, arguments = name.partition(':')
  name = '-'.join(
    [pathlib.Path(path).stem, *filter(None, arguments.split(','))]
  )
  return _WORKDIR.value or f'runs/{name}'


def parse(argv):
  """Reads the flags; a typo in a config or argument is one plain line."""
  try:
    return flags.FLAGS(argv)
  except (flags.Error, AttributeError, ValueError, KeyError) as error:
    message = str(error.args[0] if error.args else error)
    # ml_collections hands on a config's own error inside a traceback.
    message = message.rpartition('ValueError: ')[2].strip()
    sys.exit(f'error: {message}')


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
