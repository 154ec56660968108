"""The page of `iusp serve`: what it answers, refuses and shows."""

import http.client
import importlib.util
import io
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from deploy_fakes import TAGS, sound, write_workdir

import iusp_jax
from iusp_jax.deploy import page

missing = [
  name for name in ('starlette', 'uvicorn')
  if importlib.util.find_spec(name) is None
]  # fmt: skip
pytestmark = pytest.mark.skipif(
  bool(missing), reason=f'{missing} of iusp-jax[serve] are not installed'
)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A student whose teacher is there, and another run."""
  root = tmp_path_factory.mktemp('runs')
  for name, seed in (('student', 0), ('teacher', 1), ('other', 2)):
    write_workdir(root / name, 'cnn', seed)
  results = {'teacher': {'workdir': str(root / 'teacher')}}
  (root / 'student' / 'results.json').write_text(json.dumps(results))
  return root


@pytest.fixture(scope='module')
def port(folders):
  """Of a page that runs in this process."""
  import uvicorn  # pyright: ignore[reportMissingImports]

  found = page.find(str(folders / 'student'), [str(folders / 'other')])
  config = uvicorn.Config(page.app(found), log_level='error')
  server = uvicorn.Server(config)
  listening = socket.socket()
  listening.bind(('127.0.0.1', 0))
  thread = threading.Thread(target=server.run, args=([listening],))
  thread.start()
  while not server.started:
    time.sleep(0.01)
  yield listening.getsockname()[1]
  server.should_exit = True
  thread.join()


def ask(port, method, path, body=None, headers=None):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  connection.request(method, path, body, headers or {})
  reply = connection.getresponse()
  return reply.status, reply.read(), reply.headers


def wav(wave_S, rate=16_000, subtype='PCM_16'):
  content = io.BytesIO()
  soundfile.write(content, wave_S, rate, subtype, format='WAV')
  return content.getvalue()


def test_a_sound_is_tagged_by_all_models_beside_each_other(port, folders):
  content = wav(sound(1.0))
  status, body, _ = ask(port, 'POST', '/tag', content)
  assert status == 200
  found = json.loads(body)
  assert found['seconds'] == 1.0
  titles = [model['title'] for model in found['models']]
  other = str(folders / 'other')
  assert titles == ['student: student', 'its teacher', other]
  for model, name in zip(
    found['models'], ('student', 'teacher', 'other'), strict=True
  ):
    own = iusp_jax.load(folders / name).tag(content)
    assert {tag: p for tag, p, _ in model['tags']} == own.probabilities
    assert sorted(threshold for *_, threshold in model['tags']) == [0.5] * 4
    assert model['plot'].startswith('data:image/png;base64,iVBOR')
  assert len({model['plot'] for model in found['models']}) == 3


def test_the_page_loads_nothing_from_elsewhere(port):
  status, body, headers = ask(port, 'GET', '/')
  assert status == 200
  assert b'http://' not in body
  assert b'https://' not in body
  assert "default-src 'none'" in headers['Content-Security-Policy']


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'the file is empty'),
    (b'\0', ''),
    (b'<script>alert(1)</script>' * 99, ''),
    (np.random.default_rng(0).bytes(100_000), ''),
    (wav(sound())[:44], ''),
    (wav(np.full(16_000, np.nan), subtype='FLOAT'), 'NaN'),
  ],
)
def test_junk_is_refused_with_a_reason(port, content, message):
  status, body, headers = ask(port, 'POST', '/tag', content)
  assert status == 422
  problem = json.loads(body)['problem']
  assert problem
  assert message in problem
  assert headers['Content-Type'].startswith('application/json')
  assert ask(port, 'POST', '/tag', wav(sound()))[0] == 200  # Still there.


def test_a_declared_size_that_is_too_large_is_refused_unread(port):
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
  connection.putrequest('POST', '/tag')
  connection.putheader('Content-Length', str(2 << 30))
  connection.endheaders()
  reply = connection.getresponse()
  assert reply.status == 413
  assert 'at most 64 MB' in json.loads(reply.read())['problem']


def test_a_stream_of_2_gb_is_refused_early(port):
  """Its size is not declared: it is counted, and the answer comes before."""
  part, sent, reply = bytes(1 << 20), 0, b''
  with socket.create_connection(('127.0.0.1', port), timeout=60) as client:
    client.sendall(
      b'POST /tag HTTP/1.1\r\nHost: 127.0.0.1\r\n'
      b'Transfer-Encoding: chunked\r\n\r\n'
    )
    while sent < 2 << 30 and not reply:
      client.sendall(b'%x\r\n%b\r\n' % (len(part), part))
      sent += len(part)
      if select.select([client], [], [], 0)[0]:
        reply = client.recv(1 << 16)
  assert b' 413 ' in reply.splitlines()[0]
  assert b'too large: expected at most 64 MB' in reply
  assert page.MAX_BYTES <= sent < 2 * page.MAX_BYTES
  assert ask(port, 'POST', '/tag', wav(sound()))[0] == 200  # Still there.


PEAK = """
import pathlib, resource, sys
from iusp_jax.deploy import page
page.MAX_SECONDS = 60.0
found = page.describe(
  page.find(sys.argv[1], []), pathlib.Path(sys.argv[2]).read_bytes()
)
assert found['seconds'] == page.MAX_SECONDS, found['seconds']
assert any('the first 60 s' in n for n in found['models'][0]['notes'])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_a_recording_of_10_hours_takes_the_memory_of_a_short_one(
  folders, tmp_path
):
  """Two minutes and ten hours, which FLAC makes small: silence."""
  peaks = []
  for minutes in (2, 600):
    path = tmp_path / f'{minutes}.flac'
    with soundfile.SoundFile(path, 'w', 8_000, 1) as file:
      file.write(sound(60.0, 8_000))
      for _ in range(minutes - 1):
        file.write(np.zeros(60 * 8_000, np.int16))
    assert path.stat().st_size < page.MAX_BYTES
    done = subprocess.run(
      [sys.executable, '-c', PEAK, str(folders / 'other'), str(path)],
      cwd=ROOT,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'},
      capture_output=True,
      text=True,
      check=True,
    )
    peaks.append(int(done.stdout.split()[-1]))
  assert peaks[1] < peaks[0] + 100, peaks  # MiB; the sound alone is 549.


@pytest.mark.parametrize(
  'path', ['/../../etc/passwd', '/%2e%2e/page.py', '/page.html', '/tag/../x']
)
def test_no_file_is_served(port, path):
  status, body, _ = ask(port, 'GET', path)
  assert status in (404, 405)
  assert len(body) < 100


def test_a_path_in_the_name_of_a_file_is_no_path(port, tmp_path):
  """Whatever a client says of a name is not read."""
  name = f'{tmp_path}/../../evil.wav'
  headers = {'Content-Disposition': f'attachment; filename="{name}"'}
  status, _, _ = ask(port, 'POST', '/tag', wav(sound()), headers)
  assert status == 200
  assert not list(tmp_path.parent.parent.glob('evil*'))


def test_other_hosts_are_refused(port):
  status, _, _ = ask(port, 'GET', '/', headers={'Host': 'evil.example'})
  assert status == 400


def test_long_sounds_are_cut_with_a_note(folders, monkeypatch):
  monkeypatch.setattr(page, 'MAX_SECONDS', 2.0)
  found = page.describe(page.find(str(folders / 'other'), []), wav(sound(5.0)))
  assert found['seconds'] == 2.0
  assert 'only the first 2 s are tagged' in found['models'][0]['notes']


def test_what_is_wrong_with_the_command(monkeypatch):
  with pytest.raises(ValueError, match='--checkpoint is missing'):
    page.run('', [])
  monkeypatch.setitem(__import__('sys').modules, 'uvicorn', None)
  with pytest.raises(ValueError, match=r'iusp-jax\[serve\]'):
    page.run('here', [])


@pytest.mark.slow
def test_the_page_in_a_browser(port, tmp_path):
  """It makes a sound, sends it, and shows what comes back."""
  browser = shutil.which('chromium') or shutil.which('chromium-browser')
  if browser is None:
    pytest.skip('there is no chromium (on Debian: apt install chromium)')
  done = subprocess.run(
    [
      browser, '--headless', '--no-sandbox', '--disable-gpu',
      f'--user-data-dir={tmp_path}', '--virtual-time-budget=60000',
      '--dump-dom', f'http://127.0.0.1:{port}/#try',
    ],
    capture_output=True,
    text=True,
    check=True,
    timeout=240,
  )  # fmt: skip
  assert 'test sound: 6.0 s' in done.stdout
  assert done.stdout.count('src="data:image/png;base64,') == 3
  for text in (*TAGS, 'its teacher'):
    assert f'>{text}<' in done.stdout
  print('Chromium shows', done.stdout.count('<td>') // 2, 'tags of 3 models')
