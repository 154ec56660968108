"""PyTorch's files: read whole, and refused where they are anything else."""

import collections
import os
import pickle
import subprocess
import zipfile

import numpy as np
import pytest
from torch_files import Call, Global, Storage, tensor, write

from iusp_jax.models.pretrained import torch_file


def refused(path, **limits):
  with pytest.raises(ValueError, match=r'torch\.save') as error:
    torch_file.read(path, **limits)
  assert str(path) in str(error.value)
  return str(error.value)


def test_views_of_a_storage_are_read(tmp_path):
  values = np.arange(12)
  storage = Storage('0', 12)
  found = torch_file.read(
    write(
      tmp_path / 'a.pt',
      {
        'plain': tensor(storage, (3, 4), (4, 1)),
        'transposed': tensor(storage, (4, 3), (1, 4)),
        'part': tensor(storage, (2, 2), (4, 1), 5),
        'scalar': tensor(storage, (), (), 7),
      },
      [values],
    )
  )
  plain = values.reshape(3, 4)
  np.testing.assert_array_equal(found['plain'], plain)
  np.testing.assert_array_equal(found['transposed'], plain.T)
  np.testing.assert_array_equal(found['part'], plain[1:3, 1:3])
  assert found['scalar'] == 7.0
  assert {x.dtype.name for x in found.values()} == {'float32'}


def test_pickle_that_would_run_a_command_runs_none(tmp_path):
  made = tmp_path / 'made'
  for function in (os.system, subprocess.check_output):
    module = 'posix' if function is os.system else 'subprocess'
    call = Call(Global(module, function.__name__), f'touch {made}')
    path = write(tmp_path / 'bad.pt', {'weight': call})
    name = f'{module}.{function.__name__}'
    assert f'it asks for {name}, which may run' in refused(path)
  assert not made.exists()


@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('builtins', 'eval'),
    ('torch', 'load'),
    ('torch', 'FloatStorage.from_file'),
    ('torch._utils', '_rebuild_tensor_v2.__globals__'),
    ('collections', 'OrderedDict.__class__'),
    ('torch.Float', 'Storage'),
  ],
)
def test_names_are_compared_whole(tmp_path, module, name):
  path = write(tmp_path / 'bad.pt', {'weight': Call(Global(module, name))})
  assert f'it asks for {module}.{name}' in refused(path)


@pytest.mark.parametrize(
  ('sizes', 'strides', 'offset'),
  [
    ((3, 4), (5, 1), 0),  # A stride too long.
    ((3, 4), (4, 1), 1),  # From too far on.
    ((13,), (1,), 0),
    ((2**40,), (0,), 0),  # The same number over and over.
    ((2**62, 4), (2**62, 1), 0),  # More than 64 bits hold.
    ((0,), (1,), 0),
  ],
)
def test_tensor_beyond_its_storage_is_refused(tmp_path, sizes, strides, offset):
  made = {'weight': tensor(Storage('0', 12), sizes, strides, offset)}
  path = write(tmp_path / 'bad.pt', made, [np.arange(12)])
  assert "'weight' reach beyond its storage" in refused(path)


@pytest.mark.parametrize(
  ('sizes', 'strides', 'offset'),
  [
    ((3, 4), (-4, 1), 11),
    ((-1,), (1,), 0),
    ((3,), (1, 1), 0),
    ((3,), (1,), -2),
    ((True,), (1,), 0),
    ([3], [1], 0),
  ],
)
def test_sizes_that_are_none_are_refused(tmp_path, sizes, strides, offset):
  made = {'weight': tensor(Storage('0', 12), sizes, strides, offset)}
  path = write(tmp_path / 'bad.pt', made, [np.arange(12)])
  assert 'sizes and strides' in refused(path)


def test_storage_of_another_size_or_none_is_refused(tmp_path):
  whole = {'weight': tensor(Storage('0', 12), (12,), (1,))}
  path = write(tmp_path / 'bad.pt', whole, [np.arange(11)])
  assert "has 44 bytes for the 12 numbers of 'weight'" in refused(path)
  assert 'has none bytes' in refused(write(tmp_path / 'bad.pt', whole))
  for storage in (Storage('../0', 12), Storage('0', -1)):
    made = {'weight': tensor(storage, (12,), (1,))}
    path = write(tmp_path / 'bad.pt', made, [np.arange(12)])
    assert 'it has no storage' in refused(path)


def test_more_than_the_file_holds_is_never_unpacked(tmp_path):
  """A megabyte of zeros is a kilobyte where it is compressed."""
  made = {'weight': tensor(Storage('0', 2**18), (2**18,), (1,))}
  path = tmp_path / 'bomb.pt'
  write(path, made, [np.zeros(2**18)], zipfile.ZIP_DEFLATED)
  assert path.stat().st_size < 2**13
  assert 'has a compressed member' in refused(path)


def test_members_that_share_their_bytes_are_refused(tmp_path):
  """Each may be as large as the file; many of them are a bomb."""
  made = {'weight': tensor(Storage('0', 1000), (1000,), (1,))}
  path = write(tmp_path / 'bomb.pt', made, [np.zeros(1000)])
  with zipfile.ZipFile(path, 'a') as archive:
    one = archive.getinfo('archive/data/0')
    archive.filelist += [one] * 20
    archive._didModify = True
  assert f'but has {path.stat().st_size}' in refused(path)


def test_size_that_is_declared_and_not_there_is_refused(tmp_path):
  made = {'weight': tensor(Storage('0', 1000), (1000,), (1,))}
  path = write(tmp_path / 'bad.pt', made, [np.zeros(1000)])
  data = path.read_bytes()
  size = (4000).to_bytes(4, 'little')
  at = data.rindex(size + size)  # In the directory, at the end.
  larger = (2**31 - 1).to_bytes(4, 'little')
  path.write_bytes(data[: at + 4] + larger + data[at + 8 :])
  assert 'has a member of two sizes' in refused(path)
  path.write_bytes(data[:at] + larger * 2 + data[at + 8 :])
  assert f'bytes, but has {len(data)}' in refused(path)


def test_file_that_is_larger_than_it_may_be_is_not_read(tmp_path):
  made = {'weight': tensor(Storage('0', 12), (12,), (1,))}
  path = write(tmp_path / 'a.pt', made, [np.arange(12)])
  size = path.stat().st_size
  assert torch_file.read(path, max_bytes=size)
  message = f'has {size} bytes: expected at most {size - 1}'
  assert message in refused(path, max_bytes=size - 1)


def test_old_format_cut_and_damaged_files_are_refused(tmp_path):
  made = {'weight': tensor(Storage('0', 12), (12,), (1,))}
  path = write(tmp_path / 'a.pt', made, [np.arange(12)])
  data = path.read_bytes()
  path.write_bytes(data[: len(data) // 2])
  assert 'is cut short or damaged' in refused(path)
  at = data.index(np.arange(12, dtype='<f4').tobytes())
  path.write_bytes(data[: at + 8] + b'\x01' + data[at + 9 :])
  assert 'is damaged (Bad CRC-32' in refused(path)
  path.write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2))
  assert 'format of PyTorch before 1.6' in refused(path)
  path.write_bytes(b'not a model')
  assert 'is no zip file' in refused(path)


def test_what_is_no_dict_of_tensors_is_refused(tmp_path):
  path = tmp_path / 'a.pt'
  assert 'holds a list, not a dict' in refused(write(path, [1]))
  assert "holds a int as 'epoch'" in refused(write(path, {'epoch': 3}))
  nested = {'model': collections.OrderedDict()}
  assert "holds a OrderedDict as 'model'" in refused(write(path, nested))
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('archive/data.txt', '')
  assert 'has 0 members <name>/data.pkl' in refused(path)


def test_published_file_has_the_published_number_of_parameters(mn04_file):
  found = torch_file.read(mn04_file)
  statistics = 'running_mean', 'running_var', 'num_batches_tracked'
  trained = [x for name, x in found.items() if not name.endswith(statistics)]
  assert sum(x.size for x in trained) == 983_599
  assert found['classifier.5.weight'].shape == (527, 512)
