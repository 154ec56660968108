"""The plots of a run, from its models and results."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax.data import datasets
from iusp_jax.experiment import results
from iusp_jax.experiment.setup import Setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import alignment, similarity
from iusp_jax.reporting import plots, similarity_plot
from iusp_jax.reporting.table import objectives
from iusp_jax.runtime import files, logs, metrics_log
from iusp_jax.scoring import calibration
from iusp_jax.training import evaluate

_MODELS = ('teacher', 'baseline', 'student')
NAMES = (
  'learning_curves.png',
  'tag_scores.png',
  'similarities.png',
  'reliability.png',
)


@dataclasses.dataclass(frozen=True)
class StoredFrames:
  """Frame similarities of a teacher that cannot be run.

  Attributes:
    gram_NTT: of the clips of the split that is drawn.
    timing: of its frames.
  """

  gram_NTT: np.ndarray
  timing: alignment.Timing


Shown = trained.Trained | StoredFrames


def teacher_shown(setup: Setup) -> dict[str, Shown]:
  """The teacher as plots of similarities show it, as 'teacher'; or nothing."""
  own = setup.foreign
  if own is None:
    found = setup.teacher
    return {'teacher': found} if isinstance(found, trained.Trained) else {}
  split, timing = results.scored_splits(setup.dataset)[-1], own.contents.timing
  if timing is None or not own.contents.gives('frames', split):
    logs.log(
      f'similarities are drawn without the teacher: {own.contents.path} has no '
      f'frames of {split}'
    )
    return {}
  gram_NTT = setup.outputs(split, ['frame_gram'])['frame_gram']
  return {'teacher': StoredFrames(gram_NTT, timing)}


def draw(
  dataset: datasets.Dataset,
  shown: Mapping[str, Shown],
  record: Mapping[str, Any],
  workdir: pathlib.Path,
) -> None:
  """All plots of a run.

  Args:
    dataset: that was scored on.
    shown: models by name, the one that the run trained last of 'teacher' and
      'student'.
    record: of the run, see `results`.
    workdir: of the run.
  """
  subject = shown.get('student') or shown['teacher']
  assert isinstance(subject, trained.Trained)
  rows = metrics_log.read_metrics(subject.workdir / 'metrics.jsonl')
  plots.plot_learning_curves(
    rows, workdir / NAMES[0], best_by=evaluate.selection_metric(dataset)
  )
  draw_tags(dataset, record, workdir)
  panels = similarity_panels(dataset, shown)
  similarity_plot.plot_similarities(panels, workdir / NAMES[2], titles(record))
  path = subject.workdir / calibration.NAME
  if path.exists():  # Not of a teacher, which nobody tags with.
    of = files.read_json(path)
    plots.plot_reliability(
      of['reliability'], of['fitted_on'], workdir / NAMES[3]
    )


def titles(record: Mapping[str, Any]) -> dict[str, str]:
  """What the models of a run are called, by name, in order.

  Two students are called by their objectives, as in a table.
  """
  named = {name: name for name in _MODELS if record.get(name)}
  if 'baseline' in named:
    weights = {'baseline': {}, 'student': record['weights']}
    found = objectives.from_weights(weights)
    named |= {name: of.title for name, of in found.items()}
  return named


def draw_tags(dataset, record, workdir) -> None:
  """Scores per coarse tag of the teacher and the student."""
  split = results.scored_splits(dataset)[-1]
  truth = datasets.truth(dataset.splits[split])['coarse']
  support = dict(zip(dataset.coarse, truth.sum(0).tolist(), strict=True))
  by_model = {}
  for name, title in titles(record).items():
    if split not in record[name]['best']:  # Of a teacher from elsewhere.
      continue
    scores = record[name]['best'][split][evaluate.level_of(dataset, split)]
    by_model[title] = {
      tag: None if k in scores['undefined'] else value
      for k, (tag, value) in enumerate(
        zip(dataset.coarse, scores['class_auprc'], strict=True)
      )
    }
  plots.plot_tag_scores(by_model, support, workdir / NAMES[1])


def similarity_panels(
  dataset: datasets.Dataset, shown: Mapping[str, Shown]
) -> list:
  """Three test clips, each with every model's frame similarities.

  Frames are pooled to the fewest that a shown model has, as IUSP does for its
  two: only matrices of one size have a distance.
  """
  split = dataset.splits[results.scored_splits(dataset)[-1]]
  truth = datasets.truth(split)
  # The first clips of three different sets of tags, not the prettiest ones.
  _, first = np.unique(truth['coarse'], axis=0, return_index=True)
  chosen = sorted(k for k in first if truth['coarse'][k].any())[:3]
  panels = []
  for k in chosen or [0]:
    example = split.source[int(k)]
    wave_BS = example['audio'][None]
    frames, log_mel = {}, np.zeros((0, 0))
    grams, timings, by_time = {}, {}, False
    for name, found in shown.items():
      if isinstance(found, StoredFrames):
        grams[name] = np.asarray(found.gram_NTT[k], np.float32)
        timings[name] = found.timing
        continue
      by_time |= tagger.given_timing(found.model) is not None
      timings[name] = tagger.frame_timing(found.model)
      mel_BTF = tagger.log_mel(found.model, wave_BS)
      output = _compile(found.model)(found.variables, mel_BTF)
      frames[name] = output.frames_BTD[0]
      if mel_BTF.shape[2] > log_mel.shape[1]:  # The finest one.
        log_mel = np.asarray(mel_BTF[0])
    names = np.array(dataset.coarse)[truth['coarse'][k] > 0]
    panels.append(
      similarity_plot.SimilarityPanel(
        title=truth['clip_id'][k],
        tags=tuple(names),
        log_mel_TF=log_mel,
        seconds=dataset.clip_seconds,
        similarity=(
          aligned_matrices(frames, grams, timings)
          if grams or by_time
          else similarity_matrices(frames)
        ),
      )
    )
  return panels


def aligned_matrices(frames, grams, timings) -> dict[str, np.ndarray]:
  """As `similarity_matrices`, by the time that frames cover.

  Args:
    frames: by model, `[T_model, D]`.
    grams: by model, `[T_model, T_model]`, of those that have no frames.
    timings: by model, of both.
  """
  made = {
    name: similarity.gram(frames_TD) for name, frames_TD in frames.items()
  }
  made = {name: (grams | made)[name] for name in timings}
  coarse = max(timings, key=lambda name: timings[name].hop_seconds)
  count, matrices = len(made[coarse]), {}
  for name, gram_TT in made.items():
    pair = alignment.Timings(timings[name], timings[coarse])
    if alignment.align(pair, len(gram_TT), count) is not None:
      pool_UT = alignment.pooling_by_time(
        pair.student, len(gram_TT), pair.teacher, count
      )
      gram_TT = similarity.pool_gram(gram_TT, pool_UT)
    matrices[name] = np.asarray(similarity.normalise_rows(gram_TT))
  return matrices


@functools.cache
def _compile(model: tagger.Tagger) -> Callable:
  """`tagger.apply`: one by one, a deep model's operations take 20 s."""
  return jax.jit(
    lambda variables, mel_BTF: tagger.apply(model, variables, mel_BTF)
  )


def similarity_matrices(frames) -> dict[str, np.ndarray]:
  """By model, `[T, T]` from frames `[T_model, D]`; T is the least T_model."""
  num_frames = min(len(frames_TD) for frames_TD in frames.values())
  return {
    name: np.asarray(
      similarity.frame_similarity(
        similarity.align_frames(frames_TD, num_frames)
      )
    )
    for name, frames_TD in frames.items()
  }
