"""What a run leaves to read: metrics.jsonl, TensorBoard events, config.json.

`metrics.jsonl` has one JSON object per line, `{"step": 400, "train/loss": ...,
"val/top1": ...}`, with strictly increasing steps; what was measured after step
k, in training and in evaluation, is one row. JSON knows no NaN and no infinity:
both are `null` (a NaN again in pandas); the event file has the true value.
"""

import json
import math
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vit_jax.errors import RunError, UserError

_FLUSH_EVENTS_SECONDS = 10.0  # How stale TensorBoard may be.


class MetricWriter:
  """Writes metrics of steps, in increasing order, on process 0 only.

  A row is open, in memory, until a later step is written; `flush` makes all
  rows durable. Called before a checkpoint commits, it makes sure that a run
  which is killed and continues from that checkpoint has every row exactly once.
  All methods do nothing on other processes.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    restored_step: int | None = None,
    *,
    enabled: bool | None = None,
  ):
    """Opens the files of a run, which are made if they are missing.

    Args:
      workdir: folder of the run.
      restored_step: the step that this run continues from. Rows of later steps
        will be written again, so they are removed (atomically), and a line
        that a kill has torn with them; TensorBoard is told the same. None is a
        run that starts afresh: all rows are removed.
      enabled: whether this process writes; None is process 0.

    Raises:
      UserError: the folder cannot be written, or a row that must be kept
        cannot be read.
    """
    self._enabled = jax.process_index() == 0 if enabled is None else enabled
    self._step: int | None = None  # Of the open row.
    self._row: dict[str, float | int] = {}
    self._start = self._end = 0  # Where the open row lies, if it is on disk.
    self._changed = False
    if not self._enabled:
      return
    workdir = _make_writable(workdir)
    self._path = workdir / 'metrics.jsonl'
    self._resume(restored_step)
    first_step = 0 if restored_step is None else restored_step + 1
    self._events = _Events(workdir, first_step)

  def write(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Adds numbers to the row of `step`; a name written twice keeps the last.

    Args:
      step: not smaller than that of any earlier call.
      metrics: Python, numpy or fetched jax scalars. Integers stay integers.

    Raises:
      ValueError: a step before the open row's.
      RunError: the disk is full or failing.
    """
    if not self._enabled:
      return
    step = int(step)
    if self._step is not None and step < self._step:
      raise ValueError(f'metrics of step {step} came after those of {self._step}')
    row = {name: _number(value) for name, value in metrics.items()}
    with _failing_disk_ends_the_run(self._path):
      if step != self._step:
        self._write_row()
        self._step, self._row, self._start = step, {}, self._end
      self._row |= row
      self._changed = True
      self._events.write_scalars(step, row)

  def write_image(self, step: int, name: str, path: str | os.PathLike[str]):
    """Adds a PNG file to the TensorBoard events under `name`."""
    if self._enabled:
      with _failing_disk_ends_the_run(self._path):
        self._events.write_png(step, name, pathlib.Path(path).read_bytes())

  def flush(self) -> None:
    """Makes all that was written durable, the open row included."""
    if self._enabled:
      with _failing_disk_ends_the_run(self._path):
        self._write_row()
        os.fsync(self._file.fileno())
        self._events.flush()

  def close(self) -> None:
    """Flushes and closes; further calls do nothing."""
    if self._enabled:
      self.flush()
      self._file.close()
      self._events.close()
      self._enabled = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _write_row(self) -> None:
    """Appends the open row, or replaces it where it is already on disk."""
    if not self._changed:
      return
    line = _line(self._step, self._row)
    if self._end > self._start:
      # Rare: something came for a step that was flushed. Never cut and append,
      # for a kill in between would lose a durable row.
      self._file.close()
      kept = self._path.read_bytes()[: self._start]
      _replace(self._path, kept + line)
      self._file = open(self._path, 'ab')
    else:
      self._file.write(line)
      self._file.flush()  # To the operating system: it survives kill -9.
    self._end = self._start + len(line)
    self._changed = False

  def _resume(self, restored_step: int | None) -> None:
    with _failing_disk_ends_the_run(self._path):
      old = self._path.read_bytes() if self._path.exists() else b''
      rows = _rows_until(restored_step, old, self._path)
      lines = [_line(step, row) for step, row in rows]
      if b''.join(lines) != old:
        _replace(self._path, b''.join(lines))
      self._file = open(self._path, 'ab')
    self._start = self._end = sum(map(len, lines))
    if rows:  # A restored step may still get evaluation metrics.
      self._step, self._row = rows[-1]
      self._start -= len(lines[-1])


def write_config(
  workdir: str | os.PathLike[str],
  config: Any,
  restored_step: int | None = None,
) -> None:
  """Writes `<workdir>/config.json` atomically, on process 0 only.

  Where a run continues with another config, the one that trained it until then
  is kept as `config.until_<restored_step>.json`. A config that no checkpoint
  came from is replaced.

  Args:
    workdir: folder of the run; made if missing.
    config: a ConfigDict or nested mapping; what JSON does not know becomes its
      `repr`.
    restored_step: as in `MetricWriter`.

  Raises:
    UserError: the folder cannot be written.
  """
  if jax.process_index() != 0:
    return
  path = _make_writable(workdir) / 'config.json'
  config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)
  new = json.dumps(config, indent=2, default=repr).encode() + b'\n'
  old = path.read_bytes() if path.exists() else new
  with _failing_disk_ends_the_run(path):
    if restored_step is not None and old != new:
      kept = path.with_name(f'config.until_{restored_step}.json')
      if not kept.exists():  # Else `old` trained nothing that lasts.
        _replace(kept, old)
    _replace(path, new)


class _Events:
  """A TensorBoard event file, written in this thread.

  tensorboardX's own `SummaryWriter` hands events to a thread through a bounded
  queue: when the disk is full the thread dies and training would hang.
  """

  def __init__(self, workdir: pathlib.Path, first_step: int):
    hidden = 'torch' not in sys.modules
    if hidden:  # tensorboardX imports torch if it can: 2 s for nothing here.
      sys.modules['torch'] = None
    try:
      from tensorboardX import event_file_writer
      from tensorboardX.proto import event_pb2, summary_pb2
    finally:
      if hidden:
        del sys.modules['torch']
    self._proto, self._summary = event_pb2, summary_pb2
    # The name has only seconds, and a file of the same name is overwritten.
    suffix = f'.{os.getpid()}.{time.time_ns() % 10**9:09d}'
    self._writer = event_file_writer.EventsWriter(
      os.path.join(workdir, 'events'), suffix
    )
    # From here on TensorBoard forgets what older files say of later steps.
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)
    self.flush()

  def write_scalars(self, step: int, row: Mapping[str, float | int]) -> None:
    value = self._summary.Summary.Value
    values = [value(tag=k, simple_value=float(v)) for k, v in row.items()]
    self._write(step, summary=self._summary.Summary(value=values))
    if time.monotonic() - self._flushed > _FLUSH_EVENTS_SECONDS:
      self.flush()

  def write_png(self, step: int, name: str, png: bytes) -> None:
    image = self._summary.Summary.Image(
      width=int.from_bytes(png[16:20], 'big'),  # The IHDR chunk comes first.
      height=int.from_bytes(png[20:24], 'big'),
      colorspace=3,
      encoded_image_string=png,
    )
    value = self._summary.Summary.Value(tag=name, image=image)
    self._write(step, summary=self._summary.Summary(value=[value]))
    self.flush()

  def flush(self) -> None:
    self._flushed = time.monotonic()
    self._writer.flush()

  def close(self) -> None:
    self._writer.close()

  def _write(self, step: int, **what: Any) -> None:
    event = self._proto.Event(step=step, wall_time=time.time(), **what)
    self._writer.write_event(event)


def _rows_until(
  last_step: int | None, data: bytes, path: pathlib.Path
) -> list[tuple[int, dict[str, Any]]]:
  """Returns the rows `(step, rest)` whose step is at most `last_step`."""
  if last_step is None:
    return []
  rows, bad = [], None
  for number, line in enumerate(data.splitlines(), 1):
    try:
      row = json.loads(line)
      step = int(row.pop('step'))
    except (ValueError, KeyError, TypeError, AttributeError):
      # Only a torn row may be here, and rows to be written again after it.
      bad = bad or number
      continue
    if step > last_step:
      continue
    if bad or (rows and step <= rows[-1][0]):
      raise UserError(
        f'{path}, line {bad or number}: expected a JSON object with a "step" '
        'greater than that of the line before. Was the file edited, or do two '
        'runs share the workdir? Mend the line, or move the file away.'
      )
    rows.append((step, row))
  return rows


def _line(step: int, row: Mapping[str, Any]) -> bytes:
  values = {
    name: value if value is None or math.isfinite(value) else None
    for name, value in row.items()
  }
  line = json.dumps({'step': step} | values, allow_nan=False)
  return line.encode() + b'\n'


def _number(value: Any) -> float | int:
  value = np.asarray(value)
  if value.shape:
    raise ValueError(f'a metric is a scalar, got an array of {value.shape}')
  value = value.item()
  return value if isinstance(value, int) else float(value)


def _make_writable(workdir: str | os.PathLike[str]) -> pathlib.Path:
  if '://' in str(workdir):
    raise UserError(
      f'workdir={str(workdir)!r}: metrics are appended to files, which object '
      'stores cannot do; mount the bucket (gcsfuse) and give its folder'
    )
  workdir = pathlib.Path(workdir)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe = workdir / f'.writable.{os.getpid()}'
    probe.touch()
    probe.unlink()
  except OSError as e:
    raise UserError(
      f'cannot write to workdir {str(workdir)!r}: {e.strerror}; give '
      '--workdir a folder that you may write to'
    ) from e
  return workdir


def _replace(path: pathlib.Path, data: bytes) -> None:
  """Replaces a file so that a kill leaves the old or the new one, whole."""
  new = path.with_name(f'.{path.name}.new')
  with open(new, 'wb') as f:
    f.write(data)
    f.flush()
    os.fsync(f.fileno())
  os.replace(new, path)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


class _failing_disk_ends_the_run:  # noqa: N801
  def __init__(self, path):
    self._path = path

  def __enter__(self):
    return self

  def __exit__(self, kind, error, traceback):
    if isinstance(error, OSError):
      raise RunError(
        f'cannot write {self._path}: {error.strerror}; checkpoints that are '
        'already saved are safe: make room and start the same command again'
      ) from error
