"""What a LiteRT file says of itself: labels, sample rate and clip length.

In the format of MediaPipe's tasks, which need it: a flatbuffer of the schema
`ModelMetadata` among the file's buffers, and `labels.txt` in a ZIP archive that
follows the model. Reference: mediapipe/tasks/metadata/metadata_schema.fbs in
https://github.com/google-ai-edge/mediapipe; the numbers of its fields are the
first numbers below.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Any

_LABELS = 'labels.txt'
_NAME = 'TFLITE_METADATA'  # Of the buffer.
_AUDIO, _AXIS_LABELS = 4, 2  # AudioProperties; TENSOR_AXIS_LABELS.
_PARSER = '1.3.0'  # The first that knows audio.


def add(
  content: bytes, labels: Sequence[str], sample_rate: int, num_samples: int
) -> bytes:
  """A `.tflite` file from a waveform to probabilities, with its metadata.

  Args:
    content: of the file.
    labels: names of the tags.
    sample_rate: of the waveform, in Hz.
    num_samples: of the waveform.
  """
  import flatbuffers  # pyright: ignore[reportMissingImports]
  from ai_edge_litert import (  # pyright: ignore[reportMissingImports]
    schema_py_generated as schema,
  )

  model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
  buffer = schema.BufferT()
  buffer.data = list(_metadata(flatbuffers, sample_rate, num_samples))
  entry = schema.MetadataT()
  buffers = list(model.buffers or [])
  entry.name, entry.buffer = _NAME, len(buffers)
  model.buffers = [*buffers, buffer]
  model.metadata = [*(model.metadata or []), entry]
  builder = flatbuffers.Builder(len(content))
  builder.Finish(model.Pack(builder), b'TFL3')
  file = io.BytesIO(bytes(builder.Output()))
  with zipfile.ZipFile(file, 'a') as archive:
    # Not compressed, and without the time: the same model is the same file.
    text = ''.join(f'{label}\n' for label in labels)
    archive.writestr(zipfile.ZipInfo(_LABELS), text)
  return file.getvalue()


def _metadata(flatbuffers, sample_rate: int, num_samples: int) -> bytes:
  """The flatbuffer `ModelMetadata`."""
  builder = flatbuffers.Builder(0)

  def table(*fields: tuple[int, Any]) -> int:
    """Writes a table; int32 fields are given as ints, int8 as bytes."""
    builder.StartObject(10)
    for slot, value in fields:
      if isinstance(value, bytes):
        builder.PrependInt8Slot(slot, value[0], 0)
      elif isinstance(value, _Place):
        builder.PrependUOffsetTRelativeSlot(slot, value.offset, 0)
      else:
        builder.PrependUint32Slot(slot, value, 0)
    return builder.EndObject()

  def text(value: str) -> '_Place':
    return _Place(builder.CreateString(value))

  def one(offset: int) -> '_Place':
    """A vector of one table."""
    builder.StartVector(4, 1, 4)
    builder.PrependUOffsetTRelative(offset)
    return _Place(builder.EndVector())

  seconds = num_samples / sample_rate
  length = f'{num_samples} samples ({seconds:g} s) at {sample_rate} Hz'
  audio = _Place(table((0, sample_rate), (1, 1)))  # One channel.
  content = _Place(table((0, bytes([_AUDIO])), (1, audio)))
  about = text(f'Mono, float in [-1, 1], {length}.')
  sound = one(table((0, text('waveform')), (1, about), (3, content)))
  file = one(table((0, text(_LABELS)), (2, bytes([_AXIS_LABELS]))))
  about = text('Calibrated, one for each tag.')
  tags = one(table((0, text('probabilities')), (1, about), (6, file)))
  graph = one(table((2, sound), (3, tags)))
  about = text(f'Tags {length}.')
  root = table(
    (0, text('iusp-jax audio tagger')), (1, about), (3, graph),
    (7, text(_PARSER)),
  )  # fmt: skip
  builder.Finish(root, b'M001')
  return bytes(builder.Output())


class _Place:
  """Where something that was written is."""

  def __init__(self, offset: int):
    self.offset = offset
