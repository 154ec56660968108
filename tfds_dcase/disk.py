"""A full disk said as such, whoever was writing."""

import contextlib
import errno
from collections.abc import Iterator

# The ArrayRecord writer wraps the system's words in a RuntimeError.
_WORDS = ('No space left', 'File too large', 'quota exceeded')
_CODES = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class FullDiskError(OSError):
  """There is no room for a data set; the message says what to do."""


@contextlib.contextmanager
def full_disk_said(data_dir, needed: str = '') -> Iterator[None]:
  """Turns what a full disk raises while a data set is made into one message.

  Args:
    data_dir: where data sets are kept.
    needed: a sentence on how much room it takes, where that is known.

  Raises:
    FullDiskError: in place of an error that says so in some other way.
  """
  try:
    yield
  except FullDiskError:
    raise
  except (OSError, RuntimeError) as error:
    if getattr(error, 'errno', None) not in _CODES and not any(
      word in str(error) for word in _WORDS
    ):
      raise
    raise FullDiskError(
      f'The disk of {data_dir} is full ({error}). {needed}Free some space, or '
      'choose another data_dir, and run again: whole downloads are kept, '
      'unfinished ones continued.'
    ) from error
