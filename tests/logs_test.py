"""What a run logs: on a terminal, elsewhere, and to TensorBoard."""

import contextlib
import os
import struct
import termios
import types

import numpy as np
from tensorboardX.proto import event_pb2

from iusp_jax.runtime import logs, metrics_log


@contextlib.contextmanager
def terminal():
  """Standard error as a terminal; gives a function that ends and reads it.

  No fixture: between set-up and test pytest puts its own in place again.
  """
  ours, theirs = os.openpty()
  termios.tcsetwinsize(theirs, (24, 80))
  with (
    open(theirs, 'w', buffering=1) as stream,
    contextlib.redirect_stderr(stream),
  ):
    yield lambda: read_to_end(stream, ours)
  os.close(ours)


def read_to_end(stream, ours):
  """All that was written: a busy kernel hands it over piece by piece."""
  stream.close()
  printed = b''
  with contextlib.suppress(OSError):  # Linux's end of a closed terminal.
    while piece := os.read(ours, 100_000):
      printed += piece
  return printed.decode()


def test_terminal_gets_a_bar_and_no_lines(capsys):
  with terminal() as read:
    progress = logs.Progress('student', 2, 8)
    for step in range(3, 9):
      progress.update(step, 1 / step)
    progress.close()
    printed = read()
  assert '\r' in printed
  assert 'student:  25%' in printed  # It goes on from step 2 of 8.
  assert 'student: 100%' in printed
  assert '8/8' in printed
  assert 'loss=0.1250' in printed
  assert capsys.readouterr().out == ''


def test_line_beside_a_bar_is_a_line(capsys):
  with terminal() as read:
    progress = logs.Progress('student', 0, 8)
    logs.log('validated')
    progress.close()
    printed = read()
  assert capsys.readouterr().out == 'validated\n'
  assert 'student:   0%' in printed
  assert 'validated' not in printed


def test_elsewhere_plain_lines_now_and_then(monkeypatch, capsys):
  """A step takes 3 s but the first, which compiles: 50 s."""
  now = [100.0]
  clock = types.SimpleNamespace(monotonic=lambda: now[0])
  monkeypatch.setattr(logs, 'time', clock)
  progress = logs.Progress('student', 0, 18)
  for step in range(1, 19):
    now[0] += 50.0 if step == 1 else 3.0
    progress.update(step, 1 / step)
  progress.close()
  out, err = capsys.readouterr()
  # The second step comes 53 s after the start; then 21 s are 7 steps.
  assert out.splitlines() == [
    'student: step 2/18, loss 0.5000, 0.33 steps/s, 48 s to go',
    'student: step 9/18, loss 0.1111, 0.33 steps/s, 27 s to go',
    'student: step 16/18, loss 0.0625, 0.33 steps/s, 6 s to go',
    'student: step 18/18, loss 0.0556, 0.33 steps/s, 0 s to go',
  ]
  assert err == ''
  assert '\r' not in out


def events(folder):
  """The events in TensorBoard's files: length, checksum, event, checksum."""
  for path in sorted(folder.glob('events.out.tfevents.*')):
    content, place = path.read_bytes(), 0
    while place < len(content):
      (length,) = struct.unpack_from('<Q', content, place)
      place += 12
      yield event_pb2.Event.FromString(content[place : place + length])
      place += length + 4


def test_tensorboard_has_the_numbers_of_metrics_jsonl(tmp_path):
  metrics = metrics_log.MetricsWriter(tmp_path, [])
  metrics.write({'step': 10, 'train/loss': 0.7, 'train/learning_rate': 3e-3})
  metrics.write({'step': 20, 'train/loss': 0.3})
  metrics.write({'step': 20, 'validate/coarse_micro_auprc': 0.6180339887})
  metrics.close()
  rows = metrics_log.read_metrics(tmp_path / 'metrics.jsonl')
  written = {
    (row['step'], name): value
    for row in rows
    for name, value in row.items()
    if name != 'step'
  }
  read = {
    (event.step, value.tag): value.simple_value
    for event in events(tmp_path / 'tensorboard')
    for value in event.summary.value
  }
  assert read.keys() == written.keys()
  assert len(read) == 4
  for key, value in written.items():
    np.testing.assert_allclose(read[key], value, 1e-6)
  np.testing.assert_allclose(read[20, 'validate/coarse_micro_auprc'], 0.618034)


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path):
  metrics = metrics_log.MetricsWriter(tmp_path, [])
  for step in (1, 2, 3):
    metrics.write({'step': step, 'train/loss': 1.0})
  metrics.close()
  metrics = metrics_log.MetricsWriter(tmp_path, [{'step': 1}, {'step': 2}])
  metrics.write({'step': 3, 'train/loss': 0.5})
  metrics.close()
  start = event_pb2.SessionLog.START
  found = [
    event.step
    for event in events(tmp_path / 'tensorboard')
    if event.session_log.status == start
  ]
  assert found == [1, 3]  # From this step on, TensorBoard drops what is older.
