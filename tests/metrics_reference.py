"""The DCASE 2019 Task 5 metric written out, one clip and threshold at a time.

Shared by tests and by benchmarks/metric.py. Nothing here is clever, and
nothing comes from the code under test but the names of the tags: it is the
definition, to be read beside the words of it.
"""

import itertools

from tfds_dcase import taxonomy

MIN_THRESHOLD = 0.01


def columns_of(level, num_columns):
  """Per class: its columns without X, and the column of X or None."""
  if level == 'coarse':
    return [([q], None) for q in range(num_columns)]
  classes = []
  for coarse in taxonomy.COARSE:
    mine = [
      q
      for q, name in enumerate(taxonomy.FINE_COLUMNS)
      if name.split('-')[0] == coarse.split('_')[0]
    ]
    unknown = [q for q in mine if '-X_' in taxonomy.FINE_COLUMNS[q]]
    tags = [q for q in mine if q not in unknown]
    classes.append((tags, unknown[0] if unknown else None))
  return classes


def clip_counts(truth, scores, tags, unknown, threshold):
  """(TP, FP, FN) of one class in one clip at one threshold."""
  true = {q for q in tags if truth[q]}
  predicted = {q for q in tags if scores[q] >= threshold}
  true_x = unknown is not None and bool(truth[unknown])
  predicted_x = unknown is not None and scores[unknown] >= threshold

  tp = len(true & predicted)
  fn = len(true - predicted)
  if not true_x:
    fp = len(predicted - true)
    if not true and predicted_x and len(predicted) < len(tags):
      fp += 1
    return tp, fp, fn

  coarsened = bool(predicted) or predicted_x
  if coarsened and not true & predicted:
    tp += 1
  if not coarsened and not true:
    fn += 1
  return tp, 0, fn


def class_curve(truth, scores, tags, unknown):
  """[(threshold, TP, FP, FN)] by decreasing threshold."""
  thresholds = {1.0}
  for clip in scores:
    thresholds |= {clip[q] for q in tags if clip[q] >= MIN_THRESHOLD}
  curve = []
  for threshold in sorted(thresholds, reverse=True):
    total = [0, 0, 0]
    for t, s in zip(truth, scores, strict=True):
      for i, n in enumerate(clip_counts(t, s, tags, unknown, threshold)):
        total[i] += n
    curve.append((threshold, *total))
  return curve


def micro_curve(curves):
  """Counts of all classes at the thresholds of all classes.

  A class counts as at its nearest threshold that is not below.
  """
  union = sorted({row[0] for curve in curves for row in curve}, reverse=True)
  place = [0] * len(curves)
  result = []
  for threshold in union:
    total = [0, 0, 0]
    for c, curve in enumerate(curves):
      while place[c] + 1 < len(curve) and curve[place[c] + 1][0] >= threshold:
        place[c] += 1
      for i in range(3):
        total[i] += curve[place[c]][i + 1]
    result.append((threshold, *total))
  return result


def area(curve):
  """Trapezoids over recall, from (R=0, P=1) to (R=1, P=0)."""
  points = [(0.0, 1.0)]
  for _, tp, fp, fn in curve:
    points.append((tp / max(tp + fn, 0.5), tp / max(tp + fp, 0.5)))
  points.append((1.0, 0.0))
  total = 0.0
  for (r0, p0), (r1, p1) in itertools.pairwise(points):
    assert r1 >= r0, 'recall never decreases with the threshold'
    total += (r1 - r0) * (p0 + p1) / 2
  return total


def score(truth, scores, level='coarse'):
  """The metric of nested lists (or arrays) [N][Q], as a plain dict."""
  truth = [[int(v) for v in row] for row in truth]
  scores = [[float(v) for v in row] for row in scores]
  classes = columns_of(level, len(truth[0]))
  curves = [class_curve(truth, scores, *columns) for columns in classes]
  # A clip with X alone counts as a positive of its class too.
  positives = [
    any(row[q] for row in truth for q in (*tags, unknown) if q is not None)
    for tags, unknown in classes
  ]
  class_auprc = [
    area(curve) if any_positive else None
    for curve, any_positive in zip(curves, positives, strict=True)
  ]
  defined = [value for value in class_auprc if value is not None]
  micro = micro_curve(curves)
  threshold, tp, fp, fn = [row for row in micro if row[0] >= 0.5][-1]
  precision, recall = tp / max(tp + fp, 0.5), tp / max(tp + fn, 0.5)
  f1 = 2 / (1 / precision + 1 / recall) if tp else 0.0
  return {
    'micro_auprc': area(micro) if defined else None,
    'macro_auprc': sum(defined) / len(defined) if defined else None,
    'micro_f1': f1 if defined else None,
    'class_auprc': class_auprc,
    'f1_row': {'threshold': threshold, 'TP': tp, 'FP': fp, 'FN': fn},
  }
