"""Runs, tables and tuning with outputs that were computed elsewhere."""

import importlib.util
import json
import shutil

import foreign
import numpy as np
import pytest
from commands import ROOT, command, execute, finish
from experiments import (
  assert_same_scores,
  load_dataset,
  run_config,
  table_config_of,
)

from iusp_jax.data import foreign_outputs, preparation
from iusp_jax.experiment import plots, run, table, teacher, tuning
from iusp_jax.experiment.setup import Setup, repetitiveness
from iusp_jax.objectives import alignment
from iusp_jax.runtime import logs, preemption
from iusp_jax.training import engine

# The student's frames are at the times of the teacher's.
ALIKE = {'num_blocks': 3, 'time_reduction': 8}
STUDENT = {f'student.model.{name}': value for name, value in ALIKE.items()}
BOTH = {'objective.kd_weight': 1.0, 'objective.sp_weight': 3.0, **STUDENT}


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
  """Outputs of the teacher of `tiny`; nothing in it may be changed."""
  data = load_dataset('coarse')
  found = teacher.load(tiny / 'teacher', data)
  return foreign.write(
    tmp_path_factory.mktemp('foreign') / 'outputs', data, found
  )


@pytest.fixture
def folder(whole, tmp_path):
  """One that may be changed."""
  return shutil.copytree(whole, tmp_path / 'outputs')


@pytest.fixture
def logged(monkeypatch):
  found = []
  monkeypatch.setattr(logs, 'log', lambda line, **_: found.append(line))
  return found


def fields_of(folder, cache, **fields):
  return {
    'teacher.checkpoint': '',
    'teacher.outputs': str(folder),
    'cache_dir': str(cache),
    **fields,
  }


def train(tiny, workdir, folder, **fields):
  """A run with these outputs; its cache is beside the workdir."""
  named = fields_of(folder, workdir.parent / 'cache', **(BOTH | fields))
  return run.run(run_config(tiny, seed=100, **named), workdir)


@pytest.mark.slow
def test_run_is_that_with_the_teacher_itself(
  tiny, whole, on_fakes, tmp_path, logged
):
  """In its losses, scores and plots; all of them withheld from nothing."""
  own = run.run(run_config(tiny, seed=100, **BOTH), tmp_path / 'own')
  record = train(tiny, tmp_path / 'run', whole)
  assert_same_scores(record['student'], own['student'])
  assert_same_scores(record['teacher']['best'], own['teacher']['best'])
  np.testing.assert_allclose(
    record['frame_distance'], own['frame_distance'], 1e-4
  )
  texts = [(tmp_path / n / 'similarities.txt') for n in ('own', 'run')]
  one, two = (path.read_text().split() for path in texts)
  assert one[:5] == two[:5]
  assert len(one) == len(two)
  found = record['teacher']
  for name in ('name', 'source', 'licence'):
    assert found[name] == foreign.METADATA[name]
  assert found['fingerprint'] == record['identity']['teacher']['fingerprint']
  assert found['outputs'] == str(whole)
  assert found['withheld'] == {}
  for name in plots.NAMES:
    assert (tmp_path / 'run' / name).stat().st_size > 5_000
  assert not [line for line in logged if 'order' in line]


@pytest.mark.slow
def test_moved_folder_is_the_same_teacher_and_a_changed_array_another(
  tiny, whole, folder, on_fakes, tmp_path, logged
):
  train(tiny, tmp_path / 'run', whole)
  train(tiny, tmp_path / 'run', folder)
  assert any('This run is complete' in line for line in logged)
  path = folder / 'train' / 'frames.npy'
  np.save(path, 2 * np.load(path))
  with pytest.raises(ValueError, match=r'holds a run of another .*outputs: '):
    train(tiny, tmp_path / 'run', folder)


@pytest.mark.slow
def test_run_that_is_stopped_goes_on(
  tiny, whole, on_fakes, tmp_path, monkeypatch
):
  first = train(tiny, tmp_path / 'whole', whole)
  validate, calls = engine.evaluate.predict, []
  with monkeypatch.context() as patch:
    patch.setattr(
      engine.evaluate,
      'predict',
      lambda *a, **k: calls.append(1) or validate(*a, **k),
    )
    patch.setattr(preemption, 'requested', lambda: len(calls) >= 1)
    with pytest.raises(preemption.Preempted):
      train(tiny, tmp_path / 'run', whole)
  assert (tmp_path / 'run' / 'training').exists()
  again = train(tiny, tmp_path / 'run', whole)
  assert again['student'] == first['student']
  rows = [
    (tmp_path / n / 'metrics.jsonl').read_text() for n in ('whole', 'run')
  ]
  assert rows[0] == rows[1]


@pytest.mark.slow
def test_splits_that_are_not_there_have_no_scores(
  tiny, folder, on_fakes, tmp_path, logged
):
  shutil.rmtree(folder / 'validate')
  (folder / 'test' / 'frames.npy').unlink()
  record = train(tiny, tmp_path / 'run', folder)
  assert record['teacher']['best'].keys() == {'test'}
  assert record['teacher']['withheld'].keys() == {'validate'}
  assert any('has no scores on validate: ' in line for line in logged)
  assert any('drawn without the teacher' in line for line in logged)
  assert record['frame_distance'] is None
  shutil.rmtree(folder / 'test')
  record = train(tiny, tmp_path / 'again' / 'run', folder)
  assert record['teacher']['best'] == {}
  assert (tmp_path / 'again' / 'run' / 'tag_scores.png').exists()


@pytest.mark.slow
def test_frames_of_overlapping_patches_are_aligned_by_time(
  tiny, folder, on_fakes, tmp_path, logged
):
  """Five patches of a clip of a second; the student has more frames."""
  data = load_dataset('coarse')
  of = json.loads((folder / 'teacher.json').read_text())
  fine = alignment.Timing(*(of[name] for name in (
    'frame_hop_seconds', 'frame_span_seconds', 'first_frame_seconds'
  )))  # fmt: skip
  coarse = alignment.Timing(0.16, 0.32, 0.16)
  for split in ('train', 'validate', 'test'):
    path = folder / split / 'frames.npy'
    frames = np.load(path)
    pool = alignment.pooling_by_time(fine, frames.shape[1], coarse, 5)
    np.save(path, np.einsum('ut,ntd->nud', pool, frames))
  of |= {
    'frame_hop_seconds': 0.16,
    'frame_span_seconds': 0.32,
    'first_frame_seconds': 0.16,
  }
  (folder / 'teacher.json').write_text(json.dumps(of))
  record = train(tiny, tmp_path / 'run', folder, **{'objective.sp_weight': 0.0})
  assert record['frame_distance'] > 0
  text = (tmp_path / 'run' / 'similarities.txt').read_text().split('\n')
  assert {line.split()[2] for line in text[1:] if '.wav' in line} == {'5'}
  config = run_config(tiny, **fields_of(folder, tmp_path / 'cache'))
  setup = Setup(teacher.identified(run.identity.plain(config)))
  setup.get_teacher(required=True)
  values = repetitiveness(setup)
  assert values.keys() == {*data.coarse}
  assert all(v is None or -1 <= v <= 1 for v in values.values())


@pytest.mark.slow
def test_tags_without_a_counterpart_are_left_out(
  tiny, folder, on_fakes, tmp_path, logged
):
  data = load_dataset('coarse')
  theirs = [f'their {tag}' for tag in data.tags]
  of = json.loads((folder / 'teacher.json').read_text()) | {'tags': theirs}
  (folder / 'teacher.json').write_text(json.dumps(of))
  with pytest.raises(ValueError, match='or which belong together in') as error:
    train(tiny, tmp_path / 'run', folder)
  assert 'used with it: sp, iusp' in str(error.value)
  path = tmp_path / 'map.json'
  mapped = dict(zip(data.tags, theirs, strict=True))
  path.write_text(json.dumps(mapped))
  named = {'teacher.tag_map': str(path)}
  record = train(tiny, tmp_path / 'all', folder, **named)
  assert record['teacher']['withheld'] == {}
  del mapped[data.tags[2]]
  path.write_text(json.dumps(mapped))
  record = train(tiny, tmp_path / 'some', folder, **named)
  reason = '1 of 8 tags have none of the teacher'
  assert record['teacher']['withheld'] == {'validate': reason, 'test': reason}
  assert 'teacher: 1 of 8 tags have none of its own' in logged
  with pytest.raises(ValueError, match='holds a run of another'):
    train(tiny, tmp_path / 'all', folder, **named)
  # IUSP and SP need no tags.
  record = train(
    tiny, tmp_path / 'iusp', folder, **{'objective.kd_weight': 0.0}
  )
  assert record['status'] == 'done'


def test_clips_that_are_missing_are_reported_before_training(
  tiny, folder, on_fakes, tmp_path
):
  for split in ('train', 'test'):
    path = folder / split / 'clip_id.txt'
    kept = path.read_text()
    lines = kept.split('\n')
    path.write_text('\n'.join([*lines[:4], 'x', *lines[5:]]))
    workdir = tmp_path / split / 'run'
    with pytest.raises(ValueError, match=f'lacks 1 of .* clips of {split}'):
      train(tiny, workdir, folder)
    assert not (workdir / 'training').exists()
    path.write_text(kept)


@pytest.mark.parametrize(
  'field', ['teacher.model.width', 'teacher.seed', 'teacher.training.epochs']
)
def test_fields_of_a_teacher_that_is_made_here_are_refused(tiny, whole, field):
  config = run_config(tiny, **fields_of(whole, '/cache'))
  teacher.check_overrides(config, ['teacher.outputs', 'teacher.store'])
  with pytest.raises(ValueError, match='that teacher is not made here'):
    teacher.check_overrides(config, [field])


def test_no_two_teachers_are_named(tiny, whole):
  fields = fields_of(whole, '/cache') | {'teacher.checkpoint': '/a'}
  config = run_config(tiny, **fields)
  with pytest.raises(ValueError, match='expected one teacher') as error:
    teacher.check_overrides(config, [])
  assert str(whole) in str(error.value)
  assert "'/a'" in str(error.value)


@pytest.mark.slow
def test_table_and_tuning(tiny, whole, on_fakes, tmp_path, logged):
  fields = fields_of(
    whole,
    tmp_path / 'cache',
    **{
      'table.objectives': ('baseline', 'kd', 'iusp_sp'),
      'table.tune_seeds': 1,
      'table.seeds': 1,
      'table.tune_ratios': (0.3, 3.0),
      **{f'table.models.tiny.{name}': ALIKE[name] for name in ALIKE},
      **STUDENT,
    },
  )
  config = table_config_of(tiny, **fields)
  tuning.run(config, tmp_path / 'tune')
  tuned = json.loads((tmp_path / 'tune' / 'tuned.json').read_text())
  own = table_config_of(
    tiny, **{k: v for k, v in fields.items() if not k.startswith('teacher.')}
  )
  tuning.run(own, tmp_path / 'own')
  expected = json.loads((tmp_path / 'own' / 'tuned.json').read_text())
  name = 'urban_scenes/procedural'
  assert tuned[name] == expected[name]
  table.run(config, tmp_path / 'table')
  cells = json.loads((tmp_path / 'table' / 'cells.json').read_text())
  assert [cell['status'] for cell in cells['cells']] == ['done'] * 3
  (found,) = cells['teachers']
  assert found['name'] == foreign.METADATA['name']
  assert 'similarities.png' in {p.name for p in (tmp_path / 'table').iterdir()}
  logged.clear()
  table.run(config, tmp_path / 'table')
  assert any('3 groups of cells, 0 to run' in line for line in logged)


def test_table_of_several_rotations_is_refused(tiny, whole):
  config = table_config_of(tiny, **fields_of(whole, '/cache'))
  with config.unlocked():
    config.table.rotations = ((4, 5), (1, 2))
    config.dataset.builder.validate_fold = 4
    config.dataset.builder.test_fold = 5
  with pytest.raises(ValueError, match='others of the same names'):
    table.run(config, '/nowhere')


@pytest.mark.slow
def test_example_writes_the_outputs_of_a_model(tiny, tmp_path):
  """Those that the stored targets of the model itself are made of."""
  path = ROOT / 'examples' / 'teacher_outputs.py'
  spec = importlib.util.spec_from_file_location('teacher_outputs', path)
  assert spec is not None
  assert spec.loader is not None
  example = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(example)
  data = load_dataset('coarse')
  example.write(tmp_path, data, example.Tagger(tiny / 'teacher'))
  contents = foreign_outputs.inspect(tmp_path)
  columns = foreign_outputs.columns(contents, data.tags, {})
  found = foreign_outputs.Foreign(contents, columns, 'abc')
  model = teacher.load(tiny / 'teacher', data)
  for split in data.splits.values():
    expected = foreign.outputs_of(model, split)
    rows = found.rows(split)
    read = found.read(split.name, rows, ['logits', 'frames'])
    for name in read:
      np.testing.assert_allclose(read[name], expected[name], 1e-5, 1e-5)


@pytest.mark.slow
def test_command_with_outputs_of_the_procedural_scenes(smoke, tmp_path):
  """As it is typed; refused where a clip is missing."""
  place, _ = smoke
  record = json.loads((place / 'run' / 'results.json').read_text())
  data = preparation.load(
    record['config']['dataset'] | {'data_dir': f'{place}/data'}
  )
  found = teacher.load(place / 'run', data)
  folder = foreign.write(tmp_path / 'outputs', data, found)
  typed = command(
    place,
    f'--config.cache_dir={tmp_path}/cache',
    f'--config.teacher.outputs={folder}',
    f'--workdir={tmp_path}/run',
  )
  printed = finish(typed)
  assert 'teacher: A large tagger (https://example.org/tagger' in printed
  assert 'This run is complete' in finish(typed)
  path = folder / 'train' / 'clip_id.txt'
  path.write_text(path.read_text().replace('train_000007', 'train_900007'))
  typed[-1] = f'--workdir={tmp_path}/other'
  done = execute(typed)
  assert done.returncode == 1
  assert 'lacks 1 of the 48 clips of train: train_000007.wav' in done.stderr
  assert 'Traceback' not in done.stderr
