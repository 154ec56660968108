"""Real processes, killed again and again, end as one that was left alone."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import commands
import numpy as np
import pytest

from iusp_jax.runtime import checkpoint, preemption

ROOT = pathlib.Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow

# The whole path, as small as it goes: 6 steps of a teacher, the store of its
# outputs, 12 steps of a student, validations every 2 steps.
SMALL = [
  '--config.bootstrap=5',
  '--config.dataset.builder.train_scenes=24',
  '--config.dataset.builder.validate_scenes=8',
  '--config.dataset.builder.test_scenes=8',
  '--config.student.frontend.num_mel_bands=8',
  '--config.student.training.epochs=4',
  '--config.student.training.eval_every_epochs=0.67',
  '--config.teacher.frontend.num_mel_bands=16',
  '--config.teacher.training.eval_every_epochs=0.67',
]
CONFIGS = {
  'run': ['--config=configs/iusp.py:smoke,student=crnn_32'],
  'table': [
    '--mode=table',
    '--config=configs/table.py:smoke',
    "--config.table.objectives=('baseline','iusp')",
  ],
}


class Runs:
  """Where the runs of these tests are: one compiled, one prepared data set."""

  def __init__(self, folder):
    self.folder = folder

  def start(self, name, what='run', data='data'):
    """Starts the run (or table) of a name, or continues it."""
    return Process(
      [
        *[sys.executable, 'run.py', *CONFIGS[what], *SMALL],
        f'--config.dataset.data_dir={self.folder}/{data}',
        f'--config.cache_dir={self.folder}/{name}/cache',
        f'--workdir={self.folder}/{name}/{what}',
      ],
      commands.environment(),
      self.folder / name,
    )

  def finish(self, name, what='run', data='data'):
    """Lets a run come to its end; what it printed."""
    process = self.start(name, what, data)
    assert process.wait() == 0, process.printed
    return process.printed

  def end(self, name):
    """All of a finished run that must not depend on how often it was killed."""
    place = self.folder / name
    (teacher,) = (place / 'cache' / 'teachers').iterdir()
    left = end_of(teacher) | end_of(place / 'run')
    for path in sorted((place / 'cache' / 'outputs').glob('*/*.*')):
      left[f'{path.parent.name}/{path.name}'] = path.read_bytes()
    record = json.loads((place / 'run' / 'results.json').read_text())
    for which in ('teacher', 'student'):
      for free in ('workdir', 'trained_in'):
        record[which].pop(free, None)
      left[f'{which} scores'] = record[which]
    return left

  def end_of_table(self, name):
    """The same of a table."""
    left = {}
    for folder in sorted((self.folder / name / 'table' / 'cells').iterdir()):
      left |= end_of(folder)
      record = json.loads((folder / 'results.json').read_text())
      for free in ('seconds', 'step_seconds', 'environment', 'config'):
        del record[free]
      del record['identity']['teacher']
      left[f'{folder.name} record'] = record
    return left


def end_of(workdir):
  """Rows, models and predictions of one workdir."""
  name = workdir.name
  left = {f'{name} rows': (workdir / 'metrics.jsonl').read_text()}
  for series in ('last', 'best'):
    found = checkpoint.restore_newest(workdir / 'checkpoints' / series)
    assert found is not None
    step, arrays, metadata = found
    left[f'{name} {series}'] = step, checkpoint.checksums(arrays), metadata
  for path in workdir.glob('predictions_*.csv'):
    left[f'{name} {path.name}'] = path.read_text()
  assert not (workdir / 'training').exists()
  return left


class Process:
  """A run that is watched while it goes."""

  def __init__(self, arguments, environment, place):
    self.place, self.printed = place, ''
    self._before = set(self._files('**/*'))
    self._process = subprocess.Popen(
      arguments,
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    self._reader = threading.Thread(target=self._read)
    self._reader.start()

  def _read(self):
    assert self._process.stdout is not None
    for line in self._process.stdout:
      self.printed += line

  def _files(self, pattern):
    for path in self.place.glob(pattern):
      try:
        yield path, path.stat().st_ino, path.stat().st_ctime_ns
      except FileNotFoundError:  # Gone in the meantime.
        continue

  def appears(self, pattern):
    """Whether a file is there that was not, or not the same, at the start."""
    return any(found not in self._before for found in self._files(pattern))

  def rows(self, pattern):
    """Rows in a metrics.jsonl."""
    return sum(
      path.read_text().count('\n') for path in self.place.glob(pattern)
    )

  def until(self, moment, seconds=240.0):
    """Waits for a moment; an error when it does not come."""
    assert self.reaches(moment, seconds), f'ended before it:\n{self.printed}'

  def reaches(self, moment, seconds=240.0, past=None):
    """Whether a moment comes: words in the output, or a function of this.

    It does not where the run ends first or prints `past`, that it is beyond.
    """
    happens = moment if callable(moment) else lambda own: moment in own.printed
    limit = time.monotonic() + seconds
    while not happens(self):
      if self._process.poll() is not None or (past and past in self.printed):
        return False
      assert time.monotonic() < limit, f'it does not come:\n{self.printed}'
      time.sleep(0.002)
    return True

  def end(self, how):
    """Sends a signal; the exit code."""
    self._process.send_signal(how)
    return self.wait()

  def wait(self):
    """The exit code."""
    code = self._process.wait(300)
    self._reader.join()
    return code


@pytest.fixture(scope='module')
def runs(make_once):
  """With one run, `whole`, that nothing disturbed."""
  folder = make_once('kill', lambda folder: Runs(folder).finish('whole'))
  return Runs(folder)


TEACHER, STUDENT = 'cache/teachers/*', 'run'
PARTS = {'teacher': TEACHER, 'student': STUDENT}


def file(pattern):
  return lambda process: process.appears(pattern)


def saving(place):
  return file(f'{place}/training/*tmp*')


def rows(place, count):
  return lambda process: process.rows(f'{place}/metrics.jsonl') >= count


# In the order of a run's life: what is waited for, and the most seconds that
# pass then, at random. A validation gives a row, so two steps give three. On a
# fast machine such a pause may take the run past the next moment.
MOMENTS = [
  ('first step of the teacher', rows(TEACHER, 1), 0.05),
  ('first save of the teacher', saving(TEACHER), 0.01),
  ('evaluation of the teacher', 'teacher: compiled', 0.8),
  ('save of the teacher', saving(TEACHER), 0.02),
  ('last save of the teacher', 'teacher: step 6/6, validate', 0.05),
  ('model of the teacher', file(f'{TEACHER}/checkpoints/*/*tmp*'), 0.01),
  ('end of the teacher', file(f'{TEACHER}/done'), 0.1),
  ('store', file('cache/outputs/*/*.partial'), 0.02),
  ('store', file('cache/outputs/*/*.partial'), 0.0),
  ('somewhere at the beginning', 'data set', 3.0),
  ('first step of the student', rows(STUDENT, 1), 0.05),
  ('first save of the student', saving(STUDENT), 0.01),
  ('evaluation of the student', rows(STUDENT, 2), 0.02),
  ('save of the student', saving(STUDENT), 0.02),
  ('somewhere in the student', 'student: compiled', 2.0),
  ('last save of the student', 'student: step 12/12, validate', 0.05),
  ('last evaluation', 'student: step 12/12, validate', 1.0),
  ('model of the student', file(f'{STUDENT}/checkpoints/*/*tmp*'), 0.01),
  ('predictions', file('run/predictions_*.csv'), 0.5),
  ('plots', file('run/*.png'), 0.5),
]


def newest(runs, name, place):
  """The step of the newest checkpoint of a run; None where there is none."""
  found = [
    step
    for workdir in (runs.folder / name).glob(place)
    for step in checkpoint.steps(workdir / 'training')
  ]
  return max(found, default=None)


def assert_continues(printed, saved):
  """A run that trains begins at the newest save, and at no other step."""
  for name, step in saved.items():
    begins = printed.partition(f'{name}: compiled the train step')
    if begins[1]:
      words = [] if step is None else [f'{name}: continues after step {step}']
      lines = begins[0].splitlines()
      assert [line for line in lines if f'{name}: continues' in line] == words


def struck(process):
  """In what a run was killed, by what it left half done."""
  places = set()
  if process.appears('**/*.orbax-checkpoint-tmp*'):
    places.add('save')
  if process.appears('cache/outputs/*/*.partial'):
    places.add('store')
  for name in PARTS:
    words = f'{name}: continues', f'{name}: compiled the train step'
    lines = process.printed.splitlines() or ['']
    if lines[-1].startswith(words):
      places.add('training')
  run = process.place / STUDENT
  trained = (run / 'training' / f'{12:08d}').is_dir()
  if trained and not (run / 'results.json').exists():
    places.add('last evaluation')
  return places


def test_run_killed_again_and_again_ends_as_one_left_alone(runs):
  """A moment that a fast machine runs past may let the run come to its end.

  Then that end is compared, and the next moments are of a new run.
  """
  chance = random.Random(0)
  places, kills = set(), 0
  for name, moment, spread in MOMENTS:
    saved = {k: newest(runs, 'killed', place) for k, place in PARTS.items()}
    process = runs.start('killed')
    past = 'teacher: found' if 'teacher' in name else None
    process.reaches(moment, past=past)
    time.sleep(chance.uniform(0, spread))
    code = process.end(signal.SIGKILL)
    assert code in (0, -signal.SIGKILL), f'{name}: {code}\n{process.printed}'
    assert_continues(process.printed, saved)
    if code == 0:
      assert_same(runs, 'killed')
      shutil.rmtree(runs.folder / 'killed')
      continue
    kills += 1
    places |= struck(process)
  runs.finish('killed')
  assert_same(runs, 'killed')
  assert kills >= 16
  assert places == {'training', 'save', 'store', 'last evaluation'}


def assert_same(runs, name):
  expected, found = runs.end('whole'), runs.end(name)
  assert expected.keys() == found.keys()
  for key in expected:
    assert found[key] == expected[key], key


def test_request_to_stop_saves_ends_with_its_code_and_continues(runs):
  """SIGTERM in every part of a run, the preparation of its data included."""

  def stop(moment, delay=0.0):
    process = runs.start('stopped', data='other')
    process.until(moment)
    time.sleep(delay)
    code = process.end(signal.SIGTERM)
    assert code == preemption.EXIT_CODE, process.printed
    assert 'SIGTERM: saves and stops' in process.printed
    assert 'Traceback' not in process.printed

  stop('prepares it in', 0.2)
  stop(rows(TEACHER, 1))
  step = newest(runs, 'stopped', TEACHER)
  assert step >= 1
  stop(rows(TEACHER, 4))
  assert newest(runs, 'stopped', TEACHER) > step
  stop(file('cache/outputs/*/*.partial'))
  assert not list((runs.folder / 'stopped').glob('cache/outputs/*/*.partial'))
  stop('student: compiled')
  assert newest(runs, 'stopped', STUDENT) in (1, 2, 3)
  stop(rows(STUDENT, 10))
  stop(file(f'{STUDENT}/training/{12:08d}'), 0.1)
  runs.finish('stopped', data='other')
  assert_same(runs, 'stopped')


def test_uninterrupted_rows_have_every_step_once(runs):
  """What the others are held against is itself whole."""
  text = (runs.folder / 'whole' / 'run' / 'metrics.jsonl').read_text()
  found = [json.loads(line) for line in text.splitlines()]
  steps = [row['step'] for row in found if 'train/loss' in row]
  np.testing.assert_array_equal(steps, np.arange(12) + 1)


GROUPS = 'table/groups/*/training'


def test_table_that_is_killed_and_stopped_ends_as_one_left_alone(runs):
  """Groups of two: each loses at most the steps since its last validation."""
  for name in ('whole_table', 'parts'):  # With the teacher that is there.
    shutil.copytree(
      runs.folder / 'whole' / 'cache', runs.folder / name / 'cache'
    )
  runs.finish('whole_table', 'table')

  def end(moment, how, expected, delay=0.0):
    process = runs.start('parts', 'table')
    process.until(moment)
    time.sleep(delay)
    code = process.end(how)
    assert code == expected, process.printed
    return process.printed

  killed, stopped = -signal.SIGKILL, preemption.EXIT_CODE
  end(file(f'{GROUPS}/{4:08d}'), signal.SIGKILL, killed)
  text = end(file(f'{GROUPS}/{8:08d}'), signal.SIGTERM, stopped)
  first = 'crnn_32 baseline seed 100 and 1 more'
  assert any(f'{first}: continues after step {k}' in text for k in (4, 6))
  assert 'Traceback' not in text
  # Of one group all is done, of the other nothing.
  text = end('crnn_32 iusp seed 100 and 1 more: comp', signal.SIGKILL, killed)
  assert any(f'{first}: continues after step {k}' in text for k in range(8, 13))
  end(file('table/cells/*iusp*/model.json'), signal.SIGKILL, killed)
  text = runs.finish('parts', 'table')
  assert '2 groups of cells, 1 to run' in text
  assert first not in text
  expected, found = (runs.end_of_table(k) for k in ('whole_table', 'parts'))
  assert expected.keys() == found.keys()
  for key in expected:
    assert found[key] == expected[key], key
