"""Examples made by several threads, given in order."""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tfds_dcase import interrupt

_Item = TypeVar('_Item')
_Result = TypeVar('_Result')

_AT_ONCE = 64  # Bounds what is made and waits to be written.


def in_order(
  make: Callable[[_Item], _Result], items: Sequence[_Item], workers: int
) -> Iterator[_Result]:
  """`map(make, items)` by several threads.

  Threads, not processes: NumPy and SciPy let go of the interpreter lock, and
  a script without a `__main__` guard stays safe. `interrupt.check` is called
  between two results; what has not begun by then is never made.
  """
  pool = concurrent.futures.ThreadPoolExecutor(workers)
  try:
    for start in range(0, len(items), _AT_ONCE):
      for result in pool.map(make, items[start : start + _AT_ONCE]):
        interrupt.check()
        yield result
  finally:
    # Not waited for: a generator that is left unfinished may be closed in one
    # of these very threads, which cannot wait for itself.
    pool.shutdown(wait=False, cancel_futures=True)
