"""Outputs of a tagger in an ONNX file, to distil from. Needs onnxruntime.

  python run.py --mode=write_clips --config=configs/iusp.py:urban_scenes \
    --output=CLIPS
  python examples/teachers/onnx_file.py tagger.onnx CLIPS FOLDER \
    --json=teacher.json --wave=input --logits=logits --frames=embeddings
  python run.py --config=configs/iusp.py:urban_scenes \
    --config.teacher.outputs=FOLDER

`teacher.json` has the tagger's name, source, licence and tags, and when its
frames are; docs/reference/teacher_outputs_format.md says how.
"""

import argparse
import json
import pathlib

import clips
import onnxruntime

OUTPUTS = ('logits', 'probabilities', 'frames', 'frame_logits')


def main():
  """Reads the flags, and runs the tagger."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('onnx', help='the tagger, of waveforms [B, S]')
  parser.add_argument('clips', help='the folder of --mode=write_clips')
  parser.add_argument('folder', help='to write')
  parser.add_argument('--json', required=True, help='what teacher.json holds')
  parser.add_argument('--wave', required=True, help='the name of the input')
  parser.add_argument('--rate', type=int, default=0, help="the tagger's, Hz")
  parser.add_argument('--batch_size', type=int, default=16)
  for name in OUTPUTS:
    parser.add_argument(f'--{name}', help='the name of that output')
  of = parser.parse_args()
  session = onnxruntime.InferenceSession(of.onnx)
  named = {name: found for name in OUTPUTS if (found := getattr(of, name))}

  def outputs_of(wave_BS):
    found = session.run(list(named.values()), {of.wave: wave_BS})
    return dict(zip(named, found, strict=True))

  metadata = json.loads(pathlib.Path(of.json).read_text())
  clips.write_outputs(
    of.clips, of.folder, metadata, outputs_of, of.rate, of.batch_size
  )


if __name__ == '__main__':
  main()
