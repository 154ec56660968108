"""The wall time of a run, over all processes that worked on it in turn."""

import contextlib
import json
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from iusp_jax.runtime import files

_WALL_EVERY_SECONDS = 20.0


@contextlib.contextmanager
def wall_time(
  folder: pathlib.Path, since: float
) -> Iterator[Callable[[], dict[str, float]]]:
  """Counts the seconds of all processes that work on a folder in turn.

  Kept in `wall_seconds.json`, now and then: a process may be killed.

  Args:
    folder: of a run.
    since: this process's start, of `time.monotonic`.

  Yields:
    A function that gives the seconds so far.
  """
  path = folder / 'wall_seconds.json'
  earlier = json.loads(path.read_text()) if path.exists() else []
  ended = threading.Event()

  def spent():
    own = round(time.monotonic() - since, 1)
    return {
      'this_process': own,
      'all_processes': round(sum(earlier) + own, 1),
      'num_processes': len(earlier) + 1,  # One after the other.
    }

  def note():
    with contextlib.suppress(OSError):  # A full disk fails where it matters.
      files.write_atomically(
        path, files.to_json([*earlier, spent()['this_process']])
      )

  def keep():
    while not ended.wait(_WALL_EVERY_SECONDS):
      note()

  thread = threading.Thread(target=keep, daemon=True)
  thread.start()
  try:
    yield spent
  finally:
    ended.set()
    thread.join()
    note()
