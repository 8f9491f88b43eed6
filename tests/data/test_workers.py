"""Worker processes: the same batches, and nobody dies without a word."""

import ctypes
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys
import time
from warnings import warn

import numpy as np
import pytest

from vit_jax.data import pipeline, watchdog
from vit_jax.errors import RunError, UserError

DATA = dict(name='synthetic', split='train', num_examples=20, image_size=8)


def at(indices, what):
  """An op that does something at some records, in a worker process only."""

  def op(example, rng):
    in_worker = multiprocessing.parent_process() is not None
    if in_worker and example['label'] in indices:
      _DEEDS[what]()
    return example

  return op


def _raise():
  raise ValueError('no good')


def _warn():
  warn('Palette images with Transparency expressed in bytes', stacklevel=2)
  warn('Image size (99 pixels) exceeds limit of 9 pixels', stacklevel=2)
  warn('the warning of an op', stacklevel=2)


_DEEDS = {
  'raise': _raise,
  'warn': _warn,
  'crash': lambda: ctypes.string_at(0),
  'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
  'hang': lambda: time.sleep(600),
}


def _input(what=None, indices=(13,), **kwargs):
  data = DATA | dict(num_classes=20)
  ops = 'random_crop(6)'
  if what:
    ops += f"|{__name__}.at({indices}, '{what}')"
  return pipeline.TrainInput(
    **dict(data=data, ops=ops, batch_size=8, seed=0) | kwargs
  )


def _take(one, num, start_step=0):
  batches = one.batches(start_step)
  try:
    return [next(batches) for _ in range(num)]
  finally:
    batches.close()


@pytest.fixture(autouse=True)
def workers_can_import_this(monkeypatch):
  monkeypatch.syspath_prepend(pathlib.Path(__file__).parents[2])


@pytest.fixture(scope='module', autouse=True)
def nothing_stays():
  yield
  assert not multiprocessing.active_children()


@pytest.mark.parametrize('kwargs', [dict(), dict(repeats=3, batch_size=10)])
def test_workers_read_the_same_batches(kwargs):
  want = _take(_input(**kwargs), 5, start_step=3)
  got = _take(_input(num_workers=2, num_threads=2, **kwargs), 5, start_step=3)
  for ours, theirs in zip(want, got, strict=True):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
      assert type(theirs[key]) is np.ndarray
      assert theirs[key].dtype == value.dtype
      np.testing.assert_array_equal(theirs[key], value)


def test_records_that_workers_skip_are_counted_and_named():
  # Number 12 leads to 13 and 14 in one chunk, which are broken too.
  broken = (12, 13, 14)
  one = _input('raise', broken, num_workers=2, on_error='skip')
  batches = _take(one, 10)
  assert not any(np.isin(batch['label'], broken).any() for batch in batches)
  assert one.skipped == 3
  for index, name in zip(broken, sorted(one.skipped_names), strict=True):
    assert f"record {index} of 'train'" in name and 'no good' in name


def test_an_error_in_a_worker_names_the_record():
  with pytest.raises(UserError, match=r"record 13 of 'train'.*no good"):
    _take(_input('raise', num_workers=1), 10)


@pytest.mark.parametrize(
  ('what', 'told'),
  [('crash', "<synthetic record 13 of 'train'>"), ('hang', 'record 13')],
)
def test_the_death_of_a_worker_is_an_error(capfd, what, told):
  with watchdog.most_seconds(3.0), pytest.raises(RunError, match='has died'):
    _take(_input(what, num_workers=1), 10)
  assert told in capfd.readouterr().err


def test_workers_print_no_warnings_of_pillow(capfd):
  _take(_input('warn', num_workers=1), 10)
  printed = capfd.readouterr().err
  assert 'the warning of an op' in printed
  assert 'Palette' not in printed and 'Image size' not in printed


def test_a_worker_that_is_killed_is_an_error():
  with pytest.raises(RunError, match='exit code -9'):
    _take(_input('kill', num_workers=2), 10)


def test_changed_data_is_refused(tmp_path):
  path = tmp_path / 'images.npz'
  arrays = dict(
    train_images=np.zeros((20, 8, 8, 3), np.uint8),
    train_labels=np.arange(20),
  )
  np.savez(path, **arrays)
  data = dict(name='arrays', path=str(path), split='train')
  one = _input(data=data, num_workers=1)
  np.savez(path, **{k: v[:10] for k, v in arrays.items()})
  with pytest.raises(UserError, match='20 records when the run began, now 10'):
    _take(one, 1)


def test_workers_end_with_a_parent_that_is_killed():
  program = """
import multiprocessing, time
from vit_jax.data import pipeline
def main():
  data = dict(name='synthetic', split='train', num_examples=20, image_size=8)
  one = pipeline.TrainInput(
    data=data, ops='', batch_size=8, seed=0, num_workers=2
  )
  batches = one.batches()
  next(batches)
  print(*[child.pid for child in multiprocessing.active_children()], flush=True)
  time.sleep(600)
if __name__ == '__main__':
  main()
"""
  with subprocess.Popen(
    [sys.executable, '-c', program], stdout=subprocess.PIPE, text=True
  ) as parent:
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
  assert len(pids) == 2
  end = time.monotonic() + 60
  while any(map(_runs, pids)):
    assert time.monotonic() < end
    time.sleep(0.1)


def _runs(pid):
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  # A zombie (Z) has ended; not every container has somebody to bury it.
  return stat.rpartition(')')[2].split()[0] != 'Z'
