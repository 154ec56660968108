"""Shared test set-up: two CPU devices and strict shapes in every test."""

import fcntl
import hashlib
import os
import pathlib
import platform
import shutil
import signal

import xla

# Two devices everywhere, so that whatever only works on one is seen at once.
os.environ.setdefault('XLA_FLAGS', xla.flags(2))
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest
from absl import flags
from hypothesis import settings

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / 'shared' / 'data'


def _keep_compiled_programs() -> None:
  """Later runs find what is compiled, and so do processes that tests start.

  In a folder per kind of CPU, since a compiled program may use all that one
  can do; `make clean` deletes it.
  """
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:  # Not Linux.
    lines = [f'model name: {platform.processor()}']
  kinds = ('model name', 'flags', 'Features')
  features = sorted({line for line in lines if line.startswith(kinds)})
  text = '\n'.join([platform.machine(), *features])
  machine = hashlib.sha256(text.encode()).hexdigest()[:12]
  for name, value in (
    ('jax_compilation_cache_dir', str(ROOT / '.jax_cache' / machine)),
    ('jax_persistent_cache_min_compile_time_secs', 0),
    ('jax_persistent_cache_min_entry_size_bytes', -1),
  ):
    if os.environ.setdefault(name.upper(), str(value)) == str(value):
      jax.config.update(name, value)


_keep_compiled_programs()
jax.config.update('jax_numpy_rank_promotion', 'raise')
# Grain refuses its multiprocess options while absl flags are unparsed.
flags.FLAGS.mark_as_parsed()
# The same examples in every run: a failure is seen again, and programs for
# shapes that are drawn are found compiled.
settings.register_profile(
  'iusp', max_examples=40, deadline=None, derandomize=True
)
settings.load_profile('iusp')


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """Else thousands of tests take more memory maps than Linux gives, 65530.

  Until some are taken programs are kept, also those of single operations,
  which all modules share.
  """
  from iusp_jax.runtime import devices

  yield
  try:
    maps = pathlib.Path('/proc/self/maps').read_bytes().count(b'\n')
  except OSError:  # Not Linux.
    maps = 0
  if maps > 12_000:
    devices.forget_programs()


@pytest.fixture(scope='session')
def make_once(tmp_path_factory):
  """Gives folders that are filled once for all workers of a test run.

  `make_once(name, fill)` calls `fill(folder)` unless a worker has done so, and
  returns the folder; nothing in it may be changed. An error is raised again by
  the next that asks.
  """
  base = tmp_path_factory.getbasetemp()
  if 'PYTEST_XDIST_WORKER' in os.environ:
    base = base.parent  # That of all workers.

  def make(name, fill):
    folder, done = base / name, base / f'{name}.done'
    with (base / f'{name}.lock').open('w') as lock:
      fcntl.flock(lock, fcntl.LOCK_EX)
      if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fill(folder)
        done.touch()
    return folder

  return make


@pytest.fixture(scope='session')
def tiny(make_once):
  """A folder with a teacher of the fake data, and a cache for tiny runs."""
  import experiments

  return make_once(
    'tiny', lambda folder: experiments.save_teacher(folder / 'teacher')
  )


@pytest.fixture
def on_fakes(monkeypatch):
  """Every config means the fake data set."""
  import experiments

  experiments.use_fakes(monkeypatch)


@pytest.fixture(scope='session')
def setup(tiny):
  """What the cells of a tiny table share; nothing in it may be changed."""
  import experiments

  with pytest.MonkeyPatch.context() as patch:
    experiments.use_fakes(patch)
    return experiments.make_setup(experiments.table_config_of(tiny))


@pytest.fixture(scope='session')
def tiny_run(tiny, make_once):
  """A finished run on the fake data, of a student with IUSP and seed 100."""
  import experiments

  from iusp_jax.experiment import run

  def fill(folder):
    with pytest.MonkeyPatch.context() as patch:
      experiments.use_fakes(patch)
      run.run(experiments.run_config(tiny, seed=100), folder)

  return make_once('tiny_run', fill)


@pytest.fixture(scope='session')
def tiny_table(tiny, make_once):
  """A finished table on the fake data: one student, IUSP, seed 100."""
  import experiments

  from iusp_jax.experiment import table

  def fill(folder):
    with pytest.MonkeyPatch.context() as patch:
      experiments.use_fakes(patch)
      table.run(experiments.one_cell_config(tiny), folder)

  return make_once('tiny_table', fill)


@pytest.fixture(scope='session')
def smoke(make_once):
  """A run of the command, as a user types it: its folder and its output."""
  from commands import command, finish

  def fill(folder):
    text = finish(command(folder, f'--workdir={folder}/run'))
    (folder / 'printed.txt').write_text(text)

  folder = make_once('smoke', fill)
  return folder, (folder / 'printed.txt').read_text()


@pytest.fixture(scope='session')
def esc10_dir():
  """The 400 ESC-10 recordings, where this checkout has them beside it."""
  path = SHARED / 'esc10'
  if not path.is_dir():
    pytest.skip(f'the ESC-10 recordings are not at {path}')
  return path


@pytest.fixture(scope='session')
def mn04_file():
  """The weights of mn04_as, where this checkout has them beside it."""
  path = SHARED / 'teachers' / 'mn04_as' / 'mn04_as_mAP_432.pt'
  if not path.is_file():
    pytest.skip(f'the weights of mn04_as are not at {path}')
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
