"""What tests share is made once, whichever worker asks first."""

import uuid

import jax
import pytest

from iusp_jax.runtime import devices


def test_second_call_finds_what_the_first_made(make_once):
  name, calls = f'once-{uuid.uuid4()}', []

  def fill(folder):
    calls.append(folder)
    (folder / 'file').write_text('made')

  first, second = make_once(name, fill), make_once(name, fill)
  assert first == second
  assert (first / 'file').read_text() == 'made'
  assert len(calls) == 1


def test_what_failed_is_made_anew(make_once):
  name = f'fails-{uuid.uuid4()}'

  def fail(folder):
    (folder / 'half').touch()
    raise OSError('no space')

  with pytest.raises(OSError, match='no space'):
    make_once(name, fail)
  folder = make_once(name, lambda folder: (folder / 'whole').touch())
  assert [path.name for path in folder.iterdir()] == ['whole']


def test_programs_of_a_run_in_a_test_go_to_the_tests_own_cache(tmp_path):
  """A cache that is set already is kept; a run's own is in its cache_dir."""
  own = jax.config.jax_compilation_cache_dir
  assert own
  devices.keep_compiled(tmp_path)
  assert jax.config.jax_compilation_cache_dir == own
  jax.config.update('jax_compilation_cache_dir', None)
  least = jax.config.jax_persistent_cache_min_compile_time_secs
  try:
    devices.keep_compiled(tmp_path)
    assert jax.config.jax_compilation_cache_dir.startswith(str(tmp_path))
  finally:
    jax.config.update('jax_compilation_cache_dir', own)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', least)
