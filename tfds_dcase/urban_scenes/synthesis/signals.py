"""Alert signals and music."""

import numpy as np

from tfds_dcase.urban_scenes.synthesis import dsp

# Semitones above the tonic: chords of common progressions.
_CHORDS = ((0, 4, 7), (-3, 0, 4), (5, 9, 12), (7, 11, 14), (-5, -1, 2))
_SCALE = np.array([0, 2, 4, 5, 7, 9, 11, 12, 14, 16])


def car_horn(rng, num_samples):
  """One to five honks of two detuned, buzzing tones."""
  low = rng.uniform(280, 480)
  tones = [low, low * rng.choice([1.19, 1.25, 1.33])]
  tones = tones[: rng.integers(1, 3)]
  length = dsp.seconds(dsp.log_uniform(rng, 0.12, 1.8))
  tilt = rng.uniform(0.2, 0.8)
  honk = sum(dsp.harmonics(rng, np.full(length, f), tilt) for f in tones)
  honk = dsp.fade(honk, 0.015, 0.04)
  count = rng.integers(1, 6 if length < 8000 else 3)
  gaps = length / dsp.SAMPLE_RATE + rng.uniform(0.08, 0.5, count)
  onsets = ((np.cumsum(gaps) - gaps[0]) * dsp.SAMPLE_RATE).astype(int)
  return dsp.place(num_samples, [honk] * count, onsets)


def _sweep(rng, kind, low, high, length):
  """One period of an alarm pattern as a frequency in Hz by sample."""
  ramp = np.linspace(0, 1, length)
  if kind == 'up':
    curve = ramp
  elif kind == 'down':
    curve = 1 - ramp
  elif kind == 'wave':
    curve = 0.5 - 0.5 * np.cos(2 * np.pi * ramp)
  else:
    curve = (ramp > rng.uniform(0.4, 0.6)).astype(float)
  return low * (high / low) ** curve


def car_alarm(rng, num_samples):
  """A short pattern (yelp, two tones, chirp or horn) without an end."""
  low = rng.uniform(600, 1300)
  kind = rng.choice(['up', 'down', 'steps', 'pulse'])
  length = dsp.seconds(rng.uniform(0.15, 0.7))
  high = low if kind == 'pulse' else low * rng.uniform(1.3, 2.2)
  tone = dsp.harmonics(
    rng, _sweep(rng, kind, low, high, length), rng.uniform(0.8, 2.0)
  )
  if kind == 'pulse':
    tone[length // 2 :] = 0
  tone = dsp.fade(tone, 0.004, 0.004)
  return dsp.repeat(rng, num_samples, tone, dsp.SAMPLE_RATE / length)


def siren(rng, num_samples):
  """Wail, yelp or two tones, carried past by a moving vehicle."""
  low = rng.uniform(450, 750)
  high = low * rng.uniform(1.6, 2.6)
  kind, period = (
    ('wave', rng.uniform(2.5, 6.0)),
    ('wave', rng.uniform(0.2, 0.45)),
    ('steps', rng.uniform(0.9, 1.6)),
  )[rng.integers(0, 3)]
  if kind == 'steps':
    high = low * rng.uniform(1.2, 1.45)
  one = _sweep(rng, kind, low, high, dsp.seconds(period))
  pitch = np.resize(one, num_samples + len(one))
  start = rng.integers(0, len(one))
  pitch = pitch[start : start + num_samples]
  doppler = 1 - rng.uniform(-0.05, 0.06) * np.linspace(-1, 1, num_samples)
  wave = dsp.harmonics(rng, pitch * doppler, rng.uniform(0.9, 2.2))
  return wave * (1 + 0.3 * dsp.drift(rng, num_samples, 0.7))


def reverse_beeper(rng, num_samples):
  """A steady tone, on and off in equal parts, once or twice a second."""
  pitch = dsp.log_uniform(rng, 750, 2600)
  period = rng.uniform(0.5, 1.3)
  length = dsp.seconds(period * rng.uniform(0.4, 0.6))
  beep = dsp.harmonics(rng, np.full(length, pitch), rng.uniform(1.5, 3.0))
  beep = dsp.fade(beep, 0.01, 0.02)
  return dsp.repeat(rng, num_samples, beep, 1 / period)


def other_alert(rng, num_samples):
  """A bicycle bell, a whistle or the chirp of a pedestrian crossing."""
  kind = rng.integers(0, 3)
  if kind == 0:
    tones = rng.uniform(2200, 5500, 3)
    one = dsp.modes(rng, tones, rng.uniform(0.1, 0.5, 3), dsp.seconds(0.8))
    return dsp.repeat(rng, num_samples, one, rng.uniform(1.5, 6), 0.05, 0.2)
  length = dsp.seconds(rng.uniform(0.08, 0.2) if kind == 1 else 0.6)
  high = rng.uniform(1800, 3200)
  pitch = _sweep(rng, 'down', 0.6 * high if kind == 1 else high, high, length)
  if kind == 2:
    pitch = pitch * (1 + 0.03 * np.sign(np.sin(np.arange(length) / 90)))
  one = dsp.fade(dsp.harmonics(rng, pitch, 2.5), 0.01, 0.03)
  return dsp.repeat(rng, num_samples, one, rng.uniform(0.6, 1.6))


def _note(rng, pitch, length, table, decay):
  """One plucked note: a table played at a pitch, decaying."""
  time_S = np.arange(length) / dsp.SAMPLE_RATE
  wave = dsp.play(table, time_S * pitch)
  return dsp.fade(wave * np.exp(-time_S / decay), 0.004, 0.02)


def _timbre(rng, highest):
  count = int(np.clip(7000 / highest, 1, 30))
  amplitudes = np.arange(1, count + 1) ** -rng.uniform(0.8, 2.5)
  return dsp.harmonic_table(rng, amplitudes * rng.lognormal(0, 0.8, count))


def _drums(rng, beat, bar):
  """Kick, snare and hi-hat of one bar."""
  time_S = np.arange(dsp.seconds(0.25)) / dsp.SAMPLE_RATE
  sweep = np.cumsum(45 + 110 * np.exp(-time_S / 0.03)) / dsp.SAMPLE_RATE
  kick = np.sin(2 * np.pi * sweep) * np.exp(-time_S / 0.09)
  snare = dsp.noise(rng, len(time_S)) * np.exp(-time_S / 0.05)
  hat = np.diff(dsp.noise(rng, 1200), prepend=0) * np.exp(
    -np.arange(1200) / 250
  )
  events, onsets, gains = [], [], []
  for step in range(8):
    hits = [(hat, 0.3)]
    if step % 4 == 0 or rng.random() < 0.15:
      hits.append((kick, 1.2))
    if step % 4 == 2:
      hits.append((dsp.band(snare, 300, 6000), 0.8))
    for event, gain in hits:
      events.append(event)
      onsets.append(int(step * beat / 2))
      gains.append(gain)
  return dsp.place(bar, events, onsets, gains)


def _song(rng, num_samples):
  """Bars over a chord progression: bass, chords or melody, drums; looped."""
  beat = dsp.SAMPLE_RATE * 60 / rng.uniform(75, 150)
  bar = int(4 * beat)
  tonic = rng.uniform(90, 190)
  drum = _drums(rng, beat, bar) * rng.choice([0.0, 0.5, 1.0])
  bass, chord = _timbre(rng, tonic), _timbre(rng, 5 * tonic)
  steps = rng.choice([1, 2, 4])
  bars = []
  for root in rng.integers(0, len(_CHORDS), 4):
    semitones = _CHORDS[root]
    events, onsets, gains = [], [], []
    for step in range(0, 8, steps):
      length = int(beat * rng.uniform(0.5, 1.2))
      low = tonic * 2 ** (semitones[0] / 12) / 2
      events.append(_note(rng, low, length, bass, 0.4))
      for semitone in rng.permutation(semitones)[: rng.integers(1, 4)]:
        pitch = 2 * tonic * 2 ** (semitone / 12)
        events.append(_note(rng, pitch, length, chord, 0.5))
      added = len(events) - len(onsets)
      onsets += [int(step * beat / 2)] * added
      gains += [0.9] + [0.45] * (added - 1)
    bars.append(dsp.place(bar, events, onsets, gains) + drum)
  return np.resize(np.concatenate(bars), num_samples)


def stationary_music(rng, num_samples):
  """A song from a shop or a window."""
  wave = _song(rng, num_samples)
  return dsp.band(wave, rng.uniform(40, 250), rng.uniform(3000, 7900))


def mobile_music(rng, num_samples):
  """A car stereo that passes: mostly bass, rising and falling, shifted."""
  wave = _song(rng, num_samples + 2000)
  wave = wave + 3 * dsp.band(wave, 0, rng.uniform(150, 400))
  time = np.linspace(0, 1, num_samples)
  center, width = rng.uniform(0.3, 0.7), rng.uniform(0.12, 0.25)
  speed = 1 - 0.03 * np.tanh((time - center) / width)
  position = np.cumsum(speed) - speed[0]
  position = np.minimum(position, num_samples + 1900)
  moved = np.interp(position, np.arange(len(wave)), wave)
  fade = 0.05 + np.exp(-0.5 * ((time - center) / width) ** 2)
  return (moved * fade).astype(np.float32)


def ice_cream_truck(rng, num_samples):
  """A chime that plays a short tune, again and again."""
  beat = dsp.seconds(rng.uniform(0.16, 0.35))
  tonic = rng.uniform(500, 950)
  count = rng.integers(8, 17)
  walk = np.clip(np.cumsum(rng.integers(-2, 3, count)) + 4, 0, 9)
  table = _timbre(rng, 3 * tonic)
  pitches = tonic * 2 ** (_SCALE[walk] / 12)
  beats = rng.choice([1, 1, 1, 2], count)
  onsets = (np.cumsum(beats) - beats) * beat
  notes = [
    _note(rng, p, 3 * beat, table, rng.uniform(0.2, 0.4)) for p in pitches
  ]
  tune = dsp.place(int(beats.sum()) * beat, notes, onsets)
  wow = 1 + 0.006 * dsp.drift(rng, num_samples, 3)
  position = np.cumsum(wow) % len(tune)
  return np.interp(position, np.arange(len(tune)), tune).astype(np.float32)
