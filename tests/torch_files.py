"""Files as `torch.save` writes them, and worse, without PyTorch."""

import io
import pickle
import zipfile

import numpy as np


class Global:
  """Pickled as a name of a module."""

  def __init__(self, module, name):
    self.module, self.name = module, name

  def __reduce__(self):
    raise AssertionError  # `Pickler` writes it.


class Call:
  """Pickled as a call of what a name stands for."""

  def __init__(self, function, *args):
    self.function, self.args = function, args


class Pickler(pickle._Pickler):
  """Writes what `torch.save` writes, and worse, without PyTorch."""

  def save(self, obj, save_persistent_id=True):
    if isinstance(obj, Global):
      self.write(f'c{obj.module}\n{obj.name}\n'.encode())
    elif isinstance(obj, Call):
      self.save(obj.function)
      self.save(obj.args)
      self.write(pickle.REDUCE)
    else:
      super().save(obj, save_persistent_id)

  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Storage) else None


class Storage:
  def __init__(self, key, length, kind='FloatStorage'):
    self.pid = 'storage', Global('torch', kind), key, 'cpu', length


def tensor(storage, sizes, strides, offset=0):
  return Call(
    Global('torch._utils', '_rebuild_tensor_v2'),
    *(storage, offset, sizes, strides, False),
    Call(Global('collections', 'OrderedDict')),
  )


def pickled(obj):
  file = io.BytesIO()
  Pickler(file, protocol=2).dump(obj)
  return file.getvalue()


def write(path, obj, storages=(), compression=zipfile.ZIP_STORED):
  """A file of a pickled object and float32 storages."""
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', pickled(obj))
    for key, values in enumerate(storages):
      data = np.asarray(values, '<f4').tobytes()
      archive.writestr(f'archive/data/{key}', data)
  return path


def write_tensors(path, tensors):
  """A file of float32 arrays by name, as a published state dict."""
  made, storages = {}, []
  for name, array in tensors.items():
    strides = tuple(n // 4 for n in np.asarray(array, 'f4', order='C').strides)
    storage = Storage(str(len(storages)), array.size)
    made[name] = tensor(storage, array.shape, strides)
    storages.append(array)
  return write(path, made, storages)
