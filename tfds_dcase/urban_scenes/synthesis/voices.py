"""Speech-like sounds and dogs."""

import numpy as np

from tfds_dcase.urban_scenes.synthesis import dsp

# First three formants in Hz of eight vowels of an adult (Peterson and
# Barney, 1952, rounded).
_VOWELS = np.array(
  [
    [270, 2290, 3010],
    [390, 1990, 2550],
    [530, 1840, 2480],
    [660, 1720, 2410],
    [730, 1090, 2440],
    [570, 840, 2410],
    [440, 1020, 2240],
    [300, 870, 2240],
  ]
)


def _syllable(rng, pitch, length, tract, effort):
  """A vowel, voiced at a gliding pitch, at times after a fricative."""
  glide = np.linspace(1.0, rng.uniform(0.8, 1.2), length)
  buzz = dsp.harmonics(rng, pitch * glide, 1.3 - 0.6 * effort, 5500)
  breath = 0.05 * dsp.noise(rng, length)
  formants = _VOWELS[rng.integers(0, len(_VOWELS))] * tract
  widths = np.array([80, 110, 160]) * (1 + effort)
  vowel = dsp.resonate(buzz + breath, formants, widths, (1.0, 0.8, 0.6))
  vowel = vowel * np.hanning(length) ** 0.6
  if rng.random() < 0.4:
    size = dsp.seconds(rng.uniform(0.04, 0.1))
    low = rng.uniform(1800, 4500)
    hiss = dsp.band(dsp.noise(rng, size), low, 7900) * np.hanning(size)
    scale = 0.3 * np.abs(vowel).max() / max(np.abs(hiss).max(), 1e-6)
    return np.concatenate([scale * hiss, vowel]).astype(np.float32)
  return vowel.astype(np.float32)


def _speech(rng, num_samples, pitch, rate, effort, pause):
  """Phrases of syllables with pauses, by one speaker. [S]"""
  tract = rng.uniform(0.9, 1.2) * (1.12 if pitch > 160 else 1.0)
  events, onsets, time = [], [], 0
  while time < num_samples:
    phrase = rng.integers(2, 9)
    for k in range(phrase):
      length = dsp.seconds(rng.uniform(0.5, 1.1) / rate)
      tone = pitch * (1.1 - 0.25 * k / phrase) * rng.lognormal(0, 0.08)
      events.append(_syllable(rng, tone, length, tract, effort))
      onsets.append(time)
      time += int(dsp.SAMPLE_RATE / rate * rng.uniform(0.7, 1.3))
      if time >= num_samples:
        break
    time += dsp.seconds(rng.uniform(*pause))
  gains = rng.lognormal(0, 0.25, len(events))
  return dsp.place(num_samples, events, onsets, gains)


def _adult_pitch(rng):
  return dsp.log_uniform(rng, 85, 250)


def talking(rng, num_samples):
  """One to three people who talk."""
  result = np.zeros(num_samples, np.float32)
  for _ in range(rng.integers(1, 3)):
    pause = (0.2, rng.uniform(0.5, 1.5))
    rate = rng.uniform(3, 6)
    wave = _speech(rng, num_samples, _adult_pitch(rng), rate, 0.1, pause)
    result += wave * rng.uniform(0.4, 1.0)
  return result


def shouting(rng, num_samples):
  """Long, high, loud vowels."""
  pitch = dsp.log_uniform(rng, 240, 480)
  rate = rng.uniform(1.2, 2.5)
  return _speech(rng, num_samples, pitch, rate, 1.0, (0.3, 1.5))


def crowd(rng, num_samples):
  """A babble: many speakers, none of whom can be followed."""
  length = min(num_samples, dsp.seconds(4))
  speakers = [
    _speech(rng, length, _adult_pitch(rng), rng.uniform(3, 6), 0.3, (0.0, 0.3))
    for _ in range(4)
  ]
  result = np.zeros(num_samples, np.float32)
  for _ in range(14):
    speed = rng.uniform(0.75, 1.3)
    one = speakers[rng.integers(0, len(speakers))]
    grid = np.arange(int(length / speed)) * speed
    other = np.interp(grid, np.arange(length), one).astype(np.float32)
    shifted = np.resize(np.roll(other, rng.integers(0, length)), num_samples)
    result += rng.uniform(0.4, 1.0) * shifted
  murmur = dsp.band(dsp.noise(rng, num_samples), 250, 1500)
  return result + 0.15 * np.abs(result).mean() * murmur


def amplified_speech(rng, num_samples):
  """A loudspeaker: narrow band, overdriven, echoing."""
  rate = rng.uniform(2.5, 4.5)
  wave = _speech(rng, num_samples, _adult_pitch(rng), rate, 0.5, (0.3, 1.0))
  wave = dsp.band(wave, rng.uniform(350, 600), rng.uniform(2200, 3600))
  drive = rng.uniform(3, 8) / max(np.abs(wave).max(), 1e-6)
  wave = np.tanh(drive * wave)
  delay = dsp.seconds(rng.uniform(0.08, 0.3))
  onsets = [0, delay, 2 * delay, 3 * delay]
  gains = rng.uniform(0.4, 0.7) ** np.arange(4)
  return dsp.place(num_samples, [wave] * 4, onsets, gains)


def _bark(rng, pitch):
  """One bark: a harmonic chirp up and down, rough, with breath."""
  length = dsp.seconds(rng.uniform(0.1, 0.28))
  ramp = np.linspace(0, 1, length)
  peak = rng.uniform(0.2, 0.5)
  arc = np.where(ramp < peak, ramp / peak, (1 - ramp) / (1 - peak))
  glide = pitch * (0.65 + 0.5 * arc)
  buzz = dsp.harmonics(rng, glide, rng.uniform(0.3, 1.0), 6000)
  rough = buzz + rng.uniform(0.1, 0.5) * dsp.noise(rng, length)
  formants = np.array([1.0, 2.3, 3.9]) * rng.uniform(600, 1200)
  voiced = dsp.resonate(rough, formants, (200, 300, 400), (1.0, 0.7, 0.4))
  envelope = np.minimum(ramp / 0.08, 1) * np.exp(-2.5 * ramp) * (1 - ramp)
  return (voiced * envelope).astype(np.float32)


def dog(rng, num_samples):
  """Rows of one dog's bark, nearly the same each time; some whine."""
  pitch = dsp.log_uniform(rng, 260, 750)
  if rng.random() < 0.15:
    length = dsp.seconds(rng.uniform(0.4, 0.9))
    glide = 2 * pitch * np.linspace(1, rng.uniform(0.6, 0.9), length)
    whine = dsp.fade(dsp.harmonics(rng, glide, 2.0), 0.08, 0.15)
    return dsp.repeat(rng, num_samples, whine, rng.uniform(0.6, 1.1), 0.08, 0.2)
  bark = _bark(rng, pitch)
  gap = rng.uniform(0.05, 0.35) + len(bark) / dsp.SAMPLE_RATE
  onsets, time = [], 0.0
  while time * dsp.SAMPLE_RATE < num_samples:
    for _ in range(rng.integers(1, 6)):
      onsets.append(int(time * dsp.SAMPLE_RATE))
      time += gap * rng.uniform(0.93, 1.07)
    time += rng.uniform(0.2, 1.2)
  gains = rng.lognormal(0, 0.12, len(onsets))
  return dsp.place(num_samples, [bark] * len(onsets), onsets, gains)
