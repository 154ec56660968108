"""Log-mel spectrograms from waveforms, in JAX, on any device.

The recipe is VGGish's: frames of 25 ms every 10 ms, periodic Hann window,
magnitude of the FFT of the next power of two, triangles that are linear on
the HTK mel scale and not normalised, `log(mel + offset)`. Nothing is padded:

  frame t covers the samples [t * hop, t * hop + window), and the last frame is
  the last one that fits: 1 + (num_samples - window) // hop frames in all.

Ten seconds at 16 kHz are 998 frames. A sound that comes one hop later is the
same spectrogram one frame later.

Reference: https://github.com/tensorflow/models/blob/master/research/audioset/\
vggish/mel_features.py
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


class FrontendError(ValueError):
  """A field of a front end that is not legal.

  Attributes:
    field: its name.
    problem: 'is 0: expected …', to follow the name.
  """

  def __init__(self, field: str, problem: str):
    super().__init__(f'FrontendConfig.{field} {problem}')
    self.field, self.problem = field, problem


@dataclasses.dataclass(frozen=True)
class FrontendConfig:
  """What `log_mel` computes; hashable, so it may be a static argument.

  Attributes:
    sample_rate: of the waveform, in hertz.
    window_seconds: length of a frame.
    hop_seconds: from the start of a frame to the start of the next.
    num_mel_bands: number of triangles.
    min_hertz: lower edge of the lowest triangle.
    max_hertz: upper edge of the highest triangle.
    log_offset: added before the logarithm; silence is log(log_offset).

  Raises:
    FrontendError: where a field is outside its legal range.
  """

  sample_rate: int = 16_000
  window_seconds: float = 0.025
  hop_seconds: float = 0.010
  num_mel_bands: int = 64
  min_hertz: float = 125.0
  max_hertz: float = 7_500.0
  log_offset: float = 0.01

  def __post_init__(self):
    positive = ('sample_rate', 'window_seconds', 'hop_seconds', 'log_offset')
    for name in (*positive, 'num_mel_bands'):
      if not getattr(self, name) > 0:
        raise self._error(name, 'expected a number > 0')
    for name in ('window_seconds', 'hop_seconds'):
      if round(getattr(self, name) * self.sample_rate) < 1:
        expected = f'expected at least one sample at {self.sample_rate} Hz'
        raise self._error(name, expected)
    nyquist = self.sample_rate / 2
    if not 0 <= self.min_hertz < nyquist:
      expected = f'expected >= 0 and below half of sample_rate, {nyquist}'
      raise self._error('min_hertz', expected)
    if not self.min_hertz < self.max_hertz <= nyquist:
      expected = (
        f'expected more than min_hertz, {self.min_hertz}, and at most half of '
        f'sample_rate, {nyquist}'
      )
      raise self._error('max_hertz', expected)
    empty = np.flatnonzero(mel_matrix(self).sum(axis=0) == 0)
    if empty.size:
      expected = (
        f'expected fewer or a longer window_seconds, as the bands '
        f'{", ".join(map(str, empty[:5]))} have no frequency of the '
        f'{self.fft_length}-point FFT'
      )
      raise self._error('num_mel_bands', expected)

  def _error(self, name: str, expected: str) -> 'FrontendError':
    return FrontendError(name, f'is {getattr(self, name)}: {expected}')

  def frames_of(self, num_samples: int) -> int:
    """Number of frames of a sound; see `num_frames`."""
    if num_samples < self.window_samples:
      raise ValueError(
        f'The sound has {num_samples} samples, but one frame needs '
        f'{self.window_samples} ({self.window_seconds} s at {self.sample_rate} '
        'Hz); pad it with zeros or choose a shorter window_seconds.'
      )
    return 1 + (num_samples - self.window_samples) // self.hop_samples

  def transform(
    self,
    num_samples: int,
    full_scale: float,
    magnitudes: Callable[[jax.Array], jax.Array] | None = None,
  ) -> Callable:
    """The function from a wave [S] to its log-mel [T, F]; see `log_mel`.

    Args:
      num_samples: S.
      full_scale: the wave's largest value.
      magnitudes: from frames [T, S] to those of their Fourier transform
        [T, S / 2 + 1], for formats that lack complex numbers.
    """
    magnitudes = magnitudes or _magnitudes
    count, length = self.frames_of(num_samples), self.window_samples
    # Frames of the FFT's length; zeros of the window hide what is too much.
    hann = np.pad(window(self) / full_scale, (0, self.fft_length - length))
    weights = jnp.asarray(mel_matrix(self), jnp.float32)

    def of_wave(wave_S):
      frames_TS = frame(wave_S, count, self.fft_length, self.hop_samples)
      frames_TS = frames_TS.astype(jnp.float32) * hann[None].astype(np.float32)
      mel_TF = jnp.matmul(magnitudes(frames_TS), weights, precision='highest')
      return jnp.log(mel_TF + self.log_offset)

    return of_wave

  @property
  def window_samples(self) -> int:
    """Samples that one frame covers."""
    return round(self.window_seconds * self.sample_rate)

  @property
  def hop_samples(self) -> int:
    """Samples from one frame to the next."""
    return round(self.hop_seconds * self.sample_rate)

  @property
  def fft_length(self) -> int:
    """The smallest power of two that holds a window."""
    return 1 << (self.window_samples - 1).bit_length()


def num_frames(num_samples: int, cfg: FrontendConfig) -> int:
  """Number of frames of a sound: 1 + (num_samples - window) // hop.

  Raises:
    ValueError: where the sound is shorter than one window.
  """
  return cfg.frames_of(num_samples)


def hertz_to_mel(hertz):
  """The HTK mel scale, 1127 ln(1 + hertz / 700)."""
  return 1127.0 * np.log1p(np.asarray(hertz, np.float64) / 700.0)


@functools.lru_cache(maxsize=32)
def band_places(cfg: FrontendConfig, of: FrontendConfig) -> np.ndarray:
  """Where the centres of the bands are on the mel axis of another front end.

  Returns:
    float32 [num_mel_bands]: 0 at the lowest and 1 at the highest frequency of
    `of`; bands outside of these are below 0 or above 1.
  """
  places_F = np.arange(1, cfg.num_mel_bands + 1) / (cfg.num_mel_bands + 1)
  edges = (cfg.min_hertz, cfg.max_hertz), (of.min_hertz, of.max_hertz)
  if edges[0] != edges[1]:
    (low, high), (first, last) = (hertz_to_mel(each) for each in edges)
    places_F = (low + (high - low) * places_F - first) / (last - first)
  return places_F.astype(np.float32)


def mel_matrix(cfg: FrontendConfig) -> np.ndarray:
  """Weights [fft_length // 2 + 1, num_mel_bands] of the mel triangles.

  Each triangle is linear in mel, peaks at 1 and is not normalised; the
  constant component of the sound has no weight. Read-only float64.
  """
  bins = np.linspace(0.0, cfg.sample_rate / 2, cfg.fft_length // 2 + 1)
  weights = triangles(bins, cfg.min_hertz, cfg.max_hertz, cfg.num_mel_bands)
  weights[0] = 0.0
  weights.flags.writeable = False
  return weights


def triangles(
  bins: np.ndarray, min_hertz: float, max_hertz: float, num_bands: int
) -> np.ndarray:
  """Weights [len(bins), num_bands] of frequencies in hertz; see above."""
  bins_mel = hertz_to_mel(bins)[:, None]
  low, high = hertz_to_mel((min_hertz, max_hertz))
  edges = np.linspace(low, high, num_bands + 2)[None]
  lower, centre, upper = edges[:, :-2], edges[:, 1:-1], edges[:, 2:]
  rise = (bins_mel - lower) / (centre - lower)
  fall = (upper - bins_mel) / (upper - centre)
  return np.maximum(0.0, np.minimum(rise, fall))


def window(cfg: FrontendConfig) -> np.ndarray:
  """The periodic Hann window of a frame, float64 [window_samples]."""
  length = cfg.window_samples
  return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)


def frame(wave_S: jax.Array, count: int, length: int, hop: int) -> jax.Array:
  """Overlapping frames [count, length]; frame t starts at sample t * hop.

  Zeros stand for samples past the end. A frame is made of neighbouring hops,
  which are cut without a gather: on the CPU several times faster than one of
  samples, and every format that a model is exported to has it.
  """
  pieces = -(-length // hop)
  total = (count + pieces - 1) * hop
  if wave_S.shape[0] < total:
    wave_S = jnp.pad(wave_S, (0, total - wave_S.shape[0]))
  hops = wave_S[:total].reshape(-1, hop)
  parts = [hops[i : i + count] for i in range(pieces)]
  return jnp.concatenate(parts, axis=1)[:, :length]


def _magnitudes(frames_TS: jax.Array) -> jax.Array:
  return jnp.abs(jnp.fft.rfft(frames_TS))


def log_mel(wave_BS: jax.Array, cfg: FrontendConfig) -> jax.Array:
  """Log-mel spectrogram of each wave.

  Args:
    wave_BS: int16 [B, S], or float [B, S] in [-1, 1], at `cfg.sample_rate`.
    cfg: the front end.

  Returns:
    mel_BTF: float32 [B, num_frames(S, cfg), num_mel_bands], natural logarithm
    of magnitudes; frame t covers the samples [t * hop, t * hop + window).

  Raises:
    ValueError: where the waves are not [B, S], are neither int16 nor float,
      or are shorter than one window.
  """
  if wave_BS.ndim != 2:
    raise ValueError(
      f'wave_BS has shape {wave_BS.shape}; expected [clips, samples].'
    )
  if wave_BS.dtype == jnp.int16:
    full_scale = 32_768.0
  elif jnp.issubdtype(wave_BS.dtype, jnp.floating):
    full_scale = 1.0
  else:
    raise ValueError(
      f'wave_BS has dtype {wave_BS.dtype}; expected int16, or float in [-1, 1].'
    )
  batch, samples = wave_BS.shape
  one = cfg.transform(samples, full_scale)
  # A clip fits into the CPU's cache, a batch does not: three times as fast.
  # (An exported model has one clip or an unknown number: no loop there.)
  in_turn = jax.default_backend() == 'cpu' and isinstance(batch, int)
  if in_turn and batch > 1:
    return jax.lax.map(one, wave_BS)
  return jax.vmap(one)(wave_BS)
