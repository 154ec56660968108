"""Members of an ensemble against runs by themselves."""

import dataclasses

import jax
import numpy as np
import pytest
from train_test import fake, frozen, make_job

from iusp_jax import checkpoint, ensemble, logs, store, tagger, train
from iusp_jax import teacher as teachers


@pytest.fixture(scope='module')
def outputs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('outputs') / 'store'
  guide = teachers.Trained(frozen().model, frozen().variables, 'f', folder)
  store.build(folder, guide, fake().splits['train'], 'float32')
  return store.open_store(folder)


def residents(job, outputs):
  model = tagger.build(job.recipe, len(job.dataset.tags))
  splits = job.dataset.splits
  train_split = ensemble.features(model, splits['train'])
  return (
    ensemble.with_targets(train_split, outputs, job.terms()),
    ensemble.features(model, splits['validate']),
  )


def alone(job, outputs, workdir):
  """The same run by the main loop: rows of its log, last variables."""
  terms = job.terms()
  job = dataclasses.replace(
    job,
    workdir=workdir,
    targets=(lambda batch: outputs.lookup(batch, terms)) if terms else None,
  )
  train.fit(job)
  restored = checkpoint.restore_newest(workdir / 'checkpoints' / 'last')
  assert restored is not None
  return logs.read_metrics(workdir / 'metrics.jsonl'), restored[1]['params']


@pytest.mark.parametrize('together', [1, 3])
def test_members_are_the_runs_by_themselves(tmp_path, outputs, together):
  """Other seed, other order, other dropout, other weights: same program."""
  epochs = 17.0  # 51 steps.
  first = make_job('all', augmented=False, epochs=epochs, log_every_steps=1)
  first.recipe['augment'] |= {'num_time_masks': 1, 'num_mel_masks': 1}
  second = dataclasses.replace(first, seed=6)
  third = dataclasses.replace(
    first, objective=first.objective | {'iusp_weight': 20.0}
  )
  jobs = [first, second, third]
  members = ensemble.fit(jobs, *residents(first, outputs), together=together)
  for number, member in enumerate(members):
    if together == 3 and number != 1:
      continue
    # Masks change what is heard: the stored teacher is not told, either way.
    rows, params = alone(jobs[number], outputs, tmp_path / str(number))
    assert len(rows) == len(member.rows) == 51 + 17
    for own, other in zip(member.rows, rows, strict=True):
      assert own.keys() == other.keys()
      tolerance = 1e-5 if own['step'] <= 10 else 1e-4
      for name in own:
        loose = 10 if name == 'train/gradient_norm' else 1
        if name.startswith('validate'):
          continue
        np.testing.assert_allclose(
          own[name], other[name], tolerance * loose, 1e-7, err_msg=name
        )
    assert member.best_score == max(
      row['validate/coarse_micro_auprc']
      for row in member.rows
      if 'validate/coarse_micro_auprc' in row
    )
    jax.tree.map(
      lambda x, y: np.testing.assert_allclose(x, y, 1e-2, 1e-3),
      dict(member.last['params']),
      dict(params),
    )
