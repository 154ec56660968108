"""Intra-utterance similarity preserving distillation of audio taggers.

Arrays carry their dimensions as a suffix, one letter an axis:

  B clip of a batch      S sample of a recording   T frame
  F mel band             H channel                 D embedding
  C tag                  Q fine column, X included A annotator
  N clip of a split      K distinct threshold
"""
