"""`--mode=serve`: a local page that tags what is dropped or recorded.

The page sends a sound as the body of a request, without a name: there is none
that could be a path. What comes is limited in bytes and in seconds, is kept in
memory, and is read by the reader of all recordings. Nothing but the page itself
and its answers is served.
"""

import base64
import dataclasses
import json
import pathlib
import tempfile
import threading
from collections.abc import Sequence
from typing import Any

from iusp_jax.deploy import tag_files, tagging
from iusp_jax.runtime import files, logs, packages
from tfds_dcase import audio

MAX_BYTES = 64 << 20
MAX_SECONDS = 600.0
_PAGE = pathlib.Path(__file__).with_name('page.html')
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'unsafe-inline'; style-src "
    "'unsafe-inline'; img-src data:; media-src blob:; connect-src 'self'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Cache-Control': 'no-store',
}


@dataclasses.dataclass(frozen=True)
class Model:
  """A tagger of the page.

  Attributes:
    title: what it is called there.
    loaded: the tagger.
  """

  title: str
  loaded: tagging.LoadedTagger


def run(
  checkpoint: str, names: Sequence[str], host: str = '127.0.0.1', port: int = 0
) -> None:
  """Serves the page until it is interrupted.

  Args:
    checkpoint: workdir of a finished run; its teacher is shown beside it.
    names: workdirs of other runs, to compare.
    host: the address to listen at.
    port: the port; 0 for any that is free.

  Raises:
    ValueError: for flags that cannot be right, or where a package is missing.
    OSError: where nothing can listen there.
  """
  if not checkpoint:
    raise ValueError(
      '--checkpoint is missing: expected the workdir of a finished run'
    )
  uvicorn = _require('uvicorn')
  made = app(find(checkpoint, names), host)
  config = uvicorn.Config(made, host, port, log_level='error')
  socket = config.bind_socket()
  logs.log(f'http://{host}:{socket.getsockname()[1]} (Ctrl-C ends it)')
  uvicorn.Server(config).run([socket])


def find(checkpoint: str, names: Sequence[str]) -> list[Model]:
  """The taggers to show: a student, its teacher where it is here, others."""
  folder = pathlib.Path(files.resolve(checkpoint))
  found = [Model(f'student: {folder.name}', tagging.load(checkpoint))]
  results = folder / 'results.json'
  if results.is_file():
    place = files.read_json(results).get('teacher', {}).get('workdir')
    if place and (pathlib.Path(place) / 'model.json').is_file():
      found.append(Model('its teacher', tagging.load(place)))
  return found + [Model(name, tagging.load(name)) for name in names]


def app(models: Sequence[Model], host: str = '127.0.0.1') -> Any:
  """The page as an ASGI application.

  Args:
    models: the taggers.
    host: at which it is reached; requests for other hosts are refused, so
      that no page of another site can ask this one under a name of its own.
  """
  applications = _require('starlette.applications')
  hosts = _require('starlette.middleware.trustedhost')
  middleware = _require('starlette.middleware')
  threads = _require('starlette.concurrency')
  responses = _require('starlette.responses')
  routing = _require('starlette.routing')
  one_at_a_time = threading.Lock()

  def answer(found: dict[str, Any], status: int = 200) -> Any:
    return responses.Response(
      json.dumps(found), status, _HEADERS, 'application/json'
    )

  async def page(request: Any) -> Any:
    del request
    return responses.HTMLResponse(_PAGE.read_text(), headers=_HEADERS)

  async def tag(request: Any) -> Any:
    content = await _read(request)
    if content is None:
      limit = f'expected at most {MAX_BYTES >> 20} MB'
      return answer({'problem': f'the file is too large: {limit}'}, 413)

    def work() -> dict[str, Any]:
      with one_at_a_time:
        return describe(models, content)

    try:
      return answer(await threads.run_in_threadpool(work))
    except (audio.BadRecordingError, ValueError) as error:
      return answer({'problem': str(error).lstrip(': ')}, 422)

  allowed = ['*'] if host in ('0.0.0.0', '::') else [host, 'localhost']
  return applications.Starlette(
    routes=[
      routing.Route('/', page),
      routing.Route('/tag', tag, methods=['POST']),
    ],
    middleware=[
      middleware.Middleware(hosts.TrustedHostMiddleware, allowed_hosts=allowed)
    ],
  )


async def _read(request: Any) -> bytes | None:
  """A request's body; None as soon as it is too large."""
  declared = request.headers.get('content-length', '0')
  if not declared.isdecimal() or int(declared) > MAX_BYTES:
    return None
  content = bytearray()
  async for part in request.stream():
    content += part
    if len(content) > MAX_BYTES:
      return None
  return bytes(content)


def describe(models: Sequence[Model], content: bytes) -> dict[str, Any]:
  """What the page shows of a sound file.

  Raises:
    BadRecordingError: (a ValueError) saying what is wrong with it.
  """
  if not content:
    raise ValueError('the file is empty')
  shown, seconds = [], 0.0
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'plot.png')
    for model in models:
      found = model.loaded.tag(content, seconds=MAX_SECONDS)
      tag_files.draw(model.loaded, content, found, model.title, path)
      notes, seconds = list(found.notes), found.seconds
      if seconds >= MAX_SECONDS:
        notes.append(f'only the first {MAX_SECONDS:g} s are tagged')
      thresholds = dict(zip(found.names, found.thresholds_C, strict=True))
      png = base64.b64encode(path.read_bytes()).decode()
      shown.append(
        {
          'title': model.title,
          'tags': [
            (name, probability, float(thresholds[name]))
            for name, probability in found.probabilities.items()
          ],
          'notes': notes,
          'plot': f'data:image/png;base64,{png}',
        }
      )
  return {'seconds': seconds, 'models': shown}


def _require(module: str) -> Any:
  remedy = "pip install 'iusp-jax[serve]'"
  return packages.require(module, '--mode=serve', remedy)
