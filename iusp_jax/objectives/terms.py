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

from iusp_jax.objectives import (
  alignment,
  clusters,
  embeddings,
  losses,
  similarity,
  soft_tags,
  targets,
)


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
    frame_logits_BTC: the student's, of its last frames.
    frames: the student's `[B, T, D]` by layer; 'frames' are the last ones.
    inner: names of the student's inner layers, from the first on; their frames
      are there where `Term.layers` has `targets.INNER`.
    tags_BC: labels in [0, 1].
    mask_BC: 1 where the label is known.
    targets: the teacher's, by the names in `Term.targets`.
    frame_mask: gives, for a number of frames T, `[B, T]` that is 1 for frames
      of the recording and 0 for padding; and for where frames begin, as
      fractions of the clip, where they are not equal parts of it.
    clip_seconds: how long a clip is, padding included.
    settings: values of `Term.settings`.
    params: the term's own parameters, see `Term.init`.
    axis_name: the mapped axis that the batch is spread over.
    timings: of the frames of student and teacher, see `Correspondence`.
    mask_C: 1 for the tags that the teacher has, whose logits are 0 for the
      others; None: it has all.
  """

  logits_BC: jax.Array
  frame_logits_BTC: jax.Array
  frames: Mapping[str, jax.Array]
  inner: tuple[str, ...]
  tags_BC: jax.Array
  mask_BC: jax.Array
  targets: Mapping[str, jax.Array]
  frame_mask: Callable[..., jax.Array]
  clip_seconds: float
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
    compares_clips: whether it needs the whole global batch at a time.
    masks_tags: whether it leaves out tags that the teacher does not have, see
      `Inputs.mask_C`; one that needs no tags has none to leave out.
    compares_similarities: whether plots about similarities show it.
    layers: inner layers of the student that it looks at; `targets.INNER` for
      all that a model has before its last frames.
    settings: its own hyperparameters and their defaults; config fields
      `objective.<term>_<setting>`, floats greater than 0.
    init: its own parameters from a key and `Inputs` of shapes, those of the
      targets included, or None. They are trained with the student and are no
      part of it.
  """

  title: str
  colour: str
  marker: str
  targets: tuple[str, ...]
  per_clip: Callable[[Inputs], jax.Array]
  compares_clips: bool = False
  masks_tags: bool = False
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
  starts_T = aligned.starts_T / x.clip_seconds
  mask_BT = x.frame_mask(len(starts_T), starts_T)
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


def _frame_logits(x: Inputs) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The student's, the teacher's, and the mask of the coarser's frames.

  Of a teacher with timings of its own both are at common frames already.
  """
  student_BTC, teacher_BTC = x.frame_logits_BTC, x.targets['frame_logits']
  common = common_frames(x, student_BTC.shape[1], teacher_BTC.shape[1])
  if common.student is not None:
    student_BTC = soft_tags.pool_logits(student_BTC, common.student)
  if common.teacher is not None:
    teacher_BTC = soft_tags.pool_logits(teacher_BTC, common.teacher)
  return student_BTC, teacher_BTC, common.mask_BT


def _frame_kd(x: Inputs) -> jax.Array:
  student_BTC, teacher_BTC, mask_BT = _frame_logits(x)
  return soft_tags.frame_kd_per_clip(
    student_BTC, teacher_BTC, x.settings['temperature'], mask_BT, x.mask_C
  )


def _emphasised_kd(x: Inputs) -> jax.Array:
  return soft_tags.emphasised_kd_per_clip(
    x.logits_BC,
    x.targets['logits'],
    x.tags_BC,
    x.mask_BC,
    x.settings['gamma'],
    x.settings['temperature'],
  )


def _multilevel_kd(x: Inputs) -> jax.Array:
  instance_B, batch_B, class_B = soft_tags.multilevel_kd_per_clip(
    x.logits_BC, x.targets['logits'], x.settings['temperature'], x.axis_name
  )
  batch_B *= x.settings['batch_factor']
  return instance_B + batch_B + x.settings['class_factor'] * class_B


def _clip_frame_kd(x: Inputs) -> jax.Array:
  student_BTC, teacher_BTC, mask_BT = _frame_logits(x)
  intra_B, inter_B = soft_tags.clip_frame_kd_per_clip(
    x.logits_BC, student_BTC, x.targets['logits'], teacher_BTC, mask_BT
  )
  return intra_B + inter_B


def _hard_frame_kd(x: Inputs) -> jax.Array:
  student_BTC, teacher_BTC, mask_BT = _frame_logits(x)
  rate = teacher_BTC.shape[1] / x.clip_seconds
  width = max(1, round(x.settings['median_seconds'] * rate))
  return soft_tags.hard_frame_kd_per_clip(
    student_BTC, teacher_BTC, width, mask_BT
  )


def _dist_tags(x: Inputs) -> jax.Array:
  return soft_tags.dist_tags_per_clip(
    x.logits_BC, x.targets['logits'], x.settings['temperature'], x.axis_name
  )


def _projection(key: jax.Array, x: Inputs, target: str) -> jax.Array:
  """From the student's last frames to the axes of a target, `[D, K]`."""
  size = x.frames[targets.FRAMES].shape[-1], x.targets[target].shape[-1]
  return jax.random.normal(key, size) / size[0] ** 0.5


def _vic(x: Inputs) -> jax.Array:
  frames_BTD = x.frames[targets.FRAMES]
  mask_BT = x.frame_mask(frames_BTD.shape[1])
  invariance_B, variance_B, covariance_B = embeddings.vic_per_clip(
    embeddings.project(embeddings.mean_frame(frames_BTD, mask_BT), x.params),
    x.targets['whitened'],
    x.axis_name,
  )
  return invariance_B + variance_B + covariance_B / 25.0


def _span_alignment(x: Inputs) -> jax.Array:
  student_BTD = embeddings.project(x.frames[targets.FRAMES], x.params)
  teacher_BTD = x.targets['frame_axes'].astype(jnp.float32)
  masks = [x.frame_mask(y.shape[1]) for y in (student_BTD, teacher_BTD)]
  mask_BT = min(masks, key=lambda mask_BT: mask_BT.shape[1])
  tags = soft_tags.soft_tags(x.targets['frame_logits'])
  tags = soft_tags.align_soft_tags(tags, mask_BT.shape[1])
  # A frame of the recording counts a little, however silent it is.
  weights_BT = jnp.maximum(jnp.sum(jnp.exp(tags.on), axis=2), 1e-6) * mask_BT
  return embeddings.mean_alignment_per_clip(
    student_BTD, teacher_BTD, *masks
  ) + embeddings.span_alignment_per_clip(
    student_BTD, teacher_BTD, weights_BT=weights_BT
  )


def _head_losses(x: Inputs, distils: bool) -> jax.Array:
  """Of a head on each inner layer, with the labels and the teacher."""
  total = jnp.zeros(len(x.logits_BC))
  for name, head in x.params.items():
    frames_BTD = x.frames[name]
    mask_BT = x.frame_mask(frames_BTD.shape[1])
    pooled_BD = embeddings.mean_frame(frames_BTD, mask_BT)
    logits_BC = embeddings.project(pooled_BD, head['kernel']) + head['bias']
    entropy_BC = losses.tagging_per_tag(logits_BC, x.tags_BC, x.mask_BC)
    known_B = jnp.maximum(jnp.sum(x.mask_BC, axis=1), 1.0)
    total += jnp.sum(entropy_BC, axis=1) / known_B
    if distils:
      total += soft_tags.kd_per_clip(
        logits_BC, x.targets['logits'], x.settings['temperature']
      )
  return total / len(x.params)


def _heads(key: jax.Array, x: Inputs) -> dict[str, dict[str, jax.Array]]:
  """A linear head on each inner layer of the student."""
  found, num_tags = {}, x.logits_BC.shape[-1]
  for number, name in enumerate(x.inner):
    size = x.frames[name].shape[-1]
    kernel_DC = jax.random.normal(
      jax.random.fold_in(key, number), (size, num_tags)
    )
    bias_1C = jnp.zeros((1, num_tags))
    found[name] = {'kernel': kernel_DC / size**0.5, 'bias': bias_1C}
  return found


def _cluster_iusp(x: Inputs) -> jax.Array:
  gram_BKTT = x.targets['cluster_gram']
  names = clusters.student_layers(
    (*x.inner, targets.FRAMES), gram_BKTT.shape[1]
  )
  found = []
  for k, name in enumerate(names):
    student_BTD, teacher_BTT = x.frames[name], gram_BKTT[:, k]
    num_frames = min(student_BTD.shape[1], teacher_BTT.shape[1])
    mask_BT = x.frame_mask(num_frames)
    found.append(losses.iusp_per_clip(student_BTD, teacher_BTT, mask_BT))
  return sum(found, jnp.zeros(len(gram_BKTT))) / len(found)


# In the order of a table. The first five have Okabe and Ito's colours.
TERMS: dict[str, Term] = {
  'kd': Term(
    title='KD',
    colour='#E69F00',
    marker='s',
    targets=('logits',),
    per_clip=_kd,
    masks_tags=True,
    settings={'temperature': 2.0},
  ),
  'sp': Term(
    title='SP',
    colour='#0072B2',
    marker='D',
    targets=('batch_gram',),
    per_clip=_sp,
    compares_clips=True,
    compares_similarities=True,
  ),
  'iusp': Term(
    title='IUSP',
    colour='#D55E00',
    marker='^',
    targets=('frame_gram',),
    per_clip=_iusp,
    compares_similarities=True,
  ),
  'iusp_centred': Term(
    title='centred IUSP',
    colour='#009E73',
    marker='P',
    targets=('frame_gram',),
    per_clip=lambda x: _iusp(x, centred=True),
    compares_similarities=True,
  ),
  'attention_transfer': Term(
    title='AT',
    colour='#56B4E9',
    marker='X',
    targets=('frame_gram',),
    per_clip=_attention_transfer,
  ),
  'frame_kd': Term(
    title='frame KD',
    colour='#AA4499',
    marker='v',
    targets=('frame_logits',),
    per_clip=_frame_kd,
    masks_tags=True,
    settings={'temperature': 1.0},
  ),
  'emphasised_kd': Term(
    title='emphasised KD',
    colour='#8B4513',
    marker='<',
    targets=('logits',),
    per_clip=_emphasised_kd,
    settings={'gamma': 2.0, 'temperature': 1.0},
  ),
  'multilevel_kd': Term(
    title='multi-level KD',
    colour='#332288',
    marker='>',
    targets=('logits',),
    per_clip=_multilevel_kd,
    compares_clips=True,
    settings={'temperature': 2.0, 'batch_factor': 10.0, 'class_factor': 10.0},
  ),
  'clip_frame_kd': Term(
    title='clip-and-frame KD',
    colour='#661100',
    marker='d',
    targets=('logits', 'frame_logits'),
    per_clip=_clip_frame_kd,
  ),
  'hard_frame_kd': Term(
    title='hard frame KD',
    colour='#E377C2',
    marker='h',
    targets=('frame_logits',),
    per_clip=_hard_frame_kd,
    settings={'median_seconds': 0.56},
  ),
  'dist_tags': Term(
    title='DIST',
    colour='#777777',
    marker='*',
    targets=('logits',),
    per_clip=_dist_tags,
    compares_clips=True,
    settings={'temperature': 1.0},
  ),
  'vic': Term(
    title='VIC',
    colour='#117733',
    marker='p',
    targets=('whitened',),
    per_clip=_vic,
    compares_clips=True,
    init=lambda key, x: _projection(key, x, 'whitened'),
  ),
  'span_alignment': Term(
    title='span alignment',
    colour='#999933',
    marker='8',
    targets=('frame_axes', 'frame_logits'),
    per_clip=_span_alignment,
    init=lambda key, x: _projection(key, x, 'frame_axes'),
  ),
  'inter_kd': Term(
    title='inter-layer KD',
    colour='#E41A1C',
    marker='H',
    targets=('logits',),
    per_clip=lambda x: _head_losses(x, distils=True),
    layers=(targets.INNER,),
    settings={'temperature': 2.0},
    init=_heads,
  ),
  'cluster_iusp': Term(
    title='cluster IUSP',
    colour='#44AA99',
    marker='x',
    targets=('cluster_gram',),
    per_clip=_cluster_iusp,
    compares_similarities=True,
    layers=(targets.INNER,),
  ),
  # The control of inter_kd: its heads, without a teacher.
  'deep_supervision': Term(
    title='deep supervision',
    colour='#6A5ACD',
    marker='+',
    targets=(),
    per_clip=lambda x: _head_losses(x, distils=False),
    layers=(targets.INNER,),
    init=_heads,
  ),
}

# Factors of a term's weight by training progress p in [0, 1).
SCHEDULES: dict[str, Callable[[jax.Array], jax.Array]] = {
  'constant': lambda p: jnp.ones_like(p),
  # Of emphasised distillation: 20 of 150 epochs, arXiv 2309.14838.
  'ramp': lambda p: jnp.minimum(p * 150 / 20, 1.0),
  'decay': lambda p: 1.0 - p,
  'decay_to_half': lambda p: jnp.maximum(1.0 - 2.0 * p, 0.0),
  'off_at_half': lambda p: (p < 0.5).astype(p.dtype),
  'on_at_half': lambda p: (p >= 0.5).astype(p.dtype),
}
# The cross-entropy with the labels: a part of every objective, at weight 1, and
# no term. It has a schedule, so that labels may come after a teacher.
TAGGING = 'tagging'


@dataclasses.dataclass(frozen=True)
class Objective:
  """The terms that a student is trained on beside its labels.

  Attributes:
    weights: by term; only those that are not 0.
    schedules: names of `SCHEDULES` by term, and of the labels by `TAGGING`
      where it is not constant.
    settings: by term, values of `Term.settings`.
    ratios: by term whose weight is still to be measured, see `with_units`.
  """

  weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
  schedules: Mapping[str, str] = dataclasses.field(default_factory=dict)
  settings: Mapping[str, Mapping[str, float]] = dataclasses.field(
    default_factory=dict
  )
  ratios: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @classmethod
  def from_config(cls, fields: Mapping[str, Any]) -> 'Objective':
    """From `config.objective`.

    Raises:
      ValueError: where a term has both a weight and a ratio.
    """
    given = {
      kind: {n: float(x) for n in TERMS if (x := fields[f'{n}_{kind}'])}
      for kind in ('weight', 'ratio')
    }
    weights, ratios = given['weight'], given['ratio']
    for name in weights.keys() & ratios.keys():
      raise ValueError(
        f'config.objective.{name}_weight is {weights[name]:g} and '
        f'config.objective.{name}_ratio is {ratios[name]:g}: expected one of '
        f'them, the other 0 (--config.objective.{name}_weight=0 for the ratio)'
      )
    active = [name for name in TERMS if name in weights | ratios]
    schedules = {name: fields[f'{name}_schedule'] for name in active}
    if (of_labels := fields[f'{TAGGING}_schedule']) != 'constant':
      schedules[TAGGING] = of_labels
    return cls(
      weights=weights,
      ratios=ratios,
      schedules=schedules,
      settings={
        name: {key: fields[f'{name}_{key}'] for key in TERMS[name].settings}
        for name in active
      },
    )

  @property
  def terms(self) -> tuple[str, ...]:
    """The names of the terms, in the order of `TERMS`."""
    return tuple(
      name for name in TERMS if name in self.weights or name in self.ratios
    )

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

  @property
  def has_params(self) -> bool:
    """Whether any term has parameters of its own."""
    return any(TERMS[name].init for name in self.terms)

  def without_weights(self) -> 'Objective':
    """What students that share one program have in common."""
    ones = dict.fromkeys(self.terms, 1.0)
    return dataclasses.replace(self, weights=ones, ratios={})

  def with_units(self, units: Mapping[str, float]) -> 'Objective':
    """With weights in place of ratios.

    Args:
      units: by term, the weight at which its gradient is as long as that of
        the labels' term.
    """
    found = {name: rounded(x * units[name]) for name, x in self.ratios.items()}
    weights = {**self.weights, **found}
    return dataclasses.replace(self, weights=weights, ratios={})


def rounded(weight: float) -> float:
  """To two significant digits: a measured weight is no more exact."""
  return float(f'{weight:.2g}')


def config_fields() -> dict[str, Any]:
  """Defaults of the fields of `config.objective`: every term is off."""
  fields: dict[str, Any] = {f'{TAGGING}_schedule': 'constant'}
  for name, term in TERMS.items():
    fields[f'{name}_weight'] = 0.0
    fields[f'{name}_ratio'] = 0.0
    fields[f'{name}_schedule'] = 'constant'
    fields |= {f'{name}_{key}': value for key, value in term.settings.items()}
  return fields


def targets_of(names: Iterable[str]) -> tuple[str, ...]:
  """What some terms need of the teacher, each once."""
  return tuple(dict.fromkeys(t for name in names for t in TERMS[name].targets))
