"""How much the gradients of the terms point where the labels' does.

  PYTHONPATH=. python benchmarks/gradient_angles.py \
    --config=configs/table.py:student=crnn_32

Cosines between the gradients of the labels' term and of each other one, of a
student that was trained for some epochs without distillation: the mean over
four batches. Near 0 a term tells the student what labels do not; below 0 it
works against them.
"""

import sys

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from iusp_jax.experiment import gradient_units, identity, teacher
from iusp_jax.experiment.setup import Setup
from iusp_jax.objectives import terms
from iusp_jax.training.recipe import Recipe

NAMES = ('kd', 'frame_kd', 'sp', 'iusp', 'iusp_centred', 'attention_transfer')
EPOCHS = (1, 5, 10)
_CONFIG = config_flags.DEFINE_config_file('config')


def cosines(product_NKK: np.ndarray) -> np.ndarray:
  """Of the first gradient with the others, the mean over batches: [K - 1]."""
  length_NK = np.sqrt(np.diagonal(product_NKK, axis1=1, axis2=2))
  both_NK = length_NK[:, :1] * length_NK[:, 1:]
  return (product_NKK[:, 0, 1:] / np.maximum(both_NK, 1e-30)).mean(0)


def main(_):
  """Prints a line for every number of epochs."""
  config = teacher.identified(identity.plain(_CONFIG.value))
  setup = Setup(config)
  setup.get_teacher(required=True)
  recipe = Recipe.from_config(config['student'])
  fields = {**config['objective']}
  fields |= {f'{name}_ratio': 1.0 for name in NAMES}
  objective = terms.Objective.from_config(fields)
  print('epochs', *objective.without_weights().terms)
  for epochs in EPOCHS:
    found = cosines(gradient_units.products(setup, recipe, objective, epochs))
    print(epochs, *(f'{value:+.3f}' for value in found))
    sys.stdout.flush()


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
