"""The commands that add ONNX files to an export.

`jax2onnx` needs an older `orbax-checkpoint` than this program. Its environment
lies on top of the present one: it has the packages that differ, and finds all
others, this program too, where they are installed already.

  python -m iusp_jax.deploy.onnx_commands EXPORT    prints them
"""

import pathlib
import shlex
import sys
import sysconfig
from collections.abc import Sequence

ENVIRONMENT = '.venv-onnx'  # A folder in the current one.
PACKAGES = ('jax2onnx==0.17.1', 'onnxruntime>=1.22,<2')


def commands(export: pathlib.Path | str) -> list[str]:
  """What to type in a shell, in turn."""
  place = pathlib.Path(ENVIRONMENT)
  base = {'base': str(place), 'platbase': str(place)}
  bin_folder = pathlib.Path(sysconfig.get_path('scripts', 'venv', base))
  site = pathlib.Path(sysconfig.get_path('purelib', 'venv', base))
  python = str(bin_folder / 'python')
  # A .pth file names folders that are searched after the environment's own.
  pth = shlex.quote(str(site / 'iusp.pth'))
  return [
    shlex.join([sys.executable, '-m', 'venv', str(place)]),
    f'printf "%s\\n" {shlex.join(_places(sys.path))} > {pth}',
    shlex.join(
      [python, '-m', 'pip', 'install', '-q', '--no-warn-conflicts', *PACKAGES]
    ),
    shlex.join([python, '-m', 'iusp_jax.deploy.add_onnx', str(export)]),
  ]


def _places(path: Sequence[str]) -> list[str]:
  """The folders of installed packages, and the one that has this program."""
  own = str(pathlib.Path(__file__).resolve().parents[2])
  names = ('site-packages', 'dist-packages')
  found = [place for place in path if pathlib.Path(place).name in names]
  return list(dict.fromkeys([*found, own]))


if __name__ == '__main__':
  print('\n'.join(commands(sys.argv[1])))
