"""SONYC-UST's annotations.csv: one row per clip and annotator, into tags.

Reads the layout of both versions (v1 has 70 columns, v2 adds where and when a
clip was recorded), refuses what it does not know, and turns rows into tags:
coarse tags are always recomputed from fine ones, because files older than
v0.4 of the data set hold wrong ones (see `faulty_coarse`).

Reference: Cartwright et al., "SONYC Urban Sound Tagging (SONYC-UST): a
multilabel dataset from an urban acoustic sensor network", DCASE 2019, and the
READMEs of https://zenodo.org/record/2590742 and 3966543.
"""

import csv
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from tfds_dcase import taxonomy

SPLITS = ('train', 'validate', 'test')
RULES = ('any', 'majority', 'mean')
# The code of a proximity is its place here; -1 = not labelled.
PROXIMITIES = ('near', 'far', 'notsure')
TRUTH = 0  # annotator_id of the tags that the SONYC team agreed upon

_INDEX = ('split', 'sensor_id', 'audio_filename', 'annotator_id')
_PRESENCE = tuple(f'{name}_presence' for name in taxonomy.FINE_COLUMNS)
_PROXIMITY = tuple(f'{name}_proximity' for name in taxonomy.FINE_COLUMNS)
_COARSE = tuple(f'{name}_presence' for name in taxonomy.COARSE)
_WHEN = ('year', 'week', 'day', 'hour', 'borough', 'block')
_WHERE = ('latitude', 'longitude')

COLUMNS_V1 = _INDEX + _PRESENCE + _PROXIMITY + _COARSE
EXTRA_V2 = _WHEN + _WHERE


@dataclasses.dataclass(frozen=True)
class Annotations:
  """The rows of one annotations file; R rows, Q = 29 fine columns with X.

  Attributes:
    path: the file, for messages.
    line: int [R], line of each row in the file (the header is line 1).
    split: str [R], 'train', 'validate' or 'test'.
    sensor_id: int32 [R].
    audio_filename: str [R].
    annotator_id: int32 [R]; > 0 volunteer, < 0 team member, 0 agreed truth.
    presence: int8 [R, Q], 1 / 0 / -1 (not labelled).
    proximity: int8 [R, Q], index into `PROXIMITIES`, -1 = not labelled.
    coarse_as_shipped: int8 [R, 8], as in the file: do not learn from these.
    extra: v2's columns, [R] each: year, week, day, hour, borough, block as
      int32 (-1 where empty), latitude, longitude as float64 degrees (NaN
      where empty). Empty for v1.
  """

  path: str
  line: np.ndarray
  split: np.ndarray
  sensor_id: np.ndarray
  audio_filename: np.ndarray
  annotator_id: np.ndarray
  presence: np.ndarray
  proximity: np.ndarray
  coarse_as_shipped: np.ndarray
  extra: dict[str, np.ndarray]


class FaultyCoarse(NamedTuple):
  """How many rows ship a coarse tag that contradicts the fine ones.

  Attributes:
    count: rows with at least one such tag.
    lines: their lines in the file, in order.
    reason: one sentence for the log; empty where `count` is 0.
  """

  count: int
  lines: tuple[int, ...]
  reason: str


@dataclasses.dataclass(frozen=True)
class Clips:
  """One split's clips in order of their file names; N clips, A annotators.

  Attributes:
    audio_filename: str [N].
    sensor_id: int32 [N].
    row: int64 [N], a row of the `Annotations` of each clip (for `extra`).
    has_truth: bool [N], whether the tags are the agreed truth.
    fine: [N, 29] tags with X: int8, or float32 under rule 'mean'; -1 = not
      labelled by anyone.
    coarse: [N, 8] like `fine`, recomputed from it.
    votes: int8 [N, A, 29], the volunteers' presence in file order, -1 = not
      labelled or no such volunteer.
    proximity: int8 [N, A, 29], the same for `Annotations.proximity`.
    annotator_id: int32 [N, A], 0 = no such volunteer.
    dropped: names of clips left out, as nothing gives them tags.
  """

  audio_filename: np.ndarray
  sensor_id: np.ndarray
  row: np.ndarray
  has_truth: np.ndarray
  fine: np.ndarray
  coarse: np.ndarray
  votes: np.ndarray
  proximity: np.ndarray
  annotator_id: np.ndarray
  dropped: tuple[str, ...]


def read(path: str | os.PathLike) -> Annotations:
  """Reads annotations.csv of SONYC-UST v1 or v2.

  Args:
    path: the file.

  Returns:
    Its rows in file order.

  Raises:
    ValueError: an unknown, missing or repeated column, a row of another
      length, an unknown split, annotator, presence or proximity, the same
      clip in two splits or twice from one annotator. Names file, row, column,
      the value found and the legal ones.
  """
  path = os.fspath(path)
  header, rows, line = _rows(path)
  column = dict(zip(header, zip(*rows, strict=True), strict=True))

  def parsed(names: Iterable[str], parse: Callable, legal: str, dtype):
    arrays = [
      _parse(
        column[name], parse, f'{path}, row {{}}, column {name!r}', legal, line
      )
      for name in names
    ]
    return np.stack(arrays, axis=-1).astype(dtype)

  whole = 'a whole number'
  result = Annotations(
    path=path,
    line=line,
    split=parsed(['split'], _split, ', '.join(SPLITS), str)[:, 0],
    sensor_id=parsed(['sensor_id'], _whole, whole, np.int32)[:, 0],
    audio_filename=parsed(['audio_filename'], _name, 'a file name', str)[:, 0],
    annotator_id=parsed(
      ['annotator_id'],
      _whole,
      'a whole number: > 0 volunteer, < 0 team member, 0 agreed truth',
      np.int32,
    )[:, 0],
    presence=parsed(_PRESENCE, _presence, '1, 0 or -1', np.int8),
    proximity=parsed(
      _PROXIMITY, _proximity, ', '.join(PROXIMITIES) + ' or -1', np.int8
    ),
    coarse_as_shipped=parsed(_COARSE, _presence, '1, 0 or -1', np.int8),
    extra={
      name: parsed([name], *_extra_parser(name))[:, 0]
      for name in EXTRA_V2
      if name in column
    },
  )
  _check_clips(result)
  return result


def coarse_from_fine(presence_RQ: np.ndarray) -> np.ndarray:
  """Coarse tags as the maximum over their fine tags, X included.

  Args:
    presence_RQ: [..., 29] in order of `taxonomy.FINE_COLUMNS`; 1, 0 or
      anything between, -1 = not labelled.

  Returns:
    [..., 8] of the same dtype; -1 where no fine tag of the class is labelled.

  Raises:
    ValueError: the last axis is not 29 long.
  """
  presence_RQ = np.asarray(presence_RQ)
  Q = len(taxonomy.FINE_COLUMNS)
  if presence_RQ.shape[-1:] != (Q,):
    raise ValueError(
      f'coarse_from_fine wants [..., {Q}] (taxonomy.FINE_COLUMNS), found '
      f'shape {presence_RQ.shape}.'
    )
  # -1 is the smallest value: a maximum ignores it unless nothing else is there.
  starts = np.flatnonzero(np.diff(taxonomy.COARSE_OF_COLUMN, prepend=-1))
  return np.maximum.reduceat(presence_RQ, starts, axis=-1)


def faulty_coarse(annotations: Annotations) -> FaultyCoarse:
  """Finds rows whose shipped coarse tags differ from the recomputed ones.

  In files older than v0.4 machinery-impact is set whenever non-machinery-
  impact is, although no machinery tag is.
  """
  recomputed_RC = coarse_from_fine(annotations.presence)
  wrong_RC = recomputed_RC != annotations.coarse_as_shipped
  wrong_R = wrong_RC.any(axis=-1)
  count = int(wrong_R.sum())
  lines = tuple(int(n) for n in annotations.line[wrong_R])
  if not count:
    return FaultyCoarse(0, (), '')
  per_class = ', '.join(
    f'{name} in {n}'
    for name, n in zip(taxonomy.COARSE, wrong_RC.sum(axis=0), strict=True)
    if n
  )
  return FaultyCoarse(
    count,
    lines,
    f'{annotations.path}: {count} of {len(wrong_R)} rows ship coarse tags '
    f'that contradict their fine tags ({per_class}; first at row {lines[0]}). '
    'Files older than v0.4 of SONYC-UST set machinery-impact whenever '
    'non-machinery-impact was present. Coarse tags are recomputed from the '
    'fine ones, so nothing is lost.',
  )


def aggregate(votes_AQ: np.ndarray, rule: str = 'any') -> np.ndarray:
  """Joins several annotators' votes into one tag per column.

  Args:
    votes_AQ: [..., A, Q] presence 1 / 0, -1 = not labelled: such a vote does
      not count for or against.
    rule: 'any' = at least one vote (the official rule), 'majority' = more
      than half of the votes cast, 'mean' = the share of them, a soft tag.

  Returns:
    [..., Q] int8, or float32 under 'mean'; -1 where no vote was cast.

  Raises:
    ValueError: an unknown rule.
  """
  if rule not in RULES:
    raise ValueError(
      f'Unknown aggregation rule {rule!r}; legal: {", ".join(RULES)}.'
    )
  votes_AQ = np.asarray(votes_AQ)
  cast_Q = (votes_AQ >= 0).sum(axis=-2)
  yes_Q = (votes_AQ == 1).sum(axis=-2)
  if rule == 'mean':
    share_Q = yes_Q / np.maximum(cast_Q, 1)
    return np.where(cast_Q > 0, share_Q, -1).astype(np.float32)
  tag_Q = yes_Q > 0 if rule == 'any' else 2 * yes_Q > cast_Q
  return np.where(cast_Q > 0, tag_Q, -1).astype(np.int8)


def clips(
  annotations: Annotations,
  split: str,
  rule: str = 'any',
  without_truth: str = 'drop',
) -> Clips:
  """Gathers one split's clips with their tags and the volunteers' votes.

  Train uses the volunteers' votes (annotator_id > 0) only; validate and test
  use the agreed truth (annotator_id 0) only, as the challenge does. A coarse
  tag joins each volunteer's own coarse vote, so that two volunteers who heard
  an engine of different sizes make a majority for engine.

  Args:
    annotations: from `read`.
    split: 'train', 'validate' or 'test'.
    rule: how votes are joined, see `aggregate`.
    without_truth: what becomes of validate and test clips without a truth row
      (most of v2's validate clips): 'drop', the official scoring, or 'votes',
      which tags them by the volunteers' votes.

  Returns:
    The clips; none where the file has no row of the split.

  Raises:
    ValueError: an unknown split, rule or `without_truth`.
  """
  if split not in SPLITS:
    raise ValueError(f'Unknown split {split!r}; legal: {", ".join(SPLITS)}.')
  if without_truth not in ('drop', 'votes'):
    raise ValueError(
      f'Unknown without_truth {without_truth!r}; legal: drop, votes.'
    )
  in_split_R = annotations.split == split
  name_N, first_N = _first_rows(annotations, in_split_R)
  N = len(name_N)
  volunteers_NA = _volunteer_rows(annotations, in_split_R, name_N)
  truth_N = np.full(N, -1)
  if split != 'train':
    truth_R = np.flatnonzero(in_split_R & (annotations.annotator_id == TRUTH))
    truth_N[np.searchsorted(name_N, annotations.audio_filename[truth_R])] = (
      truth_R
    )
  votes_NAQ = _gather(annotations.presence, volunteers_NA)
  tags_NQ, coarse_NC = _tags(annotations, votes_NAQ, truth_N, rule)

  by_votes = split == 'train' or without_truth == 'votes'
  keep_N = truth_N >= 0
  if by_votes:
    keep_N |= (volunteers_NA >= 0).any(axis=-1)
  return Clips(
    audio_filename=name_N[keep_N],
    sensor_id=annotations.sensor_id[first_N][keep_N],
    row=first_N[keep_N],
    has_truth=truth_N[keep_N] >= 0,
    fine=tags_NQ[keep_N],
    coarse=coarse_NC[keep_N],
    votes=votes_NAQ[keep_N],
    proximity=_gather(annotations.proximity, volunteers_NA)[keep_N],
    annotator_id=_gather(annotations.annotator_id, volunteers_NA, 0)[keep_N],
    dropped=tuple(name_N[~keep_N].tolist()),
  )


def _tags(annotations, votes_NAQ, truth_N, rule):
  """Tags of each clip: its truth row where there is one, else the votes."""
  dtype = np.float32 if rule == 'mean' else np.int8
  tags_NQ = aggregate(votes_NAQ, rule)
  coarse_NC = aggregate(coarse_from_fine(votes_NAQ), rule)
  known_N = truth_N >= 0
  tags_NQ[known_N] = annotations.presence[truth_N[known_N]].astype(dtype)
  coarse_NC[known_N] = coarse_from_fine(tags_NQ[known_N])
  return tags_NQ, coarse_NC


def _first_rows(annotations, in_split_R):
  """Sorted clip names of a split [N], and the first row of each [N]."""
  rows = np.flatnonzero(in_split_R)
  name_N, first_N = np.unique(
    annotations.audio_filename[rows], return_index=True
  )
  return name_N, rows[first_N]


def _volunteer_rows(annotations, in_split_R, name_N):
  """Rows of each clip's volunteers in file order [N, A], -1 = none."""
  rows = np.flatnonzero(in_split_R & (annotations.annotator_id > 0))
  clip = np.searchsorted(name_N, annotations.audio_filename[rows])
  order = np.argsort(clip, kind='stable')
  rows, clip = rows[order], clip[order]
  count_N = np.bincount(clip, minlength=len(name_N))
  place = np.arange(len(rows)) - np.repeat(
    np.cumsum(count_N) - count_N, count_N
  )
  rows_NA = np.full((len(name_N), max(count_N.max(initial=0), 1)), -1)
  rows_NA[clip, place] = rows
  return rows_NA


def _gather(values_R, rows_NA, missing=-1):
  """values_R[rows_NA], `missing` where the row is -1."""
  shape = rows_NA.shape + (1,) * (values_R.ndim - 1)
  if not len(values_R):
    return np.full(rows_NA.shape + values_R.shape[1:], missing, values_R.dtype)
  picked = values_R[np.maximum(rows_NA, 0)]
  return np.where((rows_NA >= 0).reshape(shape), picked, missing).astype(
    values_R.dtype
  )


def _rows(path: str) -> tuple[list[str], list[list[str]], np.ndarray]:
  """Header, rows and line numbers, with columns and row lengths checked."""
  rows, lines = [], []
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file)
      header = [name.strip() for name in next(reader, [])]
      _check_columns(path, header)
      for row in reader:
        if not row:
          continue
        if len(row) != len(header):
          raise ValueError(
            f'{path}, row {reader.line_num}: found {len(row)} fields, expected '
            f'{len(header)} as in the header. Is the file cut short?'
          )
        # Few spellings, millions of fields: keep one copy of each.
        rows.append(list(map(sys.intern, row)))
        lines.append(reader.line_num)
  except (UnicodeDecodeError, csv.Error) as error:
    raise ValueError(
      f'{path} is not a CSV text file ({error}). Expected annotations.csv of '
      'SONYC-UST.'
    ) from error
  if not rows:
    raise ValueError(f'{path}: found a header without rows. Is it cut short?')
  return header, rows, np.array(lines)


def _check_columns(path: str, header: list[str]) -> None:
  """Refuses a header that is neither v1's nor v2's, in any order."""
  repeated = sorted({name for name in header if header.count(name) > 1})
  missing = [name for name in COLUMNS_V1 if name not in header]
  if any(name in header for name in EXTRA_V2):
    missing += [name for name in EXTRA_V2 if name not in header]
  unknown = [name for name in header if name not in COLUMNS_V1 + EXTRA_V2]
  for what, names in (
    ('missing', missing),
    ('unknown', unknown),
    ('repeated', repeated),
  ):
    if names:
      raise ValueError(
        f'{path}, row 1 (header): {what} columns {", ".join(map(repr, names))}.'
        f' Expected the {len(COLUMNS_V1)} columns of SONYC-UST v1, or these '
        f"and v2's {', '.join(EXTRA_V2)}."
      )


def _parse(
  values: tuple[str, ...],
  parse: Callable[[str], object],
  where: str,
  legal: str,
  lines: np.ndarray,
) -> np.ndarray:
  """Parses one column; each distinct spelling once, as there are few."""
  parsed = {}
  for value in set(values):
    try:
      parsed[value] = parse(value.strip())
    except (KeyError, ValueError, OverflowError):
      first = values.index(value)
      raise ValueError(
        f'{where.format(lines[first])}: found {value!r}, legal: {legal}.'
      ) from None
  return np.array([parsed[value] for value in values])


def _split(value: str) -> str:
  return SPLITS[SPLITS.index(value)]


def _name(value: str) -> str:
  if not value:
    raise ValueError(value)
  return value


def _whole(value: str) -> int:
  number = float(value)
  if number != int(number):
    raise ValueError(value)
  return int(number)


def _presence(value: str) -> int:
  return {1.0: 1, 0.0: 0, -1.0: -1}[float(value)]


def _proximity(value: str) -> int:
  if value in PROXIMITIES:
    return PROXIMITIES.index(value)
  return {-1.0: -1}[float(value)]


def _extra_parser(name: str) -> tuple[Callable, str, type]:
  """How v2's column `name` is read: function, legal values, type."""
  if name in _WHERE:
    return lambda v: float(v) if v else np.nan, 'degrees', np.float64
  return lambda v: _whole(v) if v else -1, 'a whole number', np.int32


def _check_clips(annotations: Annotations) -> None:
  """Refuses a clip in two splits, or with two truth rows."""
  _, first, clip = np.unique(
    annotations.audio_filename, return_index=True, return_inverse=True
  )
  moved = np.flatnonzero(annotations.split != annotations.split[first][clip])
  if len(moved):
    row, other = moved[0], first[clip[moved[0]]]
    raise ValueError(
      f'{annotations.path}, row {annotations.line[row]}: '
      f'{annotations.audio_filename[row]} is in split '
      f'{str(annotations.split[row])!r}, but in {str(annotations.split[other])!r} at row '
      f'{annotations.line[other]}. A clip belongs to one split.'
    )
  truth = np.flatnonzero(annotations.annotator_id == TRUTH)
  _, first = np.unique(clip[truth], return_index=True)
  if len(first) != len(truth):
    row = np.delete(truth, first)[0]
    raise ValueError(
      f'{annotations.path}, row {annotations.line[row]}: a second truth row '
      f'(annotator_id 0) of {annotations.audio_filename[row]}; expected one.'
    )
