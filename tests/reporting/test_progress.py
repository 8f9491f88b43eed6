"""Lines of progress, on terminals and elsewhere."""

import io
import re

import pytest

from vit_jax.reporting.progress import Progress, _duration

METRICS = {
  'train/loss': 0.1234,
  'train/learning_rate': 9.1e-4,
  'train/images_per_second': 5210.4,
}


class Seconds:
  """A clock that is moved by hand."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def plain(total_steps=1400, **kwargs):
  file, clock = io.StringIO(), Seconds()
  return Progress(total_steps, file=file, now=clock, **kwargs), file, clock


def screen(text):
  """Returns what was written without colours and cursor movements."""
  return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', text)


def test_a_plain_line_says_it_all():
  progress, file, _ = plain()
  with progress:
    progress.update(400, METRICS, eta_seconds=12.2)
  assert file.getvalue() == (
    'step 400/1400  28%  loss 0.1234  lr 9.1e-04  5,210 img/s  ETA 0:12\n'
  )


def test_plain_lines_come_every_few_seconds_and_at_the_end():
  progress, file, clock = plain(every_seconds=10.0)
  clock.now += 60  # Of setting up.
  with progress:
    progress.update(0)
    for step in range(1, 1401):
      clock.now += 0.125
      progress.update(step)
      if step % 10 == 0:
        progress.update(step, METRICS)
  steps = re.findall(r'step (\d+)/', file.getvalue())
  # The first metrics, then one line in 10 s = 80 steps, then the end.
  assert steps == ['10', *(str(s) for s in range(90, 1400, 80)), '1400']


def test_the_last_evaluation_is_shown_and_replaced_by_the_next():
  progress, file, clock = plain()
  with progress:
    progress.update(1, {'val/top1': 0.5, 'val/loss': 2.0})
    clock.now += 60
    progress.update(2, {'train/loss': 1.0, 'train/mfu': 0.413})
    clock.now += 60
    progress.update(3, {'few/top1': 0.25})
  assert file.getvalue().splitlines() == [
    'step 1/1400   0%  val/top1 0.5',
    'step 2/1400   0%  loss 1  MFU 41.3%  val/top1 0.5',
    'step 3/1400   0%  loss 1  MFU 41.3%  few/top1 0.25',
  ]


def test_the_last_line_has_the_last_evaluation():
  progress, file, clock = plain(total_steps=2)
  with progress:
    progress.update(1, {'train/loss': 2.0, 'val/top1': 0.5})
    clock.now += 60
    progress.update(2, {'train/loss': 1.0})
    clock.now += 60
    progress.update(2, {'val/top1': 0.75})
  assert file.getvalue().splitlines() == [
    'step 1/2  50%  loss 2  val/top1 0.5',
    'step 2/2  100%  loss 1  val/top1 0.75',
  ]


def test_a_run_that_fails_has_no_last_line():
  progress, file, _ = plain(total_steps=1)
  with pytest.raises(ValueError), progress:
    progress.update(1, METRICS)
    raise ValueError
  assert file.getvalue() == ''


def test_skipped_updates_are_shown_if_there_are_any():
  progress, file, clock = plain()
  with progress:
    progress.update(1, {'train/loss': 1.0, 'train/skipped_updates': 0})
    clock.now += 60
    progress.update(2, {'train/skipped_updates': 3})
  first, second = file.getvalue().splitlines()
  assert first.endswith('loss 1')
  assert second.endswith('loss 1  skipped 3')


def test_plain_output_has_no_control_characters():
  progress, file, _ = plain()
  with progress:
    progress.log('checkpoint [saved]')
    progress.update(1, METRICS)
  assert file.getvalue().startswith('checkpoint [saved]\n')
  assert '\x1b' not in file.getvalue()


def test_messages_appear_above_the_bar():
  file = io.StringIO()
  with Progress(1400, file=file, live=True) as progress:
    progress.update(400, METRICS, eta_seconds=3723)
    progress.log('checkpoint [bold]saved[/bold]')
    with progress.status('evaluating val'):
      progress._live.refresh()
  text = screen(file.getvalue())
  assert 'checkpoint [bold]saved[/bold]\n' in text
  assert re.search(r'evaluating val .*400/1400  28%  ETA 1:02:03', text)
  assert text.rstrip().endswith('loss 0.1234  lr 9.1e-04  5,210 img/s')
  bars = [line for line in text.splitlines() if '400/1400' in line]
  assert bars[-1].startswith('training ')
  assert text.index('saved') < text.rindex('400/1400')


def test_a_bar_fits_an_80_column_terminal():
  file = io.StringIO()
  with Progress(1_000_000, file=file, live=True) as progress:
    long = {'val_of_a_long_name/expected_calibration_error': 0.1234}
    progress.update(999_999, {**METRICS, 'train/mfu': 0.4, **long})
  lines = screen(file.getvalue()).splitlines()
  assert len(lines[-1]) <= 80 and lines[-1].endswith('…')


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt])
def test_the_cursor_comes_back_after_an_exception(error):
  file = io.StringIO()
  with pytest.raises(error), Progress(10, file=file, live=True) as progress:
    progress.update(1)
    raise error
  hide, show = '\x1b[?25l', '\x1b[?25h'
  assert file.getvalue().rindex(show) > file.getvalue().rindex(hide)


def test_a_file_gets_no_bar(monkeypatch):
  # Some CI systems force colours; a bar in a log would be noise.
  monkeypatch.setenv('FORCE_COLOR', '1')
  file = io.StringIO()
  with Progress(10, file=file) as progress:
    progress.update(10, METRICS)
  assert '\x1b' not in file.getvalue()


def test_other_processes_show_nothing(monkeypatch):
  monkeypatch.setattr('jax.process_index', lambda: 1)
  for live in (False, True):
    file = io.StringIO()
    with Progress(10, file=file, live=live) as progress:
      progress.update(10, METRICS)
      progress.log('hello')
    assert file.getvalue() == ''


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (-1, '0:00'),
    (12.4, '0:12'),
    (59.6, '1:00'),
    (3599, '59:59'),
    (3600, '1:00:00'),
    (86400 + 3 * 3600 + 240, '1d 03:04'),
  ],
)
def test_durations_read_like_a_clock(seconds, text):
  assert _duration(seconds) == text
