"""Where a group's train step takes its clips from: memory, or disk.

`Resident`: the split's log-mel or waveforms, labels and teacher outputs are in
memory, on the device where they fit; where not, the clips of as many steps as
fit are brought in turn. `Stream`: Grain reads the clips of one step at a time,
for a split that fits nowhere. Both give a step the same arrays: the clips of
some steps, and the *places* among these of every step's batch.

Which clips a step has is a function of the members' seeds and of the step's
batch number alone (`Order`), so that a source has no state to save.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.data import datasets
from iusp_jax.objectives import targets
from iusp_jax.runtime import devices, preemption

Arrays = Mapping[str, np.ndarray]

TARGET = 'target/'  # Before the name of a teacher output among the arrays.
PARTNER = 'partner_'  # Before what belongs to the clips that are mixed in.
_PARTNERS_SEED = 2**20  # Added to a seed for the clips that are mixed in.
_VERSIONS_SEED = 0x5EED  # Beside a seed for the stored augmentations.
_CACHED_CLIPS = 100_000  # Of an epoch whose order is kept in memory.


@dataclasses.dataclass(frozen=True)
class Order:
  """Which clips every batch of every member has.

  Attributes:
    num_clips: of the split.
    batch_size: clips of a global batch.
    seeds: of the members.
    mixup_alpha: of the beta distribution of each clip's share in its mix; 0
      where no other clip is mixed in.
    num_versions: stored augmentations of each clip; 0 for none.
  """

  num_clips: int
  batch_size: int
  seeds: tuple[int, ...]
  mixup_alpha: float = 0.0
  num_versions: int = 0

  def clips(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Clips of the batches with some numbers.

    Returns:
      int32 `[M, K, B]`: `own`, and with mixup `partner`.
    """
    seeds = {'own': 0}
    if self.mixup_alpha:
      seeds['partner'] = _PARTNERS_SEED
    return {
      name: np.stack(
        [self._of_seed(seed + more, numbers) for seed in self.seeds]
      )
      for name, more in seeds.items()
    }

  def shares(self, numbers: Sequence[int]) -> np.ndarray:
    """Each clip's share in its mix, at least a half: float32 `[M, K, B]`."""
    drawn = [
      _share(self.num_clips, seed, self.mixup_alpha, int(place))
      for seed in self.seeds
      for number in numbers
      for place in number * self.batch_size + np.arange(self.batch_size)
    ]
    shape = len(self.seeds), len(numbers), self.batch_size
    return np.array(drawn, np.float32).reshape(shape)

  def versions(self, numbers: Sequence[int]) -> np.ndarray:
    """Which stored augmentation each clip has: int32 `[M, K, B]`."""
    drawn = [
      np.random.default_rng((_VERSIONS_SEED, seed, number)).integers(
        self.num_versions, size=self.batch_size, dtype=np.int32
      )
      for seed in self.seeds
      for number in numbers
    ]
    shape = len(self.seeds), len(numbers), self.batch_size
    return np.reshape(drawn, shape)

  def _of_seed(self, seed: int, numbers) -> np.ndarray:
    place_KB = (
      np.asarray(numbers, np.int64)[:, None] * self.batch_size
      + np.arange(self.batch_size)[None]
    )
    if self.num_clips > _CACHED_CLIPS:
      order = datasets.train_order(self.num_clips, seed)
      found = [order[int(k)] for k in place_KB.reshape(-1)]
      return np.array(found, np.int32).reshape(place_KB.shape)
    result_KB = np.empty(place_KB.shape, np.int32)
    for epoch in np.unique(place_KB // self.num_clips):
      here_KB = place_KB // self.num_clips == epoch
      clips_N = _epoch(self.num_clips, seed, int(epoch))
      result_KB[here_KB] = clips_N[place_KB[here_KB] % self.num_clips]
    return result_KB


@functools.lru_cache(maxsize=512)  # Groups of a table have the same seeds.
def _epoch(num_clips: int, seed: int, epoch: int) -> np.ndarray:
  order = datasets.train_order(num_clips, seed)
  first = epoch * num_clips
  return np.array([order[first + k] for k in range(num_clips)], np.int32)


@functools.lru_cache(maxsize=64)
def _mixes(num_clips: int, seed: int, alpha: float) -> grain.MapDataset:
  def share(pair, rng: np.random.Generator):
    del pair
    own = np.float32(rng.beta(alpha, alpha))
    return max(own, 1 - own)  # The clip that names the mix is the louder.

  clips, partners = (
    datasets.train_order(num_clips, seed + more) for more in (0, _PARTNERS_SEED)
  )
  pairs = grain.experimental.ZipMapDataset([clips, partners])
  return pairs.seed(seed).random_map(share)


def _share(num_clips: int, seed: int, alpha: float, place: int) -> float:
  """The share at one place of a run's endless sequence of clips."""
  share: Any = _mixes(num_clips, seed, alpha)[place]
  return share


def features(
  split: datasets.Split, config: frontend.FrontendConfig | None
) -> dict[str, np.ndarray]:
  """A whole split in memory.

  Args:
    split: to read.
    config: of the front end; None for the waveforms.

  Returns:
    float32 `mel` `[N, T, F]` or int16 `wave` `[N, S]`; float32 `tags` and
    `mask` `[N, C]`; int32 `length` and `index` `[N]`.
  """
  arrays: dict[str, np.ndarray] = {}
  done = 0
  for batch in datasets.eval_batches(split, min(32, len(split))):
    preemption.check()
    if config is not None:
      batch['mel'] = np.asarray(compile_log_mel(config)(batch.pop('wave')))
    count = min(len(batch['index']), len(split) - done)
    for key, values in batch.items():
      if key not in arrays:
        arrays[key] = np.empty((len(split), *values.shape[1:]), values.dtype)
      arrays[key][done : done + count] = values[:count]
    done += count
  return arrays


@functools.cache
def compile_log_mel(config: frontend.FrontendConfig) -> Callable:
  """`frontend.log_mel` of a batch `[B, S]`, compiled."""
  return jax.jit(lambda wave_BS: frontend.log_mel(wave_BS, config))


def feature_bytes(
  dataset: datasets.Dataset, config: frontend.FrontendConfig | None
) -> int:
  """Bytes of a clip's log-mel, or of its waveform."""
  if config is None:
    return 2 * dataset.num_samples
  num_frames = frontend.num_frames(dataset.num_samples, config)
  return 4 * num_frames * config.num_mel_bands


def take(arrays: Mapping[str, jax.Array], places: Mapping[str, jax.Array]):
  """Inside a step: this device's clips of one batch.

  Args:
    arrays: of clips, see `features`; teacher outputs as `target/<name>`.
    places: among them: `own` `[b]`; `columns` `[B]` of the global batch, for
      pairwise teacher outputs; with mixup `partner` `[b]` and `share` `[b]`;
      with stored augmentations `version` `[b]`, the second axis of teacher
      outputs.

  Returns:
    Arrays `[b, ...]`; with mixup also `partner_<name>` and `share`; `version`
    as it is; teacher outputs float32, pairwise ones `[b, B]`.
  """
  batch = {}
  for key, array in arrays.items():
    if not key.startswith(TARGET):
      batch[key] = array[places['own']]
      if 'partner' in places:
        batch[PARTNER + key] = array[places['partner']]
      continue
    if 'version' in places:
      rows = array[places['own'], places['version']]
    else:
      rows = array[places['own']]
    if is_pairwise(key):
      rows = rows[:, places['columns']]
    batch[key] = rows.astype(jnp.float32)
  return batch | {k: places[k] for k in ('share', 'version') if k in places}


class Resident:
  """Clips in memory, on the device where they fit.

  Attributes:
    max_steps: that `take` can be asked for at a time.
    notice: why the split is brought in parts; empty where it fits as a whole.
  """

  notice = ''

  def __init__(
    self,
    arrays: Arrays,
    order: Order,
    layout: devices.Layout,
    budget: int,
    max_steps: int,
  ):
    """See the module's docstring.

    Args:
      arrays: of the split, on the host; teacher outputs as `target/<name>`.
      order: of the members' clips.
      layout: of the members.
      budget: bytes of a device for the arrays.
      max_steps: that are wanted at a time.

    Raises:
      ValueError: where not even the clips of one step fit.
    """
    self._arrays, self._on_device = arrays, None
    size = sum(array.nbytes for array in arrays.values())
    places = _Places(order, layout, [key for key in arrays if is_pairwise(key)])
    self._places, self._layout, self.max_steps = places, layout, max_steps
    if size <= budget:
      self._on_device = layout.share(dict(arrays))
      return
    of_step = places.clips_of_step
    self.max_steps = min(max_steps, budget * order.num_clips // size // of_step)
    if not self.max_steps:
      raise ValueError(
        f'batch_size is {order.batch_size} and the group has '
        f'{len(order.seeds)} members: the clips of one step and what is stored '
        f'of the teacher are {of_step * size / order.num_clips / 1e6:.1f} MB, '
        f'more than the {budget / 1e6:.1f} MB that a device has for them; '
        'lower batch_size'
      )
    self.notice = (
      f'features and teacher outputs are {size / 1e6:.0f} MB, more than the '
      f'{budget / 1e6:.0f} MB that a device has for them: it gets the clips of '
      f'{self.max_steps} steps at a time'
    )

  def take(self, numbers: Sequence[int]) -> tuple[Any, Any]:
    """What the batches with these numbers need, on the devices."""
    if self._on_device is not None:
      places = self._places.of(numbers, self.max_steps)
      return self._on_device, self._layout.put_local(places)
    rows_U, columns_V, places = self._places.of_part(numbers, self.max_steps)
    arrays = {
      key: x[rows_U][:, columns_V] if is_pairwise(key) else x[rows_U]
      for key, x in self._arrays.items()
    }
    return self._layout.share(arrays), self._layout.put_local(places)


class Stream:
  """Clips read by Grain, one step at a time, some steps ahead.

  Attributes:
    max_steps: 1.
    notice: empty.
  """

  max_steps = 1
  notice = ''

  def __init__(
    self,
    split: datasets.Split,
    outputs: Arrays,
    order: Order,
    layout: devices.Layout,
    num_threads: int = 4,
  ):
    """See the module's docstring.

    Args:
      split: to read.
      outputs: teacher outputs of the split, as `target/<name>`.
      order: of the members' clips.
      layout: of the members.
      num_threads: that read steps.
    """
    self._split, self._outputs, self._layout = split, outputs, layout
    pairwise = [key for key in outputs if is_pairwise(key)]
    self._places = _Places(order, layout, pairwise)
    self._num_threads = num_threads
    self._next, self._steps = -1, iter(())

  def take(self, numbers: Sequence[int]) -> tuple[Any, Any]:
    """What the batch with this number needs, on the devices."""
    (number,) = numbers
    if not 0 <= self._next <= number:
      self._next, self._steps = number, self._read_from(number)
    while True:  # Passes over batches that are left out.
      arrays, places = next(self._steps)
      self._next += 1
      if self._next > number:
        return self._layout.share(arrays), self._layout.put_local(places)

  def _read_from(self, first: int) -> Iterator[tuple[Any, Any]]:
    steps = grain.MapDataset.range(first, 2**40).map(self._read)
    options = grain.ReadOptions(
      num_threads=self._num_threads, prefetch_buffer_size=self._num_threads
    )
    return iter(steps.to_iter_dataset(options))

  def _read(self, number: int) -> tuple[Arrays, Arrays]:
    """The clips of one batch that this host needs, and their places."""
    rows_U, columns_V, places = self._places.of_part([number], 1)
    clips = [datasets.read_clip(self._split, clip) for clip in rows_U]
    arrays = {key: np.stack([clip[key] for clip in clips]) for key in clips[0]}
    for key, x in self._outputs.items():
      rows = x[rows_U]
      arrays[key] = rows[:, columns_V] if is_pairwise(key) else rows
    return arrays, places


class _Places:
  """Where the clips of steps are among the arrays that a step gets."""

  def __init__(self, order: Order, layout: devices.Layout, pairwise):
    self._order, self._layout = order, layout
    self._pairwise = bool(pairwise)
    self.clips_of_step = len(order.seeds) * order.batch_size
    if order.mixup_alpha:
      self.clips_of_step *= 2

  def of(self, numbers: Sequence[int], max_steps: int) -> dict[str, np.ndarray]:
    """`own` and so on `[D, each, K, b]`, see `take`, in the whole split.

    K is `max_steps` for any number of steps: one program is compiled.
    """
    clips = self._order.clips(numbers)
    if self._order.mixup_alpha:
      clips['share'] = self._order.shares(numbers)
    if self._order.num_versions:
      clips['version'] = self._order.versions(numbers)
    more = max_steps - len(numbers)
    clips = {
      name: np.pad(x, ((0, 0), (0, more), (0, 0)), mode='edge')
      for name, x in clips.items()
    }
    places = {name: self._layout.batch_parts(x) for name, x in clips.items()}
    if self._pairwise:
      places['columns'] = self._layout.whole_batches(clips['own'])
    return places

  def of_part(self, numbers: Sequence[int], max_steps: int):
    """The clips `[U]` that this host needs, those `[V]` of whole batches for
    pairwise outputs, and the places among them. U and V are always the same.
    """
    places = self.of(numbers, max_steps)
    most = min(self._order.num_clips, max_steps * self.clips_of_step)
    rows = [x for name, x in places.items() if name in ('own', 'partner')]
    rows_U = _unique(rows, most)
    for name in ('own', 'partner'):
      if name in places:
        places[name] = _positions(rows_U, places[name])
    columns_V = rows_U
    if self._pairwise:
      columns_V = _unique([places['columns']], most)
      places['columns'] = _positions(columns_V, places['columns'])
    return rows_U, columns_V, places


def _unique(clips: Sequence[np.ndarray], count: int) -> np.ndarray:
  """Each clip once, in order, the last one repeated up to a count."""
  found = np.unique(np.concatenate([x.reshape(-1) for x in clips]))
  return np.pad(found, (0, count - len(found)), mode='edge')


def _positions(sorted_U: np.ndarray, clips: np.ndarray) -> np.ndarray:
  return np.searchsorted(sorted_U, clips).astype(np.int32)


def is_pairwise(key: str) -> bool:
  """Whether an array is a teacher output that compares clips."""
  name = key.removeprefix(TARGET)
  return name != key and targets.is_pairwise(name)


def read_batch(
  split: datasets.Split, order: Order, number: int
) -> dict[str, np.ndarray]:
  """The clips of one batch of the first member, `[B, ...]`, for inspection."""
  batch = {}
  for name, clips_MKB in order.clips([number]).items():
    found = [datasets.read_clip(split, k) for k in clips_MKB[0, 0]]
    prefix = '' if name == 'own' else PARTNER
    batch |= {
      f'{prefix}{key}': np.stack([clip[key] for clip in found])
      for key in found[0]
    }
  return batch
