"""`--mode=tag`: files and folders of recordings, to a table, CSV or JSON."""

import contextlib
import csv
import itertools
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import tqdm

from iusp_jax.deploy import tagging
from iusp_jax.objectives import similarity
from iusp_jax.reporting import formatting, tag_plot
from iusp_jax.runtime import files, logs
from tfds_dcase import audio
from tfds_dcase import files as data_files

FORMATS = ('.csv', '.json')
PLOT_SECONDS = 60.0
_SHOWN_WINDOWS = 12  # Of a recording, in the table.
_SHOWN_PROBLEMS = 20


def run(
  checkpoint: str,
  names: Sequence[str],
  output: str = '',
  top_k: int = 0,
  frames: bool = False,
  plot: str = '',
  start: float = 0.0,
  seconds: float = 0.0,
) -> int:
  """Tags recordings; logs a table, and writes a file and plots.

  Args:
    checkpoint: workdir of a finished run.
    names: of sound files, and of folders whose sound files are meant.
    output: a `.csv` or `.json` file to write; '' for none.
    top_k: so many tags a recording, instead of those above their thresholds.
    frames: whether the file has the probabilities of frames.
    plot: a folder for a plot of each recording; '' for none.
    start: where to begin in each recording, in seconds.
    seconds: how much of it to tag; 0 for all that follows.

  Returns:
    How many recordings could not be read.

  Raises:
    ValueError: for flags that cannot be right, or a folder without sounds.
    OSError: where the output cannot be written.
  """
  if not checkpoint:
    raise ValueError(
      '--checkpoint is missing: expected the workdir of a finished run'
    )
  if start < 0 or seconds < 0 or top_k < 0:
    raise ValueError(
      f'--start={start}, --seconds={seconds}, --top_k={top_k}: expected no '
      'negative number'
    )
  if frames and not output:
    raise ValueError('--frames: expected --output, the file to write them to')
  paths = find(names)
  loaded = tagging.load(checkpoint)
  _log_model(loaded)
  problems: list[str] = []
  drawn: set[str] = set()
  with _writer(output, loaded, frames) as write:
    for path in _progress(paths):
      try:
        found = loaded.tag(path, start, seconds or None, frames)
        if plot:
          target = files.resolve(plot) / f'{_unused(path.stem, drawn)}.png'
          draw(loaded, path, found, path.name, target)
          logs.log(f'Plot: {target}')
      except audio.BadRecordingError as error:
        problems.append(str(error))
        continue
      _log(path, found, top_k)
      write(path, found, top_k)
  for line in problems[:_SHOWN_PROBLEMS]:
    logs.log(f'not tagged: {line}')
  logs.log(f'{len(paths) - len(problems)} of {len(paths)} recordings tagged')
  if output:
    logs.log(f'Tags: {output}')
  return len(problems)


def _unused(stem: str, used: set[str]) -> str:
  """A name for a plot: files of several folders may have the same one."""
  numbered = (f'{stem}-{number}' for number in itertools.count(2))
  name = next(n for n in itertools.chain([stem], numbered) if n not in used)
  used.add(name)
  return name


def find(names: Sequence[str]) -> list[pathlib.Path]:
  """The sound files that are meant, each once.

  Raises:
    ValueError: where none is named, a name is none of a file or folder, or a
      folder has no sound file.
  """
  if not names:
    raise ValueError(
      'expected a sound file or a folder of such after the flags, as in '
      '--mode=tag --checkpoint=DIR street.wav'
    )
  found: dict[pathlib.Path, None] = {}
  for name in names:
    path = pathlib.Path(name).expanduser()
    if not path.exists():
      raise ValueError(f'{name}: no such file or folder')
    if not path.is_dir():
      found[path] = None
      continue
    inside = [
      below
      for below in data_files.below(path, hidden=False)
      if below.suffix.lower() in audio.EXTENSIONS
    ]
    if not inside:
      raise ValueError(
        f'{name}: no sound file in this folder; expected files that end in '
        f'{", ".join(audio.EXTENSIONS)}'
      )
    found |= dict.fromkeys(inside)
  return list(found)


def _progress(paths: Sequence[pathlib.Path]) -> Iterator[pathlib.Path]:
  quiet = len(paths) < 2 or not sys.stderr.isatty()
  yield from tqdm.tqdm(paths, desc='tag', unit='file', disable=quiet)


def _log_model(loaded: tagging.LoadedTagger) -> None:
  own, found = loaded.calibration, loaded.trained
  logs.log(
    f'{found.metadata["model"]["architecture"]} from {found.workdir}: '
    f'{len(loaded.names)} tags, windows of {loaded.window_seconds:g} s'
  )
  if not own.fitted_on:
    logs.log('no calibration.json: every threshold is .5')
  elif own.uncalibrated:
    logs.log(
      f'too few positives on {own.fitted_on}, uncalibrated, threshold .5: '
      + ', '.join(own.uncalibrated)
    )


def _log(path, found: tagging.Tagging, top_k: int) -> None:
  """A recording's line, and those of its windows."""
  lines = [
    f'{path}  {clock(found.seconds)}  '
    + _in_words(found, found.probabilities_C, top_k)
  ]
  count = len(found.window_starts_W)
  if count > 1:
    for start, own_C in zip(
      found.window_starts_W[:_SHOWN_WINDOWS], found.windows_WC, strict=False
    ):
      first = found.start_seconds + start
      last = found.start_seconds + min(
        start + found.window_seconds, found.seconds
      )
      words = _in_words(found, own_C, top_k)
      lines.append(f'  {clock(first)}–{clock(last)}  {words}')
  if count > _SHOWN_WINDOWS:
    lines.append(
      f'  … {count - _SHOWN_WINDOWS} more windows: --output writes all'
    )
  lines += [f'  note: {note}' for note in found.notes]
  logs.log('\n'.join(lines))


def _in_words(found: tagging.Tagging, own_C, top_k: int) -> str:
  names = tagging.present_tags(found.names, own_C, found.thresholds_C, top_k)
  by_name = dict(zip(found.names, own_C, strict=True))
  words = [f'{name} {formatting.decimal(by_name[name])}' for name in names]
  return '  '.join(words) or 'no tag above its threshold'


def clock(seconds: float) -> str:
  """'1:02:03.4', or '2:03.4' below an hour."""
  tenths = round(seconds * 10)
  minutes, tenths = divmod(tenths, 600)
  hours, minutes = divmod(minutes, 60)
  text = f'{minutes:02d}:{tenths / 10:04.1f}'
  return f'{hours}:{text}' if hours else text.removeprefix('0')


def draw(
  loaded: tagging.LoadedTagger,
  source,
  found: tagging.Tagging,
  title: str,
  target: pathlib.Path,
) -> None:
  """Plots what was tagged, its first minute.

  Args:
    loaded: the tagger.
    source: of the recording, a path or bytes.
    found: what the tagger says of it.
    title: of the plot.
    target: the `.png` to write.
  """
  seconds = min(found.seconds, PLOT_SECONDS)
  own = loaded.tag(
    source, found.start_seconds, seconds, frames=True, embeddings=True
  )
  assert own.frames_TC is not None
  assert own.embeddings_TD is not None
  gram_TT = np.asarray(
    similarity.frame_similarity(jnp.asarray(own.embeddings_TD))
  )
  tag_plot.plot(
    target,
    title=title,
    names=own.names,
    frames_TC=own.frames_TC,
    thresholds_C=own.thresholds_C,
    probabilities_C=own.probabilities_C,
    log_mel_TF=loaded.log_mel(source, found.start_seconds, seconds),
    similarity_TT=gram_TT,
    start_seconds=found.start_seconds,
    seconds=own.seconds,
  )


@contextlib.contextmanager
def _writer(output: str, loaded, frames: bool) -> Iterator[Any]:
  """A function that writes what was found in a recording.

  The file appears when all is written; after an error or an interrupt what is
  there so far is in `<output>.partial`.
  """
  if not output:
    yield lambda *_: None
    return
  path = pathlib.Path(output).expanduser()
  if path.suffix not in FORMATS:
    raise ValueError(
      f'--output={output}: expected a file that ends in {" or ".join(FORMATS)}'
    )
  partial = path.with_name(f'{path.name}.partial')
  if path.is_dir():
    raise ValueError(f'--output={output}: is a folder; expected a file')
  with files.named_errors(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with partial.open('w', newline='', encoding='utf-8') as file:
      write = _write_csv if path.suffix == '.csv' else _write_json
      with write(file, loaded, frames) as write_one:
        yield write_one
    partial.replace(path)


@contextlib.contextmanager
def _write_csv(file, loaded, frames: bool) -> Iterator[Any]:
  """A row for the recording, each window and, if wanted, each frame."""
  table = csv.writer(file)
  table.writerow(
    ['file', 'part', 'start_seconds', 'end_seconds', 'tags', *loaded.names]
  )

  def write(path, found: tagging.Tagging, top_k: int) -> None:
    for part, first, last, own_C in _parts(found, frames):
      names = tagging.present_tags(
        found.names, own_C, found.thresholds_C, top_k
      )
      values = [f'{value:.6f}' for value in own_C]
      ends = [f'{end:.3f}' for end in (first, last)]
      table.writerow([path, part, *ends, ';'.join(names), *values])
    file.flush()

  yield write


def _parts(found: tagging.Tagging, frames: bool):
  """The recording, its windows and frames: kind, start, end, probabilities."""
  base, end = found.start_seconds, found.start_seconds + found.seconds
  yield 'recording', base, end, found.probabilities_C
  for start, own_C in zip(found.window_starts_W, found.windows_WC, strict=True):
    last = min(base + start + found.window_seconds, end)
    yield 'window', base + start, last, own_C
  if frames and found.frames_TC is not None:
    for j, own_C in enumerate(found.frames_TC):
      first = base + j * found.frame_seconds
      yield 'frame', first, min(first + found.frame_seconds, end), own_C


@contextlib.contextmanager
def _write_json(file, loaded, frames: bool) -> Iterator[Any]:
  """An object of the model and a list of recordings."""
  own = loaded.calibration
  head = {
    'checkpoint': str(loaded.trained.workdir),
    'fingerprint': loaded.trained.fingerprint,
    'tags': list(loaded.names),
    'thresholds': dict(zip(loaded.names, own.thresholds_C, strict=True)),
    'calibrated_on': own.fitted_on or None,
    'window_seconds': loaded.window_seconds,
  }
  file.write(files.to_json(head).rstrip().removesuffix('}').rstrip())
  file.write(',\n "recordings": [')
  separator = '\n'

  def write(path, found: tagging.Tagging, top_k: int) -> None:
    nonlocal separator
    record: dict[str, Any] = {
      'file': str(path),
      'start_seconds': found.start_seconds,
      'seconds': found.seconds,
      'present': tagging.present_tags(
        found.names, found.probabilities_C, found.thresholds_C, top_k
      ),
      'probabilities': dict(
        zip(found.names, found.probabilities_C, strict=True)
      ),
      'windows': {
        'start_seconds': found.start_seconds + found.window_starts_W,
        'probabilities': found.windows_WC,
      },
      'notes': list(found.notes),
    }
    if frames:
      record['frames'] = {
        'frame_seconds': found.frame_seconds,
        'probabilities': found.frames_TC,
      }
    file.write(separator + files.to_json(record).rstrip())
    separator = ',\n'
    file.flush()

  yield write
  file.write('\n]}\n')
