"""How clips of one's own recordings are stored: their length and rate."""

import dataclasses
import math

from tfds_dcase import audio

SAMPLE_RATES = (8_000, 16_000, 32_000, 44_100, 48_000)  # Hz
SECONDS = (1, 60)  # least and most


@dataclasses.dataclass(frozen=True)
class ClipFormat:
  """The format of all clips of a data set.

  Attributes:
    clip_seconds: length.
    sample_rate: in Hz.

  Raises:
    ValueError: for a length or a rate that is not legal.
  """

  clip_seconds: float = 10.0
  sample_rate: int = audio.SAMPLE_RATE

  def __post_init__(self):
    seconds, rate = self.clip_seconds, self.sample_rate
    low, high = SECONDS
    if not (_is_number(seconds) and low <= seconds <= high):
      raise ValueError(
        f'clip_seconds={seconds!r}: must be from {low} to {high}'
      )
    if rate not in SAMPLE_RATES or isinstance(rate, bool):
      legal = ', '.join(map(str, SAMPLE_RATES))
      raise ValueError(f'sample_rate={rate!r}: must be one of {legal}')

  @property
  def num_samples(self) -> int:
    """Samples of a clip."""
    return round(self.clip_seconds * self.sample_rate)

  def changes(self) -> dict[str, float]:
    """The fields that are not those of `DEFAULT`.

    They came later: data of the default format keep the names that they had.
    """
    return {
      name: float(value)  # However it was written.
      for name, value in dataclasses.asdict(self).items()
      if value != getattr(DEFAULT, name)
    }


def _is_number(value) -> bool:
  plain = isinstance(value, int | float) and not isinstance(value, bool)
  return plain and math.isfinite(value)


DEFAULT = ClipFormat()
