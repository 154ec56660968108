"""A preparation that is stopped between two of its pieces."""

import contextlib
import pathlib
import shutil
import threading
import time

import pytest
from recording_folders_test import (
  build_clips,
  build_folder,
  write_clips,
  write_labelled,
)
from sonyc_ust_world import build as build_sonyc
from sonyc_ust_world import write_annotations, write_folder
from sound_faults_test import encode, tone

from tfds_dcase import audio, download, in_order, interrupt, urban_scenes


@pytest.fixture
def stop_after(monkeypatch):
  """Sets the number of looks after which a stop is asked for."""

  def after(number):
    looks = []

    def check():
      looks.append(None)
      if len(looks) > number:
        raise SystemExit(75)

    monkeypatch.setattr(interrupt, 'CHECKS', [check])
    return looks

  yield after
  monkeypatch.setattr(interrupt, 'CHECKS', [])


def test_nothing_is_asked_for_by_default():
  assert interrupt.CHECKS == []
  interrupt.check()


def test_examples_end_between_two_and_begin_no_more(stop_after):
  stop_after(5)
  begun = []

  def make(item):
    begun.append(item)
    time.sleep(0.01)
    return item

  made, results = [], in_order.in_order(make, range(64), 2)
  with pytest.raises(SystemExit) as caught:
    made.extend(results)
  assert caught.value.code == 75
  time.sleep(0.1)
  count = len(begun)
  assert 5 < count < 20  # what ran when it came, no more
  time.sleep(0.1)
  assert len(begun) == count


def make_scenes(tmp_path):
  builder = urban_scenes.make_builder(
    tmp_path / 'data', train_scenes=9, validate_scenes=2, test_scenes=2
  )
  builder.download_and_prepare()
  return builder


def make_clips(tmp_path):
  if not (tmp_path / 'clips').exists():
    odd = write_clips(tmp_path / 'clips')
    odd.write_bytes(encode(tone(1), format='WAV'))
  return build_clips(tmp_path / 'data', tmp_path / 'clips')


def make_folder(tmp_path):
  if not (tmp_path / 'folder').exists():
    odd = write_labelled(tmp_path / 'folder')
    odd.write_bytes(encode(tone(1), format='WAV'))
  return build_folder(tmp_path / 'data', tmp_path / 'folder')


def make_sonyc(tmp_path):
  path = tmp_path / 'sonyc'
  path.mkdir(parents=True, exist_ok=True)
  write_annotations(path / 'annotations.csv')
  write_folder(path / 'audio')
  return build_sonyc(tmp_path, path)


@pytest.mark.parametrize(
  'make', [make_scenes, make_clips, make_folder, make_sonyc]
)
def test_a_stopped_preparation_leaves_nothing_that_counts(
  tmp_path, make, stop_after
):
  """Stopped early and late, then not at all."""
  looks = stop_after(10**9)
  make(tmp_path / 'whole')
  total = len(looks)
  assert total >= 5
  stopped = 0
  for number in (0, 1, total // 3, total // 2, total * 3 // 4):
    stop_after(number)
    # How often is looked while an example is waited for depends on the load.
    with contextlib.suppress(SystemExit):
      make(tmp_path / 'stopped')
      shutil.rmtree(tmp_path / 'stopped/data')
      continue
    stopped += 1
    left = list((tmp_path / 'stopped').glob('data/*/[!.]*/*'))
    assert left == [], number
  assert stopped >= 3
  stop_after(10**9)
  found, expected = (
    make(tmp_path / name).as_data_source() for name in ('stopped', 'whole')
  )
  for split in expected:
    for one, other in zip(found[split], expected[split], strict=True):
      assert one['clip_id'] == other['clip_id']
      assert one['audio'].tobytes() == other['audio'].tobytes()


def test_a_long_recording_is_left_in_its_middle(stop_after, monkeypatch):
  data = encode(tone(20), format='WAV')
  monkeypatch.setattr(audio, '_BLOCK', 16_000)
  stop_after(3)
  with pytest.raises(SystemExit):
    audio.read(data)
  stop_after(22)  # 20 to measure it, and some of its blocks
  blocks = []
  with pytest.raises(SystemExit):
    blocks.extend(audio.blocks(data, block_seconds=1.0))
  assert 0 < len(blocks) < 20


def test_a_checksum_is_left_in_its_middle(tmp_path, stop_after):
  path = tmp_path / 'archive'
  path.write_bytes(bytes(4 << 20))
  looks = stop_after(3)
  with pytest.raises(SystemExit):
    download.file_digest(path)
  assert len(looks) == 4


def test_a_call_that_blocks_is_left_behind(stop_after):
  started, release, later = (threading.Event() for _ in range(3))

  def block():
    started.set()
    release.wait(20)
    try:
      interrupt.check()
    except SystemExit:
      later.set()
      raise

  stop_after(2)
  with pytest.raises(SystemExit):
    interrupt.wait_for(block)
  assert started.is_set()
  interrupt.CHECKS.clear()
  release.set()
  assert later.wait(20)  # it does nothing more, though nobody asks any longer


def test_results_and_errors_are_handed_over():
  assert interrupt.wait_for(divmod, 7, 2) == (3, 1)
  with pytest.raises(ZeroDivisionError):
    interrupt.wait_for(divmod, 7, 0)


def test_scripts_of_two_builders_have_the_same_hook():
  """One list for all: whoever registers a check registers it once."""
  folder = pathlib.Path(interrupt.__file__).parent
  texts = [path.read_text() for path in folder.rglob('*.py')]
  assert sum('CHECKS: list' in text for text in texts) == 1
