"""EfficientAT's log-mel: against its recipe in float64, and golden numbers."""

import itertools

import jax
import numpy as np
import pytest
import soxr

from iusp_jax.audio import frontend
from iusp_jax.audio.kaldi_mel import RATE, KaldiMelConfig, resample
from iusp_jax.models import tagger

AT_32 = KaldiMelConfig(sample_rate=32_000)
# Log-mel of ten seconds of `sound`, by frame and band.
GOLDEN = {
  (0, 0): 0.29958,
  (0, 64): 0.34709,
  (100, 20): -0.34826,
  (500, 3): -1.25067,
  (500, 60): 0.33404,
  (731, 100): 1.15676,
  (999, 127): 1.43347,
}
GOLDEN_MEAN = 0.43394

log_mel = jax.jit(frontend.log_mel, static_argnums=1)


def sound(samples, seed=0):
  """Noise under a rising tone, float32 in [-1, 1]."""
  time_S = np.arange(samples) / RATE
  tone_S = np.sin(2 * np.pi * (200 + 300 * time_S) * time_S)
  noise_S = np.random.default_rng(seed).random(samples) - 0.5
  return (0.3 * tone_S + 0.1 * noise_S).astype(np.float32)


def reference(wave_S):
  """The recipe, frame by frame with an explicit DFT, in float64."""
  wave_S = np.asarray(wave_S, np.float64)
  wave_S = np.array([b - 0.97 * a for a, b in itertools.pairwise(wave_S)])
  padded_S = np.concatenate([wave_S[512:0:-1], wave_S, wave_S[-2:-514:-1]])
  n = np.arange(800)
  hann = np.sin(np.pi * n / 799) ** 2
  k = np.arange(513)
  dft = np.exp(-2j * np.pi * np.outer(n, k) / 1024)
  mel = 1127 * np.log(1 + k * (32_000 / 1024) / 700)
  step = 1127 * np.log(1 + 15_000 / 700) / 129
  weights = np.array(
    [np.maximum(0, 1 - np.abs(mel / step - band)) for band in range(1, 129)]
  )
  frames = []
  for start in range(0, len(padded_S) - 1023, 320):
    spectrum = (padded_S[start + 112 : start + 912] * hann) @ dft
    frames.append(np.log(weights @ np.abs(spectrum) ** 2 + 1e-5))
  return (np.array(frames) + 4.5) / 5


def test_log_mel_is_that_of_the_recipe():
  wave_S = sound(4_000)
  found_TF = log_mel(wave_S[None], AT_32)[0]
  expected_TF = reference(wave_S)
  assert found_TF.shape == expected_TF.shape == (13, 128)
  np.testing.assert_allclose(found_TF, expected_TF, atol=1e-4)


def test_golden_numbers():
  """Computed once, when the tagger agreed with the original program."""
  found_TF = np.asarray(log_mel(sound(320_000)[None], AT_32)[0])
  assert found_TF.shape == (1000, 128)
  for (t, band), value in GOLDEN.items():
    assert found_TF[t, band] == pytest.approx(value, abs=3e-4)
  assert found_TF.mean() == pytest.approx(GOLDEN_MEAN, abs=3e-4)


def test_ten_seconds_are_a_thousand_frames_at_either_rate():
  assert frontend.num_frames(320_000, AT_32) == 1000
  assert frontend.num_frames(160_000, KaldiMelConfig()) == 1000
  mel = jax.eval_shape(
    lambda x: frontend.log_mel(x, KaldiMelConfig()),
    jax.ShapeDtypeStruct((2, 160_000), np.int16),
  )
  assert mel.shape == (2, 1000, 128)


@pytest.mark.parametrize(
  ('rate', 'band'), [(8_000, 75), (16_000, 100), (44_100, 127), (48_000, 127)]
)
def test_sound_at_another_rate_gives_what_it_gives_resampled(rate, band):
  wave_S = soxr.resample(sound(64_000), 32_000, rate, quality='VHQ')
  at_32_S = soxr.resample(wave_S, rate, 32_000, quality='VHQ')
  config = KaldiMelConfig(sample_rate=rate)
  ours_TF = log_mel(wave_S[None], config)[0]
  theirs_TF = log_mel(at_32_S[None], AT_32)[0]
  assert ours_TF.shape == theirs_TF.shape == (200, 128)
  # Resamplers differ just below half of the rate: 3.5, 7 and 15 kHz.
  difference_TF = np.abs(ours_TF - theirs_TF)[2:-2, :band]
  assert difference_TF.max() < 0.02


def test_doubling_the_rate_keeps_every_sample():
  wave_S = soxr.resample(sound(64_000), 32_000, 16_000, quality='VHQ')
  np.testing.assert_allclose(
    resample(wave_S, 16_000)[100:-100:2], wave_S[50:-50], atol=1e-5
  )


@pytest.mark.parametrize('rate', [8_000, 16_000, 44_100, 48_000])
def test_resampling_keeps_a_tone_and_its_time(rate):
  def tone(at):
    time_S = np.arange(at) / at
    return np.sin(2 * np.pi * 1_234 * time_S).astype(np.float32)

  found_S = np.asarray(resample(tone(rate), rate))
  assert found_S.shape == (32_000,)
  np.testing.assert_allclose(
    found_S[3200:-3200], tone(32_000)[3200:-3200], atol=2e-3
  )


def test_int16_is_the_same_sound():
  wave_S = (sound(8_000) * 32_768).astype(np.int16)
  one_TF = log_mel(wave_S[None], AT_32)[0]
  other_TF = log_mel((wave_S / 32_768).astype(np.float32)[None], AT_32)[0]
  np.testing.assert_allclose(one_TF, other_TF, atol=1e-5)


def test_what_cannot_be_is_refused():
  with pytest.raises(ValueError, match='sample_rate is 96000: expected from'):
    KaldiMelConfig(sample_rate=96_000)
  with pytest.raises(ValueError, match='num_mel_bands is 64: expected 128'):
    KaldiMelConfig(num_mel_bands=64)
  with pytest.raises(ValueError, match='has 500 samples at 16000 Hz'):
    frontend.num_frames(500, KaldiMelConfig())
  fields = {'model': {'architecture': 'cnn'}, 'frontend': {'kind': 'kaldi'}}
  with pytest.raises(ValueError, match="Did you mean 'kaldi_mel'"):
    tagger.build(fields, 1)
