"""Real processes, killed again and again, end as one that was left alone."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from iusp_jax.runtime import checkpoint, metrics_log, preemption

ROOT = pathlib.Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow

# The whole path, as small as it goes: 6 steps of a teacher, the store of its
# outputs, 12 steps of a student, validations every 2 steps.
SMALL = [
  '--config=configs/iusp.py:smoke,student=crnn_32',
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


class World:
  """Where the runs of these tests are: one compiled, one prepared data set."""

  def __init__(self, folder):
    self.folder = folder

  def start(self, name, data='data'):
    """Starts the run of a name, or continues it."""
    xla = '--xla_backend_optimization_level=0'
    environment = os.environ | {
      'XLA_FLAGS': xla,
      'PYTHONUNBUFFERED': '1',
      'JAX_COMPILATION_CACHE_DIR': str(self.folder / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    }
    return Process(
      [
        *[sys.executable, 'run.py', *SMALL],
        f'--config.dataset.data_dir={self.folder}/{data}',
        f'--config.cache_dir={self.folder}/{name}/cache',
        f'--workdir={self.folder}/{name}/run',
      ],
      environment,
      self.folder / name,
    )

  def finish(self, name, data='data'):
    """Lets a run come to its end; what it said."""
    process = self.start(name, data)
    assert process.wait() == 0, process.said
    return process.said

  def end(self, name):
    """All of a finished run that must not depend on how often it was killed."""
    place = self.folder / name
    (teacher,) = (place / 'cache' / 'teachers').iterdir()
    (store,) = (
      path for path in (place / 'cache' / 'outputs').iterdir() if path.is_dir()
    )
    left = {}
    for which, workdir in (('teacher', teacher), ('student', place / 'run')):
      left[f'{which} rows'] = (workdir / 'metrics.jsonl').read_text()
      for series in ('last', 'best'):
        found = checkpoint.restore_newest(workdir / 'checkpoints' / series)
        assert found is not None
        step, arrays, facts = found
        left[f'{which} {series}'] = step, checkpoint.checksums(arrays), facts
    for path in sorted(store.iterdir()):
      left[f'store {path.name}'] = path.read_bytes()
    results = json.loads((place / 'run' / 'results.json').read_text())
    for which in ('teacher', 'student'):
      for free in ('workdir', 'trained_in'):
        del results[which][free]
      left[f'{which} scores'] = results[which]
    for path in (place / 'run').glob('predictions_*.csv'):
      left[path.name] = path.read_text()
    return left


class Process:
  """A run that is watched while it goes."""

  def __init__(self, arguments, environment, place):
    self.place, self.said = place, ''
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
      self.said += line

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

  def until(self, moment, seconds=120.0):
    """Waits for a moment; an error when it does not come."""
    assert self.reaches(moment, seconds), f'ended before it:\n{self.said}'

  def reaches(self, moment, seconds=120.0, past=None):
    """Whether a moment comes: words that are said, or a function of this.

    It does not where the run ends first or says `past`, that it is beyond.
    """
    happens = moment if callable(moment) else lambda own: moment in own.said
    limit = time.monotonic() + seconds
    while not happens(self):
      if self._process.poll() is not None or (past and past in self.said):
        return False
      assert time.monotonic() < limit, f'it does not come:\n{self.said}'
      time.sleep(0.002)
    return True

  def end(self, how):
    """Sends a signal; the exit code."""
    self._process.send_signal(how)
    return self.wait()

  def wait(self):
    """The exit code."""
    code = self._process.wait(180)
    self._reader.join()
    return code


@pytest.fixture(scope='module')
def world(tmp_path_factory):
  """With one run, `whole`, that nothing disturbed."""
  world = World(tmp_path_factory.mktemp('kill'))
  world.finish('whole')
  return world


TEACHER, STUDENT = 'cache/teachers/*', 'run'
PARTS = {'teacher': TEACHER, 'student': STUDENT}


def file(pattern):
  return lambda run: run.appears(pattern)


def saving(place, series):
  return file(f'{place}/checkpoints/{series}/*tmp*')


def rows(place, count):
  return lambda run: run.rows(f'{place}/metrics.jsonl') >= count


def begins(name):
  """Its first step is compiled or taken."""
  words = f'{name}: continues', f'{name}: compiled'
  return lambda run: any(word in run.said for word in words)


# In the order of a run's life: what is waited for, and the most seconds that
# pass then, at random. A validation gives a row, so two steps give three. On a
# fast machine such a pause may take the run past the next moment.
MOMENTS = [
  ('first step of the teacher', rows(TEACHER, 1), 0.05),
  ('first save of the teacher', saving(TEACHER, 'best'), 0.01),
  ('first save of the teacher', saving(TEACHER, 'last'), 0.01),
  ('evaluation of the teacher', 'teacher: compiled', 0.8),
  ('step of the teacher', begins('teacher'), 0.1),
  ('save of the teacher', saving(TEACHER, 'last'), 0.02),
  ('somewhere in the teacher', 'teacher: compiled', 1.5),
  ('last save of the teacher', 'teacher: step 6, validate', 0.05),
  ('end of the teacher', file(f'{TEACHER}/done'), 0.1),
  ('store', file('cache/outputs/*.partial'), 0.02),
  ('store', file('cache/outputs/*.partial/logits.npy'), 0.02),
  ('store', file('cache/outputs/*.partial/batch_gram.npy'), 0.02),
  ('somewhere at the beginning', 'data set', 3.0),
  ('first step of the student', rows(STUDENT, 1), 0.05),
  ('first save of the student', saving(STUDENT, 'last'), 0.01),
  ('evaluation of the student', rows(STUDENT, 2), 0.02),
  ('step of the student', begins('student'), 0.1),
  ('save of the student', saving(STUDENT, 'best'), 0.02),
  ('save of the student', saving(STUDENT, 'last'), 0.02),
  ('somewhere in the student', 'student: compiled', 2.0),
  ('last save of the student', 'student: step 12, validate', 0.05),
  ('last evaluation', 'student: step 12, validate', 1.0),
  ('last evaluation', 'student: ', 3.0),
  ('predictions', file('run/predictions_*.csv'), 0.5),
  ('pictures', file('run/*.png'), 0.5),
]


def newest(world, name, place):
  """The step of the newest checkpoint of a run; None where there is none."""
  found = [
    step
    for workdir in (world.folder / name).glob(place)
    for step in checkpoint.steps(workdir / 'checkpoints' / 'last')
  ]
  return max(found, default=None)


def assert_goes_on(said, saved):
  """A run that trains begins at the newest save, and at no other step."""
  for name, step in saved.items():
    begins = said.partition(f'{name}: compiled the train step')
    if begins[1]:
      words = [] if step is None else [f'{name}: continues after step {step}']
      lines = begins[0].splitlines()
      assert [line for line in lines if f'{name}: continues' in line] == words


def is_due(process, place):
  """Whether a validation is, which comes after every second step."""
  for path in process.place.glob(f'{place}/metrics.jsonl'):
    for row in metrics_log.read_metrics(path)[-1:]:
      return 'train/loss' in row and row['step'] % 2 == 0
  return False


def struck(process):
  """In what a run was killed, by what it left half done."""
  places = set()
  if process.appears('**/checkpoints/*/*tmp*'):
    places.add('save')
  if process.appears('cache/outputs/*.partial'):
    places.add('store')
  for name, place in PARTS.items():
    words = f'{name}: continues', f'{name}: compiled the train step'
    said = process.said.splitlines() or ['']
    if said[-1].startswith(words):
      places.add('evaluation' if is_due(process, place) else 'step')
  run = process.place / STUDENT
  trained = (run / 'checkpoints' / 'last' / f'{12:08d}').is_dir()
  if trained and not (run / 'results.json').exists():
    places.add('last evaluation')
  return places


def test_run_killed_again_and_again_ends_as_one_left_alone(world):
  """A moment that a fast machine runs past may let the run come to its end.

  Then that end is compared, and the next moments are of a new run.
  """
  chance = random.Random(0)
  places, kills = set(), 0
  for name, moment, spread in MOMENTS:
    saved = {k: newest(world, 'killed', place) for k, place in PARTS.items()}
    process = world.start('killed')
    past = 'teacher: found' if 'teacher' in name else None
    process.reaches(moment, past=past)
    time.sleep(chance.uniform(0, spread))
    code = process.end(signal.SIGKILL)
    assert code in (0, -signal.SIGKILL), f'{name}: {code}\n{process.said}'
    assert_goes_on(process.said, saved)
    if code == 0:
      assert_same(world, 'killed')
      shutil.rmtree(world.folder / 'killed')
      continue
    kills += 1
    places |= struck(process)
  world.finish('killed')
  assert_same(world, 'killed')
  assert kills >= 20
  assert places == {'step', 'save', 'store', 'evaluation', 'last evaluation'}


def assert_same(world, name):
  expected, found = world.end('whole'), world.end(name)
  assert expected.keys() == found.keys()
  for key in expected:
    assert found[key] == expected[key], key


def test_notice_saves_ends_with_its_code_and_continues(world):
  """SIGTERM in every part of a run, the preparation of its data included."""

  def stop(moment, said, delay=0.0):
    process = world.start('noticed', data='other')
    process.until(moment)
    time.sleep(delay)
    started = time.monotonic()
    code = process.end(signal.SIGTERM)
    assert code == preemption.EXIT_CODE, process.said
    assert said in process.said
    assert 'Traceback' not in process.said
    return time.monotonic() - started

  at_once, saves = 'SIGTERM: stops', 'SIGTERM: finishes the step'
  stop(': prepares it in ', at_once, 0.2)
  stop(rows(TEACHER, 1), saves)
  step = newest(world, 'noticed', TEACHER)
  assert step >= 1
  stop(rows(TEACHER, 4), saves)
  assert newest(world, 'noticed', TEACHER) > step
  stop(file('cache/outputs/*.partial'), at_once)
  assert not list((world.folder / 'noticed').glob('cache/outputs/*.partial'))
  stop('student: compiled', saves)
  assert newest(world, 'noticed', STUDENT) in (1, 2, 3)
  stop(rows(STUDENT, 10), saves)
  trained = file(f'{STUDENT}/checkpoints/last/{12:08d}')
  stop(trained, 'SIGTERM: ', 0.1)  # The save may have the last word.
  world.finish('noticed', data='other')
  assert_same(world, 'noticed')


def test_uninterrupted_rows_have_every_step_once(world):
  """What the others are held against is itself whole."""
  text = world.end('whole')['student rows']
  found = [json.loads(line) for line in text.splitlines()]
  steps = [row['step'] for row in found if 'train/loss' in row]
  np.testing.assert_array_equal(steps, np.arange(12) + 1)
