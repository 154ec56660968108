"""Streams of recordings, from folders and from archives that stay packed."""

import gzip
import hashlib
import pathlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from tfds_dcase import files
from tfds_dcase.sonyc_ust import records

# Ten seconds at 192 kHz in stereo and 32 bits are 15 MB: whatever is larger
# is no recording of this data set, and is never read into memory.
MAX_BYTES = 16 << 20
# Of an extended header (PAX, GNU long names), which tarfile holds in memory:
# theirs have a few hundred bytes.
_MAX_HEADER_BYTES = 64 << 10
_HEADER_TYPES = (
  tarfile.XHDTYPE,
  tarfile.XGLTYPE,
  tarfile.SOLARIS_XHDTYPE,
  tarfile.GNUTYPE_LONGNAME,
  tarfile.GNUTYPE_LONGLINK,
)


class Recording(NamedTuple):
  """One sound file, still encoded.

  Attributes:
    name: base name, as in the annotations.
    where: folder path or `archive: member`, for messages.
    data: the file's bytes; None where it is larger than `MAX_BYTES`, or cannot
      be read.
    problem: why it cannot be read, if so.
  """

  name: str
  where: str
  data: bytes | None
  problem: str | None = None

  def digest(self) -> bytes:
    """md5 of the bytes."""
    return hashlib.md5(self.data or b'').digest()


class Found(NamedTuple):
  """What a folder holds.

  Attributes:
    annotations: annotation files, annotations.csv before annotations-dev.csv.
    archives: archives of recordings in natural order.
    recordings: loose sound files by base name; several paths where a name
      occurs in several folders.
  """

  annotations: tuple[pathlib.Path, ...]
  archives: tuple[pathlib.Path, ...]
  recordings: dict[str, tuple[pathlib.Path, ...]]


def find(folder: pathlib.Path) -> Found:
  """Lists a folder and its subfolders, in any layout of the releases.

  These are audio/, audio-dev/train, audio-dev/validate, audio-eval/, all files
  in one folder, the archives of every record, and mixtures of these.

  Raises:
    ValueError: `folder` is not a folder, or an annotation file or archive in
      it is no regular file, such as a pipe, or a link that leads nowhere.
  """
  if not folder.is_dir():
    raise ValueError(f'manual_dir: {folder} is not a folder.')
  annotations, archives = [], []
  recordings: dict[str, list[pathlib.Path]] = {}
  for path in sorted(files.below(folder)):
    if path.name in records.ANNOTATION_NAMES:
      annotations.append(path)
    elif records.ARCHIVE_PATTERN.fullmatch(path.name):
      archives.append(path)
    elif _is_recording(path.name):
      recordings.setdefault(path.name, []).append(path)
  annotations.sort(key=lambda path: (path.name, len(path.parts)))
  archives.sort(key=lambda path: _natural(path.name))
  _check_regular([*annotations, *archives])
  return Found(
    tuple(annotations),
    tuple(archives),
    {name: tuple(paths) for name, paths in recordings.items()},
  )


def _check_regular(paths) -> None:
  for path in paths:
    reason = files.why_unusable(path)
    if reason is not None:
      raise ValueError(f'{path}: {reason}; give a regular file')


def from_paths(paths: tuple[pathlib.Path, ...]) -> Iterator[Recording]:
  """Reads loose sound files."""
  for path in paths:
    problem = files.why_unusable(path)
    data = None
    if problem is None and path.stat().st_size <= MAX_BYTES:
      data = path.read_bytes()
    yield Recording(path.name, str(path), data, problem)


class _Member(tarfile.TarInfo):
  """A member whose extended headers are not read where they are too large."""

  def _proc_member(self, tarfile):  # the documented way to extend tarfile
    if self.type in _HEADER_TYPES and not 0 <= self.size <= _MAX_HEADER_BYTES:
      raise _UnsafeArchiveError(
        f'a header of {self.size} bytes, at most {_MAX_HEADER_BYTES} expected'
      )
    return super()._proc_member(tarfile)  # pyright: ignore


class _UnsafeArchiveError(Exception):
  """What an archive holds that no archive of the data set does."""


# RecursionError: a long chain of headers, each for the next.
_DAMAGE = (
  EOFError,
  tarfile.TarError,
  gzip.BadGzipFile,
  zlib.error,
  ValueError,
  RecursionError,
)


def from_archive(
  path: pathlib.Path, release: records.Release
) -> Iterator[Recording]:
  """Reads the sound files of a .tar.gz in its own order, nothing on disk.

  The archive is read to its end even where nothing more is wanted, as its
  checksum is at its end. Sizes are bounded by what the release can hold: its
  clips, each of at most `MAX_BYTES`.

  Raises:
    ValueError: a cut or damaged archive; a member that points outside it
      (absolute, `..`), is no plain file (link, device), or is larger than all
      of the release; a header too large for memory.
  """
  count, last = 0, 'none'
  most = MAX_BYTES * sum(release.num_clips.values())
  try:
    # gzip.open checks the CRC, which tarfile's own 'r|gz' does not.
    with (
      gzip.open(path) as stream,
      tarfile.open(
        fileobj=stream, mode='r|', bufsize=1 << 16, tarinfo=_Member
      ) as archive,
    ):
      for member in archive:
        _check_member(member, most)
        _check_total(stream, most)
        name = pathlib.PurePosixPath(member.name).name
        if not member.isfile() or not _is_recording(name):
          continue
        data, file = None, archive.extractfile(member)
        if file is not None and member.size <= MAX_BYTES:
          data = file.read()
        yield Recording(name, f'{path}: {member.name}', data)
        count, last = count + 1, member.name
      while stream.read(1 << 20):
        _check_total(stream, most)
  except _UnsafeArchiveError as error:
    raise ValueError(
      f'{path}: found {error}, which no SONYC-UST archive holds. Nothing was '
      'written; download the archive again from Zenodo.'
    ) from error
  except _DAMAGE as error:
    raise ValueError(
      f'{path}: the archive is cut or damaged after {count} recordings (last '
      f'whole one: {last}): {error}. It has {path.stat().st_size} bytes; '
      'delete it and download it again.'
    ) from error


def _check_total(stream, most):
  if stream.tell() > most:
    raise _UnsafeArchiveError(
      f'more than {most} bytes, which is {MAX_BYTES} for each clip of the '
      'release'
    )


def _check_member(member, most):
  parts = pathlib.PurePosixPath(member.name.replace('\\', '/')).parts
  reason = None
  if member.name.startswith(('/', '\\')) or re.match('[A-Za-z]:', member.name):
    reason = 'an absolute path'
  elif '..' in parts:
    reason = 'a path with ..'
  elif member.issparse() or not (member.isfile() or member.isdir()):
    reason = 'a link, device or sparse file'
  elif not 0 <= member.size <= most:
    reason = f'a file of {member.size} bytes (at most {most} expected)'
  if reason:
    raise _UnsafeArchiveError(f'member {member.name!r}, {reason}')


def _is_recording(name: str) -> bool:
  # macOS puts ._NAME.wav with its own data beside every file.
  return name.lower().endswith('.wav') and not name.startswith('._')


def _natural(name: str):
  """Sorts audio-2 before audio-10."""
  return [int(s) if s.isdigit() else s for s in re.split(r'(\d+)', name)]
