"""Trains, distils and scores audio taggers; see README.md.

python run.py --config=configs/iusp.py:demo
"""

from absl import app, flags

from iusp_jax import command_line

flags.adopt_module_key_flags(command_line)  # --help shows them.

if __name__ == '__main__':
  app.run(command_line.main, flags_parser=command_line.parse)
