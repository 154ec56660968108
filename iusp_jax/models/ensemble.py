"""Several frozen taggers as one: the mean of their logits and similarities.

Logits and frame logits are the members' means. The frames of a member are
scaled so that their Gram matrix has the Frobenius norm 1 in every clip, and are
put beside one another: the Gram matrix of the whole is the sum of the members',
each as large as the others. So an ensemble is stored, drawn, scored and
distilled from like any one teacher. It has no inner layers that have a name,
and is not trained: its members are.
"""

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from iusp_jax.models.layers import TaggerOutput


class Ensemble(nn.Module):
  """See the module.

  Attributes:
    member: a tagger; all members are of its architecture.
    size: how many there are, `member_0` to `member_<size - 1>` in 'params'.
    lowering: of the members' convolutions; 'auto' for what the member has.
  """

  member: nn.Module
  size: int
  lowering: str = 'auto'

  num_blocks: ClassVar[int] = 0
  num_inner: ClassVar[int] = 0

  @nn.compact
  def __call__(self, mel_BTF, train: bool = False, keys_B=None):
    """Tags log-mel spectrograms [B, T, F]."""
    del train, keys_B
    fields: dict[str, Any] = {}
    if self.lowering != 'auto':
      fields['lowering'] = self.lowering
    outputs = [
      self.member.clone(parent=self, name=f'member_{k}', **fields)(mel_BTF)
      for k in range(self.size)
    ]

    def mean(arrays):
      return jnp.mean(jnp.stack(arrays), axis=0)

    return TaggerOutput(
      logits_BC=mean([x.logits_BC for x in outputs]),
      frames_BTD=jnp.concatenate([_scaled(x.frames_BTD) for x in outputs], 2),
      frame_logits_BTC=mean([x.frame_logits_BTC for x in outputs]),
    )


def _scaled(frames_BTD: jax.Array) -> jax.Array:
  """With a Gram matrix of Frobenius norm 1 in every clip; silence stays 0."""
  gram_BTT = jnp.einsum('btd,bud->btu', frames_BTD, frames_BTD)
  norm_B11 = jnp.sqrt(jnp.sum(jnp.square(gram_BTT), (1, 2), keepdims=True))
  return frames_BTD * jax.lax.rsqrt(jnp.maximum(norm_B11, 1e-12))
