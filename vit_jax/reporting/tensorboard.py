"""TensorBoard event files, without TensorFlow, torch or protobuf.

A file is a sequence of TFRecord frames (length, its checksum, data, its
checksum). Each holds an `Event` message in the wire format of protobuf; the
field numbers are those of tensorboard/compat/proto/{event,summary}.proto.
"""

import ctypes
import os
import pathlib
import socket
import struct
import time
from collections.abc import Iterable, Mapping

# How stale TensorBoard may be; a flush waits for the disk.
_FLUSH_SECONDS = 30.0
# A reader discards the events of earlier files from this step on.
_SESSION_START = 1
_RGB = 3


class EventFile:
  """One process's event file; curves continue over the files of a folder.

  The file is written in the caller's thread, so that a full disk raises here.
  """

  def __init__(self, folder: str | os.PathLike[str], first_step: int):
    """Starts a file, after which older files count only before `first_step`."""
    now = time.time_ns()
    # TensorBoard reads the files of a folder in the order of their names.
    name = (
      f'events.out.tfevents.{now // 10**9}.{socket.gethostname()}'
      f'.{os.getpid()}.{now % 10**9:09d}'
    )
    self._file = open(os.path.join(folder, name), 'xb')
    self._write(_bytes(3, b'brain.Event:2'))  # The version of the format.
    status = _bytes(7, _varint_field(1, _SESSION_START))
    self._write(_varint_field(2, first_step) + status)
    self.flush()

  def write_scalars(self, step: int, row: Mapping[str, float | int]) -> None:
    """Adds one point to each named curve."""
    self._write_summary(
      step, (_bytes(1, tag.encode()) + _float(2, v) for tag, v in row.items())
    )
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self.flush()

  def write_image(self, step: int, name: str, png: pathlib.Path) -> None:
    """Adds a PNG file under `name`."""
    data = png.read_bytes()
    width, height = struct.unpack('>II', data[16:24])  # The IHDR chunk.
    image = (
      _varint_field(1, height)
      + _varint_field(2, width)
      + _varint_field(3, _RGB)
      + _bytes(4, data)
    )
    self._write_summary(step, [_bytes(1, name.encode()) + _bytes(4, image)])

  def flush(self) -> None:
    """Makes what was written durable."""
    self._file.flush()
    os.fsync(self._file.fileno())
    self._flushed = time.monotonic()

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    self._file.close()

  def _write_summary(self, step: int, values: Iterable[bytes]) -> None:
    summary = b''.join(_bytes(1, value) for value in values)
    self._write(_varint_field(2, step) + _bytes(5, summary))

  def _write(self, event: bytes) -> None:
    """Writes one record; `event` lacks the time, which is added here."""
    event = b'\x09' + struct.pack('<d', time.time()) + event
    size = struct.pack('<Q', len(event))
    self._file.write(
      size + _masked_crc32c(size) + event + _masked_crc32c(event)
    )


def _varint_field(field: int, value: int) -> bytes:
  return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
  # Unlike struct, ctypes makes an infinity of what float32 cannot hold.
  return _varint(field << 3 | 5) + bytes(ctypes.c_float(value))


def _bytes(field: int, value: bytes) -> bytes:
  return _varint(field << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
  """Returns an integer >= 0 in groups of 7 bits, the lowest first."""
  out = bytearray()
  while value > 127:
    out.append(value & 127 | 128)
    value >>= 7
  out.append(value)
  return bytes(out)


def _masked_crc32c(data: bytes) -> bytes:
  """Returns the checksum of a TFRecord frame: CRC-32C, rotated, plus a number.

  The rotation and the number are those of TensorFlow's lib/hash/crc32c.h.
  """
  crc = 0xFFFFFFFF
  for byte in data:
    crc = _CRC_TABLE[(crc ^ byte) & 255] ^ crc >> 8
  crc ^= 0xFFFFFFFF
  masked = (crc >> 15 | crc << 17) + 0xA282EAD8
  return struct.pack('<I', masked & 0xFFFFFFFF)


def _crc_of_byte(byte: int) -> int:
  for _ in range(8):
    byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)  # Castagnoli, reversed bits.
  return byte


_CRC_TABLE = [_crc_of_byte(byte) for byte in range(256)]
