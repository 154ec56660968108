"""LiteRT files: conversion, int8, and the error where LiteRT is missing."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from deploy_fakes import sound, write_workdir

import iusp_jax
from iusp_jax.deploy import functions, litert, safetensors
from iusp_jax.runtime import packages

needs_litert = pytest.mark.skipif(
  bool(litert.why_missing()), reason=litert.why_missing() or 'it is there'
)


@pytest.fixture(scope='module', params=['cnn', 'crnn', 'mobilenet'])
def own(request, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  loaded = iusp_jax.load(write_workdir(folder, request.param))
  return functions.Functions.of(loaded, 'unrolled')


def clips(count=3):
  return np.stack([sound(seed=k) * 2.0**-k for k in range(count)])


@needs_litert
@pytest.mark.parametrize('what', ['wave', 'log_mel'])
def test_float_file_is_the_model(own, what):
  wave_BS = clips()
  wanted_BC = jax.jit(own.from_wave)(wave_BS)
  run = {'wave': own.from_wave, 'log_mel': own.from_log_mel}[what]
  given = wave_BS if what == 'wave' else np.asarray(own.log_mel(wave_BS))
  content = litert.convert(
    lambda x: {'probabilities': run(x)}, {'x': given[:1]}
  )
  interpreter = litert.Interpreter(content)
  assert interpreter.inputs == {'x': ((1, *given.shape[1:]), np.float32)}
  found_BC = [interpreter(x=x[None])['probabilities'][0] for x in given]
  np.testing.assert_allclose(found_BC, wanted_BC, atol=2e-6)
  assert np.ptp(found_BC, axis=0).max() > 1e-4


@needs_litert
@pytest.mark.parametrize('kind', litert.INT8)
def test_int8_is_near(own, kind):
  mel_BTF = np.asarray(own.log_mel(clips(6)))
  content = litert.convert(
    lambda x: {'probabilities': own.from_log_mel(x)}, {'x': mel_BTF[:1]}
  )
  small = litert.quantize(content, kind, [{'x': x[None]} for x in mel_BTF])
  interpreter = litert.Interpreter(small)
  kinds = {'int8': np.int8, 'int8 weights': np.float32}
  assert interpreter.inputs['x'][1] == kinds.get(kind, np.int16)
  found_BC = [interpreter(x=x[None])['probabilities'][0] for x in mel_BTF]
  error = np.abs(found_BC - np.asarray(own.from_log_mel(mel_BTF)))
  assert 0 < error.mean() < 0.1


@needs_litert
def test_int8_covers_the_loudest_sample(own):
  """Ranges are those of all samples, not of most of them."""
  mel_BTF = np.asarray(own.log_mel(clips(1)))
  content = litert.convert(
    lambda x: {'probabilities': own.from_log_mel(x)}, {'x': mel_BTF}
  )
  quiet = {'x': np.full_like(mel_BTF, -4.6)}
  small = litert.quantize(content, 'int8', [quiet] * 30 + [{'x': mel_BTF}])
  (found_C,) = litert.Interpreter(small)(x=mel_BTF)['probabilities']
  np.testing.assert_allclose(found_C, own.from_log_mel(mel_BTF)[0], atol=0.1)


@needs_litert
def test_temperatures_leave_the_last_layer_as_it_is(own):
  """With a bias of two axes no int8 file could be made."""
  few = np.array([0.5, 2.0, 1.0, 3.0], np.float32)
  own = dataclasses.replace(own, temperatures_C=few)
  mel_BTF = np.asarray(own.log_mel(clips(4)))
  ready = own.to_convert()
  wanted_BC = own.from_log_mel(mel_BTF)
  np.testing.assert_allclose(ready.from_log_mel(mel_BTF), wanted_BC, atol=1e-6)
  content = litert.convert(
    lambda x: {'probabilities': ready.from_log_mel(x)}, {'x': mel_BTF[:1]}
  )
  small = litert.quantize(content, 'int8', [{'x': x[None]} for x in mel_BTF])
  run = litert.Interpreter(small)
  found_BC = np.stack([run(x=x[None])['probabilities'][0] for x in mel_BTF])
  np.testing.assert_allclose(found_BC, wanted_BC, atol=0.1)


def test_missing_packages_are_named(monkeypatch):
  whole = importlib.import_module

  def without(name, *args):
    if name.startswith('litert_converter'):
      raise ImportError(f'No module named {name!r}')
    return whole(name, *args)

  monkeypatch.setattr(importlib, 'import_module', without)
  assert 'litert-converter' in litert.why_missing()
  with pytest.raises(packages.MissingPackageError, match=r'iusp-jax\[export\]'):
    litert.convert(lambda x: {'y': x}, {'x': jnp.zeros(3)})


def test_safetensors_come_back():
  rng = np.random.default_rng(0)
  arrays = {
    'params/a': rng.normal(size=(3, 4)).astype(np.float32),
    'b': np.arange(5, dtype=np.int64),
    'scalar': np.float32(3.5),
    'empty': np.zeros((0, 2), np.float16),
    'flags': np.array([True, False, True]),
    'transposed': rng.normal(size=(3, 4)).T,
  }
  content = safetensors.to_bytes(arrays, {'made': 'here'})
  size = int.from_bytes(content[:8], 'little')
  assert size % 8 == 0
  assert content[8:9] == b'{'
  found = safetensors.from_bytes(content)
  assert list(found) == list(arrays)
  for name, array in arrays.items():
    assert found[name].dtype == np.asarray(array).dtype
    assert found[name].shape == np.shape(array)
    np.testing.assert_array_equal(found[name], array)


def test_safetensors_that_are_damaged_or_of_no_type_are_refused():
  content = safetensors.to_bytes({'a': np.arange(6.0)})
  for damaged in (b'', content[:5], content[:40], content[:-1], b'x' * 99):
    with pytest.raises(ValueError, match='export the model again'):
      safetensors.from_bytes(damaged)
  with pytest.raises(ValueError, match='a is complex128'):
    safetensors.to_bytes({'a': np.zeros(2, complex)})


def test_variables_come_back_from_flat_names(own):
  flat = functions.flatten(own.variables)
  assert 'params/Head_0/tags/kernel' in flat
  again = functions.unflatten(flat)
  jax.tree.map(np.testing.assert_array_equal, again, dict(own.variables))
