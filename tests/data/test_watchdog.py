"""Work on many records in threads."""

import concurrent.futures
import threading

import pytest

from vit_jax.data import watchdog


def test_results_come_in_order_and_no_more_is_begun_than_a_few_ahead():
  taken = []

  def items():
    for i in range(1000):
      taken.append(i)
      yield i

  results = watchdog.Watchdog(str).in_order(
    lambda i: i * i, items(), num_threads=2
  )
  assert [next(results) for _ in range(3)] == [0, 1, 4]
  # Four a thread stay ahead of the three, and one is on its way.
  assert len(taken) == 3 + 2 * 4
  results.close()


@pytest.mark.parametrize('ends', ['error', 'close'])
def test_nothing_that_waits_is_started_after_the_end(monkeypatch, ends):
  started, go_on = [], threading.Event()

  def work(i):
    started.append(i)
    if i == 0 and ends == 'error':
      raise OSError('broken')
    if i == 1:
      assert go_on.wait(60)

  shutdown = concurrent.futures.ThreadPoolExecutor.shutdown

  def shutdown_while_one_works(pool, **kwargs):
    shutdown(pool, **(kwargs | dict(wait=False)))
    go_on.set()
    shutdown(pool)

  monkeypatch.setattr(
    concurrent.futures.ThreadPoolExecutor, 'shutdown', shutdown_while_one_works
  )
  results = watchdog.Watchdog(str).in_order(work, range(100), num_threads=1)
  if ends == 'error':
    with pytest.raises(OSError, match='broken'):
      next(results)
  else:
    next(results)
    results.close()
  assert set(started) <= {0, 1}
