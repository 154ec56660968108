"""Predictions files: what is written, read, scored and refused."""

import csv
import gzip
import json
import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iusp_jax.scoring import metrics, score_file
from tfds_dcase import taxonomy

COLUMNS = taxonomy.COARSE + taxonomy.FINE_COLUMNS
CLIPS = [f'00_{n:06d}.wav' for n in range(12)]


def truth_of(n):
  """Fine tags of clip n, X included; every class has some and lacks some."""
  return {
    name
    for q, name in enumerate(taxonomy.FINE_COLUMNS)
    if (7 * n + 5 * q) % 11 < 2
  }


def annotation_row(clip, annotator, split, present, faulty=False):
  fields = {'split': split, 'sensor_id': 3}
  fields |= {'audio_filename': clip, 'annotator_id': annotator}
  fields |= {f'{n}_presence': int(n in present) for n in taxonomy.FINE_COLUMNS}
  fields |= {f'{n}_proximity': -1 for n in taxonomy.FINE_COLUMNS}
  for name in taxonomy.COARSE:
    fields[f'{name}_presence'] = int(any(p[0] == name[0] for p in present))
  if faulty and fields['3_non-machinery-impact_presence']:
    fields['2_machinery-impact_presence'] = 1
  return fields


@pytest.fixture
def annotations(tmp_path):
  """Twelve validate clips with truth, one without; two train clips."""
  rows = []
  for n, clip in enumerate(CLIPS):
    rows.append(annotation_row(clip, 8, 'validate', set()))
    rows.append(annotation_row(clip, 0, 'validate', truth_of(n), faulty=True))
  rows.append(annotation_row('no_truth.wav', 8, 'validate', truth_of(0)))
  rows.append(annotation_row('train_1.wav', 8, 'train', truth_of(1)))
  rows.append(annotation_row('train_1.wav', 9, 'train', truth_of(2)))
  rows.append(annotation_row('train_2.wav', 9, 'train', set()))
  return write_rows(tmp_path / 'annotations.csv', rows)


def write_rows(path, rows):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


@pytest.fixture
def scores():
  values = np.random.default_rng(0).random((len(COLUMNS), len(CLIPS)))
  return dict(zip(COLUMNS, values, strict=True))


def expected(scores, level, faulty=False):
  truth = [
    [name in truth_of(n) for name in taxonomy.FINE_COLUMNS] for n in range(12)
  ]
  columns = taxonomy.FINE_COLUMNS
  if level == 'coarse':
    columns = taxonomy.COARSE
    truth = [
      [any(p[0] == name[0] for p in truth_of(n)) for name in columns]
      for n in range(12)
    ]
    if faulty:
      truth = [[*row[:1], row[1] or row[2], *row[2:]] for row in truth]
  return metrics.score(truth, np.stack([scores[c] for c in columns], 1), level)


class TestFiles:
  @given(
    st.lists(
      st.floats(0, 1)
      | st.floats(0, 1, width=32)
      | st.sampled_from([0.01, 0.5]),
      min_size=1,
      max_size=8,
    )
  )
  @settings(deadline=None, max_examples=30)
  def test_what_is_written_is_read_exactly(self, tmp_path_factory, values):
    path = tmp_path_factory.mktemp('exact') / 'p.csv'
    names = [f'a, "{n}".wav' for n in range(len(values))]
    tags = {'dog': np.float32(values), 'tür; ,x': values[::-1]}
    score_file.write_predictions(path, names, tags)
    found = score_file.read_predictions(path)
    assert found.clip_ids == tuple(names)
    assert list(found.scores_by_column) == list(tags)
    np.testing.assert_array_equal(
      found.scores_by_column['dog'], np.float32(values)
    )
    np.testing.assert_array_equal(
      found.scores_by_column['tür; ,x'], values[::-1]
    )

  def test_form(self, tmp_path):
    path = tmp_path / 'new folder' / 'p.csv'
    score_file.write_predictions(
      path, ['a.wav', 'b.wav'], {'1_engine': [0.25, 1], '8_dog': [0, 1e-9]}
    )
    assert path.read_text() == (
      'audio_filename,1_engine,8_dog\na.wav,0.25,0.0\nb.wav,1.0,1e-09\n'
    )
    assert os.listdir(path.parent) == ['p.csv']

  @pytest.mark.parametrize(
    ('names', 'columns', 'message'),
    [
      (['a', 'a'], {'x': [0, 0]}, "'a' comes twice"),
      (['a', 'b'], {'x': [0]}, r"column 'x' has shape \(1,\), expected \(2,\)"),
      (['a'], {'x': [np.nan]}, "'x' of a is nan"),
      (['a'], {'x': [1.5]}, "'x' of a is 1.5, expected a number from 0 to 1"),
      (['a'], {}, 'expected at least one tag'),
      (['a'], {'audio_filename': [0]}, 'none of them named'),
    ],
  )
  def test_not_written(self, tmp_path, names, columns, message):
    path = tmp_path / 'p.csv'
    path.write_text('as before')
    with pytest.raises(ValueError, match=message):
      score_file.write_predictions(path, names, columns)
    assert path.read_text() == 'as before'
    assert os.listdir(tmp_path) == ['p.csv']

  def test_gzip_byte_order_mark_blank_lines(self, tmp_path):
    text = '\ufeffaudio_filename, dog\r\n\r\na.wav, 0.5\r\n'
    for name, data in (
      ('p.csv', text.encode()),
      ('p.csv.gz', gzip.compress(text.encode())),
    ):
      (tmp_path / name).write_bytes(data)
      found = score_file.read_predictions(tmp_path / name)
      assert found.clip_ids == ('a.wav',)
      assert found.scores_by_column['dog'].tolist() == [0.5]

  @pytest.mark.parametrize(
    ('text', 'message'),
    [
      ('', "no column 'audio_filename' .found none"),
      ('filename,dog\na,1\n', "no column 'audio_filename' .found 'filename'"),
      ('audio_filename,dog\n', 'header without rows'),
      ('audio_filename,dog\na,1\nb\n', 'row 3: found 1 fields, expected 2'),
      ('audio_filename,dog,dog\na,1,1\n', "columns twice: 'dog'"),
      ('audio_filename,dog\na,1\nb,1\na,0\n', "'a' comes twice .rows 2 and 4"),
      ('audio_filename,dog\na,1\nb,\n', "row 3, column 'dog': found ''"),
      ('audio_filename,dog\na,nan\n', "row 2, column 'dog': found 'nan'"),
      ('audio_filename,dog\na,1.01\n', "found '1.01', expected a number from"),
      ('audio_filename,dog\na,-0.1\n', "found '-0.1'"),
      ('audio_filename,dog\na,yes\n', "found 'yes'"),
    ],
  )
  def test_refused(self, tmp_path, text, message):
    path = tmp_path / 'p.csv'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
      score_file.read_predictions(path)
    assert str(path) in str(error.value)

  def test_not_a_text_file(self, tmp_path):
    path = tmp_path / 'p.csv.gz'
    whole = gzip.compress(b'audio_filename,dog\na,1\n' * 9)
    for data in (whole[:-9], b'\xff\xfe\x00', b'\x1f\x8b nothing of the kind'):
      path.write_bytes(data)
      with pytest.raises(ValueError, match='not a whole CSV file'):
        score_file.read_predictions(path)

  @pytest.mark.parametrize('cell', ['"a.wav,0.5\nb.wav', '"' + 'x' * 140_000])
  def test_a_quote_that_is_not_closed(self, tmp_path, cell):
    path = tmp_path / 'p.csv'
    path.write_text(f'audio_filename,dog\nc.wav,1\n{cell},0.1\nd.wav,1\n')
    with pytest.raises(ValueError, match=r'line 3: .*quote .*not.* closed'):
      score_file.read_predictions(path)

  def test_columns_not_asked_for_may_hold_anything(self, tmp_path):
    path = tmp_path / 'p.csv'
    path.write_text('note,audio_filename,dog\nhello,a.wav,0.5\n')
    found = score_file.read_predictions(path, ['dog', 'cat'])
    assert list(found.scores_by_column) == ['dog']
    assert found.ignored == ('note',)


class TestScoreFiles:
  @pytest.fixture
  def predictions(self, tmp_path, scores):
    path = tmp_path / 'p.csv'
    score_file.write_predictions(path, CLIPS, scores)
    return path

  def test_both_levels_by_default(self, predictions, annotations, scores):
    found = score_file.score_files(predictions, annotations)
    assert found['num_clips'] == 12
    for level in metrics.LEVELS:
      want = expected(scores, level)
      for name in ('micro_auprc', 'macro_auprc', 'micro_f1', 'f1_row'):
        assert found[f'{level}_{name}'] == want[name]
      assert found[f'{level}_class_auprc'] == dict(
        zip(taxonomy.COARSE, want['class_auprc'], strict=True)
      )
    assert found['coarse_micro_auprc'] != found['fine_micro_auprc']

  @pytest.mark.parametrize('level', metrics.LEVELS)
  def test_one_level(self, predictions, annotations, level):
    found = score_file.score_files(predictions, annotations, level=level)
    both = score_file.score_files(predictions, annotations)
    (other,) = set(metrics.LEVELS) - {level}
    assert not [key for key in found if key.startswith(other)]
    assert found.items() <= both.items()

  def test_labels(self, predictions, annotations, scores):
    new = score_file.score_files(predictions, annotations)
    old = score_file.score_files(predictions, annotations, labels='as_shipped')
    want = expected(scores, 'coarse', faulty=True)
    assert (
      old['coarse_class_auprc']['2_machinery-impact']
      == (want['class_auprc'][1])
    )
    assert old['coarse_micro_auprc'] == want['micro_auprc']
    assert new['coarse_micro_auprc'] != old['coarse_micro_auprc']
    assert new['fine_micro_auprc'] == old['fine_micro_auprc']
    assert len([n for n in new['notes'] if 'contradict' in n]) == 1
    assert any('as shipped' in note for note in old['notes'])

  @given(st.permutations(range(len(CLIPS))), st.permutations(COLUMNS))
  @settings(deadline=None, max_examples=10)
  def test_order_of_rows_and_columns(
    self, annotations_once, scores_once, clips, columns
  ):
    folder, annotations = annotations_once
    path = folder / 'shuffled.csv'
    score_file.write_predictions(
      path,
      [CLIPS[n] for n in clips],
      {c: scores_once[c][list(clips)] for c in columns},
    )
    found = score_file.score_files(path, annotations)
    for level in metrics.LEVELS:
      want = expected(scores_once, level)
      assert found[f'{level}_micro_auprc'] == want['micro_auprc']

  @pytest.fixture(scope='class')
  def annotations_once(self, tmp_path_factory):
    folder = tmp_path_factory.mktemp('order')
    rows = [
      annotation_row(clip, 0, 'validate', truth_of(n))
      for n, clip in enumerate(CLIPS)
    ]
    return folder, write_rows(folder / 'annotations.csv', rows)

  @pytest.fixture(scope='class')
  def scores_once(self):
    values = np.random.default_rng(0).random((len(COLUMNS), len(CLIPS)))
    return dict(zip(COLUMNS, values, strict=True))

  def test_missing_columns(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    gone = ['5_alert-signal', '5-3_siren']
    left = {c: v for c, v in scores.items() if c not in gone}
    left['5_alert_signal'] = scores['5_alert-signal']
    score_file.write_predictions(path, CLIPS, left)
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always')
      found = score_file.score_files(path, annotations)
    texts = [str(warning.message) for warning in caught]
    assert any(
      "missing coarse columns are scored as 0: '5_a" in t for t in texts
    )
    assert any(
      "missing fine columns are scored as 0: '5-3_" in t for t in texts
    )
    assert any(
      "Is it '5_alert_signal' for '5_alert-signal'?" in t for t in texts
    )
    assert any("ignored: '5_alert_signal'" in t for t in texts)
    zeros = scores | {c: np.zeros(12) for c in gone}
    for level in metrics.LEVELS:
      want = expected(zeros, level)['micro_auprc']
      assert found[f'{level}_micro_auprc'] == want
    assert found['coarse_undefined'] == []
    assert found['coarse_constant'] == ['5_alert-signal']
    assert found['coarse_class_auprc']['5_alert-signal'] == 0

  def test_a_fine_file_at_the_coarse_level(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    fine = {c: scores[c] for c in taxonomy.FINE_COLUMNS}
    score_file.write_predictions(path, CLIPS, fine)
    found = score_file.score_files(path, annotations)
    highest = {
      coarse: np.max([v for c, v in fine.items() if c[0] == coarse[0]], axis=0)
      for coarse in taxonomy.COARSE
    }
    want = expected(highest, 'coarse')
    assert found['coarse_micro_auprc'] == want['micro_auprc']
    assert any('maximum of its fine scores' in note for note in found['notes'])

  def test_a_file_without_x(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    known = {c: v for c, v in scores.items() if c not in taxonomy.UNKNOWN}
    score_file.write_predictions(path, CLIPS, known)
    found = score_file.score_files(path, annotations)
    zeros = scores | {c: np.zeros(12) for c in taxonomy.UNKNOWN}
    assert found['fine_micro_auprc'] == expected(zeros, 'fine')['micro_auprc']
    assert any('X is never predicted' in note for note in found['notes'])
    del known['1-1_small-sounding-engine']
    known['1-X_engine-of-uncertain-size'] = np.zeros(12)
    score_file.write_predictions(path, CLIPS, known)
    with pytest.warns(UserWarning, match="'1-1_small.*'2-X_other"):
      score_file.score_files(path, annotations)

  def test_a_coarse_file(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    coarse = {c: scores[c] for c in taxonomy.COARSE}
    score_file.write_predictions(path, CLIPS, coarse)
    found = score_file.score_files(path, annotations)
    assert (
      found['coarse_micro_auprc'] == expected(scores, 'coarse')['micro_auprc']
    )
    assert 'fine_micro_auprc' not in found
    assert any('no fine columns' in note for note in found['notes'])
    with pytest.warns(UserWarning, match='missing fine columns'):
      asked = score_file.score_files(path, annotations, level='fine')
    assert asked['fine_micro_auprc'] == 0

  def test_clips_without_truth_are_left_out(
    self, tmp_path, annotations, scores
  ):
    path = tmp_path / 'p.csv'
    more = {c: np.append(v, 0.9) for c, v in scores.items()}
    score_file.write_predictions(path, [*CLIPS, 'no_truth.wav'], more)
    found = score_file.score_files(path, annotations)
    want = expected(scores, 'coarse')
    assert found['coarse_micro_auprc'] == want['micro_auprc']
    assert any('1 clips of validate have no truth' in n for n in found['notes'])

  def test_train_is_scored_on_the_votes(self, tmp_path, annotations):
    path = tmp_path / 'p.csv'
    marked = truth_of(1) | truth_of(2)
    classes = {c for c in taxonomy.COARSE if any(m[0] == c[0] for m in marked)}
    scores = {c: [float(c in marked | classes), 0] for c in COLUMNS}
    score_file.write_predictions(path, ['train_1.wav', 'train_2.wav'], scores)
    found = score_file.score_files(path, annotations, 'train')
    assert found['coarse_micro_auprc'] == found['fine_micro_auprc'] == 1
    assert any('volunteers' in note for note in found['notes'])

  def test_wrong_clips(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    score_file.write_predictions(path, ['other.wav', *CLIPS[1:]], scores)
    with pytest.raises(ValueError, match='1 of 12 missing') as error:
      score_file.score_files(path, annotations)
    for part in (str(path), str(annotations), CLIPS[0], '1 extra', 'other.wav'):
      assert part in str(error.value)

  def test_a_split_without_truth(self, predictions, annotations):
    with pytest.raises(
      ValueError, match=r"no truth rows.*split 'test'"
    ) as error:
      score_file.score_files(predictions, annotations, 'test')
    assert "'validate': 12" in str(error.value)

  def test_no_tag_at_all(self, tmp_path, annotations):
    path = tmp_path / 'p.csv'
    score_file.write_predictions(path, CLIPS, {'dog': np.zeros(12)})
    with pytest.raises(ValueError, match=r"found 'dog'.*expected '1_engine'"):
      score_file.score_files(path, annotations)

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      ({'split': 'dev'}, "split 'dev'; legal: train, validate, test"),
      ({'level': 'all'}, "level 'all'; legal: coarse, fine, or none"),
      ({'labels': 'old'}, "labels 'old'; legal: recomputed, as_shipped"),
    ],
  )
  def test_unknown_arguments(
    self, predictions, annotations, arguments, message
  ):
    with pytest.raises(ValueError, match=message):
      score_file.score_files(predictions, annotations, **arguments)

  def test_main_prints_and_writes(
    self, predictions, annotations, tmp_path, capsys
  ):
    output = tmp_path / 'new' / 'out.json'
    score_file.main_score(
      predictions=str(predictions),
      annotations=str(annotations),
      split='validate',
      level='',
      labels='recomputed',
      output=str(output),
      bootstrap=20,
    )
    found = json.loads(output.read_text())
    for ending in ('micro_auprc', 'macro_auprc', 'micro_f1'):
      assert len([key for key in found if key.endswith(ending)]) == 2
    for level in metrics.LEVELS:
      low, high = found[f'{level}_micro_auprc_ci']
      assert 0 <= low <= high <= 1
      assert set(found[f'{level}_class_auprc_ci']) == set(taxonomy.COARSE)
    printed = capsys.readouterr().out
    assert f'{found["fine_macro_auprc"]:.4f}' in printed
    assert printed.count('mean over the 8 of 8 tags with positives') == 2
    assert f'[{low:.4f}, {high:.4f}]' in printed
    for name in taxonomy.COARSE:
      assert f'{name} ' in printed
    assert f'written to {output}' in printed

  def test_a_split_without_positives(
    self, tmp_path, annotations, scores, capsys
  ):
    rows = list(csv.DictReader(annotations.open()))
    for row in rows:
      row |= {n: '0' for n in row if n.endswith('_presence')}
      if row['audio_filename'] == CLIPS[0]:
        row['8-1_dog-barking-whining_presence'] = '1'
        row['8_dog_presence'] = '1'
    write_rows(annotations, rows)
    path, output = tmp_path / 'p.csv', tmp_path / 'out.json'
    score_file.write_predictions(path, CLIPS, scores)
    files = {'predictions': str(path), 'annotations': str(annotations)}
    result = score_file.main_score(**files, bootstrap=20)
    assert result['coarse_macro_auprc'] == result['coarse_class_auprc']['8_dog']
    assert result['coarse_class_auprc']['1_engine'] is None
    assert 'mean over the 1 of 8 tags' in capsys.readouterr().out
    for row in rows:
      row |= {n: '0' for n in row if n.endswith('_presence')}
    write_rows(annotations, rows)
    result = score_file.main_score(**files, output=str(output), bootstrap=20)
    assert result['coarse_micro_auprc'] is result['fine_macro_auprc'] is None
    printed = capsys.readouterr()
    assert printed.err.count('no positives at the') == 2
    assert 'nothing can be scored' in printed.err
    assert 'undefined' in printed.out
    assert 'NaN' not in output.read_text()
    assert json.loads(output.read_text())['coarse_micro_auprc'] is None

  def test_main_prints_each_warning_once(
    self, tmp_path, annotations, scores, capsys
  ):
    path = tmp_path / 'p.csv'
    fine = {c: scores[c] for c in taxonomy.FINE_COLUMNS[1:]}
    score_file.write_predictions(path, CLIPS, fine)
    result = score_file.main_score(str(path), str(annotations), bootstrap=0)
    assert len(result['warnings']) == 1
    printed = capsys.readouterr()
    assert printed.err.count('1-1_small-sounding-engine') == 1
    assert printed.out.count('note: ') == len(result['notes'])

  @pytest.mark.parametrize('missing', ['predictions', 'annotations'])
  def test_main_without_a_file(self, missing):
    files = {'predictions': 'p.csv', 'annotations': 'a.csv'} | {missing: ''}
    with pytest.raises(ValueError, match=f'--{missing} is missing'):
      score_file.main_score(**files)

  def test_table_marks_what_is_undefined(self, tmp_path, annotations, scores):
    path = tmp_path / 'p.csv'
    scores |= {'6_music': np.full(12, 0.3)}
    score_file.write_predictions(path, CLIPS, scores)
    found = score_file.score_files(path, annotations, level='coarse')
    (line,) = [
      line for line in score_file.table(found).splitlines() if '6_music' in line
    ]
    assert line.endswith('constant scores')


class TestOfficialScores:
  @pytest.mark.parametrize('name', ['uniform', 'ties'])
  def test_reference_files(self, sonyc_dir, metric_reference_dir, name):
    found = score_file.score_files(
      metric_reference_dir / f'{name}.csv.gz',
      sonyc_dir / 'annotations.csv',
      labels='as_shipped',
    )
    file = metric_reference_dir / 'reference.json'
    for level, want in json.loads(file.read_text())[name].items():
      for key, ours in (
        ('micro_auprc', 'micro_auprc'),
        ('macro_auprc', 'macro_auprc'),
        ('micro_f1_at_0.5', 'micro_f1'),
      ):
        assert found[f'{level}_{ours}'] == pytest.approx(want[key], abs=1e-9)
      assert found[f'{level}_f1_row'] == want['f1_row']
      for c, value in want['class_auprc'].items():
        named = found[f'{level}_class_auprc'][taxonomy.COARSE[int(c) - 1]]
        assert named == pytest.approx(value, abs=1e-9)

  def test_recomputed_labels_are_the_default(
    self, sonyc_dir, metric_reference_dir
  ):
    found = score_file.score_files(
      metric_reference_dir / 'ties.csv.gz', sonyc_dir / 'annotations.csv'
    )
    assert found['coarse_positives']['2_machinery-impact'] == 16
    assert any('482 of 10349 rows' in note for note in found['notes'])
