"""The terms of the distillation objective, each in one place.

A term says what it needs of the teacher and of the student, how it is computed
for a clip, and how tables and plots show it. Config fields, stored teacher
outputs, the train step, tuning, tables and plots all follow from `TERMS`: to
add a term, write its loss and its entry.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.objectives import alignment, losses, similarity, targets


@dataclasses.dataclass(frozen=True)
class Correspondence:
  """How the outputs of a teacher from elsewhere lie beside a student's.

  Attributes:
    timings: of the frames of both; None: both cut the clip into equal parts.
    known_tags: for each of the student's tags, whether the teacher has it;
      empty: it has all.
  """

  timings: alignment.Timings | None = None
  known_tags: tuple[bool, ...] = ()

  def mask(self) -> np.ndarray | None:
    """1 for the tags that the teacher has, float32 `[C]`; None: all."""
    return np.array(self.known_tags, np.float32) if self.known_tags else None


SAME = Correspondence()  # Of a teacher of this project.


class Inputs(NamedTuple):
  """What a term is computed from: this device's clips of a batch.

  Attributes:
    logits_BC: the student's.
    frames: the student's `[B, T, D]` by layer; 'frames' are the last ones.
    tags_BC: labels in [0, 1].
    mask_BC: 1 where the label is known.
    targets: the teacher's, by the names in `Term.targets`.
    frame_mask: gives, for a number of frames T, `[B, T]` that is 1 for frames
      of the recording and 0 for padding; and where the spans of frames begin,
      in seconds, where these are not equal parts of the clip.
    settings: values of `Term.settings`.
    params: the term's own parameters, see `Term.init`.
    axis_name: the mapped axis that the batch is spread over.
    timings: of the frames of student and teacher, see `Correspondence`.
    mask_C: 1 for the tags that the teacher has, whose logits are 0 for the
      others; None: it has all.
  """

  logits_BC: jax.Array
  frames: Mapping[str, jax.Array]
  tags_BC: jax.Array
  mask_BC: jax.Array
  targets: Mapping[str, jax.Array]
  frame_mask: Callable[..., jax.Array]
  settings: Mapping[str, float]
  params: Any
  axis_name: str
  timings: alignment.Timings | None = None
  mask_C: Any = None


@dataclasses.dataclass(frozen=True)
class Term:
  """One term of the objective.

  Attributes:
    title: in tables and plots.
    colour: in plots; no two terms share one.
    marker: in plots, for readers without colours.
    targets: what it needs of the teacher, see `objectives.targets`.
    per_clip: from `Inputs` to one value a clip, `[B]`; the mean over the
      global batch is the term's loss.
    weight: where to start looking for its weight, untuned.
    compares_clips: whether it needs the whole global batch at a time.
    compares_similarities: whether plots about similarities show it.
    layers: inner layers of the student that it looks at.
    settings: its own hyperparameters and their defaults; config fields
      `objective.<term>_<setting>`, floats greater than 0.
    init: its own parameters from a key and `Inputs` of shapes, or None. They
      are trained with the student and are no part of it.
  """

  title: str
  colour: str
  marker: str
  targets: tuple[str, ...]
  per_clip: Callable[[Inputs], jax.Array]
  weight: float
  compares_clips: bool = False
  compares_similarities: bool = False
  layers: tuple[str, ...] = ()
  settings: Mapping[str, float] = dataclasses.field(default_factory=dict)
  init: Callable[[jax.Array, Inputs], Any] | None = None


def _kd(x: Inputs) -> jax.Array:
  return losses.kd_per_clip(
    x.logits_BC, x.targets['logits'], x.settings['temperature'], x.mask_C
  )


def _sp(x: Inputs) -> jax.Array:
  return losses.sp_per_clip(
    x.frames['frames'], x.targets['batch_gram'], x.axis_name
  )


class Common(NamedTuple):
  """What brings frames of student and teacher to common ones.

  Attributes:
    student: `[U, T_student]`, for `similarity.pool_frames`; None: nothing is to
      do, or it is left to the loss to cut the clip into equal parts.
    teacher: `[U, T_teacher]`, as for the student.
    mask_BT: 1 for the common frames that count, `[B, U]`.
  """

  student: np.ndarray | None
  teacher: np.ndarray | None
  mask_BT: jax.Array


def common_frames(x: Inputs, num_student: int, num_teacher: int) -> Common:
  """How frames of student and teacher of the same time are found.

  Args:
    x: of the term.
    num_student: frames of the student.
    num_teacher: frames of the teacher.
  """
  aligned = x.timings and alignment.align(x.timings, num_student, num_teacher)
  if not aligned:
    mask_BT = x.frame_mask(min(num_student, num_teacher))
    return Common(None, None, mask_BT * _given(x, num_teacher))
  mask_BT = x.frame_mask(len(aligned.starts_T), aligned.starts_T)
  mask_BT = mask_BT * aligned.covered_T[None]
  mask_BT = mask_BT * _given(x, num_teacher, aligned.teacher)
  return Common(aligned.student, aligned.teacher, mask_BT)


def _frames(x: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The student's frames, the teacher's Gram matrices, the coarser's mask.

  Of a teacher with timings of its own both are at common frames already.
  """
  student_BTD, teacher_BTT = x.frames['frames'], x.targets['frame_gram']
  common = common_frames(x, student_BTD.shape[1], teacher_BTT.shape[1])
  if common.student is not None:
    pool = functools.partial(similarity.pool_frames, pool_UT=common.student)
    student_BTD = jax.vmap(pool)(student_BTD)
  if common.teacher is not None:
    pool = functools.partial(similarity.pool_gram, pool_UT=common.teacher)
    teacher_BTT = jax.vmap(pool)(teacher_BTT)
  return student_BTD, teacher_BTT, common.mask_BT


def _given(x: Inputs, num_frames: int, pool_UT=None) -> jax.Array | float:
  """1 for the common frames of which the teacher gave all, `[B, U]`."""
  if targets.NUM_FRAMES not in x.targets:
    return 1.0
  count_B = x.targets[targets.NUM_FRAMES]
  given_BT = jnp.arange(num_frames)[None] < count_B[:, None]
  given_BT = given_BT.astype(jnp.float32)
  if pool_UT is None:
    return given_BT
  return (given_BT @ pool_UT.T > 0.999).astype(jnp.float32)


def _iusp(x: Inputs, centred: bool = False) -> jax.Array:
  return losses.iusp_per_clip(*_frames(x), centred)


def _attention_transfer(x: Inputs) -> jax.Array:
  return losses.attention_transfer_per_clip(*_frames(x))


# In the order of a table. Okabe and Ito's colours.
TERMS: dict[str, Term] = {
  'kd': Term(
    title='KD',
    colour='#E69F00',
    marker='s',
    targets=('logits',),
    per_clip=_kd,
    weight=1.0,
    settings={'temperature': 2.0},
  ),
  'sp': Term(
    title='SP',
    colour='#0072B2',
    marker='D',
    targets=('batch_gram',),
    per_clip=_sp,
    weight=30.0,
    compares_clips=True,
    compares_similarities=True,
  ),
  'iusp': Term(
    title='IUSP',
    colour='#D55E00',
    marker='^',
    targets=('frame_gram',),
    per_clip=_iusp,
    weight=300.0,
    compares_similarities=True,
  ),
  'iusp_centred': Term(
    title='centred IUSP',
    colour='#009E73',
    marker='P',
    targets=('frame_gram',),
    per_clip=lambda x: _iusp(x, centred=True),
    weight=30.0,
    compares_similarities=True,
  ),
  'attention_transfer': Term(
    title='AT',
    colour='#56B4E9',
    marker='X',
    targets=('frame_gram',),
    per_clip=_attention_transfer,
    weight=1000.0,
  ),
}

# Factors of a term's weight by training progress p in [0, 1).
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'constant': lambda p: jnp.ones_like(p),
  # Of emphasised distillation: 20 of 150 epochs, arXiv 2309.14838.
  'ramp': lambda p: jnp.minimum(p * 150 / 20, 1.0),
  'decay': lambda p: 1.0 - p,
  'off_at_half': lambda p: (p < 0.5).astype(p.dtype),
}


@dataclasses.dataclass(frozen=True)
class Objective:
  """The terms that a student is trained on beside its labels.

  Attributes:
    weights: by term; only those that are not 0.
    schedules: names of `SCHEDULES` by term.
    settings: by term, values of `Term.settings`.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  schedules: Mapping[str, str] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> 'Objective':
    """From `config.objective`."""
    active = [name for name in TERMS if fields[f'{name}_weight']]
    return cls(
      weights={name: float(fields[f'{name}_weight']) for name in active},
      schedules={name: fields[f'{name}_schedule'] for name in active},
      settings={
        name: {key: fields[f'{name}_{key}'] for key in TERMS[name].settings}
        for name in active
      },
    )

  @property
  def terms(self) -> tuple[str, ...]:
    """The names of the terms, in the order of `TERMS`."""
    return tuple(name for name in TERMS if name in self.weights)

  @property
  def targets(self) -> tuple[str, ...]:
    """What the terms need of the teacher, each once."""
    return targets_of(self.terms)

  @property
  def layers(self) -> tuple[str, ...]:
    """The inner layers of the student that the terms look at."""
    named = [layer for name in self.terms for layer in TERMS[name].layers]
    return tuple(dict.fromkeys(named))

  @property
  def compares_clips(self) -> tuple[str, ...]:
    """The terms that need the whole global batch at a time."""
    return tuple(name for name in self.terms if TERMS[name].compares_clips)

  def without_weights(self) -> 'Objective':
    """What students that share one program have in common."""
    return dataclasses.replace(self, weights=dict.fromkeys(self.weights, 1.0))


def config_fields() -> dict[str, Any]:
  """Defaults of the fields of `config.objective`: every term is off."""
  fields: dict[str, Any] = {}
  for name, term in TERMS.items():
    fields[f'{name}_weight'] = 0.0
    fields[f'{name}_schedule'] = 'constant'
    fields |= {f'{name}_{key}': value for key, value in term.settings.items()}
  return fields


def targets_of(names: Iterable[str]) -> tuple[str, ...]:
  """What some terms need of the teacher, each once."""
  return tuple(dict.fromkeys(t for name in names for t in TERMS[name].targets))
