"""Examples made by threads: order, errors, an end before the end."""

import threading

import pytest

from tfds_dcase.in_order import in_order


@pytest.mark.parametrize('count', [0, 1, 64, 65, 200])
def test_gives_the_map_in_order(count):
  found = list(in_order(lambda k: k * k, range(count), 4))
  assert found == [k * k for k in range(count)]


def test_makes_a_bounded_number_ahead():
  made = []
  results = in_order(lambda k: made.append(k) or k, range(1000), 4)
  assert next(results) == 0
  assert len(made) <= 64
  results.close()


def test_an_error_comes_where_it_belongs():
  def make(k):
    if k == 70:
      raise ValueError('record 70')
    return k

  results = in_order(make, range(100), 3)
  assert [next(results) for _ in range(70)] == list(range(70))
  with pytest.raises(ValueError, match='record 70'):
    next(results)


def test_may_be_closed_by_one_of_its_own_threads():
  """As the interpreter does with a generator that a signal left unfinished."""
  suspended, errors, closed = threading.Event(), [], threading.Event()

  def make(k):
    if k == 5:
      suspended.wait(5)
      try:
        results.close()  # A pool that is waited for cannot join this thread.
      except RuntimeError as error:
        errors.append(error)
      closed.set()
    return k

  results = in_order(make, range(200), 2)
  assert next(results) == 0
  suspended.set()
  assert closed.wait(5)
  assert not errors
