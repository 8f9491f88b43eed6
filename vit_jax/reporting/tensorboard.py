"""TensorBoard event files without TensorFlow."""

import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

# How stale TensorBoard may be; a flush waits for the disk.
_FLUSH_SECONDS = 30.0


class EventFile:
  """One process's event file; curves continue over the files of a folder.

  The file is written in the caller's thread. tensorboardX's `SummaryWriter`
  hands its events to a thread through a bounded queue: when the disk is full,
  that thread dies and the next caller waits for ever.
  """

  def __init__(self, folder: str | os.PathLike[str], first_step: int):
    """Starts a file, after which older files count only before `first_step`."""
    self._event, self._summary, event_file_writer = _import_tensorboard_x()
    # The library names a file by the second and overwrites its namesake.
    suffix = f'.{os.getpid()}.{time.time_ns() % 10**9:09d}'
    prefix = os.path.join(folder, 'events')
    self._writer = event_file_writer.EventsWriter(prefix, suffix)
    status = self._event.SessionLog(status=self._event.SessionLog.START)
    self._write(first_step, session_log=status)
    self.flush()

  def write_scalars(self, step: int, row: Mapping[str, float | int]) -> None:
    """Adds one point to each named curve."""
    make = self._summary.Summary.Value
    values = [make(tag=k, simple_value=float(v)) for k, v in row.items()]
    self._write(step, summary=self._summary.Summary(value=values))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def write_image(self, step: int, name: str, png: pathlib.Path) -> None:
    """Adds a PNG file under `name`."""
    data = png.read_bytes()
    image = self._summary.Summary.Image(
      width=int.from_bytes(data[16:20], 'big'),  # The IHDR chunk comes first.
      height=int.from_bytes(data[20:24], 'big'),
      colorspace=3,  # RGB
      encoded_image_string=data,
    )
    value = self._summary.Summary.Value(tag=name, image=image)
    self._write(step, summary=self._summary.Summary(value=[value]))

  def flush(self) -> None:
    """Makes what was written durable."""
    self._writer.flush()
    self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes."""
    self._writer.close()

  def _write(self, step: int, **content: Any) -> None:
    event = self._event.Event(step=step, wall_time=time.time(), **content)
    self._writer.write_event(event)


def _import_tensorboard_x():
  """Imports tensorboardX without torch, which it imports for isinstance.

  Where torch is installed, that takes 2 s and 200 MB for nothing.
  """
  hide = 'torch' not in sys.modules
  if hide:
    sys.modules['torch'] = None
  try:
    from tensorboardX import event_file_writer
    from tensorboardX.proto import event_pb2, summary_pb2
  finally:
    if hide:
      del sys.modules['torch']
  return event_pb2, summary_pb2, event_file_writer
