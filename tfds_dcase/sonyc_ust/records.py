"""Where SONYC-UST is published: Zenodo records, file names, checksums, layouts.

v1 is record 3338310 (DCASE 2019 Task 5 with the test truth and corrected
labels), v2 is record 3966543 (v2.3). Older records of the same recordings
(2590742, 3233082, 3873076) have other file names; they can be used
through `manual_dir`.
"""

import re
from typing import NamedTuple

# Of the prepared data set: counts up when examples change.
BUILD_VERSION = '1.1.0'

ZENODO = 'https://zenodo.org/record'

ANNOTATION_NAMES = ('annotations.csv', 'annotations-dev.csv')
# audio.tar.gz (2590742, v2.1), audio-dev and audio-eval (v1), audio-eval-0..2
# (v2.2), audio-0..18 (v2.3).
ARCHIVE_PATTERN = re.compile(r'audio(-dev|-eval|-eval-\d+|-\d+)?\.tar\.gz')


class RemoteFile(NamedTuple):
  """A file of a Zenodo record; `md5` is None where it is not known."""

  name: str
  md5: str | None = None


class Release(NamedTuple):
  """The files and sizes of one version of the data set.

  Attributes:
    version: 'v1' or 'v2'.
    record: Zenodo's record number.
    annotations: the annotations file.
    archives: the archives of recordings.
    num_clips: the clips of each split, as published.
  """

  version: str
  record: str
  annotations: RemoteFile
  archives: tuple[RemoteFile, ...]
  num_clips: dict[str, int]

  def url(self, name: str, base_url: str = ZENODO) -> str:
    """Address of one of the record's files."""
    return f'{base_url}/{self.record}/files/{name}'


_V2_ARCHIVE_MD5 = (
  'bbb4dbae7d2e58e18d24878b9ee1eb51',
  '7c369ff37ac6a1fdd8493fdffe62e0a1',
  '412241c063d7f196953d3dd1c44aeb5e',
  'd2a872392d95993a2c238d305b940812',
  'b15b0e0cb3f8584259ef0d24293a9be3',
  'de745f887067433757a2f2c8f99f99bb',
  'b0286c67468369d66336f6f5ddede31f',
  'ff300183ab7a9d3f2f74c3b730ffeb52',
  '7be76b821fa6dbe20f6b50ca440e1024',
  '959f7edfbb26eadad9865069f38aa9dd',
  '84e94de273666c537a3e6b709ee88d9b',
  '44fe1f43121a7d1178aa0cdf7477793b',
  'a7eb21011f460b5ac289f8e285e875ab',
  '27945a8b1008eec787f97213164951e6',
  'fb8c7d81c3bde3a0c86c1e55e6a85a24',
  'f6af9b65d876ef96d199b9e5f0473cb9',
  'e8337c61a90c30989d500f950fbe443a',
  '3e47e85eb4564a30fe7f442ee97ec7b9',
  'c6b2ef4d0d5b7269d465c469cdbbdc4b',
)

RELEASES = {
  'v1': Release(
    version='v1',
    record='3338310',
    annotations=RemoteFile('annotations.csv'),
    archives=(RemoteFile('audio-dev.tar.gz'), RemoteFile('audio-eval.tar.gz')),
    num_clips={'train': 2351, 'validate': 443, 'test': 274},
  ),
  'v2': Release(
    version='v2',
    record='3966543',
    annotations=RemoteFile(
      'annotations.csv', '70b507b15bb4cfcce4870925302f276b'
    ),
    archives=tuple(
      RemoteFile(f'audio-{n}.tar.gz', md5)
      for n, md5 in enumerate(_V2_ARCHIVE_MD5)
    ),
    num_clips={'train': 13538, 'validate': 4308, 'test': 664},
  ),
}


def release(version: str) -> Release:
  """The release of a version.

  Raises:
    ValueError: unknown version.
  """
  if version not in RELEASES:
    raise ValueError(
      f'Unknown SONYC-UST version {version!r}; legal: {", ".join(RELEASES)}.'
    )
  return RELEASES[version]


def published_md5(name: str) -> str | None:
  """The md5 of an archive that only one release has under this name."""
  for each in RELEASES.values():
    for file in each.archives:
      if file.name == name:
        return file.md5
  return None


def table(release: Release, base_url: str = ZENODO) -> str:
  """Lines that name each file of a release, its address and its md5."""
  lines = []
  for file in (release.annotations, *release.archives):
    md5 = file.md5 or 'not published here: recorded at the first download'
    lines.append(f'  {release.url(file.name, base_url)}  (md5 {md5})')
  return '\n'.join(lines)
