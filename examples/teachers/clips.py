"""A tagger over a folder of `--mode=write_clips`: its outputs as a teacher.

docs/reference/teacher_outputs_format.md has the format. Needs numpy, soundfile
and, for taggers of another sample rate, soxr; nothing of iusp_jax.
"""

import csv
import json
import pathlib

import numpy as np
import soundfile


def write_outputs(clips, folder, metadata, outputs_of, rate=0, batch_size=16):
  """Writes the outputs of a tagger for every clip, split by split.

  Args:
    clips: the folder of `--mode=write_clips`.
    folder: to write, for `--config.teacher.outputs`.
    metadata: what `teacher.json` holds, without `format`.
    outputs_of: from waveforms, float32 `[B, S]` within -1 and 1, to arrays
      `[B, ...]` by name: `logits` or `probabilities`, `frames`, `frame_logits`.
    rate: of the tagger, Hz; 0: that of the clips.
    batch_size: clips at a time; the last batch may have fewer.
  """
  clips, folder = pathlib.Path(clips), pathlib.Path(folder)
  own_rate = json.loads((clips / 'clips.json').read_text())['sample_rate']
  with (clips / 'clips.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  for split in dict.fromkeys(row['split'] for row in rows):
    own = [row for row in rows if row['split'] == split]
    place, arrays = folder / split, {}
    place.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(own), batch_size):
      batch = own[start : start + batch_size]
      waves = [read(clips / row['path'], own_rate, rate) for row in batch]
      for name, values in outputs_of(np.stack(waves)).items():
        if name not in arrays:
          shape = (len(own), *np.shape(values)[1:])
          arrays[name] = np.lib.format.open_memmap(
            place / f'{name}.npy', 'w+', np.float32, shape
          )
        arrays[name][start : start + len(batch)] = values
      print(f'{split}: {start + len(batch)} of {len(own)} clips', flush=True)
    names = ''.join(f'{row["clip_id"]}\n' for row in own)
    (place / 'clip_id.txt').write_text(names)
  text = json.dumps({'format': 1, **metadata}, indent=1)
  (folder / 'teacher.json').write_text(f'{text}\n')


def read(path, own_rate, rate):
  """A clip at the tagger's rate, float32 `[S]`."""
  wave_S, _ = soundfile.read(path, dtype='float32')
  if rate in (0, own_rate):
    return wave_S
  import soxr

  return soxr.resample(wave_S, own_rate, rate)
