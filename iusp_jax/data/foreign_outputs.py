"""Outputs of a teacher that were computed elsewhere: a folder of arrays.

docs/reference/teacher_outputs_format.md has the format. Nothing is believed:
`inspect` checks all that can be seen without reading an array, `Foreign.rows`
that every clip of a split is there once, `Foreign.read` every number that is
used. Arrays are memory-mapped, and read some clips at a time.
"""

import codecs
import dataclasses
import difflib
import hashlib
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from iusp_jax.data import datasets
from iusp_jax.objectives import alignment, targets
from iusp_jax.runtime import files, logs, preemption

FORMAT = 1
METADATA, CLIPS = 'teacher.json', 'clip_id.txt'
NUM_FRAMES = targets.NUM_FRAMES
SPLITS = ('train', 'validate', 'test')
ARRAYS = {  # By name, the axes.
  'logits': 'NC',
  'probabilities': 'NC',
  'frames': 'NTD',
  'frame_logits': 'NTC',
  NUM_FRAMES: 'N',
}
PAGE = 'docs/reference/teacher_outputs_format.md'
TIMES = ('frame_hop_seconds', 'frame_span_seconds', 'first_frame_seconds')
_FIELDS = ('format', 'name', 'source', 'licence', 'tags')
_CLIPS_AT_A_TIME = 1024
_BLOCK = 1 << 24  # Numbers of an array that are in memory at a time.
_LEAST_PROBABILITY = 1e-7  # Logits stay finite, and float32 tells them apart.


@dataclasses.dataclass(frozen=True)
class Split:
  """The arrays of one split, memory-mapped, in the order of `clip_id.txt`.

  Attributes:
    path: of its folder.
    arrays: by name of `ARRAYS`, those that are there.
  """

  path: pathlib.Path
  arrays: Mapping[str, np.ndarray]

  def gives(self, output: str) -> bool:
    """Whether an output is there: 'logits', 'frames' or 'frame_logits'."""
    alias = {'logits': ('logits', 'probabilities')}
    return any(name in self.arrays for name in alias.get(output, (output,)))


@dataclasses.dataclass(frozen=True)
class Contents:
  """What a folder says of itself.

  Attributes:
    path: of the folder.
    metadata: what `teacher.json` holds.
    splits: by name, those that are there.
  """

  path: pathlib.Path
  metadata: Mapping[str, Any]
  splits: Mapping[str, Split]

  @property
  def tags(self) -> tuple[str, ...]:
    """Of the columns of logits and probabilities."""
    return tuple(self.metadata['tags'])

  @property
  def timing(self) -> alignment.Timing | None:
    """Of the frames, where there are any."""
    if any(name not in self.metadata for name in TIMES):
      return None
    return alignment.Timing(*(float(self.metadata[name]) for name in TIMES))

  def gives(self, output: str, split: str = 'train') -> bool:
    """Whether an output of a split is there."""
    return split in self.splits and self.splits[split].gives(output)

  def lacks(self, output: str) -> str:
    """Says that an output of the training clips is not there."""
    needed = f'{output}.npy'
    if output == 'logits':
      needed += ' or probabilities.npy'
    return f'{self.path}/train has no {needed}'


def inspect(path: pathlib.Path) -> Contents:
  """Opens a folder; no array is read.

  Raises:
    ValueError: naming the file, what was found, what is expected, what to do.
  """
  if not path.is_dir():
    raise ValueError(
      f'{path} is no folder: expected one with {METADATA} and train/, see '
      f'{PAGE}'
    )
  metadata = read_metadata(path / METADATA)
  splits = {
    name: _open_split(path / name, metadata)
    for name in SPLITS
    if (path / name).is_dir()
  }
  if 'train' not in splits:
    found = ', '.join(sorted(p.name for p in path.iterdir())) or 'nothing'
    raise ValueError(
      f'{path} has no folder train (but {found}): expected one with {CLIPS} '
      'and arrays for each of train, validate, test; the last two may be left '
      'out'
    )
  return Contents(path, metadata, splits)


def read_metadata(
  path: pathlib.Path, also: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """What a `teacher.json` holds.

  Args:
    path: of the file.
    also: fields that it need not have.

  Raises:
    ValueError: naming the file and the field.
  """
  if not path.is_file():
    raise ValueError(f'{path} is not there: expected it as in {PAGE}')
  found = files.read_json(path, f'write it as in {PAGE}')
  if isinstance(found, dict):
    found = {**(also or {}), **found}
  lacking = [name for name in _FIELDS if not _has(found, name)]
  if lacking:
    raise ValueError(f'{path} lacks {", ".join(lacking)}: see {PAGE}')
  if found['format'] != FORMAT:
    raise ValueError(
      f'{path}: format is {found["format"]!r}: expected {FORMAT}; another '
      'version of this program reads it, or write the folder anew'
    )
  for name in ('name', 'source', 'licence'):
    if not isinstance(found[name], str) or not found[name].strip():
      raise ValueError(f'{path}: {name} is {found[name]!r}: expected a text')
  tags = found['tags']
  if not isinstance(tags, list) or not all(isinstance(t, str) for t in tags):
    raise ValueError(f'{path}: tags is {tags!r:.80}: expected a list of names')
  if len(set(tags)) < len(tags):
    twice = next(tag for tag in tags if tags.count(tag) > 1)
    raise ValueError(f'{path}: tags has {twice!r} twice: expected each once')
  for name in TIMES:
    if name in found:
      _check_seconds(path, name, found[name])
  return found


def _has(found: Any, name: str) -> bool:
  return isinstance(found, dict) and name in found


def _check_seconds(path, name: str, value: Any) -> None:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  least = -60 if name.startswith('first') else 0
  if number and math.isfinite(value) and least < value <= 60:
    return
  raise ValueError(
    f'{path}: {name} is {value!r}: expected seconds, greater than {least} and '
    'at most 60'
  )


def _open_split(path: pathlib.Path, metadata: Mapping[str, Any]) -> Split:
  """Maps the arrays of a split, and holds their shapes against each other."""
  if not (path / CLIPS).is_file():
    raise ValueError(
      f'{path / CLIPS} is not there: expected the name of each clip on a line'
    )
  arrays = {
    name: _map(path / f'{name}.npy', name)
    for name in ARRAYS
    if (path / f'{name}.npy').is_file()
  }
  if not set(arrays) - {NUM_FRAMES}:
    names = ', '.join(f'{name}.npy' for name in ARRAYS if name != NUM_FRAMES)
    raise ValueError(f'{path} has no array: expected some of {names}')
  sizes = {'C': ('tags', METADATA, len(metadata['tags']))}
  for name, array in arrays.items():
    for axis, size in zip(ARRAYS[name], array.shape, strict=True):
      of = name, f'{name}.npy', size
      what, where, expected = sizes.setdefault(axis, of)
      if size != expected:
        raise ValueError(
          f'{path / name}.npy has the shape {array.shape}, '
          f'{list(ARRAYS[name])}: expected {axis} = {expected}, as {what} of '
          f'{where} has'
        )
  framed = {'frames', 'frame_logits'} & set(arrays)
  if NUM_FRAMES in arrays and not framed:
    raise ValueError(
      f'{path} has {NUM_FRAMES}.npy and neither frames.npy nor '
      'frame_logits.npy: leave it out, or add these'
    )
  if framed:
    check_times(path.parent / METADATA, metadata, f'{path} has frames')
  return Split(path, arrays)


def check_times(
  path: pathlib.Path, metadata: Mapping[str, Any], why: str
) -> None:
  """Raises ValueError where nothing says when the frames are."""
  if lacking := [name for name in TIMES if name not in metadata]:
    raise ValueError(
      f'{path} lacks {", ".join(lacking)}, and {why}: expected when these are, '
      f'see {PAGE}'
    )


def _map(path: pathlib.Path, name: str) -> np.ndarray:
  """A memory-mapped array of the rank and type that its name asks for."""
  axes, whole = ARRAYS[name], name == NUM_FRAMES
  try:
    array = np.lib.format.open_memmap(path, mode='r')
  except (ValueError, EOFError, OSError) as error:
    raise ValueError(
      f'{path} has {path.stat().st_size} bytes and cannot be read as a .npy '
      f'file ({error}): it is cut short or damaged; write it again'
    ) from error
  legal = 'iu' if whole else 'f'
  expected = 'whole numbers' if whole else 'float16 or float32'
  if array.dtype.kind not in legal or (not whole and array.itemsize > 4):
    raise ValueError(
      f'{path} is of type {array.dtype}: expected {expected}; convert it'
    )
  if array.ndim != len(axes):
    raise ValueError(
      f'{path} has the shape {array.shape}: expected {list(axes)}, that is '
      f'{len(axes)} axes'
    )
  if 0 in array.shape:
    raise ValueError(f'{path} has the shape {array.shape}: expected no 0')
  return array


def check_extent(contents: Contents, seconds: float) -> None:
  """Raises ValueError where the frames are of another time than the clip.

  Milliseconds for seconds, or the hop of other frames, are found so.

  Args:
    contents: of the teacher's folder.
    seconds: of a clip.
  """
  timing, arrays = contents.timing, contents.splits['train'].arrays
  framed = [x for x in arrays.values() if x.ndim == 3]
  if timing is None or not framed:
    return
  starts, ends = timing.edges(framed[0].shape[1])
  shared = min(ends[-1], seconds) - max(starts[0], 0.0)
  if shared < seconds / 2 or ends[-1] - starts[0] > 2 * seconds:
    raise ValueError(
      f'{contents.path / METADATA}: frame_hop_seconds {timing.hop_seconds:g}, '
      f'frame_span_seconds {timing.span_seconds:g} and first_frame_seconds '
      f'{timing.first_seconds:g} put {len(starts)} frames from '
      f'{starts[0]:.2f} to {ends[-1]:.2f} s: expected at least half of the '
      f'clip, 0 to {seconds:g} s, and at most twice its length; see {PAGE}'
    )


def read_tag_map(path: pathlib.Path) -> dict[str, tuple[str, ...]]:
  """The teacher's tags for each of the student's that has any.

  Args:
    path: of a JSON file, from the student's tags to one or several of the
      teacher's.

  Raises:
    ValueError: naming the file, where it is no such mapping.
  """
  if not path.is_file():
    raise ValueError(
      f'{path} is not there: expected JSON such as {{"dog": ["Bark", "Howl"]}}'
    )
  found = files.read_json(path, 'write it again')
  if not isinstance(found, dict):
    raise ValueError(f'{path}: expected one JSON object, from tags to tags')
  result = {}
  for tag, theirs in found.items():
    listed = [theirs] if isinstance(theirs, str) else theirs
    if not isinstance(listed, list) or not all(
      isinstance(name, str) for name in listed
    ):
      raise ValueError(
        f'{path}: {tag!r} is {theirs!r}: expected a tag or a list of tags of '
        'the teacher'
      )
    if listed:
      result[tag] = tuple(listed)
  if not result:
    raise ValueError(f'{path} maps no tag: expected at least one')
  return result


def columns(
  contents: Contents,
  tags: Sequence[str],
  tag_map: Mapping[str, Sequence[str]],
) -> tuple[tuple[int, ...], ...]:
  """For each of the student's tags, columns of the teacher's logits.

  Args:
    contents: of the teacher.
    tags: the student's.
    tag_map: from `read_tag_map`; where it is empty, tags of the same name
      belong together.

  Returns:
    None for a tag that the teacher does not have; without a mapping, for all
    tags unless it has all: a misspelt tag is not left out unasked.

  Raises:
    ValueError: for a mapping of or to tags that there are not.
  """
  where = {name: k for k, name in enumerate(contents.tags)}
  if not tag_map:
    alike = all(tag in where for tag in tags)
    return tuple((where[tag],) if alike else () for tag in tags)
  check_tag_map(tag_map, tags, contents.tags, f'{contents.path / METADATA}')
  return tuple(
    tuple(where[name] for name in tag_map.get(tag, ())) for tag in tags
  )


def check_tag_map(
  tag_map: Mapping[str, Sequence[str]],
  tags: Sequence[str],
  theirs: Sequence[str],
  of: str,
) -> None:
  """Raises ValueError for a mapping of or to tags that there are not.

  Args:
    tag_map: from `read_tag_map`.
    tags: of the data set.
    theirs: tags of the teacher.
    of: what has these, for the message.
  """
  for tag, listed in tag_map.items():
    _check_tag(tag, tags, 'of the data set')
    for name in listed:
      _check_tag(name, theirs, f'of {of}')


def _check_tag(tag: str, legal: Sequence[str], of: str) -> None:
  if tag in legal:
    return
  near = difflib.get_close_matches(tag, legal, 1)
  hint = f'; did you mean {near[0]!r}?' if near else ''
  shown = ', '.join(legal[:10]) + (', …' if len(legal) > 10 else '')
  raise ValueError(
    f'config.teacher.tag_map has {tag!r}: expected a tag {of}, {shown}{hint}'
  )


def fingerprint(
  contents: Contents,
  tag_map: Mapping[str, Sequence[str]],
  kept: pathlib.Path | None,
) -> str:
  """12 hexadecimal digits that name what a folder holds, wherever it is.

  Args:
    contents: of the folder; its files are read once.
    tag_map: that goes with it.
    kept: a folder for the checksums of files, used while these have the same
      size and times; None to read them in any case.
  """
  paths = [contents.path / METADATA]
  for split in contents.splits.values():
    names = [CLIPS, *(f'{name}.npy' for name in split.arrays)]
    paths += [split.path / name for name in names]
  named = hashlib.sha256(str(contents.path).encode()).hexdigest()[:12]
  memory = kept / f'{named}.json' if kept else None
  known = files.read_json(memory) if memory and memory.exists() else {}
  found = {}
  for path in paths:
    name, of = str(path.relative_to(contents.path)), path.stat()
    state = [of.st_size, of.st_mtime_ns, of.st_ctime_ns]
    if known.get(name, [])[:3] != state:
      if of.st_size > 1e9:
        logs.log(f'teacher: reads {path}, {of.st_size / 1e9:.1f} GB, once')
      known[name] = [*state, files.checksum(path)]
    found[name] = known[name][3]
  if memory:
    files.write_atomically(memory, files.to_json(known))
  mapped = {tag: list(theirs) for tag, theirs in tag_map.items()}
  text = json.dumps([found, mapped], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclasses.dataclass(frozen=True)
class Foreign:
  """A teacher of whom there are outputs and no model.

  Attributes:
    contents: of its folder.
    columns: for each of the student's tags, the teacher's columns; none where
      it has no such tag.
    fingerprint: names the contents and the mapping of tags.
  """

  contents: Contents
  columns: tuple[tuple[int, ...], ...]
  fingerprint: str

  def weights(self) -> str:
    """Names the arrays, as `fingerprint` does here."""
    return self.fingerprint

  @property
  def known_tags(self) -> tuple[bool, ...]:
    """For each of the student's tags, whether the teacher has it."""
    return tuple(bool(theirs) for theirs in self.columns)

  def more_targets(self, split: str, names: Sequence[str]) -> list[str]:
    """What comes with some targets of a split: the frames of each clip."""
    framed = any(targets.NEEDS.get(name) != 'logits' for name in names)
    there = NUM_FRAMES in self.contents.splits[split].arrays
    return [NUM_FRAMES] if framed and there else []

  def scores(self, split: str) -> str:
    """Why the teacher has no scores on a split; empty if it has."""
    if not self.contents.gives('logits', split):
      return f'{self.contents.path / split} has no logits or probabilities'
    unknown = self.known_tags.count(False)
    if unknown:
      return f'{unknown} of {len(self.columns)} tags have none of the teacher'
    return ''

  def rows(
    self, split: datasets.Split, clips: Sequence[int] | None = None
  ) -> np.ndarray:
    """Where clips of a split are in the arrays, int64 `[N]`.

    Args:
      split: of the data set.
      clips: of the split; all by default.

    Raises:
      ValueError: naming clips that are missing or there twice.
    """
    own = self.contents.splits[split.name]
    path, first = own.path / CLIPS, next(iter(own.arrays.items()))
    ids = _read_ids(path)
    if len(ids) != len(first[1]):
      raise ValueError(
        f'{path} has {len(ids)} lines, {first[0]}.npy {len(first[1])} clips: '
        'expected a line a clip'
      )
    order = np.argsort(ids, kind='stable')
    ids = ids[order]
    if (twice := np.flatnonzero(ids[1:] == ids[:-1])).size:
      name = _text(ids[twice[0]])
      lines = ' and '.join(str(order[twice[0] + k] + 1) for k in (0, 1))
      raise ValueError(
        f'{path} has {name!r} twice, in the lines {lines}: expected each clip '
        'once; leave one out, of the arrays as well'
      )
    rows, missing = _find(split, clips or range(len(split)), ids, order)
    if missing and clips:
      return self.rows(split)  # Reports all that are missing.
    if missing:
      raise ValueError(
        f'{path} lacks {len(missing)} of the {len(split)} clips of '
        f'{split.name}: {", ".join(missing[:3])}'
        f'{" …" if len(missing) > 3 else ""} (it has '
        f'{_text(ids[0])!r} and {len(ids) - 1} more): expected all; compute '
        "the teacher's outputs of these as well, under these names"
      )
    return rows

  def read(
    self, split: str, rows_B: np.ndarray, outputs: Sequence[str]
  ) -> dict[str, np.ndarray]:
    """Outputs of some clips, as the student's terms want them.

    Args:
      split: its name.
      rows_B: of the arrays.
      outputs: some of 'logits', 'frames', 'frame_logits', 'num_frames'.

    Returns:
      float32 `logits` `[B, C]` and `frame_logits` `[B, T, C]` of the student's
      tags, 0 for those that the teacher does not have; float32 `frames`
      `[B, T, D]`; `num_frames` `[B]`. Frames past these are 0.

    Raises:
      ValueError: naming array and clip, where a number is not finite or is no
        probability.
    """
    own, found = self.contents.splits[split], {}
    count_B = None
    if NUM_FRAMES in own.arrays:
      count_B = self._num_frames(own, rows_B)
      found[NUM_FRAMES] = count_B.astype(np.float32)
    for output in outputs:
      if output == NUM_FRAMES:
        continue
      name = output
      if output == 'logits' and output not in own.arrays:
        name = 'probabilities'
      values = np.asarray(own.arrays[name][rows_B], np.float32)
      if count_B is not None and values.ndim == 3:
        past_BT = np.arange(values.shape[1])[None] >= count_B[:, None]
        values[past_BT] = 0.0
      self._check_numbers(own, name, values, rows_B)
      if name == 'probabilities':
        values = _to_logits(values)
      found[output] = values if output == 'frames' else self._mapped(values)
    return found

  def _num_frames(self, own: Split, rows_B) -> np.ndarray:
    count_B = np.asarray(own.arrays[NUM_FRAMES][rows_B], np.int64)
    most = max(x.shape[1] for x in own.arrays.values() if x.ndim == 3)
    for k in np.flatnonzero((count_B < 1) | (count_B > most)):
      raise ValueError(
        f'{own.path / NUM_FRAMES}.npy is {count_B[k]} for '
        f'{_name_of(own, rows_B[k])!r}: expected 1 to {most}, the frames of '
        'the arrays'
      )
    return count_B

  def _check_numbers(self, own: Split, name: str, values, rows_B) -> None:
    good = np.isfinite(values)
    expected = 'finite numbers'
    if name == 'probabilities':
      good &= (values >= 0) & (values <= 1)
      expected = 'numbers from 0 to 1; logits are for logits.npy'
    if good.all():
      return
    k = int(np.flatnonzero(~good.reshape(len(good), -1).all(1))[0])
    value = values[k][~good[k]][0]
    raise ValueError(
      f'{own.path / name}.npy has {value} for {_name_of(own, rows_B[k])!r}, '
      f"row {rows_B[k]}: expected {expected}; compute that clip's outputs again"
    )

  def _mapped(self, values: np.ndarray) -> np.ndarray:
    """The student's tags `[..., C]` of the teacher's `[..., C_teacher]`.

    Several to one by their maximum, of logits as of probabilities.
    """
    shape = (*values.shape[:-1], len(self.columns))
    found = np.zeros(shape, np.float32)
    for tag, theirs in enumerate(self.columns):
      if theirs:
        found[..., tag] = values[..., list(theirs)].max(-1)
    return found


def batches(
  foreign: Foreign, split: datasets.Split, outputs: Sequence[str]
) -> Iterator[dict[str, np.ndarray]]:
  """What `Foreign.read` gives of all clips of a split, in order."""
  rows_N = foreign.rows(split)
  own = foreign.contents.splits[split.name]
  # Of the largest array and of the Gram matrices of its frames.
  most = max(
    x[0].size + (x.shape[1] ** 2 if x.ndim == 3 else 0)
    for x in own.arrays.values()
  )
  size = int(np.clip(_BLOCK // most, 1, _CLIPS_AT_A_TIME))
  for start in range(0, len(rows_N), size):
    yield foreign.read(split.name, rows_N[start : start + size], outputs)


def _to_logits(probability: np.ndarray) -> np.ndarray:
  p = np.clip(
    probability.astype(np.float64), _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY
  )
  return (np.log(p) - np.log1p(-p)).astype(np.float32)


def _lines(path: pathlib.Path) -> Iterator[bytes]:
  with path.open('rb') as file:
    for number, line in enumerate(file):
      if number == 0:
        line = line.removeprefix(codecs.BOM_UTF8)
      yield line.rstrip(b'\r\n')


def _read_ids(path: pathlib.Path) -> Any:
  """The lines of a file, as bytes of one length: less memory than texts."""
  count, longest = 0, 1
  for number, line in enumerate(_lines(path), 1):
    if not line.strip():
      raise ValueError(
        f'{path}: line {number} is empty: expected the name of a clip'
      )
    count, longest = number, max(longest, len(line))
  ids = np.empty(count, f'S{longest}')
  for k, line in enumerate(_lines(path)):
    ids[k] = line
  return ids


def _find(split: datasets.Split, clips: Sequence[int], sorted_ids, order):
  """Rows of clips `[N]`, and the names of those that are missing."""
  rows, missing = np.zeros(len(clips), np.int64), []
  for start in range(0, len(clips), _CLIPS_AT_A_TIME):
    preemption.check()
    places = range(start, min(start + _CLIPS_AT_A_TIME, len(clips)))
    names = datasets.clip_ids(split, clips[places.start : places.stop])
    own = np.array([name.encode() for name in names])
    k = np.minimum(np.searchsorted(sorted_ids, own), len(sorted_ids) - 1)
    same = sorted_ids[k] == own
    rows[places.start : places.stop] = order[k]
    missing += [names[i] for i in np.flatnonzero(~same)]
  return rows, missing


def _name_of(split: Split, row: int) -> str:
  return _text(_read_ids(split.path / CLIPS)[row])


def _text(name: bytes) -> str:
  return name.decode(errors='replace')
