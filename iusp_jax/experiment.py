"""One run: teacher, student, scores, and all that a run leaves behind."""

import functools
import importlib.metadata
import json
import os
import pathlib
import subprocess
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from iusp_jax import (
  data,
  evaluate,
  logs,
  parallel,
  report,
  scoring,
  similarity,
  store,
  tagger,
  teacher,
  train,
)

# What may differ between two runs of one workdir without changing the result.
FREE_FIELDS = ('cache_dir', 'compare_with')

PACKAGES = (
  'jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy',
  'tensorflow-datasets',
)  # fmt: skip


def run(config: Mapping[str, Any], workdir: pathlib.Path) -> dict[str, Any]:
  """Trains, evaluates and reports what a config asks for.

  Continues a run that was stopped; says so if the run is complete.

  Args:
    config: as configs/base.py makes it.
    workdir: for everything that the run leaves.

  Returns:
    What results.json holds.

  Raises:
    ValueError: for a config, a workdir or data that cannot be right.
  """
  started = time.monotonic()
  check(config)
  logs.say(parallel.describe())
  with logs.lock(workdir, 'another run works in this --workdir', wait=False):
    claim(config, workdir)
    if (workdir / 'results.json').exists():
      results = json.loads((workdir / 'results.json').read_text())
      logs.say(f'This run is complete; delete {workdir} to repeat it.')
      announce(results, workdir)
      return results
    dataset = load_dataset(config)
    guide, student = models(config, dataset, workdir)
    results = {
      'config': teacher.plain(config),
      'dataset': {**dataset.fingerprint(), 'tags': list(dataset.tags)},
      'seed': config['seed'],
      'environment': environment(),
    }
    measured = {}
    for name, trained in (('teacher', guide), ('student', student)):
      if trained is not None:
        results[name], measured[name] = measure(config, dataset, trained)
    subject = 'teacher' if student is None else 'student'
    write_predictions(dataset, measured[subject], workdir)
    draw(config, dataset, guide, student, results, workdir)
    seconds = time.monotonic() - started
    results['wall_seconds'] = {'this_process': round(seconds, 1)}
    logs.write_atomically(workdir / 'results.json', logs.to_json(results))
  announce(results, workdir)
  return results


def check(config: Mapping[str, Any]) -> None:
  """Facts across fields, before any work is done.

  Raises:
    ValueError: naming both fields and both values.
  """
  if config['fit'] not in ('student', 'teacher'):
    raise ValueError(
      f"config.fit is {config['fit']!r}: expected 'student' or 'teacher'"
    )
  for name, value in config['objective'].items():
    if not value >= 0 or value == float('inf'):
      raise ValueError(
        f'config.objective.{name} is {value}: expected a finite number >= 0'
      )
  if config['objective']['kd_temperature'] <= 0:
    raise ValueError('config.objective.kd_temperature is 0: expected > 0')
  store.check(config['teacher']['store'])
  for part in ('student', 'teacher'):
    parallel.check_batch_size(config[part]['training']['batch_size'])
    found = config[part]['frontend']['sample_rate']
    if found != 16_000:
      raise ValueError(
        f'config.{part}.frontend.sample_rate is {found}: expected 16000, the '
        'rate that every data set is stored at'
      )
    tagger.build(config[part], num_tags=1)  # Raises for a wrong field.
    for field in ('epochs', 'learning_rate', 'eval_every_epochs'):
      value = config[part]['training'][field]
      if not value > 0:
        raise ValueError(
          f'config.{part}.training.{field} is {value}: expected > 0'
        )


def claim(config: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """Writes config.json, or holds the config against the one there.

  Raises:
    ValueError: listing the fields that differ from an earlier run's.
  """
  path = workdir / 'config.json'
  own = flat(teacher.plain(config))
  if not path.exists():
    logs.write_atomically(path, logs.to_json(teacher.plain(config)))
    return
  earlier = flat(json.loads(path.read_text()))
  differing = [
    f'{key}: {earlier.get(key, "absent")} there, {own.get(key, "absent")} now'
    for key in sorted(earlier.keys() | own.keys())
    if earlier.get(key) != own.get(key) and key not in FREE_FIELDS
  ]
  if differing:
    raise ValueError(
      f'{workdir} holds a run of another config: choose another --workdir, or '
      'delete it to start over. It differs in ' + '; '.join(differing)
    )


def flat(config: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """Nested dicts as one, with dotted names."""
  result = {}
  for key, value in config.items():
    if isinstance(value, Mapping):
      result |= flat(value, f'{prefix}{key}.')
    else:
      result[f'{prefix}{key}'] = value
  return result


def load_dataset(config: Mapping[str, Any]) -> data.Dataset:
  """The prepared data set; one process prepares it while others wait."""
  folder = pathlib.Path(config['dataset']['data_dir'])
  started = time.monotonic()
  with logs.lock(folder, 'another process prepares a data set'):
    dataset = data.load(config['dataset'])
  sizes = '/'.join(
    str(len(dataset.splits[name])) for name in ('train', 'validate', 'test')
  )
  logs.say(
    f'data set {dataset.name}: {sizes} clips, {len(dataset.tags)} '
    f'{dataset.level} tags ({time.monotonic() - started:.0f} s)'
  )
  return dataset


def models(
  config: Mapping[str, Any], dataset: data.Dataset, workdir: pathlib.Path
) -> tuple[teacher.Trained | None, teacher.Trained | None]:
  """The teacher, where there is one, and the trained student."""
  for part in ('teacher', 'student'):
    logs.say(f'{part}: {describe_model(config[part], dataset)}')
  if config['fit'] == 'teacher':
    return teacher.obtain(config, dataset), None
  terms = [
    term
    for term in train.DISTILLATION_TERMS
    if config['objective'][f'{term}_weight']
  ]
  # Without distillation a teacher is of use for the pictures only.
  guide = (teacher.obtain if terms else teacher.find)(config, dataset)
  recipe = teacher.plain(
    {key: config['student'][key] for key in teacher.RECIPE}
  )
  frozen, targets = None, None
  if terms:
    assert guide is not None
    frozen = train.Teacher(guide.model, guide.variables)
    outputs = store.obtain(config, guide, dataset)
    if outputs is not None:
      targets = functools.partial(outputs.lookup, terms=tuple(terms))
  of = {
    **recipe,
    'seed': config['seed'],
    'objective': teacher.plain(config['objective']),
    'dataset': dataset.fingerprint(),
    'teacher': guide.fingerprint if guide and terms else None,
  }
  teacher.save_facts(workdir, of, dataset)
  train.fit(
    train.Job(
      name='student',
      recipe=recipe,
      objective=config['objective'],
      dataset=dataset,
      seed=config['seed'],
      workdir=workdir,
      teacher=frozen,
      targets=targets,
    )
  )
  return guide, teacher.load(workdir, dataset)


def describe_model(recipe: Mapping[str, Any], dataset: data.Dataset) -> str:
  """Architecture and size in words."""
  model = tagger.build(recipe, len(dataset.tags))
  num_samples = dataset.splits['validate'].source[0]['audio'].shape[0]
  variables = model.initialise(0, num_samples)
  return (
    f'{recipe["model"]["architecture"]}, '
    f'{model.num_parameters(variables):,} parameters, '
    f'{model.num_macs(variables, num_samples) / 1e6:.1f} M '
    'multiply-accumulates a clip'
  )


def measure(
  config: Mapping[str, Any], dataset: data.Dataset, trained: teacher.Trained
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
  """Scores of the best and the last checkpoint on validate and test.

  Returns:
    What results.json holds of a model, and the best checkpoint's
    probabilities `[N, C]` by split.
  """
  num_samples = dataset.splits['test'].source[0]['audio'].shape[0]
  result: dict[str, Any] = {
    'fingerprint': trained.fingerprint,
    'workdir': str(trained.workdir),
    'parameters': trained.model.num_parameters(trained.variables),
    'macs': trained.model.num_macs(trained.variables, num_samples),
  }
  predict = evaluate.compile_predict(trained.model)
  best = {}
  for which in ('best', 'last'):
    loaded = teacher.load(trained.workdir, dataset, which)
    variables = parallel.replicate(loaded.variables)
    result[which] = {}
    for split in ('validate', 'test'):
      scores_NC = evaluate.predict_split(
        predict,
        variables,
        dataset.splits[split],
        config['student']['training']['batch_size'],
      )
      result[which][split] = evaluate.score_split(
        dataset,
        data.truth(dataset.splits[split]),
        scores_NC,
        bootstrap=config['bootstrap'] if split == 'test' else 0,
      )
      if which == 'best':
        best[split] = scores_NC
  return result, best


def write_predictions(
  dataset: data.Dataset,
  scores: Mapping[str, np.ndarray],
  workdir: pathlib.Path,
) -> None:
  """predictions_test.csv, in the challenge's form."""
  names = data.truth(dataset.splits['test'])['clip_id']
  columns = dict(zip(dataset.tags, scores['test'].T, strict=True))
  if dataset.level == 'fine':
    coarse = evaluate.by_level(dataset, scores['test'])['coarse']
    columns = dict(zip(dataset.coarse, coarse.T, strict=True)) | columns
  scoring.write_predictions(workdir / 'predictions_test.csv', names, columns)


def environment() -> dict[str, Any]:
  """Versions, commit, device: what a result also depends on."""
  root = pathlib.Path(__file__).resolve().parent.parent
  commit = subprocess.run(
    ['git', 'describe', '--always', '--dirty', '--abbrev=12'],
    cwd=root,
    capture_output=True,
    text=True,
    check=False,
  ).stdout.strip()
  return {
    'packages': {name: importlib.metadata.version(name) for name in PACKAGES},
    'git_commit': commit or 'unknown',
    'backend': jax.default_backend(),
    'device': jax.devices()[0].device_kind,
    'num_devices': jax.device_count(),
    'num_cores': len(os.sched_getaffinity(0)),
  }


def draw(config, dataset, guide, student, results, workdir) -> None:
  """The pictures of a run; see `report`."""
  subject = student or guide
  rows = logs.read_metrics(subject.workdir / 'metrics.jsonl')
  report.plot_learning_curves(rows, workdir / 'learning_curves.png')
  others = {}
  if config['compare_with']:
    other = pathlib.Path(config['compare_with'])
    others[other.name] = teacher.load(other, dataset)
  shown = {'teacher': guide, 'student': student} | others
  shown = {name: trained for name, trained in shown.items() if trained}
  draw_tags(dataset, results, workdir)
  clips = similarity_panels(dataset, shown)
  report.plot_similarities(clips, workdir / 'similarities.png')


def draw_tags(dataset, results, workdir) -> None:
  """Scores per coarse tag of the teacher and the student."""
  truth = data.truth(dataset.splits['test'])['coarse']
  support = dict(zip(dataset.coarse, truth.sum(0).tolist(), strict=True))
  by_model = {}
  for name in ('teacher', 'student'):
    if name in results:
      scores = results[name]['best']['test']['coarse']
      by_model[name] = {
        tag: None if k in scores['undefined'] else value
        for k, (tag, value) in enumerate(
          zip(dataset.coarse, scores['class_auprc'], strict=True)
        )
      }
  report.plot_tag_scores(by_model, support, workdir / 'tag_scores.png')


def similarity_panels(dataset, shown) -> list:
  """Three test clips, each with every model's frame similarities."""
  split = dataset.splits['test']
  truth = data.truth(split)
  # Clips with the most repetitive teacher or else student are the least
  # telling: take the first clips of three different sets of tags instead.
  _, first = np.unique(truth['coarse'], axis=0, return_index=True)
  chosen = sorted(k for k in first if truth['coarse'][k].any())[:3]
  panels = []
  for k in chosen or [0]:
    example = split.source[int(k)]
    wave_BS = example['audio'][None]
    matrices, log_mel = {}, np.zeros((0, 0))
    for name, trained in shown.items():
      mel_BTF = tagger.hear(trained.model, wave_BS)
      output = tagger.apply(trained.model, trained.variables, mel_BTF)
      frames_TD = output.frames_BTD[0]
      matrices[name] = np.asarray(similarity.frame_similarity(frames_TD))
      if mel_BTF.shape[2] > log_mel.shape[1]:  # The finest picture.
        log_mel = np.asarray(mel_BTF[0])
    names = np.array(dataset.coarse)[truth['coarse'][k] > 0]
    panels.append(
      report.SimilarityPanel(
        title=truth['clip_id'][k],
        tags=tuple(names),
        log_mel_TF=log_mel,
        seconds=wave_BS.shape[1] / 16_000,
        similarity=matrices,
      )
    )
  return panels


def announce(results: Mapping[str, Any], workdir: pathlib.Path) -> None:
  """The table of scores, and where everything is."""
  logs.say(report.score_table(results))
  logs.say(f'Results: {workdir}/results.json')
  for picture in ('learning_curves', 'tag_scores', 'similarities'):
    logs.say(f'Picture: {workdir}/{picture}.png')
