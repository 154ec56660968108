"""A single run beside a table of one cell: the same student, set-up aside.

  PYTHONPATH=. .venv/bin/python benchmarks/run_and_table.py [rounds]

Runs `run.py` and `run.py --mode=table` in turn, in fresh processes on one cache
(teacher, stored outputs and compiled programs are there after the first round,
which does not count), and prints the seconds that each took to train.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ARGUMENT = 'urban_scenes,demo,seed=100,student=crnn_64'


def seconds(folder: pathlib.Path, mode: str, number: int) -> float:
  """Of the training of the student in one fresh process."""
  name = 'iusp' if mode == 'train' else 'table'
  workdir = folder / f'{mode}-{number}'
  argument = ARGUMENT if mode == 'train' else ARGUMENT.replace('seed=100,', '')
  command = [
    sys.executable,
    'run.py',
    f'--mode={mode}',
    f'--config=configs/{name}.py:{argument}',
    f'--workdir={workdir}',
    f'--config.cache_dir={folder}/cache',
    f'--config.dataset.data_dir={folder}/data',
    '--config.train_baseline=False',
  ]
  if mode == 'table':
    command += [
      "--config.table.objectives=('iusp',)",
      '--config.table.seeds=1',
      '--config.bootstrap=1000',
    ]
  subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
  if mode == 'table':
    workdir = next((workdir / 'cells').iterdir())
  return json.loads((workdir / 'results.json').read_text())['seconds']


def main():
  """Prints every round, and the ratio of the best ones."""
  rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
  best = {'train': float('inf'), 'table': float('inf')}
  with tempfile.TemporaryDirectory() as name:
    for number in range(rounds + 1):
      for mode in best:
        found = seconds(pathlib.Path(name), mode, number)
        print(f'round {number}: {mode} {found:.1f} s', flush=True)
        if number:
          best[mode] = min(best[mode], found)
  print(f'run / table of one cell: {best["train"] / best["table"]:.3f}')


if __name__ == '__main__':
  main()
