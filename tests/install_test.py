"""The package as `pip install` gives it: a wheel, and the command iusp."""

import itertools
import os
import shutil
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import ROOT
from deploy_fakes import sound, write_workdir
from packaging import requirements, utils

import iusp_jax


def setuptools_settings():
  content = (ROOT / 'pyproject.toml').read_text()
  return tomllib.loads(content)['tool']['setuptools']


def test_every_package_is_listed():
  found = {
    '.'.join(path.parent.relative_to(ROOT).parts)
    for top in ('iusp_jax', 'tfds_dcase')
    for path in (ROOT / top).rglob('__init__.py')
  }
  listed = setuptools_settings()['packages']
  assert set(listed) == found | {'iusp_jax.configs'}


def test_citation_is_of_this_version():
  cited = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
  assert cited['version'] == iusp_jax.__version__
  assert cited['license'] == 'Apache-2.0'


def test_the_lock_has_what_the_project_asks_for():
  """All dependencies and extras, in their ranges, under the same markers."""
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = project['optional-dependencies'].values()
  wanted = [*project['dependencies'], *itertools.chain(*extras)]
  pinned = {}
  for name in ('', '-dev', '-converter'):
    for line in (ROOT / f'requirements{name}.txt').read_text().splitlines():
      if line and not line.startswith(('#', '-r')):
        pin = requirements.Requirement(line)
        pinned[utils.canonicalize_name(pin.name)] = pin
  for text in wanted:
    asked = requirements.Requirement(text)
    if asked.name == project['name']:  # Its own extras, looked at above.
      assert asked.extras == {'export', 'onnx', 'serve'}
      continue
    pin = pinned[utils.canonicalize_name(asked.name)]
    (version,) = (part.version for part in pin.specifier)
    assert asked.specifier.contains(version), (text, version)
    assert pin.marker == asked.marker, text


BUILD = """
import setuptools, sys
sys.argv = ['setup', 'build', '--build-lib', sys.argv[1], 'egg_info',
            '--egg-base', sys.argv[1]]
setuptools.setup()
"""


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
  """A folder with what a wheel holds, as site-packages has it."""
  site = tmp_path_factory.mktemp('site')
  built = subprocess.run(
    [sys.executable, '-c', BUILD, str(site)],
    cwd=_copy(tmp_path_factory.mktemp('source')),
    capture_output=True,
    text=True,
    check=False,
  )
  assert built.returncode == 0, built.stderr
  return site


def _copy(folder):
  """The files of the project that a wheel is built from."""
  for name in ('iusp_jax', 'tfds_dcase', 'configs'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, folder / name, ignore=ignored)
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, folder)
  return folder


def iusp(site, folder, *arguments):
  """The command as its script starts it, in any folder."""
  script = 'from iusp_jax import command_line; command_line.start()'
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  return subprocess.run(
    [sys.executable, '-c', script, *map(str, arguments)],
    cwd=folder,
    env=environment | {'PYTHONPATH': str(site), 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )


def test_the_wheel_has_what_the_command_needs(installed):
  for name in ('configs/base.py', 'configs/tuned.json', 'py.typed'):
    assert (installed / 'iusp_jax' / name).is_file()
  assert not (installed / 'configs').exists()
  for package in setuptools_settings()['packages']:
    assert (installed / package.replace('.', '/') / '__init__.py').is_file()
  (entry,) = installed.glob('*-info/entry_points.txt')
  assert 'iusp = iusp_jax.command_line:start' in entry.read_text()


def test_the_version(installed):
  (metadata,) = installed.glob('*-info/PKG-INFO')
  assert f'\nVersion: {iusp_jax.__version__}\n' in metadata.read_text()


@pytest.mark.slow
def test_tagging_from_any_folder(installed, tmp_path):
  import soundfile

  workdir = write_workdir(tmp_path / 'run')
  soundfile.write(tmp_path / 'a.wav', sound(), 16_000)
  done = iusp(installed, tmp_path, 'tag', 'a.wav', '--checkpoint', workdir)
  assert done.returncode == 0, done.stderr
  assert '1 of 1 recordings tagged' in done.stdout


CONFIG = """
import json, sys
from iusp_jax import command_line
command_line.parse(command_line.with_mode(sys.argv))
config = command_line.config()
import iusp_jax
print(json.dumps([command_line.workdir(), config.name, iusp_jax.__file__]))
"""


@pytest.mark.parametrize(
  'words',
  [
    ['train', '--config=iusp:clips,seed=3'],
    ['train', '--config', 'iusp:clips,seed=3'],
    ['--mode=train', '--config=configs/iusp.py:clips,seed=3'],
  ],
)
@pytest.mark.slow
def test_configs_are_found_by_name(installed, tmp_path, words):
  environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
  done = subprocess.run(
    [sys.executable, '-c', CONFIG, *words],
    cwd=tmp_path,
    env=environment | {'PYTHONPATH': str(installed)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  expected = installed / 'iusp_jax' / '__init__.py'
  assert done.stdout == (f'["runs/iusp-clips-seed=3", "iusp", "{expected}"]\n')


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (['tga', 'a.wav'], "did you mean 'tag'?"),
    ([], 'usage: iusp train|'),
    (['train', '--config=isup'], "did you mean 'iusp'?"),
    (['train', '--config=mine.py'], 'mine.py: no such file'),
    (['tag', 'a.wav'], '--checkpoint is missing'),
  ],
)
@pytest.mark.slow
def test_what_is_wrong_with_a_command(installed, tmp_path, words, message):
  done = iusp(installed, tmp_path, *words)
  assert done.returncode == 1
  assert message in done.stderr
  assert 'Traceback' not in done.stderr


@pytest.mark.slow
def test_pip_installs_the_command(tmp_path):
  """Without the dependencies, which this interpreter has."""
  source = _copy(tmp_path / 'source')
  target = tmp_path / 'site'
  done = subprocess.run(
    [
      sys.executable, '-m', 'pip', 'install', '-q', '--no-deps', '--target',
      str(target), str(source),
    ],
    capture_output=True,
    text=True,
    check=False,
  )  # fmt: skip
  if 'setuptools' in done.stderr and 'find' in done.stderr:
    pytest.skip('pip cannot download setuptools, which builds the package')
  assert done.returncode == 0, done.stderr
  helped = subprocess.run(
    [sys.executable, str(target / 'bin' / 'iusp'), '--help'],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(target)},
    capture_output=True,
    text=True,
    check=False,
  )
  assert '--checkpoint' in helped.stdout, helped.stderr


def test_a_config_by_name_in_a_checkout():
  done = subprocess.run(
    [sys.executable, '-c', CONFIG, 'train', '--config=kd'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('["runs/kd", "kd"')
