"""Rows of metrics on disk, and the config beside them."""

import json
import math
import os
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from vit_jax.errors import RunError, UserError
from vit_jax.reporting.metrics import MetricWriter
from vit_jax.reporting.run_folder import write_config


def rows(workdir):
  """Returns the rows of metrics.jsonl; fails on NaN, which is no JSON."""

  def no_constant(name):
    raise AssertionError(f'{name} is not JSON')

  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line, parse_constant=no_constant) for line in lines]


def records(path):
  """Returns the records of an event file; checks their lengths and checksums.

  With the checksum of tensorboardX, which is written by others.
  """
  data, found = path.read_bytes(), []
  while data:
    (size,) = struct.unpack('<Q', data[:8])
    record = data[12 : 12 + size]
    sums = [masked_crc32c(data[:8]), masked_crc32c(record)]
    assert data[8:12] + data[12 + size : 16 + size] == struct.pack('<2I', *sums)
    found.append(record)
    data = data[16 + size :]
  return found


def events(workdir):
  """Returns (step, tag, value) of all events in the order of the files."""
  found = []
  for path in sorted(workdir.glob('events.out.tfevents.*')):
    version, *others = map(event_pb2.Event.FromString, records(path))
    assert version.file_version == 'brain.Event:2'
    for event in others:
      assert abs(time.time() - event.wall_time) < 600
      if event.HasField('session_log'):
        found.append((event.step, 'start', event.session_log.status))
      for value in event.summary.value:
        image, shown = value.image, value.simple_value
        if png := image.encoded_image_string:
          shown = (image.height, image.width, png)
        found.append((event.step, value.tag, shown))
  return found


def train(writer, steps, checkpoint_every=3):
  """Writes what a run does: a training row a step, evaluation with saving."""
  for step in steps:
    writer.write(step, {'train/loss': 1 / step, 'train/count': step})
    if step % checkpoint_every == 0:
      writer.write(step, {'val/top1': step / 100})
      writer.flush()


def test_metrics_of_one_step_are_one_row(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': 2.5, 'train/skipped': 3})
    writer.write(1, {'val/top1': np.float32(0.5)})
    writer.write(4, {'train/loss': np.float64(0.25)})
  assert rows(tmp_path) == [
    {'step': 1, 'train/loss': 2.5, 'train/skipped': 3, 'val/top1': 0.5},
    {'step': 4, 'train/loss': 0.25},
  ]
  line = (tmp_path / 'metrics.jsonl').read_text().splitlines()[0]
  assert line.startswith('{"step": 1, "train/loss": 2.5, "train/skipped": 3,')


def test_a_row_that_was_flushed_still_takes_metrics_of_its_step(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': 1.0})
    writer.write(2, {'train/loss': 0.5})
    writer.flush()
    writer.write(2, {'val/top1': 0.75})
    writer.flush()
    writer.write(2, {'val/top1': 0.8})
    writer.write(3, {'train/loss': 0.25})
  assert rows(tmp_path) == [
    {'step': 1, 'train/loss': 1.0},
    {'step': 2, 'train/loss': 0.5, 'val/top1': 0.8},
    {'step': 3, 'train/loss': 0.25},
  ]


def test_flush_puts_the_open_row_on_disk(tmp_path, monkeypatch):
  writer = MetricWriter(tmp_path)
  writer.write(7, {'train/loss': 1.0})
  assert rows(tmp_path) == []
  synced = []
  monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(os.fstat(fd)))
  writer.flush()
  assert rows(tmp_path) == [{'step': 7, 'train/loss': 1.0}]
  file = os.stat(tmp_path / 'metrics.jsonl')
  assert (file.st_ino, file.st_size) in [(s.st_ino, s.st_size) for s in synced]


def test_a_closed_row_outlives_a_kill_without_a_flush(tmp_path):
  writer = MetricWriter(tmp_path)
  writer.write(1, {'train/loss': 1.0})
  writer.write(2, {'train/loss': 1.0})
  assert [row['step'] for row in rows(tmp_path)] == [1]


def test_a_step_before_the_open_row_is_refused(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(5, {'train/loss': 1.0})
    with pytest.raises(ValueError, match='metrics of step 4 after those of 5'):
      writer.write(4, {'train/loss': 1.0})


def test_an_array_is_no_metric(tmp_path):
  with MetricWriter(tmp_path) as writer:
    with pytest.raises(ValueError, match=r'train/loss is an array.*\(2,\)'):
      writer.write(1, {'train/loss': np.zeros(2)})


def test_a_run_killed_at_any_byte_resumes_to_the_same_file(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(os, 'fsync', lambda fd: None)  # Hundreds take seconds.
  with MetricWriter(tmp_path / 'whole') as writer:
    train(writer, range(1, 9))
  whole = (tmp_path / 'whole/metrics.jsonl').read_bytes()
  durable = whole.index(b'{"step": 7')  # After the flush of step 6.
  (tmp_path / 'killed').mkdir()
  for cut in range(durable, len(whole) + 1):
    (tmp_path / 'killed/metrics.jsonl').write_bytes(whole[:cut])
    with MetricWriter(tmp_path / 'killed', 6) as writer:
      train(writer, range(7, 9))
    assert (tmp_path / 'killed/metrics.jsonl').read_bytes() == whole, cut


def test_an_older_checkpoint_cuts_more_rows(tmp_path):
  with MetricWriter(tmp_path) as writer:
    train(writer, range(1, 9))
  before = rows(tmp_path)
  MetricWriter(tmp_path, 3)
  assert rows(tmp_path) == before[:3]


def test_the_row_of_the_restored_step_is_completed(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(3, {'train/loss': 0.5})
  with MetricWriter(tmp_path, 3) as writer:
    writer.write(3, {'val/top1': 0.9})
    writer.write(4, {'train/loss': 0.4})
  assert rows(tmp_path) == [
    {'step': 3, 'train/loss': 0.5, 'val/top1': 0.9},
    {'step': 4, 'train/loss': 0.4},
  ]


def test_a_fresh_run_removes_the_rows_of_one_that_left_no_checkpoint(tmp_path):
  with MetricWriter(tmp_path) as writer:
    train(writer, range(1, 3))
  MetricWriter(tmp_path, None)
  assert rows(tmp_path) == []


def test_step_zero_of_an_evaluation_is_kept(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(0, {'val/top1': 0.5})
  MetricWriter(tmp_path, 0)
  assert rows(tmp_path) == [{'step': 0, 'val/top1': 0.5}]


def test_a_last_line_without_its_newline_is_not_glued_to_the_next(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 0.5}')
  with MetricWriter(tmp_path, 1) as writer:
    writer.write(2, {'train/loss': 0.25})
  assert [row['step'] for row in rows(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
  'bad', ['{"step": 2, "trai', '[2]', '{"loss": 1}', '{"step": 1}', 'null']
)
def test_a_broken_row_among_those_to_keep_is_named(tmp_path, bad):
  path = tmp_path / 'metrics.jsonl'
  path.write_text(f'{{"step": 1}}\n{bad}\n{{"step": 3}}\n')
  with pytest.raises(UserError, match=r'metrics\.jsonl, line 2: expected'):
    MetricWriter(tmp_path, 3)
  if bad != '{"step": 1}':
    MetricWriter(tmp_path, 1)  # There it is among the rows to be removed.


def test_non_finite_numbers_are_null_in_json_and_themselves_in_events(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(1, {'a': float('nan'), 'b': float('inf'), 'c': 1.0})
  assert rows(tmp_path) == [{'step': 1, 'a': None, 'b': None, 'c': 1.0}]
  values = {tag: value for _, tag, value in events(tmp_path)}
  assert math.isnan(values['a']) and values['b'] == float('inf')


def test_tensorboard_gets_every_metric_at_its_step_and_the_picture(tmp_path):
  png = b'\x89PNG\r\n\x1a\n' + bytes(8) + struct.pack('>II', 30, 20)
  (tmp_path / 'x.png').write_bytes(png)
  with MetricWriter(tmp_path) as writer:
    writer.write(1, {'train/loss': 0.5})
    writer.write(2, {'train/loss': 0.25, 'val/top1': 0.75})
    writer.write_image(2, 'predictions', tmp_path / 'x.png')
  assert events(tmp_path) == [
    (0, 'start', 1),
    (1, 'train/loss', 0.5),
    (2, 'train/loss', 0.25),
    (2, 'val/top1', 0.75),
    (2, 'predictions', (20, 30, png)),
  ]


def test_numbers_of_any_size_and_letters_of_any_kind_reach_tensorboard(
  tmp_path,
):
  row = {'größe': 1e300, 'b': -2, 'c': 0.1}
  with MetricWriter(tmp_path) as writer:
    writer.write(128, {'b': 1.0})  # The first step of two bytes.
    writer.write(2**40, row)
  assert events(tmp_path)[1:] == [
    (128, 'b', 1.0),
    (2**40, 'größe', float('inf')),  # float32 ends at 3e38.
    (2**40, 'b', -2.0),
    (2**40, 'c', np.float32(0.1)),
  ]


def test_on_resume_tensorboard_drops_the_steps_that_come_again(tmp_path):
  with MetricWriter(tmp_path) as writer:
    writer.write(5, {'train/loss': 0.5})
  os.rename(next(tmp_path.glob('events*')), tmp_path / 'old')
  with MetricWriter(tmp_path, 4):
    pass
  assert events(tmp_path) == [(5, 'start', 1)]


def test_two_writers_within_a_second_have_two_event_files(tmp_path):
  MetricWriter(tmp_path).close()
  MetricWriter(tmp_path).close()
  assert len(list(tmp_path.glob('events*'))) == 2


def test_writing_neither_imports_torch_nor_hides_it(tmp_path):
  code = f"""
import sys, threading
stop, seen = threading.Event(), []
def watch():
  while not stop.is_set():
    seen.append(any(n in sys.modules for n in ('torch', 'tensorflow')))
thread = threading.Thread(target=watch)
thread.start()
from vit_jax.reporting import tensorboard
tensorboard.EventFile({str(tmp_path)!r}, 0).close()
stop.set()
thread.join()
sys.exit(any(seen) or any(n in sys.modules for n in ('torch', 'tensorflow')))
"""
  done = subprocess.run([sys.executable, '-c', code], check=False)
  assert done.returncode == 0


def test_other_processes_write_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr('jax.process_index', lambda: 1)
  with MetricWriter(tmp_path / 'run') as writer:
    writer.write(1, {'train/loss': 1.0})
    writer.flush()
  assert not (tmp_path / 'run').exists()


def test_an_unwritable_workdir_is_a_user_error(tmp_path):
  (tmp_path / 'file').touch()
  for make in (MetricWriter, lambda workdir: write_config(workdir, {})):
    for workdir in (tmp_path / 'file', tmp_path / 'file' / 'run'):
      with pytest.raises(
        UserError, match=r'cannot write .*file.*give a workdir'
      ):
        make(workdir)


def test_the_home_folder_can_be_written_as_a_tilde(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  MetricWriter('~/run').close()
  assert (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_an_object_store_is_refused_instead_of_becoming_a_folder():
  with pytest.raises(UserError, match=r"'gs://bucket/run'.*mount the bucket"):
    MetricWriter('gs://bucket/run')


@pytest.mark.parametrize('path', ['', ' ', 'runs/a\0b'])
def test_values_other_than_a_path_are_refused(path):
  with pytest.raises(UserError, match='expected the path of a folder'):
    write_config(path, {})


def test_a_full_disk_ends_the_run_and_keeps_safe_checkpoints(tmp_path):
  writer = MetricWriter(tmp_path)
  writer._file = open('/dev/full', 'wb')
  writer.write(1, {'train/loss': 1.0})
  with pytest.raises(RunError, match=r'No space left.*checkpoints are safe'):
    writer.flush()


def test_config_is_json_whatever_it_holds(tmp_path):
  write_config(tmp_path / 'run', {'a': (1, 2), 'b': {'c': None}, 'd': len})
  config = json.loads((tmp_path / 'run/config.json').read_text())
  assert config == {'a': [1, 2], 'b': {'c': None}, 'd': repr(len)}


def test_a_changed_config_keeps_the_one_that_trained_until_then(tmp_path):
  def files():
    return {p.name: json.loads(p.read_text())['n'] for p in tmp_path.iterdir()}

  write_config(tmp_path, {'n': 0})
  write_config(tmp_path, {'n': 1})  # Nothing came of config 0.
  assert files() == {'config.json': 1}
  write_config(tmp_path, {'n': 1}, 100)
  assert files() == {'config.json': 1}
  write_config(tmp_path, {'n': 2}, 100)
  assert files() == {'config.json': 2, 'config.until_100.json': 1}
  write_config(tmp_path, {'n': 3}, 100)  # Nothing came of config 2.
  assert files() == {'config.json': 3, 'config.until_100.json': 1}


def test_a_config_in_another_order_is_the_same_one(tmp_path):
  write_config(tmp_path, {'evals': {'few': 1, 'val': 2}})
  write_config(tmp_path, {'evals': {'val': 2, 'few': 1}}, 100)
  (path,) = tmp_path.iterdir()
  assert list(json.loads(path.read_text())['evals']) == ['val', 'few']


@pytest.mark.parametrize(
  ('kept', 'found'),
  [
    (None, '0'),
    ([], '0'),
    ([2, 4], '2 (steps 2 to 4)'),
    ([6, 8], '2 (steps 6 to 8)'),
    ([2, 6, 8], '3 (steps 2 to 8)'),
    ([2, 4, 6, 8], None),
  ],
)
def test_rows_that_are_gone_between_two_runs_are_named(tmp_path, kept, found):
  with MetricWriter(tmp_path) as writer:
    assert writer.logged is None
    train(writer, [2, 4, 6, 8])
    logged = writer.logged
  assert logged == {'rows': 4, 'first': 2, 'last': 8}
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(''.join(lines[step // 2 - 1] for step in kept or []))
  if kept is None:
    path.unlink()
  messages = []
  with MetricWriter(
    tmp_path, 8, logged=logged, on_log=messages.append
  ) as writer:
    if kept:
      assert writer.logged == dict(
        rows=len(kept), first=kept[0], last=8 if 8 in kept else 4
      )
    writer.write(9, {'train/loss': 1.0})
    assert writer.logged['rows'] == len(kept or []) + 1
  assert [row['step'] for row in rows(tmp_path)] == [*(kept or []), 9]
  if found is None:
    assert messages == []
  else:
    (message,) = messages
    assert f'{path} has {found} of the 4 rows (steps 2 to 8)' in message
