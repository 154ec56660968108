"""A pretrained teacher's one pass: XLA with our convolutions, and LiteRT.

  PYTHONPATH=. python benchmarks/pretrained.py mn04_as_mAP_432.pt

Milliseconds a clip of ten seconds at 16 kHz, the best of some rounds in turn:
the front end; the model in XLA, with the convolutions of this project and with
XLA's own; the model in LiteRT (`pip install 'iusp-jax[export]'`) on one thread.
"""

import dataclasses
import functools
import pathlib
import sys
import time

import jax
import numpy as np

from iusp_jax.deploy import litert
from iusp_jax.models import tagger
from iusp_jax.models.pretrained import audioset, efficientat, torch_file

CLIPS, ROUNDS, SAMPLES = 32, 5, 160_000
TAGS = {'dog': ['Dog'], 'rain': ['Rain']}


def main(weights: str):
  """Prints a line for each way."""
  model = tagger.build(
    {
      'model': {'architecture': 'efficientat', 'width_multiplier': 0.4},
      'frontend': {'kind': 'kaldi_mel', 'sample_rate': 16_000},
    },
    len(TAGS),
  )
  variables = efficientat.zero_shot(
    model.shapes(SAMPLES),
    torch_file.read(pathlib.Path(weights), 10**8),
    audioset.matrix(TAGS),
  )

  def of_lowering(lowering):
    module = model.module.clone(lowering=lowering)
    return dataclasses.replace(model, module=module)

  def in_xla(lowering):
    own = of_lowering(lowering)
    found = jax.jit(lambda mel: tagger.apply(own, variables, mel).logits_BC)
    return lambda: np.asarray(found(mel_BTF))

  def in_litert():
    own = of_lowering('unrolled')

    def of_clip(mel_BTF):
      return {'logits': tagger.apply(own, variables, mel_BTF).logits_BC}

    content = litert.convert(of_clip, {'mel_BTF': mel_BTF[:1]})
    run = litert.Interpreter(content)
    return lambda: np.concatenate(
      [run(mel_BTF=mel_TF[None])['logits'] for mel_TF in mel_BTF]
    )

  rng = np.random.default_rng(0)
  wave_BS = (3000 * rng.normal(size=(CLIPS, SAMPLES))).astype(np.int16)
  front_end = jax.jit(functools.partial(tagger.log_mel, model))
  mel_BTF = np.asarray(front_end(wave_BS))
  ways = {
    'front end': lambda: np.asarray(front_end(wave_BS)),
    'model, XLA': in_xla('auto'),
    "model, XLA's own convolutions": in_xla('native'),
    'model, LiteRT': in_litert(),
  }
  expected_BC = ways['model, XLA']()
  best = dict.fromkeys(ways, np.inf)
  for _ in range(ROUNDS):
    for name, run in ways.items():
      started = time.perf_counter()
      found = run()
      best[name] = min(best[name], time.perf_counter() - started)
      if name != 'front end':
        np.testing.assert_allclose(found, expected_BC, atol=1e-3)
  for name, seconds in best.items():
    print(f'{name}: {1e3 * seconds / CLIPS:.1f} ms a clip')


if __name__ == '__main__':
  main(sys.argv[1])
