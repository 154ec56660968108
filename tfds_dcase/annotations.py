"""SONYC-UST's annotations: the votes of many annotators into tags of clips.

Coarse tags are always recomputed from fine ones, because files older than
v0.4 of the data set hold wrong ones (see `faulty_coarse`).

Reference: Cartwright et al., "SONYC Urban Sound Tagging (SONYC-UST): a
multilabel dataset from an urban acoustic sensor network", DCASE 2019.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from tfds_dcase import taxonomy
from tfds_dcase.annotation_rows import (
  COLUMNS_V1,
  EXTRA_V2,
  PROXIMITIES,
  SPLITS,
  TRUTH,
  Annotations,
  read,
)

__all__ = (
  'COLUMNS_V1',
  'EXTRA_V2',
  'PROXIMITIES',
  'RULES',
  'SPLITS',
  'TRUTH',
  'Annotations',
  'Clips',
  'FaultyCoarse',
  'aggregate',
  'clips',
  'coarse_from_fine',
  'faulty_coarse',
  'read',
)

RULES = ('any', 'majority', 'mean')


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
    dropped: names of clips left out, as they have no truth and no votes.
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
      f'coarse_from_fine expects [..., {Q}] (taxonomy.FINE_COLUMNS), found '
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
    votes_AQ: [..., A, Q] presence 1 / 0, -1 = not labelled: such a vote is
      not counted.
    rule: 'any' = at least one vote (the official rule), 'majority' = more
      than half of the votes, 'mean' = the fraction of them, a soft tag.

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
    fraction_Q = yes_Q / np.maximum(cast_Q, 1)
    return np.where(cast_Q > 0, fraction_Q, -1).astype(np.float32)
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
  tag joins each volunteer's own coarse vote, so that two volunteers who marked
  engines of different sizes make a majority for engine.

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
  has_truth_N = truth_N >= 0
  tags_NQ[has_truth_N] = annotations.presence[truth_N[has_truth_N]].astype(
    dtype
  )
  coarse_NC[has_truth_N] = coarse_from_fine(tags_NQ[has_truth_N])
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
