"""Tags over time from sound that comes in parts: a step with a state.

A step takes some frames of log-mel, and the state; it gives the tags' logits
and the embeddings of as many frame embeddings as these make, and the next
state. What it gives is what the whole clip would give wherever the same sound
is around a frame:

- crnn: everywhere. The state has the LSTM's output and cell, and the last
  frames of the log-mel; the silence before the start is the model's own.
- cnn, mobilenet: but for the first `context` frames, since a convolution of a
  whole clip takes what is before its start as zeros at every layer.

A frame is given `look_ahead` log-mel frames after its own have come. How far a
frame embedding depends on log-mel before and after it is measured, see
`measure_reach`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from iusp_jax.audio import frontend
from iusp_jax.deploy import functions, litert, tagging
from iusp_jax.models import crnn, layers, tagger
from tfds_dcase import audio

State = dict[str, jax.Array]

_CONVOLUTION_FRAMES = 12  # A step of a convolutional tagger: about a second.


class Reach(NamedTuple):
  """How far a frame embedding depends on log-mel frames.

  Frame j of a tagger of reduction r depends on the log-mel frames from
  `r * j - before` to `r * (j + 1) + after - 1`, of convolutions alone.
  """

  before: int
  after: int


@dataclasses.dataclass(frozen=True)
class Stream:
  """A tagger as a step.

  Attributes:
    own: model and variables.
    reach: of its convolutions.
    num_frames: frame embeddings of a step.
  """

  own: functions.Functions
  reach: Reach
  num_frames: int

  @classmethod
  def of(cls, own: functions.Functions, num_frames: int = 0) -> 'Stream':
    """The stream of a tagger.

    Args:
      own: the tagger.
      num_frames: of a step; 0: 1 for a recurrent tagger, else 12, since a step
        of a convolutional one computes its context anew.
    """
    recurrent = isinstance(own.model.module, crnn.Crnn)
    count = num_frames or (1 if recurrent else _CONVOLUTION_FRAMES)
    return cls(own, measure_reach(own.model, own.variables), count)

  @property
  def recurrent(self) -> bool:
    """Whether there is an LSTM, whose state goes on."""
    return isinstance(self.own.model.module, crnn.Crnn)

  @functools.cached_property
  def reduction(self) -> int:
    """Log-mel frames of a frame embedding."""
    return tagger.frame_reduction(self.own.model)

  @property
  def context(self) -> int:
    """Frame embeddings before a step's own that it computes again."""
    return -(-self.reach.before // self.reduction)

  @property
  def look_ahead(self) -> int:
    """Log-mel frames after a frame's own that it waits for."""
    return self.reach.after

  @property
  def mel_frames(self) -> int:
    """Log-mel frames that a step takes."""
    return self.reduction * self.num_frames

  def latency_seconds(self) -> float:
    """From the start of a step's first frame until the step can run."""
    cfg = self.own.model.frontend
    frames = self.mel_frames + self.look_ahead - 1
    return frames * cfg.hop_seconds + cfg.window_seconds

  def start(self, first_mel_TF) -> State:
    """The state before the first step.

    Args:
      first_mel_TF: the first `look_ahead` frames of log-mel; the steps take
        those that follow.
    """
    bands = self.own.model.frontend.num_mel_bands
    if np.shape(first_mel_TF) != (self.look_ahead, bands):
      raise ValueError(
        f'first_mel_TF has shape {np.shape(first_mel_TF)}: expected '
        f'{(self.look_ahead, bands)}'
      )
    silence_TF = np.tile(self.silence, (self.context * self.reduction, 1))
    mel_BTF = jnp.concatenate([silence_TF, jnp.asarray(first_mel_TF)])[None]
    state = {'mel': mel_BTF.astype(jnp.float32)}
    if self.recurrent:
      hidden = self.own.model.module.hidden  # pyright: ignore
      zeros = jnp.zeros((1, hidden), jnp.float32)
      state |= {'output': zeros, 'cell': zeros}
    return state

  @property
  def silence(self) -> np.ndarray:
    """The log-mel [F] that the model takes as nothing: zero after its norm."""
    norm = self.own.variables['batch_stats']['input_norm']
    return np.asarray(norm['mean'], np.float32)

  def step(self, mel_BTF, state: State) -> tuple[dict[str, jax.Array], State]:
    """The next frames.

    Args:
      mel_BTF: the next log-mel, `[1, mel_frames, F]`.
      state: from `start` or the step before.

    Returns:
      `probabilities` `[1, num_frames, C]`, calibrated, and `embeddings`
      `[1, num_frames, D]`; and the next state.
    """
    mel_BTF = jnp.concatenate([state['mel'], mel_BTF], axis=1)
    following = {'mel': mel_BTF[:, self.mel_frames :]}
    x_BTD = convolved(self.own.model, self.own.variables, mel_BTF)
    x_BTD = x_BTD[:, self.context : self.context + self.num_frames]
    parameters = self.own.variables['params']
    if self.recurrent:
      before = state['output'], state['cell']
      x_BTD, (output, cell) = layers.continue_lstm(
        parameters['Lstm_0'], x_BTD, before
      )
      following |= {'output': output, 'cell': cell}
    module: Any = self.own.model.module
    head = layers.Head(module.num_tags, module.pooling)
    _, logits_BTC = head.apply({'params': parameters['Head_0']}, x_BTD)
    found = {
      'probabilities': self.own.probabilities(logits_BTC),
      'embeddings': x_BTD,
    }
    return found, following

  def pool(self, embeddings_TD) -> np.ndarray:
    """Probabilities [C] of a clip with some frame embeddings."""
    module: Any = self.own.model.module
    head = layers.Head(module.num_tags, module.pooling)
    logits_BC, _ = head.apply(
      {'params': self.own.variables['params']['Head_0']},
      jnp.asarray(embeddings_TD)[None],
    )
    return np.asarray(self.own.probabilities(logits_BC))[0]


def to_litert(step: Stream) -> bytes:
  """A step as a `.tflite` file.

  Inputs are `log_mel` and the arrays of the state by name; outputs are
  `probabilities`, `embeddings`, and the next state, `next_<name>` each.
  """
  step = dataclasses.replace(step, own=step.own.to_convert())
  bands = step.own.model.frontend.num_mel_bands
  mel_BTF = np.zeros((1, step.mel_frames, bands), np.float32)

  def run(log_mel, **state):
    found, following = step.step(log_mel, state)
    return found | {f'next_{name}': x for name, x in following.items()}

  state = step.start(np.zeros((step.look_ahead, bands)))
  return litert.convert(run, {'log_mel': mel_BTF, **state})


def run_litert(
  step: Stream, run: litert.Interpreter, mel_TF: np.ndarray
) -> np.ndarray:
  """Probabilities [T, C] of a clip's frames by the file of `to_litert`."""
  first, size = step.look_ahead, step.mel_frames
  state: dict[str, Any] = dict(step.start(mel_TF[:first]))
  found = []
  while first + size <= len(mel_TF):
    output = run(log_mel=mel_TF[None, first : first + size], **state)
    found.append(output['probabilities'][0])
    state = {name: output[f'next_{name}'] for name in state}
    first += size
  if not found:
    raise ValueError(
      f'a clip has {len(mel_TF)} log-mel frames: expected at least '
      f'{first + size}, those of a step'
    )
  return np.concatenate(found)


def convolved(model: tagger.Tagger, variables, mel_BTF) -> jax.Array:
  """What comes before an LSTM, or the frame embeddings: [B, T, D]."""
  if not isinstance(model.module, crnn.Crnn):
    return tagger.apply(model, variables, mel_BTF).frames_BTD
  name = layers.block_name(1)
  found: Any = model.module.apply(
    variables,
    mel_BTF,
    mutable=['intermediates'],
    capture_intermediates=lambda module, _: module.name == name,
  )[1]
  x_BTFH: Any = found['intermediates'][name]['__call__'][0]
  return x_BTFH.reshape(*x_BTFH.shape[:2], -1).astype(jnp.float32)


def measure_reach(model: tagger.Tagger, variables) -> Reach:
  """How far a frame embedding depends on log-mel frames.

  Whatever the variables are: it is seen in a model of the same architecture
  whose convolutions hand on their first or last tap in time alone, so that a
  change goes as far as it can, undiminished, and no activation hides it.

  Raises:
    ValueError: for a model that reaches further than about five seconds.
  """
  reduction, length = tagger.frame_reduction(model), 1024
  bands = model.frontend.num_mel_bands
  before = after = 0
  for tap in (0, -1):
    probe = jax.tree_util.tree_map_with_path(
      functools.partial(_probe, tap), variables
    )
    run = jax.jit(functools.partial(convolved, model, probe))
    same_TD = np.asarray(run(np.full((1, length, bands), _LOW, 'f4')))[0]
    for middle in range(length // 2, length // 2 + reduction):
      place_T = np.arange(length)
      is_changed_T = place_T <= middle if tap == 0 else place_T >= middle
      mel_TF = np.full((length, bands), _LOW, np.float32)
      mel_TF[is_changed_T] *= 2
      found_TD = np.asarray(run(mel_TF[None]))[0]
      changed_T = (np.abs(found_TD - same_TD) > 1e-4 * same_TD).any(axis=-1)
      if changed_T.all():
        raise ValueError(
          f'a frame of this model depends on more than {length // 2} log-mel '
          'frames: expected fewer, for a stream'
        )
      frames = np.flatnonzero(changed_T)
      if tap == 0:  # The last frame that reaches back so far.
        before = max(before, reduction * int(frames[-1]) - middle)
      else:
        after = max(after, middle - reduction * (int(frames[0]) + 1) + 1)
  return Reach(before, after)


_LOW = np.float32(1e-6)  # Far from where a ReLU6 ends.


def _probe(tap: int, path, leaf) -> np.ndarray:
  """A variable of the model that `measure_reach` looks at."""
  name = jax.tree_util.keystr(path, simple=True, separator='/')
  if name.endswith(('/bias', '/mean')):
    return np.zeros(leaf.shape, np.float32)
  found = np.ones(leaf.shape, np.float32)
  if leaf.ndim == 4:  # A convolution's kernel: time, frequency, in, out.
    found[:] = 0
    found[tap] = 1 / (leaf.shape[1] * leaf.shape[2])
  return found


class Listener:
  """Tags over time from samples as they come, such as a microphone's.

    listener = stream.Listener(iusp_jax.load('runs/iusp-demo'))
    for samples in microphone:
      probabilities_TC, _ = listener(samples)

  Attributes:
    stream: the step.
    names: of the tags.
  """

  def __init__(self, loaded: tagging.LoadedTagger, num_frames: int = 0):
    self.stream = Stream.of(functions.Functions.of(loaded), num_frames)
    self.names = loaded.names
    self._step = jax.jit(self.stream.step)
    self._log_mel: Callable = jax.jit(self.stream.own.log_mel)
    bands = loaded.trained.model.frontend.num_mel_bands
    self._wave_S = np.zeros(0, np.float32)
    self._mel_TF = np.zeros((0, bands), np.float32)
    self._state: State | None = None
    self._num_mel = self._num_given = 0

  @property
  def sample_rate(self) -> int:
    """Of the samples that it takes, in Hz."""
    return self.stream.own.model.frontend.sample_rate

  def __call__(self, wave_S) -> tuple[np.ndarray, np.ndarray]:
    """Takes the next samples.

    Args:
      wave_S: float in [-1, 1] or int16, at `sample_rate`, however many.

    Returns:
      Probabilities [T, C] and embeddings [T, D] of the frames that are
      complete now, none or some.
    """
    wave_S = np.asarray(wave_S)
    if wave_S.dtype != np.int16:
      wave_S = audio.to_int16(wave_S)
    wave_S = wave_S.astype(np.float32) / 32768
    self._wave_S = np.concatenate([self._wave_S, wave_S])
    cfg = self.stream.own.model.frontend
    size = self.stream.mel_frames
    while len(self._wave_S) >= (
      (size - 1) * cfg.hop_samples + cfg.window_samples
    ):
      self._take(size)
    return self._run()

  def finish(self) -> tuple[np.ndarray, np.ndarray]:
    """The frames that wait for what comes after the end of the sound."""
    stream, cfg = self.stream, self.stream.own.model.frontend
    if len(self._wave_S) >= cfg.window_samples:
      self._take(frontend.num_frames(len(self._wave_S), cfg))
    silence_TF = np.tile(stream.silence, (stream.mel_frames, 1))
    wanted = -(-self._num_mel // stream.reduction) - self._num_given
    found = [self._run()]
    while sum(len(own[0]) for own in found) < wanted:
      self._mel_TF = np.concatenate([self._mel_TF, silence_TF])
      found.append(self._run())
    probabilities_TC, embeddings_TD = (
      np.concatenate(own)[:wanted] for own in zip(*found, strict=True)
    )
    return probabilities_TC, embeddings_TD

  def _take(self, count: int) -> None:
    """Makes some frames of log-mel of the first samples that wait."""
    cfg = self.stream.own.model.frontend
    need = (count - 1) * cfg.hop_samples + cfg.window_samples
    mel_TF = np.asarray(self._log_mel(self._wave_S[None, :need]))[0]
    self._wave_S = self._wave_S[count * cfg.hop_samples :]
    self._mel_TF = np.concatenate([self._mel_TF, mel_TF])
    self._num_mel += count

  def _run(self) -> tuple[np.ndarray, np.ndarray]:
    """The steps for which there is log-mel."""
    stream = self.stream
    if self._state is None and len(self._mel_TF) >= stream.look_ahead:
      self._state = stream.start(self._mel_TF[: stream.look_ahead])
      self._mel_TF = self._mel_TF[stream.look_ahead :]
    found = [(np.zeros((0, len(self.names))), np.zeros((0, self._width)))]
    while self._state is not None and len(self._mel_TF) >= stream.mel_frames:
      mel_BTF = self._mel_TF[None, : stream.mel_frames]
      own, self._state = self._step(mel_BTF, self._state)
      found.append(
        (np.asarray(own['probabilities'])[0], np.asarray(own['embeddings'])[0])
      )
      self._mel_TF = self._mel_TF[stream.mel_frames :]
    probabilities_TC, embeddings_TD = (
      np.concatenate(own) for own in zip(*found, strict=True)
    )
    self._num_given += len(probabilities_TC)
    return probabilities_TC.astype('f4'), embeddings_TD.astype('f4')

  @functools.cached_property
  def _width(self) -> int:
    """Size of a frame embedding."""
    kernel = self.stream.own.variables['params']['Head_0']['tags']['kernel']
    return kernel.shape[0]
