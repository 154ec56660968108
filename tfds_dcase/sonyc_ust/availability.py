"""Finds what a build needs, or lists which file goes where."""

import pathlib
from typing import Any, NamedTuple

from etils import epath

from tfds_dcase import download as download_lib
from tfds_dcase.notes import LOGGER
from tfds_dcase.sonyc_ust import records, sources


class NotAvailableError(ValueError):
  """Recordings or annotations are neither here nor downloadable."""


class Plan(NamedTuple):
  """Where a build takes its files from.

  Attributes:
    release: what is built.
    annotations: the annotations file.
    loose: sound files in folders, by base name.
    archives: archives of recordings.
    missing: what has to be downloaded first; these paths are among
      `annotations` and `archives`.
    downloads: where downloads go.
    base_url: where they come from.
  """

  release: records.Release
  annotations: pathlib.Path
  loose: dict[str, tuple[pathlib.Path, ...]]
  archives: tuple[pathlib.Path, ...]
  missing: tuple[records.RemoteFile, ...]
  downloads: pathlib.Path
  base_url: str


def download_dir(data_dir, version: str) -> pathlib.Path:
  """Where a version's downloads go, or may be put by hand."""
  record = records.release(version).record
  return _root(data_dir) / 'downloads/sonyc_ust' / record


def _root(data_dir) -> Any:
  """A local folder, or an address such as gs://bucket/data as it is."""
  if '://' in str(data_dir):
    return epath.Path(data_dir)
  return pathlib.Path(data_dir).expanduser()


def check_available(
  data_dir,
  version: str = 'v1',
  manual_dir=None,
  base_url: str = records.ZENODO,
  timeout_seconds: float = 10.0,
) -> Plan | None:
  """Checks in seconds that the data set is there or could be built.

  Args:
    data_dir: TFDS's data folder; downloads go below it.
    version: 'v1' or 'v2'.
    manual_dir: a folder with archives, extracted folders or any mixture, and
      annotations.csv or annotations-dev.csv.
    base_url: in place of Zenodo's address.
    timeout_seconds: how long the server may take to answer.

  Returns:
    What would be used from where; None where the data set is prepared.

  Raises:
    NotAvailableError: names every file, its address, its md5 where known, and
      the folder it goes to.
    ValueError: unknown version, or `manual_dir` is no folder.
  """
  records.release(version)
  prepared = _root(data_dir) / 'sonyc_ust' / version
  if (prepared / records.BUILD_VERSION / 'dataset_info.json').exists():
    return None
  return make_plan(data_dir, version, manual_dir, base_url, timeout_seconds)


def make_plan(
  data_dir, version, manual_dir, base_url, timeout_seconds=10.0
) -> Plan:
  """`check_available` for a build; arguments and errors as there.

  A file in `manual_dir` wins; if it holds any recording or archive, no archive
  is downloaded, and recordings that it lacks are an error of the build.
  """
  release = records.release(version)
  found = sources.Found((), (), {})
  if manual_dir is not None:
    found = sources.find(pathlib.Path(manual_dir).expanduser())
  downloads = download_dir(data_dir, version)
  if found.annotations[1:]:
    LOGGER.info('Using %s, not %s', *found.annotations[:2])
  ours = () if found.annotations else (release.annotations,)
  if not (found.archives or found.recordings):
    ours += release.archives
  names = {file.name for file in ours}
  plan = Plan(
    release,
    (*found.annotations, downloads / release.annotations.name)[0],
    found.recordings,
    found.archives
    + tuple(downloads / f.name for f in release.archives if f.name in names),
    tuple(file for file in ours if not (downloads / file.name).exists()),
    downloads,
    base_url,
  )
  if plan.missing:
    try:
      url = release.url(plan.missing[0].name, base_url)
      download_lib.probe(url, timeout_seconds)
    except download_lib.DownloadError as error:
      raise NotAvailableError(
        instructions(plan, manual_dir, str(error))
      ) from error
  return plan


def download(plan: Plan) -> None:
  """Downloads what is missing and verifies every file that will be read.

  Raises:
    download_lib.DownloadError: see `download_lib.download`.
    ValueError: an archive of `manual_dir` differs from its published md5.
  """
  release = plan.release
  files = {f.name: f for f in (release.annotations, *release.archives)}
  for path in (plan.annotations, *plan.archives):
    if path.parent == plan.downloads:
      url = release.url(path.name, plan.base_url)
      download_lib.download(
        url, plan.downloads, path.name, md5=files[path.name].md5
      )
    elif path in plan.archives:
      _verify_manual(path)


def _verify_manual(path):
  """Checks a user's own file, which is never moved."""
  expected = records.published_md5(path.name)
  if expected is None:
    LOGGER.info('%s: no md5 is published; its gzip CRC is checked.', path)
    return
  found = download_lib.file_digest(path)
  if found != expected:
    raise ValueError(
      f'{path}: md5 is {found}, expected {expected} (published; '
      f'{path.stat().st_size} bytes on disk). Delete it and download it again.'
    )


def instructions(plan: Plan, manual_dir, reason: str) -> str:
  """A message that lists which file goes where."""
  release = plan.release
  names = ', '.join(file.name for file in plan.missing)
  given = 'not given' if manual_dir is None else f'now {manual_dir}'
  return (
    f'SONYC-UST {release.version}: {names} not found, and the download does '
    f'not work ({reason}).\n'
    f'The release is Zenodo record {release.record} (CC BY 4.0):\n'
    f'{records.table(release, plan.base_url)}\n'
    'Either put them, packed or extracted or both, into one folder and give '
    f'it as manual_dir ({given}; annotations-dev.csv, audio.tar.gz and the '
    'other names of older records are understood too),\n'
    f'or put the files as downloaded into {plan.downloads}/.\n'
    'Zenodo shows the sizes; downloads are checked against them.\n'
    'Without these recordings, `python run.py --config=configs/iusp.py` runs '
    'on the embedded data instead.'
  )
