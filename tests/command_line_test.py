"""What flags and arguments mean: where a run goes, what it traces, typos."""

import subprocess
import sys

import pytest
from absl import flags as absl_flags
from absl.testing.flagsaver import flagsaver
from commands import ROOT, execute

from configs import base, iusp, iusp_sp, sp, teacher
from iusp_jax import command_line


@pytest.fixture
def parsed(monkeypatch):
  """Parses flags as run.py does; they are forgotten when the test ends."""
  monkeypatch.chdir(ROOT)

  def parse(*flags):
    argv = ['run.py', *flags]
    monkeypatch.setattr(sys, 'argv', argv)
    command_line.parse(argv)
    return command_line

  with flagsaver():
    yield parse
  absl_flags.FLAGS.mark_as_parsed()


@pytest.mark.parametrize(
  ('flags', 'workdir', 'seed'),
  [
    (['--config=configs/iusp.py'], 'runs/iusp', 0),
    (['--config=configs/kd.py:'], 'runs/kd', 0),
    (
      [f'--config={ROOT}/configs/sp.py:clips,seed=3,student=cnn_4'],
      'runs/sp-clips-seed=3-student=cnn_4',
      3,
    ),
    (['--config', 'configs/iusp.py:demo,,seed=5'], 'runs/iusp-demo-seed=5', 5),
    # Fields that are set one by one have no part in the name.
    (['--config=configs/iusp.py:demo', '--config.seed=4'], 'runs/iusp-demo', 4),
    (['--config=configs/iusp.py:demo', '--workdir=/mine/a'], '/mine/a', 0),
  ],
)
def test_workdir_is_named_after_config_and_arguments(
  flags, workdir, seed, parsed
):
  found = parsed(*flags)
  assert (found.workdir(), found.config().seed) == (workdir, seed)


@pytest.mark.parametrize(
  ('flags', 'steps'),
  [
    ([], 0),
    (['--profile=7'], 7),
    (['--config.profile_steps=3'], 3),
    (['--config.profile_steps=3', '--profile=7'], 7),
  ],
)
def test_profile_is_the_number_of_steps_to_trace(flags, steps, parsed):
  found = parsed('--config=configs/iusp.py:smoke', *flags)
  assert found.config().profile_steps == steps


def test_overrides_are_the_fields_that_flags_set(parsed):
  found = parsed(
    '--config=configs/iusp.py:smoke,seed=3',
    '--config.teacher.model.width=8',
    '--config.seed=4',
  )
  assert sorted(found.overrides()) == ['seed', 'teacher.model.width']


@pytest.mark.parametrize(
  ('flags', 'expected'),
  [
    (['--mode=table', '--config=configs/iusp.py'], '--config=configs/table.py'),
    (['--mode=tune', '--config=configs/kd.py'], '--config=configs/table.py'),
    (['--config=configs/table.py'], '--mode=table'),
    (['--config=configs/iusp.py', '--jobs=2'], '--mode=table'),
    (
      ['--mode=tune', '--config=configs/table.py', '--shard=0/2'],
      '--mode=table',
    ),
    ([], 'config=configs/iusp.py:demo'),
  ],
)
def test_mode_and_config_that_do_not_go_together_are_refused(
  flags, expected, parsed
):
  found = parsed(*flags)
  with pytest.raises(ValueError, match=expected):
    found.config()


SMOKE = '--config=configs/iusp.py:smoke'


@pytest.mark.parametrize(
  ('flags', 'messages'),
  [
    (['--config=configs/iusp.py:smok'], ["did you mean 'smoke'"]),
    (
      ['--config=configs/iusp.py:student=crn_64'],
      ["did you mean 'crnn_64'"],
    ),
    (
      [SMOKE, '--config.student.trainig.epochs=3'],
      [
        '--config.student.trainig.epochs: config.student has no field',
        "'trainig': expected one of augment, frontend, model, training;",
        "did you mean 'training'?",
      ],
    ),
    (
      [SMOKE, '--config.foo=1'],
      ["config has no field 'foo': expected one of bootstrap, cache_dir, com"],
    ),
    (
      [SMOKE, '--config.bootstrap=5', '--config.epochs', '3'],
      ['did you mean --config.student.training.epochs or --config.teacher.tr'],
    ),
    (
      [SMOKE, '--config.seed.foo=1'],
      ["config.seed has no field 'foo': expected a value"],
    ),
    ([SMOKE, '--config.seed=x'], ['--config.seed=x: invalid']),
    (
      ['--config=configs/isup.py', '--config.seed=1'],
      [
        '--config=configs/isup.py: no such file',
        ': expected one of configs/attention_transfer',
        "did you mean 'configs/iusp.py'?",
      ],
    ),
    (['--config', 'configs/nothing.py:demo'], ['nothing.py: no such file']),
  ],
)
def test_typo_is_one_plain_line(flags, messages, parsed):
  with pytest.raises(SystemExit) as ended:
    parsed(*flags)
  (message,) = str(ended.value).splitlines()
  assert '\\' not in message
  for part in messages:
    assert part in message


def test_typo_ends_the_command_before_anything_is_made(tmp_path):
  flags = [f'--workdir={tmp_path}/run', '--config=configs/iusp.py:smok']
  wrong = execute([sys.executable, 'run.py', *flags])
  assert wrong.returncode == 1
  assert 'Traceback' not in wrong.stderr
  assert "did you mean 'smoke'" in wrong.stderr
  assert not (tmp_path / 'run').exists()


HELP = """
import runpy, sys
sys.argv = ['run.py', '--help']
try:
  runpy.run_path('run.py', run_name='__main__')
except SystemExit as ended:
  heavy = {'jax', 'flax', 'numpy', 'grain', 'orbax', 'matplotlib'}
  print(ended.code, sorted(heavy & sys.modules.keys()))
"""


def test_help_lists_the_flags_and_imports_nothing_heavy():
  done = subprocess.run(
    [sys.executable, '-c', HELP],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  *lines, last = done.stdout.splitlines()
  assert last == '1 []'  # The exit code that absl gives to --help.
  for flag in ('--config', '--workdir', '--mode', '--jobs', '--coordinator'):
    assert any(flag in line for line in lines), flag


def test_arguments_make_the_config_that_they_name():
  config = iusp.get_config('clips,seed=3,student=cnn_4')
  assert config.dataset.name == 'urban_scenes/clips'
  assert config.seed == 3
  assert config.student.model.architecture == 'cnn'
  assert config.objective.iusp_ratio > 0
  assert config.objective.sp_ratio == 0
  assert teacher.get_config('').fit == 'teacher'
  both = iusp_sp.get_config('').objective
  assert both.iusp_ratio > 0
  assert both.sp_ratio > 0
  assert sp.get_config('').objective.iusp_ratio == 0


@pytest.mark.parametrize('dataset', base.DATASETS)
def test_arguments_in_any_order(dataset):
  plain = base.get_config(dataset)
  for size in ('', 'demo', 'smoke'):
    for form in ('{0},{1},seed=3', ' seed=3 ,, {1} , {0} ,'):
      found = base.get_config(form.format(dataset, size))
      assert found.dataset.name == base.DATASETS[dataset]
      assert found.seed == 3
      mixed = 'train_scenes' in found.dataset.builder
      assert mixed == (dataset in ('urban_scenes', 'clips'))
      if mixed:
        scenes = {'': 1200, 'demo': 480, 'smoke': 48}[size]
        assert found.dataset.builder.train_scenes == scenes
      width = {'': plain.teacher.model.width, 'demo': 16, 'smoke': 4}[size]
      assert found.teacher.model.width == width
      assert found.train_baseline == (size == 'demo')


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('urban_scenes,clips', "'urban_scenes' and 'clips': expected one data set"),
    ('seed=3,smoke,seed=4', "'seed=3' and 'seed=4': expected one seed"),
    ('student=cnn_4,student=cnn_8', 'expected one student'),
    ('clip', "did you mean 'clips'"),
    ('seed=-1', "'seed=-1' is unknown"),
  ],
)
def test_arguments_that_contradict_or_are_unknown(argument, message):
  with pytest.raises(ValueError, match=message):
    base.get_config(argument)
