"""Outputs of a tagger in an ONNX file, to distil from. Needs onnxruntime.

What `--config.teacher.onnx` does in one go, for clips that are written once.

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
import sys

import clips  # Makes iusp_jax of this checkout known.

from iusp_jax.data import onnx_file


def main():
  """Reads the flags, and runs the tagger."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('onnx', help='the tagger, of waveforms [B, S]')
  parser.add_argument('clips', help='the folder of --mode=write_clips')
  parser.add_argument('folder', help='to write')
  parser.add_argument('--json', required=True, help='what teacher.json holds')
  parser.add_argument('--wave', default='', help='the name of its input')
  parser.add_argument('--rate', type=int, default=0, help="the tagger's, Hz")
  parser.add_argument('--batch_size', type=int, default=16)
  for name in onnx_file.OUTPUTS:
    parser.add_argument(f'--{name}', help='the name of that output')
  of = parser.parse_args()
  named = {name: getattr(of, name) for name in onnx_file.OUTPUTS}
  try:
    tagger = onnx_file.Tagger(pathlib.Path(of.onnx), of.wave, named)
  except ValueError as error:
    sys.exit(f'error: {error}')
  metadata = json.loads(pathlib.Path(of.json).read_text())
  size = tagger.batch_size or of.batch_size
  clips.write_outputs(of.clips, of.folder, metadata, tagger, of.rate, size)


if __name__ == '__main__':
  main()
