"""Reads the tensors of a PyTorch file without PyTorch, and runs nothing of it.

`torch.save` writes a zip of stored members: `<name>/data.pkl`, a pickle that
says which tensor is which part of which storage, and `<name>/data/<key>`, the
storages' numbers. A pickle may ask for any function of any module to be called;
this one gets the few names below and an error for every other.

Reference: https://github.com/pytorch/pytorch/blob/main/torch/serialization.py
"""

import collections
import dataclasses
import io
import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

MAX_BYTES = 1 << 30  # Of a file; the largest that is meant here has 270 MB.
_MAX_PICKLE_BYTES = 1 << 22  # It names tensors, it does not hold them.
_MAX_AXES = 8

_DTYPES = {
  'FloatStorage': '<f4',
  'DoubleStorage': '<f8',
  'HalfStorage': '<f2',
  'LongStorage': '<i8',
  'IntStorage': '<i4',
}


@dataclasses.dataclass(frozen=True)
class _Storage:
  """Numbers that tensors are views of; `key` names a member of the zip."""

  dtype: str
  key: str
  length: int


@dataclasses.dataclass(frozen=True)
class _View:
  """A tensor as the pickle describes it, in numbers and not bytes."""

  storage: _Storage
  offset: int
  sizes: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: str | os.PathLike, max_bytes: int = MAX_BYTES) -> dict:
  """The tensors of a file that `torch.save` wrote of a state dict.

  Args:
    path: of the file.
    max_bytes: the most that the file, and so what is read of it, may have.

  Returns:
    Arrays in C order by name, each a copy.

  Raises:
    ValueError: naming the file, where it is no such file, damaged, too large,
      or holds anything but tensors in a dict.
    OSError: where it cannot be opened.
  """
  path = pathlib.Path(path)
  try:
    with path.open('rb') as file:
      size = os.fstat(file.fileno()).st_size
      if size > max_bytes:
        raise ValueError(f'has {size} bytes: expected at most {max_bytes}')
      with _open_zip(file) as archive:
        return _read(archive, size)
  except ValueError as error:
    raise ValueError(
      f'{path} {error}. Expected a state dict as torch.save writes it, from a '
      'source that you trust; load the file again where it may be damaged'
    ) from error


def _open_zip(file) -> zipfile.ZipFile:
  start = file.read(4)
  file.seek(0)
  try:
    return zipfile.ZipFile(file)
  except zipfile.BadZipFile as error:
    if start[:2] == b'PK':
      raise ValueError(f'is cut short or damaged ({error})') from error
    if start[:1] == b'\x80':
      raise ValueError(
        'is in the format of PyTorch before 1.6, which is not read here: save '
        'it again with a newer PyTorch'
      ) from error
    raise ValueError('is no zip file') from error


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, np.ndarray]:
  members = _members(archive, size)
  if members.get('byteorder', b'little') != b'little':
    raise ValueError(f'has the byte order {members["byteorder"]!r}')
  views = _unpickle(members['data.pkl'])
  return {name: _array(name, view, members) for name, view in views.items()}


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, bytes]:
  """Contents by name inside the one folder that such a file has.

  Members that are stored take as much of the file as they declare; that their
  sum does is what bounds the memory.
  """
  infos = archive.infolist()
  for info in infos:
    if info.compress_type != zipfile.ZIP_STORED:
      raise ValueError(f'has a compressed member, {info.filename!r}')
    if info.file_size != info.compress_size:
      raise ValueError(f'has a member of two sizes, {info.filename!r}')
  declared = sum(info.file_size for info in infos)
  if declared > size:
    raise ValueError(f'declares {declared} bytes, but has {size}')
  pickles = [i for i in infos if i.filename.partition('/')[2] == 'data.pkl']
  if len(pickles) != 1:
    raise ValueError(f'has {len(pickles)} members <name>/data.pkl, expected 1')
  if pickles[0].file_size > _MAX_PICKLE_BYTES:
    raise ValueError(
      f'has a data.pkl of {pickles[0].file_size} bytes: expected at most '
      f'{_MAX_PICKLE_BYTES}'
    )
  folder = pickles[0].filename.partition('/')[0] + '/'
  try:
    return {
      info.filename.removeprefix(folder): archive.read(info)
      for info in infos
      if info.filename.startswith(folder)
    }
  except (zipfile.BadZipFile, EOFError, RuntimeError, OSError) as error:
    raise ValueError(f'is damaged ({error})') from error


class _Unpickler(pickle.Unpickler):
  """Gives tensors as `_View`s, and refuses all else that has a name."""

  def find_class(self, module: str, name: str) -> Any:
    """What a name in the pickle stands for; compared whole."""
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _new_rebuild()
    if module == 'torch' and name in _DTYPES:
      return name
    raise pickle.UnpicklingError(
      f'it asks for {module}.{name}, which may run anything'
    )

  def persistent_load(self, pid: Any) -> _Storage:
    """A storage, named by its place in the file."""
    match pid:
      case ('storage', str(kind), str(key), str(), int(length)) if (
        kind in _DTYPES and key.isdecimal() and length >= 0
      ):
        return _Storage(_DTYPES[kind], key, length)
    raise pickle.UnpicklingError(f'it has no storage {str(pid)[:80]}')


def _new_rebuild() -> Callable[..., _View]:
  """A new function each time: a pickle may set attributes of what it gets."""

  def rebuild(storage, offset, sizes, strides, *_):
    return _View(storage, offset, sizes, strides)

  return rebuild


def _unpickle(data: bytes) -> Mapping[str, _View]:
  try:
    found = _Unpickler(io.BytesIO(data)).load()
  except Exception as error:  # A pickle can raise whatever Python can.
    raise ValueError(f'has a data.pkl that is refused: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'holds a {type(found).__name__}, not a dict')
  for name, view in found.items():
    if not isinstance(name, str) or not isinstance(view, _View):
      kind = type(view).__name__
      raise ValueError(f'holds a {kind} as {str(name)[:80]!r}, not a tensor')
  return found


def _array(name: str, view: _View, members: Mapping[str, bytes]) -> np.ndarray:
  """The numbers of a tensor, all of which must lie in its storage."""
  storage = view.storage
  if not isinstance(storage, _Storage):
    raise ValueError(f'has no storage for {name!r}')
  _check_view(name, view)
  data = members.get(f'data/{storage.key}')
  dtype = np.dtype(storage.dtype)
  if data is None or len(data) != storage.length * dtype.itemsize:
    found = 'none' if data is None else len(data)
    raise ValueError(
      f'has {found} bytes for the {storage.length} numbers of {name!r}'
    )
  flat = np.frombuffer(data, dtype)[view.offset :]
  strides = [dtype.itemsize * stride for stride in view.strides]
  return np.lib.stride_tricks.as_strided(
    flat, view.sizes, strides, writeable=False
  ).copy()


def _check_view(name: str, view: _View) -> None:
  lists = view.sizes, view.strides
  whole = all(
    isinstance(part, tuple) and all(type(n) is int and n >= 0 for n in part)
    for part in (*lists, (view.offset,))
  )
  if not whole or len(view.sizes) != len(view.strides):
    raise ValueError(f'has sizes and strides {lists} for {name!r}')
  if len(view.sizes) > _MAX_AXES:
    raise ValueError(f'has {len(view.sizes)} axes for {name!r}')
  steps = zip(view.sizes, view.strides, strict=True)
  last = view.offset + sum((n - 1) * stride for n, stride in steps)
  # With a stride of zero a tensor may have more numbers than its storage.
  count, length = math.prod(view.sizes), view.storage.length
  if count == 0 or last >= length or count > length:
    raise ValueError(
      f'has {name!r} reach beyond its storage: sizes {view.sizes}, strides '
      f'{view.strides}, offset {view.offset} of {length} numbers'
    )
