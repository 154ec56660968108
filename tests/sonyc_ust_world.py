"""A little SONYC-UST, and a server for it, for the tests beside this file."""

import contextlib
import hashlib
import http.server
import io
import os
import pathlib
import subprocess
import sys
import tarfile
import textwrap
import threading

import numpy as np
import soundfile
from array_record.python import array_record_module

import tfds_dcase.sonyc_ust as sonyc_ust
from tfds_dcase import annotations, taxonomy

CLIPS = {
  '00_000001.wav': 'train',
  '00_000002.wav': 'train',
  '01_000003.wav': 'train',
  '02_000004.wav': 'validate',
  '02_000005.wav': 'validate',
}
SIREN = taxonomy.FINE_COLUMNS.index('5-3_siren')
ENGINE_X = taxonomy.FINE_COLUMNS.index('1-X_engine-of-uncertain-size')
NON_MACHINERY = taxonomy.FINE_COLUMNS.index('3-1_non-machinery-impact')


def wav(seed=0, seconds=10.0, rate=16_000, **options) -> bytes:
  rng = np.random.default_rng(seed)
  noise = rng.integers(-9000, 9000, int(seconds * rate)).astype(np.int16)
  options = {'format': 'WAV', 'subtype': 'PCM_16', **options}
  file = io.BytesIO()
  soundfile.write(file, noise, rate, **options)
  return file.getvalue()


WAVS = {name: wav(seed) for seed, name in enumerate(CLIPS)}


def row(name, split, annotator, present=(), proximity=None, extra=()):
  """A row of annotations.csv; coarse columns carry the historic fault."""
  fine = [int(q in present) for q in range(29)]
  coarse = [max(f for f, n in zip(fine, taxonomy.FINE_COLUMNS, strict=True)
                if n[0] == c[0]) for c in taxonomy.COARSE]  # fmt: skip
  coarse[1] |= coarse[2]
  near = [(proximity or {}).get(q, -1) for q in range(29)]
  cells = [split, int(name[:2]), name, annotator, *extra, *fine, *near, *coarse]
  return ','.join(map(str, cells))


def write_annotations(path, clips=CLIPS, version='v1', truth=True):
  extra = annotations.EXTRA_V2 if version == 'v2' else ()
  where = (2017, 5, 6, 23, 1, 547, 40.72951, -73.99388) if extra else ()
  header = list(annotations.COLUMNS_V1)
  lines = [','.join([*header[:4], *extra, *header[4:]])]
  for name, split in clips.items():
    lines += [
      row(name, split, 7, [SIREN], {SIREN: 'far'}, where),
      row(name, split, 8, [NON_MACHINERY], None, where),
      row(name, split, 9, [], None, where),
    ]
    if split != 'train':
      lines.append(row(name, split, -1, [SIREN], None, where))
    if split != 'train' and truth:
      lines.append(row(name, split, 0, [ENGINE_X], None, where))
  path.write_text('\n'.join(lines) + '\n')


def write_folder(path, wavs=WAVS):
  path.mkdir(parents=True, exist_ok=True)
  for name, data in wavs.items():
    (path / name).write_bytes(data)


def write_archive(path, wavs=WAVS, prefix='audio-dev/train/', members=()):
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, 'w:gz', compresslevel=1) as archive:
    for name, data in wavs.items():
      info = tarfile.TarInfo(prefix + name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
    for info in members:
      archive.addfile(info, io.BytesIO(b'\0' * info.size))


def build(tmp_path, manual=None, name='data', version='v1', **settings):
  builder = sonyc_ust.make_builder(tmp_path / name, version, manual, **settings)
  builder.download_and_prepare()
  return builder


def raw_records(builder) -> dict[str, list[bytes]]:
  result = {}
  for path in sorted(pathlib.Path(builder.data_dir).glob('*.array_record-*')):
    reader = array_record_module.ArrayRecordReader(str(path))
    result[path.name] = reader.read_all()
    reader.close()
  return result


class Server:
  """Serves a folder on 127.0.0.1 with Range; can cut, refuse or forget."""

  def __init__(self, root):
    self.root, self.log = pathlib.Path(root), []
    self.cut_after = None  # bytes of the next answer, once
    self.cuts = []  # bytes of each of the next answers
    self.hold = None  # an event that the second half of an answer waits for
    self.shift = 0  # what a resumed answer starts after the byte asked for
    self.ignore_range = False
    self.status = None
    self.status_after_cut = None
    owner = self

    class Handler(http.server.BaseHTTPRequestHandler):
      def do_HEAD(self):
        owner.answer(self, body=False)

      def do_GET(self):
        owner.answer(self, body=True)

      def log_message(self, *args):
        pass

    self.http = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self.url = f'http://127.0.0.1:{self.http.server_port}/record'
    threading.Thread(
      target=self.http.serve_forever, args=[0.01], daemon=True
    ).start()

  def answer(self, handler, body):
    asked = handler.headers.get('Range')
    self.log.append((handler.command, handler.path, asked))
    path = self.root / handler.path.removeprefix('/record/')
    if self.status or not path.is_file():
      handler.send_error(self.status or 404)
      return
    data = path.read_bytes()
    tag = '"' + hashlib.md5(data).hexdigest() + '"'
    start = 0
    same = handler.headers.get('If-Range', tag) == tag
    if asked and same and not self.ignore_range:
      start = int(asked.removeprefix('bytes=').rstrip('-'))
    if start and start >= len(data):
      handler.send_response(416)
      handler.send_header('Content-Range', f'bytes */{len(data)}')
      handler.end_headers()
      return
    handler.send_response(206 if start else 200)
    handler.send_header('Content-Length', str(len(data) - start))
    if start and self.shift:
      start += self.shift
      whole = f'{start}-{len(data) - 1}/{len(data)}'
      handler.send_header('Content-Range', f'bytes {whole}')
    handler.send_header('ETag', tag)
    handler.end_headers()
    end = None
    if body:
      if self.cuts:
        self.cut_after = self.cuts.pop(0)
      if self.cut_after is not None:
        end, self.cut_after = start + self.cut_after, None
        self.status = self.status_after_cut
      with contextlib.suppress(ConnectionError):
        if self.hold:
          half = (start + len(data)) // 2
          handler.wfile.write(data[start:half])
          handler.wfile.flush()
          start = half
          self.hold.wait()
        handler.wfile.write(data[start:end])
    if body and end is not None:
      handler.close_connection = True

  def gets(self, name):
    return [r for r in self.log if r[0] == 'GET' and r[1].endswith(name)]


def python(code, *arguments):
  root = pathlib.Path(__file__).resolve().parent.parent
  return subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code), *map(str, arguments)],
    capture_output=True,
    text=True,
    env={**os.environ, 'PYTHONPATH': str(root)},
  )
