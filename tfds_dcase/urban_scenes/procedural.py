"""One synthesised street scene: its tags, its sound and its annotators' votes.

A scene is a pure function of (settings, split, index).
"""

import numpy as np

from tfds_dcase import audio, taxonomy
from tfds_dcase.urban_scenes import mixer
from tfds_dcase.urban_scenes.synthesis import SOURCES, ambience, dsp

SPLITS = ('train', 'validate', 'test')
NUM_ANNOTATORS = 3

# How often a source of each fine column is drawn, in per mille. From the
# train votes of SONYC-UST (clips that at least one of three volunteers marked,
# of 2,351), the X columns from the agreed truth of its 443 validate clips;
# nothing is rarer than 12, so that 300 scenes hold some of every tag.
_WEIGHTS = (
  73, 212, 240, 45,  # engines: small, medium, large, X
  100, 70, 35, 30, 20,  # rock drill, jackhammer, hoe ram, pile driver, X
  120,  # non-machinery impact
  42, 40, 38, 15,  # chainsaw, small saw, large saw, X
  100, 30, 55, 65, 20,  # horn, alarm, siren, beeper, X
  30, 18, 16, 12,  # stationary, mobile, ice-cream truck, X
  250, 40, 25, 16, 12,  # talking, shouting, crowd, amplified, X
  66,  # dog
)  # fmt: skip

# How much more (or less) often than by chance two coarse classes share a
# clip: mean of that ratio over train votes and validate truth, rounded.
_AFFINITY = np.array(
  [
    [0.4, 0.9, 1.0, 0.7, 0.9, 0.6, 0.7, 0.7],
    [0.9, 0.6, 0.6, 1.0, 0.6, 0.3, 0.4, 0.4],
    [1.0, 0.6, 0.3, 0.7, 0.8, 0.8, 0.9, 0.8],
    [0.7, 1.0, 0.7, 0.4, 0.3, 0.3, 0.3, 0.3],
    [0.9, 0.6, 0.8, 0.3, 0.4, 0.6, 0.8, 0.8],
    [0.6, 0.3, 0.8, 0.3, 0.6, 0.3, 1.4, 1.2],
    [0.7, 0.4, 0.9, 0.3, 0.8, 1.4, 0.5, 1.3],
    [0.7, 0.4, 0.8, 0.3, 0.8, 1.2, 1.3, 0.0],
  ]
)
# Chance of 1, 2, 3, 4, ... sources in a scene, before the configured bounds.
_COUNTS = (0.33, 0.38, 0.2, 0.09)


def draw_columns(rng, sources: tuple[int, int]) -> list[int]:
  """The fine columns of a scene's sources, no column twice.

  Args:
    rng: random generator.
    sources: least and greatest number of sources.

  Returns:
    Indices into `taxonomy.FINE_COLUMNS`.
  """
  low, high = sources
  chances = np.array([_chance(n) for n in range(low, high + 1)])
  count = low + rng.choice(len(chances), p=chances / chances.sum())
  weights = np.array(_WEIGHTS, float)
  columns: list[int] = []
  for _ in range(count):
    column = int(rng.choice(len(weights), p=weights / weights.sum()))
    columns.append(column)
    row = _AFFINITY[taxonomy.COARSE_OF_COLUMN[column]]
    weights = weights * row[taxonomy.COARSE_OF_COLUMN]
    weights[column] = 0
  return columns


def _chance(count: int) -> float:
  return _COUNTS[min(count, len(_COUNTS)) - 1]


def _synthesise(rng, column: int):
  """Wave and distance of one source.

  An X column sounds like some tag of its class, but from so far away that it
  could not be identified; an unknown alert signal has a sound of its own.
  """
  name = taxonomy.FINE_COLUMNS[column]
  distance = rng.uniform(0.0, 1.0)
  if name not in SOURCES:
    same = [n for n in SOURCES if n[0] == name[0]]
    name = same[rng.integers(len(same))]
    distance = rng.uniform(0.8, 1.0)
  num_samples = int(rng.uniform(2.0, 9.5) * mixer.SAMPLE_RATE)
  wave_S = mixer.trim(SOURCES[name](rng, num_samples))
  if name[0] in '16':  # engines and music come and go, they do not switch on
    wave_S = dsp.fade(wave_S, rng.uniform(0.1, 1), rng.uniform(0.1, 1))
  return mixer.carry(rng, wave_S, distance), distance


def _place(rng, column: int, snr_db: tuple[float, float]):
  """(wave, onset, SNR) of one source: the farther, the weaker."""
  wave_S, distance = _synthesise(rng, column)
  near = np.clip(1 - distance + rng.uniform(-0.25, 0.25), 0, 1)
  low, high = snr_db
  last = max(1, mixer.SCENE_SAMPLES - min(len(wave_S), mixer.SAMPLE_RATE))
  return wave_S, int(rng.integers(0, last)), float(low + (high - low) * near)


def _untagged(rng, snr_db: tuple[float, float]):
  """Up to two sounds of no tag."""
  result = []
  for _ in range(rng.choice(3, p=(0.45, 0.4, 0.15))):
    source = ambience.UNTAGGED[rng.integers(len(ambience.UNTAGGED))]
    wave_S = source(rng, mixer.SCENE_SAMPLES)
    wave_S = mixer.carry(rng, wave_S, rng.uniform(0, 0.7))
    result.append((wave_S, 0, float(rng.uniform(*snr_db))))
  return result


def vote(rng, column: int, snr_db: float, config) -> int | None:
  """Which column an annotator marks for one source, if any.

  The chance to notice it rises with its level (a logistic curve, 5 dB wide);
  a noticed source is at times marked as another tag of its coarse class, or as
  the class's X.

  Args:
    rng: random generator.
    column: the true fine column.
    snr_db: of the source.
    config: has `detect_half_db`, the SNR at which half of all sources are
      missed, `confusion` and `unknown`, the chances of the two mistakes.

  Returns:
    A column of the same coarse class, or None for a source not noticed.
  """
  noticed = 1 / (1 + np.exp(-(snr_db - config.detect_half_db) / 5.0))
  draw, which = rng.random(2)
  if rng.random() > noticed:
    return None
  same = taxonomy.COARSE_OF_COLUMN[column] == taxonomy.COARSE_OF_COLUMN
  others = np.flatnonzero(same & ~taxonomy.IS_UNKNOWN)
  others = others[others != column]
  unknown = np.flatnonzero(same & taxonomy.IS_UNKNOWN)
  if draw < config.confusion and len(others):
    return int(others[int(which * len(others))])
  if draw > 1 - config.unknown and len(unknown):
    return int(unknown[0])
  return column


def _votes(rng, split: str, columns, snrs_db, config) -> np.ndarray:
  """Presence by annotator and fine column, 0/1. [A, Q] int8"""
  votes_AQ = np.zeros((NUM_ANNOTATORS, len(taxonomy.FINE_COLUMNS)), np.int8)
  if split != 'train':
    votes_AQ[:, columns] = 1
    return votes_AQ
  for annotator in range(NUM_ANNOTATORS):
    for column, snr_db in zip(columns, snrs_db, strict=True):
      marked = vote(rng, column, snr_db, config)
      if marked is not None:
        votes_AQ[annotator, marked] = 1
  return votes_AQ


def aggregate(votes_AQ) -> dict[str, np.ndarray]:
  """The stored tags: present where at least one annotator marked them."""
  present_Q = votes_AQ.max(axis=0)
  coarse_C = np.zeros(len(taxonomy.COARSE), np.int8)
  np.maximum.at(coarse_C, taxonomy.COARSE_OF_COLUMN, present_Q)
  return {
    'coarse': coarse_C,
    'fine': present_Q[~taxonomy.IS_UNKNOWN],
    'fine_unknown': present_Q[taxonomy.IS_UNKNOWN],
    'votes': votes_AQ,
  }


def scene(config, split: str, index: int) -> dict:
  """One example of the data set, determined by its arguments alone.

  Args:
    config: `settings.ProceduralConfig`.
    split: 'train', 'validate' or 'test'.
    index: of the scene in its split.

  Returns:
    The features of the builder, votes and tags included.
  """
  entropy = [config.seed, SPLITS.index(split), index]
  # Two streams, so that a change to a sound changes no tag and no vote.
  plan, sound = (
    np.random.default_rng(s) for s in np.random.SeedSequence(entropy).spawn(2)
  )
  columns = draw_columns(plan, config.sources)
  placed = [_place(sound, column, config.snr_db) for column in columns]
  votes_AQ = _votes(plan, split, columns, [s for _, _, s in placed], config)
  noise_S = ambience.street(sound, mixer.SCENE_SAMPLES)
  placed += _untagged(sound, config.snr_db)
  wave_S = mixer.mix(noise_S, placed, sound.uniform(-45, -28))
  return {
    'audio': audio.to_int16(wave_S),
    'num_samples': mixer.SCENE_SAMPLES,
    'clip_id': f'{split}_{index:06d}.wav',
    **aggregate(votes_AQ),
  }
