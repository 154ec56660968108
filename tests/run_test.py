"""A run: what it leaves, what it refuses, where it goes on."""

import csv
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
from commands import command, execute, finish
from experiments import changed, load_dataset, run_config, save_teacher

from configs import baseline, iusp, iusp_centred, iusp_sp, kd, sp, teacher
from iusp_jax.experiment import check, identity, plots, results, run
from iusp_jax.models import trained
from iusp_jax.runtime import files, metrics_log
from iusp_jax.training import engine


def read(workdir):
  return json.loads((workdir / 'results.json').read_text())


def scores(record):
  """What a run reports of its student, less what a run may not repeat."""
  return {name: record[name] for name in ('student', 'curve', 'weights')}


def assert_promised(workdir):
  """What every run with a teacher leaves in its workdir."""
  for name in plots.NAMES:
    assert (workdir / name).stat().st_size > 5_000
  record = read(workdir)
  for model in ('teacher', 'student'):
    assert record[model]['parameters'] > 0
    assert record[model]['macs'] > 0
    for which in ('best', 'last'):
      for split in ('validate', 'test'):
        coarse = record[model][which][split]['coarse']
        assert 0 < coarse['micro_auprc'] <= 1
        assert len(coarse['class_auprc']) == 8
    low, high = record[model]['best']['test']['coarse']['micro_auprc_ci']
    assert low < high
  assert record['environment']['packages']['jax']
  rows = metrics_log.read_metrics(workdir / 'metrics.jsonl')
  metric = 'validate/coarse_micro_auprc'
  best = max(row[metric] for row in rows if metric in row)
  found = record['student']['best']['validate']['coarse']['micro_auprc']
  np.testing.assert_allclose(found, best, 1e-6)
  assert not (workdir / 'training').exists()  # Nothing is left to continue.


def test_run_leaves_what_it_promises(tiny_run):
  assert_promised(tiny_run)


@pytest.mark.slow
def test_smoke_leaves_what_it_promises(smoke):
  """As it is typed, from synthesis to plots; its teacher is trained."""
  folder, printed = smoke
  workdir = folder / 'run'
  assert printed.startswith('process 0 of 1, backend cpu, 1 local')
  assert 'compiled the train step in' in printed
  assert str(workdir) in printed
  assert_promised(workdir)
  name = read(workdir)['dataset']['name']
  assert name.startswith('urban_scenes/procedural')


def test_predictions_are_in_the_form_of_the_challenge(tiny_run):
  with (tiny_run / 'predictions_test.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == 13
  assert {'audio_filename', '1_engine', '8_dog'} <= rows[0].keys()
  assert all(0 <= float(row['7_human-voice']) <= 1 for row in rows)


def test_second_command_reports_that_the_run_is_complete(
  tiny, tiny_run, on_fakes, capsys
):
  before = (tiny_run / 'results.json').read_bytes()
  assert run.run(run_config(tiny, seed=100), tiny_run) == json.loads(before)
  assert 'This run is complete' in capsys.readouterr().out
  assert (tiny_run / 'results.json').read_bytes() == before


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'seed': 9}, 'seed: 100 there, 9 now'),
    (
      {'student.training.epochs': 3.0},
      r'student\.training\.epochs: 2\.0 there, 3\.0 now',
    ),
    ({'objective.iusp_weight': 1.0}, r'iusp_weight: \S+ there, 1\.0 now'),
    (
      {'objective.kd_weight': 1.0},
      'objective.kd_weight: not set there, 1.0 now',
    ),
    ({'dataset.builder.seed': 3}, r'dataset\.builder\.seed: 0 there, 3 now'),
  ],
)
def test_workdir_of_another_run_is_refused(
  fields, message, tiny, tiny_run, on_fakes
):
  config = run_config(tiny, **{'seed': 100, **fields})
  with pytest.raises(ValueError, match=message) as error:
    run.run(config, tiny_run)
  assert str(tiny_run) in str(error.value)


def test_fields_that_change_no_result_are_not_compared(
  tiny, tiny_run, on_fakes
):
  """A temperature of a term that is off, where the data are kept, resamples."""
  fields = {
    'seed': 100,
    'objective.kd_temperature': 9.0,
    'dataset.data_dir': '/elsewhere',
    'bootstrap': 3,
    'profile_steps': 2,
  }
  assert run.run(run_config(tiny, **fields), tiny_run) == read(tiny_run)


def test_cut_results_name_the_file(tiny, tiny_run, on_fakes, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(tiny_run, workdir)
  path = workdir / 'results.json'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(ValueError, match='cut short') as error:
    run.run(run_config(tiny, seed=100), workdir)
  assert str(path) in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'student.training.batch_size': 7}, 'multiple of the 2 devices'),
    ({'student.training.epochs': 0.0}, 'training.epochs is 0.0'),
    ({'student.model.architecture': 'crn'}, "did you mean 'crnn'"),
    ({'student.frontend.sample_rate': 8000}, 'sample_rate is 8000'),
    ({'student.frontend.max_hertz': 9000.0}, '9000'),
    ({'objective.iusp_weight': -1.0}, 'iusp_weight is -1.0'),
    ({'objective.kd_temperature': 0.0}, 'kd_temperature is 0'),
    ({'objective.sp_schedule': 'up'}, "sp_schedule is 'up': expected one of"),
    ({'fit': 'both'}, "config.fit is 'both'"),
    ({'bootstrap': -1}, 'config.bootstrap is -1'),
    ({'teacher.store': 'float8'}, "config.teacher.store is 'float8'"),
    ({'on_nan': 'ignore'}, "config.on_nan is 'ignore'"),
  ],
)
def test_config_that_cannot_be_right_is_refused_at_the_start(fields, message):
  config = changed(iusp.get_config('smoke'), **fields)
  with pytest.raises(ValueError, match=message):
    check.check(identity.plain(config))


def refused(config, workdir, message):
  """Asserts that a command is refused and has begun nothing."""
  with pytest.raises(ValueError, match=message):
    run.run(config, workdir)
  assert not (workdir / 'results.json').exists()
  assert not (workdir / 'training').exists()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'student.training.batch_size': 32},
      'config.student.training.batch_size is 32: expected at most 24',
    ),
    (
      {'teacher.checkpoint': '', 'teacher.training.batch_size': 32},
      'config.teacher.training.batch_size is 32: expected at most 24',
    ),
    (
      {
        'teacher.checkpoint': '',
        'teacher.training.batch_size': 64,
        'teacher.train_scenes': 50,
      },
      'config.teacher.training.batch_size is 64: expected at most 50',
    ),
    ({'compare_with': '/nowhere'}, "config.compare_with is '/nowhere': .* no"),
    ({'teacher.checkpoint': '/nowhere'}, "teacher.checkpoint is '/nowhere'"),
    (
      {'teacher.store': 'float32', 'student.augment.mixup_alpha': 0.5},
      "store is 'float32', but .*mixup_alpha is 0.5",
    ),
  ],
)
@pytest.mark.slow
def test_refused_command_does_not_block_the_corrected_one(
  fields, message, tiny, on_fakes, tmp_path, monkeypatch
):
  """Even under other settings of XLA, which a run that has begun keeps."""
  refused(run_config(tiny, **fields), tmp_path, message)
  environment = tmp_path / 'environment.json'
  if environment.exists():
    there = json.loads(environment.read_text())
    there['variables']['XLA_FLAGS'] = '--xla_other'
    environment.write_text(json.dumps(there))
  monkeypatch.setattr(engine, 'fit', stop)
  with pytest.raises(Killed):
    run.run(run_config(tiny), tmp_path)


class Killed(BaseException):
  """Ends a run as a kill would."""


def stop(*_, **__):
  raise Killed


def test_command_that_lacked_its_data_is_refused(tmp_path):
  config = iusp.get_config('folder,smoke')
  config.dataset.data_dir = str(tmp_path / 'data')
  config.cache_dir = str(tmp_path / 'cache')
  refused(config, tmp_path / 'run', '--config.dataset.manual_dir=FOLDER')
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize(
  'field', ['--workdir', 'config.dataset.data_dir', 'config.cache_dir']
)
def test_place_that_cannot_be_written_is_refused(
  tiny, tmp_path, field, request
):
  (tmp_path / 'file').write_text('in the way')
  place = tmp_path / 'file' / 'below'
  workdir, fields = tmp_path / 'run', {}
  if field == '--workdir':
    workdir = place
  else:
    fields = {field.removeprefix('config.'): str(place)}
  if field != 'config.dataset.data_dir':
    request.getfixturevalue('on_fakes')
  message = f'{field} is {place}: cannot be written (Not a directory'
  with pytest.raises(ValueError, match=re.escape(message)) as error:
    run.run(run_config(tiny, **fields), workdir)
  assert str(error.value).endswith('choose another')


def test_workdir_in_use_is_refused(tiny, tmp_path):
  with (
    files.lock(tmp_path, ''),
    pytest.raises(ValueError, match='another run works'),
  ):
    run.run(run_config(tiny), tmp_path)


@pytest.mark.slow
def test_named_runs_and_the_time_of_a_run_in_two_goes(
  tiny, tiny_run, on_fakes, tmp_path, monkeypatch, capsys
):
  """A baseline beside an IUSP run, with a named teacher, stopped once."""
  fields = {
    'seed': 100,
    'compare_with': str(tiny_run),
    'teacher.model.width': 16,  # Ignored, and not described either.
  }
  config = run_config(tiny, baseline, **fields)
  with monkeypatch.context() as patch:
    patch.setattr(plots, 'draw', stop)
    with pytest.raises(Killed):
      run.run(config, tmp_path)
  record = run.run(config, tmp_path)
  printed = capsys.readouterr().out
  assert 'continues after step 6' in printed  # Its training was done.
  of_run = read(tiny_run)
  for name in ('fingerprint', 'weights', 'workdir'):
    assert record['teacher'][name] == of_run['teacher'][name]
  assert record['student'] != of_run['student']
  parameters = of_run['teacher']['parameters']
  assert f'teacher: cnn, {parameters:,} parameters' in printed
  rows = (tmp_path / 'similarities.txt').read_text().splitlines()
  shown = {row.split()[1] for row in rows[1:-1]}
  assert shown == {'teacher', 'student', tiny_run.name}
  seconds = record['wall_seconds']
  assert seconds['num_processes'] == 2
  assert seconds['all_processes'] > seconds['this_process'] > 0


@pytest.mark.slow
def test_baseline_beside_a_student_is_trained_first_and_once(
  tiny, on_fakes, tmp_path, monkeypatch
):
  """Killed between the two, the run goes on with the student."""
  config = run_config(tiny, train_baseline=True)
  fit, names = engine.fit, []

  def fit_one(jobs, *rest, **named):
    names.append(jobs[0].name)
    if names == ['baseline', 'student']:
      raise Killed
    return fit(jobs, *rest, **named)

  monkeypatch.setattr(engine, 'fit', fit_one)
  with pytest.raises(Killed):
    run.run(config, tmp_path)
  assert names == ['baseline', 'student']
  kept = (tmp_path / 'baseline' / 'results.json').read_bytes()
  assert not (tmp_path / 'results.json').exists()

  # The baseline that is there is none of another run.
  other = run_config(tiny, train_baseline=True, seed=1)
  with pytest.raises(ValueError, match='seed: 0 there, 1 now'):
    run.run(other, tmp_path)

  record = run.run(config, tmp_path)
  assert names == ['baseline', 'student', 'student']
  assert (tmp_path / 'baseline' / 'results.json').read_bytes() == kept
  own = json.loads(kept)
  assert record['baseline'] == own['student']
  found = record['difference']
  one, two = (
    of['best']['test']['coarse']['micro_auprc']
    for of in (record['student'], own['student'])
  )
  assert found['difference'] == pytest.approx(one - two)
  assert found['low'] <= found['difference'] <= found['high']
  assert found['num_clips'] == 13
  assert own['identity']['objective'] == {}
  assert record['student'] != record['baseline']
  shown = (tmp_path / 'similarities.txt').read_text()
  assert {'teacher', 'student', 'baseline'} <= set(shown.split())

  alone = run.run(run_config(tiny, baseline), tmp_path / 'alone')
  assert scores(alone)['curve'] == own['curve']
  assert alone['student']['best'] == own['student']['best']


def slow(*values):
  return [pytest.param(value, marks=pytest.mark.slow) for value in values]


@pytest.mark.parametrize(
  'module', [teacher, *slow(baseline, kd, sp, iusp_sp, iusp_centred)]
)
def test_every_config_runs(module, tiny, on_fakes, tmp_path, capsys):
  record = run.run(run_config(tiny, module), tmp_path)
  assert 'micro-AUPRC' in capsys.readouterr().out
  assert record['status'] == 'done'
  assert ('student' in record) == (module is not teacher)
  assert (tmp_path / 'predictions_test.csv').exists()
  assert not (tmp_path / 'training').exists()
  if module is not teacher:
    found = trained.load(tmp_path, 'last')
    assert found.fingerprint == trained.load(tmp_path, 'best').fingerprint


@pytest.mark.parametrize('level', ['both', *slow('fine')])
@pytest.mark.slow
def test_levels_of_the_taxonomy(level, on_fakes, tmp_path):
  save_teacher(tmp_path / 'teacher', level)
  config = run_config(tmp_path, **{'dataset.level': level})
  best = run.run(config, tmp_path / 'run')['student']['best']['test']
  assert 0 < best['fine']['micro_auprc'] <= 1
  assert 0 < best['coarse']['micro_auprc'] <= 1
  tags = load_dataset(level).tags
  with (tmp_path / 'run' / 'predictions_test.csv').open() as file:
    assert set(tags) <= set(next(csv.reader(file)))


@pytest.mark.slow
def test_full_disk_keeps_the_last_good_checkpoint(smoke, tmp_path):
  """A limit on the size of files stands for a full disk."""
  folder, _ = smoke
  arguments = command(folder, f'--workdir={tmp_path}/run')
  limited = ['bash', '-c', 'ulimit -f 100; exec "$@"', '-', *arguments]
  done = execute(limited)
  assert done.returncode != 0
  assert 'could not be written' in done.stderr or 'too large' in done.stderr
  assert '_SignalingThread' not in done.stderr  # Orbax's own words.
  finish(arguments)


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
  config = iusp.get_config('folder,smoke')
  config.dataset.manual_dir = str(folder)
  config.dataset.data_dir = str(tmp_path / 'data')
  config.cache_dir = str(tmp_path / 'cache')
  record = run.run(config, tmp_path / 'run')
  assert record['dataset']['tags'] == ['low', 'high']
  assert record['dataset']['sizes'] == sizes
  assert results.read(tmp_path / 'run') == record
