"""Writes a tagger's outputs for every clip of a data set, to distil from.

  python examples/teacher_outputs.py urban_scenes FOLDER runs/baseline
  python run.py --config=configs/iusp.py:urban_scenes \
    --config.teacher.outputs=FOLDER

The tagger is that of a workdir here. For one of your own, in whatever library,
write another `Tagger`; docs/reference/teacher_outputs_format.md has the format.
"""

import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from configs import base
from iusp_jax.data import datasets, preparation
from iusp_jax.experiment import identity
from iusp_jax.models import tagger, trained


class Tagger:
  """What to replace: a name, when frames are, and outputs of waveforms."""

  def __init__(self, workdir: pathlib.Path):
    self.trained = trained.load(workdir)
    timing = tagger.frame_timing(self.trained.model)
    self.metadata = {
      'name': workdir.name,
      'source': str(workdir),
      'licence': 'yours',
      'tags': self.trained.metadata['tags'],
      'frame_hop_seconds': timing.hop_seconds,
      'frame_span_seconds': timing.span_seconds,
      'first_frame_seconds': timing.first_seconds,
    }

  def __call__(self, wave_BS: np.ndarray) -> dict[str, np.ndarray]:
    """Arrays `[B, ...]` by name, of int16 waveforms at 16 kHz."""
    model, variables = self.trained.model, self.trained.variables
    output = tagger.apply(model, variables, tagger.log_mel(model, wave_BS))
    return {'logits': output.logits_BC, 'frames': output.frames_BTD}


def write(
  folder: pathlib.Path, dataset: datasets.Dataset, outputs_of: Tagger
) -> None:
  """Writes all splits, batch by batch: no array has to fit into memory."""
  for name, split in dataset.splits.items():
    place, arrays, done = folder / name, {}, 0
    place.mkdir(parents=True, exist_ok=True)
    for batch in datasets.eval_batches(split, batch_size=16):
      count = min(16, len(split) - done)  # The last batch is filled up.
      for key, values in outputs_of(batch['wave']).items():
        if key not in arrays:
          shape = (len(split), *values.shape[1:])
          arrays[key] = np.lib.format.open_memmap(
            place / f'{key}.npy', 'w+', np.float32, shape
          )
        arrays[key][done : done + count] = values[:count]
      done += count
    clips = datasets.clip_ids(split, range(len(split)))
    (place / 'clip_id.txt').write_text('\n'.join(clips) + '\n')
  text = json.dumps({'format': 1, **outputs_of.metadata}, indent=1)
  (folder / 'teacher.json').write_text(text + '\n')


if __name__ == '__main__':
  argument, folder, workdir = sys.argv[1:]
  config = identity.plain(base.get_config(argument))
  write(
    pathlib.Path(folder),
    preparation.load(config['dataset']),
    Tagger(pathlib.Path(workdir)),
  )
