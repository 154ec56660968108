"""Examples made by several threads, or processes, given in order."""

import collections
import concurrent.futures
import contextlib
import os
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

from tfds_dcase import interrupt, worker

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

_AT_ONCE = 64  # Bounds what is made and waits to be written.
_PAUSE_SECONDS = 0.2
_MOST_PROCESSES = 16  # of about 130 MB each


def num_cores() -> int:
  """CPU cores that this process may use; in a container not all there are."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def in_order(
  make: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Generator[_Result]:
  """`map(make, items)` by several threads.

  While a result is used, the next ones are made. `interrupt.check` is called
  between two results, and while one is waited for; what has not begun by then
  is never made.
  """
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  waiting = collections.deque()
  try:
    for item in items:
      waiting.append(pool.submit(make, item))
      if len(waiting) == _AT_ONCE:
        yield _result(waiting.popleft())
    while waiting:
      yield _result(waiting.popleft())
  finally:
    # Not waited for: a generator that is left unfinished may be closed in one
    # of these very threads, which cannot wait for itself.
    pool.shutdown(wait=False, cancel_futures=True)


def _result(future):
  while True:
    interrupt.check()
    done, _ = concurrent.futures.wait([future], _PAUSE_SECONDS)
    if done:
      return future.result()


@contextlib.contextmanager
def by_processes(
  make: Callable[..., _Result], workers: int
) -> Iterator[Callable[..., _Result]]:
  """`make`, which processes of its own do for the threads that call it.

  Python's threads take turns: where an example is made of many short steps,
  sixteen are no faster than two.

  Args:
    make: a function of one argument that can be pickled, with it its result.
    workers: processes; as many threads should call what is yielded.
  """
  idle: queue.SimpleQueue[worker.Worker] = queue.SimpleQueue()
  with contextlib.ExitStack() as stack:
    for _ in range(min(workers, _MOST_PROCESSES)):
      idle.put(stack.enter_context(worker.Worker(make)))

    def call(*args):
      one = idle.get()
      try:
        return one(*args)
      finally:
        idle.put(one)

    yield call
