"""Trained taggers: what a run's workdir says of its model, and loading it."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from iusp_jax.models import tagger
from iusp_jax.runtime import checkpoint, files

METADATA = 'model.json'
CHECKPOINTS = ('best', 'last')
_FIELDS = {
  'model': dict,
  'frontend': dict,
  'tags': list,
  'num_samples': int,
  'dataset': dict,
  'fingerprint': str,
}


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained tagger and where it came from.

  Attributes:
    model: architecture and front end.
    variables: 'params' and 'batch_stats', to evaluate.
    metadata: what `model.json` holds: `model`, `frontend`, `training`,
      `augment`, `seed`, `dataset`, `tags` …
    workdir: of the run.
  """

  model: tagger.Tagger
  variables: tagger.Variables
  metadata: Mapping[str, Any]
  workdir: pathlib.Path

  @property
  def fingerprint(self) -> str:
    """12 hexadecimal digits that name what the model was made from."""
    return self.metadata['fingerprint']

  def weights(self) -> str:
    """12 hexadecimal digits that name the arrays.

    The same recipe gives other arrays on a machine with other cores.
    """
    text = json.dumps(checkpoint.checksums(self.variables), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def save(
  workdir: pathlib.Path,
  metadata: Mapping[str, Any],
  variables: Mapping[str, Mapping[str, Any]],
  steps: Mapping[str, int],
) -> None:
  """Writes `model.json` and `checkpoints/best`, `checkpoints/last`.

  All processes of a run call this together; process 0 writes.

  Args:
    workdir: of the run.
    metadata: see `Trained`.
    variables: by checkpoint, 'best' and 'last'.
    steps: by checkpoint, steps of training done.
  """
  files.write_atomically(workdir / METADATA, files.to_json(metadata))
  for which in CHECKPOINTS:
    checkpoint.save(
      workdir / 'checkpoints' / which,
      steps[which],
      variables[which],
      {},
      keep=1,
    )


def read_metadata(workdir: pathlib.Path) -> dict[str, Any]:
  """What `model.json` of a run holds.

  Raises:
    ValueError: where there is none.
  """
  path = workdir / METADATA
  if not path.is_file():
    results, hint = workdir / 'results.json', ''
    if results.is_file():  # Of a run that stopped after the teacher.
      place = files.read_json(results)['teacher']['workdir']
      hint = f'; the teacher of this run is in {place}'
    raise ValueError(
      f'{workdir} holds no trained model: expected a workdir of a finished '
      f'run, with {METADATA} and checkpoints{hint}'
    )
  metadata = files.read_json(path, _remedy(workdir))
  if not isinstance(metadata, dict) or not all(
    isinstance(metadata.get(name), kind) for name, kind in _FIELDS.items()
  ):
    raise ValueError(
      f'{path} lacks some of the fields {", ".join(sorted(_FIELDS))}: it is '
      f'damaged or of another version; {_remedy(workdir)}'
    )
  return metadata


def _remedy(workdir) -> str:
  return f'delete {workdir} and run the command that made it again'


def load(workdir: pathlib.Path, which: str = 'best') -> Trained:
  """The tagger that a run trained.

  Args:
    workdir: of a finished run.
    which: 'best' by validation, or 'last'.

  Raises:
    ValueError: where there is no trained model, or its files do not agree.
  """
  metadata = read_metadata(workdir)
  restored = checkpoint.restore_newest(workdir / 'checkpoints' / which)
  if restored is None:
    raise ValueError(
      f'{workdir}/checkpoints/{which} has no checkpoint: run the command that '
      'made this workdir again'
    )
  _, arrays, _ = restored
  try:
    model = tagger.build(metadata, len(metadata['tags']))
    model.shapes(metadata['num_samples'])
    variables = {
      'params': arrays['params'],
      'batch_stats': arrays.get('batch_stats') or {},
    }
  # Whatever a model or front end says of values that are not its own.
  except (KeyError, TypeError, AttributeError, ValueError) as error:
    raise ValueError(
      f'{workdir / METADATA} is of another version of this program or damaged '
      f'({type(error).__name__}: {error}); {_remedy(workdir)}'
    ) from error
  check_shapes(model, variables, workdir, metadata['num_samples'])
  return Trained(model, variables, metadata, workdir)


def check_shapes(
  model: tagger.Tagger, variables, workdir: pathlib.Path, num_samples: int
) -> None:
  """Raises unless the arrays are those of the model, shape by shape."""
  if problem := checkpoint.other_shapes(variables, model.shapes(num_samples)):
    raise ValueError(
      f'the checkpoint in {workdir} is of another architecture than its '
      f'{METADATA}: {problem}'
    )
