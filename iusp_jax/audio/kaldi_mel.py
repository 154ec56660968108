"""The log-mel of EfficientAT's taggers, for sound at any rate.

The recipe at 32 kHz: pre-emphasis `y[t] = x[t + 1] - .97 x[t]`; frames of 1024
samples every 320, centred, reflected at both ends, under a symmetric Hann
window of 800 samples in their middle; power of the FFT; 128 triangles linear
in mel from 0 to 15,000 Hz, as Kaldi's; `(log(mel + 1e-5) + 4.5) / 5`:

  frame t is centred on the sample 320 t, 1 + (samples - 1) // 320 frames in
  all, 1000 of ten seconds.

Sound at another rate is resampled here, so that a model that takes this log-mel
is used like any other; what it has nothing of, above half of its rate, stays
empty.

Reference: https://github.com/fschmid56/EfficientAT/blob/main/models/\
preprocess.py
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend

RATE = 32_000  # Hz, of the model.
_RATES = (8_000, 48_000)  # Hz, of sound; between them as well.
_FFT_LENGTH = 1024
_WINDOW = 800  # Samples.
_HOP = 320  # Samples.
_EDGE = 512  # Zeros around a sound that is resampled: the FFT takes it round.


@dataclasses.dataclass(frozen=True)
class KaldiMelConfig(frontend.FrontendConfig):
  """See the module; `sample_rate` is that of the waves, from 8 to 48 kHz.

  The other fields are the recipe's and cannot be changed.
  """

  num_mel_bands: int = 128
  min_hertz: float = 0.0
  max_hertz: float = 15_000.0
  log_offset: float = 1e-5

  def __post_init__(self):
    low, high = _RATES
    if self.sample_rate != int(self.sample_rate) or not (
      low <= self.sample_rate <= high
    ):
      raise self._error('sample_rate', f'expected from {low} to {high}, whole')
    for field in dataclasses.fields(self):
      name, only = field.name, field.default
      if name != 'sample_rate' and getattr(self, name) != only:
        raise self._error(name, f'expected {only}, as the model needs it')

  def frames_of(self, num_samples: int) -> int:
    """Number of frames of a sound."""
    resampled = num_samples * RATE // self.sample_rate
    if resampled < _FFT_LENGTH:
      raise ValueError(
        f'The sound has {num_samples} samples at {self.sample_rate} Hz, but '
        f'one frame needs {_FFT_LENGTH} at {RATE}; pad it with zeros.'
      )
    return 1 + (resampled - 1) // _HOP

  def transform(self, num_samples: int, full_scale: float) -> Callable:
    """The function from a wave [S] to its log-mel [T, F]."""
    count = self.frames_of(num_samples)
    hann, weights = _window(), _mel_matrix(self)

    def of_wave(wave_S):
      wave_S = wave_S.astype(jnp.float32) / full_scale
      if self.sample_rate != RATE:
        wave_S = resample(wave_S, self.sample_rate)
      wave_S = wave_S[1:] - 0.97 * wave_S[:-1]
      wave_S = jnp.pad(wave_S, _FFT_LENGTH // 2, 'reflect')
      frames_TS = frontend.frame(wave_S, count, _FFT_LENGTH, _HOP)
      spectrum = jnp.fft.rfft(frames_TS * hann[None])
      power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
      mel_TF = jnp.matmul(power, weights, precision='highest')
      return (jnp.log(mel_TF + self.log_offset) + 4.5) / 5.0

    return of_wave


def resample(wave_S: jax.Array, rate: int) -> jax.Array:
  """A wave [S] of some rate at `RATE`, [S * RATE // rate].

  Exact below half of the lower rate; nothing above it is left.
  """
  num_samples = wave_S.shape[0]
  up, down = RATE // math.gcd(RATE, rate), rate // math.gcd(RATE, rate)
  # Edges and the whole are multiples of `down`, and end at whole samples.
  edge = -(-_EDGE // down) * down
  wave_S = jnp.pad(wave_S, (edge, edge + -num_samples % down))
  spectrum = up / down * jnp.fft.rfft(wave_S)
  length = wave_S.shape[0] // down * up
  wave_S = jnp.fft.irfft(spectrum[: length // 2 + 1], length)
  return wave_S[edge // down * up :][: num_samples * RATE // rate]


@functools.cache
def _window() -> np.ndarray:
  """The window, with the zeros around it: float32 [_FFT_LENGTH]."""
  around = (_FFT_LENGTH - _WINDOW) // 2
  return np.pad(np.hanning(_WINDOW), around).astype(np.float32)


@functools.cache
def _mel_matrix(cfg: KaldiMelConfig) -> np.ndarray:
  """Weights float32 [_FFT_LENGTH // 2 + 1, num_mel_bands]."""
  bins = np.linspace(0.0, RATE / 2, _FFT_LENGTH // 2 + 1)
  weights = frontend.triangles(
    bins, cfg.min_hertz, cfg.max_hertz, cfg.num_mel_bands
  )
  return weights.astype(np.float32)
