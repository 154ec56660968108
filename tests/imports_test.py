"""Who imports whom: the contracts of pyproject.toml, and what loads what."""

import ast
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT


def test_contracts_of_import_linter():
  # In a process of its own: the linter keeps the stream it first writes to.
  program = 'from importlinter import cli; cli.lint_imports_command()'
  process = subprocess.run(
    [sys.executable, '-c', program, '--no-cache', '--no-logo'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert process.returncode == 0, process.stdout + process.stderr
  assert ' 0 broken' in process.stdout


def calls_pmap(text: str) -> bool:
  """Whether a file takes `pmap` from JAX, by any spelling."""
  for node in ast.walk(ast.parse(text)):
    match node:
      case ast.Attribute(attr='pmap', value=ast.Name(id='jax')):
        return True
      case ast.ImportFrom(module=str(module), names=names):
        if module.startswith('jax') and any(n.name == 'pmap' for n in names):
          return True
  return False


def test_only_devices_calls_pmap():
  paths = [ROOT / 'run.py', *(ROOT / 'iusp_jax').rglob('*.py')]
  found = {str(p.relative_to(ROOT)) for p in paths if calls_pmap(p.read_text())}
  assert found == {'iusp_jax/runtime/devices.py'}


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('import jax\n@jax.pmap\ndef f(x): return x', True),
    ('from jax import pmap', True),
    ('from iusp_jax.runtime import devices\nf = devices.pmap(g)', False),
    ('"""Runs under `jax.pmap`."""', False),
  ],
)
def test_pmap_is_seen(text, expected):
  assert calls_pmap(text) == expected


# What a fresh interpreter loads ---------------------------------------------

HEAVY = {'jax', 'flax', 'optax', 'orbax', 'grain', 'matplotlib', 'scipy'}


def loaded(program: str) -> set[str]:
  """Top-level modules that are loaded after a program."""
  program = f"""
import json, sys
{program}
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
  process = subprocess.run(
    [sys.executable, '-c', program],
    cwd=ROOT,
    env=os.environ | {'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  return set(json.loads(process.stdout.splitlines()[-1]))


def test_the_package_loads_jax_when_it_is_used():
  assert not loaded('import iusp_jax') & HEAVY
  assert 'jax' in loaded('from iusp_jax import iusp_loss')


def test_help_loads_nothing_heavy():
  program = """
import contextlib, io, runpy
text = io.StringIO()
sys.argv = ['run.py', '--help']
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
  runpy.run_path('run.py', run_name='__main__')
assert '--workdir' in text.getvalue()
"""
  assert not loaded(program) & HEAVY
