"""Sound in parts gives what the whole clip gives."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import ROOT
from deploy_fakes import TAGS, sound, write_workdir

import iusp_jax
from iusp_jax.deploy import examples, export, functions, litert, stream, tagging
from iusp_jax.models import layers, tagger
from tfds_dcase import audio

NAMES = ('crnn', 'cnn', 'mobilenet')


@pytest.fixture(scope='module', params=NAMES)
def loaded(request, tmp_path_factory):
  return iusp_jax.load(
    write_workdir(tmp_path_factory.mktemp(request.param), request.param)
  )


@pytest.fixture(scope='module')
def own(loaded):
  return functions.Functions.of(loaded)


def mel_of(own, seconds=6.0):
  return np.asarray(own.log_mel(sound(seconds)[None]))


def test_reach_is_how_far_a_change_goes(own):
  """Log-mel just out of reach changes nothing, what is just within does."""
  found = stream.measure_reach(own.model, own.variables)
  assert found.before > 0
  assert found.after > 0
  run = jax.jit(
    lambda mel: stream.convolved(own.model, own.variables, mel)[:, 30]
  )
  mel_BTF = mel_of(own)
  before = run(mel_BTF)

  def change(frame):
    changed = mel_BTF.copy()
    changed[:, frame] += np.where(np.arange(changed.shape[-1]) % 2, 40, -40)
    return float(np.abs(run(changed) - before).max())

  first, last = 8 * 30 - found.before, 8 * 31 + found.after - 1
  assert change(first - 1) == change(last + 1) == 0.0
  # The input norm and the maxima may hide one frame, but not three.
  assert max(change(first + i) for i in range(3)) > 0
  assert max(change(last - i) for i in range(3)) > 0


@pytest.mark.parametrize('num_frames', [1, 5])
def test_steps_are_the_whole_clip(own, num_frames):
  step = stream.Stream.of(own, num_frames)
  mel_BTF = mel_of(own)
  whole = tagger.apply(own.model, own.variables, mel_BTF)
  state = step.start(mel_BTF[0, : step.look_ahead])
  run, found = jax.jit(step.step), []
  size = step.mel_frames
  for first in range(step.look_ahead, mel_BTF.shape[1] - size + 1, size):
    output, state = run(mel_BTF[:, first : first + size], state)
    found.append(output)
  for name, wanted in (
    ('embeddings', whole.frames_BTD),
    ('probabilities', own.probabilities(whole.frame_logits_BTC)),
  ):
    given = np.concatenate([output[name] for output in found], axis=1)
    assert given.shape[1] > 60
    start = 0 if step.recurrent else step.context
    np.testing.assert_allclose(
      given[:, start:], wanted[:, start : given.shape[1]], atol=1e-5
    )


@pytest.mark.parametrize('part', [160, 40_000])
def test_a_listener_gives_all_frames_of_a_clip(loaded, part):
  """However the samples come; the end included, where no sound follows."""
  wave_S = audio.to_int16(sound(3.3))
  listener = stream.Listener(loaded)
  found = [
    listener(wave_S[first : first + part])
    for first in range(0, len(wave_S), part)
  ]
  found.append(listener.finish())
  probabilities_TC, embeddings_TD = (
    np.concatenate(own) for own in zip(*found, strict=True)
  )
  own = listener.stream.own
  mel_BTF = own.log_mel(wave_S[None].astype(np.float32) / 32768)
  whole = tagger.apply(own.model, own.variables, mel_BTF)
  assert len(embeddings_TD) == whole.frames_BTD.shape[1]
  inner = slice(None)
  if not listener.stream.recurrent:  # What is before and after is not zero.
    end = -(-listener.stream.look_ahead // 8)
    inner = slice(listener.stream.context, len(embeddings_TD) - end)
  np.testing.assert_allclose(
    embeddings_TD[inner], whole.frames_BTD[0, inner], atol=1e-4
  )
  wanted_TC = own.probabilities(whole.frame_logits_BTC)[0]
  np.testing.assert_allclose(
    probabilities_TC[inner], wanted_TC[inner], atol=1e-5
  )


def test_the_tags_of_a_clip_from_its_frames(loaded):
  listener = stream.Listener(loaded)
  if not listener.stream.recurrent:
    pytest.skip('its first and last frames are not those of the whole clip')
  wave_S = sound(1.0)
  frames_TD = np.concatenate([listener(wave_S)[1], listener.finish()[1]])
  np.testing.assert_allclose(
    listener.stream.pool(frames_TD),
    loaded(wave_S, 16_000).probabilities_C,
    atol=1e-5,
  )


def test_latency(own):
  step = stream.Stream.of(own, 1)
  # Eight frames of log-mel and those ahead, the last one 25 ms long.
  frames = 8 + step.look_ahead
  assert step.latency_seconds() == pytest.approx((frames - 1) * 0.01 + 0.025)


def test_a_wrong_start_is_refused(own):
  step = stream.Stream.of(own, 1)
  with pytest.raises(ValueError, match='first_mel_TF has shape'):
    step.start(np.zeros((step.look_ahead + 1, 16)))


def test_lstm_continues():
  lstm = layers.Lstm(5)
  x = np.random.default_rng(0).normal(size=(2, 12, 3)).astype(np.float32)
  variables = lstm.init(jax.random.key(0), x)
  whole = lstm.apply(variables, x)
  state, found = (np.zeros((2, 5), 'f4'),) * 2, []
  for first in range(0, 12, 4):
    part, state = layers.continue_lstm(
      variables['params'], x[:, first : first + 4], state
    )
    found.append(part)
  np.testing.assert_allclose(np.concatenate(found, axis=1), whole, atol=1e-6)


@pytest.mark.skipif(
  bool(litert.why_missing()), reason=litert.why_missing() or 'it is there'
)
def test_a_step_as_a_litert_file(own):
  step = stream.Stream.of(own)
  mel_BTF = mel_of(own)
  state = step.start(mel_BTF[0, : step.look_ahead])
  size, first = step.mel_frames, step.look_ahead
  interpreter = litert.Interpreter(stream.to_litert(step))
  assert set(interpreter.inputs) == {'log_mel', *state}
  own_state = dict(state)
  for _ in range(3):
    part_BTF = mel_BTF[:, first : first + size]
    wanted, state = step.step(part_BTF, state)
    found = interpreter(log_mel=part_BTF, **own_state)
    own_state = {name: found[f'next_{name}'] for name in own_state}
    first += size
    np.testing.assert_allclose(
      found['probabilities'], wanted['probabilities'], atol=1e-5
    )
    for name, array in state.items():
      np.testing.assert_allclose(own_state[name], array, atol=1e-5)


def between(frames_TC):
  """A threshold a tag, well away from every frame's probability."""
  ordered_TC = np.sort(frames_TC, axis=0)
  few = len(ordered_TC) // 4
  middle_TC = ordered_TC[few:-few].astype(np.float64)
  widest_C = np.diff(middle_TC, axis=0).argmax(axis=0)
  tags_C = np.arange(frames_TC.shape[1])
  return (middle_TC[widest_C, tags_C] + middle_TC[widest_C + 1, tags_C]) / 2


@pytest.mark.slow
@pytest.mark.skipif(
  bool(litert.why_missing()), reason=litert.why_missing() or 'it is there'
)
def test_the_microphones_example_says_what_a_listener_says(
  loaded, tmp_path, monkeypatch
):
  """From raw samples in a pipe, by the exported files alone."""
  monkeypatch.setattr(examples, '_NOISE', 4)
  # As long as two steps of a convolutional tagger.
  monkeypatch.setitem(loaded.trained.metadata, 'num_samples', 80_000)
  monkeypatch.setattr(tagging, 'load', lambda _: loaded)
  wave_S = audio.to_int16(sound(8.0))
  listener = stream.Listener(loaded)
  frames_TC = np.concatenate([listener(wave_S)[0], listener.finish()[0]])
  step = listener.stream  # Without those that wait for what follows.
  steps = (798 - step.look_ahead) // step.mel_frames
  frames_TC = frames_TC[: steps * step.num_frames]
  thresholds_C = between(frames_TC)
  own = dataclasses.replace(loaded.calibration, thresholds_C=thresholds_C)
  monkeypatch.setattr(loaded, 'calibration', own)
  export.run('of the fixture', str(tmp_path / 'out'))
  example = ROOT / 'examples' / 'microphone.py'
  done = subprocess.run(
    [sys.executable, example, tmp_path / 'out', '-'],
    input=wave_S.astype('<i2').tobytes(),
    capture_output=True,
    check=True,
  )
  wanted, shown = [], None
  for t, frame_C in enumerate(frames_TC):
    present = [TAGS[c] for c in np.flatnonzero(frame_C >= thresholds_C)]
    if present != shown:
      wanted.append([f'{0.08 * t:.2f}', 's', *(present or ['no', 'tag'])])
    shown = present
  assert len(wanted) > 3
  assert [line.split() for line in done.stdout.decode().splitlines()] == wanted
