"""Outputs that were computed elsewhere: what is read, and what is refused."""

import json
import os
import shutil
import subprocess
import sys

import fits
import foreign
import jax
import numpy as np
import pytest
from experiments import changed
from fits import fake

from configs import base
from iusp_jax.data import (
  datasets,
  foreign_outputs,
  frame_order,
  teacher_outputs,
)
from iusp_jax.experiment import check, identity
from iusp_jax.models import trained
from iusp_jax.objectives import losses, targets
from iusp_jax.runtime import files

NAMES = ('logits', 'frame_gram', 'batch_gram')


@pytest.fixture(scope='module')
def frozen():
  model, variables = fits.frozen()
  return trained.Trained(model, variables, {'fingerprint': 'abc'}, None)


@pytest.fixture(scope='module')
def whole(frozen, tmp_path_factory):
  """A folder that is right; nothing in it may be changed."""
  folder = tmp_path_factory.mktemp('foreign') / 'whole'
  return foreign.write(
    folder, fake(), frozen, names=('logits', 'frames', 'frame_logits')
  )


@pytest.fixture
def folder(whole, tmp_path):
  """One that may be changed."""
  return shutil.copytree(whole, tmp_path / 'folder')


def opened(path, tag_map=None, tags=None):
  contents = foreign_outputs.inspect(path)
  columns = foreign_outputs.columns(
    contents, tags or fake().tags, tag_map or {}
  )
  return foreign_outputs.Foreign(contents, columns, 'abc')


def stored(teacher, cache, names=NAMES, split='train'):
  own = teacher_outputs.Folder(cache, teacher, fake().splits[split])
  return own.get_or_build(names)


@pytest.mark.parametrize('split', foreign_outputs.SPLITS)
def test_targets_are_those_of_the_model_itself(frozen, whole, tmp_path, split):
  """Whatever the order of the clips in the folder."""
  expected = stored(frozen, tmp_path / 'model', split=split)
  found = stored(opened(whole), tmp_path / 'foreign', split=split)
  for name in NAMES:
    assert found[name].dtype == expected[name].dtype
    np.testing.assert_allclose(found[name], expected[name], 1e-5, 1e-6, name)


def test_half_precision_and_probabilities(frozen, whole, folder, tmp_path):
  logits = np.load(folder / 'train' / 'logits.npy').astype(np.float64)
  (folder / 'train' / 'logits.npy').unlink()
  np.save(
    folder / 'train' / 'probabilities.npy',
    (1 / (1 + np.exp(-logits))).astype(np.float32),
  )
  path = folder / 'train' / 'frames.npy'
  np.save(path, np.load(path).astype(np.float16))
  expected = stored(opened(whole), tmp_path / 'one', NAMES[:2])
  found = stored(opened(folder), tmp_path / 'two', NAMES[:2])
  np.testing.assert_allclose(found['logits'], expected['logits'], 1e-4, 1e-5)
  np.testing.assert_allclose(
    found['frame_gram'], expected['frame_gram'], 1e-2, 1e-2
  )


def test_certain_probabilities_are_finite_logits(folder, tmp_path):
  shutil.move(
    folder / 'train' / 'logits.npy', folder / 'train' / 'probabilities.npy'
  )
  shape = np.load(folder / 'train' / 'probabilities.npy').shape
  values = np.zeros(shape, np.float32)
  values[:, ::2] = 1.0
  np.save(folder / 'train' / 'probabilities.npy', values)
  found = stored(opened(folder), tmp_path / 'cache', ['logits'])['logits']
  assert np.isfinite(found).all()
  assert (found[:, ::2] > 16).all()
  assert (found[:, 1::2] < -16).all()


# What is wrong is reported before a number is read ---------------------------


def metadata(**fields):
  def change(folder):
    path = folder / 'teacher.json'
    of = json.loads(path.read_text()) | fields
    of = {name: value for name, value in of.items() if value is not None}
    path.write_text(json.dumps(of))

  return change


def array(name, change):
  def write(folder):
    path = folder / 'train' / f'{name}.npy'
    values = (
      np.load(path)
      if path.exists()
      else np.load(folder / 'train' / 'logits.npy')
    )
    np.save(path, change(values))

  return write


def cut(folder):
  path = folder / 'train' / 'frames.npy'
  path.write_bytes(path.read_bytes()[:-5])


def without_arrays(folder):
  for path in (folder / 'train').glob('*.npy'):
    path.unlink()


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (shutil.rmtree, 'is no folder: expected one with teacher.json and train/'),
    (lambda p: shutil.rmtree(p / 'train'), 'has no folder train'),
    (lambda p: (p / 'teacher.json').unlink(), 'teacher.json is not there'),
    (lambda p: (p / 'teacher.json').write_text('{'), 'cut short'),
    (lambda p: (p / 'teacher.json').write_text('[]'), 'lacks format, name'),
    (metadata(licence=None), 'teacher.json lacks licence'),
    (metadata(format=2), 'format is 2: expected 1'),
    (metadata(name=''), "name is '': expected a text"),
    (metadata(tags='dog'), "tags is 'dog': expected a list"),
    (metadata(tags=['a', 'a']), "tags has 'a' twice"),
    (metadata(tags=['a']), r'logits.npy has the shape .*: expected C = 1'),
    (metadata(frame_hop_seconds=0), 'frame_hop_seconds is 0: expected seconds'),
    (metadata(frame_hop_seconds=320), 'is 320: expected seconds'),
    (metadata(frame_span_seconds='1'), "frame_span_seconds is '1'"),
    (metadata(first_frame_seconds=None), 'lacks first_frame_seconds, and'),
    (
      lambda p: (p / 'train' / 'clip_id.txt').unlink(),
      'clip_id.txt is not there',
    ),
    (without_arrays, r'train has no array: expected some of logits.npy, prob'),
    (cut, r'frames.npy has \d+ bytes and cannot be read as a .npy'),
    (
      lambda p: (p / 'train' / 'frames.npy').write_bytes(b'frames'),
      'frames.npy has 6 bytes and cannot be read',
    ),
    (array('logits', lambda x: x.astype(int)), 'of type int64: expected float'),
    (array('logits', lambda x: x.astype('f8')), 'float64: expected float16 or'),
    (array('logits', lambda x: x[:, 0]), r'expected \[\'N\', \'C\'\]'),
    (array('frames', lambda x: x[None]), 'that is 3 axes'),
    (array('frames', lambda x: x[:, :0]), 'expected no 0'),
    (array('frames', lambda x: x[:-1]), 'expected N = 25, as logits'),
    (array('frame_logits', lambda x: x[:, 1:]), 'expected T = 13, as frames'),
    (
      array('logits', lambda x: x[:, 1:]),
      'expected C = 31, as tags of teacher',
    ),
    (array('num_frames', lambda x: x[:, 0] + 0.5), 'expected whole numbers'),
  ],
)
def test_folder_that_cannot_be_right_is_refused(folder, damage, message):
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    foreign_outputs.inspect(folder)
  assert str(folder) in str(error.value)


def lines(change):
  def write(folder):
    path = folder / 'train' / 'clip_id.txt'
    path.write_text('\n'.join(change(path.read_text().split('\n'))))

  return write


def number(name, value, row=5):
  return array(
    name, lambda x: np.concatenate([x[:row], 0 * x[:1] + value, x[row + 1 :]])
  )


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lines(lambda ids: [*ids[:3], 'x', *ids[4:]]), 'lacks 1 of the 24 clips'),
    (lines(lambda ids: ['x' + i for i in ids if i]), 'lacks 24 of the 24'),
    (lines(lambda ids: [ids[1], *ids[1:]]), 'twice, in the lines 1 and 2'),
    (lines(lambda ids: ids[1:]), '24 lines, logits.npy 25 clips'),
    (lines(lambda ids: [*ids[:3], ' ', *ids[4:]]), 'line 4 is empty'),
    (number('logits', np.nan), 'logits.npy has nan for'),
    (number('frames', np.inf), 'frames.npy has inf for'),
    (number('num_frames', 99), 'num_frames.npy is 99 for'),
  ],
)  # fmt: skip
def test_clips_and_numbers_that_cannot_be_right_are_refused(
  folder, tmp_path, damage, message
):
  if 'num_frames' in message:
    np.save(folder / 'train' / 'num_frames.npy', np.full(25, 13))
  damage(folder)
  with pytest.raises(ValueError, match=message) as error:
    stored(opened(folder), tmp_path / 'cache')
  assert str(folder / 'train') in str(error.value)
  if 'for' in message:
    clip = (folder / 'train' / 'clip_id.txt').read_text().split('\n')[5]
    assert f'{clip!r}, row 5' in str(error.value) or 'num_frames' in message
    assert clip in str(error.value)
  assert not list((tmp_path / 'cache').glob('*.npy'))


def test_names_of_clips_as_an_editor_may_leave_them(folder, whole, tmp_path):
  path = folder / 'train' / 'clip_id.txt'
  text = path.read_text().replace('\n', '\r\n').removesuffix('\r\n')
  path.write_bytes(b'\xef\xbb\xbf' + text.encode())
  split = fake().splits['train']
  np.testing.assert_array_equal(
    opened(folder).rows(split), opened(whole).rows(split)
  )
  np.testing.assert_array_equal(
    opened(whole).rows(split, [3, 7]), opened(whole).rows(split)[[3, 7]]
  )


def test_numbers_that_are_no_probabilities_are_refused(folder, tmp_path):
  shutil.move(
    folder / 'train' / 'logits.npy', folder / 'train' / 'probabilities.npy'
  )
  with pytest.raises(ValueError, match=r'from 0 to 1; logits are for logits'):
    stored(opened(folder), tmp_path / 'cache', ['logits'])


def test_frames_past_those_of_a_clip_may_be_anything(folder, whole, tmp_path):
  count = 5 + np.arange(25) % 9
  np.save(folder / 'train' / 'num_frames.npy', count)
  path = folder / 'train' / 'frames.npy'
  frames = np.load(path)
  frames[np.arange(13)[None] >= count[:, None]] = np.nan
  np.save(path, frames)
  teacher = opened(folder)
  assert teacher.more_targets('train', ['frame_gram']) == ['num_frames']
  assert teacher.more_targets('train', ['logits']) == []
  names = ['frame_gram', targets.NUM_FRAMES]
  found = stored(teacher, tmp_path / 'cache', names)
  ids = (folder / 'train' / 'clip_id.txt').read_text().split('\n')
  order = [
    ids.index(i) for i in datasets.truth(fake().splits['train'])['clip_id']
  ]
  np.testing.assert_array_equal(found['num_frames'], count[order])
  past_NT = np.arange(13)[None] >= found['num_frames'][:, None]
  diagonal_NT = np.einsum('ntt->nt', found['frame_gram'])
  np.testing.assert_array_equal(diagonal_NT == 0, past_NT)


# What names it ---------------------------------------------------------------


def test_fingerprint_is_of_the_content(whole, folder, tmp_path):
  def name(path, tag_map=(), kept=None):
    return foreign_outputs.fingerprint(
      foreign_outputs.inspect(path), dict(tag_map), kept
    )

  first = name(whole)
  assert name(folder) == first  # Another place.
  assert name(folder, {'a': ('b',)}) != first
  metadata(source='https://example.org/other')(folder)
  other = name(folder)
  assert other != first
  path = folder / 'test' / 'frames.npy'
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1  # In the middle of an array.
  path.write_bytes(content)
  assert name(folder) not in (first, other)


def test_files_are_read_once(whole, tmp_path, monkeypatch):
  contents, read = foreign_outputs.inspect(whole), []
  original = files.checksum
  monkeypatch.setattr(
    files, 'checksum', lambda path: read.append(path) or original(path)
  )
  found = [
    foreign_outputs.fingerprint(contents, {}, tmp_path) for _ in range(3)
  ]
  assert len(set(found)) == 1
  assert len(read) == 13  # teacher.json; four files of each split.
  folder = shutil.copytree(whole, tmp_path / 'folder')
  contents = foreign_outputs.inspect(folder)
  foreign_outputs.fingerprint(contents, {}, tmp_path)
  path = folder / 'train' / 'logits.npy'
  values = np.load(path)
  np.save(path, values + 1)  # Of the same size.
  read.clear()
  assert foreign_outputs.fingerprint(contents, {}, tmp_path) != found[0]
  assert read == [path]


# Tags ------------------------------------------------------------------------

THEIRS = ('Bark', 'Howl', 'Drill', 'Music')
OURS = ('dog', 'music', 'engine', 'drill')


def other_tags(folder):
  """With four tags of its own."""
  path = folder / 'train' / 'logits.npy'
  np.save(path, np.load(path)[:, :4])
  (folder / 'train' / 'frame_logits.npy').unlink()
  for split in ('validate', 'test'):
    shutil.rmtree(folder / split)
  metadata(tags=list(THEIRS))(folder)
  return np.load(path)


def test_tags_are_mapped_by_their_maximum(folder):
  logits = other_tags(folder)
  mapped = {'dog': ('Bark', 'Howl'), 'music': ('Music',), 'drill': ('Drill',)}
  teacher = opened(folder, mapped, OURS)
  assert teacher.known_tags == (True, True, False, True)
  found = teacher.read('train', np.arange(7), ['logits'])['logits']
  expected = np.stack(
    [logits[:7, :2].max(1), logits[:7, 3], 0 * logits[:7, 0], logits[:7, 2]], 1
  )
  np.testing.assert_array_equal(found, expected)
  assert teacher.scores('train') == '1 of 4 tags have none of the teacher'


def test_tags_of_the_same_names_may_be_in_another_order(folder):
  logits = other_tags(folder)
  teacher = opened(folder, tags=('Music', 'Bark'))
  found = teacher.read('train', np.arange(3), ['logits'])['logits']
  np.testing.assert_array_equal(found, logits[:3][:, [3, 0]])
  # One that is missing is no mask unless a mapping says so.
  assert not any(opened(folder, tags=('Music', 'bark')).known_tags)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{', 'cut short'),
    ('[]', 'expected one JSON object'),
    ('{}', 'maps no tag'),
    ('{"dog": []}', 'maps no tag'),
    ('{"dog": 3}', "'dog' is 3: expected a tag or a list"),
    ('{"dog": [["Bark"]]}', 'expected a tag or a list of tags'),
    ('{"dogs": "Bark"}', "has 'dogs': expected a tag of the data set, dog.*"
     "did you mean 'dog'"),
    ('{"dog": "bark"}', "has 'bark': expected a tag of .*teacher.json, Bark.*"
     "did you mean 'Bark'"),
  ],
)  # fmt: skip
def test_mapping_that_cannot_be_right_is_refused(
  folder, tmp_path, text, message
):
  other_tags(folder)
  path = tmp_path / 'map.json'
  path.write_text(text)
  with pytest.raises(ValueError, match=message):
    opened(folder, foreign_outputs.read_tag_map(path), OURS)


def test_mapping_that_is_not_there_is_refused(tmp_path):
  with pytest.raises(ValueError, match='is not there: expected JSON such as'):
    foreign_outputs.read_tag_map(tmp_path / 'map.json')


def test_masked_tags_have_no_part_in_kd():
  """The mean is over the others; no gradient, whatever the student gives."""
  rng = np.random.default_rng(0)
  student, teacher = rng.normal(size=(2, 5, 4)).astype(np.float32)
  mask = np.array([1, 0, 1, 1], np.float32)
  kept = mask > 0
  found = losses.kd_per_clip(student, teacher, 2.0, mask)
  expected = losses.kd_per_clip(student[:, kept], teacher[:, kept], 2.0)
  np.testing.assert_allclose(found, expected, 1e-6)
  gradient = jax.grad(
    lambda x: losses.kd_per_clip(x, teacher, 2.0, mask).sum()
  )(student)
  np.testing.assert_array_equal(gradient[:, 1], 0.0)
  assert (gradient[:, kept] != 0).all()


# Terms -----------------------------------------------------------------------


def test_every_kind_of_target_says_what_it_is_made_of():
  assert targets.NEEDS.keys() == {*targets.PER_CLIP, *targets.PAIRWISE}


def test_term_whose_needs_are_missing_is_refused_with_those_that_can_be_used(
  folder,
):
  contents = foreign_outputs.inspect(folder)
  check.check_outputs(contents, ['kd', 'sp', 'iusp'])
  with pytest.raises(ValueError, match='lack some of the data set') as error:
    check.check_outputs(contents, ['iusp', 'kd'], [False, False])
  usable = str(error.value).rpartition(': ')[2].split(', ')
  assert {'sp', 'iusp'} <= set(usable)
  assert 'kd' not in usable
  (folder / 'train' / 'frames.npy').unlink()
  with pytest.raises(ValueError, match=r'has no frames.npy, of') as error:
    check.check_outputs(foreign_outputs.inspect(folder), ['kd', 'iusp'])
  assert "has the term 'iusp', but" in str(error.value)
  assert 'used with it: kd' in str(error.value)


def test_term_that_leaves_out_no_tags_is_refused_where_some_are_missing(folder):
  """The logits of the missing ones are 0, which means nothing."""
  contents = foreign_outputs.inspect(folder)
  check.check_outputs(contents, ['dist_tags', 'kd'])
  check.check_outputs(contents, ['kd', 'iusp'], [True, False])
  with pytest.raises(ValueError, match='some tags have none') as error:
    check.check_outputs(contents, ['kd', 'dist_tags'], [True, False])
  usable = str(error.value).rpartition(': ')[2].split(', ')
  assert {'kd', 'iusp'} <= set(usable)


def test_term_of_a_target_that_needs_a_model_is_refused(folder):
  contents = foreign_outputs.inspect(folder)
  with pytest.raises(ValueError, match='is made with a model, and'):
    check.check_outputs(contents, ['vic'])


# Order and times -------------------------------------------------------------


def compare(folder, change=lambda frames: frames):
  """The frames of a model, each a function of the log-mel at that time."""
  path = folder / 'train' / 'frames.npy'
  np.save(path, change(np.load(path)))
  return frame_order.compare(opened(folder), fake().splits['train'], 16_000)


def test_frames_in_order_of_time_are_found_so(folder):
  likeness = compare(folder)
  assert likeness is not None
  assert len(likeness.given) == 24
  assert likeness.problem() == ''


@pytest.mark.parametrize(
  'change',
  [
    lambda x: x[:, ::-1],
    lambda x: x[:, np.random.default_rng(1).permutation(13)],
    lambda x: np.random.default_rng(1).normal(size=x.shape).astype('f4'),
    lambda x: 0 * x + 1,
  ],
)
def test_frames_in_another_order_are_reported_with_three_numbers(
  folder, change
):
  likeness = compare(folder, change)
  assert likeness is not None
  problem = likeness.problem()
  assert 'over 24 clips' in problem
  for name in ('given', 'reversed', 'shuffled'):
    value = getattr(likeness, name).mean()
    assert f'{name} {value:.3f}' in problem


def test_times_of_another_clip_are_refused(folder):
  contents = foreign_outputs.inspect(folder)
  foreign_outputs.check_extent(contents, 1.0)
  for seconds in (0.3, 10.0):
    with pytest.raises(ValueError, match=r'put 13 frames from .*expected at'):
      foreign_outputs.check_extent(contents, seconds)


# Size ------------------------------------------------------------------------

# Two million clips, in files with holes.
LARGE = """
import json, pathlib, sys, threading, time
import numpy as np
from iusp_jax.data import datasets, foreign_outputs, teacher_outputs

seen = []

def watch():
  while True:
    status = pathlib.Path('/proc/self/status').read_text()
    seen.append(int(status.split('RssAnon:')[1].split()[0]))
    time.sleep(0.05)

threading.Thread(target=watch, daemon=True).start()

N, C, T, D = 2_000_000, 8, 4, 256
folder = pathlib.Path(sys.argv[1])
train = folder / 'train'
train.mkdir(parents=True)
for name, shape, dtype in (
  ('logits', (N, C), 'f4'), ('frames', (N, T, D), 'f2')
):
  np.lib.format.open_memmap(train / f'{name}.npy', 'w+', dtype, shape).flush()
with (train / 'clip_id.txt').open('w') as file:
  for k in range(N):
    file.write(f'train_{k:08d}.wav\\n')
(folder / 'teacher.json').write_text(json.dumps({
  'format': 1, 'name': 'a', 'source': 'b', 'licence': 'c',
  'tags': [str(k) for k in range(C)], 'frame_hop_seconds': 2.5,
  'frame_span_seconds': 2.5, 'first_frame_seconds': 1.25,
}))

class Source:
  def __len__(self):
    return N
  def __getitem__(self, k):
    return {'clip_id': b'train_%08d.wav' % (N - 1 - k)}

contents = foreign_outputs.inspect(folder)
foreign_outputs.fingerprint(contents, {}, folder / 'kept')
columns = foreign_outputs.columns(contents, contents.tags, {})
teacher = foreign_outputs.Foreign(contents, columns, 'abc')
split = datasets.Split('train', Source(), 'coarse', 'any')
found = teacher_outputs.Folder(folder / 'cache', teacher, split).get_or_build(
  ['logits', 'frame_gram']
)
assert found['frame_gram'].shape == (N, T, T)
print(max(seen))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='RssAnon is of Linux')
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', LARGE, str(tmp_path / 'large')],
    env=os.environ | {'PYTHONPATH': '.'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert int(done.stdout.split()[-1]) < 500_000  # kB.


# What a config may ask of it -------------------------------------------------


def config_of(folder, **fields):
  config = base.get_config('smoke')
  fields = {
    'teacher.outputs': str(folder),
    'objective.kd_weight': 1.0,
    **fields,
  }
  return identity.plain(changed(config, **fields))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'teacher.outputs': '/nowhere'}, "outputs is '/nowhere': /nowhere is no"),
    ({'teacher.outputs': 'gs://b/c'}, 'expected a folder of a file system'),
    ({'teacher.checkpoint': '/a'}, "checkpoint is '/a' and config.teacher.out"),
    ({'teacher.tag_map': '/a.json'}, "tag_map is '/a.json': /a.json is not"),
    ({'teacher.outputs': '', 'teacher.tag_map': '/a'}, 'expected one of them'),
    ({'teacher.store': 'off'}, "store is 'off', and config.teacher.outputs"),
    ({'fit': 'teacher'}, "fit is 'teacher', and config.teacher.outputs"),
    ({'cache_dir': 'gs://a'}, "cache_dir is 'gs://a', and"),
    ({'student.augment.mixup_alpha': 0.5}, 'augment.mixup_alpha is 0.5, and'),
  ],
)  # fmt: skip
def test_config_that_needs_another_teacher_is_refused(whole, fields, message):
  check.check(config_of(whole))
  with pytest.raises(ValueError, match=message):
    check.check(config_of(whole, **fields))
