"""Speed, compilation and pauses on a clock moved by hand."""

import io

import pytest

from vit_jax.reporting.clock import Clock
from vit_jax.reporting.tables import print_metrics


class Seconds:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now


@pytest.fixture
def time():
  return Seconds()


def test_speed_is_images_over_the_time_since_the_last_report(time):
  clock = Clock(32, now=time)
  time.now += 8
  assert clock.report(10)['train/images_per_second'] == 40
  time.now += 4
  assert clock.report(20)['train/images_per_second'] == 80


def test_compilation_is_measured_apart(time):
  clock = Clock(32, now=time)
  with clock.waiting():
    time.now += 5
  time.now += 30
  assert clock.start(1) == 35
  time.now += 4
  report = clock.report(11)
  assert report['train/images_per_second'] == 80
  assert report['train/input_stall_fraction'] == 0


def test_pauses_do_not_count(time):
  clock = Clock(32, now=time)
  time.now += 2
  with clock.pause():
    time.now += 50
    with clock.pause():  # A picture within an evaluation: counted once.
      time.now += 50
  time.now += 2
  assert clock.report(10)['train/images_per_second'] == 80


def test_a_pause_that_fails_is_a_pause(time):
  clock = Clock(32, now=time)
  with pytest.raises(ValueError), clock.pause():
    time.now += 50
    raise ValueError
  time.now += 4
  assert clock.report(10)['train/images_per_second'] == 80


def test_a_resumed_run_counts_only_its_own_steps(time):
  clock = Clock(32, step=1000, now=time)
  time.now += 4
  assert clock.report(1010)['train/images_per_second'] == 80
  assert clock.eta_seconds(1010, 1110) == pytest.approx(40)


def test_nothing_is_reported_where_no_step_was_done(time):
  clock = Clock(32, step=7, now=time)
  time.now += 4
  assert clock.report(7) == {}
  assert clock.eta_seconds(7, 100) is None


def test_the_stall_is_the_share_of_the_time_spent_waiting(time):
  clock = Clock(32, now=time)
  for _ in range(2):
    with clock.waiting():
      time.now += 0.5
    time.now += 1.5
  with clock.pause():
    time.now += 100
  assert clock.report(2)['train/input_stall_fraction'] == 0.25
  time.now += 1
  assert clock.report(3)['train/input_stall_fraction'] == 0


def test_mfu_is_achieved_over_peak(time):
  clock = Clock(32, flops_per_step=6e9, peak_flops=1e11, now=time)
  time.now += 4
  assert clock.report(10)['train/mfu'] == pytest.approx(0.15)


def test_without_a_peak_there_is_no_mfu(time):
  clock = Clock(32, flops_per_step=6e9, now=time)
  time.now += 4
  assert 'train/mfu' not in clock.report(10)


def test_the_time_left_follows_the_recent_speed(time):
  clock = Clock(32, now=time)
  time.now += 1000  # A slow start.
  clock.report(10)
  for step in range(20, 70, 10):
    time.now += 5
    clock.report(step)
  assert clock.eta_seconds(60, 160) == pytest.approx(50)


def test_the_time_left_includes_the_share_of_pauses(time):
  clock = Clock(32, now=time)
  time.now += 5
  with clock.pause():
    time.now += 5
  clock.report(10)
  assert clock.eta_seconds(10, 20) == pytest.approx(10)


def table(*args):
  file = io.StringIO()
  print_metrics(*args, file=file)
  lines = [line.split() for line in file.getvalue().splitlines()]
  return [line for line in lines if line and '─' not in line[0]]


def test_a_table_has_a_line_for_each_result_and_a_column_for_each_metric():
  rows = {
    'val': {'top1': 0.98333, 'num_examples': 360.0},
    'val_ema': {'top1': 1.0, 'loss': 1234.56},
  }
  assert table('step 7', rows) == [
    ['step', '7'],
    ['top1', 'num_examples', 'loss'],
    ['val', '0.9833', '360', '-'],
    ['val_ema', '1.0000', '-', '1,234.6'],
  ]


def test_a_table_with_many_metrics_is_turned():
  metrics = {f'top1/[{i}]': i / 10 for i in range(20)}
  lines = table('classes', {'val': metrics})
  assert lines[1:4] == [['val'], ['top1/[0]', '0.0000'], ['top1/[1]', '0.1000']]
  assert len(lines) == 22


def test_a_file_gets_a_table_as_wide_as_it_needs():
  metrics = {f'a_metric_with_a_long_name_{i}': 0.5 for i in range(5)}
  assert table('t', {'[bold]': metrics})[1:] == [
    list(metrics),
    ['[bold]', *['0.5000'] * 5],
  ]


def test_numbers_keep_their_size():
  row = {'a': 1e-5, 'b': float('nan'), 'c': 2_000_000.0, 'd': 12, 'e': -0.5}
  assert table('t', {'x': row})[-1] == [
    *['x', '1e-05', 'nan', '2e+06', '12', '-0.5000']
  ]
