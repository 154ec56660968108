"""Says whether a term of weight 0 leaves a student as it is, to the last bit.

Rows, variables, and the length of its gradient; with clipping and a moving
average. The term has parameters, and its own gradient is long.
"""

import os

import xla

os.environ['XLA_FLAGS'] = xla.flags(2, older_fusion=False)

import fits
import jax
import jax.numpy as jnp

from iusp_jax.objectives import terms


def main():
  def hint(x):
    projected_BC = x.frames['frames'].mean(1) @ x.params
    return 1e6 * jnp.square(projected_BC - x.targets['logits']).mean(1)

  def init(key, x):
    shape = x.frames['frames'].shape[-1], x.logits_BC.shape[-1]
    return jax.random.normal(key, shape)

  terms.TERMS['hint'] = terms.Term(
    'T', '#123456', 'v', targets=('logits',), per_clip=hint, init=init
  )
  fields = {'clip_factor': 0.5, 'ema_decay': 0.9, **fits.PLAN}
  (member,) = fits.fit([fits.make_job({'kd': 1.0, 'hint': 0.0}, 5, **fields)])
  (plain,) = fits.fit([fits.make_job({'kd': 1.0}, 5, **fields)])
  hints = [row.pop('train/hint', None) for row in member.rows]
  print('long:', max(filter(None, hints)) > 1e4)
  print('same:', fits.bits(member) == fits.bits(plain))


if __name__ == '__main__':
  main()
