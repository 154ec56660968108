"""Times the DCASE metric against its definition written out slowly.

python benchmarks/metric.py [--clips=443]

Both score the same continuous random scores side by side; the ratio is what
to look at, as the times depend on the machine. The slow side is
tests/metrics_reference.py, plain Python loops over clips and thresholds.
"""

import argparse
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import metrics_reference  # noqa: E402  # pyright: ignore[reportMissingImports]

from iusp_jax.scoring import metrics  # noqa: E402
from tfds_dcase import annotations, taxonomy  # noqa: E402

REPEATS = 20
RESAMPLES = 1000


def made_up_truth(clips: int) -> np.ndarray:
  """Fine tags [N, 29] about as rare as in SONYC-UST."""
  rng = np.random.default_rng(0)
  return rng.random((clips, len(taxonomy.FINE_COLUMNS))) < 0.06


def seconds(function, repeats: int) -> float:
  """Best wall time of a call: the least disturbed by other programs."""
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    function()
    times.append(time.perf_counter() - start)
  return min(times)


def measure(truth_NQ: np.ndarray, level: str) -> str:
  """One line of the table."""
  scores_NQ = np.random.default_rng(1).random(truth_NQ.shape)
  ours = metrics.score(truth_NQ, scores_NQ, level)
  slow: dict = {}
  slow_s = seconds(
    lambda: slow.update(metrics_reference.score(truth_NQ, scores_NQ, level)), 1
  )
  if abs(ours['micro_auprc'] - slow['micro_auprc']) > 1e-9:
    raise AssertionError(f'{level}: {ours} and {slow} disagree')
  ours_s = seconds(lambda: metrics.score(truth_NQ, scores_NQ, level), REPEATS)
  interval_s = seconds(
    lambda: metrics.score(truth_NQ, scores_NQ, level, bootstrap=RESAMPLES), 1
  )
  return (
    f'{level:<8}{ours_s * 1e3:>10.1f} ms{slow_s:>12.1f} s'
    f'{slow_s / ours_s:>12,.0f}{interval_s:>18.2f} s'
  )


def main() -> None:
  """Prints the table."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--clips', type=int, default=443)
  fine_NQ = made_up_truth(parser.parse_args().clips)
  print(f'{len(fine_NQ)} clips, continuous scores')
  print(
    f'{"level":<8}{"ours":>13}{"written out":>14}{"ratio":>12}'
    f'{f"{RESAMPLES} resamples":>20}'
  )
  print(measure(annotations.coarse_from_fine(fine_NQ), 'coarse'))
  print(measure(fine_NQ, 'fine'))


if __name__ == '__main__':
  main()
