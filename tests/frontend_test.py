"""The front end against float64 NumPy, librosa and its own laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iusp_jax.audio import frontend
from iusp_jax.audio.frontend import FrontendConfig

CONFIGS = [
  FrontendConfig(),
  FrontendConfig(num_mel_bands=20),
  FrontendConfig(
    sample_rate=8_000,
    window_seconds=0.032,
    hop_seconds=0.02,
    num_mel_bands=12,
    max_hertz=4_000.0,
    log_offset=1e-3,
  ),
]


log_mel = jax.jit(frontend.log_mel, static_argnums=1)


def noise(clips=2, samples=4_000, seed=0):
  rng = np.random.default_rng(seed)
  tone = np.sin(2 * np.pi * 0.05 * np.arange(samples))
  return 0.1 * rng.standard_normal((clips, samples)) + 0.3 * tone


def triangles(cfg):
  """Mel weights [bins, bands], one scalar at a time."""

  def mel(hertz):
    return 2595.0 * np.log10(1.0 + hertz / 700.0)

  step = (mel(cfg.max_hertz) - mel(cfg.min_hertz)) / (cfg.num_mel_bands + 1)
  weights = np.zeros((cfg.fft_length // 2 + 1, cfg.num_mel_bands))
  for k in range(1, len(weights)):
    for band in range(cfg.num_mel_bands):
      centre = mel(cfg.min_hertz) + (band + 1) * step
      distance = abs(mel(k * cfg.sample_rate / cfg.fft_length) - centre)
      weights[k, band] = max(0.0, 1.0 - distance / step)
  return weights


def reference(wave_BS, cfg):
  """Log-mel in float64, frame by frame, with an explicit DFT."""
  window = round(cfg.window_seconds * cfg.sample_rate)
  hop = round(cfg.hop_seconds * cfg.sample_rate)
  n = np.arange(window)
  hann = np.sin(np.pi * n / window) ** 2
  k = np.arange(cfg.fft_length // 2 + 1)
  dft = np.exp(-2j * np.pi * np.outer(n, k) / cfg.fft_length)
  weights = triangles(cfg)
  clips = []
  for wave in wave_BS:
    starts = range(0, len(wave) - window + 1, hop)
    rows = [abs((wave[s : s + window] * hann) @ dft) for s in starts]
    clips.append(np.log(np.array(rows) @ weights + cfg.log_offset))
  return np.array(clips)


@pytest.mark.parametrize('cfg', CONFIGS)
def test_agrees_with_float64(cfg):
  wave = noise()
  got = log_mel(jnp.asarray(wave, jnp.float32), cfg)
  expected = reference(wave, cfg)
  assert got.dtype == jnp.float32
  assert got.shape == expected.shape
  # Relative error of the magnitudes: the logarithm crosses zero.
  np.testing.assert_allclose(np.exp(got), np.exp(expected), rtol=1e-4)


@pytest.mark.slow  # Importing librosa takes seconds; float64 is tested above.
def test_agrees_with_librosa():
  librosa = pytest.importorskip('librosa')
  cfg = FrontendConfig()
  wave = noise(1)[0]
  # librosa centres the window of 400 in the FFT of 512: 56 zeros before it.
  spectrum = librosa.stft(
    np.pad(wave, 56),
    n_fft=512,
    hop_length=160,
    win_length=400,
    window='hann',
    center=False,
  )
  mel = np.abs(spectrum).T @ triangles(cfg)
  got = frontend.log_mel(jnp.asarray(wave[None], jnp.float32), cfg)[0]
  expected = np.log(mel + cfg.log_offset)
  np.testing.assert_allclose(np.exp(got), np.exp(expected), rtol=1e-4)


@pytest.mark.slow
def test_triangles_lie_where_those_of_librosa_lie():
  librosa = pytest.importorskip('librosa')
  cfg = FrontendConfig(num_mel_bands=20)
  other = librosa.filters.mel(
    sr=16_000, n_fft=512, n_mels=20, fmin=125, fmax=7_500, htk=True, norm=None
  ).T
  # librosa's sides are straight in hertz, VGGish's in mel: near, not equal.
  np.testing.assert_allclose(frontend.mel_matrix(cfg), other, atol=0.1)


def test_int16_is_scaled():
  wave = np.round(noise() * 10_000).astype(np.int16)
  whole = log_mel(jnp.asarray(wave), FrontendConfig())
  expected = reference(wave / 32_768.0, FrontendConfig())
  np.testing.assert_allclose(np.exp(whole), np.exp(expected), rtol=1e-4)


@settings(max_examples=12)
@given(samples=st.integers(400, 1_400), hop=st.integers(50, 500))
def test_number_of_frames_and_what_they_cover(samples, hop):
  cfg = FrontendConfig(hop_seconds=hop / 16_000)
  wave = np.zeros((1, samples), np.float32)
  starts = list(range(0, samples - 400 + 1, hop))
  assert frontend.num_frames(samples, cfg) == len(starts)
  # A click is in exactly the frames whose window covers it; not at the very
  # ends of a window, where it is as good as zero.
  click = samples // 2
  wave[0, click] = 1.0
  mel = np.asarray(log_mel(jnp.asarray(wave), cfg))[0]
  louder = (mel - np.log(cfg.log_offset)).max(axis=1)
  for start, level in zip(starts, louder, strict=True):
    if start + 20 <= click < start + 380:
      assert level > 1e-2
    elif not start <= click < start + 400:
      assert level < 1e-5


def test_a_hop_later_is_a_frame_later():
  cfg = FrontendConfig()
  wave = jnp.asarray(noise(samples=8_000), jnp.float32)
  late = jnp.pad(wave, ((0, 0), (3 * 160, 0)))
  np.testing.assert_allclose(
    log_mel(late, cfg)[:, 3:], log_mel(wave, cfg), atol=1e-5
  )


def test_ten_seconds_are_998_frames():
  mel = jax.eval_shape(
    lambda wave: frontend.log_mel(wave, FrontendConfig()),
    jax.ShapeDtypeStruct((1, 160_000), jnp.int16),
  )
  assert mel.shape == (1, 998, 64)


def test_silence_is_finite_and_so_is_its_gradient():
  cfg = FrontendConfig()
  silence = jnp.zeros((1, 800))
  np.testing.assert_allclose(
    frontend.log_mel(silence, cfg), np.log(0.01), rtol=1e-6
  )
  gradient = jax.jit(jax.grad(lambda wave: frontend.log_mel(wave, cfg).sum()))(
    silence
  )
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
  ('wave', 'message'),
  [
    (np.zeros((1, 399), np.float32), '399 samples.*400'),
    (np.zeros(800, np.float32), 'clips, samples'),
    (np.zeros((1, 800), np.int32), 'int32.*int16'),
  ],
)
def test_refuses_waves(wave, message):
  with pytest.raises(ValueError, match=message):
    frontend.log_mel(jnp.asarray(wave), FrontendConfig())


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('sample_rate', 0),
    ('sample_rate', 8_000),
    ('window_seconds', 0.0),
    ('window_seconds', 1e-6),
    ('hop_seconds', -0.01),
    ('hop_seconds', 1e-6),
    ('num_mel_bands', 0),
    ('num_mel_bands', 500),
    ('min_hertz', 8_000.0),
    ('min_hertz', -1.0),
    ('max_hertz', 9_000.0),
    ('log_offset', 0.0),
  ],
)
def test_refuses_configs(field, value):
  with pytest.raises(ValueError, match=field):
    FrontendConfig(**{field: value})


def test_compiled_with_its_config_it_is_the_same():
  wave = jnp.asarray(noise(), jnp.float32)
  cfg = FrontendConfig()
  np.testing.assert_allclose(
    log_mel(wave, cfg), frontend.log_mel(wave, FrontendConfig()), atol=1e-5
  )
