"""Sizes of the models of a run, counted by hand."""

import pytest
from fakes import NUM_SAMPLES, fake, recipe, teacher_recipe

from iusp_jax.experiment.setup import describe_model
from iusp_jax.models import tagger

FRAMES = 104  # 98 of a second, filled up to a multiple of 8.


def crnn_sizes(bands=16, width=4, hidden=6, tags=8):
  """Parameters and MACs of the student of `fakes.recipe`."""
  high = -(-(bands - 4) // 2)  # A window of 5 bands every 2.
  inputs = high * width
  gates = (inputs + hidden) * 4 * hidden
  parameters = 25 * width + 2 * width + gates + 4 * hidden + (hidden + 1) * tags
  macs = FRAMES // 2 * high * 25 * width + FRAMES // 8 * gates + hidden * tags
  return parameters, macs


def cnn_sizes(bands=24, width=4, num_blocks=3, tags=8):
  """Parameters and MACs of the teacher of `fakes.teacher_recipe`."""
  parameters = macs = 0
  inputs, frames = 1, FRAMES
  for block in range(num_blocks):
    outputs = width * 2**block
    parameters += 9 * inputs * outputs + 2 * outputs
    macs += frames * bands * 9 * inputs * outputs
    inputs, frames, bands = outputs, frames // 2, bands // 2
  return parameters + (inputs + 1) * tags, macs + inputs * tags


@pytest.mark.parametrize(
  ('made', 'sizes'), [(recipe(), crnn_sizes()), (teacher_recipe(), cnn_sizes())]
)
def test_models_are_described_by_their_sizes(made, sizes):
  assert fake().num_samples == NUM_SAMPLES
  parameters, macs = sizes
  assert describe_model(made, fake()) == (
    f'{made["model"]["architecture"]}, {parameters:,} parameters, '
    f'{macs / 1e6:.1f} M multiply-accumulates a clip'
  )


@pytest.mark.parametrize(
  ('made', 'sizes'), [(recipe(), crnn_sizes()), (teacher_recipe(), cnn_sizes())]
)
def test_results_have_them_to_the_last_one(made, sizes):
  """results.json and the table hold these numbers, not rounded ones."""
  model = tagger.build(made, 8)
  variables = model.shapes(NUM_SAMPLES)
  assert (model.num_parameters(variables), model.num_macs(NUM_SAMPLES)) == sizes
