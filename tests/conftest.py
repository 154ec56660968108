"""Shared test set-up: two CPU devices and strict shapes in every test."""

import os
import pathlib
import signal

# Two devices everywhere, so that whatever only works on one is seen at once.
# Compiling is most of the work here: without LLVM's optimisations it is half.
os.environ.setdefault(
  'XLA_FLAGS',
  '--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0',
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest
from absl import flags

jax.config.update('jax_numpy_rank_promotion', 'raise')
# What was compiled once is read by later tests and by the next test run.
jax.config.update(
  'jax_compilation_cache_dir',
  str(pathlib.Path(__file__).resolve().parent.parent / '.pytest_cache' / 'jax'),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
# Grain refuses its multiprocess options while absl flags are unparsed.
flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared' / 'data'


@pytest.fixture(scope='session')
def world(tmp_path_factory):
  """What the cells of a small table share; nothing in it may be changed."""
  from tables import tiny_world

  return tiny_world(tmp_path_factory.mktemp('world'))


@pytest.fixture(scope='session')
def esc10_dir():
  """The 400 ESC-10 recordings, where this checkout has them beside it."""
  path = SHARED / 'esc10'
  if not path.is_dir():
    pytest.skip(f'the ESC-10 recordings are not at {path}')
  return path


@pytest.fixture(scope='session')
def sonyc_dir():
  """The real SONYC-UST annotations.csv and taxonomy, without recordings."""
  path = SHARED / 'sonyc_ust'
  if not path.is_dir():
    pytest.skip(f'the SONYC-UST annotations are not at {path}')
  return path


@pytest.fixture(scope='session')
def metric_reference_dir():
  """Two prediction files with the scores of the official program."""
  path = SHARED / 'metric_reference'
  if not path.is_dir():
    pytest.skip(f'the metric reference files are not at {path}')
  return path


@pytest.fixture
def listening():
  """SIGTERM and SIGINT are handled, and forgotten when the test ends."""
  from iusp_jax.runtime import preemption

  signals = signal.SIGTERM, signal.SIGINT
  before = [signal.getsignal(number) for number in signals]
  preemption.listen()
  yield
  for number, handler in zip(signals, before, strict=True):
    signal.signal(number, handler)
  preemption._Request.signal_number = 0
