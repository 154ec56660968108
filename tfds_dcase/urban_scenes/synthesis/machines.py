"""Engines, machinery, saws and struck objects."""

import numpy as np

from tfds_dcase.urban_scenes.synthesis import dsp


def _engine(rng, num_samples, low, high, tilt, ceiling, swing):
  """Firing pulses at a drifting rate, uneven from cylinder to cylinder."""
  base = dsp.log_uniform(rng, low, high)
  curve = 1 + swing * dsp.drift(rng, num_samples, rng.uniform(0.4, 1.5))
  curve = curve + 0.01 * dsp.drift(rng, num_samples, 15)
  pitch = base * curve
  wave = dsp.harmonics(rng, pitch, tilt, ceiling)
  cylinders = rng.integers(2, 7)
  uneven = dsp.harmonics(rng, pitch / cylinders, 1.0, base * 2)
  wave = wave * (1 + rng.uniform(0.2, 0.8) * uneven)
  breath = dsp.band(dsp.noise(rng, num_samples), 2 * base, ceiling)
  return wave + rng.uniform(0.05, 0.4) * breath * (1 + 0.8 * uneven)


def small_engine(rng, num_samples):
  """A moped, mower or generator: a buzz, rich in harmonics."""
  swing = rng.choice([0.04, 0.25])
  tilt = rng.uniform(0.3, 0.9)
  return _engine(rng, num_samples, 55, 150, tilt, 5000, swing)


def medium_engine(rng, num_samples):
  """A car that passes or idles: rumble, tyre hiss, a hump in level."""
  wave = _engine(rng, num_samples, 28, 75, rng.uniform(0.9, 1.5), 2500, 0.12)
  hiss = dsp.band(dsp.noise(rng, num_samples), 500, rng.uniform(1500, 4000))
  if rng.random() < 0.6:
    time = np.linspace(0, 1, num_samples, dtype=np.float32)
    width = rng.uniform(0.1, 0.35)
    hump = np.exp(-0.5 * ((time - rng.uniform(0.3, 0.7)) / width) ** 2)
    return (wave + rng.uniform(0.2, 1.0) * hiss) * (0.1 + hump)
  return wave + 0.1 * hiss


def large_engine(rng, num_samples):
  """A lorry or bus: slow, deep pulses, rattle, at times an air brake."""
  wave = _engine(rng, num_samples, 12, 34, rng.uniform(0.7, 1.3), 900, 0.08)
  rattle = dsp.band(dsp.noise(rng, num_samples), 800, 2500)
  wave = wave + rng.uniform(0.05, 0.5) * rattle * np.maximum(wave, 0) ** 2
  if rng.random() < 0.3:
    length = dsp.seconds(rng.uniform(0.3, 0.9))
    brake = dsp.fade(dsp.band(dsp.noise(rng, length), 2500, 7900), 0.01, 0.25)
    onset = rng.integers(0, max(1, num_samples - length))
    wave = wave + dsp.place(num_samples, [brake], [onset], [1.5])
  return wave


def _blow(rng, low, high, ring, thud):
  """One blow of a tool: metal that rings, a noise burst, a thud below."""
  length = dsp.seconds(min(0.9, 5 * ring + 0.03))
  count = rng.integers(4, 9)
  tones = np.exp(rng.uniform(np.log(low), np.log(high), count))
  wave = dsp.modes(rng, tones, ring * rng.uniform(0.4, 1.2, count), length)
  decay = np.exp(-np.arange(length) / dsp.seconds(0.4 * ring + 0.002))
  burst = dsp.band(dsp.noise(rng, length), 0.5 * low, 7900) * decay
  low_tones = rng.uniform(45, 140, 2)
  deep = dsp.modes(rng, low_tones, np.full(2, 0.03 + ring / 3), length)
  return dsp.fade(wave / count + 0.7 * burst + thud * deep, 0.0005, 0.01)


def rock_drill(rng, num_samples):
  """Fast blows, 24 to 45 a second, in a roar of compressed air."""
  blow = _blow(rng, 1500, 6500, rng.uniform(0.01, 0.03), 0.1)
  rate = rng.uniform(24, 45)
  wave = dsp.repeat(rng, num_samples, blow, rate, 0.02, 0.1)
  air = dsp.band(dsp.noise(rng, num_samples), 1500, 7000)
  wave = wave + rng.uniform(0.1, 0.4) * air
  return wave * dsp.gate(rng, num_samples, (2.0, 6.0), (0.3, 1.5))


def jackhammer(rng, num_samples):
  """Blows at 10 to 22 a second, in bursts of a few seconds."""
  blow = _blow(rng, 400, 3500, rng.uniform(0.01, 0.04), rng.uniform(0.3, 1))
  rate = rng.uniform(10, 22)
  wave = dsp.repeat(rng, num_samples, blow, rate, 0.015, 0.1)
  return wave * dsp.gate(rng, num_samples, (1.0, 4.0), (0.3, 1.5))


def hoe_ram(rng, num_samples):
  """Heavy hydraulic blows, 4 to 9 a second, low and ringing."""
  blow = _blow(rng, 180, 1800, rng.uniform(0.03, 0.08), rng.uniform(0.8, 2))
  rate = rng.uniform(4, 9)
  wave = dsp.repeat(rng, num_samples, blow, rate, 0.01, 0.1)
  return wave * dsp.gate(rng, num_samples, (1.5, 5.0), (0.5, 2.0))


def pile_driver(rng, num_samples):
  """One heavy, long-ringing stroke every 0.7 to 1.6 s."""
  blow = _blow(rng, 120, 2500, rng.uniform(0.1, 0.3), rng.uniform(0.5, 2))
  rate = rng.uniform(0.6, 1.4)
  first = rng.uniform(0, 0.5)
  return dsp.repeat(rng, num_samples, blow, rate, 0.01, 0.08, first)


def struck_object(rng, num_samples):
  """Hammering, a slammed door, dropped metal: blows at uneven times."""
  count = rng.integers(2, 12)
  low = dsp.log_uniform(rng, 100, 1500)
  kinds = [
    _blow(rng, low, 6 * low, dsp.log_uniform(rng, 0.01, 0.15), rng.random())
    for _ in range(rng.integers(1, 3))
  ]
  events = [kinds[i] for i in rng.integers(0, len(kinds), count)]
  if rng.random() < 0.5:  # someone hammers: nearly even, but a hand's pace
    gaps = rng.uniform(0.25, 0.7) * rng.uniform(0.75, 1.25, count)
    onsets = np.cumsum(gaps) - gaps[0]
  else:
    onsets = np.sort(rng.uniform(0, num_samples / dsp.SAMPLE_RATE, count))
    onsets = onsets - onsets[0]
  gains = rng.lognormal(0, 0.5, count)
  onsets = (onsets * dsp.SAMPLE_RATE).astype(int)
  return dsp.place(num_samples, events, onsets, gains)


def chainsaw(rng, num_samples):
  """A two-stroke engine that is revved, roaring as it bites."""
  base = dsp.log_uniform(rng, 75, 150)
  load = dsp.gate(rng, num_samples, (0.5, 2.5), (0.3, 1.2))
  pitch = base * (0.6 + rng.uniform(0.3, 0.9) * load)
  pitch = pitch * (1 + 0.06 * dsp.drift(rng, num_samples, 4))
  wave = dsp.harmonics(rng, pitch, rng.uniform(0.1, 0.6), 6000)
  grit = dsp.band(dsp.noise(rng, num_samples), 1500, 6500)
  return (wave + 0.3 * grit * load) * (0.35 + load)


def small_saw(rng, num_samples):
  """A circular saw or grinder: a whine that sinks under load, and hiss."""
  base = dsp.log_uniform(rng, 350, 1300)
  load = dsp.gate(rng, num_samples, (0.6, 3.0), (0.3, 2.0))
  pitch = base * (1 - rng.uniform(0.08, 0.3) * load)
  pitch = pitch * (1 + 0.01 * dsp.drift(rng, num_samples, 6))
  wave = dsp.harmonics(rng, pitch, rng.uniform(0.4, 1.2), 7500)
  hiss = dsp.band(dsp.noise(rng, num_samples), 2500, 7900)
  return 0.6 * wave + rng.uniform(0.3, 1.0) * hiss * (0.15 + load)


def large_saw(rng, num_samples):
  """A street or concrete saw: engine below, a wall of grinding above."""
  base = dsp.log_uniform(rng, 110, 320)
  pitch = base * (1 + 0.04 * dsp.drift(rng, num_samples, 1.5))
  wave = dsp.harmonics(rng, pitch, rng.uniform(0.6, 1.2), 4000)
  grind = dsp.band(dsp.noise(rng, num_samples), 900, rng.uniform(3000, 6500))
  teeth = 1 + 0.6 * dsp.harmonics(rng, pitch / rng.integers(2, 5), 1.0, 300)
  load = 0.4 + dsp.gate(rng, num_samples, (1.5, 5.0), (0.5, 2.0))
  return (0.5 * wave + rng.uniform(0.5, 1.2) * grind * teeth) * load
