"""Students together against students one by one, side by side in one run.

  PYTHONPATH=. .venv/bin/python benchmarks/ensemble.py [student ...]

Every way takes steps of the same students; columns are seconds for one step of
one student, best of the rounds, and how many times as fast as the first way:
a run by itself that hears waveforms and asks the teacher in every step. The
others work on log-mel and stored teacher outputs that stay on the device.
"""

import dataclasses
import os
import sys
import time

os.environ.setdefault('XLA_FLAGS', '--xla_force_host_platform_device_count=2')

import jax
import numpy as np

from configs import base
from iusp_jax.audio import frontend
from iusp_jax.models import tagger
from iusp_jax.runtime import devices
from iusp_jax.training import ensemble, optim, step

NUM_CLIPS, MEMBERS, STEPS, ROUNDS = 256, 8, 4, 3
WAYS = {'1 device, one by one': (1, 1), '1 device, vmap': (1, MEMBERS)} | {
  '2 devices, one by one': (2, 1),
  '2 devices, vmap': (2, MEMBERS // 2),
}


class _Data:
  """Stands for a data set: only sizes are looked at."""

  tags = tuple('abcdefgh')
  num_samples = 160_000
  splits = {'train': range(NUM_CLIPS)}  # noqa: RUF012


def make_jobs(student):
  """Jobs that differ in their seed, with the IUSP term."""
  recipe = base.recipe(base.STUDENTS[student], 20).to_dict()
  objective = base.objective().to_dict() | {'iusp_weight': 300.0}
  return [
    step.Job(
      name=student,
      recipe=recipe,
      objective=objective,
      dataset=_Data(),  # pyright: ignore[reportArgumentType]
      seed=seed,
      workdir=None,  # pyright: ignore[reportArgumentType]
      teacher=True,  # pyright: ignore[reportArgumentType]
    )
    for seed in range(MEMBERS)
  ]


def make_resident(recipe):
  """Noise in the shape of a split."""
  rng = np.random.default_rng(0)
  config = frontend.FrontendConfig(**recipe['frontend'])
  num_frames = frontend.num_frames(_Data.num_samples, config)
  shape = (NUM_CLIPS, num_frames, config.num_mel_bands)
  gram = rng.random((NUM_CLIPS, 125, 125), np.float32)
  return {
    'mel': rng.normal(size=shape).astype(np.float32),
    'tags': np.ones((NUM_CLIPS, 8), np.float32),
    'mask': np.ones((NUM_CLIPS, 8), np.float32),
    'length': np.full(NUM_CLIPS, _Data.num_samples, np.int32),
    'index': np.arange(NUM_CLIPS, dtype=np.int32),
    'teacher_frame_gram': gram,
  }


def seconds(jobs, resident, num_devices, together):
  """Best time for one step of one student."""
  count = jax.local_device_count
  jax.local_device_count = lambda *_: num_devices
  try:
    run = ensemble.Run(jobs, together)
    clips = run.order(0, STEPS)
    best = np.inf
    for number in range(ROUNDS + 1):
      started = time.monotonic()
      shared = resident, np.int32(STEPS)
      jax.block_until_ready(run.advance(run.arguments(clips), shared))
      if number:  # The first one compiles.
        best = min(best, time.monotonic() - started)
  finally:
    jax.local_device_count = count
  return best / (STEPS * len(jobs))


def seconds_alone(job):
  """Best time for one step with the teacher in it, on one device."""
  guide = tagger.build(
    {**job.recipe, **base.teacher('').to_dict()}, len(job.dataset.tags)
  )
  variables = guide.initialise(0, _Data.num_samples)
  job = dataclasses.replace(job, teacher=step.Teacher(guide, variables))
  model = tagger.build(job.recipe, len(job.dataset.tags), devices.AXIS)
  optimizer = optim.optimizer(job.recipe['training'], lambda _: 1e-3)
  mapped = jax.pmap(
    step.make_step(model, optimizer, job),
    axis_name=devices.AXIS,
    devices=jax.devices()[:1],
  )
  one = lambda tree: jax.tree.map(lambda x: np.asarray(x)[None], tree)  # noqa: E731
  size = job.recipe['training']['batch_size']
  wave = np.random.default_rng(0).normal(size=(size, _Data.num_samples))
  batch = {
    'wave': (1000 * wave).astype(np.int16),
    'tags': np.ones((size, 8), np.float32),
    'mask': np.ones((size, 8), np.float32),
    'length': np.full(size, _Data.num_samples, np.int32),
    'index': np.arange(size, dtype=np.int32),
  }
  state = one(step.initial_state(model, optimizer, job))
  given = one(variables), one(job.settings()), one(batch)
  best = np.inf
  for number in range(ROUNDS + 1):
    started = time.monotonic()
    jax.block_until_ready(mapped(state, *given))
    if number:  # The first one compiles.
      best = min(best, time.monotonic() - started)
  return best


def main():
  """Prints the table."""
  print(jax.devices(), f'{MEMBERS} members, batch 32')
  for student in sys.argv[1:] or base.STUDENTS:
    jobs = make_jobs(student)
    resident = jax.device_put(make_resident(jobs[0].recipe))
    base_line = seconds_alone(jobs[0])
    print(
      f'{student:15} {"by itself, teacher":22} {base_line:.4f} s', flush=True
    )
    for name, (num_devices, together) in WAYS.items():
      found = seconds(jobs, resident, num_devices, together)
      ratio = base_line / found
      print(f'{student:15} {name:22} {found:.4f} s  {ratio:.2f}', flush=True)


if __name__ == '__main__':
  main()
