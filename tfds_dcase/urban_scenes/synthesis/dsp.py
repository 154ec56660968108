"""Building blocks of the synthesised sources, all at 16 kHz.

Every function is pure but for the random generator that it is handed, and
returns float32. Levels are arbitrary: the mixer scales each source.
"""

import functools

import numpy as np
from scipy import signal

SAMPLE_RATE = 16000
TABLE_SIZE = 1024


def seconds(duration: float) -> int:
  """Samples of a duration in seconds, at least one."""
  return max(1, int(duration * SAMPLE_RATE))


def drift(rng, num_samples: int, knots_per_second: float) -> np.ndarray:
  """A slow random curve in [-1, 1]: random knots, joined by lines. [S]"""
  num_knots = max(2, int(num_samples / SAMPLE_RATE * knots_per_second) + 2)
  knots = rng.uniform(-1, 1, num_knots)
  grid = np.linspace(0, num_knots - 1, num_samples)
  return np.interp(grid, np.arange(num_knots), knots).astype(np.float32)


def cycles(frequency_S) -> np.ndarray:
  """The phase, in cycles, of a frequency in Hz that varies by sample. [S]"""
  return np.cumsum(np.asarray(frequency_S, np.float64)) / SAMPLE_RATE


def harmonic_table(rng, amplitudes) -> np.ndarray:
  """One period with these harmonic amplitudes and random phases. [table]"""
  spectrum = np.zeros(TABLE_SIZE // 2 + 1, np.complex128)
  count = min(len(amplitudes), TABLE_SIZE // 2 - 1)
  phases = rng.uniform(0, 2 * np.pi, count)
  spectrum[1 : count + 1] = np.asarray(amplitudes)[:count] * np.exp(1j * phases)
  table = np.fft.irfft(spectrum)
  return (table / np.abs(table).max()).astype(np.float32)


def play(table, phase_S) -> np.ndarray:
  """Reads a one-period table at a phase in cycles. [S]"""
  index = (phase_S * TABLE_SIZE).astype(np.int64) % TABLE_SIZE
  return table[index]


def harmonics(rng, frequency_S, tilt: float, ceiling: float = 7000.0):
  """A harmonic stack whose amplitudes fall as n^-tilt, free of aliases. [S]

  Each harmonic is also scaled at random, so that no two sources of a class
  share a timbre.
  """
  frequency_S = np.asarray(frequency_S, np.float64)
  count = int(np.clip(ceiling / max(frequency_S.max(), 1.0), 1, 200))
  numbers = np.arange(1, count + 1)
  amplitudes = numbers**-tilt * rng.lognormal(0.0, 0.5, count)
  return play(harmonic_table(rng, amplitudes), cycles(frequency_S))


def noise(rng, num_samples: int) -> np.ndarray:
  """White Gaussian noise of unit variance. [S]"""
  return rng.standard_normal(num_samples, dtype=np.float32)


@functools.lru_cache(maxsize=512)
def _band_sections(low: int, high: int):
  if low <= 0:
    return signal.butter(2, high, 'lowpass', fs=SAMPLE_RATE, output='sos')
  if high >= SAMPLE_RATE // 2 - 100:
    return signal.butter(2, low, 'highpass', fs=SAMPLE_RATE, output='sos')
  return signal.butter(1, [low, high], 'bandpass', fs=SAMPLE_RATE, output='sos')


def band(wave_S, low: float, high: float) -> np.ndarray:
  """Keeps low..high Hz; `low` 0 is a low-pass, `high` 8000 a high-pass. [S]

  The edges are rounded to about 3 %, so that filters can be kept.
  """
  low, high = _rounded(low), _rounded(min(high, 7900.0))
  high = max(high, low + 20)
  filtered_S = signal.sosfilt(_band_sections(low, high), wave_S)
  return np.asarray(filtered_S, np.float32)


def _rounded(frequency: float) -> int:
  if frequency <= 0:
    return 0
  steps = np.log(frequency / 20) / np.log(1.03)
  return round(20 * 1.03 ** round(steps))


def resonate(wave_S, frequencies, bandwidths, gains) -> np.ndarray:
  """A sum of two-pole resonators, as formants or a ringing body. [S]"""
  result = np.zeros(len(wave_S), np.float32)
  for frequency, width, gain in zip(
    frequencies, bandwidths, gains, strict=True
  ):
    radius = np.exp(-np.pi * width / SAMPLE_RATE)
    angle = 2 * np.pi * min(frequency, 7800.0) / SAMPLE_RATE
    poles = [1.0, -2 * radius * np.cos(angle), radius**2]
    scale = gain * (1 - radius)
    result += np.asarray(signal.lfilter([scale], poles, wave_S), np.float32)
  return result


def modes(rng, frequencies, decays, num_samples: int) -> np.ndarray:
  """A struck body: decaying sinusoids, decay times in seconds to 1/e. [S]"""
  time_S = np.arange(num_samples, dtype=np.float32) / SAMPLE_RATE
  frequencies = np.minimum(np.asarray(frequencies, np.float32), 7600.0)
  phases = rng.uniform(0, 2 * np.pi, len(frequencies)).astype(np.float32)
  gains = rng.lognormal(0.0, 0.6, len(frequencies)).astype(np.float32)
  waves = np.sin(
    2 * np.pi * frequencies[:, None] * time_S[None, :] + phases[:, None]
  )
  waves *= np.exp(-time_S[None, :] / np.asarray(decays, np.float32)[:, None])
  return (gains[:, None] * waves).sum(0).astype(np.float32)


def fade(wave_S, attack: float = 0.005, release: float = 0.01) -> np.ndarray:
  """The wave with linear ramps of so many seconds at its ends. [S]"""
  wave_S = np.array(wave_S, np.float32)
  rise = min(seconds(attack), len(wave_S))
  wave_S[:rise] *= np.linspace(0, 1, rise, dtype=np.float32)
  fall = min(seconds(release), len(wave_S))
  wave_S[-fall:] *= np.linspace(1, 0, fall, dtype=np.float32)
  return wave_S


def place(num_samples: int, events, onsets, gains=None) -> np.ndarray:
  """Adds short waves at onsets given in samples; what runs over is cut. [S]"""
  result = np.zeros(num_samples, np.float32)
  gains = np.ones(len(onsets)) if gains is None else gains
  for event, onset, gain in zip(events, onsets, gains, strict=True):
    stop = min(num_samples, onset + len(event))
    if onset < stop:
      result[onset:stop] += np.float32(gain) * event[: stop - onset]
  return result


def repeat(
  rng,
  num_samples: int,
  event,
  rate: float,
  jitter: float = 0.0,
  gain_spread: float = 0.0,
  first: float = 0.0,
) -> np.ndarray:
  """The same event again and again, `rate` times a second. [S]

  Args:
    rng: random generator.
    num_samples: length of the result.
    event: the wave that is repeated. [any]
    rate: events per second.
    jitter: standard deviation of each onset, in periods.
    gain_spread: standard deviation of the log of each event's gain.
    first: onset of the first event in seconds.
  """
  count = int(num_samples / SAMPLE_RATE * rate) + 2
  times = (
    first + (np.arange(count) + jitter * rng.standard_normal(count)) / rate
  )
  onsets = (np.maximum(times, 0) * SAMPLE_RATE).astype(int)
  gains = np.exp(gain_spread * rng.standard_normal(count))
  return place(num_samples, [event] * count, onsets, gains)


def gate(rng, num_samples: int, on: tuple, off: tuple) -> np.ndarray:
  """A smooth on/off envelope; spans in seconds are drawn from ranges. [S]"""
  envelope = np.zeros(num_samples, np.float32)
  position = 0
  while position < num_samples:
    length = seconds(rng.uniform(*on))
    envelope[position : position + length] = 1
    position += length + seconds(rng.uniform(*off))
  kernel = np.hanning(seconds(0.03))
  return signal.oaconvolve(
    envelope, (kernel / kernel.sum()).astype(np.float32), mode='same'
  ).astype(np.float32)


def log_uniform(rng, low: float, high: float) -> float:
  """One draw, uniform on a log scale."""
  return float(np.exp(rng.uniform(np.log(low), np.log(high))))
