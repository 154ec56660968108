"""A full disk reported as such, with the path that was written."""

import contextlib
import errno
import os
from collections.abc import Iterator

# The ArrayRecord writer wraps the system's message in a RuntimeError.
_MESSAGES = ('No space left', 'File too large', 'quota exceeded')
_CODES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class FullDiskError(OSError):
  """No space left on a disk; the message names the path and what to do."""


@contextlib.contextmanager
def full_disk_named(
  path: str | os.PathLike, needed: str = ''
) -> Iterator[None]:
  """Turns what a full disk raises into one message that names the path.

  The system's own error after a failed write has no path.

  Args:
    path: the file that is written, or the folder of data sets.
    needed: a sentence on how much space it takes, where that is known.

  Raises:
    FullDiskError: in place of any error that a full disk causes.
  """
  try:
    yield
  except FullDiskError:
    raise
  except (OSError, RuntimeError) as error:
    if getattr(error, 'errno', None) not in _CODES and not any(
      word in str(error) for word in _MESSAGES
    ):
      raise
    raise FullDiskError(
      f'The disk of {os.fspath(path)} is full ({error}). {needed}Free some '
      'space, or choose another data_dir, and run again: complete downloads '
      'are kept, incomplete ones continued.'
    ) from error
