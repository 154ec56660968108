"""A tagger over a folder of `--mode=write_clips`: its outputs as a teacher.

docs/reference/teacher_outputs_format.md has the format. Needs numpy, soundfile
and, for taggers of another sample rate, soxr; of iusp_jax one module that needs
no more, from this checkout or an installed package.
"""

import csv
import json
import pathlib
import sys

import numpy as np
import soundfile

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))

from iusp_jax.data import output_files


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
  clips = pathlib.Path(clips)
  of = json.loads((clips / 'clips.json').read_text())
  if not (rate or of['sample_rate']):
    sys.exit(f'{clips} has recordings as they are: give the rate of the tagger')
  with (clips / 'clips.csv').open(newline='') as file:
    rows = list(csv.DictReader(file))
  splits = {}
  for split in dict.fromkeys(row['split'] for row in rows):
    own = [row for row in rows if row['split'] == split]
    waves = (read(clips / row['path'], of['clip_seconds'], rate) for row in own)
    splits[split] = [row['clip_id'] for row in own], waves

  def show(split, done, total):
    print(f'{split}: {done} of {total} clips', flush=True)

  output_files.write(
    pathlib.Path(folder), metadata, splits, outputs_of, batch_size, show
  )


def read(path, seconds, rate):
  """A clip at the tagger's rate, float32 `[S]`.

  Of a recording that was copied as it is, the part that the clip has.
  """
  with soundfile.SoundFile(path) as file:
    own_rate, size = file.samplerate, round(seconds * file.samplerate)
    wave_SH = file.read(size, dtype='float32', always_2d=True)
  wave_S = np.pad(wave_SH.mean(1), (0, size - len(wave_SH)))
  return output_files.resample(wave_S, own_rate, rate)
