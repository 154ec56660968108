"""Several folders of teacher outputs as one, to distil from them together.

  python examples/teachers/join.py FOLDER_1 FOLDER_2 FOLDER_3 --output=JOINED
  python run.py --config=configs/iusp.py:urban_scenes \
    --config.teacher.outputs=JOINED

As `config.teacher.ensemble_size` joins teachers that are trained here: the mean
of logits and of frame logits, and frames side by side, each teacher's scaled so
that its Gram matrix has the Frobenius norm 1 in every clip. What one of the
teachers lacks is left out, and so are clips. All have the same tags, and frames
at the same times.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

import clips  # noqa: F401 (makes iusp_jax of this checkout known)
import numpy as np

from iusp_jax.data import foreign_outputs, output_files


def open_all(
  folders: Sequence[pathlib.Path],
) -> list[foreign_outputs.Foreign]:
  """The teachers, with their tags in the order of the first.

  Raises:
    ValueError: where they cannot be joined.
  """
  contents = [foreign_outputs.inspect(folder) for folder in folders]
  first, found = contents[0], []
  for each in contents:
    if set(each.tags) != set(first.tags):
      differing = sorted(set(each.tags) ^ set(first.tags))
      raise ValueError(
        f'{each.path} and {first.path} differ in the tags '
        f'{", ".join(differing[:5])}: expected the same'
      )
    columns = tuple((each.tags.index(tag),) for tag in first.tags)
    found.append(foreign_outputs.Foreign(each, columns, ''))
  return found


def outputs_of_all(
  teachers: Sequence[foreign_outputs.Foreign], split: str
) -> list[str]:
  """What all teachers give for a split.

  Raises:
    ValueError: for frames at different times, or of clips of several lengths.
  """
  names = [
    name
    for name in ('logits', 'frames', 'frame_logits')
    if all(each.contents.gives(name, split) for each in teachers)
  ]
  if not {'frames', 'frame_logits'} & {*names}:
    return names
  contents = [each.contents for each in teachers]
  for each in contents:
    own, of_first = each.splits[split], contents[0].splits[split]
    if foreign_outputs.NUM_FRAMES in own.arrays:
      raise ValueError(
        f'{own.path} has {foreign_outputs.NUM_FRAMES}.npy: expected clips of '
        'one length'
      )
    shapes = [
      next(x.shape[1] for x in each.arrays.values() if x.ndim == 3)
      for each in (own, of_first)
    ]
    if each.timing != contents[0].timing or shapes[0] != shapes[1]:
      raise ValueError(
        f'{own.path} has {shapes[0]} frames, {each.timing}, and '
        f'{of_first.path} {shapes[1]}, {contents[0].timing}: expected frames '
        'at the same times'
      )
  return names


def join(
  teachers: Sequence[foreign_outputs.Foreign],
  rows: Sequence[np.ndarray],
  split: str,
  names: Sequence[str],
  index_B: np.ndarray,
) -> dict[str, np.ndarray]:
  """Outputs `[B, ...]` of some clips, by name.

  Args:
    teachers: K of them.
    rows: of all clips `[N]` in the arrays of each.
    split: its name.
    names: of the outputs.
    index_B: of the clips among all.
  """
  found = [
    each.read(split, rows_N[index_B], names)
    for each, rows_N in zip(teachers, rows, strict=True)
  ]
  result = {}
  for name in names:
    arrays = [each[name] for each in found]
    if name == 'frames':
      result[name] = np.concatenate([_scaled(x) for x in arrays], axis=2)
    else:
      result[name] = np.mean(arrays, axis=0)
  return result


def _scaled(frames_BTD: np.ndarray) -> np.ndarray:
  gram_BTT = frames_BTD @ frames_BTD.swapaxes(1, 2)
  norm_B11 = np.linalg.norm(gram_BTT, axis=(1, 2), keepdims=True)
  return frames_BTD / np.sqrt(np.maximum(norm_B11, 1e-12))


def main():
  """Reads the flags, and joins the folders."""
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('folders', nargs='+', type=pathlib.Path)
  parser.add_argument('--output', required=True, type=pathlib.Path)
  of = parser.parse_args()
  try:
    _write(open_all(of.folders), of.output)
  except ValueError as error:
    sys.exit(f'error: {error}')


def _write(teachers, output: pathlib.Path) -> None:
  contents = [each.contents for each in teachers]
  metadata = {
    'tags': list(contents[0].tags),
    **{
      k: v
      for k, v in contents[0].metadata.items()
      if k in foreign_outputs.TIMES
    },
  }
  for field in ('name', 'source', 'licence'):
    each = dict.fromkeys(of.metadata[field] for of in contents)
    metadata[field] = ' and '.join(each)
  for split in contents[0].splits:
    if not all(split in each.splits for each in contents):
      continue
    names = outputs_of_all(teachers, split)
    if not names:
      raise ValueError(f'the folders have no output of {split} in common')
    places = [
      each.splits[split].path / foreign_outputs.CLIPS for each in contents
    ]
    lines = [place.read_text().splitlines() for place in places]
    where = [{clip: k for k, clip in enumerate(of)} for of in lines]
    shared = [clip for clip in lines[0] if all(clip in of for of in where)]
    rows = [np.array([of[clip] for clip in shared]) for of in where]
    output_files.write(
      output,
      metadata,
      {split: (shared, map(np.asarray, range(len(shared))))},
      functools.partial(join, teachers, rows, split, names),
    )
    print(f'{split}: {", ".join(names)} of {len(shared)} clips')


if __name__ == '__main__':
  main()
