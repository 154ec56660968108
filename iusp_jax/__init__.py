"""Intra-utterance similarity preserving distillation of audio taggers.

  from iusp_jax import iusp_loss

gives the loss for a training loop of your own;

  found = iusp_jax.load('runs/iusp-demo')(waveform, sample_rate)

tags a sound with a model that a run trained, `found.present` and
`found.probabilities`. `iusp_jax.__all__` lists what else there is. Each name
is imported when it is first used, so that importing the package loads no JAX.

Arrays carry their dimensions as a suffix, one letter an axis:

  B clip of a batch      S sample of a recording   T frame
  F mel band             H channel                 D embedding
  C tag                  Q fine column, X included A annotator
  N clip of a split      K distinct threshold      M member of a group
"""

import importlib

__version__ = '0.1.0'

# Public names, and the modules that define them.
_HOME = {
  'iusp_loss': 'objectives',
  'sp_loss': 'objectives',
  'kd_loss': 'objectives',
  'tagging_loss': 'objectives',
  'frame_similarity': 'objectives',
  'batch_similarity': 'objectives',
  'log_mel': 'audio.frontend',
  'num_frames': 'audio.frontend',
  'FrontendConfig': 'audio.frontend',
  'load': 'deploy.tagging',
}

_MODULES = ('objectives', 'similarity')

__all__ = list(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
  """Imports a public name when it is first used (PEP 562)."""
  if name in _MODULES:
    return importlib.import_module(f'{__name__}.{name}')
  if name not in _HOME:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  module = importlib.import_module(f'{__name__}.{_HOME[name]}')
  return getattr(module, name)


def __dir__() -> list[str]:
  return sorted([*globals(), *__all__])
