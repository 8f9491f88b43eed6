"""A lock on the workdir, so that two runs never write into the same one.

The lock is the file `run.lock` in the workdir, a JSON object: host, pid and
start time of the owner, and a random token. No lock of the operating system is
held: one that worker processes inherit outlives a killed run, and mounted
buckets have none. Instead the next run checks whether the owner is alive:

- on the same machine by its pid and the time at which that process started;
- on another machine by the file's modification time, which the owner refreshes.
  After `stale_seconds` without a refresh the owner counts as dead.
"""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pathlib
import secrets
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax.errors import RunError, UserError
from vit_jax.printable import printable

NAME = 'run.lock'
REFRESH_SECONDS = 15.0
# Mounted buckets show the modification time up to a minute late.
STALE_SECONDS = 180.0
_POLL_SECONDS = 0.5
_MOST_BYTES = 10_000

_WAITING, _HELD, _REFUSED = range(3)

_held: set[str] = set()  # Tokens of the locks of this process.


class _InTheWayError(OSError):
  """Something that is not a lock has the lock's name."""


class Lock:
  """A lock that this process holds; see `hold`."""

  def __init__(self, path: pathlib.Path, token: str):
    self._path = path
    self._token = token

  def confirm(self) -> None:
    """Raises RunError if another run has taken the workdir over.

    For example after this machine was suspended for longer than
    `stale_seconds`. Call it before anything is written that counts.
    """
    try:
      owner = _read(self._path)
    except OSError:  # The next write reports what is wrong.
      return
    if owner is not None and owner.get('token') != self._token:
      raise RunError(
        f'{self._path.parent} was taken over by {_describe(owner)}, because '
        'this run gave no sign of life. Nothing more is written here'
      )

  def refresh(self) -> None:
    """Shows runs on other machines that this one is alive."""
    if self._is_ours():
      os.utime(self._path)  # Takes no space: a full disk does not matter.

  def release(self) -> None:
    """Removes the lock if it is still ours."""
    if self._is_ours():
      self._path.unlink(missing_ok=True)
    _held.discard(self._token)

  def _is_ours(self) -> bool:
    owner = _read(self._path)
    return owner is not None and owner.get('token') == self._token


@contextlib.contextmanager
def hold(
  workdir: str | os.PathLike[str],
  *,
  on_log: Callable[[str], Any] = print,
  refresh_seconds: float = REFRESH_SECONDS,
  stale_seconds: float = STALE_SECONDS,
) -> Iterator[Callable[[], None]]:
  """Holds the lock of a workdir; yields `Lock.confirm`.

  With several processes all of them call this, and process 0 holds the lock for
  all. Where the owner is on another machine and was alive less than
  `stale_seconds` ago, this waits until it gives a sign of life or is stale.

  Args:
    workdir: of the run; made if it does not exist.
    on_log: receives one line of text where a lock is waited for or taken over.
    refresh_seconds: time between two signs of life.
    stale_seconds: without one for so long, an owner on another machine is dead.

  Raises:
    UserError: another process that is alive owns the workdir, nothing can be
      written there, or something that is not a lock has its name.
  """
  if jax.process_index() == 0:
    attempts = _attempts(pathlib.Path(workdir), stale_seconds, on_log)
  else:
    attempts = itertools.repeat(None)
  lock, error, state = None, None, _WAITING
  while state == _WAITING:
    try:
      lock = next(attempts)
    except UserError as e:
      error = e
    if error is not None:
      state = _REFUSED
    elif lock is not None:
      state = _HELD
    if jax.process_count() > 1:
      # Again and again: a collective gives up after 30 seconds on CPUs.
      state = int(multihost_utils.process_allgather(np.int32(state))[0])
  if state == _REFUSED:
    raise error or UserError(
      'process 0 cannot lock the workdir; see its message'
    )
  if lock is None:
    yield lambda: None
    return
  stop = threading.Event()
  thread = threading.Thread(
    target=_refresh, args=(lock, stop, refresh_seconds), daemon=True
  )
  thread.start()
  try:
    yield lock.confirm
  finally:
    stop.set()
    thread.join(timeout=1)  # It may itself wait for the disk.
    with contextlib.suppress(OSError):  # A dead owner is recognised anyway.
      lock.release()


def _attempts(
  workdir: pathlib.Path, stale_seconds: float, on_log: Callable[[str], Any]
) -> Iterator[Lock | None]:
  """Yields None as long as it is not clear who is alive, and then the lock."""
  path = workdir / NAME
  token = secrets.token_hex(8)
  record = dict(
    host=socket.gethostname(),
    pid=os.getpid(),
    since=time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
    machine=_machine(),
    process=_process_start(os.getpid()),
    token=token,
  )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    for _ in _wait_and_take(path, record, stale_seconds, on_log):
      yield None
      time.sleep(_POLL_SECONDS)
  except _InTheWayError as e:
    raise UserError(
      f'{e.filename!r} is not a regular file of at most {_MOST_BYTES:,} bytes,'
      ' as locks are. Remove it'
    ) from e
  except OSError as e:
    raise UserError(
      f'cannot write {str(e.filename or path)!r}: {e.strerror}. Give a workdir '
      'that you may write to'
    ) from e
  yield Lock(path, token)


def _wait_and_take(path, record, stale_seconds, on_log) -> Iterator[None]:
  """Writes `record` to `path` once the owner before is dead."""
  first, deadline = None, 0.0
  while True:
    with _one_at_a_time(path.parent):
      owner = _read(path)
      alive = owner is not None and _is_alive(owner)
      seen = owner and (owner.get('token'), owner['modified'])
      now = time.monotonic()
      if alive is None and first is None:
        first = seen
        age = _write(path, record, replace=False) - seen[1]
        deadline = now + stale_seconds - max(age, 0.0)
        if now < deadline:
          on_log(
            f'{path.parent} was in use by {_describe(owner)}, {max(age, 0):.0f}'
            f' s ago; waiting up to {deadline - now:.0f} s to see whether that '
            'run is alive'
          )
      if alive or (alive is None and seen != first):
        raise UserError(_refusal(path, owner, stale_seconds, alive))
      if not alive and (alive is False or now >= deadline):
        if owner is not None:
          on_log(f'took over the workdir of {_describe(owner)}, which is dead')
        _held.add(record['token'])
        _write(path, record, replace=True)
        return
    yield


def _refusal(path, owner, stale_seconds, same_machine) -> str:
  text = (
    f'{path.parent} is in use by {_describe(owner)}. Wait until that run ends, '
    'or give another workdir'
  )
  if not same_machine:
    text += (
      f'. If it is dead, start again {stale_seconds:.0f} s later, or delete '
      f'{path}'
    )
  return text


def _write(path: pathlib.Path, record, *, replace: bool) -> float:
  """Writes the record aside; returns when that was, by the file's own clock."""
  new = path.with_name(f'.{path.name}.{record["token"]}')
  try:
    new.write_text(json.dumps(record, indent=1) + '\n')
    modified = new.stat().st_mtime
    if replace:
      os.replace(new, path)
  finally:
    new.unlink(missing_ok=True)
  return modified


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record of the owner and when it was last refreshed.

  None where there is no lock; a broken record has only the time.

  Raises:
    OSError: the lock cannot be read; `_InTheWayError` if it is not a lock.
  """
  try:
    with open(path, 'rb', opener=_open_at_once) as f:
      status = os.fstat(f.fileno())
      if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
        raise _InTheWayError(errno.EINVAL, 'not a lock', str(path))
      record = json.loads(f.read(_MOST_BYTES))
  except FileNotFoundError:
    return None
  except (ValueError, RecursionError):
    record = {}
  return (record if _is_sound(record) else {}) | {'modified': status.st_mtime}


def _open_at_once(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NONBLOCK)  # Waits for no writer of a FIFO.


def _is_sound(record: Any) -> bool:
  if not isinstance(record, dict) or not isinstance(record.get('token'), str):
    return False
  pid = record.get('pid')
  return type(pid) is int and 0 < pid < 2**31  # Not True, which is an int.


def _is_alive(owner: dict[str, Any]) -> bool | None:
  """Whether the owner runs; None if it cannot be known from this machine."""
  if not owner.get('machine') or owner['machine'] != _machine():
    return None
  pid = owner.get('pid')
  if pid == os.getpid() and owner.get('token') not in _held:
    return False
  if owner.get('process') is None:  # Not Linux.
    return _exists(pid)
  return _process_start(pid) == owner['process']


def _machine() -> str:
  """Identifies where a pid means the same: a boot of a machine, a container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # Not Linux.
    return socket.gethostname()


def _process_start(pid: Any) -> str | None:
  """Returns when a process started, in clock ticks; None if it is dead."""
  try:
    text = pathlib.Path(f'/proc/{int(pid)}/stat').read_text()
  except (OSError, ValueError, TypeError):
    return None
  # After the name in parentheses, which may contain anything: man 5 proc.
  fields = text.rpartition(')')[2].split()
  # A killed process that its parent has not waited for is dead, too.
  return None if fields[0] in 'ZX' else fields[19]


def _exists(pid: Any) -> bool:
  try:
    os.kill(int(pid), 0)
  except ProcessLookupError:
    return False
  except (OSError, ValueError, TypeError):
    return True
  return True


def _describe(owner: dict[str, Any]) -> str:
  if 'pid' not in owner:
    return 'a run with an unreadable lock'
  pid, host, since = (owner.get(key) for key in ('pid', 'host', 'since'))
  return printable(f'process {pid} on {host} (since {since})')


def _refresh(lock: Lock, stop: threading.Event, seconds: float) -> None:
  while not stop.wait(seconds):
    with contextlib.suppress(OSError):  # The next refresh may succeed.
      lock.refresh()


@contextlib.contextmanager
def _one_at_a_time(folder: pathlib.Path) -> Iterator[None]:
  """Keeps out other processes of this machine, where the folder allows it.

  Elsewhere, as on NFS, two runs that start in the same instant may both get the
  lock; `Lock.confirm` then ends the first of them.
  """
  fd = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(fd, fcntl.LOCK_EX)
    yield
  finally:
    os.close(fd)
