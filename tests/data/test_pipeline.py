"""Batches for training and evaluation."""

import itertools
import os
import pathlib
import socket
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from tests.data.tiny_inputs import (
  DATA,
  NUM,
  OPS,
  all_rows,
  make_as_process,
  make_eval,
  make_train,
  take,
)
from vit_jax.data import pipeline
from vit_jax.data.sources import synthetic
from vit_jax.errors import UserError


def _assert_equal(ours, theirs):
  assert len(ours) == len(theirs)
  for one, other in zip(ours, theirs, strict=True):
    assert one.keys() == other.keys()
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=name)


class TestOrder:
  def test_each_epoch_is_another_permutation_of_the_records(self):
    index = all_rows(take(make_train(), 10)).reshape(4, NUM)  # 10 x 8 rows
    for epoch in index:
      np.testing.assert_array_equal(np.sort(epoch), np.arange(NUM))
    for one, other in itertools.combinations(index, 2):
      assert (one != other).any()

  def test_a_row_holds_the_record_that_its_index_names(self):
    source = synthetic.Source('train', num_examples=NUM, image_size=8)
    (batch,) = take(make_train(ops=''), 1)
    for row, index in enumerate(batch['index']):
      np.testing.assert_array_equal(batch['image'][row], source[index]['image'])
      assert batch['label'][row] == source[index]['label']

  def test_another_seed_gives_another_order_and_other_crops(self):
    one, other = take(make_train(), 5), take(make_train(seed=1), 5)
    assert (all_rows(one) != all_rows(other)).any()
    first_image = [
      all_rows(taken, 'image')[list(all_rows(taken)).index(0)]
      for taken in (one, other)
    ]
    assert (first_image[0] != first_image[1]).any()

  @pytest.mark.parametrize('num_threads', [1, 3, 16])
  def test_batches_do_not_depend_on_the_number_of_threads(self, num_threads):
    reference = take(make_train(num_threads=0), 7)
    _assert_equal(take(make_train(num_threads=num_threads), 7), reference)

  def test_a_stream_that_starts_late_continues_with_the_same_batches(self):
    whole = take(make_train(), 12)
    _assert_equal(take(make_train(), 3, start_step=9), whole[9:])
    _assert_equal(take(make_train(), 12, start_step=0), whole)

  def test_a_late_start_reads_nothing_that_came_before(self, monkeypatch):
    train_input = make_train(num_threads=0)
    read = synthetic.Source.__getitem__
    threads = []  # those of earlier tests may still finish their work

    def getitem(self, index):
      threads.append(threading.get_ident())
      return read(self, index)

    monkeypatch.setattr(synthetic.Source, '__getitem__', getitem)
    take(train_input, 1, start_step=10**9)
    assert threads.count(threading.get_ident()) == 8

  def test_a_start_before_the_first_step_is_an_error(self):
    with pytest.raises(UserError, match='start_step is at least 0; got -1'):
      make_train().batches(-1)

  def test_a_batch_may_be_larger_than_the_dataset(self):
    (batch,) = take(make_train(batch_size=3 * NUM), 1)
    np.testing.assert_array_equal(np.bincount(batch['index']), [3] * NUM)

  def test_a_single_record_is_a_dataset(self):
    data = DATA | dict(num_examples=1)
    (batch,) = take(make_train(data=data), 1)
    np.testing.assert_array_equal(batch['index'], [0] * 8)

  def test_a_record_is_augmented_anew_each_epoch(self):
    taken = take(make_train(), 40)
    index, images = all_rows(taken), all_rows(taken, 'image')
    for record in range(NUM):
      seen = images[index == record]
      assert len(seen) == 16
      # 3 x 3 crops and 2 directions
      assert 5 < len(np.unique(seen, axis=0)) <= 16

  def test_rows_of_one_batch_are_augmented_independently(self):
    data = DATA | dict(num_examples=1)
    (batch,) = take(make_train(data=data, batch_size=32), 1)
    assert len(np.unique(batch['image'], axis=0)) > 8


class TestProcesses:
  @pytest.mark.parametrize('count', [2, 4])
  def test_processes_together_hold_the_rows_of_one_in_order(self, count):
    reference = take(make_train(), 6)
    parts = [
      take(make_as_process(p, count), 6, start_step=0) for p in range(count)
    ]
    for batch, *rows in zip(reference, *parts, strict=True):
      assert all(len(row['index']) == 8 // count for row in rows)
      for name in batch:
        together = np.concatenate([row[name] for row in rows])
        np.testing.assert_array_equal(together, batch[name])

  def test_another_number_of_processes_continues_the_same_stream(self):
    reference = take(make_train(), 8)
    part = take(make_as_process(1, 2), 3, start_step=5)
    np.testing.assert_array_equal(
      all_rows(part, 'image'), np.concatenate([b['image'][4:] for b in
      reference[5:]])
    )  # fmt: skip

  @pytest.mark.parametrize('make', [make_train, make_eval])
  def test_a_batch_that_does_not_divide_is_an_error(self, make):
    with pytest.raises(UserError, match='batch_size=8 is not divisible by 3'):
      make_as_process(0, 3, make)


class TestEvaluation:
  @pytest.mark.parametrize('count', [1, 2, 4])
  @pytest.mark.parametrize('batch_size', [4, 8, 20, 36])
  def test_every_example_counts_exactly_once(self, batch_size, count):
    inputs = [
      make_as_process(p, count, make_eval, batch_size=batch_size)
      for p in range(count)
    ]
    parts = [list(one) for one in inputs]
    num_batches = -(-NUM // batch_size)
    assert [len(p) for p in parts] == [num_batches] * count
    assert inputs[0].num_batches == num_batches
    seen = []
    for rows in zip(*parts, strict=True):
      mask = np.concatenate([row['mask'] for row in rows])
      assert mask.dtype == bool and mask.shape == (batch_size,)
      seen += list(np.concatenate([row['index'] for row in rows])[mask])
    assert seen == list(range(NUM))

  def test_filled_rows_are_blank_with_mask_false_and_index_minus_one(self):
    *_, last = make_eval()
    np.testing.assert_array_equal(last['mask'], [True] * 4 + [False] * 4)
    np.testing.assert_array_equal(last['index'], [16, 17, 18, 19] + 4 * [-1])
    assert not last['image'][4:].any()
    assert last['image'][:4].any()

  def test_a_second_pass_gives_the_same_batches(self):
    one = make_eval(ops=OPS)
    _assert_equal(list(one), list(one))

  def test_a_pass_that_is_left_early_disturbs_no_other(self):
    one = make_eval()
    next(iter(one))
    assert len(list(one)) == 3


def _sharding(num_devices=8):
  mesh = Mesh(np.array(jax.devices()[:num_devices]), ('data',))
  return NamedSharding(mesh, P('data'))


_WORKER = """
import sys
import jax
jax.config.update('jax_num_cpu_devices', 1)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from vit_jax.data import pipeline
sharding = NamedSharding(Mesh(jax.devices(), ('data',)), P('data'))
data = dict(name='synthetic', split='train', num_examples=20, image_size=8)
train_input = pipeline.TrainInput(data=data, ops='', batch_size=8, seed=0)
batch = next(train_input.batches(start_step=3))
with jax.transfer_guard('disallow'):
  label = pipeline.to_global(batch, sharding)['label']
(shard,) = label.addressable_shards
print(label.shape, shard.index[0].start or 0, jax.device_get(shard.data))
"""


def test_two_real_processes_make_the_global_batch_of_one():
  with socket.socket() as port:
    port.bind(('localhost', 0))
    address = f'localhost:{port.getsockname()[1]}'
  root = str(pathlib.Path(pipeline.__file__).parents[2])
  environment = os.environ | {'PYTHONPATH': root, 'XLA_FLAGS': ''}
  workers = [
    subprocess.Popen(
      [sys.executable, '-c', _WORKER, address, str(process)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env=environment,
    )
    for process in range(2)
  ]
  (batch,) = take(make_train(ops=''), 1, start_step=3)
  try:
    for process, worker in enumerate(workers):
      out, err = worker.communicate(timeout=120)
      assert worker.returncode == 0, err
      rows = batch['label'][4 * process : 4 * process + 4]
      assert out.splitlines()[-1] == f'(8,) {4 * process} {rows}'
  finally:
    for worker in workers:
      worker.kill()


class TestDevice:
  def test_a_global_array_holds_the_rows_and_leaves_the_index_behind(self):
    (batch,) = take(make_train(), 1)
    with jax.transfer_guard('disallow'):
      arrays = pipeline.to_global(batch, _sharding())
    assert set(arrays) == {'image', 'label'}
    for name, array in arrays.items():
      assert array.sharding == _sharding()
      np.testing.assert_array_equal(jax.device_get(array), batch[name])

  def test_rows_that_do_not_divide_among_devices_are_an_error(self):
    (batch,) = take(make_train(batch_size=6), 1)
    with pytest.raises(UserError, match='batch of 6 rows does not divide amo'):
      pipeline.to_global(batch, _sharding())

  @pytest.mark.parametrize('size', [1, 2, 5])
  def test_prefetched_batches_are_the_batches(self, size):
    batches = list(make_eval())
    with jax.transfer_guard('disallow'):
      ahead = list(pipeline.prefetch_to_device(make_eval(), _sharding(), size))
    assert len(ahead) == len(batches) == 3
    for ours, theirs in zip(ahead, batches, strict=True):
      for name in ours:
        np.testing.assert_array_equal(jax.device_get(ours[name]), theirs[name])

  def test_batches_are_fetched_ahead_but_no_further_than_asked(self):
    fetched = []

    def batches():
      for i in range(9):
        fetched.append(i)
        yield {'image': np.full(8, i)}

    ahead = pipeline.prefetch_to_device(batches(), _sharding(), size=3)
    assert fetched == []
    next(ahead)
    assert fetched == [0, 1, 2]
    next(ahead)
    assert fetched == [0, 1, 2, 3]

  def test_an_error_comes_when_its_batch_is_asked_for(self):
    def batches():
      yield {'image': np.zeros(8)}
      yield {'image': np.ones(8)}
      raise UserError('no third one')

    ahead = pipeline.prefetch_to_device(batches(), _sharding(), size=4)
    assert jax.device_get(next(ahead)['image']).sum() == 0
    assert jax.device_get(next(ahead)['image']).sum() == 8
    with pytest.raises(UserError, match='no third one'):
      next(ahead)

  def test_a_broken_record_reaches_the_consumer(self, broken):
    examples = make_eval()
    broken.update({12})  # after the input was opened
    ahead = pipeline.prefetch_to_device(examples, _sharding())
    next(ahead)
    with pytest.raises(UserError, match='record 12'):
      next(ahead)

  @pytest.mark.parametrize('leave', ['close', 'delete', 'exhaust', 'error'])
  def test_no_thread_survives_its_consumer(self, leave, broken):
    before = set(threading.enumerate())
    batches = iter(make_eval(num_threads=3))
    if leave != 'exhaust':
      broken.update({12} if leave == 'error' else {})
      batches = make_train(num_threads=3).batches()
    ahead = pipeline.prefetch_to_device(batches, _sharding())
    next(ahead)
    if leave != 'error':  # which may have ended them already
      assert set(threading.enumerate()) - before
    if leave == 'close':
      ahead.close()
    elif leave == 'delete':
      del ahead, batches
    elif leave == 'exhaust':
      list(ahead)
    else:
      with pytest.raises(UserError, match='record 12'):
        list(ahead)
    for thread in set(threading.enumerate()) - before:
      thread.join(timeout=10)
    assert set(threading.enumerate()) <= before
