"""Progress of a run on the terminal.

On a terminal it is a live bar; messages appear above it. Elsewhere (a file, a
pipe, a notebook, CI) it is a plain line every few seconds:

  step 400/1400  28%  loss 0.123  lr 9.1e-04  5,210 img/s  ETA 0:12
"""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TextIO

import jax

from vit_jax.printable import printable_lines, show


class Progress:
  """A context that shows how far a run is and leaves the screen tidy."""

  def __init__(
    self,
    total_steps: int,
    *,
    every_seconds: float = 10.0,
    file: TextIO | None = None,
    live: bool | None = None,
    now: Callable[[], float] = time.monotonic,
  ):
    """Prepares; the bar begins with `with`, messages may come before.

    Args:
      total_steps: the step at which the run ends.
      every_seconds: time between two plain lines.
      file: where to write; None is stdout.
      live: a bar or plain lines; None is a bar on a terminal.
      now: a clock in seconds.
    """
    self._total, self._step = total_steps, 0
    self._every_seconds, self._now = every_seconds, now
    self._file = sys.stdout if file is None else file
    self._wants_live = _is_terminal(self._file) if live is None else live
    self._enabled = jax.process_index() == 0
    self._live = None
    self._metrics: dict[str, Any] = {}
    self._eta_seconds: float | None = None
    self._status = ''
    self._printed = now()  # Time of the last plain line.

  def __enter__(self):
    self._printed = self._now()  # What came before was no step.
    if self._enabled and self._wants_live:
      import rich.console
      import rich.live

      console = rich.console.Console(file=self._file, force_terminal=True)
      # Also redirects print() and sys.stderr to above the bar.
      self._live = rich.live.Live(
        get_renderable=self._render, console=console, refresh_per_second=4
      )
      self._live.start()
    return self

  def __exit__(self, error, *_):
    if self._live is not None:
      live, self._live = self._live, None
      live.stop()  # Draws the last state and shows the cursor again.
    elif error is None and self._step >= self._total and self._metrics:
      # Here and not in `update`: the last evaluation belongs to this line.
      self._print_line()

  def update(
    self,
    step: int,
    metrics: Mapping[str, Any] | None = None,
    *,
    eta_seconds: float | None = None,
  ) -> None:
    """Moves to `step`; `metrics` replace what is shown under their names.

    Shown are the names of `_SHOWN`, and of the last metrics that are not
    `train/...` the first. Without a bar the line of the last step is printed
    at the end of the `with`.
    """
    self._step = step
    if eta_seconds is not None:
      self._eta_seconds = eta_seconds
    first = bool(metrics) and not self._metrics
    if metrics:
      # A new dict: the thread that draws the bar may be reading the old one.
      old = self._metrics
      if len(_only_train(metrics)) < len(metrics):
        old = _only_train(old)
      self._metrics = {**old, **metrics}
    if self._live is None and step < self._total:
      if first or self._now() - self._printed >= self._every_seconds:
        self._print_line()

  def log(self, message: str) -> None:
    """Prints a line that stays: a checkpoint was saved, a result."""
    if self._live is None:
      self._print(message)
    else:
      self._live.console.print(
        printable_lines(message),
        markup=False,
        emoji=False,
        highlight=False,
        soft_wrap=True,
      )

  @contextlib.contextmanager
  def status(self, text: str) -> Iterator[None]:
    """Shows on the bar what keeps training waiting: `evaluating val`."""
    outer, self._status = self._status, text
    try:
      yield
    finally:
      self._status = outer

  def _print_line(self) -> None:
    self._printed = self._now()
    step = f'step {self._position()}'
    self._print('  '.join([step, *self._facts(), *self._eta()]))

  def _print(self, line: str) -> None:
    if self._enabled:
      show(line, file=self._file, flush=True)

  def _position(self) -> str:
    percent = 100 * self._step // max(self._total, 1)
    return f'{self._step}/{self._total}  {percent:2d}%'

  def _eta(self) -> list[str]:
    seconds = self._eta_seconds
    return [] if seconds is None else [f'ETA {_duration(seconds)}']

  def _facts(self) -> list[str]:
    facts, metrics = [], self._metrics
    for name, form in _SHOWN.items():
      if name in metrics and (name not in _IF_ANY or metrics[name]):
        facts.append(form.format(float(metrics[name])))
    for name in [n for n in metrics if not n.startswith('train/')][:1]:
      facts.append(f'{printable_lines(name)} {float(metrics[name]):.4g}')
    return facts

  def _render(self):
    import rich.console
    import rich.progress_bar
    import rich.table
    import rich.text

    bar = rich.progress_bar.ProgressBar(
      total=max(self._total, 1), completed=self._step, complete_style='green'
    )
    first = rich.table.Table.grid(padding=(0, 1), expand=True)
    first.add_column(no_wrap=True)
    first.add_column(ratio=1)
    first.add_column(no_wrap=True)
    end = '  '.join([self._position(), *self._eta()])
    first.add_row(self._status or 'training', bar, end)
    style = dict(style='dim', no_wrap=True, overflow='ellipsis')
    second = rich.text.Text('  '.join(self._facts()), **style)
    return rich.console.Group(first, second)


_SHOWN = {
  'train/loss': 'loss {:.4g}',
  'train/learning_rate': 'lr {:.1e}',
  'train/images_per_second': '{:,.0f} img/s',
  'train/mfu': 'MFU {:.1%}',
  'train/skipped_updates': 'skipped {:,.0f}',
}
_IF_ANY = ('train/skipped_updates',)  # Shown where they are not zero.


def _only_train(metrics: Mapping[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in metrics.items() if k.startswith('train/')}


def _is_terminal(file: TextIO) -> bool:
  return file.isatty() and os.environ.get('TERM') not in (None, 'dumb', '')


def _duration(seconds: float) -> str:
  """Returns `0:12`, `1:02:03` or `2d 03:04`."""
  minutes, s = divmod(round(max(seconds, 0)), 60)
  hours, m = divmod(minutes, 60)
  days, h = divmod(hours, 24)
  if days:
    return f'{days}d {h:02d}:{m:02d}'
  return f'{h}:{m:02d}:{s:02d}' if h else f'{m}:{s:02d}'
