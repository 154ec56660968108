"""A teacher that others trained: its weights, and a head for a data set's tags.

It becomes a trained model like any other, in `cache_dir/teachers`, so that what
follows does not know the difference. Two heads turn what it gives into logits
of the tags:

  zero_shot  the most probable of the AudioSet classes that stand for a tag:
             no clip is needed;
  probe      one logistic layer on the mean and the maximum of the frames and
             on the logits of those classes, trained on the data set.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.data import datasets, foreign_outputs
from iusp_jax.models import tagger, trained
from iusp_jax.models.pretrained import audioset, efficientat, torch_file
from iusp_jax.runtime import devices, files, logs, preemption, processes
from iusp_jax.training import evaluate, probe
from tfds_dcase import download

HEADS = ('probe', 'zero_shot')
_ADDRESS = 'https://github.com/fschmid56/EfficientAT/releases/download/v0.0.1'


@dataclasses.dataclass(frozen=True)
class Release:
  """Published weights.

  Attributes:
    file: its name; see `_ADDRESS`.
    width: of the model, see `efficientat.EfficientAt`.
    size: in bytes, where it is known.
    sha256: of the file, where it is known; else that of the first download.
  """

  file: str
  width: float
  size: int | None = None
  sha256: str | None = None


RELEASES: Mapping[str, Release] = {
  'mn01_as': Release('mn01_as_mAP_298.pt', 0.1),
  'mn02_as': Release('mn02_as_mAP_378.pt', 0.2),
  'mn04_as': Release(
    'mn04_as_mAP_432.pt',
    0.4,
    4_066_513,
    '899a8c6217063f6941793102a2780b3dd788ab11fce468d9cf5f0577c453321c',
  ),
  'mn05_as': Release('mn05_as_mAP_443.pt', 0.5),
  'mn10_as': Release('mn10_as_mAP_471.pt', 1.0),
  'mn20_as': Release('mn20_as_mAP_478.pt', 2.0),
  'mn30_as': Release('mn30_as_mAP_482.pt', 3.0),
  'mn40_as': Release('mn40_as_mAP_484.pt', 4.0),
}


def recipe(config: Mapping[str, Any]) -> dict[str, Any]:
  """What `tagger.build` takes, of a whole config."""
  width = RELEASES[config['teacher']['pretrained']].width
  rate = datasets.format_of(config['dataset']).sample_rate
  return {
    'model': {'architecture': 'efficientat', 'width_multiplier': width},
    'frontend': {'kind': 'kaldi_mel', 'sample_rate': rate},
  }


def made_from(config: Mapping[str, Any]) -> dict[str, Any]:
  """What the teacher of a config, as `teacher.identified` gives it, is."""
  own = config['teacher']
  named = {key: own[key] for key in ('pretrained', 'weights_sha256', 'head')}
  return {**recipe(config), **named}


def map_tags(
  tags: Sequence[str], tag_map: Mapping[str, Sequence[str]]
) -> dict[str, list[str]]:
  """The AudioSet names that stand for each tag of a data set.

  Args:
    tags: of the data set.
    tag_map: of config.teacher.tag_map; goes before the names that are known.

  Raises:
    ValueError: for a mapping of or to tags that there are not.
  """
  where = 'AudioSet (iusp_jax/models/pretrained/audioset_names.csv)'
  foreign_outputs.check_tag_map(tag_map, tags, audioset.names(), where)
  own = {tag: list(theirs) for tag, theirs in tag_map.items()}
  return {
    tag: own.get(tag, known) for tag, known in audioset.map_tags(tags).items()
  }


def check_overrides(own: Mapping[str, Any], asked: Iterable[str]) -> None:
  """Raises ValueError for a field that a pretrained teacher does not have."""
  parts = ('model', 'frontend', 'training', 'augment', 'seed')
  for field in asked:
    if field.startswith(tuple(f'teacher.{part}' for part in parts)):
      raise ValueError(
        f'config.{field} is set, and config.teacher.pretrained is '
        f'{own["pretrained"]!r}: that teacher is not trained here; leave out '
        f'--config.{field}'
      )


def checksum(config: Mapping[str, Any]) -> str:
  """SHA-256 of the weights; downloads them where nothing else says it.

  Raises:
    ValueError: where there is no such file.
  """
  own = config['teacher']
  known = RELEASES[own['pretrained']].sha256
  if known and not own['weights']:
    return known
  with _weights_file(config).open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _weights_file(config) -> pathlib.Path:
  """The file that is named, or the release's, downloaded to the cache."""
  own = config['teacher']
  if own['weights']:
    path = pathlib.Path(files.resolve(own['weights']))
    if not path.is_file():
      raise ValueError(
        f'config.teacher.weights is {own["weights"]!r}, and {path} is no file: '
        f"expected the weights of {own['pretrained']}, or '' to download them"
      )
    return path
  release = RELEASES[own['pretrained']]
  address = f'{_ADDRESS}/{release.file}'
  folder = files.resolve(config['cache_dir']) / 'pretrained'
  logs.log(f'teacher: {own["pretrained"]} from {address} (MIT licence)')
  try:
    return download.download(
      address, folder, size=release.size, sha256=release.sha256
    )
  except download.DownloadError as error:
    raise ValueError(
      f'config.teacher.pretrained is {own["pretrained"]!r}: {error} Or load '
      f'{address} by other means and name the file in config.teacher.weights'
    ) from error


def make(
  config: Mapping[str, Any],
  of: Mapping[str, Any],
  dataset: datasets.Dataset,
  workdir: pathlib.Path,
) -> None:
  """Writes the teacher of a data set as a trained model.

  All processes of a run call this together.

  Args:
    config: the whole config.
    of: what `model.json` will hold; `tag_map` has the AudioSet names by tag.
    dataset: whose tags it gives, and that a probe is trained on.
    workdir: of the model.

  Raises:
    ValueError: where the weights are none of the model, or tags have no names.
  """
  started = time.monotonic()
  model = tagger.build(of, len(dataset.tags))
  path = processes.primary_first(lambda: _weights_file(config))
  _check_checksum(path, of['weights_sha256'])
  shapes = model.shapes(dataset.num_samples)
  variables = efficientat.zero_shot(
    shapes,
    torch_file.read(path, _most_bytes(shapes)),
    audioset.matrix(of['tag_map']),
  )
  unmatched = [tag for tag, names in of['tag_map'].items() if not names]
  if of['head'] == 'zero_shot':
    _check_matched(unmatched)
    rows = [{'step': 0, **_scores(model, variables, dataset)}]
  else:
    found, rows = _fit(model, variables, dataset)
    tags = {'kernel': found.kernel_PC, 'bias': found.bias_C}
    tags = {key: np.asarray(x, np.float32) for key, x in tags.items()}
    variables['params']['tags'] = tags
    _log_fit(dataset, unmatched, rows)
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  files.write_atomically(workdir / 'metrics.jsonl', text)
  both = {'best': variables, 'last': variables}
  trained.save(workdir, of, both, {'best': 0, 'last': 0})
  minutes = (time.monotonic() - started) / 60
  files.write_atomically(workdir / 'done', f'{minutes:.1f} minutes\n')


def _most_bytes(shapes) -> int:
  """More than a file of a model's weights can have."""
  return 2 * sum(4 * leaf.size for leaf in jax.tree.leaves(shapes)) + 2**20


def _check_checksum(path, expected: str) -> None:
  with path.open('rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != expected:
    raise ValueError(
      f'{path} has changed since the run began: its SHA-256 is {found}, '
      f'expected {expected}; run again'
    )


def _check_matched(unmatched) -> None:
  if unmatched:
    raise ValueError(
      "config.teacher.head is 'zero_shot', but no AudioSet class is known for "
      f"the tags {', '.join(map(repr, unmatched))}: expected 'probe', which is "
      'trained on your clips, or names for them in config.teacher.tag_map, as '
      'in iusp_jax/models/pretrained/audioset_names.csv'
    )


def _log_fit(dataset, unmatched, rows) -> None:
  best, metric = _best(dataset, rows), evaluate.selection_metric(dataset)
  if unmatched:
    logs.log(
      f'teacher: no AudioSet class is known for {", ".join(unmatched)}: the '
      'probe learns them from the frames alone'
    )
  logs.log(
    f'teacher: linear probe on {len(dataset.splits["train"])} clips, weights '
    f'penalised by {best["penalty"]:.2g}: {metric} {best[metric]:.3f}, '
    f'{rows[0][metric]:.3f} without it'
  )


def _fit(model, variables, dataset) -> tuple[probe.Probe, list[dict]]:
  """The probe that is best on validate.

  Also rows for metrics.jsonl: of the model without a probe, then of all probes.
  """
  train, validate = (
    _labelled(model, variables, dataset.splits[name])
    for name in ('train', 'validate')
  )
  probes = probe.fit(train)
  first_NC = validate.features_NP[:, -len(dataset.tags) :]
  rows: list[dict[str, Any]] = [
    {'step': 0, **_score(dataset, 'validate', first_NC)}
  ]
  fitted = zip(probe.PENALTIES, probes, strict=True)
  for step, (penalty, each) in enumerate(fitted, start=1):
    rows.append(
      {
        'step': step,
        'penalty': penalty,
        'validate/loss': probe.loss(each, validate),
        **_score(dataset, 'validate', each.logits(validate.features_NP)),
      }
    )
  return probes[_best(dataset, rows)['step'] - 1], rows


def _best(dataset, rows) -> dict[str, Any]:
  """The row of the best probe, by the score that chooses an epoch of a run."""
  metric = evaluate.selection_metric(dataset)
  return max(
    rows[1:],
    key=lambda row: (np.nan_to_num(row[metric], nan=-1), -row['validate/loss']),
  )


def _labelled(model, variables, split: datasets.Split) -> probe.Labelled:
  found_NP = _map(model, variables, split, _features)
  return probe.Labelled(found_NP, *datasets.labels(split))


def _features(output, batch):
  """What the layer `tags` takes, of a model with the weights of zero shot."""
  del batch
  frames_BTD = output.frames_BTD
  parts = frames_BTD.mean(1), frames_BTD.max(1), output.logits_BC
  return jnp.concatenate(parts, axis=-1)


def _map(model, variables, split, of_output) -> np.ndarray:
  """A function of the output for every clip of a split, read from the disk."""
  layout = devices.Layout(1)
  stacked = jax.tree.map(lambda x: np.asarray(x)[None], variables)
  clips = evaluate.Clips(split)
  # Other processes would wait for one that stops by itself.
  check = preemption.check if jax.process_count() == 1 else lambda: None
  return evaluate.map_clips(
    model, layout.put(stacked), clips, layout, of_output, check
  )[0]


def _scores(model, variables, dataset) -> dict[str, float]:
  split = 'validate'
  if split in datasets.without_labels(dataset):
    return {}
  logits_NC = _map(model, variables, dataset.splits[split], evaluate.logits_of)
  return _score(dataset, split, logits_NC)


def _score(dataset, split: str, logits_NC) -> dict[str, float]:
  """As a row of metrics.jsonl has it."""
  scores = evaluate.score_split(
    dataset,
    datasets.truth(dataset.splits[split]),
    evaluate.probabilities(logits_NC),
  )
  return evaluate.scalars(split, scores)
