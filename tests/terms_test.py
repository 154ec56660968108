"""Terms of the objective and what they need of a teacher, by name."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from objective_references import draw

from iusp_jax.objectives import targets, terms

FIELDS = terms.config_fields()
NAMES = tuple(terms.TERMS)


def test_a_config_has_all_fields_and_every_term_is_off():
  assert FIELDS['kd_temperature'] == 2.0
  for name in NAMES:
    assert FIELDS[f'{name}_weight'] == 0.0
    assert FIELDS[f'{name}_schedule'] == 'constant'
  settings = sum(len(term.settings) for term in terms.TERMS.values())
  assert FIELDS['tagging_schedule'] == 'constant'
  assert len(FIELDS) == 1 + 3 * len(NAMES) + settings
  assert terms.Objective.from_config(FIELDS) == terms.Objective({}, {}, {})


def test_an_objective_has_the_terms_with_a_weight():
  found = terms.Objective.from_config(
    FIELDS
    | {
      'iusp_weight': 2,
      'kd_weight': 0.5,
      'kd_temperature': 3.0,
      'sp_schedule': 'decay',  # Of a term that is off.
      'iusp_schedule': 'ramp',
    }
  )
  assert found.terms == ('kd', 'iusp')  # In the order of the table.
  assert found.weights == {'kd': 0.5, 'iusp': 2.0}
  assert found.schedules == {'kd': 'constant', 'iusp': 'ramp'}
  assert found.settings == {'kd': {'temperature': 3.0}, 'iusp': {}}
  assert found.targets == ('logits', 'frame_gram')
  assert found.layers == ()
  assert found.compares_clips == ()
  later = terms.Objective.from_config(
    FIELDS | {'kd_weight': 1.0, 'tagging_schedule': 'on_at_half'}
  )
  assert later.schedules == {'kd': 'constant', 'tagging': 'on_at_half'}
  assert later.terms == ('kd',)
  both = terms.Objective({'sp': 1.0, 'iusp': 1.0, 'iusp_centred': 1.0})
  assert both.targets == ('batch_gram', 'frame_gram')  # Each once.
  assert both.compares_clips == ('sp',)


def test_weights_alone_make_no_other_program():
  one = terms.Objective({'kd': 1.0}, {'kd': 'ramp'}, {'kd': {'temperature': 2}})
  two = dataclasses.replace(one, weights={'kd': 7.0})
  assert one.without_weights() == two.without_weights()
  for other in (
    dataclasses.replace(one, weights={'kd': 1.0, 'sp': 0.0}),
    dataclasses.replace(one, schedules={'kd': 'decay'}),
    dataclasses.replace(one, settings={'kd': {'temperature': 3}}),
  ):
    assert other.without_weights() != one.without_weights()


@pytest.mark.parametrize('field', ['title', 'colour', 'marker'])
def test_no_two_terms_look_alike(field):
  found = [getattr(term, field) for term in terms.TERMS.values()]
  assert len(set(found)) == len(found)


def test_terms_need_what_there_is():
  for name, term in terms.TERMS.items():
    for target in term.targets:
      targets.split_name(target)
      # What compares clips is computed from them all.
      assert term.compares_clips or not targets.is_pairwise(target), name


@pytest.mark.parametrize(
  ('name', 'expected'),
  [
    ('constant', lambda p: np.ones_like(p)),
    ('ramp', lambda p: np.where(p < 20 / 150, p / (20 / 150), 1.0)),
    ('decay', lambda p: 1 - p),
    ('decay_to_half', lambda p: np.where(p < 0.5, 1 - 2 * p, 0.0)),
    ('off_at_half', lambda p: np.where(p < 0.5, 1.0, 0.0)),
    ('on_at_half', lambda p: np.where(p < 0.5, 0.0, 1.0)),
  ],
)
def test_schedules_by_closed_form(name, expected):
  progress = np.array([0.0, 0.01, 0.1, 0.13, 0.14, 0.25, 0.499, 0.5, 0.7, 0.99])
  found = [terms.SCHEDULES[name](jnp.float32(p)) for p in progress]
  np.testing.assert_allclose(found, expected(progress), 1e-6, 1e-7)


# Targets ---------------------------------------------------------------------


def outputs(frames, logits_BC=None, frame_logits_BTC=None, **fields):
  """What a teacher gives, of clips without padding."""
  fields = {'inner': (), 'frame_mask': None} | fields
  return targets.Outputs(logits_BC, frame_logits_BTC, frames, **fields)


def test_names_of_targets():
  assert targets.split_name('logits') == ('logits', 'frames')
  assert targets.split_name('frame_gram@block_2') == ('frame_gram', 'block_2')
  assert targets.is_pairwise('batch_gram@block_1')
  assert not targets.is_pairwise('frame_gram@block_1')
  names = ['frame_gram', 'frame_gram@block_2', 'batch_gram@block_2', 'logits']
  assert targets.layers(names) == ('block_2',)


@pytest.mark.parametrize('name', ['gram', '@block_1', 'Logits', ''])
def test_unknown_kind_lists_the_legal_ones(name):
  message = f'target {name!r} is unknown: expected one of logits, frame_logits'
  with pytest.raises(ValueError, match=message):
    targets.split_name(name)
  with pytest.raises(ValueError, match=message):
    targets.is_pairwise(name)


def test_targets_are_those_of_their_layer():
  """Against float64; the gram of every clip is divided by its largest."""
  logits_BC = draw(0, 3, 4)
  frames = {'frames': draw(1, 3, 5, 6), 'block_1': draw(2, 3, 10, 2)}
  frames['frames'][2] = 0.0  # A clip of silence.
  names = (
    'logits', 'frame_gram', 'frame_gram@block_1', 'batch_gram',
    'batch_gram@block_1',
  )  # fmt: skip
  found = targets.compute(names, outputs(frames, logits_BC), lambda x: x, {})
  assert tuple(found) == names
  np.testing.assert_array_equal(found['logits'], logits_BC)
  for layer, suffix in (('frames', ''), ('block_1', '@block_1')):
    x_BTD = frames[layer].astype(np.float64)
    gram_BTT = x_BTD @ x_BTD.swapaxes(1, 2)
    largest_B = abs(gram_BTT).max((1, 2))
    gram_BTT = gram_BTT / np.where(largest_B > 0, largest_B, 1)[:, None, None]
    np.testing.assert_allclose(
      found[f'frame_gram{suffix}'], gram_BTT, 1e-5, 1e-6
    )
    flat = x_BTD.reshape(3, -1)
    np.testing.assert_allclose(
      found[f'batch_gram{suffix}'], flat @ flat.T, 1e-5, 1e-5
    )


def test_pairwise_targets_have_a_column_a_clip_of_the_whole_batch():
  frames = {'frames': draw(1, 4, 5, 6)}
  own = {'frames': frames['frames'][1:3]}
  flat = frames['frames'].reshape(4, -1)
  found = targets.compute(['batch_gram'], outputs(own), lambda _: flat, {})
  np.testing.assert_allclose(found['batch_gram'], flat[1:3] @ flat.T, 1e-5)
