"""What exported students cost on a device: bytes, memory, time, score.

  python benchmarks/device.py EXPORT… [--plot=docs/findings/device.png]

Of each file of each export: its bytes; LiteRT's tensor arena; the memory of the
example that runs it (its largest resident set less that of a Python without
imports); how many times real time a clip takes on one thread, the best of 20
clips; multiply-accumulates and score on test from the card. Prints a table;
draws score against bytes.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

import numpy as np
import soundfile

from iusp_jax.deploy import add_onnx, litert, onnx_files
from iusp_jax.reporting import figures

REPEATS = 20
EXAMPLES = {
  'tagger_waveform.tflite': 'tag_tflite.py',
  'tagger_waveform.onnx': 'tag_onnx.py',
}
ROOT = pathlib.Path(__file__).parents[1]


# The peak of the program itself: what the system says of a child counts the
# parent that it was copied from.
PEAK = """
import re, runpy, sys
script = sys.argv.pop(1)
if script:
  sys.argv[0] = script
  runpy.run_path(script)
status = open('/proc/self/status').read()
print('peak', re.search(r'VmHWM:\\s+(\\d+)', status)[1])
"""


def max_resident(script: str = '', *arguments: str) -> int:
  """The largest resident set of a Python that runs a script, in bytes."""
  done = subprocess.run(
    [sys.executable, '-c', PEAK, script, *arguments],
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return 1024 * int(done.stdout.split()[-1])


def best_seconds(folder: pathlib.Path, name: str) -> float:
  """Seconds that a file takes for a clip, on one thread."""
  kind = 'waveform' if 'waveform' in name else 'log_mel'
  with np.load(folder / 'golden.npz') as arrays:
    x = arrays[kind][0]
  content = (folder / name).read_bytes()
  if name.endswith('.onnx'):
    session = onnx_files.Session(content)
    run = lambda: session(x[None])  # noqa: E731
  else:
    interpreter = litert.Interpreter(content)
    run = lambda: interpreter(**{kind: x[None]})  # noqa: E731
  found = []
  for _ in range(REPEATS):
    start = time.perf_counter()
    run()
    found.append(time.perf_counter() - start)
  return min(found)


def example_bytes(folder: pathlib.Path, name: str) -> int | None:
  """Memory of the example that runs a file, less that of a bare Python."""
  if name not in EXAMPLES:
    return None
  of = json.loads((folder / 'config.json').read_text())
  sound = folder / 'benchmark.wav'
  with np.load(folder / 'golden.npz') as arrays:
    soundfile.write(sound, arrays['waveform'][0], of['sample_rate'])
  script = ROOT / 'examples' / EXAMPLES[name]
  try:
    whole = max_resident(str(script), str(folder), str(sound))
  finally:
    sound.unlink()
  return whole - max_resident()


def rows_of(folder: pathlib.Path) -> list[dict]:
  """A row for each file of an export that LiteRT or onnxruntime runs."""
  loaded, _ = add_onnx.load(folder)
  model, num_samples = (
    loaded.trained.model,
    loaded.trained.metadata['num_samples'],
  )
  seconds = num_samples / loaded.sample_rate
  records = json.loads((folder / 'artefacts.json').read_text())['written']
  rows = []
  for record in records:
    name = record['file']
    if not name.startswith('tagger_') or name.endswith('hlo'):
      continue
    rows.append(
      {
        'student': folder.name,
        'macs': model.num_macs(num_samples),
        'file': name,
        'bytes': record['bytes'],
        'arena': record['arena_bytes'],
        'example': example_bytes(folder, name),
        'real_time': seconds / best_seconds(folder, name),
        'score': record.get('micro_auprc'),
        'interval': record.get('interval'),
      }
    )
  return rows


def draw(rows: list[dict], path: str) -> None:
  """Score against bytes, float and int8."""
  with figures.figure(3.2, path) as page:
    axes = page.add_subplot()
    for title, name, marker in (
      ('LiteRT float', 'tagger_log_mel.tflite', 'o'),
      ('LiteRT int8', 'tagger_log_mel_int8.tflite', 's'),
      ('ONNX int8', 'tagger_log_mel_int8.onnx', '^'),
    ):
      own = [row for row in rows if row['file'] == name]
      kilobytes = [row['bytes'] / 1000 for row in own]
      axes.plot(kilobytes, [row['score'] for row in own], marker, label=title)
      for row, x in zip(own, kilobytes, strict=True):
        axes.annotate(
          row['student'], (x, row['score']), fontsize=5.5,
          xytext=(3, 3), textcoords='offset points',
        )  # fmt: skip
    axes.set_xscale('log')
    ticks = [10, 20, 50, 100, 200, 500, 1000]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(10, 1000)
    axes.set_xlabel('kB (log-mel in)')
    axes.set_ylabel('test micro-AUPRC')
    axes.legend(frameon=False)


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('exports', nargs='+', type=pathlib.Path)
  parser.add_argument('--plot', default='')
  given = parser.parse_args()
  rows = [row for folder in given.exports for row in rows_of(folder)]
  print('| student | M MACs | file | kB | arena, kB | example, MB |', end='')
  print(' times real time | micro-AUPRC |\n|' + '---|' * 8)
  for row in rows:
    arena = '-' if row['arena'] is None else f'{row["arena"] / 1000:,.0f}'
    example = '-' if row['example'] is None else f'{row["example"] / 1e6:.0f}'
    score = '-'
    if row['score'] is not None:
      low, high = row['interval']
      score = f'{row["score"]:.3f} [{low:.3f}, {high:.3f}]'
    print(
      f'| {row["student"]} | {row["macs"] / 1e6:.2f} | `{row["file"]}` | '
      f'{row["bytes"] / 1000:.0f} | {arena} | {example} | '
      f'{row["real_time"]:,.0f} | {score} |'
    )
  if given.plot:
    draw(rows, given.plot)


if __name__ == '__main__':
  main()
