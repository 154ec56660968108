"""The street behind the sources: coloured noise and sounds without a tag."""

import numpy as np
from scipy import fft

from tfds_dcase.urban_scenes.synthesis import dsp


def coloured_noise(
  rng,
  num_samples: int,
  slope: float,
  hump: tuple[float, float, float],
  rate: int = dsp.SAMPLE_RATE,
) -> np.ndarray:
  """Noise whose power falls by `slope` times 3 dB an octave. [S]

  Args:
    rng: random generator.
    num_samples: length.
    slope: 0 is white, 1 pink, 2 brown; flat below 40 Hz.
    hump: centre in Hz, width in octaves and height (relative amplitude) of a
      broad hump in the spectrum.
    rate: in Hz.

  Returns:
    float32 of unit power.
  """
  size = num_samples // 2 + 1
  frequency = np.linspace(0, rate / 2, size, dtype=np.float32)
  octaves = np.log2(np.maximum(frequency, np.float32(40)))
  center, width, height = hump
  away = (octaves - np.float32(np.log2(center))) / np.float32(width)
  gain = np.exp2(np.float32(-slope / 2) * octaves)
  gain *= 1 + np.float32(height) * np.exp(np.float32(-0.5) * away**2)
  spectrum = rng.standard_normal(2 * size, dtype=np.float32).view(np.complex64)
  wave = np.asarray(fft.irfft(spectrum * gain, num_samples))
  return wave / np.sqrt(np.mean(np.square(wave)))


def street(rng, num_samples: int) -> np.ndarray:
  """Street noise of unit power: coloured, slowly swelling, some hum. [S]"""
  hump = (
    dsp.log_uniform(rng, 200, 4000),
    rng.uniform(0.5, 2),
    rng.uniform(0, 4),
  )
  wave = coloured_noise(rng, num_samples, rng.uniform(0.8, 1.9), hump)
  swell = np.exp(0.35 * dsp.drift(rng, num_samples, rng.uniform(0.3, 1.2)))
  wave = wave * swell
  if rng.random() < 0.5:
    pitch = rng.choice([59.9, 119.8, 179.7, rng.uniform(70, 400)])
    hum = dsp.harmonics(rng, np.full(num_samples, pitch), 1.5, 1500)
    wave = wave + rng.uniform(0.1, 0.6) * hum
  return wave / np.sqrt(np.mean(wave**2))


def bird(rng, num_samples: int) -> np.ndarray:
  """Chirps of one bird. [S]"""
  length = dsp.seconds(rng.uniform(0.05, 0.2))
  low = rng.uniform(2000, 4500)
  ramp = np.linspace(0, rng.uniform(0.5, 3), length)
  pitch = low * (1 + 0.3 * np.sin(2 * np.pi * ramp + rng.uniform(0, 6)))
  chirp = np.sin(2 * np.pi * dsp.cycles(pitch)) * np.hanning(length)
  rate = rng.uniform(1.5, 6)
  wave = dsp.repeat(rng, num_samples, chirp, rate, 0.05, 0.3)
  return wave * dsp.gate(rng, num_samples, (0.5, 2), (0.5, 3))


def wind(rng, num_samples: int) -> np.ndarray:
  """Gusts in the microphone. [S]"""
  wave = dsp.band(dsp.noise(rng, num_samples), 0, rng.uniform(80, 250))
  return wave * np.maximum(dsp.drift(rng, num_samples, 2), 0) ** 2


def rain(rng, num_samples: int) -> np.ndarray:
  """Hiss with drops. [S]"""
  hiss = dsp.band(dsp.noise(rng, num_samples), 1500, 7900)
  drops = rng.random(num_samples, dtype=np.float32) > 0.9995
  decay = np.exp(-np.arange(100) / 20).astype(np.float32)
  grains = dsp.noise(rng, num_samples) * drops
  return hiss + 8 * np.convolve(grains, decay)[:num_samples]


def footsteps(rng, num_samples: int) -> np.ndarray:
  """Someone walks past. [S]"""
  length = dsp.seconds(0.06)
  step = dsp.noise(rng, length) * np.exp(-np.arange(length) / 150)
  step = dsp.band(step, 200, rng.uniform(1500, 5000))
  rate = rng.uniform(1.5, 2.3)
  return dsp.repeat(rng, num_samples, step, rate, 0.02, 0.3)


UNTAGGED = (bird, wind, rain, footsteps)
