"""Inner layers by name: which there are, what they hold, what they cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from iusp_jax.models import tagger

SMALL = {
  'cnn': {'width': 3, 'num_blocks': 3, 'frequency': 'flatten'},
  'crnn': {'width': 3, 'hidden': 5, 'dropout_rate': 0.5},
  'mobilenet': {
    'width_multiplier': 0.05,
    'depth_multiplier': 0.6,
    'expansion': 2,
    'num_stages': 3,
  },
}
NUM_SAMPLES = 9_920  # 61 frames of log-mel, 8 frame embeddings.


@functools.cache
def model(name, **fields):
  recipe = {
    'model': {'architecture': name, **SMALL[name], **fields},
    'frontend': {'num_mel_bands': 16},
  }
  return tagger.build(recipe, 4)


@functools.cache
def mel_BTF():
  rng = np.random.default_rng(0)
  return rng.normal(size=(3, 61, 16)).astype(np.float32)


@functools.cache
def variables(name, seed=1):
  """Variables in which BatchNorm does something, negative scales included."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    value = rng.normal(size=leaf.shape).astype(np.float32)
    is_variance = 'var' in jax.tree_util.keystr(path)
    return abs(value) + 0.5 if is_variance else value

  shapes = model(name).shapes(NUM_SAMPLES)
  return jax.tree_util.tree_map_with_path(fill, shapes)


def keys_B():
  return jax.random.split(jax.random.key(3), 3)


@functools.cache
def run(name, train, layers):
  """A compiled `forward` of variables."""

  @jax.jit
  def forward(variables):
    return tagger.forward(
      model(name),
      variables,
      mel_BTF(),
      train=train,
      keys_B=keys_B(),
      layers=layers,
    )

  return forward


def outputs(name, train=False, layers=()):
  return run(name, train, layers)(variables(name))


def tree_any(tree):
  return any(leaf.any() for leaf in jax.tree.leaves(tree))


def assert_equal(got, expected, **tolerances):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerances), got, expected
  )


@pytest.mark.parametrize(
  ('name', 'fields', 'count'),
  [
    ('cnn', {}, 3),
    ('cnn', {'num_blocks': 4, 'convolutions_per_block': 2}, 4),
    ('crnn', {}, 1),
    # The stem, 1 + 1 + 2 bottlenecks, the last convolution.
    ('mobilenet', {}, 6),
    ('mobilenet', {'depth_multiplier': 1.0}, 8),
    ('mobilenet', {'depth_multiplier': 0.3, 'num_stages': 4}, 6),
  ],
)
def test_names_are_those_of_the_submodules(name, fields, count):
  found = model(name, **fields)
  blocks = [f'block_{i}' for i in range(1, count + 1)]
  assert tagger.layer_names(found) == (*blocks, 'frames')
  _, variables = jax.eval_shape(
    functools.partial(
      found.module.init_with_output,
      capture_intermediates=True,
      mutable=['params', 'batch_stats', 'intermediates'],
    ),
    jax.random.key(0),
    mel_BTF(),
  )
  modules = variables['intermediates']
  assert {name for name in modules if 'block' in name} == set(blocks)


@pytest.mark.parametrize('name', SMALL)
def test_frames_are_means_over_frequency_of_the_blocks(name):
  names = tagger.layer_names(model(name))
  output, _ = outputs(name, layers=names)
  assert tuple(output.layers) == names
  everything = functools.partial(
    model(name).module.apply,
    capture_intermediates=True,
    mutable=['intermediates'],
  )
  _, stored = jax.jit(everything)(variables(name), mel_BTF())
  stored = stored['intermediates']
  for layer in names[:-1]:
    expected = stored[layer]['__call__'][0].mean(axis=2)
    np.testing.assert_allclose(
      output.layers[layer], expected, rtol=1e-5, atol=1e-5
    )
    # Time is reduced by whole numbers only.
    assert output.layers[layer].shape[1] % output.frames_BTD.shape[1] == 0
  np.testing.assert_array_equal(output.layers['frames'], output.frames_BTD)
  if name == 'mobilenet':  # block_5 repeats block_4: a residual.
    whole, before = (stored[i]['__call__'][0] for i in ('block_5', 'block_4'))
    inside = stored['Norm_11']['__call__'][0]  # Of 2 + 3 * 3 convolutions.
    np.testing.assert_allclose(whole, before + inside, rtol=1e-6)


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize('name', SMALL)
def test_asking_for_layers_changes_nothing_else(name, train):
  named, statistics = outputs(name, train, tagger.layer_names(model(name)))
  plain, plain_statistics = outputs(name, train)
  assert plain.layers == {}
  # Another program, which rounds otherwise.
  assert_equal(named._replace(layers={}), plain, rtol=1e-5, atol=5e-5)
  assert_equal(statistics, plain_statistics, rtol=1e-5, atol=1e-6)
  old = variables(name)['batch_stats']
  same = jax.tree.map(np.array_equal, statistics, old)
  assert any(jax.tree.leaves(same)) != train


@pytest.mark.parametrize('name', SMALL)
def test_training_is_evaluation_with_the_statistics_of_the_batch(name):
  """For every layer; BatchNorm keeps .9 of the old running statistics."""
  layers = tagger.layer_names(model(name))
  trained, statistics = outputs(name, True, layers)
  own = jax.tree.map(
    lambda new, old: (new - 0.9 * old) / 0.1,
    statistics,
    variables(name)['batch_stats'],
  )
  twin, _ = run(name, False, layers)(variables(name) | {'batch_stats': own})
  for layer, frames_BTD in trained.layers.items():
    scale = float(abs(frames_BTD).max())
    np.testing.assert_allclose(
      frames_BTD, twin.layers[layer], atol=2e-4 * scale, err_msg=layer
    )


@pytest.mark.parametrize(
  ('name', 'layer', 'count'),
  [
    ('cnn', 'block_2', 2),
    ('crnn', 'block_1', 1),
    ('mobilenet', 'block_3', 6),  # The stem, 2 and 3 of bottlenecks.
  ],
)
def test_gradients_reach_the_convolutions_below_and_no_other(
  name, layer, count
):

  @jax.jit
  @jax.grad
  def gradient(params):
    output, _ = tagger.forward(
      model(name),
      variables(name) | {'params': params},
      mel_BTF(),
      train=True,
      layers=[layer],
    )
    return jnp.sin(output.layers[layer]).sum()

  found = gradient(variables(name)['params'])
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  reached = {part for part, leaves in found.items() if tree_any(leaves)}
  expected = {f'{kind}_{i}' for kind in ('Conv', 'Norm') for i in range(count)}
  assert reached == expected


def test_members_may_be_mapped():
  """A leading axis of the variables; each with dropout and statistics."""
  name, layers = 'crnn', ('block_1', 'frames')
  members = [variables(name, seed) for seed in (1, 2)]
  stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
  mapped = jax.vmap(run(name, True, layers))(stacked)
  for i, member in enumerate(members):
    assert_equal(
      jax.tree.map(lambda leaf, i=i: leaf[i], mapped),
      run(name, True, layers)(member),
      atol=1e-4,
      rtol=1e-4,
    )


def test_what_is_not_named_is_not_kept():
  """Without names it is the bare module; with one there is one output more."""
  name = 'cnn'

  def traced(fn):
    return jax.make_jaxpr(fn)(variables(name))

  def bare(variables):
    output, updates = model(name).module.apply(
      variables, mel_BTF(), train=True, mutable=['batch_stats']
    )
    return output, updates['batch_stats']

  def forward(layers=()):
    return lambda variables: tagger.forward(
      model(name), variables, mel_BTF(), train=True, layers=layers
    )

  assert str(traced(forward())) == str(traced(bare))
  plain, one = (traced(forward(layers)).jaxpr for layers in ((), ('block_2',)))
  assert len(one.outvars) == len(plain.outvars) + 1


@pytest.mark.parametrize('train', [False, True])
def test_layers_of_a_bfloat16_model_are_float32(train):
  found = model('crnn', dtype=jnp.bfloat16)
  layers = tagger.layer_names(found)
  output, _ = jax.eval_shape(
    lambda: tagger.forward(
      found, variables('crnn'), mel_BTF(), train=train, layers=layers
    )
  )
  assert {frames.dtype for frames in output.layers.values()} == {
    jnp.dtype('float32')
  }


@pytest.mark.parametrize(
  ('layers', 'message'),
  [
    (['blok_2'], r"layer: 'blok_2'.*'block_1', 'block_2'.*mean 'block_2'"),
    (['block_4'], "layer: 'block_4'.*'block_3', 'frames'"),
    (['frames', 'lstm'], "layer: 'lstm'"),
    ([''], "layer: ''"),
  ],
)
def test_unknown_layers_are_refused(layers, message):
  found = model('cnn')
  with pytest.raises(ValueError, match=message):
    tagger.apply(found, variables('cnn'), mel_BTF(), layers)


def test_apply_is_forward_in_evaluation():
  found = model('crnn')
  output = jax.jit(
    lambda variables: tagger.apply(found, variables, mel_BTF(), ['block_1'])
  )(variables('crnn'))
  expected, _ = outputs('crnn', layers=('block_1',))
  assert_equal(output, expected, atol=1e-5)
