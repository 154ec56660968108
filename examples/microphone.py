"""Tags what a microphone records, by the streaming step of an exported tagger.

  pip install ai-edge-litert numpy sounddevice
  python microphone.py EXPORT_FOLDER
  arecord -t raw -f S16_LE -r 16000 | python microphone.py EXPORT_FOLDER -

With a dash it reads mono 16-bit samples at the tagger's rate from its input, to
their end. It prints the tags whenever they change, and when, in seconds.
"""

import itertools
import json
import pathlib
import sys

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # pyright: ignore

folder = pathlib.Path(sys.argv[1])
config = json.loads((folder / 'config.json').read_text())
tables = np.load(folder / 'frontend.npz')
stream, rate = config['stream'], config['sample_rate']
hop = round(config['frontend']['hop_seconds'] * rate)
window, offset = tables['window'], config['frontend']['log_offset']
fft_length = 2 * len(tables['mel']) - 2
thresholds = list(config['calibration']['thresholds'].values())


def sound():
  """Samples in [-1, 1], a hop at a time."""
  if sys.argv[2:] == ['-']:
    while len(data := sys.stdin.buffer.read(2 * hop)) == 2 * hop:
      yield np.frombuffer(data, '<i2') / np.float32(32768)
    return
  import sounddevice  # pyright: ignore

  with sounddevice.InputStream(rate, hop, channels=1) as microphone:
    while True:
      yield microphone.read(hop)[0][:, 0]


def log_mel():
  """Frames [F] of the sound."""
  last = np.zeros(0, np.float32)
  for samples in sound():
    last = np.concatenate([last, samples])
    while len(last) >= len(window):
      spectrum = np.fft.rfft(last[: len(window)] * window, fft_length)
      yield np.log(np.abs(spectrum) @ tables['mel'] + offset)
      last = last[hop:]


path = folder / 'stream_step.tflite'
run = Interpreter(str(path)).get_signature_runner()
state = {
  name: np.zeros(shape, np.float32) for name, shape in stream['state'].items()
}
frames = log_mel()
silent, ahead = stream['silent_frames'], stream['look_ahead']
state['mel'][0, :silent] = tables['silence']
for i, frame in enumerate(itertools.islice(frames, ahead), silent):
  state['mel'][0, i] = frame

seconds, shown = 0.0, None
while True:
  step = list(itertools.islice(frames, stream['mel_frames']))
  if len(step) < stream['mel_frames']:
    break
  found = run(log_mel=np.array([step], np.float32), **state)
  state = {name: found[f'next_{name}'] for name in state}
  for scores in found['probabilities'][0]:
    present = scores >= thresholds
    if shown is None or (present != shown).any():
      tags = [
        t for t, there in zip(config['tags'], present, strict=True) if there
      ]
      print(f'{seconds:8.2f} s  ', '  '.join(tags) or 'no tag', flush=True)
    shown = present
    seconds += config['frame_seconds']
