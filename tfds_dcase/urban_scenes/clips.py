"""One scene mixed from a user's recordings; tags are exact in every split."""

import collections
import functools
import math
import pathlib

import numpy as np
import tensorflow_datasets as tfds

from tfds_dcase import audio, clip_format, in_order
from tfds_dcase.urban_scenes import mixer, recordings, settings
from tfds_dcase.urban_scenes.synthesis import ambience

SPLITS = ('train', 'validate', 'test')
# Of what is made of recordings: counts up when scenes change.
VERSION = tfds.core.Version('1.1.0')
_KEPT_SECONDS = 30  # what is used of a longer recording; or a scene's length
_KEPT_BYTES = 2**29  # of decoded recordings held in memory


def make_config(manual_dir, **given) -> settings.ClipsConfig:
  """The config of a folder: its name tells folders and settings apart.

  The path of the folder is no part of the name; the names and the whole content
  of its recordings are.

  Raises:
    ValueError: for unknown or senseless settings or a folder without what the
      scenes need.
  """
  names = settings.setting_names(settings.ClipsConfig)
  settings.check_names(given, names, 'urban_scenes/clips')
  given = settings.coerce(settings.ClipsConfig, given)
  config = settings.ClipsConfig(name='clips', version=VERSION, **given)
  settings.check_scenes(config)
  _ = config.form  # Refuses one that is not legal.
  audio.check_on_bad_recording(config.on_bad_recording)
  listed = recordings.assign_splits(
    recordings.list_recordings(manual_dir),
    config.validate_fold,
    config.test_fold,
    config.split_by,
  )
  classes = sorted({r.tag for r in listed})
  if config.sources[1] > len(classes):
    # The default suits folders of few classes too; a wish has to be possible.
    if config.sources != settings.ClipsConfig.sources:
      raise ValueError(
        f'sources={config.sources}, but there are only {len(classes)} classes'
      )
    config.sources = (config.sources[0], len(classes))
  files = [[r.path, r.size, r.content] for r in listed]
  config.name = f'clips_{settings.fingerprint(settings.values(config), files)}'
  config.description = f'Scenes mixed from recordings of {", ".join(classes)}.'
  recordings.log_counts(listed, manual_dir)
  config.classes = tuple(classes)
  config.recordings = tuple(listed)
  config.manual_dir = str(pathlib.Path(manual_dir).expanduser().resolve())
  return config


class Library:
  """The decoded recordings of a config: checked once, kept within bounds.

  Attributes:
    problems: what was left out, one line a recording.
    corrections: what was done to recordings when they were read, one line each.
    by_split: usable recordings, `by_split[split][tag]`.
  """

  def __init__(self, config: settings.ClipsConfig, workers: int = 1):
    """Decodes everything once.

    Raises:
      ValueError: for a recording that is bad or in two splits, with
        on_bad_recording='stop'; for a class of which too few are usable.
    """
    self._folder = pathlib.Path(config.manual_dir)
    self._format = config.form
    most = 2 * _kept_seconds(self._format) * self._format.sample_rate  # bytes
    self.wave = functools.lru_cache(_KEPT_BYTES // most)(self._decode)
    self.problems: list[str] = []
    self.corrections: list[str] = []
    usable = self._check(config, workers)
    missing = recordings.absent(usable)
    if missing or {r.tag for r in usable} != set(config.classes):
      raise ValueError(
        f'{self._folder}: too few usable recordings: none of {missing[:8]} '
        f'left.\n{self.summary(len(config.recordings))}'
      )
    self.by_split = {s: collections.defaultdict(list) for s in SPLITS}
    for recording in usable:
      self.by_split[recording.split][recording.tag].append(recording)

  def summary(self, total: int) -> str:
    """One message on what was left out."""
    return audio.summarise_problems(self.problems, total)

  def _decode(self, path: str) -> np.ndarray:
    return audio.to_int16(excerpt(self._folder / path, form=self._format))

  def _check(self, config, workers) -> list[recordings.Recording]:
    """The usable recordings; in the order of the listing, whoever decodes."""

    def look(recording):
      problems, done = [], []
      wave_S = audio.read_usable(
        self._folder / recording.path,
        problems,
        config.on_bad_recording,
        reader=excerpt,
        notes=done,
        form=self._format,
      )
      if wave_S is None:
        return problems[0], [], None
      return None, done, hash(audio.to_int16(wave_S).tobytes())

    usable, seen = [], {}
    looked = in_order.in_order(look, config.recordings, workers)
    for recording, (problem, done, content) in zip(
      config.recordings, looked, strict=True
    ):
      if problem is None:
        other = seen.setdefault(content, recording)
        if other.split != recording.split:
          why = f'the same sound as {other.path}, which is in {other.split}'
          problem = self._refuse(recording, why, config)
      if problem is None:
        usable.append(recording)
        self.corrections += [f'{recording.path}: {note}' for note in done]
      else:
        self.problems.append(problem)
    return usable

  def _refuse(self, recording, why: str, config) -> str:
    line = f'{self._folder / recording.path}: {why}'
    if config.on_bad_recording == 'stop':
      raise ValueError(
        f"{line}. on_bad_recording='skip' leaves such recordings out"
      )
    return line


def _kept_seconds(form: clip_format.ClipFormat) -> int:
  return max(_KEPT_SECONDS, math.ceil(form.clip_seconds))


def excerpt(
  path,
  notes: list[str] | None = None,
  form: clip_format.ClipFormat = clip_format.DEFAULT,
) -> np.ndarray:
  """What is kept of a recording: all, or 30 s around its loudest 10 s.

  Of scenes of another length these are that length, and at least that length.

  Args:
    path: of a recording of any length; the memory does not depend on it.
    notes: as in `audio.read`.
    form: of the scenes.

  Returns:
    float32 [S], at most 30 s, or the length of a longer scene.

  Raises:
    audio.BadRecordingError: as in `audio.read`.
  """
  rate, kept_seconds, found = form.sample_rate, _kept_seconds(form), []
  wave_S = audio.read(path, rate, max_seconds=kept_seconds + 0.1, notes=found)
  if len(wave_S) > kept_seconds * rate:
    found = []
    energies = [
      _energy(block_S, rate)
      for block_S in audio.blocks(path, rate, block_seconds=1, notes=found)
    ]
    start = _loudest(energies, math.ceil(form.clip_seconds), kept_seconds)
    end, kept = start + kept_seconds, []
    for second, block_S in enumerate(audio.blocks(path, rate, block_seconds=1)):
      if second >= start:
        kept.append(block_S)
      if second + 1 == end:
        break
    wave_S = np.concatenate(kept)
    found.append(
      f'of {len(energies)} s the loudest are used, {start} to {end} s'
    )
  if notes is not None:
    notes += found
  return wave_S


def _energy(wave_S, rate: int) -> float:
  """Weighed as `mixer.level_db` does."""
  flat_S = mixer.emphasise(wave_S, rate)
  return float(np.square(flat_S, dtype=np.float64).sum())


def _loudest(energies: list[float], scene: int, kept: int) -> int:
  """The second at which the kept part begins, the loudest scene within it."""
  best = int(np.argmax(np.convolve(energies, np.ones(scene), 'valid')))
  before = (kept - scene) // 2
  return int(np.clip(best - before, 0, len(energies) - kept))


def loudest_moment(wave_S, rate: int = mixer.SAMPLE_RATE) -> int:
  """The middle of the loudest half second, a sample."""
  frame = rate // 10
  starts = range(0, len(wave_S), frame)
  energies = [
    _energy(wave_S[start : start + frame + 1], rate) for start in starts
  ]
  width = min(5, len(energies))
  best = int(np.argmax(np.convolve(energies, np.ones(width), 'valid')))
  return min(best * frame + width * frame // 2, len(wave_S) - 1)


def arrange(
  rng, wave_S, form: clip_format.ClipFormat = clip_format.DEFAULT
) -> np.ndarray:
  """What of a recording goes into a scene: once, repeated or an excerpt. [S]

  Of a long one as much as a scene has, around its loudest moment; one shorter
  than half a scene is, half the time, repeated with the same short pause
  between. What is constant in it is no sound: it would keep the silence at its
  ends from being cut, and decide its level.
  """
  wave_S = mixer.trim(wave_S - wave_S.mean(dtype=np.float32))
  length, rate = form.num_samples, form.sample_rate
  if len(wave_S) > length:
    # The loudest moment stays in, so that the excerpt is never just a pause.
    loudest, margin = loudest_moment(wave_S, rate), rate // 2
    first = min(max(0, loudest + margin - length), len(wave_S) - length)
    last = max(first, min(loudest - margin, len(wave_S) - length))
    start = rng.integers(first, last, endpoint=True)
    return wave_S[start : start + length]
  if len(wave_S) > length // 2 or rng.random() < 0.5:
    return wave_S
  pause = np.zeros(int(rng.uniform(0.05, 0.8) * rate), np.float32)
  once = np.concatenate([wave_S, pause])
  most = length // len(once)
  return np.tile(once, int(rng.integers(2, max(3, most + 1))))[:length]


def _last_onset(wave_S, form: clip_format.ClipFormat) -> int:
  """Onsets below it leave a second, and the loudest moment, in the scene.

  What runs over the scene's end is cut: a tag whose sound was there is wrong.
  """
  rate = form.sample_rate
  needed = max(rate, loudest_moment(wave_S, rate) + rate // 2)
  return max(1, form.num_samples - min(len(wave_S), needed))


def scene(config, library: Library, split: str, index: int) -> dict:
  """One example, determined by its arguments alone.

  Args:
    config: of `make_config`.
    library: of that config.
    split: 'train', 'validate' or 'test'; only its own recordings are used.
    index: of the scene in its split.

  Returns:
    The features of the builder.
  """
  entropy = [config.seed, SPLITS.index(split), index]
  rng = np.random.default_rng(np.random.SeedSequence(entropy))
  form = config.form
  count = rng.integers(config.sources[0], config.sources[1], endpoint=True)
  chosen = np.sort(rng.permutation(len(config.classes))[:count])
  placed = []
  for tag in chosen:
    takes = library.by_split[split][config.classes[tag]]
    path = takes[rng.integers(len(takes))].path
    wave_S = arrange(rng, library.wave(path).astype(np.float32) / 32768, form)
    onset = int(rng.integers(0, _last_onset(wave_S, form)))
    placed.append((wave_S, onset, float(rng.uniform(*config.snr_db))))
  hump = (1000.0, 1.0, 0.0)
  noise_S = ambience.coloured_noise(
    rng, form.num_samples, rng.uniform(0.0, 2.0), hump, form.sample_rate
  )
  loudness_db = rng.uniform(-45, -28)
  wave_S = mixer.mix(noise_S, placed, loudness_db, form.sample_rate)
  coarse_C = np.zeros(len(config.classes), np.int8)
  coarse_C[chosen] = 1
  return {
    'audio': audio.to_int16(wave_S),
    'num_samples': form.num_samples,
    'clip_id': f'{split}_{index:06d}.wav',
    'coarse': coarse_C,
  }
