"""Metrics of a run: metrics.jsonl, and the same as TensorBoard events.

`metrics.jsonl` has one JSON object per line, `{"step": 400, "train/loss": ...,
"val/top1": ...}`, with strictly increasing steps; what was measured after step
k, in training and in evaluation, is one row. JSON knows no NaN and no infinity:
both are `null` (a NaN again in pandas); the event file has the true value.
"""

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.errors import UserError
from vit_jax.reporting import run_folder, run_loggers, tensorboard


class MetricWriter(contextlib.AbstractContextManager):
  """Writes the metrics of a run, step after step, on process 0 only.

  The row of a step is open, in memory, until a later step is written; `flush`
  makes all rows durable. Called before a checkpoint commits, it sees to it that
  a run which is killed and continues from that checkpoint has every row exactly
  once. On other processes all methods do nothing.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    restored_step: int | None = None,
    *,
    logged: Mapping[str, int] | None = None,
    loggers: run_loggers.Loggers | None = None,
    on_log: Callable[[str], Any] = print,
  ):
    """Opens the files of a run; they are made if they are missing.

    Args:
      workdir: folder of the run.
      restored_step: the step that this run continues from. Rows of later steps
        and a line that a kill has cut short are removed (atomically). None is
        a new run: all rows are removed.
      logged: `MetricWriter.logged` at `restored_step`, where it is known.
      loggers: get the same numbers and pictures, and are closed with the files.
      on_log: receives a line of text if rows of `logged` are no longer there.

    Raises:
      UserError: the folder cannot be written, or a row that must be kept
        cannot be read.
    """
    self._enabled = jax.process_index() == 0
    self._loggers = loggers
    if not self._enabled:
      return
    self._workdir = run_folder.make_writable(workdir)
    self._path = self._workdir / 'metrics.jsonl'
    with run_folder.writing(self._workdir, UserError):
      steps = self._resume(restored_step)
      first_step = 0 if restored_step is None else restored_step + 1
      self._events = tensorboard.EventFile(self._workdir, first_step)
    if logged is not None and len(steps) < logged['rows']:
      found = f' (steps {steps[0]} to {steps[-1]})' if steps else ''
      on_log(
        f'{self._path} has {len(steps)}{found} of the {logged["rows"]} rows '
        f'(steps {logged["first"]} to {logged["last"]}) that were logged until '
        'this checkpoint. The weights are not affected'
      )

  @property
  def logged(self) -> dict[str, int] | None:
    """Number of rows, first and last step; None without rows or a file."""
    if not self._enabled or self._step is None:
      return None
    return dict(rows=self._rows, first=self._first, last=self._step)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds numbers to the row of `step`; a name written twice keeps the last.

    Args:
      step: not smaller than that of any earlier call.
      metrics: Python, numpy or fetched jax scalars. Integers stay integers.

    Raises:
      ValueError: a step before that of the open row, or not a scalar.
      RunError: the disk is full or failing.
    """
    if not self._enabled:
      return
    if self._step is not None and step < self._step:
      raise ValueError(f'metrics of step {step} after those of {self._step}')
    row = {name: _number(name, value) for name, value in metrics.items()}
    with run_folder.writing(self._workdir):
      if step != self._step:
        self._write_row()
        self._step, self._row, self._start = int(step), {}, self._end
        self._rows += 1
        self._first = self._step if self._first is None else self._first
      self._row |= row
      self._changed = True
      self._events.write_scalars(self._step, row)
    if self._loggers:
      self._loggers.write(self._step, row)

  def write_image(
    self, step: int, name: str, path: str | os.PathLike[str]
  ) -> None:
    """Adds a PNG file to the TensorBoard events under `name`."""
    if self._enabled:
      with run_folder.writing(self._workdir):
        self._events.write_image(step, name, pathlib.Path(path))
      if self._loggers:
        self._loggers.write_image(step, name, pathlib.Path(path))

  def flush(self) -> None:
    """Makes all that was written durable, the open row included."""
    if self._enabled:
      with run_folder.writing(self._workdir):
        self._write_row()
        os.fsync(self._file.fileno())
        self._events.flush()

  def close(self) -> None:
    """Flushes and closes; after that all methods do nothing."""
    if self._enabled:
      self.flush()
      self._file.close()
      self._events.close()
      self._enabled = False

  def __exit__(self, error, *_):
    if self._loggers:  # First: they never raise, a full disk does.
      self._loggers.close(failed=error is not None)
    self.close()

  def _resume(self, restored_step: int | None) -> list[int]:
    """Cuts and opens the file, reopens its last row; returns all steps."""
    old = self._path.read_bytes() if self._path.exists() else b''
    rows = _rows_until(restored_step, old, self._path)
    kept = b''.join(line for _, _, line in rows)
    if kept != old:
      run_folder.replace(self._path, kept)
    self._file = open(self._path, 'ab')
    # The open row, whether it changed since it was last put into the file, and
    # the bytes of the file that it takes (none if it is not there yet).
    self._step, self._row, line = rows[-1] if rows else (None, {}, b'')
    self._changed = False
    self._start, self._end = len(kept) - len(line), len(kept)
    steps = [step for step, _, _ in rows]
    self._rows, self._first = len(steps), steps[0] if steps else None
    return steps

  def _write_row(self) -> None:
    """Appends the open row, or replaces it where it is in the file already."""
    if not self._changed:
      return
    line = _line(self._step, self._row)
    if self._end > self._start:
      # Rare: more came for a step after a flush. To cut and append instead
      # could lose a durable row to a kill in between.
      self._file.close()
      run_folder.replace(
        self._path, self._path.read_bytes()[: self._start] + line
      )
      self._file = open(self._path, 'ab')
    else:
      self._file.write(line)
      self._file.flush()  # To the operating system: outlives kill -9.
    self._end = self._start + len(line)
    self._changed = False


def _rows_until(
  last_step: int | None, data: bytes, path: pathlib.Path
) -> list[tuple[int, dict[str, Any], bytes]]:
  """Returns `(step, other values, line)` of the rows up to `last_step`."""
  rows, bad = [], None
  for number, line in enumerate(data.split(b'\n'), 1):
    if last_step is None or not line:
      continue
    try:
      row = json.loads(line)
      step = int(row.pop('step'))
    except (ValueError, KeyError, TypeError, AttributeError):
      bad = bad or number  # No matter, unless a row to keep comes after it.
      continue
    if step > last_step:
      continue
    if bad or (rows and step <= rows[-1][0]):
      raise UserError(
        f'{path}, line {bad or number}: expected a JSON object with a "step" '
        'greater than that of the line before. Was it edited, or do two runs '
        'share the workdir? Correct the line, or move the file away.'
      )
    rows.append((step, row, line + b'\n'))
  return rows


def _line(step: int, row: Mapping[str, Any]) -> bytes:
  def finite(x):
    return None if isinstance(x, float) and not math.isfinite(x) else x

  row = {'step': step} | {name: finite(value) for name, value in row.items()}
  return json.dumps(row, allow_nan=False).encode() + b'\n'


def _number(name: str, value: Any) -> float | int:
  if np.ndim(value):
    raise ValueError(f'{name} is an array of shape {np.shape(value)}')
  value = value.item() if hasattr(value, 'item') else value
  return value if isinstance(value, int) else float(value)
