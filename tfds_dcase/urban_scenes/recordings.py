"""A user's folder of isolated recordings: what is in it, and which split.

    manual_dir/
      001 - Dog bark/1-100032-A.ogg ...
      002 - Rain/...

One folder a tag. A leading number ('001 - ') is no part of the tag.
"""

import collections
import dataclasses
import hashlib
import itertools
import pathlib
import re

from tfds_dcase import audio, files, notes, tag_counts
from tfds_dcase.urban_scenes import class_names

NUM_FOLDS = 5  # of recordings whose names do not say a fold
SPLIT_BY = ('auto', 'fold', 'hash', 'balanced')


@dataclasses.dataclass(frozen=True)
class Recording:
  """One file of the folder.

  Attributes:
    path: below the folder, '/' between parts.
    tag: of its class folder.
    size: in bytes; -1 for a link that leads nowhere.
    split: 'train', 'validate' or 'test', once that is known.
    content: of `content`.
  """

  path: str
  tag: str
  size: int
  split: str = ''
  content: str = ''


def find_sound_files(folder) -> list[str]:
  """Sound files below a folder, by extension, as sorted relative paths.

  Hidden files and folders are passed over; links to folders are followed, each
  folder once. Links that lead nowhere, pipes and devices are among the result:
  `audio.read` says what is wrong with them, without opening any.
  """
  return [f for f in _files(folder) if f.lower().endswith(audio.EXTENSIONS)]


def passed_over(folder) -> list[str]:
  """Files of the class folders that are no recordings by their name."""
  recordings = set(find_sound_files(folder))
  return [f for f in _files(folder) if '/' in f and f not in recordings]


def _files(folder) -> list[str]:
  """Sorted relative paths of all files that are not hidden."""
  paths = files.below(folder, hidden=False)
  return sorted(path.relative_to(folder).as_posix() for path in paths)


def content(path) -> str:
  """A checksum of a whole file; '' for one that cannot be read.

  Of all of it: a recording that was edited in its middle is another one.
  """
  return files.digest(path)


def check_folder(manual_dir, what: str) -> pathlib.Path:
  """The folder as a path, or a ValueError that says what it should hold."""
  if manual_dir is None:
    raise ValueError(
      f'manual_dir is not set: give the folder that holds {what}'
    )
  folder = pathlib.Path(manual_dir).expanduser().resolve()
  if not folder.is_dir():
    raise ValueError(
      f'manual_dir={str(manual_dir)!r}: no such folder; it must hold {what}'
    )
  return folder


def list_recordings(manual_dir) -> list[Recording]:
  """The recordings of a folder of class folders, without splits.

  Raises:
    ValueError: no such folder, no recordings, a class folder without any, or
      fewer than two classes.
  """
  folder = check_folder(manual_dir, 'one folder of recordings a class')
  classes = sorted(
    p.name
    for p in folder.iterdir()
    if p.is_dir() and not p.name.startswith(('.', '__'))
  )
  class_names.check(folder, classes)
  sounds = {name: find_sound_files(folder / name) for name in classes}
  if not any(sounds.values()):
    raise ValueError(
      f'{folder}: no recordings in its {len(classes)} folders; expected '
      f'<class>/<recording> with one of {" ".join(audio.EXTENSIONS)}'
    )
  empty = [name for name in classes if not sounds[name]]
  if empty:
    raise ValueError(
      f'{folder}: no recordings in {_few(empty)}; add some or remove the folder'
    )
  if len(classes) < 2:
    raise ValueError(
      f'{folder}: {classes[0]!r} is the only class; at least 2 are needed'
    )
  tags = tag_names(classes)
  listed = [(name, file) for name in classes for file in sounds[name]]
  checksums = files.digests([folder / name / file for name, file in listed])
  return [
    Recording(
      f'{name}/{file}',
      tags[name],
      files.size(folder / name / file),
      content=checksum,
    )
    for (name, file), checksum in zip(listed, checksums, strict=True)
  ]


def tag_names(folders: list[str]) -> dict[str, str]:
  """Tag of each class folder: its name, without '001 - ' where all are so.

  Only where every folder has a number, and the rest differs, is it left out:
  '2-stroke engine' beside 'dog' keeps it.
  """
  matches = [re.fullmatch(r'\d+\s*[-_]\s*(\S.*)', f) for f in folders]
  tidy = [m.group(1) for m in matches if m]
  if len({t.lower() for t in tidy}) < len(folders):
    tidy = folders
  return dict(zip(folders, tidy, strict=True))


def fold_in_name(path: str) -> int | None:
  """The fold of an ESC-style name, `<digit>-...`, or None."""
  match = re.match(r'(\d)-', path.rsplit('/', 1)[-1])
  return int(match.group(1)) if match else None


def original(path: str) -> str:
  """What the takes of one original share: the name without a take letter.

  '1-28135-A.ogg' and '1-28135-B.ogg' give '1-28135'; 'bark12b.wav' gives
  'bark12'; 'door.wav' stays 'door'.
  """
  stem = path.rsplit('/', 1)[-1].rsplit('.', 1)[0].lower()
  match = re.match(r'(.*\d)[-_ ]?[a-z]$', stem)
  return match.group(1) if match else stem


def _digest(text: str) -> int:
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def folds(recordings: list[Recording], split_by: str = 'auto') -> list[int]:
  """The fold of each recording.

  Args:
    recordings: of one folder.
    split_by: 'fold' reads it from the name (`<digit>-...`); 'hash' takes 1 to
      5 from a hash of the name, so that it never changes; 'balanced' deals
      each class's originals out to folds 1 to 5 in turn, so that small classes
      reach every fold, but new files may move old ones; 'auto' is 'fold' where
      every name has one, else 'hash'.

  Returns:
    One fold a recording. Takes of one original share theirs.

  Raises:
    ValueError: for another `split_by`, or 'fold' and a name without one.
  """
  if split_by not in SPLIT_BY:
    raise ValueError(f'split_by={split_by!r}: must be one of {SPLIT_BY}')
  named = [fold_in_name(r.path) for r in recordings]
  without = [
    r.path for r, f in zip(recordings, named, strict=True) if f is None
  ]
  if split_by == 'fold' and without:
    raise ValueError(
      f"split_by='fold', but {len(without)} of {len(recordings)} names do not "
      f"begin with '<fold>-', such as {without[0]!r}; use 'hash' or 'balanced'"
    )
  if split_by in ('auto', 'fold') and not without:
    return [f for f in named if f is not None]
  if split_by != 'balanced':
    return [1 + _digest(original(r.path)) % NUM_FOLDS for r in recordings]
  return _deal(recordings)


def _deal(recordings: list[Recording]) -> list[int]:
  fold_of: dict[str, int] = {}
  for tag in sorted({r.tag for r in recordings}):
    keys = {original(r.path) for r in recordings if r.tag == tag}
    # Validate and test (folds 4 and 5) first, so that 3 originals suffice.
    turn = itertools.cycle((4, 5, 1, 2, 3))
    for key in sorted(keys - fold_of.keys(), key=_digest):
      fold_of[key] = next(turn)
  return [fold_of[original(r.path)] for r in recordings]


def assign_splits(
  recordings: list[Recording],
  validate_fold: int = 4,
  test_fold: int = 5,
  split_by: str = 'auto',
) -> list[Recording]:
  """The recordings with their splits; every class has some in every split.

  Raises:
    ValueError: for equal folds, a fold that does not exist, or a class without
      recordings in a split (naming two folds that would do, if there are any).
  """
  if validate_fold == test_fold:
    raise ValueError(
      f'validate_fold and test_fold are both {test_fold}; they must differ'
    )
  fold_N = folds(recordings, split_by)
  present = sorted(set(fold_N))
  for name, fold in (
    ('validate_fold', validate_fold),
    ('test_fold', test_fold),
  ):
    if fold not in present:
      raise ValueError(
        f'{name}={fold}: no recording is in it; folds found: {present}'
      )
  names = {validate_fold: 'validate', test_fold: 'test'}
  result = [
    dataclasses.replace(r, split=names.get(f, 'train'))
    for r, f in zip(recordings, fold_N, strict=True)
  ]
  missing = absent(result)
  if missing:
    raise ValueError(_say_missing(recordings, fold_N, missing, split_by))
  return result


def log_counts(recordings: list[Recording], folder) -> None:
  """Logs the recordings of each tag by split, and tags that may be one."""
  tags = sorted({r.tag for r in recordings})
  tags_NC = [[tag == r.tag for tag in tags] for r in recordings]
  count = tag_counts.count(tags_NC, [r.split for r in recordings])
  count = {split: count[split] for split in ('train', 'validate', 'test')}
  line = tag_counts.line(tags, count, 'recordings')
  notes.LOGGER.info('%s: %s', folder, line)
  for each in tag_counts.similar_warnings(tags, count):
    notes.LOGGER.warning('%s: %s', folder, each)


def absent(recordings: list[Recording]) -> list[tuple[str, str]]:
  """(tag, split) pairs without a recording."""
  have = {(r.tag, r.split) for r in recordings}
  tags = sorted({r.tag for r in recordings})
  splits = ('train', 'validate', 'test')
  return [(t, s) for t in tags for s in splits if (t, s) not in have]


def _say_missing(recordings, fold_N, missing, split_by) -> str:
  pairs = _few([f'{tag!r} in {split}' for tag, split in missing])
  sets = collections.defaultdict(set)
  for recording, fold in zip(recordings, fold_N, strict=True):
    sets[recording.tag].add(fold)
  good = [
    pair
    for pair in itertools.permutations(sorted(set(fold_N)), 2)
    if all(set(pair) < have for have in sets.values())
  ]
  if good:
    advice = f'validate_fold={good[0][0]}, test_fold={good[0][1]} would do'
  elif split_by != 'balanced':
    advice = "add recordings, or set split_by='balanced'"
  else:
    advice = 'a class needs at least 3 originals; add recordings'
  return f'no recordings of {pairs}; {advice}'


def _few(names: list[str], limit: int = 8) -> str:
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return ', '.join(names[:limit]) + more
