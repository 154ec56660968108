"""The names of AudioSet's classes, and which of them a data set's tags are."""

import csv
import functools
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

NUM_CLASSES = 527

_VOICE = (
  'Speech',
  'Male speech, man speaking',
  'Female speech, woman speaking',
  'Child speech, kid speaking',
  'Conversation',
  'Shout',
  'Yell',
  'Children shouting',
  'Screaming',
  'Laughter',
  'Crowd',
  'Hubbub, speech noise, speech babble',
  'Chatter',
  'Cheering',
)

# By tag, as `_simple` writes it. SONYC-UST's coarse tags are wider than any
# class; what is listed is what their definition names.
NAMES_OF_TAG: Mapping[str, Sequence[str]] = {
  # ESC-10.
  'dog bark': ('Dog', 'Bark'),
  'rain': ('Rain', 'Raindrop', 'Rain on surface'),
  'sea waves': ('Waves, surf', 'Ocean'),
  'baby cry': ('Baby cry, infant cry',),
  'clock tick': ('Tick', 'Tick-tock', 'Clock'),
  'person sneeze': ('Sneeze',),
  'helicopter': ('Helicopter',),
  'chainsaw': ('Chainsaw',),
  'rooster': ('Chicken, rooster', 'Crowing, cock-a-doodle-doo'),
  'fire crackling': ('Fire', 'Crackle'),
  # SONYC-UST, coarse.
  'engine': (
    'Engine',
    'Light engine (high frequency)',
    'Medium engine (mid frequency)',
    'Heavy engine (low frequency)',
    'Engine starting',
    'Idling',
    'Accelerating, revving, vroom',
    'Motor vehicle (road)',
    'Car',
    'Truck',
    'Bus',
    'Motorcycle',
  ),
  'machinery impact': ('Jackhammer', 'Drill'),
  'non machinery impact': ('Hammer', 'Thump, thud', 'Slam', 'Bang', 'Knock'),
  'powered saw': ('Chainsaw', 'Power tool', 'Sawing'),
  'alert signal': (
    'Vehicle horn, car horn, honking',
    'Car alarm',
    'Siren',
    'Emergency vehicle',
    'Reversing beeps',
    'Alarm',
  ),
  'music': ('Music',),
  'human voice': _VOICE,
  'dog': ('Dog', 'Bark', 'Yip', 'Howl', 'Bow-wow', 'Whimper (dog)'),
}


@functools.cache
def names() -> tuple[str, ...]:
  """The names of the classes, in the order of a model's outputs."""
  path = pathlib.Path(__file__).with_name('audioset_names.csv')
  lines = path.read_text(encoding='utf-8').splitlines()
  rows = csv.DictReader(line for line in lines if not line.startswith('#'))
  return tuple(row['display_name'] for row in rows)


def _simple(tag: str) -> str:
  """A tag without case, punctuation and a number before it."""
  words = re.sub(r'[\W_]+', ' ', tag.lower()).strip()
  return re.sub(r'^\d+ ', '', words)


def map_tags(tags: Iterable[str]) -> dict[str, list[str]]:
  """The AudioSet names that stand for each tag; none where none is known.

  Those of `NAMES_OF_TAG`, else the name that is equal but for case and
  punctuation.
  """
  equal = {_simple(name): [name] for name in names()}
  return {
    tag: list(NAMES_OF_TAG.get(_simple(tag), equal.get(_simple(tag), [])))
    for tag in tags
  }


def matrix(mapping: Mapping[str, Sequence[str]]) -> np.ndarray:
  """1 where a class stands for a tag, else 0: float32 [C, NUM_CLASSES].

  Args:
    mapping: AudioSet names by tag, in the order of the tags.

  Raises:
    ValueError: for a name that is none of AudioSet's.
  """
  place = {name: k for k, name in enumerate(names())}
  found = np.zeros((len(mapping), NUM_CLASSES), np.float32)
  for row, (tag, listed) in zip(found, mapping.items(), strict=True):
    for name in listed:
      if name not in place:
        raise ValueError(
          f'{name!r}, of the tag {tag!r}, is no AudioSet class: expected names '
          'as in iusp_jax/models/pretrained/audioset_names.csv'
        )
      row[place[name]] = 1.0
  return found
