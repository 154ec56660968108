"""What tests share is made once, whichever worker asks first."""

import uuid

import pytest


def test_second_call_finds_what_the_first_made(make_once):
  name, calls = f'once-{uuid.uuid4()}', []

  def fill(folder):
    calls.append(folder)
    (folder / 'file').write_text('made')

  first, second = make_once(name, fill), make_once(name, fill)
  assert first == second
  assert (first / 'file').read_text() == 'made'
  assert len(calls) == 1


def test_what_failed_is_made_anew(make_once):
  name = f'fails-{uuid.uuid4()}'

  def fail(folder):
    (folder / 'half').touch()
    raise OSError('no space')

  with pytest.raises(OSError, match='no space'):
    make_once(name, fail)
  folder = make_once(name, lambda folder: (folder / 'whole').touch())
  assert [path.name for path in folder.iterdir()] == ['whole']
