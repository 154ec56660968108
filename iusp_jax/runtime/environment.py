"""What a result depends on beside its config: versions, machine, variables."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

import jax

from iusp_jax.runtime import cores, files, logs

PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'tensorflow-datasets',
)  # fmt: skip
ROOT = pathlib.Path(__file__).resolve().parents[2]
_GIT_SECONDS = 10
# Of JAX's settings, those that decide the bits of a result, by whatever means
# (variable, flag or code) they were set.
_SETTINGS = (
  'jax_default_matmul_precision', 'jax_default_prng_impl',
  'jax_enable_custom_prng', 'jax_enable_x64', 'jax_numpy_dtype_promotion',
  'jax_threefry_partitionable',
)  # fmt: skip
# Variables that XLA and its libraries read by themselves.
_VARIABLES = ('LIBTPU_INIT_ARGS', 'NVIDIA_TF32_OVERRIDE', 'XLA_FLAGS')
# Recorded, but `backend` and `num_devices` show what they did.
_CHOICES = ('CUDA_VISIBLE_DEVICES', 'JAX_PLATFORMS')
# Of XLA_FLAGS, those that change no result: how many devices a CPU is divided
# into, and what is written for people to read.
_HARMLESS_FLAGS = ('--xla_force_host_platform_device_count', '--xla_dump')


def check() -> None:
  """Raises ValueError for settings that this program does not work with."""
  if jax.config.jax_enable_x64:  # pyright: ignore
    raise ValueError(
      'JAX_ENABLE_X64 is on: expected off, as everything here is computed and '
      'kept in float32; unset JAX_ENABLE_X64'
    )


@functools.cache
def collect() -> dict[str, Any]:
  """The environment of this process; see `check_same`."""
  return {
    'packages': {name: _version(name) for name in PACKAGES},
    'python': platform.python_version(),
    'git_commit': commit(ROOT),
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'num_processes': jax.process_count(),
    'num_cores': cores.num_schedulable_cores(),
    'settings': {name: str(getattr(jax.config, name)) for name in _SETTINGS},
    'variables': {
      name: os.environ.get(name, '') for name in (*_VARIABLES, *_CHOICES)
    },
  }


def _version(package):
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'unknown'


def commit(root: pathlib.Path) -> str:
  """The git commit of a folder, 'unknown' where it is not a repository's root.

  A source archive may lie inside of another repository, whose commit it is
  not. Without git on the PATH it is unknown, too.
  """
  # Variables such as GIT_DIR, set in a hook, name another repository.
  variables = {k: v for k, v in os.environ.items() if not k.startswith('GIT_')}

  def git(*words):
    return subprocess.run(
      ['git', *words],
      cwd=root,
      env=variables,
      capture_output=True,
      text=True,
      check=True,
      timeout=_GIT_SECONDS,
    ).stdout.strip()

  try:
    top = git('rev-parse', '--show-toplevel')
    if pathlib.Path(top).resolve() != root.resolve():
      return 'unknown'
    return git('describe', '--always', '--dirty', '--abbrev=12') or 'unknown'
  except (OSError, subprocess.SubprocessError):
    return 'unknown'


def check_same(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """What differs of the settings and variables that change bits.

  Other versions and machines are no part of it: a run may have to continue on
  another one. What an older version did not record counts as equal.

  Args:
    then: as `collect` gave it when a run began.
    now: as `collect` gives it.

  Returns:
    Names, sorted; empty where a run may continue.
  """
  before, after = _flat(then), _flat(now)
  return sorted(
    name
    for name in (*_SETTINGS, *_VARIABLES)
    if name in before and _bits(name, before) != _bits(name, after)
  )


def _bits(name, found):
  """A value without the parts that change no result."""
  words = str(found.get(name, '')).split()
  if name == 'XLA_FLAGS':
    words = sorted(w for w in words if not w.startswith(_HARMLESS_FLAGS))
  return words


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """All that differs, as 'name value then, value now'."""
  before, after = _flat(then), _flat(now)
  return [
    f'{name} {before.get(name, "unknown") or "unset"} then, '
    f'{value or "unset"} now'
    for name, value in after.items()
    if before.get(name) != value
  ]


def _flat(found):
  """One name a value."""
  flat: dict[str, Any] = {}
  for name, value in found.items():
    flat |= value if isinstance(value, Mapping) else {name: value}
  return flat


def path_of(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run keeps what it was started with."""
  return workdir / 'environment.json'


def record(workdir: pathlib.Path, continue_anyway: bool = False) -> None:
  """Writes what a run starts with; compares it where the run continues.

  Args:
    workdir: of the run; `path_of` is the record.
    continue_anyway: under other values of what `check_same` looks at.

  Raises:
    ValueError: naming settings and variables that change bits, with the
      values of then and now.
  """
  path, now = path_of(workdir), collect()
  if not path.exists():
    files.write_atomically(path, files.to_json(now))
    return
  try:
    then = files.read_json(path)
    changed = check_same(then, now)
  except (ValueError, AttributeError) as error:  # Only a record.
    logs.log(f'{path}: damaged, it is written anew ({error})')
    files.write_atomically(path, files.to_json(now))
    return
  if changed and not continue_anyway:
    lines = [
      line for line in differences(then, now) if line.split()[0] in changed
    ]
    raise ValueError(
      f'{workdir} holds a run that was started with {"; ".join(lines)}: set '
      'the same values, choose another --workdir, or pass '
      '--continue_anyway'
    )
  if differing := differences(then, now):
    logs.log(
      'Notice: this run was started with other versions or on another machine '
      f'({"; ".join(differing)}): it continues, but may end in other bits than '
      'without the break'
    )
