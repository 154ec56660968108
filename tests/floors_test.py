"""The house's floors: who may import whom, read from the source with `ast`.

A module imports only from floors below or from files listed before it on its
own floor. A new file fails here until it has been given its place, on purpose.
"""

import ast
import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ('iusp_jax', 'tfds_dcase')

# Planned files stand here too: a name without a file is no fault.
FLOORS = (
  (
    0,
    'iusp_jax',
    'iusp_jax.command_line',
    'tfds_dcase.taxonomy',
    'tfds_dcase.in_order',
    'tfds_dcase.notes',
    'tfds_dcase.disk',
    'tfds_dcase.annotation_rows',
    'tfds_dcase.annotations',
    'iusp_jax.similarity',
    'iusp_jax.frontend',
    'iusp_jax.augment',
    'iusp_jax.cost',
    'iusp_jax.auprc',
    'iusp_jax.metrics',
    'iusp_jax.statistics',
    'iusp_jax.audio',
    'iusp_jax.rendezvous',
    'iusp_jax.processes',
  ),
  (
    1,
    'iusp_jax.objectives',
    'iusp_jax.models.convolution',
    'iusp_jax.models.layers',
    'iusp_jax.models.cnn',
    'iusp_jax.models.crnn',
    'iusp_jax.models.mobilenet',
    'iusp_jax.models',
    'iusp_jax.tagger',
    'tfds_dcase.sonyc_ust.records',
    'tfds_dcase.sonyc_ust.sources',
    'tfds_dcase.download',
    'tfds_dcase.sonyc_ust.availability',
    'tfds_dcase.sonyc_ust.decode',
    'tfds_dcase.sonyc_ust.gather',
    'tfds_dcase.sonyc_ust.prepare',
    'tfds_dcase.sonyc_ust.sonyc_ust',
    'tfds_dcase.sonyc_ust',
    'tfds_dcase.urban_scenes.settings',
    'tfds_dcase.urban_scenes.recordings',
    'tfds_dcase.urban_scenes.synthesis.dsp',
    'tfds_dcase.urban_scenes.synthesis.ambience',
    'tfds_dcase.urban_scenes.synthesis.machines',
    'tfds_dcase.urban_scenes.synthesis.signals',
    'tfds_dcase.urban_scenes.synthesis.voices',
    'tfds_dcase.urban_scenes.synthesis',
    'tfds_dcase.urban_scenes.mixer',
    'tfds_dcase.urban_scenes.procedural',
    'tfds_dcase.urban_scenes.clips',
    'tfds_dcase.urban_scenes.urban_scenes',
    'tfds_dcase.urban_scenes',
    'tfds_dcase.folder.labels',
    'tfds_dcase.folder.folder',
    'tfds_dcase.folder',
    'tfds_dcase',
    'iusp_jax.data',
  ),
  (
    2,
    'iusp_jax.parallel',
    'iusp_jax.hosts',
    'iusp_jax.optim',
    'iusp_jax.logs',
    'iusp_jax.preparation',
    'iusp_jax.preemption',
    'iusp_jax.checkpoint',
    # The rooms of the metric on the host; they write their files with logs.
    'iusp_jax.predictions',
    'iusp_jax.scoring',
  ),
  (
    3,
    'iusp_jax.accumulate',
    'iusp_jax.step',
    'iusp_jax.evaluate',
    'iusp_jax.watch',
    'iusp_jax.train',
  ),
  (
    4,
    'iusp_jax.teacher',
    'iusp_jax.store',
    'iusp_jax.report',
    'iusp_jax.pictures',
    'iusp_jax.similarity_picture',
    'iusp_jax.table.records',
    'iusp_jax.table.aggregates',
    'iusp_jax.table.layout',
    'iusp_jax.table.tables',
    'iusp_jax.table.style',
    'iusp_jax.table.cost_picture',
    'iusp_jax.table.pictures',
    'iusp_jax.outcome',
    'iusp_jax.experiment',
    'iusp_jax.in_memory',
    'iusp_jax.ensemble',
    'iusp_jax.table',
    'iusp_jax.table.grid',
    'iusp_jax.table.parts',
    'iusp_jax.table.world',
    'iusp_jax.table.cells',
    'iusp_jax.table.workers',
    'iusp_jax.table.runner',
    'iusp_jax.table.tuning',
  ),
)
ORDER = [name for _, *names in FLOORS for name in names]

BANNED = {'tensorflow', 'torch', 'clu', 'pandas'}
OF_JAX = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex'}
WITHOUT_JAX = {
  'iusp_jax.rendezvous',
  'iusp_jax.processes',
  'iusp_jax.data',
  'iusp_jax.audio',
  'iusp_jax.auprc',
  'iusp_jax.metrics',
  'iusp_jax.statistics',
  'iusp_jax.table.records',
  'iusp_jax.table.aggregates',
  'iusp_jax.table.layout',
  'iusp_jax.table.tables',
  'iusp_jax.table.pictures',
  *(name for name in ORDER if name.startswith('tfds_dcase')),
}


def module_name(path):
  parts = path.relative_to(ROOT).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def sources():
  """Text of every module of the two packages."""
  return {
    module_name(path): path.read_text()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob('*.py'))
  }


@functools.cache
def imported(text):
  """Every name that a file imports, at any depth, as written."""
  names = []
  for node in ast.walk(ast.parse(text)):
    match node:
      case ast.Import():
        names += [alias.name for alias in node.names]
      case ast.ImportFrom(level=0):
        names += [f'{node.module}.{alias.name}' for alias in node.names]
      case ast.ImportFrom():
        raise AssertionError(f'line {node.lineno}: a relative import')
      case ast.Call(
        func=ast.Name(id='__import__') | ast.Attribute(attr='import_module'),
        args=[ast.Constant(value=str(name)), *_],
      ):
        names.append(name)
  return names


def own_module(name):
  """The module of ours that an imported name is, or is in; None if none."""
  while name and name not in ORDER:
    name = name.rpartition('.')[0]
  return name or None


def own_imports(text):
  return {own_module(name) for name in imported(text)} - {None}


def roots(text):
  return {name.partition('.')[0] for name in imported(text)}


def climbs(module, text):
  """The modules that a file imports though they do not stand before it."""
  place = ORDER.index(module)
  return sorted(
    name for name in own_imports(text) - {module} if ORDER.index(name) >= place
  )


SOURCES = sources()
FILES = sorted(
  path
  for path in ROOT.rglob('*.py')
  if not any(
    part.startswith('.') or part in ('runs', 'build')
    for part in path.relative_to(ROOT).parts
  )
)


def test_every_module_has_its_place():
  homeless = sorted(set(SOURCES) - set(ORDER))
  assert not homeless, f'not on any floor of {__file__}: {homeless}'
  assert len(ORDER) == len(set(ORDER))


def test_imports_come_from_below():
  placed = set(SOURCES) & set(ORDER)
  found = {name: climbs(name, SOURCES[name]) for name in sorted(placed)}
  assert len(found) > 20
  assert not {name: above for name, above in found.items() if above}


def test_the_house_stands_without_what_is_around_it():
  around = {'run', 'configs', 'benchmarks', 'tests', 'conftest'}
  found = {name: roots(text) & around for name, text in SOURCES.items()}
  assert not {name: outside for name, outside in found.items() if outside}


def test_nothing_imports_what_is_banned():
  assert len(FILES) > len(SOURCES)
  found = {
    str(path.relative_to(ROOT)): sorted(banned)
    for path in FILES
    if (banned := roots(path.read_text()) & BANNED)
  }
  assert not found


def pmaps(text):
  """Whether a file takes `pmap` from JAX, by any spelling."""
  tree = ast.parse(text)
  named = any(
    isinstance(node, ast.Attribute)
    and node.attr == 'pmap'
    and isinstance(node.value, ast.Name)
    and node.value.id == 'jax'
    for node in ast.walk(tree)
  )
  return named or any(
    name in ('jax.pmap', 'jax.api.pmap') for name in imported(text)
  )


def test_only_parallel_knows_pmap():
  texts = SOURCES | {'run': (ROOT / 'run.py').read_text()}
  found = {name for name, text in texts.items() if pmaps(text)}
  assert found == {'iusp_jax.parallel'}


def reach(module):
  """A module and all of ours that it imports, by whatever way."""
  seen, ahead = set(), {module}
  while ahead:
    name = ahead.pop()
    seen.add(name)
    ahead |= (own_imports(SOURCES[name]) & set(SOURCES)) - seen
  return seen


def test_the_host_side_does_not_import_jax():
  of_jax = {name for name, text in SOURCES.items() if roots(text) & OF_JAX}
  assert 'iusp_jax.similarity' in of_jax
  found = {
    name: sorted(reach(name) & of_jax)
    for name in sorted(WITHOUT_JAX & set(SOURCES))
  }
  assert not {name: jax for name, jax in found.items() if jax}


def test_a_fresh_process_loads_neither_tensorflow_nor_torch():
  names = [name for name in ORDER if name in SOURCES]
  program = (
    'import importlib, json, sys\n'
    f'for name in {names!r}: importlib.import_module(name)\n'
    f'print(json.dumps(sorted({BANNED!r} & set(sys.modules))))'
  )
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
  assert json.loads(process.stdout.splitlines()[-1]) == []


# The rules themselves can be broken.


@pytest.mark.parametrize(
  ('module', 'text', 'expected'),
  [
    ('iusp_jax.similarity', 'from iusp_jax import objectives', ['objectives']),
    ('iusp_jax.auprc', 'import iusp_jax.metrics as m', ['metrics']),
    ('iusp_jax.metrics', 'def f():\n  from iusp_jax import train', ['train']),
    ('iusp_jax.logs', 'from iusp_jax.train import State, fit', ['train']),
    ('iusp_jax.models.cnn', 'from iusp_jax.models import build', ['models']),
    ('iusp_jax.train', 'from iusp_jax import evaluate, data\nimport jax', []),
    ('iusp_jax.models.cnn', 'from iusp_jax.models import layers', []),
    ('iusp_jax.metrics', 'from tfds_dcase import taxonomy', []),
  ],
)
def test_climbing_is_seen(module, text, expected):
  assert climbs(module, text) == [f'iusp_jax.{name}' for name in expected]


@pytest.mark.parametrize(
  'text',
  [
    'import torch',
    'import torch.nn as nn',
    'from torch.nn import functional',
    'def f():\n  import torch',
    'import importlib\nimportlib.import_module("torch.nn")',
    '__import__("torch")',
  ],
)
def test_banned_imports_are_seen(text):
  assert roots(text) & BANNED == {'torch'}


def test_names_that_only_begin_alike_are_not_banned():
  text = 'import tensorflow_datasets as tfds\nimport clumsy, pandas_like'
  assert not roots(text) & BANNED


@pytest.mark.parametrize(
  ('text', 'expected'),
  [
    ('import jax\nf = jax.pmap(g)', True),
    ('from jax import pmap', True),
    ('import jax\n@jax.pmap\ndef f(x): return x', True),
    ('from iusp_jax import parallel\nf = parallel.pmap(g)', False),
    ('"""Runs under `jax.pmap`."""', False),
  ],
)
def test_pmap_is_seen(text, expected):
  assert pmaps(text) == expected
