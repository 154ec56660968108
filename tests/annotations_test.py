"""SONYC-UST annotations: the real counts, small worked files, refusals."""

import csv

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfds_dcase import annotations as annotations_lib
from tfds_dcase import taxonomy

Q = len(taxonomy.FINE_COLUMNS)
V2 = {
  'year': '2018',
  'week': '7',
  'day': '2',
  'hour': '15',
  'borough': '1',
  'block': '546',
  'latitude': '40.72951',
  'longitude': '-73.99388',
}


def row(
  clip='00_000001.wav', annotator='5', split='train', present=(), **changes
):
  """One row as text fields, everything absent but the columns `present`."""
  fields = {
    'split': split,
    'sensor_id': '0',
    'audio_filename': clip,
    'annotator_id': annotator,
  }
  fields |= {f'{n}_presence': '0.0' for n in taxonomy.FINE_COLUMNS}
  fields |= {f'{n}_proximity': '-1' for n in taxonomy.FINE_COLUMNS}
  fields |= {f'{n}_presence': '0' for n in taxonomy.COARSE}
  for name in present:
    fields[f'{name}_presence'] = '1.0'
    fields[f'{taxonomy.COARSE[int(name[0]) - 1]}_presence'] = '1'
  return fields | changes


def write(path, rows):
  with open(path, 'w', newline='') as file:
    writer = csv.DictWriter(file, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
  return path


@pytest.fixture(scope='module')
def real(sonyc_dir):
  return annotations_lib.read(sonyc_dir / 'annotations.csv')


class TestRealFile:
  def test_train_positives(self, real):
    train = annotations_lib.clips(real, 'train')
    assert train.coarse.shape == (2351, 8)
    assert (train.coarse == 1).sum(axis=0).tolist() == [
      1269,
      634,
      276,
      244,
      549,
      125,
      778,
      151,
    ]
    assert train.votes.shape == (2351, 3, Q)
    assert not train.has_truth.any()
    assert not train.dropped

  def test_train_positives_as_shipped(self, real):
    # 848 instead of 634 machinery impacts is the fault of the shipped file.
    train = real.split == 'train'
    shipped_RC = real.coarse_as_shipped[train] == 1
    clip = real.audio_filename[train]
    assert len(np.unique(clip[shipped_RC[:, 1]])) == 848
    assert len(np.unique(clip[shipped_RC[:, 0]])) == 1269

  def test_validate_truth(self, real):
    validate = annotations_lib.clips(real, 'validate')
    assert validate.coarse.sum(axis=0).tolist() == [
      223,
      16,
      73,
      23,
      86,
      25,
      199,
      6,
    ]
    assert validate.coarse.shape == (443, 8)
    assert validate.has_truth.all()
    assert validate.votes.shape == (443, 3, Q)

  def test_faulty_coarse(self, real):
    faulty = annotations_lib.faulty_coarse(real)
    assert faulty.count == 482 == len(faulty.lines)
    assert '482 of 10349' in faulty.reason
    assert '2_machinery-impact in 482' in faulty.reason
    assert 'v0.4' in faulty.reason

  def test_there_is_no_test_split(self, real):
    test = annotations_lib.clips(real, 'test')
    assert test.coarse.shape == (0, 8)
    assert test.fine.shape == (0, Q)

  def test_columns(self, real):
    assert len(annotations_lib.COLUMNS_V1) == 70
    assert real.extra == {}
    assert set(np.unique(real.presence)) == {-1, 0, 1}
    assert (real.proximity[:, 0] == -1).sum() == 10106
    assert (real.proximity[:, 0] == 0).sum() == 92  # near
    assert (real.proximity[:, 0] == 1).sum() == 105  # far
    assert (real.proximity[:, 0] == 2).sum() == 46  # notsure


class TestRead:
  @pytest.mark.parametrize('one', ['1', '1.0', ' 1', '1.'])
  @pytest.mark.parametrize('absent', ['0', '0.0', '-0.0'])
  @pytest.mark.parametrize('unlabelled', ['-1', '-1.0'])
  def test_spellings(self, tmp_path, one, absent, unlabelled):
    changes = {
      '1-1_small-sounding-engine_presence': one,
      '5-3_siren_presence': absent,
      '8-1_dog-barking-whining_presence': unlabelled,
    }
    path = write(tmp_path / 'a.csv', [row(**changes)])
    found = annotations_lib.read(path).presence[0]
    assert (found[0], found[16], found[28]) == (1, 0, -1)

  def test_v2_columns(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(**V2), row('b.wav', **V2)])
    extra = annotations_lib.read(path).extra
    assert list(extra) == list(V2)
    assert extra['year'].tolist() == [2018, 2018]
    assert extra['longitude'].tolist() == [-73.99388] * 2
    assert extra['block'].dtype == np.int32

  def test_column_order_does_not_matter(self, tmp_path):
    fields = row(present=['5-3_siren'])
    backwards = dict(reversed(fields.items()))
    one = annotations_lib.read(write(tmp_path / 'a.csv', [fields]))
    two = annotations_lib.read(write(tmp_path / 'b.csv', [backwards]))
    np.testing.assert_array_equal(one.presence, two.presence)
    np.testing.assert_array_equal(one.coarse_as_shipped, two.coarse_as_shipped)

  def test_blank_lines_and_a_byte_order_mark(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(), row('b.wav')])
    text = path.read_text().replace('\n', '\n\n', 1)
    path.write_text('\ufeff' + text)
    found = annotations_lib.read(path)
    assert found.audio_filename.tolist() == ['00_000001.wav', 'b.wav']
    assert found.line.tolist() == [3, 4]

  @pytest.mark.parametrize(
    ('column', 'value', 'legal'),
    [
      ('split', 'training', 'train, validate, test'),
      ('1_engine_presence', '2', '1, 0 or -1'),
      ('5-3_siren_presence', 'yes', '1, 0 or -1'),
      ('5-3_siren_presence', '', '1, 0 or -1'),
      ('5-3_siren_presence', 'nan', '1, 0 or -1'),
      ('5-3_siren_presence', '0.5', '1, 0 or -1'),
      ('5-3_siren_proximity', 'nearby', 'near, far, notsure or -1'),
      ('annotator_id', 'bob', 'whole number'),
      ('annotator_id', '1.5', 'whole number'),
      ('annotator_id', 'inf', 'whole number'),
      ('annotator_id', '99999999999', 'whole number'),
      ('sensor_id', 'x', 'whole number'),
      ('audio_filename', '', 'file name'),
    ],
  )
  def test_bad_value(self, tmp_path, column, value, legal):
    path = write(tmp_path / 'a.csv', [row('b.wav'), row(**{column: value})])
    with pytest.raises(ValueError, match='row 3') as error:
      annotations_lib.read(path)
    for part in (str(path), repr(column), repr(value), legal):
      assert part in str(error.value)

  @pytest.mark.parametrize('gone', ['split', '6_music_presence'])
  def test_missing_column(self, tmp_path, gone):
    fields = row()
    del fields[gone]
    with pytest.raises(ValueError, match=f"missing columns '{gone}'"):
      annotations_lib.read(write(tmp_path / 'a.csv', [fields]))

  def test_unknown_column(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(**{'9_cat_presence': '1'})])
    with pytest.raises(ValueError, match="unknown columns '9_cat_presence'"):
      annotations_lib.read(path)

  def test_part_of_v2(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(year='2018')])
    with pytest.raises(ValueError, match="missing columns 'week'"):
      annotations_lib.read(path)

  def test_cut_file(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(), row('b.wav')])
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match='row 3: found'):
      annotations_lib.read(path)

  def test_empty_files(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row()])
    path.write_text(path.read_text().splitlines()[0] + '\n')
    with pytest.raises(ValueError, match='header without rows'):
      annotations_lib.read(path)
    path.write_text('')
    with pytest.raises(ValueError, match='missing columns'):
      annotations_lib.read(path)

  def test_not_text(self, tmp_path):
    path = tmp_path / 'a.csv'
    path.write_bytes(b'\x1f\x8b\x08\xff\xfe')
    with pytest.raises(ValueError, match='not a CSV text file'):
      annotations_lib.read(path)

  @pytest.mark.parametrize('cell', ['"', '"' + 'x' * 140_000])
  @pytest.mark.parametrize('place', ['first', 'last'])
  def test_a_quote_that_is_not_closed(self, tmp_path, cell, place):
    path = write(tmp_path / 'a.csv', [row(annotator=n) for n in '123'])
    lines = path.read_text().splitlines()
    lines[2] = (
      cell + lines[2]
      if place == 'first'
      else lines[2].rpartition(',')[0] + ',' + cell
    )
    path.write_text('\n'.join(lines) + '\n')
    with pytest.raises(ValueError, match=r'line 3: .*not.* closed') as error:
      annotations_lib.read(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500

  def test_a_clip_in_two_splits(self, tmp_path):
    path = write(tmp_path / 'a.csv', [row(), row(split='validate')])
    with pytest.raises(
      ValueError, match=r"row 3.*'validate'.*'train' at row 2"
    ):
      annotations_lib.read(path)

  def test_two_truth_rows(self, tmp_path):
    truth = row(split='validate', annotator='0')
    path = write(tmp_path / 'a.csv', [truth, row('b', split='test'), truth])
    with pytest.raises(ValueError, match='row 4: a second truth row'):
      annotations_lib.read(path)


class TestCoarseFromFine:
  def test_every_column_alone(self):
    found = annotations_lib.coarse_from_fine(np.eye(Q, dtype=np.int8))
    assert found.dtype == np.int8
    for tag_C, name in zip(found, taxonomy.FINE_COLUMNS, strict=True):
      assert np.flatnonzero(tag_C).tolist() == [int(name[0]) - 1]

  @given(st.lists(st.sampled_from([-1, 0, 1]), min_size=Q, max_size=Q))
  def test_is_the_maximum_of_what_is_labelled(self, presence):
    found = annotations_lib.coarse_from_fine(np.array(presence))
    for c in range(8):
      mine = [
        p
        for p, name in zip(presence, taxonomy.FINE_COLUMNS, strict=True)
        if name[0] == str(c + 1) and p != -1
      ]
      assert found[c] == max(mine, default=-1)

  def test_refuses_another_length(self):
    with pytest.raises(ValueError, match=r'found shape \(2, 23\)'):
      annotations_lib.coarse_from_fine(np.zeros((2, 23)))


class TestAggregate:
  votes = np.array(
    [[1, 1, 1, -1, -1, 0], [0, 1, 0, -1, 1, 0], [0, 0, -1, -1, 0, 0]]
  )

  def test_any(self):
    found = annotations_lib.aggregate(self.votes)
    assert found.tolist() == [1, 1, 1, -1, 1, 0]
    assert found.dtype == np.int8

  def test_majority(self):
    # A tie (third and fifth column, one of two votes) is no majority.
    found = annotations_lib.aggregate(self.votes, 'majority')
    assert found.tolist() == [0, 1, 0, -1, 0, 0]

  def test_mean(self):
    found = annotations_lib.aggregate(self.votes, 'mean')
    np.testing.assert_allclose(
      found, [1 / 3, 2 / 3, 0.5, -1, 0.5, 0], rtol=1e-6
    )
    assert found.dtype == np.float32

  def test_unknown_rule(self):
    with pytest.raises(ValueError, match=r"'most'; legal: any, majority, mean"):
      annotations_lib.aggregate(self.votes, 'most')


class TestClips:
  def test_train_ignores_team_and_truth(self, tmp_path):
    path = write(
      tmp_path / 'a.csv',
      [
        row(annotator='-1', present=['8-1_dog-barking-whining']),
        row(annotator='0', present=['6-2_mobile-music']),
        row(annotator='7', present=['5-3_siren']),
        row(annotator='9', present=['5-X_other-unknown-alert-signal']),
        row(annotator='2'),
      ],
    )
    train = annotations_lib.clips(annotations_lib.read(path), 'train')
    assert train.coarse.tolist() == [[0, 0, 0, 0, 1, 0, 0, 0]]
    assert train.annotator_id.tolist() == [[7, 9, 2]]
    assert np.flatnonzero(train.fine[0]).tolist() == [16, 18]
    assert train.votes[0, :, 16].tolist() == [1, 0, 0]

  def test_coarse_joins_coarse_votes(self, tmp_path):
    # Two of three heard an engine, but of different sizes.
    path = write(
      tmp_path / 'a.csv',
      [
        row(annotator='1', present=['1-1_small-sounding-engine']),
        row(annotator='2', present=['1-3_large-sounding-engine']),
        row(annotator='3'),
      ],
    )
    read = annotations_lib.read(path)
    most = annotations_lib.clips(read, 'train', rule='majority')
    assert most.coarse[0, 0] == 1
    assert most.fine.sum() == 0
    soft = annotations_lib.clips(read, 'train', rule='mean')
    assert soft.coarse[0, 0] == np.float32(2 / 3)
    assert soft.fine[0, 0] == np.float32(1 / 3)

  @pytest.fixture
  def validate_rows(self, tmp_path):
    path = write(
      tmp_path / 'a.csv',
      [
        row('b.wav', '4', 'validate', present=['6-2_mobile-music']),
        row('a.wav', '3', 'validate', present=['5-3_siren']),
        row('a.wav', '0', 'validate', present=['5-1_car-horn']),
        row('a.wav', '-1', 'validate'),
        row('c.wav', '-2', 'validate'),
      ],
    )
    return annotations_lib.read(path)

  def test_truth_only(self, validate_rows):
    found = annotations_lib.clips(validate_rows, 'validate')
    assert found.audio_filename.tolist() == ['a.wav']
    assert np.flatnonzero(found.fine[0]).tolist() == [14]
    assert found.votes[0, 0, 16] == 1
    assert found.dropped == ('b.wav', 'c.wav')
    assert found.row.tolist() == [1]

  def test_votes_where_truth_is_missing(self, validate_rows):
    found = annotations_lib.clips(
      validate_rows, 'validate', without_truth='votes'
    )
    assert found.audio_filename.tolist() == ['a.wav', 'b.wav']
    assert found.has_truth.tolist() == [True, False]
    assert np.flatnonzero(found.fine[0]).tolist() == [14]
    assert np.flatnonzero(found.fine[1]).tolist() == [20]
    assert found.dropped == ('c.wav',)

  @pytest.mark.parametrize(
    ('arguments', 'message'),
    [
      (('dev',), "Unknown split 'dev'; legal: train, validate, test"),
      (('train', 'most'), 'Unknown aggregation rule'),
      (('train', 'any', 'keep'), "without_truth 'keep'; legal: drop, votes"),
    ],
  )
  def test_unknown_arguments(self, validate_rows, arguments, message):
    with pytest.raises(ValueError, match=message):
      annotations_lib.clips(validate_rows, *arguments)
