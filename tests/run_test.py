"""run.py as its user types it: the whole path, resumption, refusals."""

import csv
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile
from absl.testing.flagsaver import flagsaver

from configs import base, baseline, iusp, iusp_sp, sp, teacher
from iusp_jax import command_line
from iusp_jax.experiment import experiment, outcome
from iusp_jax.experiment.teacher import plain
from iusp_jax.runtime import checkpoint, files, metrics_log, wall_time

ROOT = pathlib.Path(__file__).resolve().parent.parent


def command(folder, *flags, config='configs/iusp.py:smoke'):
  return [
    sys.executable,
    'run.py',
    f'--config={config}',
    f'--config.cache_dir={folder}/cache',
    f'--config.dataset.data_dir={folder}/data',
    *flags,
  ]


def environment():
  """One device, as a user's machine has; the tests themselves have two."""
  return {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}


def run(arguments, **named):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
    **named,
  )


@pytest.fixture(scope='module')
def smoke(tmp_path_factory):
  """A finished run: its workdir and what it printed."""
  folder = tmp_path_factory.mktemp('smoke')
  done = run(command(folder, f'--workdir={folder}/run'))
  assert done.returncode == 0, done.stdout + done.stderr
  return folder, done.stdout


def test_smoke_leaves_what_it_promises(smoke):
  folder, said = smoke
  workdir = folder / 'run'
  assert said.startswith('process 0 of 1, backend cpu, 1 local')
  assert 'compiled the train step in' in said
  assert str(workdir) in said
  for name in ('similarities', 'tag_scores', 'learning_curves'):
    assert (workdir / f'{name}.png').stat().st_size > 5_000
  results = json.loads((workdir / 'results.json').read_text())
  for model in ('teacher', 'student'):
    assert results[model]['parameters'] > 0
    assert results[model]['macs'] > 0
    for which in ('best', 'last'):
      for split in ('validate', 'test'):
        coarse = results[model][which][split]['coarse']
        assert 0 < coarse['micro_auprc'] <= 1
        assert len(coarse['class_auprc']) == 8
    low, high = results[model]['best']['test']['coarse']['micro_auprc_ci']
    assert low < high
  assert results['environment']['packages']['jax']
  assert results['dataset']['name'].startswith('urban_scenes/procedural')
  best = max(
    row['validate/coarse_micro_auprc']
    for row in metrics_log.read_metrics(workdir / 'metrics.jsonl')
    if 'validate/coarse_micro_auprc' in row
  )
  found = results['student']['best']['validate']['coarse']['micro_auprc']
  np.testing.assert_allclose(found, best, 1e-6)


def test_predictions_are_in_the_form_of_the_challenge(smoke):
  with (smoke[0] / 'run' / 'predictions_test.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 24
  assert {'audio_filename', '1_engine', '8_dog'} <= rows[0].keys()
  assert all(0 <= float(row['7_human-voice']) <= 1 for row in rows)


def test_second_call_says_that_the_run_is_complete(smoke):
  folder, _ = smoke
  before = (folder / 'run' / 'results.json').read_bytes()
  again = run(command(folder, f'--workdir={folder}/run'))
  assert again.returncode == 0
  assert 'This run is complete' in again.stdout
  assert (folder / 'run' / 'results.json').read_bytes() == before


def test_other_config_in_the_same_workdir_is_refused(smoke):
  folder, _ = smoke
  wrong = run(command(folder, f'--workdir={folder}/run', '--config.seed=9'))
  assert wrong.returncode == 1
  assert 'seed: 0 there, 9 now' in wrong.stderr
  assert 'Traceback' not in wrong.stderr


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
        '--config=configs/isup.py: no such file: expected one of configs/base',
        "did you mean 'configs/iusp.py'?",
      ],
    ),
    (['--config', 'configs/nothing.py:demo'], ['nothing.py: no such file']),
  ],
)
def test_typo_is_one_plain_line(flags, messages, capsys, monkeypatch):
  monkeypatch.chdir(ROOT)
  argv = ['run.py', *flags]
  monkeypatch.setattr(sys, 'argv', argv)
  with pytest.raises(SystemExit) as ended, flagsaver():
    command_line.parse(argv)
  (said,) = str(ended.value).splitlines()
  assert '\\' not in said
  for message in messages:
    assert message in said


def test_typo_ends_the_command_before_anything_is_made(tmp_path):
  for flags in ([], ['--config=configs/iusp.py:smok']):
    wrong = run([sys.executable, 'run.py', f'--workdir={tmp_path}/run', *flags])
    assert wrong.returncode == 1
    assert 'Traceback' not in wrong.stderr
    assert not (tmp_path / 'run').exists()
  assert "did you mean 'smoke'" in wrong.stderr


def changed(module=iusp, **fields):
  config = module.get_config('smoke')
  with config.unlocked():
    config.update_from_flattened_dict(fields)
  return config


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'student.training.batch_size': 7}, 'multiple of the 2 devices'),
    ({'student.training.epochs': 0.0}, 'training.epochs is 0.0'),
    ({'student.model.architecture': 'crn'}, "Did you mean 'crnn'"),
    ({'student.frontend.sample_rate': 8000}, 'sample_rate is 8000'),
    ({'student.frontend.max_hertz': 9000.0}, '9000'),
    ({'objective.iusp_weight': -1.0}, 'iusp_weight is -1.0'),
    ({'objective.kd_temperature': 0.0}, 'kd_temperature is 0'),
    ({'fit': 'both'}, "config.fit is 'both'"),
    ({'bootstrap': -1}, 'config.bootstrap is -1'),
    ({'teacher.store': 'float8'}, "config.teacher.store is 'float8'"),
  ],
)
def test_config_that_cannot_be_right_is_refused_at_the_start(fields, message):
  with pytest.raises(ValueError, match=message):
    experiment.check(changed(**fields))


def test_command_that_lacked_its_data_does_not_block_the_right_one(tmp_path):
  config = 'configs/iusp.py:folder,smoke'
  wrong = run(command(tmp_path, f'--workdir={tmp_path}/run', config=config))
  assert wrong.returncode == 1
  assert '--config.dataset.manual_dir=FOLDER' in wrong.stderr
  assert not (tmp_path / 'run' / 'config.json').exists()


def smoke_config(folder, module=iusp, **fields):
  """The config of the smoke run, or one that shares its data and teacher."""
  config = changed(module, **fields)
  config.cache_dir = fields.get('cache_dir', f'{folder}/cache')
  config.dataset.data_dir = fields.get('dataset.data_dir', f'{folder}/data')
  return config


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'student.training.batch_size': 64},
      'config.student.training.batch_size is 64: expected at most 48',
    ),
    (
      {'teacher.training.batch_size': 64},
      'config.teacher.training.batch_size is 64: expected at most 48',
    ),
    (
      {'teacher.training.batch_size': 64, 'teacher.train_scenes': 50},
      'config.teacher.training.batch_size is 64: expected at most 50',
    ),
    ({'compare_with': '/nowhere'}, "config.compare_with is '/nowhere': .* no"),
    ({'teacher.checkpoint': '/nowhere'}, "teacher.checkpoint is '/nowhere'"),
  ],
)
def test_wrong_field_does_not_block_the_right_one(
  smoke, tmp_path, fields, message
):
  with pytest.raises(ValueError, match=message):
    experiment.run(smoke_config(smoke[0], **fields), tmp_path)
  assert not (tmp_path / 'config.json').exists()
  assert not (tmp_path / 'checkpoints').exists()


@pytest.mark.parametrize(
  'field', ['--workdir', 'config.dataset.data_dir', 'config.cache_dir']
)
def test_place_that_cannot_be_written_is_refused(smoke, tmp_path, field):
  (tmp_path / 'file').write_text('in the way')
  place = tmp_path / 'file' / 'below'
  workdir = place if field == '--workdir' else tmp_path / 'run'
  fields = {} if field == '--workdir' else {field[len('config.') :]: str(place)}
  message = f'{field} is {place}: cannot be written (Not a directory'
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    experiment.run(smoke_config(smoke[0], **fields), workdir)
  assert str(error.value).endswith('choose another')


def test_time_is_counted_over_the_processes_of_a_run(tmp_path):
  for number in (1, 2):
    with wall_time.wall_time(tmp_path, time.monotonic() - 5.0) as spent:
      seconds = spent()
    assert seconds['num_processes'] == number
    assert seconds['this_process'] == pytest.approx(5.0, abs=0.5)
    assert seconds['all_processes'] == pytest.approx(5.0 * number, abs=1.0)


@pytest.mark.slow
def test_named_runs_and_the_time_of_a_run_in_two_goes(
  smoke, tmp_path, monkeypatch, capsys
):
  """A baseline beside an IUSP run, with a named teacher, stopped once."""
  folder, _ = smoke
  (guide,) = (folder / 'cache' / 'teachers').iterdir()
  fields = {
    'compare_with': f'{folder}/run',
    'teacher.checkpoint': str(guide),
    'teacher.model.width': 16,  # Ignored, and not described either.
  }
  config = smoke_config(folder, baseline, **fields)

  def stop(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(outcome, 'draw', stop)
    with pytest.raises(KeyboardInterrupt):
      experiment.run(config, tmp_path)
  results = experiment.run(config, tmp_path)
  of_smoke = json.loads((folder / 'run' / 'results.json').read_text())
  for name in ('fingerprint', 'workdir'):
    assert results['teacher'][name] == of_smoke['teacher'][name]
  assert results['student'] != of_smoke['student']
  parameters = of_smoke['teacher']['parameters']
  line = f'teacher: cnn, {parameters:,} parameters'
  assert line in capsys.readouterr().out
  rows = (tmp_path / 'similarities.txt').read_text().splitlines()
  shown = {row.split()[1] for row in rows[1:-1]}
  assert shown == {'teacher', 'student', 'run'}
  seconds = results['wall_seconds']
  assert seconds['num_processes'] == 2
  assert seconds['all_processes'] > seconds['this_process'] > 0


def test_workdir_in_use_is_refused(tmp_path):
  with (
    files.lock(tmp_path, ''),
    pytest.raises(ValueError, match='another run works'),
  ):
    experiment.run(iusp.get_config('smoke'), tmp_path)


def test_a_run_older_than_the_difficulty_of_scenes_continues(tmp_path):
  for arg in ('', 'clips'):
    config = iusp.get_config(arg)
    earlier = plain(config)
    later = {'snr_db', 'sources', 'split_by', 'detect_half_db', 'confusion'}
    for name in later & earlier['dataset']['builder'].keys():
      del earlier['dataset']['builder'][name]
    experiment.config_path(tmp_path).write_text(json.dumps(earlier))
    experiment.refuse_other_config(config, tmp_path)
    config.dataset.builder.snr_db = (0, 12)
    with pytest.raises(ValueError, match=r'snr_db: \[-6.0, 12.0\] there'):
      experiment.refuse_other_config(config, tmp_path)


def test_arguments_make_the_config_that_they_say():
  config = iusp.get_config('clips,seed=3,student=cnn_4')
  assert config.dataset.name == 'urban_scenes/clips'
  assert config.seed == 3
  assert config.student.model.architecture == 'cnn'
  assert config.objective.iusp_weight > 0
  assert config.objective.sp_weight == 0
  assert teacher.get_config('').fit == 'teacher'
  both = iusp_sp.get_config('').objective
  assert both.iusp_weight > 0
  assert both.sp_weight > 0
  assert sp.get_config('').objective.iusp_weight == 0


@pytest.mark.parametrize('dataset', base.DATASETS)
@pytest.mark.parametrize('size', ['', 'demo', 'smoke'])
@pytest.mark.parametrize('form', ['{0},{1},seed=3', ' seed=3 ,, {1} , {0} ,'])
def test_arguments_in_any_order(dataset, size, form):
  argument = form.format(dataset, size)
  found, plain_one = base.get_config(argument), base.get_config(dataset)
  assert found.dataset.name == base.DATASETS[dataset]
  assert found.seed == 3
  mixed = 'train_scenes' in found.dataset.builder
  assert mixed == (dataset in ('urban_scenes', 'clips'))
  if mixed:
    scenes = {'': 1200, 'demo': 480, 'smoke': 48}[size]
    assert found.dataset.builder.train_scenes == scenes
  width = {'': plain_one.teacher.model.width, 'demo': 16, 'smoke': 4}[size]
  assert found.teacher.model.width == width


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


def kill_at(arguments, sign, delay=0.0):
  """Starts a run and kills it `delay` seconds after it prints `sign`."""
  process = subprocess.Popen(
    arguments,
    cwd=ROOT,
    env=environment() | {'PYTHONUNBUFFERED': '1'},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )
  assert process.stdout is not None
  for line in process.stdout:
    if sign in line:
      time.sleep(delay)
      break
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return process.returncode


@pytest.mark.slow
def test_killed_run_ends_in_the_same_bits(smoke):
  """SIGKILL of a real process, in the teacher and in the student's epoch."""
  folder, _ = smoke
  other = folder / 'killed'
  flags = [f'--workdir={other}/run', f'--config.cache_dir={other}/cache']
  arguments = command(folder, *flags)
  for sign, delay in (
    ('teacher: compiled', 0.2),
    ('teacher: step 6, validate', 0.05),
    ('student: step 6, validate', 0.1),
    # Whether that was saved or not, the next one comes to step 12.
    ('student: step 12, validate', 0.05),
  ):
    assert kill_at(arguments, sign, delay) == -signal.SIGKILL
  done = run(arguments)
  assert done.returncode == 0, done.stdout + done.stderr
  for place in ('run', 'cache/teachers/*'):
    ends = []
    for root in (folder, other):
      (workdir,) = root.glob(place)
      restored = checkpoint.restore_newest(workdir / 'checkpoints' / 'last')
      assert restored is not None
      rows = (workdir / 'metrics.jsonl').read_text()
      ends.append((restored[0], checkpoint.checksums(restored[1]), rows))
    assert ends[0] == ends[1]


@pytest.mark.slow
@pytest.mark.parametrize(
  'name', ['baseline', 'kd', 'sp', 'iusp_sp', 'iusp_centred', 'teacher']
)
def test_every_config_runs(smoke, name):
  folder, _ = smoke
  config = f'configs/{name}.py:smoke'
  done = run(command(folder, f'--workdir={folder}/{name}', config=config))
  assert done.returncode == 0, done.stdout + done.stderr
  assert 'micro-AUPRC' in done.stdout
  assert 'teacher: found' in done.stdout or name == 'baseline'


@pytest.mark.slow
@pytest.mark.parametrize('level', ['fine', 'both'])
def test_levels_of_the_taxonomy(smoke, level):
  folder, _ = smoke
  flags = [f'--workdir={folder}/{level}', f'--config.dataset.level={level}']
  done = run(command(folder, *flags))
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((folder / level / 'results.json').read_text())
  scores = results['student']['best']['test']
  assert 0 < scores['fine']['micro_auprc'] <= 1
  assert 0 < scores['coarse']['micro_auprc'] <= 1


@pytest.mark.slow
def test_full_disk_keeps_the_last_good_checkpoint(smoke, tmp_path):
  """A limit on the size of files stands for a full disk."""
  folder, _ = smoke
  arguments = command(folder, f'--workdir={tmp_path}/run')
  limited = ['bash', '-c', 'ulimit -f 100; exec "$@"', '-', *arguments]
  done = run(limited)
  assert done.returncode != 0
  assert 'could not be written' in done.stderr or 'too large' in done.stderr
  assert '_SignalingThread' not in done.stderr  # Orbax's own words.
  again = run(arguments)
  assert again.returncode == 0, again.stdout + again.stderr


@pytest.mark.slow
def test_own_labelled_folder(tmp_path):
  """A folder of recordings with labels.csv, from nothing to a student."""
  folder = tmp_path / 'mine'
  folder.mkdir()
  rng = np.random.default_rng(0)
  rows = ['file,split,low,high']
  sizes = {'train': 24, 'validate': 10, 'test': 10}
  for split, size in sizes.items():
    for k in range(size):
      low, high = k % 2, (k // 2) % 2
      time_S = np.arange(44_100) / 22_050
      wave_S = rng.normal(0, 0.01, len(time_S))
      wave_S += 0.2 * low * np.sin(2 * np.pi * 300 * time_S)
      wave_S += 0.2 * high * np.sin(2 * np.pi * 3000 * time_S)
      soundfile.write(folder / f'{split}{k}.flac', wave_S, 22_050)
      rows.append(f'{split}{k}.flac,{split},{low},{high}')
  (folder / 'labels.csv').write_text('\n'.join(rows) + '\n')
  done = run(
    command(
      tmp_path,
      f'--workdir={tmp_path}/run',
      f'--config.dataset.manual_dir={folder}',
      config='configs/iusp.py:folder,smoke',
    )
  )
  assert done.returncode == 0, done.stdout + done.stderr
  results = json.loads((tmp_path / 'run' / 'results.json').read_text())
  assert results['dataset']['tags'] == ['low', 'high']
  assert results['dataset']['sizes'] == sizes


@pytest.mark.slow
def test_data_sets_are_prepared_once_by_processes_that_start_together(tmp_path):
  code = (
    'import sys, pathlib; from configs import base; '
    'from iusp_jax.experiment import experiment, teacher; '
    'config = base.get_config("smoke"); '
    'config.dataset.data_dir = sys.argv[1]; '
    'config.teacher.train_scenes = 60; '
    'dataset = experiment.load_dataset(config); '
    'own = teacher.own_dataset(config, dataset); '
    'print(len(own.splits["train"]), "scenes for the teacher")'
  )
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', code, str(tmp_path)],
      cwd=ROOT,
      env=environment() | {'PYTHONPATH': str(ROOT)},
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    for _ in range(3)
  ]
  said = [process.communicate()[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0, 0], said
  assert ''.join(said).count('Downloading and preparing') == 2, said
  assert sum('waiting' in text for text in said) >= 1
  assert all('60 scenes for the teacher' in text for text in said)
  assert all('48 train, 24 validate, 24 test clips' in text for text in said)
