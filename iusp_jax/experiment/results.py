"""What a run leaves: model, scores, predictions, and its record.

One function writes the workdirs of all members of a group, be it a single run
or the cells of a table. `results.json` is written last: a run that has it is
done.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import (
  datasets,
  foreign_outputs,
  sources,
  teacher_outputs,
)
from iusp_jax.deploy import examples
from iusp_jax.experiment import identity, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import terms
from iusp_jax.runtime import devices, environment, files, logs, processes
from iusp_jax.scoring import calibration, metrics, score_file
from iusp_jax.training import engine, evaluate, step

_CHECKPOINTS = ('best', 'last')
_GRAM = f'{sources.TARGET}frame_gram'


@dataclasses.dataclass(frozen=True)
class Run:
  """Where one member of a group is written, and as what.

  Attributes:
    workdir: for all that it leaves.
    config: plain; as a run by itself has it.
    identity: see `identity.of_student`.
  """

  workdir: pathlib.Path
  config: Mapping[str, Any]
  identity: Mapping[str, Any]


def path_of(workdir: pathlib.Path) -> pathlib.Path:
  """The record of a run, written when all else is there."""
  return workdir / 'results.json'


def read(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The record of a finished run; None where there is none.

  Raises:
    ValueError: naming the file, where it cannot be read.
  """
  path = path_of(workdir)
  return files.read_json(path) if path.exists() else None


def read_if_whole(workdir: pathlib.Path) -> dict[str, Any] | None:
  """The record of a finished run; None, and a line, where it is damaged.

  For runs that are made again as if they had not been finished.
  """
  try:
    return read(workdir)
  except ValueError as error:
    reason = str(error).rpartition(';')[0]  # Without its remedy.
    logs.log(f'{reason}; counts as not finished')
    return None


def scored_splits(dataset: datasets.Dataset) -> list[str]:
  """The splits to score; a release may come without its test truth."""
  return [name for name in ('validate', 'test') if name in dataset.splits]


def _labelled_splits(dataset: datasets.Dataset) -> list[str]:
  """Those that are scored against labels, not against the teacher's tags."""
  return [
    name
    for name in scored_splits(dataset)
    if dataset.splits[name].agreed is None
  ]


def write(
  setup: Setup,
  members: Sequence[engine.Member],
  runs: Sequence[Run],
  extra: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """Scores the members of a group and writes a workdir for each.

  All processes of a run compute; process 0 scores and writes. `finish` is to
  follow for each.

  Args:
    setup: of the group.
    members: from `engine.fit`.
    runs: one a member.
    extra: what else the records hold.

  Returns:
    The records; {} on processes that do not write.
  """
  good = [m for m in members if not m.diverged]
  scores, distances = _predict(setup, good) if good else ({}, [])
  records = []
  for member, run in zip(members, runs, strict=True):
    own, distance = {}, None
    if not member.diverged:
      k = good.index(member)
      own = {
        which: {split: scores_MNC[k] for split, scores_MNC in by_split.items()}
        for which, by_split in scores.items()
      }
      distance = distances[k]
    record = {}
    if processes.is_primary():
      record = _record(setup, member, run, own) | dict(extra)
      record['frame_distance'] = distance
    _write_files(setup, member, run, own)
    records.append(record)
    processes.barrier()
  return records


def _write_files(setup, member, run, scores) -> None:
  """All but `results.json`; by all processes, as checkpoints are."""
  workdir = run.workdir
  files.write_atomically(config_path(workdir), files.to_json(run.config))
  text = ''.join(json.dumps(row) + '\n' for row in member.rows)
  files.write_atomically(workdir / 'metrics.jsonl', text)
  if not member.diverged:
    own = complete_identity(run.identity, setup)
    of = {
      **member.job.recipe.plain(),
      **{k: own[k] for k in ('seed', 'objective', 'teacher')},
      'dataset': setup.dataset.fingerprint(),
    }
    teacher.save_member(
      member, workdir, teacher.model_metadata(of, setup.dataset)
    )
    write_predictions(setup.dataset, scores['best'], workdir)
    _write_calibration(setup.dataset, scores['best'], workdir)
    examples.keep(workdir, setup.dataset, run.config['keep_examples'])


def _write_calibration(dataset, scores, workdir) -> None:
  """Temperatures and thresholds for whoever tags with the best checkpoint.

  Scores, predictions and tables stay uncalibrated: a temperature a tag changes
  the order of scores across tags.
  """
  split = 'validate'
  if split not in _labelled_splits(dataset):
    return
  labels = datasets.labels(dataset.splits[split])
  found = calibration.fit(scores[split], *labels, dataset.tags, split)
  calibrated_NC = found.probabilities(calibration.logit(scores[split]))
  measured = {
    'uncalibrated': calibration.reliability(scores[split], *labels),
    'calibrated': calibration.reliability(calibrated_NC, *labels),
  }
  calibration.save(workdir, found, dataset.tags, measured)


def finish(workdir: pathlib.Path, record: Mapping[str, Any]) -> None:
  """Writes `results.json`, which says that a run is done."""
  files.write_atomically(path_of(workdir), files.to_json(record))
  files.remove_folder(workdir / 'training')  # Nothing is left to continue.


def config_path(workdir: pathlib.Path) -> pathlib.Path:
  """Where a run keeps the config that it was started with."""
  return workdir / 'config.json'


def complete_identity(of: Mapping[str, Any], setup: Setup) -> dict[str, Any]:
  """An identity with what is known once data and teacher are there."""
  found = {**of, 'data': setup.dataset.fingerprint()}
  if of['teacher'] is not None:
    assert setup.teacher is not None
    found['teacher'] = {
      'fingerprint': setup.teacher.fingerprint,
      'weights': setup.teacher.weights(),
      'store': of['teacher']['store'],
      'store_augmentations': of['teacher'].get('store_augmentations', 0),
    }
  return found


def _record(setup, member, run, scores) -> dict[str, Any]:
  """What `results.json` holds of a run."""
  dataset = setup.dataset
  metric = evaluate.selection_metric(dataset)
  own = complete_identity(run.identity, setup)
  record: dict[str, Any] = {
    'status': 'diverged' if member.diverged else 'done',
    'reason': member.diverged,
    'identity': own,
    'fingerprint': identity.fingerprint(own),
    'config': dict(run.config),
    'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
    'seed': member.job.seed,
    'weights': dict(member.job.objective.weights),
    'ratios': terms.Objective.from_config(run.config['objective']).ratios,
    'clipped_share': _clipped_share(member),
    'environment': environment.collect(),
    'curve': [
      [row['step'], row[metric]] for row in member.rows if metric in row
    ],
  }
  if member.diverged:
    return record
  bootstrap = run.config['bootstrap']
  record['student'] = describe(
    member.job.student(), member.best, dataset, scores, bootstrap
  )
  losses = {
    int(row['step']): row[evaluate.DISTILLATION]
    for row in member.rows
    if evaluate.DISTILLATION in row
  }
  if losses:  # Where validate has no labels.
    record['distillation_loss'] = losses[member.best_step]
  record['resampled'] = _resampled(dataset, scores['best'], bootstrap)
  return record


def _clipped_share(member: engine.Member) -> float | None:
  """Of all steps, the share whose gradient was clipped; None without a row."""
  key = 'train/clipped_share'
  return next((row[key] for row in reversed(member.rows) if key in row), None)


def describe(
  model: tagger.Tagger,
  variables: tagger.Variables,
  dataset: datasets.Dataset,
  scores: Mapping[str, Mapping[str, np.ndarray]],
  bootstrap: int,
) -> dict[str, Any]:
  """What `results.json` holds of a model.

  Args:
    model: that was scored.
    variables: of it.
    dataset: that it was scored on.
    scores: probabilities `[N, C]` of 'best' and 'last', by split.
    bootstrap: resamples for the intervals of the best.
  """
  result: dict[str, Any] = {
    'parameters': model.num_parameters(variables),
    'macs': model.num_macs(dataset.num_samples),
  }
  for which, by_split in scores.items():
    resamples = bootstrap if which == 'best' else 0
    result[which] = _score(dataset, by_split, resamples)
  return result


def _score(dataset, scores, bootstrap: int) -> dict[str, Any]:
  """Of probabilities `[N, C]` by split, with so many resamples."""
  return {
    split: evaluate.score_split(
      dataset,
      datasets.truth(dataset.splits[split]),
      scores_NC,
      bootstrap=bootstrap,
      by_teacher=dataset.splits[split].agreed is not None,
    )
    for split, scores_NC in scores.items()
  }


def measure_trained(
  setup: Setup, found: teacher_outputs.Teacher, bootstrap: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Scores of the best and the last checkpoint of a trained model.

  Of a teacher from elsewhere those of its stored outputs, as 'best'.

  Returns:
    What `results.json` holds of it ({} on processes that do not write), and
    the best checkpoint's probabilities `[N, C]` by split.
  """
  if isinstance(found, foreign_outputs.Foreign):
    return _measure_foreign(setup, found, bootstrap)
  last = trained.load(found.workdir, 'last')
  variables = {'best': found.variables, 'last': last.variables}
  scores = {
    which: {
      split: predict(setup, found.model, own, split)
      for split in _labelled_splits(setup.dataset)
    }
    for which, own in variables.items()
  }
  if not processes.is_primary():
    return {}, scores['best']
  result = describe(
    found.model, found.variables, setup.dataset, scores, bootstrap
  )
  done = found.workdir / 'done'
  result |= {
    'fingerprint': found.fingerprint,
    'weights': found.weights(),
    'workdir': str(found.workdir),
    'trained_in': done.read_text().strip() if done.exists() else '',
  }
  return result, scores['best']


def _measure_foreign(setup, found: foreign_outputs.Foreign, bootstrap):
  """See `measure_trained`; `withheld` says of which splits there are none."""
  splits = scored_splits(setup.dataset)
  if found.contents.gives('frames', splits[-1]):
    # Needed after training, and what is wrong in there is reported before.
    setup.outputs(splits[-1], ['frame_gram'])
  withheld = {s: reason for s in splits if (reason := found.scores(s))}
  scores = {
    split: evaluate.probabilities(
      np.asarray(setup.outputs(split, ['logits'])['logits'])
    )
    for split in _labelled_splits(setup.dataset)
    if split not in withheld
  }
  for split, reason in withheld.items():
    logs.log(f'teacher: has no scores on {split}: {reason}')
  if not processes.is_primary():
    return {}, scores
  of = found.contents.metadata
  result = {name: of[name] for name in ('name', 'source', 'licence')}
  result |= {
    'fingerprint': found.fingerprint,
    'weights': found.weights(),
    'outputs': str(found.contents.path),
    'trained_in': '',
    'withheld': withheld,
    'best': _score(setup.dataset, scores, bootstrap),
  }
  return result, scores


def predict(
  setup: Setup, model: tagger.Tagger, variables: tagger.Variables, split: str
) -> np.ndarray:
  """Probabilities `[N, C]` of a split's clips by one model."""
  layout = devices.Layout(1)
  return evaluate.predict(
    model,
    layout.put(jax.tree.map(lambda x: np.asarray(x)[None], variables)),
    setup.features.clips(model.frontend, split),
    layout,
  )[0]


def _predict(setup, members):
  """Probabilities `[M, N, C]` by checkpoint and split; frame distances."""
  job, layout = members[0].job, devices.Layout(len(members))
  model, scores = job.student(), {}
  variables = {}
  for which in _CHECKPOINTS:
    own = [getattr(member, which) for member in members]
    stacked = jax.tree.map(lambda *x: np.stack(x), *own)
    variables[which] = layout.put(stacked)
    scores[which] = {
      split: evaluate.predict(
        model,
        variables[which],
        setup.features.clips(job.recipe.frontend, split),
        layout,
      )
      for split in scored_splits(setup.dataset)
    }
  distances = _frame_distances(setup, members, variables['best'], layout)
  return scores, distances


def _frame_distances(setup, members, variables, layout) -> list[float | None]:
  """The IUSP loss of every best member on the last scored split.

  None where there is no teacher, or its outputs are not stored.
  """
  split = scored_splits(setup.dataset)[-1]
  job = members[0].job
  stored = setup.stores() and job.teacher is None
  own = setup.foreign
  if own and not own.contents.gives('frames', split):
    stored = False
  if setup.teacher is None or not stored:
    return [None] * len(members)
  found = setup.outputs(split, ['frame_gram'])
  outputs = {sources.TARGET + name: x for name, x in found.items()}
  clips = setup.features.clips(job.recipe.frontend, split, outputs)
  of_output = _frame_distance(
    job.student(), setup.dataset.num_samples, job.beside
  )
  found_MN = evaluate.map_clips(
    job.student(), variables, clips, layout, of_output
  )
  return found_MN.mean(1).tolist()


@functools.cache
def _frame_distance(
  student: tagger.Tagger, num_samples: int, beside: terms.Correspondence
) -> evaluate.OfOutput:
  """The IUSP loss of each clip, given the teacher's frame Gram matrices."""

  def of_output(output, batch):
    labels = jnp.zeros((len(batch['length']), 0))  # IUSP takes none.
    batch = {**batch, _GRAM: batch[_GRAM].astype(jnp.float32)}
    batch |= {'tags': labels, 'mask': labels}
    inputs = step.inputs_of(student, num_samples, beside, output, batch, {})
    return terms.TERMS['iusp'].per_clip(inputs)

  return of_output


def _resampled(dataset, scores, bootstrap: int) -> list[float]:
  """Micro-AUPRC on resamples of the test clips; empty without bootstrap."""
  if not bootstrap or 'test' not in _labelled_splits(dataset):
    return []
  drawn = metrics.resample(
    datasets.truth(dataset.splits['test'])['coarse'],
    evaluate.by_level(dataset, scores['test'])['coarse'],
    bootstrap=bootstrap,
  )
  return drawn['micro_auprc'].round(5).tolist()


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
