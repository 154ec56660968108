"""What is stored of a teacher: right, whole, one file a target."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import fits
import jax
import numpy as np
import pytest
from fits import fake

from iusp_jax.data import sources, teacher_outputs
from iusp_jax.experiment import setup
from iusp_jax.models import tagger, trained
from iusp_jax.objectives import targets
from iusp_jax.runtime import files, logs, preemption

NAMES = ('logits', 'frame_gram', 'batch_gram')
INNER = ('frame_gram@block_1', 'batch_gram@block_2')


def make_teacher(change=0.0):
  model, variables = fits.frozen()
  variables = jax.tree.map(lambda x: x + change, variables)
  return trained.Trained(model, variables, {'fingerprint': 'abc'}, None)


def folder_in(path, precision='float32', name='train'):
  return teacher_outputs.Folder(
    path, make_teacher(), fake().splits[name], precision
  )


@pytest.fixture
def lines(monkeypatch):
  found = []
  monkeypatch.setattr(logs, 'log', found.append)
  return found


@pytest.fixture(autouse=True)
def nothing_verified(monkeypatch):
  """As in a process of its own."""
  monkeypatch.setattr(teacher_outputs, '_verified', set())


@functools.cache
def expected():
  """By definition, float64: every target of all 24 clips."""
  model, variables = fits.frozen()
  wave_NS = sources.features(fake().splits['train'], None)['wave']
  output, stored = model.module.apply(
    variables,
    tagger.log_mel(model, wave_NS),
    capture_intermediates=True,
    mutable=['intermediates'],
  )
  frames = {'': output.frames_BTD}
  for name in ('block_1', 'block_2'):
    frames[f'@{name}'] = stored['intermediates'][name]['__call__'][0]
  found = {'logits': np.asarray(output.logits_BC)}
  for name, frames_NTD in frames.items():
    frames_NTD = np.asarray(frames_NTD, np.float64)
    gram_NTT = frames_NTD @ frames_NTD.swapaxes(1, 2)
    largest = abs(gram_NTT).max((1, 2), keepdims=True)
    found[f'frame_gram{name}'] = gram_NTT / largest
    flat = frames_NTD.reshape(len(frames_NTD), -1)
    found[f'batch_gram{name}'] = flat @ flat.T
  return found


@pytest.mark.parametrize('precision', teacher_outputs.PRECISIONS)
def test_outputs_are_those_of_each_clip(tmp_path, precision):
  """Of the last frames and of inner layers; batches of 10 leave a rest."""
  folder = folder_in(tmp_path, precision)
  with fits.num_devices(1):
    teacher_outputs.build(folder, NAMES + INNER, batch_size=10)
  found = folder.get_or_build(NAMES + INNER)
  assert tuple(found) == NAMES + INNER
  for name, values in found.items():
    half = name.startswith('frame_gram') and precision == 'float16'
    assert values.dtype == np.dtype('float16' if half else 'float32')
    np.testing.assert_allclose(
      np.asarray(values, np.float64),
      expected()[name],
      1e-3 if half else 1e-4,
      1e-4 if half else 1e-5,
      err_msg=name,
    )
  assert abs(found['frame_gram']).max() <= 1.0


# Fitted to the training split ------------------------------------------------

FITTED = ('whitened', 'frame_axes', 'cluster_gram')


@functools.cache
def frames_and_masks():
  """Of all 24 clips, float64: frames of both layers, and what is recording."""
  frames = {
    name: expected_frames(name).astype(np.float64) for name in ('', 'block_1')
  }
  length_N = fits.features(fake()).get(None, 'train')['length']
  num_frames = frames[''].shape[1]
  starts_T = np.arange(num_frames) * (fits.NUM_SAMPLES / num_frames)
  return frames, (starts_T[None] < length_N[:, None]).astype(np.float64)


def expected_frames(layer):
  model, variables = fits.frozen()
  wave_NS = sources.features(fake().splits['train'], None)['wave']
  names = (layer,) if layer else ()
  output = tagger.apply(model, variables, tagger.log_mel(model, wave_NS), names)
  return np.asarray(output.layers[layer] if layer else output.frames_BTD)


def test_whitened_embeddings_are_white_over_the_split(tmp_path):
  """And a linear function of the mean frames of the recordings."""
  frames, mask_NT = frames_and_masks()
  mean_ND = (
    np.einsum('nt,ntd->nd', mask_NT, frames['']) / mask_NT.sum(1)[:, None]
  )
  found = np.asarray(folder_in(tmp_path).get_or_build(['whitened'])['whitened'])
  assert found.shape == (24, 7)  # All axes that the embeddings have.
  np.testing.assert_allclose(found.mean(0), 0, atol=1e-3)
  np.testing.assert_allclose(np.cov(found.T)[:3, :3], np.eye(3), atol=1e-2)
  one = np.concatenate([np.ones((24, 1)), mean_ND], axis=1)
  rest = np.linalg.lstsq(one, found, rcond=None)[1]
  assert rest.max() < 1e-3


def test_frames_are_turned_to_the_axes_of_the_split(tmp_path):
  """All seven axes here: the products of frames are those of all."""
  frames, mask_NT = frames_and_masks()
  found = folder_in(tmp_path).get_or_build(['frame_axes'])['frame_axes']
  found = np.asarray(found, np.float64)
  np.testing.assert_allclose(abs(found).max((1, 2)), 1, 1e-6)
  gram = frames[''] @ frames[''].swapaxes(1, 2)
  own = found @ found.swapaxes(1, 2)
  scale_N = gram.max((1, 2)) / own.max((1, 2))
  np.testing.assert_allclose(own * scale_N[:, None, None], gram, 1e-3, 1e-4)
  # The first axis holds the most, of the frames of the recordings alone.
  kept = (
    frames[''] * mask_NT[..., None] / np.sqrt(mask_NT.sum(1))[:, None, None]
  )
  sizes = np.linalg.svd(kept.reshape(-1, 7), compute_uv=False)
  own = found * np.sqrt(scale_N)[:, None, None]
  own = own * mask_NT[..., None] / np.sqrt(mask_NT.sum(1))[:, None, None]
  np.testing.assert_allclose(
    np.linalg.norm(own.reshape(-1, 7), axis=0)[:3], sizes[:3], 1e-3
  )


def test_two_layers_are_two_clusters(tmp_path):
  frames, mask_NT = frames_and_masks()
  found = folder_in(tmp_path).get_or_build(['cluster_gram'])['cluster_gram']
  for k, name in enumerate(('block_1', '')):
    kept = frames[name] * mask_NT[..., None]
    gram = kept @ kept.swapaxes(1, 2)
    gram = gram / gram.max((1, 2), keepdims=True)
    np.testing.assert_allclose(found[:, k], gram, 1e-4, 1e-5)


def test_fits_are_solved_once_and_kept_beside(tmp_path, monkeypatch):
  folder, solved = folder_in(tmp_path), []
  solve = teacher_outputs.solve_fit
  monkeypatch.setattr(
    teacher_outputs,
    'solve_fit',
    lambda *args: solved.append(args[2]) or solve(*args),
  )
  found = folder.fits(('logits', *FITTED))
  assert tuple(found) == FITTED
  assert sorted(path.name for path in tmp_path.glob('*.npy')) == [
    f'fit-{name}.npy' for name in sorted(FITTED)
  ]
  folder.get_or_build(['logits', *FITTED])
  folder.get_or_build([f'{FITTED[1]}@block_1'])
  again = folder.fits(FITTED)
  assert solved == [*FITTED, 'frame_axes@block_1']
  jax.tree.map(np.testing.assert_array_equal, found, again)
  flip(folder.file('fit-whitened'))
  teacher_outputs._verified.clear()
  jax.tree.map(np.testing.assert_array_equal, found, folder.fits(FITTED))
  assert solved[-1] == 'whitened'


def test_fits_of_large_splits_are_of_some_clips(tmp_path, monkeypatch):
  """Spread over the split; on two devices and one alike."""
  own = dataclasses.replace(targets.FITTED['cluster_gram'], max_clips=5)
  monkeypatch.setattr(
    targets, 'FITTED', {**targets.FITTED, 'cluster_gram': own}
  )
  split, seen = fake().splits['train'], []

  class Watched:
    def __len__(self):
      return len(split)

    def __getitem__(self, k):
      seen.append(int(k))
      return split.source[k]

  watched = dataclasses.replace(split, source=Watched())
  teacher_outputs.solve_fit(make_teacher(), watched, 'cluster_gram')
  assert seen == [0, 6, 12, 17, 23]


@pytest.mark.parametrize('precision', teacher_outputs.PRECISIONS)
def test_fitted_targets_are_held_in_the_precision(tmp_path, precision):
  names = ('frame_logits', *FITTED)
  found = folder_in(tmp_path, precision).get_or_build(names)
  for name in names:
    half = precision == 'float16' and name != 'whitened'
    assert found[name].dtype == np.dtype('float16' if half else 'float32')
    assert np.isfinite(found[name]).all()


def test_devices_share_the_clips(tmp_path):
  """24 clips by two devices, five at a time: four."""
  folder = folder_in(tmp_path)
  teacher_outputs.build(folder, NAMES, batch_size=5)
  for name, values in folder.get_or_build(NAMES).items():
    np.testing.assert_allclose(values, expected()[name], 1e-4, 1e-5)


def test_each_target_is_a_file_that_says_what_it_is(tmp_path):
  folder = folder_in(tmp_path)
  folder.get_or_build(['logits', 'frame_gram@block_1'])
  assert sorted(path.name for path in tmp_path.glob('[!.]*')) == [
    'frame_gram@block_1.json',
    'frame_gram@block_1.npy',
    'logits.json',
    'logits.npy',
  ]
  for name, shape in (
    ('logits', [24, 31]),
    ('frame_gram@block_1', [24, 13, 13]),
  ):
    metadata = json.loads((tmp_path / f'{name}.json').read_text())
    digest = files.checksum(folder.file(name))
    assert metadata == {
      'format': teacher_outputs.FORMAT,
      'target': name,
      'shape': shape,
      'dtype': 'float32',
      'sha256': digest,
      'teacher': 'abc',
    }


def times(folder):
  return {
    path.name: path.stat().st_mtime_ns for path in folder.path.glob('[!.]*')
  }


def test_new_target_leaves_the_others_as_they_are(tmp_path, lines):
  folder = folder_in(tmp_path)
  folder.get_or_build(['logits', 'batch_gram'])
  before = times(folder)
  lines.clear()
  folder.get_or_build(NAMES)
  after = times(folder)
  assert {name: after[name] for name in before} == before
  assert after.keys() - before.keys() == {'frame_gram.npy', 'frame_gram.json'}
  (line,) = lines
  assert line == f'teacher: stores frame_gram of 24 train clips in {tmp_path}'
  folder.get_or_build(NAMES)
  assert times(folder) == after
  assert len(lines) == 1


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


def cut(path):
  path.write_bytes(path.read_bytes()[:-100])


def other_format(path):
  path = path.with_suffix('.json')
  path.write_text(json.dumps(json.loads(path.read_text()) | {'format': 0}))


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (flip, 'is damaged: its checksum'),
    (cut, 'is damaged: its checksum'),
    (lambda path: path.write_bytes(b''), 'is damaged: its checksum'),
    (lambda path: path.with_suffix('.json').unlink(), 'cannot be checked'),
    (lambda path: cut(path.with_suffix('.json')), 'cannot be checked'),
    (other_format, 'has format 0, expected 1'),
  ],
)
def test_damaged_file_is_reported_and_made_anew(
  tmp_path, lines, damage, message
):
  folder = folder_in(tmp_path)
  whole = {
    name: np.array(x) for name, x in folder.get_or_build(NAMES[:2]).items()
  }
  before = times(folder)
  damage(folder.file('frame_gram'))
  lines.clear()
  teacher_outputs._verified.clear()
  found = folder.get_or_build(NAMES[:2])
  jax.tree.map(np.testing.assert_array_equal, dict(found), whole)
  reported = [line for line in lines if message in line]
  assert reported
  assert str(folder.file('frame_gram')) in reported[0]
  assert reported[0].endswith('it is made anew')
  for name in ('logits.npy', 'logits.json'):
    assert times(folder)[name] == before[name]


def test_file_is_checked_once_a_process(tmp_path, monkeypatch):
  folder, read = folder_in(tmp_path), []
  folder.get_or_build(['logits'])
  teacher_outputs._verified.clear()
  original = files.checksum
  monkeypatch.setattr(
    files, 'checksum', lambda path: read.append(1) or original(path)
  )
  for _ in range(3):
    folder.get_or_build(['logits'])
  assert len(read) == 1


def test_outputs_that_are_cut_off_are_not_there(tmp_path, monkeypatch):
  folder = folder_in(tmp_path)
  folder.get_or_build(['logits'])
  before = times(folder)

  def full(*_, **__):
    raise OSError(28, 'No space left on device')

  with monkeypatch.context() as patch:
    # Space is asked for before a number is written: a write into a mapped
    # file without space ends the process.
    patch.setattr(os, 'posix_fallocate', full)
    with pytest.raises(OSError, match=r'no space for .* MB') as error:
      folder.get_or_build(NAMES)
  assert str(tmp_path) in str(error.value)
  with monkeypatch.context() as patch:
    patch.setattr(preemption, 'requested', lambda: True)
    with pytest.raises(preemption.Preempted):
      folder.get_or_build(NAMES)
  assert times(folder) == before
  folder.get_or_build(NAMES)


# A process of its own, since the limit is one of a process.
FULL_DISK = """
import resource, signal, sys, pathlib
import conftest, teacher_outputs_test as test
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
folder = test.folder_in(pathlib.Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, hard))
try:
  folder.get_or_build(test.NAMES)
except OSError as error:
  sys.exit(f'error: {error}')
"""


@pytest.mark.slow
def test_full_disk_names_the_path(tmp_path):
  """A limit on the size of files stands for a full disk."""
  done = subprocess.run(
    [sys.executable, '-c', FULL_DISK, str(tmp_path)],
    env=os.environ
    | {'PYTHONPATH': 'tests:.', 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 1, done.stderr
  assert 'no space for 0 MB: ' in done.stderr
  assert f"'{tmp_path}/" in done.stderr
  assert not list(tmp_path.glob('*.npy'))
  assert not list(tmp_path.glob('*.partial'))


def test_every_teacher_data_set_split_and_format_has_its_own_folder(
  monkeypatch,
):
  name = teacher_outputs.folder_name
  teacher, data = make_teacher(), fake().fingerprint()
  # Of the same recipe, as another machine or version would train it.
  twin = make_teacher(1e-6)
  assert twin.fingerprint == teacher.fingerprint
  assert twin.weights() != teacher.weights()
  renamed = dataclasses.replace(teacher, metadata={'fingerprint': 'abd'})
  smaller = fits.dataset('both', sizes=(9, 4, 4)).fingerprint()
  found = [
    name(teacher, data, 'train float32'),
    name(twin, data, 'train float32'),
    name(renamed, data, 'train float32'),
    name(teacher, smaller, 'train float32'),
    name(teacher, data, 'test float32'),
    name(teacher, data, 'train float16'),
  ]
  assert name(make_teacher(), dict(data), 'train float32') == found[0]
  monkeypatch.setattr(teacher_outputs, 'FORMAT', 99)
  found.append(name(teacher, data, 'train float32'))
  assert len(set(found)) == len(found)


# Where they cannot be stored -------------------------------------------------


@pytest.mark.parametrize(
  ('augment', 'message'),
  [
    ({}, ''),
    ({'mixup_alpha': 0.5}, 'config.student.augment.mixup_alpha is 0.5'),
    ({'num_time_masks': 2}, 'num_time_masks is 2: an augmented clip differs'),
    ({'num_mel_masks': 1}, 'num_mel_masks is 1'),
    ({'time_roll_seconds': 1.0}, 'time_roll_seconds is 1.0'),
    ({'max_time_fraction': 0.3}, ''),  # Of no mask.
  ],
)
def test_teacher_runs_in_every_step_where_clips_change(augment, message):
  recipe = fits.make_recipe(augment=augment)
  reason = setup.teacher_must_run(recipe, NAMES, '/cache', 24)
  assert message in reason
  assert bool(message) == bool(reason)


def test_teacher_runs_in_every_step_where_nothing_can_be_stored():
  recipe = fits.make_recipe()
  most = teacher_outputs.MAX_PAIRWISE_CLIPS
  run = setup.teacher_must_run
  assert run(recipe, NAMES, '/cache', most) == ''
  reason = run(recipe, NAMES, '/cache', most + 1)
  assert reason.startswith(f'batch_gram of {most + 1} clips is a matrix')
  assert run(recipe, NAMES[:2], '/cache', most + 1) == ''  # A clip alone.
  assert 'gs://bucket, not a file system' in run(
    recipe, NAMES, 'gs://bucket', 24
  )
