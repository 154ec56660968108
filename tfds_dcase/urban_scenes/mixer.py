"""Places sources in a scene: distance, level, onset, noise. Pure functions.

Waves are float32 [S], at 16 kHz by default; levels are in dB.
"""

import numpy as np

from tfds_dcase.urban_scenes.synthesis import dsp

SAMPLE_RATE = 16000
SCENE_SAMPLES = 10 * SAMPLE_RATE
_PEAK = 0.95  # a scene whose peak would be higher is turned down as a whole


def level_db(wave_S, rate: int = SAMPLE_RATE) -> float:
  """Mean level, roughly as an ear weighs it.

  Pre-emphasis stands in for the ear, which is why rumble does not count as
  much as a whistle. The mean is over the whole wave, pauses included, but
  over a second at least: at one and the same level, a row of barks has louder
  barks than a hum is loud, and a single bang is louder still.
  """
  flat_S = emphasise(wave_S, rate)
  energy = float(np.dot(flat_S, flat_S))
  return 10 * np.log10(energy / max(len(wave_S), rate) + 1e-20)


def emphasise(wave_S, rate: int = SAMPLE_RATE) -> np.ndarray:
  """Pre-emphasis, of the same corner frequency at every rate. [S - 1]"""
  share = np.float32(0.95 ** (SAMPLE_RATE / rate))
  return wave_S[1:] - share * wave_S[:-1]


def trim(wave_S) -> np.ndarray:
  """Cuts the silence off both ends (60 dB below the peak)."""
  loud = np.flatnonzero(np.abs(wave_S) > 1e-3 * np.abs(wave_S).max())
  return wave_S[loud[0] : loud[-1] + 1] if len(loud) else wave_S[:1]


def carry(rng, wave_S, distance: float) -> np.ndarray:
  """What is left of a sound over a distance: air, corners and echoes.

  Args:
    rng: random generator.
    wave_S: the sound at its source.
    distance: 0 (beside the microphone) to 1 (streets away).

  Returns:
    A wave of the same length: low-passed at 7 kHz (near) to 900 Hz (far),
    with a few echoes that weigh more the farther it is.
  """
  dull = dsp.band(wave_S, 0, 7000 * (900 / 7000) ** distance)
  result = dull.copy()
  for _ in range(3):
    delay = int(rng.uniform(0.005, 0.02 + 0.12 * distance) * SAMPLE_RATE)
    gain = np.float32(rng.uniform(-0.7, 0.7) * distance)
    if delay < len(dull):
      result[delay:] += gain * dull[:-delay]
  return result


def add(scene_S, wave_S, onset: int, gain_db: float) -> None:
  """Adds a wave to a scene, in place; what runs over the end is cut."""
  stop = min(len(scene_S), onset + len(wave_S))
  gain = np.float32(10 ** (gain_db / 20))
  scene_S[onset:stop] += gain * wave_S[: stop - onset]


def mix(
  noise_S, sources, loudness_db: float, rate: int = SAMPLE_RATE
) -> np.ndarray:
  """Noise and sources as one recording that does not clip.

  Args:
    noise_S: the background.
    sources: (wave, onset in samples, SNR in dB) of each source; the SNR
      compares `level_db` of the source with that of the noise.
    loudness_db: level at which the noise is recorded, dB re full scale.
    rate: of all waves, in Hz.

  Returns:
    float32 of the noise's length, peak at most 0.95.
  """
  scene_S = np.array(noise_S, np.float32)
  noise_level = level_db(scene_S, rate)
  for wave_S, onset, snr_db in sources:
    gain_db = noise_level + snr_db - level_db(wave_S, rate)
    add(scene_S, wave_S, onset, gain_db)
  rms = np.sqrt(np.mean(np.square(noise_S)))
  scene_S *= np.float32(10 ** (loudness_db / 20) / rms)
  peak = float(np.abs(scene_S).max())
  return scene_S * np.float32(min(1.0, _PEAK / peak))
