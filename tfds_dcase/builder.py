"""What the builders of this package share: one process prepares at a time."""

import contextlib
import fcntl
import os
import pathlib
import shutil
import time
from collections.abc import Iterator

import tensorflow_datasets as tfds

from tfds_dcase import disk, interrupt
from tfds_dcase.notes import LOGGER

_INCOMPLETE = 'incomplete.*'  # how TFDS calls what is being prepared
_PAUSE_SECONDS = 0.2


class Info(tfds.core.DatasetInfo):
  """Knows that these data sets are in nobody's cloud bucket."""

  def initialize_from_bucket(self) -> None:
    """Nothing: TFDS would ask Google, and leave an empty folder in /tmp."""

  def read_from_directory(self, dataset_info_dir) -> None:
    """Reads a prepared data set's own description.

    Raises:
      ValueError: for a damaged one, with its path and what to do.
    """
    try:
      super().read_from_directory(dataset_info_dir)
    except Exception as error:  # of protobuf, JSON, TFDS or the system
      raise ValueError(
        f'{dataset_info_dir}: the description of this prepared data set is '
        f'damaged ({type(error).__name__}: {error}); delete the folder, so '
        'that it is prepared again'
      ) from error


class _NoDownloads:
  """In place of a download manager: `tfds_dcase.download` does that."""

  downloaded_size = 0  # bytes


class BaseBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):
  """A builder whose preparation may be killed, or run twice at once.

  While it prepares a data set, a process holds a lock; another one waits, and
  uses what the first has made. What a killed process has left is removed
  before the next preparation. Where the file system has no locks, or is a
  remote one, nothing is removed.
  """

  def download_and_prepare(self, **options) -> None:
    """As in TFDS; see there for the options.

    Raises:
      disk.FullDiskError: no space left; names the folder of data sets.
    """
    with disk.full_disk_named(self._data_dir_root):
      self._prepare_alone(**options)

  def _prepare_alone(self, **options) -> None:
    if self.data_path.exists() or '://' in str(self.data_path):
      super().download_and_prepare(**options)
      return
    folder = pathlib.Path(self.data_path).parent
    with _alone(folder, self.info.full_name) as is_alone:
      if is_alone:
        for path in folder.glob(_INCOMPLETE):
          LOGGER.info('%s: removes what a killed process has left', path)
          shutil.rmtree(path, ignore_errors=True)
      super().download_and_prepare(**options)
      if not self.info.initialized:  # another process has made it meanwhile
        self.info.read_from_directory(self.data_path)

  def _make_download_manager(self, **unused):
    # TFDS's own would leave an empty downloads/extracted in the data folder.
    return _NoDownloads()

  def _log_download_bytes(self) -> None:
    # TFDS prints 'Downloading and preparing … Unknown size' here.
    LOGGER.info('%s: prepares it in %s', self.info.full_name, self.data_path)

  def _log_download_done(self) -> None:
    LOGGER.info('%s: prepared', self.info.full_name)


@contextlib.contextmanager
def _alone(folder: pathlib.Path, name: str) -> Iterator[bool]:
  """Waits until no other process prepares in a folder, and holds it.

  The lock is the kernel's, on the folder itself: it ends with its process and
  leaves no file behind. An empty folder is removed in the end.

  Yields:
    Whether locks work here.
  """
  descriptor = _lock(folder, name)
  try:
    yield descriptor is not None
  finally:
    if descriptor is not None:
      with contextlib.suppress(OSError):  # most often it is not empty
        folder.rmdir()
      os.close(descriptor)


def _lock(folder: pathlib.Path, name: str) -> int | None:
  """A descriptor of the folder that holds its lock; None without locks."""
  logged = False
  while True:
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if os.path.samestat(os.fstat(descriptor), os.stat(folder)):
        return descriptor
    except FileNotFoundError:
      pass  # its last holder has removed it
    except BlockingIOError:
      if not logged:
        LOGGER.info('%s: another process prepares it; waiting', name)
      logged = True
    except OSError:
      os.close(descriptor)
      return None
    os.close(descriptor)
    interrupt.check()
    time.sleep(_PAUSE_SECONDS)
