"""Preparations that are killed, run twice, or find what another has left."""

import pathlib
import signal
import subprocess
import sys
import tempfile
import textwrap
import time

import pytest
from recording_folders_test import build_folder, write_labelled
from sound_faults_test import encode, tone

from tfds_dcase import folder, urban_scenes

ROOT = pathlib.Path(__file__).resolve().parent.parent

_PREPARE = textwrap.dedent("""
  import logging, pathlib, sys, time
  logging.basicConfig(level=logging.INFO, format='%(message)s')
  logging.getLogger('absl').setLevel(logging.ERROR)
  from tfds_dcase import interrupt, urban_scenes
  folder, hold = pathlib.Path(sys.argv[1]), sys.argv[2] == 'hold'
  def held():
    (folder / 'begun').touch()
    while hold and not (folder / 'go').exists():
      time.sleep(0.05)
  interrupt.CHECKS.append(held)
  builder = urban_scenes.make_builder(
    folder / 'data', train_scenes=8, validate_scenes=2, test_scenes=2
  )
  builder.download_and_prepare()
  print(len(builder.as_data_source('train')), 'scenes')
""")


def start(tmp_path, hold=''):
  """A preparation; with 'hold', one that stops half-way until told to go."""
  return subprocess.Popen(
    [sys.executable, '-c', _PREPARE, str(tmp_path), hold],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def until_begun(tmp_path, process):
  while not (tmp_path / 'begun').exists():
    assert process.poll() is None, process.communicate()[0]
    time.sleep(0.05)


def until_waiting(process):
  """What it printed until it waits for another one."""
  lines = []
  while not lines or 'another process prepares it' not in lines[-1]:
    lines.append(process.stdout.readline())
    assert lines[-1], lines
  return ''.join(lines)


def names(tmp_path):
  (config,) = (tmp_path / 'data/urban_scenes').glob('procedural_*')
  return sorted(path.name for path in config.iterdir())


@pytest.mark.slow
def test_what_a_killed_preparation_left_is_gone_after_the_next(tmp_path):
  process = start(tmp_path, 'hold')
  until_begun(tmp_path, process)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  (left,) = names(tmp_path)
  assert left.startswith('incomplete.')
  process = start(tmp_path)
  output, _ = process.communicate()
  assert process.returncode == 0, output
  assert names(tmp_path) == ['1.0.0']
  assert left in output
  assert '8 scenes' in output


@pytest.mark.slow
def test_of_two_processes_one_prepares_and_the_other_waits(tmp_path):
  first = start(tmp_path, 'hold')
  until_begun(tmp_path, first)
  second = start(tmp_path)
  waiting = until_waiting(second)
  (tmp_path / 'go').touch()
  outputs = [process.communicate()[0] for process in (first, second)]
  assert [first.returncode, second.returncode] == [0, 0], outputs
  assert all('8 scenes' in output for output in outputs)
  assert ''.join([*outputs, waiting]).count(': prepared') == 1
  assert names(tmp_path) == ['1.0.0']


@pytest.mark.slow
def test_who_waits_for_a_killed_process_prepares_itself(tmp_path):
  first = start(tmp_path, 'hold')
  until_begun(tmp_path, first)
  second = start(tmp_path)
  until_waiting(second)
  first.send_signal(signal.SIGKILL)
  first.communicate()
  output, _ = second.communicate()
  assert second.returncode == 0, output
  assert '8 scenes' in output
  assert names(tmp_path) == ['1.0.0']


def test_nothing_is_printed_and_no_folder_is_left_in_tmp(
  tmp_path, monkeypatch, capfd
):
  scratch = tmp_path / 'scratch'
  scratch.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(scratch))
  builder = urban_scenes.make_builder(
    tmp_path / 'data', train_scenes=2, validate_scenes=1, test_scenes=1
  )
  builder.download_and_prepare()
  odd = write_labelled(tmp_path / 'folder')
  odd.write_bytes(encode(tone(1), format='WAV'))
  folder.make_builder(tmp_path / 'data', tmp_path / 'folder')
  assert list(scratch.iterdir()) == []
  assert [p.name for p in (tmp_path / 'data').iterdir()] == ['urban_scenes']
  assert 'Unknown size' not in ''.join(capfd.readouterr())


def test_a_refused_preparation_leaves_no_folder(tmp_path):
  write_labelled(tmp_path / 'folder').write_bytes(b'no sound')
  with pytest.raises(ValueError, match='not a readable sound file'):
    build_folder(tmp_path / 'data', tmp_path / 'folder')
  assert list((tmp_path / 'data/folder').glob('set_*')) == []


@pytest.mark.parametrize('content', ['', '{"name": "fol', '{}', 'nonsense'])
def test_a_damaged_description_is_named_and_its_advice_works(tmp_path, content):
  odd = write_labelled(tmp_path / 'folder')
  odd.write_bytes(encode(tone(1), format='WAV'))
  builder = build_folder(tmp_path / 'data', tmp_path / 'folder')
  path = pathlib.Path(builder.data_path)
  (path / 'dataset_info.json').write_text(content)
  with pytest.raises(ValueError, match='delete the folder') as caught:
    folder.make_builder(tmp_path / 'data', tmp_path / 'folder')
  assert str(path) in str(caught.value)
  for each in path.iterdir():
    each.unlink()
  path.rmdir()
  build_folder(tmp_path / 'data', tmp_path / 'folder')


def test_a_prepared_folder_needs_no_lock(tmp_path, monkeypatch):
  """It may be read-only, and be in use by many."""
  odd = write_labelled(tmp_path / 'folder')
  odd.write_bytes(encode(tone(1), format='WAV'))
  build_folder(tmp_path / 'data', tmp_path / 'folder')

  def fail(*args):
    raise AssertionError

  monkeypatch.setattr('tfds_dcase.builder._lock', fail)
  builder = build_folder(tmp_path / 'data', tmp_path / 'folder')
  assert len(list(builder.as_data_source('train'))) == 3
