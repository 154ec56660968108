"""The log-mel of EfficientAT's taggers, for sound at 16 or 32 kHz.

The recipe at 32 kHz: pre-emphasis `y[t] = x[t + 1] - .97 x[t]`; frames of 1024
samples every 320, centred, reflected at both ends, under a symmetric Hann
window of 800 samples in their middle; power of the FFT; 128 triangles linear
in mel from 0 to 15,000 Hz, as Kaldi's; `(log(mel + 1e-5) + 4.5) / 5`:

  frame t is centred on the sample 320 t, 1 + (samples - 1) // 320 frames in
  all, 1000 of ten seconds.

Sound at 16 kHz is resampled here, so that a model that takes this log-mel is
used like any other; what it has nothing of, above 8 kHz, stays empty.

Reference: https://github.com/fschmid56/EfficientAT/blob/main/models/\
preprocess.py
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend

RATE = 32_000  # Hz, of the model.
_FFT_LENGTH = 1024
_WINDOW = 800  # Samples.
_HOP = 320  # Samples.
_EDGE = 512  # Zeros around a sound that is resampled: the FFT takes it round.


@dataclasses.dataclass(frozen=True)
class KaldiMelConfig(frontend.FrontendConfig):
  """See the module; `sample_rate` is that of the waves, 16,000 or 32,000 Hz.

  The other fields are the recipe's and cannot be changed.
  """

  num_mel_bands: int = 128
  min_hertz: float = 0.0
  max_hertz: float = 15_000.0
  log_offset: float = 1e-5

  def __post_init__(self):
    if self.sample_rate not in (RATE // 2, RATE):
      raise self._error('sample_rate', f'expected {RATE // 2} or {RATE}')
    for field in dataclasses.fields(self):
      name, only = field.name, field.default
      if name != 'sample_rate' and getattr(self, name) != only:
        raise self._error(name, f'expected {only}, as the model needs it')

  def frames_of(self, num_samples: int) -> int:
    """Number of frames of a sound."""
    upsampled = num_samples * RATE // self.sample_rate
    if upsampled < _FFT_LENGTH:
      raise ValueError(
        f'The sound has {num_samples} samples at {self.sample_rate} Hz, but '
        f'one frame needs {_FFT_LENGTH} at {RATE}; pad it with zeros.'
      )
    return 1 + (upsampled - 1) // _HOP

  def transform(self, num_samples: int, full_scale: float) -> Callable:
    """The function from a wave [S] to its log-mel [T, F]."""
    count = self.frames_of(num_samples)
    hann, weights = _window(), _mel_matrix(self)

    def of_wave(wave_S):
      wave_S = wave_S.astype(jnp.float32) / full_scale
      if self.sample_rate != RATE:
        wave_S = upsample(wave_S)
      wave_S = wave_S[1:] - 0.97 * wave_S[:-1]
      wave_S = jnp.pad(wave_S, _FFT_LENGTH // 2, 'reflect')
      frames_TS = frontend.frame(wave_S, count, _FFT_LENGTH, _HOP)
      spectrum = jnp.fft.rfft(frames_TS * hann[None])
      power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
      mel_TF = jnp.matmul(power, weights, precision='highest')
      return (jnp.log(mel_TF + self.log_offset) + 4.5) / 5.0

    return of_wave


def upsample(wave_S: jax.Array) -> jax.Array:
  """A wave [S] at twice its rate, [2 S]: exact below half of the old rate."""
  num_samples = wave_S.shape[0]
  wave_S = jnp.pad(wave_S, _EDGE)
  spectrum = 2.0 * jnp.fft.rfft(wave_S)
  wave_S = jnp.fft.irfft(spectrum, 2 * wave_S.shape[0])
  return wave_S[2 * _EDGE :][: 2 * num_samples]


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
