"""What a run leaves: scores, predictions, pictures."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from iusp_jax.data import datasets
from iusp_jax.experiment import teacher
from iusp_jax.models import tagger
from iusp_jax.objectives import similarity
from iusp_jax.reporting import formatting, plots, similarity_plot
from iusp_jax.runtime import devices, logs, metrics_log, processes
from iusp_jax.scoring import score_file
from iusp_jax.training import evaluate, train


def measure(
  config: Mapping[str, Any], dataset: datasets.Dataset, trained: teacher.Trained
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Scores of the best and the last checkpoint on validate and test.

  All processes of a run predict; process 0 scores, the others return no
  scores.

  Returns:
    What results.json holds of a model, and the best checkpoint's
    probabilities `[N, C]` by split.
  """
  predict = evaluate.compile_predict(trained.model)
  scores: dict[str, dict[str, np.ndarray]] = {}
  for which in ('best', 'last'):
    loaded = teacher.load(trained.workdir, dataset, which)
    variables = devices.replicate(loaded.variables)
    scores[which] = {
      split: evaluate.predict_split(
        predict,
        variables,
        dataset.splits[split],
        config['student']['training']['batch_size'],
      )
      for split in scored_splits(dataset)
    }
  result = {}
  if processes.is_primary():
    result = describe(trained, dataset, scores, config['bootstrap'])
  return result, scores['best']


def describe(
  trained: teacher.Trained,
  dataset: datasets.Dataset,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  bootstrap: int,
) -> dict[str, Any]:
  """What results.json holds of a model.

  Args:
    trained: the model.
    dataset: that it was scored on.
    scores: probabilities `[N, C]` of 'best' and 'last', by split.
    bootstrap: resamples for the intervals of the best.
  """
  model = trained.model
  result: dict[str, Any] = {
    'fingerprint': trained.fingerprint,
    'workdir': str(trained.workdir),
    'trained_in': train_time(trained.workdir),
    'parameters': model.num_parameters(trained.variables),
    'macs': model.num_macs(dataset.num_samples),
  }
  for which, by_split in scores.items():
    result[which] = {
      split: evaluate.score_split(
        dataset,
        datasets.truth(dataset.splits[split]),
        scores_NC,
        bootstrap=bootstrap if which == 'best' else 0,
      )
      for split, scores_NC in by_split.items()
    }
  return result


def train_time(workdir: pathlib.Path) -> str:
  """What a finished teacher's training took; empty for others."""
  done = workdir / 'done'
  return done.read_text().strip() if done.exists() else ''


def scored_splits(dataset: datasets.Dataset) -> list[str]:
  """The splits to score; a release may come without its test truth."""
  return [name for name in ('validate', 'test') if name in dataset.splits]


def write_predictions(
  dataset: datasets.Dataset,
  scores: Mapping[str, np.ndarray],
  workdir: pathlib.Path,
) -> None:
  """`predictions_<split>.csv` of every scored split, as the challenge's."""
  for split, scores_NC in scores.items():
    names = datasets.truth(dataset.splits[split])['clip_id']
    columns = dict(zip(dataset.tags, scores_NC.T, strict=True))
    if dataset.level == 'fine':
      coarse = evaluate.by_level(dataset, scores_NC)['coarse']
      columns = dict(zip(dataset.coarse, coarse.T, strict=True)) | columns
    path = workdir / f'predictions_{split}.csv'
    score_file.write_predictions(path, names, columns)


def draw(dataset, guide, student, others, results, workdir) -> None:
  """The pictures of a run; see `pictures`, `similarity_picture`."""
  subject = student or guide
  rows = metrics_log.read_metrics(subject.workdir / 'metrics.jsonl')
  best_by = train.selection_metric(dataset)
  path = workdir / 'learning_curves.png'
  plots.plot_learning_curves(rows, path, best_by=best_by)
  shown = {'teacher': guide, 'student': student} | others
  shown = {name: trained for name, trained in shown.items() if trained}
  draw_tags(dataset, results, workdir)
  clips = similarity_panels(dataset, shown)
  path = workdir / 'similarities.png'
  similarity_plot.plot_similarities(clips, path)


def draw_tags(dataset, results, workdir) -> None:
  """Scores per coarse tag of the teacher and the student."""
  split = scored_splits(dataset)[-1]
  truth = datasets.truth(dataset.splits[split])['coarse']
  support = dict(zip(dataset.coarse, truth.sum(0).tolist(), strict=True))
  by_model = {}
  for name in ('teacher', 'student'):
    if name in results:
      scores = results[name]['best'][split]['coarse']
      by_model[name] = {
        tag: None if k in scores['undefined'] else value
        for k, (tag, value) in enumerate(
          zip(dataset.coarse, scores['class_auprc'], strict=True)
        )
      }
  plots.plot_tag_scores(by_model, support, workdir / 'tag_scores.png')


def similarity_panels(dataset, shown) -> list:
  """Three test clips, each with every model's frame similarities.

  Frames are pooled to the fewest that a shown model has, as IUSP does for its
  two: only matrices of one size have a distance.
  """
  split = dataset.splits[scored_splits(dataset)[-1]]
  truth = datasets.truth(split)
  # The first clips of three different sets of tags, not the prettiest ones.
  _, first = np.unique(truth['coarse'], axis=0, return_index=True)
  chosen = sorted(k for k in first if truth['coarse'][k].any())[:3]
  panels = []
  for k in chosen or [0]:
    example = split.source[int(k)]
    wave_BS = example['audio'][None]
    frames, log_mel = {}, np.zeros((0, 0))
    for name, trained in shown.items():
      mel_BTF = tagger.hear(trained.model, wave_BS)
      output = tagger.apply(trained.model, trained.variables, mel_BTF)
      frames[name] = output.frames_BTD[0]
      if mel_BTF.shape[2] > log_mel.shape[1]:  # The finest picture.
        log_mel = np.asarray(mel_BTF[0])
    names = np.array(dataset.coarse)[truth['coarse'][k] > 0]
    matrices = similarity_matrices(frames)
    panels.append(
      similarity_plot.SimilarityPanel(
        title=truth['clip_id'][k],
        tags=tuple(names),
        log_mel_TF=log_mel,
        seconds=wave_BS.shape[1] / 16_000,
        similarity=matrices,
      )
    )
  return panels


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


def announce(results: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """The table of scores, and where everything is."""
  logs.log(formatting.score_table(results))
  logs.log(f'Results: {workdir}/results.json')
  for picture in ('learning_curves', 'tag_scores', 'similarities'):
    logs.log(f'Picture: {workdir}/{picture}.png')
