"""Artefacts of an export: compared with the model, then written or refused.

An artefact gives probabilities for the same clips as the model; one that
differs is not written, and the card gives the reason.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from iusp_jax.deploy import card, examples, functions, litert, tagging
from iusp_jax.models import tagger
from iusp_jax.runtime import files, logs

MAX_ERROR = 1e-4  # Of a probability, of a float artefact.
NAME = 'artefacts.json'  # What was written and what was not.
_BOOTSTRAP = 300


class NotWrittenError(Exception):
  """Why an artefact is not written, such as that it differs."""


@dataclasses.dataclass(frozen=True)
class Artefacts:
  """What the artefacts are made from and compared with.

  Attributes:
    loaded: the tagger.
    own: its functions.
    found: clips to compare on.
    reference: calibrated probabilities [N, C] of the model, by split.
    folder: where the artefacts are written.
    records: of what was written, see `card`.
    refused: of what was not.
  """

  loaded: tagging.LoadedTagger
  own: functions.Functions
  found: examples.Examples
  reference: dict[str, np.ndarray]
  folder: pathlib.Path
  records: list[dict[str, Any]]
  refused: list[dict[str, str]]

  @classmethod
  def of(
    cls, loaded: tagging.LoadedTagger, folder: pathlib.Path
  ) -> 'Artefacts':
    """Those of a tagger, in a folder that may have some already."""
    own = functions.Functions.of(loaded)
    logs.log('export: collects clips to compare on')
    found = examples.find(loaded, own)
    if found.reason:
      what = 'the clips kept with the checkpoint'
      if found.dataset is None:
        what = 'noise, without scores'
      logs.log(f'export: compares on {what}: {found.reason}')
    before = {'written': [], 'not_written': []}
    if (folder / NAME).is_file():
      before = files.read_json(folder / NAME, 'export the model again')
    reference = _reference(loaded, found)
    return cls(
      loaded, own, found, reference, folder, *map(list, before.values())
    )

  @property
  def clips(self) -> examples.Clips:
    """Those that errors are taken on."""
    return self.found.splits[self.found.tested]

  @property
  def waves_NS(self) -> np.ndarray:
    """Their waveforms, float32."""
    return self.clips.wave_NS.astype(np.float32) / 32768

  def attempt(self, name: str, make: Callable[['Artefacts', str], None]):
    """Writes an artefact, or notes why it is not written."""
    started = time.monotonic()
    for records in (self.records, self.refused):  # Of an earlier attempt.
      records[:] = [record for record in records if record['file'] != name]
    (self.folder / name).unlink(missing_ok=True)
    try:
      make(self, name)
      logs.log(f'export: {name} ({time.monotonic() - started:.0f} s)')
    except NotWrittenError as error:
      self.refuse(name, str(error))
    except OSError:  # The folder cannot be written.
      raise
    # A converter's own errors, of many types: the others are still wanted.
    except Exception as error:
      self.refuse(name, f'cannot be made ({_first_line(error)})')

  def refuse(self, name: str, reason: str) -> None:
    """Notes why an artefact is not written."""
    self.refused.append({'file': name, 'reason': reason})
    logs.log(f'not written: {name}: {reason}')

  def keep(
    self,
    name: str,
    content: bytes,
    scores_NC: np.ndarray,
    what: str,
    limit: float = MAX_ERROR,
    note: str = '',
  ) -> None:
    """Writes an artefact whose probabilities of the clips are the model's."""
    wanted_NC = self.reference[self.found.tested]
    error = np.abs(scores_NC - wanted_NC[: len(scores_NC)])
    own = {}
    if self.found.dataset is not None:
      own = self.found.score(self.found.tested, scores_NC, _BOOTSTRAP)
    self.write(name, content, error, what, limit, note, own)

  def write(
    self, name, content, error, what, limit=MAX_ERROR, note='', scores=None
  ) -> None:
    """Writes an artefact with some errors, or raises NotWrittenError."""
    if not np.isfinite(error).all() or error.max() > limit:
      raise NotWrittenError(
        f'a probability is off by {error.max():.2g} on {self.found.tested}, '
        f'expected at most {limit:g}'
      )
    files.write_atomically(self.folder / name, content)
    self.records.append(
      {
        'file': name,
        'what': what,
        'bytes': len(content),
        'arena_bytes': (
          litert.arena_bytes(content) if name.endswith('.tflite') else None
        ),
        'largest_error': float(error.max()),
        'mean_error': float(error.mean()),
        'compared': len(error),
        'note': note,
        **(scores or {}),
      }
    )

  def first_small_enough(
    self,
    name: str,
    kinds: Iterable[str],
    make: Callable[[str], bytes],
    run: Callable[[bytes, np.ndarray], np.ndarray],
    what: str,
    max_loss: float,
  ) -> None:
    """Writes the first kind of int8 that loses little enough on validate.

    Args:
      name: of the artefact.
      kinds: of int8.
      make: the file of a kind.
      run: probabilities of a file for log-mels [N, T, F].
      what: for the card.
      max_loss: of micro-AUPRC.
    """
    found, tried = self.found, []
    before = found.score('validate', self.reference['validate'])['micro_auprc']
    if before is None:
      count = len(self.reference['validate'])
      raise NotWrittenError(
        f'int8 is chosen by its score on validate, and its {count} clips here '
        'have no tag'
      )
    for kind in kinds:
      try:
        content = make(kind)
        scores = run(content, found.splits['validate'].mel_NTF)
      except Exception as error:  # As in `attempt`.
        tried.append(f'{kind} cannot be made ({_first_line(error)})')
        continue
      loss = before - found.score('validate', scores)['micro_auprc']
      if loss <= max_loss:
        note = f'{kind}; loss on validate {loss:+.4f}'
        note += ''.join(f'; {other}' for other in tried)
        scores = run(content, self.clips.mel_NTF)
        self.keep(name, content, scores, what, np.inf, note)
        return
      tried.append(f'{kind} lost {loss:.4f}')
    raise NotWrittenError(
      f'no kind loses at most --max_int8_loss={max_loss} of micro-AUPRC on '
      f'validate: {", ".join(tried)}'
    )

  def need_data(self) -> None:
    """Raises NotWrittenError where the data set is not there."""
    if self.found.dataset is None:
      raise NotWrittenError(
        'int8 needs clips that the model was trained on: '
        f'{self.found.reason}; export it where they are, or train it with '
        '--config.keep_examples=300, which keeps clips with the checkpoint'
      )

  def finish(self) -> None:
    """Writes the card, and the same as JSON."""
    both = {'written': self.records, 'not_written': self.refused}
    files.write_atomically(self.folder / NAME, json.dumps(both, indent=1))
    card.write(
      self.folder, self.loaded, self.own, self.found, self.reference,
      self.records, self.refused,
    )  # fmt: skip


def _first_line(error: Exception) -> str:
  first = (str(error).splitlines() or [''])[0]
  return f'{type(error).__name__}: {first}'


def _reference(loaded, found: examples.Examples) -> dict[str, np.ndarray]:
  """Calibrated probabilities of the model as it is, by split."""
  own = functions.Functions.of(loaded, 'auto')
  apply = jax.jit(
    lambda mel_BTF: tagger.apply(own.model, own.variables, mel_BTF).logits_BC
  )
  result = {}
  for name, clips in found.splits.items():
    if name != 'train':
      logits = [np.asarray(apply(mel_TF[None]))[0] for mel_TF in clips.mel_NTF]
      result[name] = loaded.calibration.probabilities(np.stack(logits))
  return result


def run_each(
  inputs: Iterable[np.ndarray], run: Callable[[np.ndarray], Any]
) -> np.ndarray:
  """An artefact's output for each clip."""
  return np.stack([np.asarray(run(x), np.float64) for x in inputs])
