"""Writes a folder of a teacher's outputs, clip by clip.

docs/reference/teacher_outputs_format.md has the format. Needs numpy and, for
taggers of another sample rate than the clips', soxr; nothing else of iusp_jax,
so that scripts beside other libraries can use it (examples/teachers/).
"""

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

FORMAT = 1


def write(
  folder: pathlib.Path,
  metadata: Mapping[str, Any],
  splits: Mapping[str, tuple[Sequence[str], Iterable[np.ndarray]]],
  outputs_of: Callable[[np.ndarray], Mapping[str, np.ndarray]],
  batch_size: int = 16,
  between: Callable[[str, int, int], None] = lambda *_: None,
) -> None:
  """Runs a tagger over the clips of all splits.

  Args:
    folder: to write; what it holds of the same names is replaced.
    metadata: what `teacher.json` holds, without `format`.
    splits: by name, the clips' ids and, in that order, their waveforms,
      float32 `[S]` within -1 and 1.
    outputs_of: from waveforms `[B, S]` to arrays `[B, ...]` by name: `logits`
      or `probabilities`, `frames`, `frame_logits`.
    batch_size: clips at a time; the last batch may have fewer.
    between: called after each batch with the split, clips done, clips in all.
  """
  for split, (clip_ids, waves) in splits.items():
    place, arrays = folder / split, {}
    place.mkdir(parents=True, exist_ok=True)
    waves, count = iter(waves), len(clip_ids)
    for start in range(0, count, batch_size):
      stop = min(start + batch_size, count)
      wave_BS = np.stack([next(waves) for _ in range(start, stop)])
      for name, values in outputs_of(wave_BS).items():
        if name not in arrays:
          arrays[name] = np.lib.format.open_memmap(
            place / f'{name}.npy',
            'w+',
            np.float32,
            (count, *np.shape(values)[1:]),
          )
        arrays[name][start:stop] = values
      between(split, stop, count)
    names = ''.join(f'{name}\n' for name in clip_ids)
    (place / 'clip_id.txt').write_text(names, encoding='utf-8')
  text = json.dumps({'format': FORMAT, **metadata}, indent=1)
  (folder / 'teacher.json').write_text(f'{text}\n', encoding='utf-8')


def resample(wave_S: np.ndarray, own_rate: int, rate: int = 0) -> np.ndarray:
  """A clip at a tagger's rate, float32 `[S]`; as it is where that is 0."""
  if rate in (0, own_rate):
    return wave_S
  import soxr

  return soxr.resample(wave_S, own_rate, rate)
