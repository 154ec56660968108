"""Finds what a build needs, or says at once which file goes where."""

import pathlib
from typing import NamedTuple

from absl import logging

from tfds_dcase.sonyc_ust import fetch, records, sources


class NotAvailableError(ValueError):
  """Recordings or annotations are neither here nor downloadable."""


class Plan(NamedTuple):
  """Where a build takes its files from.

  Attributes:
    release: what is built.
    annotations: the annotations file.
    loose: sound files in folders, by base name.
    archives: archives of recordings.
    missing: (file, where it goes) for what has to be downloaded first; these
      paths are among `annotations` and `archives`.
    base_url: where to download from.
  """

  release: records.Release
  annotations: pathlib.Path
  loose: dict[str, tuple[pathlib.Path, ...]]
  archives: tuple[pathlib.Path, ...]
  missing: tuple[tuple[records.RemoteFile, pathlib.Path], ...]
  base_url: str


def download_dir(data_dir, version: str) -> pathlib.Path:
  """Where a version's downloads go, or may be put by hand."""
  record = records.release(version).record
  return pathlib.Path(data_dir).expanduser() / 'downloads/sonyc_ust' / record


def check_available(
  data_dir,
  version: str = 'v1',
  manual_dir=None,
  base_url: str = records.ZENODO,
  timeout_seconds: float = 10.0,
) -> Plan:
  """Checks in seconds that a build could have all its files.

  A file in `manual_dir` wins; if it holds any recording or archive, no archive
  is downloaded, and recordings that it lacks are an error of the build.

  Args:
    data_dir: TFDS's data folder; downloads go below it.
    version: 'v1' or 'v2'.
    manual_dir: a folder with archives, extracted folders or any mixture, and
      annotations.csv or annotations-dev.csv.
    base_url: in place of Zenodo's address.
    timeout_seconds: how long the server may take to answer.

  Returns:
    What is used from where.

  Raises:
    NotAvailableError: names every file, its address, its md5 where known, and
      the folder it goes to.
    ValueError: unknown version, or `manual_dir` is no folder.
  """
  release = records.release(version)
  found = sources.Found((), (), {})
  if manual_dir is not None:
    found = sources.find(pathlib.Path(manual_dir).expanduser())
  downloads = download_dir(data_dir, version)
  missing = []

  def ours(file):
    path = downloads / file.name
    if not path.exists():
      missing.append((file, path))
    return path

  if found.annotations:
    annotations = found.annotations[0]
    if found.annotations[1:]:
      logging.info('Using %s, not %s', annotations, found.annotations[1:])
  else:
    annotations = ours(release.annotations)
  if found.archives or found.recordings:
    archives = found.archives
  else:
    archives = tuple(ours(file) for file in release.archives)
  plan = Plan(
    release, annotations, found.recordings, archives, tuple(missing), base_url
  )
  if missing:
    _probe(plan, manual_dir, downloads, timeout_seconds)
  return plan


def download(plan: Plan) -> None:
  """Downloads what is missing and verifies every archive that will be read.

  Raises:
    fetch.DownloadError: see `fetch.fetch`.
    ValueError: an archive of `manual_dir` has not the md5 it should have.
  """
  here = {path for _, path in plan.missing}
  for file, path in plan.missing:
    fetch.fetch(plan.release.url(file.name, plan.base_url), path, file.md5)
  own = {f.name: f for f in (plan.release.annotations, *plan.release.archives)}
  for path in (plan.annotations, *plan.archives):
    if path in here:
      continue
    if path.parent.parts[-3:-1] == ('downloads', 'sonyc_ust'):
      fetch.verify(path, own[path.name].md5)
    elif path in plan.archives:
      _verify_manual(path)


def _verify_manual(path):
  """A user's own file is judged, but never moved."""
  expected = records.known_md5(path.name)
  if expected is None:
    logging.info('%s: no md5 is published; its gzip CRC is checked.', path)
    return
  found = fetch.file_md5(path)
  if found != expected:
    raise ValueError(
      f'{path}: md5 is {found}, expected {expected} (published; '
      f'{path.stat().st_size} bytes on disk). Delete it and download it again.'
    )


def _probe(plan, manual_dir, downloads, timeout_seconds):
  file, _ = plan.missing[0]
  url = plan.release.url(file.name, plan.base_url)
  try:
    fetch.probe(url, timeout_seconds)
  except fetch.DownloadError as error:
    raise NotAvailableError(
      instructions(plan, manual_dir, downloads, str(error))
    ) from error


def instructions(plan: Plan, manual_dir, downloads, reason: str) -> str:
  """Which file goes where, in words."""
  release = plan.release
  names = ', '.join(file.name for file, _ in plan.missing)
  given = 'not given' if manual_dir is None else f'now {manual_dir}'
  return (
    f'SONYC-UST {release.version}: {names} not found, and the download does '
    f'not work ({reason}).\n'
    f'The release is Zenodo record {release.record} (CC BY 4.0):\n'
    f'{records.table(release, plan.base_url)}\n'
    'Either put them, packed or extracted or both, into one folder and give '
    f'it as manual_dir ({given}; annotations-dev.csv, audio.tar.gz and the '
    'other names of older records are understood too),\n'
    f'or put the files as downloaded into {downloads}/.\n'
    'Zenodo shows the sizes; downloads are checked against them.\n'
    'Without these recordings, `python run.py --config=configs/iusp.py` runs '
    'on the embedded data instead.'
  )
