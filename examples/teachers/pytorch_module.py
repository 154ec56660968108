"""Outputs of a PyTorch tagger, to distil from. Fill in `load`.

  python run.py --mode=write_clips --config=configs/iusp.py:urban_scenes \
    --output=CLIPS
  python examples/teachers/pytorch_module.py CLIPS FOLDER
  python run.py --config=configs/iusp.py:urban_scenes \
    --config.teacher.outputs=FOLDER
"""

import sys

import clips
import torch

RATE = 32_000  # Hz, of the tagger.


def load():
  """Your tagger: what teacher.json holds, and a module.

  The module gives, for waveforms float32 [B, S] at `RATE`, a dict with some of
  'logits' or 'probabilities' [B, C], 'frames' [B, T, D] and 'frame_logits'
  [B, T, C]. docs/reference/teacher_outputs_format.md explains the fields.
  """
  metadata = {
    'name': 'My tagger',
    'source': 'https://example.org/my-tagger',
    'licence': 'MIT',
    'tags': ['1_engine', '2_machinery-impact'],
    'frame_hop_seconds': 0.32,
    'frame_span_seconds': 0.32,
    'first_frame_seconds': 0.16,
  }
  # Load yours, and give `metadata, module` instead.
  raise NotImplementedError(f'no module yet for {metadata["name"]!r}: see load')


def main(clips_folder, folder):
  """Runs the module over the clips."""
  metadata, module = load()
  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  module = module.to(device).eval()

  @torch.inference_mode()
  def outputs_of(wave_BS):
    found = module(torch.from_numpy(wave_BS).to(device))
    return {name: x.float().cpu().numpy() for name, x in found.items()}

  clips.write_outputs(clips_folder, folder, metadata, outputs_of, RATE)


if __name__ == '__main__':
  main(*sys.argv[1:])
