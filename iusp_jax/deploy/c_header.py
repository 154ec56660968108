"""The front end's tables as a C header, for a microcontroller.

The header has the window, the mel triangles without their zeros, and the last
step, from magnitudes to log-mel. The Fourier transform is the platform's own:
`IUSP_FFT_LENGTH` real samples, of which those after the window are zero.
"""

import numpy as np

from iusp_jax.audio import frontend

_HEAD = """\
// Front end of an audio tagger, written by iusp export. No heap, no library
// but math.h. For each frame t: multiply the samples from t * IUSP_HOP on,
// float in [-1, 1], by iusp_window; append zeros up to IUSP_FFT_LENGTH; take
// the magnitudes of the real FFT, IUSP_FFT_LENGTH / 2 + 1 of them; call
// iusp_log_mel.
#ifndef IUSP_FRONTEND_H_
#define IUSP_FRONTEND_H_

#include <math.h>

"""
_TAIL = """\
// Log-mel of one frame from the magnitudes of its spectrum.
static inline void iusp_log_mel(const float *magnitudes, float *log_mel) {
  int next = 0;
  for (int band = 0; band < IUSP_MEL_BANDS; ++band) {
    float sum = 0.0f;
    for (int i = 0; i < iusp_mel_count[band]; ++i)
      sum += iusp_mel_weights[next++] * magnitudes[iusp_mel_first[band] + i];
    log_mel[band] = logf(sum + IUSP_LOG_OFFSET);
  }
}

#endif  // IUSP_FRONTEND_H_
"""


def header(cfg: frontend.FrontendConfig, num_frames: int) -> str:
  """The text of the header.

  Args:
    cfg: the front end.
    num_frames: log-mel frames of a clip.
  """
  weights = frontend.mel_matrix(cfg)
  first, count, values = [], [], []
  for column in weights.T:
    inside = np.flatnonzero(column)
    first.append(int(inside[0]))
    count.append(int(inside[-1] - inside[0] + 1))
    values += column[first[-1] : first[-1] + count[-1]].tolist()
  constants = {
    'SAMPLE_RATE': cfg.sample_rate,
    'WINDOW': cfg.window_samples,
    'HOP': cfg.hop_samples,
    'FFT_LENGTH': cfg.fft_length,
    'MEL_BANDS': cfg.num_mel_bands,
    'CLIP_FRAMES': num_frames,
    'LOG_OFFSET': _number(cfg.log_offset),
  }
  lines = [f'#define IUSP_{name} {value}' for name, value in constants.items()]
  return (
    _HEAD
    + '\n'.join(lines)
    + '\n\n'
    + _array('float iusp_window', map(_number, frontend.window(cfg)))
    + _array('int iusp_mel_first', map(str, first))
    + _array('int iusp_mel_count', map(str, count))
    + _array('float iusp_mel_weights', map(_number, values))
    + _TAIL
  )


def _number(value) -> str:
  """A float32 that reads back as the same."""
  text = f'{np.float32(value):.9g}'
  return f'{text}f' if '.' in text or 'e' in text else f'{text}.0f'


def _array(name: str, values) -> str:
  """A constant array, a few numbers a line."""
  values = list(values)
  rows = [', '.join(values[i : i + 6]) for i in range(0, len(values), 6)]
  body = ',\n  '.join(rows)
  return f'static const {name}[{len(values)}] = {{\n  {body}}};\n\n'
