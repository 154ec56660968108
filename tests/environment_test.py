"""What a run records of its machine, and what it refuses to continue under."""

import os
import shutil
import subprocess
import sys

import jax
import pytest
from hosts_world import ROOT

from iusp_jax.runtime import cores, environment, files


def git(folder, *words):
  identity = ['-c', 'user.name=a', '-c', 'user.email=a@b']
  subprocess.run(['git', *identity, *words], cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path):
  if shutil.which('git') is None:
    pytest.skip('git is not on the PATH')
  git(tmp_path, 'init', '-q')
  git(tmp_path, 'commit', '-q', '--allow-empty', '-m', 'first')
  return tmp_path


def test_commit_is_the_projects(repository, monkeypatch):
  found = environment.commit(repository)
  assert len(found) == 12
  assert set(found) <= set('0123456789abcdef')
  (repository / 'a').write_text('')
  git(repository, 'add', 'a')
  assert environment.commit(repository) == f'{found}-dirty'
  # Set where a hook of another repository runs the program.
  monkeypatch.setenv('GIT_DIR', str(ROOT / '.git'))
  assert environment.commit(repository) == f'{found}-dirty'


def test_commit_of_another_repository_is_not_recorded(repository):
  """A source archive, or an installed package, that lies inside of one."""
  inside = repository / 'iusp-jax'
  inside.mkdir()
  assert environment.commit(inside) == 'unknown'


def test_commit_is_unknown_without_git(repository, monkeypatch, tmp_path):
  (tmp_path / 'empty').mkdir()
  monkeypatch.setenv('PATH', str(tmp_path / 'empty'))
  assert environment.commit(repository) == 'unknown'


def test_commit_is_unknown_outside_of_a_repository(tmp_path, monkeypatch):
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', '/')
  if environment.commit(tmp_path) != 'unknown':
    pytest.fail('no repository has a commit')


def with_variables(**variables):
  """What a fresh process collects under these variables."""
  program = (
    'from iusp_jax.runtime import environment, files\n'
    'print(files.to_json(environment.collect()))'
  )
  names = 'XLA_FLAGS', 'JAX_ENABLE_X64', 'JAX_DEFAULT_MATMUL_PRECISION'
  kept = {k: v for k, v in os.environ.items() if k not in names}
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=kept | {'JAX_PLATFORMS': 'cpu'} | variables,
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return files.json.loads(done.stdout)


@pytest.mark.slow
def test_variables_that_change_bits_are_recorded_and_told_apart():
  plain = with_variables()
  other = with_variables(
    XLA_FLAGS='--xla_cpu_enable_fast_math=true',
    JAX_DEFAULT_MATMUL_PRECISION='highest',
    JAX_ENABLE_X64='1',
    NVIDIA_TF32_OVERRIDE='0',
  )
  assert other['variables']['XLA_FLAGS'] == '--xla_cpu_enable_fast_math=true'
  assert other['settings']['jax_default_matmul_precision'] == 'highest'
  assert environment.check_same(plain, plain) == []
  assert environment.check_same(plain, other) == [
    'NVIDIA_TF32_OVERRIDE',
    'XLA_FLAGS',
    'jax_default_matmul_precision',
    'jax_enable_x64',
  ]
  # The number of devices, machines and versions may differ.
  devices = with_variables(
    XLA_FLAGS='--xla_force_host_platform_device_count=2 --xla_dump_to=/x'
  )
  assert devices['num_devices'] == 2
  assert environment.check_same(plain, devices) == []
  assert environment.check_same(plain, plain | {'num_cores': 64}) == []


def test_what_an_older_version_did_not_record_is_no_difference():
  now = environment.collect()
  then = {'packages': now['packages'], 'backend': 'cpu'}
  assert environment.check_same(then, now) == []


def test_run_is_not_continued_under_other_values_unless_asked(
  tmp_path, monkeypatch, capsys
):
  environment.record(tmp_path)
  environment.record(tmp_path)
  assert capsys.readouterr().out == ''
  path = tmp_path / 'environment.json'
  found = files.read_json(path)
  found['variables']['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=true'
  path.write_text(files.to_json(found))
  with pytest.raises(ValueError, match='started with XLA_FLAGS') as error:
    environment.record(tmp_path)
  assert '--xla_cpu_enable_fast_math=true then' in str(error.value)
  assert '--continue_anyway' in str(error.value)
  environment.record(tmp_path, continue_anyway=True)
  assert 'XLA_FLAGS --xla_cpu_enable_fast_math=true' in capsys.readouterr().out


def test_other_versions_are_logged_and_are_no_error(tmp_path, capsys):
  environment.record(tmp_path)
  path = tmp_path / 'environment.json'
  found = files.read_json(path)
  found['packages']['jax'] = '0.9.1'
  found['git_commit'] = 'abcdef'
  path.write_text(files.to_json(found))
  environment.record(tmp_path)
  printed = capsys.readouterr().out
  assert 'jax 0.9.1 then, ' in printed
  assert 'git_commit abcdef then, ' in printed
  assert 'numpy' not in printed


@pytest.mark.parametrize('content', ['', '{"packages": {', '[]', '3'])
def test_damaged_record_ends_no_run(content, tmp_path, capsys):
  path = tmp_path / 'environment.json'
  path.write_text(content)
  environment.record(tmp_path)
  assert f'{path}: damaged' in capsys.readouterr().out
  assert files.read_json(path)['backend'] == 'cpu'


def test_x64_is_refused():
  environment.check()
  jax.config.update('jax_enable_x64', True)
  try:
    with pytest.raises(ValueError, match='JAX_ENABLE_X64 is on: expected off'):
      environment.check()
  finally:
    jax.config.update('jax_enable_x64', False)


@pytest.mark.parametrize(
  ('platform', 'remedy'),
  [
    ('cuda', 'pip install "jax[cuda13]"'),
    ('tpu', 'pip install "jax[tpu]"'),
    ('abacus', 'set JAX_PLATFORMS=cpu'),
  ],
)
@pytest.mark.slow
def test_backend_that_is_not_there_is_one_line(platform, remedy):
  program = (
    'from iusp_jax.runtime import devices\n'
    'try:\n  devices.check_backend()\n'
    'except ValueError as error:\n  print(error)\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': platform},
    capture_output=True,
    text=True,
  )
  (line,) = done.stdout.splitlines()
  assert line.startswith(f"JAX_PLATFORMS is '{platform}'")
  assert remedy in line
  assert 'Traceback' not in done.stderr


def test_cores_without_affinity(monkeypatch):
  """As on macOS, where nothing is pinned."""
  monkeypatch.delattr(os, 'sched_getaffinity', raising=False)
  monkeypatch.delattr(os, 'sched_setaffinity', raising=False)
  monkeypatch.setattr(os, 'cpu_count', lambda: 5)
  monkeypatch.setattr(cores, '_quota', lambda: float('inf'))
  assert cores.own_cores() == [0, 1, 2, 3, 4]
  assert cores.num_cores() == cores.num_schedulable_cores() == 5
  assert not cores.can_pin()
  with cores.pinned([0]):
    assert cores.num_cores() == 5
  monkeypatch.setattr(os, 'cpu_count', lambda: None)
  assert cores.num_cores() == 1


@pytest.mark.skipif(not cores.can_pin(), reason='the system cannot pin')
def test_cores_are_pinned_for_a_while():
  before = cores.own_cores()
  with cores.pinned(before[:1]):
    assert cores.own_cores() == before[:1]
    assert cores.num_schedulable_cores() == cores.num_cores() == 1
  assert cores.own_cores() == before


@pytest.mark.parametrize(
  ('content', 'expected'),
  [
    ({'cpu.max': '150000 100000\n'}, 1.5),
    ({'cpu.max': 'max 100000\n'}, float('inf')),
    (
      {'cpu/cpu.cfs_quota_us': '50000', 'cpu/cpu.cfs_period_us': '100000'},
      0.5,
    ),
    (
      {'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'},
      float('inf'),
    ),
    ({}, float('inf')),
  ],
)
def test_quota_of_a_container(content, expected, tmp_path, monkeypatch):
  for name, text in content.items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  assert cores._quota(tmp_path) == expected
  monkeypatch.setattr(cores, '_quota', lambda: expected)
  monkeypatch.setattr(cores, 'own_cores', lambda: list(range(64)))
  assert cores.num_cores() == {1.5: 2, 0.5: 1}.get(expected, 64)
  assert cores.num_schedulable_cores() == 64
