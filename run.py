"""Trains, distils and scores audio taggers; see README.md.

python run.py --config=configs/iusp.py:demo
"""

import sys

from absl import app, flags, logging

from iusp_jax import command_line

flags.adopt_module_key_flags(command_line)  # --help shows them.


def main(argv):
  """Dispatches; heavy imports are inside, so that --help is instant."""
  mode = command_line.MODE.value
  if len(argv) > 1 and mode != 'report':
    raise app.UsageError(f'unexpected arguments {argv[1:]}')
  quiet = not flags.FLAGS['verbosity'].present
  if quiet:
    logging.set_verbosity(logging.ERROR)  # The libraries' own chatter.
  from iusp_jax.runtime import files, logs, preemption

  preemption.listen()  # SIGTERM ends the process with preemption.EXIT_CODE.
  from iusp_jax.experiment import run, table, teacher, tuning
  from iusp_jax.runtime import hosts
  from iusp_jax.scoring import score_file

  logs.relay('tfds_dcase')
  if quiet:
    logs.mute('orbax')  # Tracebacks of what is said in one line.
  try:
    with hosts.joined(mode, **command_line.values(command_line.HOSTS)):
      if mode == 'score':
        score_file.main_score(**command_line.values(command_line.SCORE))
        return
      if mode == 'report':
        place = command_line.WORKDIR.value
        table.report(
          [files.resolve(name) for name in argv[1:]],
          files.resolve(place) if place else None,
        )
        return
      config = command_line.config()
      teacher.check_overrides(config, command_line.overrides())
      workdir = files.resolve(command_line.workdir())
      if mode == 'table':
        table.run(config, workdir, **command_line.values(command_line.TABLE))
      elif mode == 'tune':
        tuning.run(config, workdir)
      else:
        run.run(config, workdir, command_line.CONTINUE_ANYWAY.value)
  except (ValueError, OSError, FloatingPointError) as error:
    if flags.FLAGS.verbosity > 0:  # --verbosity=1 shows where it came from.
      raise
    sys.exit(f'error: {error}')


if __name__ == '__main__':
  app.run(main, flags_parser=command_line.parse)
