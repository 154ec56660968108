"""Tags a 16-bit or float WAV file with an exported tagger.

  pip install onnxruntime numpy soundfile
  python tag_onnx.py EXPORT_FOLDER street.wav

The file must have the sample rate of the tagger; what is longer than a clip is
cut into clips, one after the other.
"""

import json
import pathlib
import sys

import numpy as np
import onnxruntime  # pyright: ignore
import soundfile

folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / 'config.json').read_text())
size, tags = config['clip_samples'], config['tags']
thresholds = config['calibration']['thresholds']

wave, rate = soundfile.read(sys.argv[2], dtype='float32', always_2d=True)
if rate != config['sample_rate']:
  sys.exit(f'{sys.argv[2]}: {rate} Hz, expected {config["sample_rate"]}')
wave = wave.mean(axis=1)
wave = np.pad(wave, (0, -len(wave) % size))

session = onnxruntime.InferenceSession(folder / 'tagger_waveform.onnx')
for first in range(0, len(wave), size):
  clip = wave[None, first : first + size].astype(np.float32)
  (scores,) = session.run(['probabilities'], {'waveform': clip})
  found = dict(zip(tags, scores[0], strict=True))
  present = [f'{t} {p:.3f}' for t, p in found.items() if p >= thresholds[t]]
  print(f'{first / rate:7.1f} s  ', '  '.join(present) or 'no tag')
