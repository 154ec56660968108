"""Clips a second of decoding and resampling, one worker against all cores.

  python benchmarks/decode.py [--clips=400] [--repeats=3]

Made-up 10-s recordings at 44.1 kHz, 16 bits, as SONYC-UST has them: first the
decoder alone from memory, then with reading one .tar.gz as the builder does.
Prints the best of the repeats, which other programs disturb least.
"""

import argparse
import io
import os
import pathlib
import tarfile
import tempfile
import time
from concurrent import futures

import numpy as np
import soundfile

from tfds_dcase.sonyc_ust import decode, gather, records, sources


def make_recordings(count: int) -> list[bytes]:
  """`count` wav files of coloured noise."""
  rng = np.random.default_rng(0)
  noise = np.cumsum(rng.standard_normal(441_000)) / 3000
  recordings = []
  for n in range(count):
    file = io.BytesIO()
    wave = np.roll(noise - noise.mean(), 1000 * n)
    soundfile.write(file, wave, 44_100, format='WAV', subtype='PCM_16')
    recordings.append(file.getvalue())
  return recordings


def decode_alone(recordings: list[bytes], workers: int) -> float:
  """Clips a second from memory."""
  with futures.ThreadPoolExecutor(workers) as pool:
    start = time.perf_counter()
    list(pool.map(decode.decode, recordings))
    return len(recordings) / (time.perf_counter() - start)


def from_archive(path: pathlib.Path, names: list[str], workers: int) -> float:
  """Clips a second from an archive."""
  wanted = {n: gather.Wanted('train', 'none', 0) for n in names}
  gatherer = gather.Gatherer(wanted, lambda *_: None, 'stop', 0.5, workers)
  start = time.perf_counter()
  release = records.RELEASES['v1']
  gatherer.run([sources.from_archive(path, release)])
  return len(names) / (time.perf_counter() - start)


def write_archive(path: pathlib.Path, recordings: list[bytes]) -> list[str]:
  """Packs the recordings; returns their names."""
  names = [f'00_{n:06d}.wav' for n in range(len(recordings))]
  with tarfile.open(path, 'w:gz', compresslevel=6) as archive:
    for name, data in zip(names, recordings, strict=True):
      info = tarfile.TarInfo(f'audio-dev/train/{name}')
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return names


def main():
  """Measures and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--clips', type=int, default=400)
  parser.add_argument('--repeats', type=int, default=3)
  options = parser.parse_args()
  cores = os.cpu_count() or 1
  recordings = make_recordings(options.clips)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'audio-dev.tar.gz'
    names = write_archive(path, recordings)
    cases = {
      'decode and resample': lambda n: decode_alone(recordings, n),
      'the same from a .tar.gz': lambda n: from_archive(path, names, n),
    }
    print(f'{options.clips} clips, best of {options.repeats}, {cores} cores')
    print(f'{"clips/s":26}{"1 worker":>10}{f"{cores} workers":>12}{"ratio":>8}')
    for name, measure in cases.items():
      # Interleaved, so that a busy spell does not hit one side only.
      speeds = [(measure(1), measure(cores)) for _ in range(options.repeats)]
      one, all_cores = np.max(speeds, axis=0)
      print(f'{name:26}{one:10.0f}{all_cores:12.0f}{all_cores / one:8.2f}')


if __name__ == '__main__':
  main()
