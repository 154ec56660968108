"""The whole of v1's development set at true size, with made-up sound."""

import hashlib
import pathlib
import struct

import numpy as np
import pytest
from array_record.python import array_record_module
from sonyc_ust_world import Server, build, python, write_archive

from tfds_dcase import annotations, taxonomy

TRAIN = [1269, 634, 276, 244, 549, 125, 778, 151]
VALIDATE = [223, 16, 73, 23, 86, 25, 199, 6]
_TILE = np.random.default_rng(0).integers(-9000, 9000, 2**16).astype('<i2')
_HEADER = struct.pack(
  '<4sI4s4sIHHIIHH4sI',
  *(b'RIFF', 36 + 882_000, b'WAVE', b'fmt ', 16),
  *(1, 1, 44_100, 88_200, 2, 16, b'data', 882_000),
)


def sound(n: int) -> bytes:
  """10 s at 44.1 kHz: another piece of noise, repeated, for every n."""
  piece = _TILE[n * 11 :][:4410]
  return _HEADER + np.tile(piece, 100).tobytes()


_BUILD = """
  import re, sys
  import tfds_dcase.sonyc_ust as sonyc_ust
  builder = sonyc_ust.make_builder(sys.argv[1], base_url=sys.argv[2])
  builder.download_and_prepare()
  status = open('/proc/self/status').read()
  print('peak', re.search(r'VmHWM:\\s+(\\d+)', status)[1], file=sys.stderr)
  assert 'tensorflow' not in sys.modules
"""


def digests(data_dir) -> dict[str, list[str]]:
  """md5 of every record, file by file."""
  result = {}
  folder = pathlib.Path(data_dir) / 'sonyc_ust/v1/1.1.0'
  for path in sorted(folder.glob('*.array_record-*')):
    reader = array_record_module.ArrayRecordReader(str(path))
    result[path.name] = [
      hashlib.md5(reader.read([n])[0]).hexdigest()
      for n in range(reader.num_records())
    ]
    reader.close()
  return result


@pytest.mark.slow
def test_v1_from_server_and_from_folder(tmp_path, sonyc_dir):
  read = annotations.read(sonyc_dir / 'annotations.csv')
  names = dict(
    zip(read.audio_filename.tolist(), read.split.tolist(), strict=True)
  )
  assert len(names) == 2794

  manual = tmp_path / 'manual'
  wavs = {}
  for n, (name, split) in enumerate(sorted(names.items())):
    path = manual / 'audio-dev' / split / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(sound(n))
    wavs[f'{split}/{name}'] = path
  text = (sonyc_dir / 'annotations.csv').read_bytes()
  (manual / 'annotations-dev.csv').write_bytes(text)

  files = tmp_path / 'zenodo/3338310/files'
  files.mkdir(parents=True)
  (files / 'annotations.csv').write_bytes(text)
  contents = _Lazy(dict(sorted(wavs.items(), key=lambda w: w[0][::-1])))
  write_archive(files / 'audio-dev.tar.gz', contents, 'audio-dev/')
  write_archive(files / 'audio-eval.tar.gz', {})
  server = Server(tmp_path / 'zenodo')
  server.cut_after = 100_000
  done = python(_BUILD, tmp_path / 'downloaded', server.url)
  assert done.returncode == 0, done.stderr
  peak_kilobytes = int(done.stderr.rpartition('peak ')[2])
  print(f'peak memory {peak_kilobytes / 1000:.0f} MB')
  assert peak_kilobytes < 1_000_000

  builder = build(tmp_path, manual, 'copied')
  downloaded = digests(tmp_path / 'downloaded')
  assert downloaded == digests(tmp_path / 'copied')
  records = [d for each in downloaded.values() for d in each]
  assert len(set(records)) == len(records) == 2794
  # Nothing unpacked, nothing left over.
  left = {p.suffix for p in (tmp_path / 'downloaded').rglob('*')}
  assert not left & {'.wav', '.int16', '.part'}

  for split, expected in (('train', TRAIN), ('validate', VALIDATE)):
    source = builder.as_data_source(split)
    total = np.sum([e['coarse'] for e in source], axis=0, dtype=int)
    assert total.tolist() == expected, dict(
      zip(taxonomy.COARSE, total, strict=True)
    )
  assert builder.info.metadata['build']['faulty_rows'] == 482
  assert 'test' not in builder.info.splits


class _Lazy(dict):
  """Name to path, but `items` gives the bytes one at a time."""

  def items(self):
    for name, path in super().items():
      yield name, path.read_bytes()
