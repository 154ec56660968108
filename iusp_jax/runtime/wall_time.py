"""The wall time of a run, over all processes that worked on it in turn."""

import contextlib
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from iusp_jax.runtime import files, logs

_WRITE_EVERY_SECONDS = 20.0


@contextlib.contextmanager
def wall_time(
  folder: pathlib.Path, since: float
) -> Iterator[Callable[[], dict[str, float]]]:
  """Counts the seconds of all processes that work on a folder in turn.

  Kept in `wall_seconds.json`, which is written now and then, as a process may
  be killed, and at the end.

  Args:
    folder: of a run.
    since: this process's start, of `time.monotonic`.

  Yields:
    A function that gives the seconds so far.
  """
  path = folder / 'wall_seconds.json'
  earlier = _earlier(path)
  ended = threading.Event()

  def seconds():
    own = round(time.monotonic() - since, 1)
    return {
      'this_process': own,
      'all_processes': round(sum(earlier) + own, 1),
      'num_processes': len(earlier) + 1,  # One after the other.
    }

  def write():
    with contextlib.suppress(OSError):  # A full disk fails where it matters.
      text = files.to_json([*earlier, seconds()['this_process']])
      files.write_atomically(path, text)

  def write_repeatedly():
    while not ended.wait(_WRITE_EVERY_SECONDS):
      write()

  thread = threading.Thread(target=write_repeatedly, daemon=True)
  thread.start()
  try:
    yield seconds
  finally:
    ended.set()
    thread.join()
    write()


def _earlier(path: pathlib.Path) -> list[float]:
  """Seconds of the processes before; a damaged file ends no run."""
  if not path.exists():
    return []
  try:
    found = files.read_json(path)
    return [float(seconds) for seconds in found]
  except (ValueError, TypeError, OSError) as error:
    logs.log(f'{path}: damaged, the wall time begins anew ({error})')
    return []
