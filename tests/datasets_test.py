"""Splits: every clip once, shared by hosts; tags, masks, truth."""

import dataclasses

import numpy as np
import pytest
import soundfile
from fakes import dataset
from sonyc_ust_world import python

from configs import base
from iusp_jax.data import datasets
from iusp_jax.training import evaluate
from tfds_dcase import taxonomy


@pytest.fixture(scope='module')
def fake():
  return dataset('both', sizes=(23, 11, 13))


class Counted:
  """A source that notes which records are read."""

  def __init__(self, source):
    self.source, self.read = source, []

  def __len__(self):
    return len(self.source)

  def __getitem__(self, index):
    self.read.append(index)
    return self.source[index]


@pytest.mark.parametrize(('batch_size', 'num_hosts'), [(4, 1), (8, 2), (16, 4)])
def test_evaluation_sees_every_clip_once(fake, batch_size, num_hosts):
  split = fake.splits['test']
  sources = [Counted(split.source) for _ in range(num_hosts)]
  hosts = [
    list(
      datasets.eval_batches(
        dataclasses.replace(split, source=source),
        batch_size,
        host=h,
        num_hosts=num_hosts,
      )
    )
    for h, source in enumerate(sources)
  ]
  for source in sources:  # Its own share, padding included.
    assert len(source.read) == len(hosts[0]) * batch_size // num_hosts
  assert len({len(batches) for batches in hosts}) == 1
  order = [
    int(k)
    for step in zip(*hosts, strict=True)
    for part in step
    for k in part['index']
  ]
  assert order[: len(split)] == list(range(len(split)))
  assert set(order[len(split) :]) <= {len(split) - 1}  # Copies of the last.
  assert len(order) == -(-len(split) // batch_size) * batch_size
  assert all(
    part['wave'].shape[0] == batch_size // num_hosts
    for batches in hosts
    for part in batches
  )


def test_fine_tags_are_masked_where_x_is_marked():
  columns = np.zeros(29, np.int8)
  columns[taxonomy.FINE_COLUMNS.index('5-X_other-unknown-alert-signal')] = 1
  columns[taxonomy.FINE_COLUMNS.index('8-1_dog-barking-whining')] = 1
  sample = {
    'coarse': np.array([0, 0, 0, 0, 1, 0, 0, 1], np.int8),
    'fine': columns[~taxonomy.IS_UNKNOWN],
    'fine_unknown': columns[taxonomy.IS_UNKNOWN],
    'votes': np.stack([columns, columns, 0 * columns]),
  }
  tags, mask = datasets.targets(sample, 'both', 'any')
  np.testing.assert_array_equal(tags[:8], sample['coarse'])
  np.testing.assert_array_equal(mask[:8], np.ones(8))
  masked = np.array(taxonomy.FINE)[mask[8:] == 0]
  assert [name[:3] for name in masked] == ['5-1', '5-2', '5-3', '5-4']
  mean, _ = datasets.targets(sample, 'coarse', 'mean')
  np.testing.assert_allclose(mean[[4, 7, 0]], [2 / 3, 2 / 3, 0], 1e-6)
  majority, _ = datasets.targets(sample, 'coarse', 'majority')
  np.testing.assert_array_equal(majority, sample['coarse'])


def test_annotators_agree_on_a_class_by_different_tags():
  """Two of three hear an engine, each another size: the class, no size."""
  votes = np.zeros((3, 29), np.int8)
  votes[0, 0] = votes[1, 1] = 1
  sample = {'fine': None, 'votes': votes}
  tags, mask = datasets.targets(sample, 'both', 'majority')
  np.testing.assert_array_equal(tags[:8], [1, 0, 0, 0, 0, 0, 0, 0])
  assert not tags[8:].any()
  assert mask.all()


def test_tags_that_nobody_looked_for_are_masked():
  sample = {'coarse': np.array([1, -1, 0], np.int8)}
  tags, mask = datasets.targets(sample, 'coarse', 'any')
  np.testing.assert_array_equal(tags, [1, 0, 0])
  np.testing.assert_array_equal(mask, [1, 0, 1])


def test_truth_puts_fine_and_x_into_file_order(fake):
  truth = datasets.truth(fake.splits['test'])
  votes = [example['votes'][0] for example in fake.splits['test'].source]
  np.testing.assert_array_equal(truth['fine'], votes)
  assert truth['clip_id'][3] == '03_000003.wav'


def test_scores_of_fine_outputs_at_the_coarse_level():
  fine = dataset('fine', sizes=(8, 8, 8))
  scores = np.random.default_rng(0).random((8, 23))
  levels = evaluate.by_level(fine, scores)
  for k, name in enumerate(taxonomy.COARSE):
    own = [j for j, tag in enumerate(taxonomy.FINE) if tag[0] == name[0]]
    np.testing.assert_array_equal(levels['coarse'][:, k], scores[:, own].max(1))
  assert not levels['fine'][:, taxonomy.IS_UNKNOWN].any()
  both = dataset('both', sizes=(8, 8, 8))
  columns = np.concatenate([scores[:, :8], scores], axis=1)
  np.testing.assert_array_equal(
    evaluate.by_level(both, columns)['coarse'], scores[:, :8]
  )


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'name': 'urban_scene/procedural'}, "did you mean 'urban_scenes/proc"),
    ({'name': 'audioset'}, 'expected one of urban_scenes/procedural'),
    ({'level': 'medium'}, "config.dataset.level is 'medium'"),
  ],
)
def test_unknown_names_are_refused(change, message, tmp_path):
  config = base.dataset('urban_scenes/procedural').to_dict() | change
  with pytest.raises(ValueError, match=message):
    datasets.load(config | {'data_dir': str(tmp_path)})


class Broken(Counted):
  """A source of which one record cannot be read."""

  def __getitem__(self, index):
    if index == 5:
      raise OSError('bad block')
    return super().__getitem__(index)


@pytest.mark.parametrize(
  'read',
  [
    lambda split: list(datasets.eval_batches(split, 4)),
    datasets.truth,
    lambda split: datasets.clip_ids(split, [4, 5]),
  ],
)
def test_broken_record_is_named(fake, read):
  split = fake.splits['train']
  split = dataclasses.replace(split, source=Broken(split.source))
  with pytest.raises(ValueError, match="record 5 of split 'train' in the p"):
    read(split)


@pytest.mark.parametrize('name', datasets.BUILDERS)
def test_every_data_set_says_what_it_is_and_whose(name, tmp_path):
  rows = ['file,split,dog']
  for fold, split in enumerate(('train', 'validate', 'test'), 3):
    for tag in ('dog', 'rain'):
      (tmp_path / tag).mkdir(exist_ok=True)
      path = tmp_path / tag / f'{fold}-1.wav'
      # Another sound in each: none may be in two splits.
      soundfile.write(path, np.full(9, 0.1 * len(rows)), 16_000)
      rows.append(f'{tag}/{path.name},{split},1')
  (tmp_path / 'labels.csv').write_text('\n'.join(rows))
  own = name in ('folder', 'urban_scenes/clips')
  builder = datasets.make_builder(
    {
      'name': name,
      'data_dir': str(tmp_path / 'data'),
      'manual_dir': str(tmp_path) if own else '',
      'builder': {},
    }
  )
  licence = builder.info.redistribution_info.license
  assert builder.info.description
  assert builder.info.citation
  assert licence
  # A user's recordings are not under the terms of somebody else's.
  assert ('CC BY' in licence) != own
  assert ('cartwright' in builder.info.citation) != own


_FULL = """
import resource, sys
from iusp_jax.data import datasets
data_dir, manual_dir = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (900_000, 900_000))
config = {'level': 'coarse', 'aggregation': 'any', 'data_dir': data_dir}
scenes = {f'{split}_scenes': 3 for split in ('train', 'validate', 'test')}
for more in (
  {'name': 'urban_scenes/procedural', 'manual_dir': '', 'builder': scenes},
  {'name': 'folder', 'manual_dir': manual_dir, 'builder': {}},
):
  try:
    datasets.load(config | more)
  except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_full_disk_is_one_message_whatever_is_prepared(tmp_path):
  """A limit on the size of files stands for a full disk."""
  manual = tmp_path / 'manual'
  manual.mkdir()
  rows = ['file,split,dog']
  rng = np.random.default_rng(0)
  for split in ('train', 'validate', 'test'):
    for k in range(3):
      name = f'{split}{k}.flac'
      soundfile.write(manual / name, 0.5 * rng.random(160_000), 16_000)
      rows.append(f'{name},{split},1')
  (manual / 'labels.csv').write_text('\n'.join(rows))
  done = python(_FULL, tmp_path / 'data', manual)
  assert done.returncode == 0, done.stderr
  lines = [x for x in done.stdout.splitlines() if ' is full' in x]
  assert len(lines) == 2
  for line in lines:
    assert line.startswith(f'The disk of {tmp_path / "data"} is full')
    assert 'File too large' in line
    assert 'run again' in line
