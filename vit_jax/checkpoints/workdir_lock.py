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
import fcntl
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


@contextlib.contextmanager
def hold(
  workdir: str | os.PathLike[str],
  *,
  on_log: Callable[[str], Any] = print,
  refresh_seconds: float = REFRESH_SECONDS,
  stale_seconds: float = STALE_SECONDS,
) -> Iterator[Callable[[], None]]:
  """Holds the lock of a workdir, which is made if it does not exist.

  With several processes all of them call this, and process 0 holds the lock for
  all. Where the owner is on another machine and was alive less than
  `stale_seconds` ago, this waits until it gives a sign of life or is stale.

  Args:
    workdir: of the run.
    on_log: receives one line of text where a lock is waited for or taken over.
    refresh_seconds: time between two signs of life.
    stale_seconds: without one for so long, an owner on another machine is dead.

  Yields:
    A function to be called before anything is written that counts: raises
    RunError if another run has taken the workdir over, for example after this
    machine was suspended for longer than `stale_seconds`.

  Raises:
    UserError: another process that is alive owns the workdir, nothing can be
      written there, or something that is not a lock has its name.
  """
  lock, error, state = None, None, _WAITING
  if jax.process_index() == 0:
    lock = _Lock(pathlib.Path(workdir) / NAME, stale_seconds, on_log)
  while state == _WAITING:
    try:
      if lock is not None and lock.take():
        state = _HELD
    except UserError as e:
      error, state = e, _REFUSED
    if jax.process_count() > 1:
      # Again and again: a collective gives up after 30 seconds on CPUs.
      state = int(multihost_utils.process_allgather(np.int32(state))[0])
    if state == _WAITING:
      time.sleep(_POLL_SECONDS)
  if state == _REFUSED:
    raise error or UserError(
      'process 0 cannot lock the workdir; see its message'
    )
  if lock is None:
    yield lambda: None
    return
  stop = threading.Event()

  def refresh():
    while not stop.wait(refresh_seconds):
      with contextlib.suppress(OSError):  # The next refresh may succeed.
        lock.refresh()

  thread = threading.Thread(target=refresh, daemon=True)
  thread.start()
  try:
    yield lock.confirm
  finally:
    stop.set()
    thread.join(timeout=1)  # It may itself wait for the disk.
    with contextlib.suppress(OSError):  # A dead owner is recognised anyway.
      lock.release()


class _Lock:
  """The lock file, and what this process writes into it."""

  def __init__(
    self,
    path: pathlib.Path,
    stale_seconds: float,
    on_log: Callable[[str], Any],
  ):
    self._path, self._stale_seconds, self._log = path, stale_seconds, on_log
    self._token = secrets.token_hex(8)
    self._first, self._deadline = None, 0.0
    self._record = dict(
      host=socket.gethostname(),
      pid=os.getpid(),
      since=time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime()),
      machine=_machine(),
      process=_process_start(os.getpid()),
      token=self._token,
    )

  def take(self) -> bool:
    """Takes the lock; returns False while it is unknown who is alive.

    Raises:
      UserError: its owner is alive, or it cannot be read or written.
    """
    folder, descriptor = self._path.parent, None
    try:
      folder.mkdir(parents=True, exist_ok=True)
      descriptor = os.open(folder, os.O_RDONLY)
      # One process of this machine at a time. Where the folder has no locks, as
      # on NFS, two runs that start in the same instant may both get the
      # workdir; `confirm` then ends the first of them.
      with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX)
      return self._take()
    except OSError as e:
      raise UserError(
        f'cannot write {str(e.filename or self._path)!r}: {e.strerror}. Give a '
        'workdir that you may write to'
      ) from e
    finally:
      if descriptor is not None:
        os.close(descriptor)

  def confirm(self) -> None:
    """Raises RunError if the lock is another run's."""
    try:
      owner = _read(self._path)
    except (OSError, UserError):  # The next write reports what is wrong.
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
    try:
      owner = _read(self._path)
    except UserError:  # No lock at all.
      return False
    return owner is not None and owner.get('token') == self._token

  def _take(self) -> bool:
    folder, owner = self._path.parent, _read(self._path)
    alive = owner is not None and _is_alive(owner)
    seen = owner and (owner.get('token'), owner['modified'])
    now = time.monotonic()
    if alive is None and self._first is None:
      self._first = seen
      age = max(self._write(replace=False) - owner['modified'], 0.0)
      self._deadline = now + self._stale_seconds - age
      if now < self._deadline:
        self._log(
          f'{folder} was in use by {_describe(owner)}, {age:.0f} s ago; '
          f'waiting up to {self._deadline - now:.0f} s to see whether that run '
          'is alive'
        )
    if alive or (alive is None and seen != self._first):
      elsewhere = (
        f'. If it is dead, start again {self._stale_seconds:.0f} s later, or '
        f'delete {self._path}'
      )
      raise UserError(
        f'{folder} is in use by {_describe(owner)}. Wait until that run ends, '
        f'or give another workdir{"" if alive else elsewhere}'
      )
    if alive is None and now < self._deadline:
      return False
    if owner is not None:
      self._log(f'took over the workdir of {_describe(owner)}, which is dead')
    _held.add(self._token)
    self._write(replace=True)
    return True

  def _write(self, *, replace: bool) -> float:
    """Writes the record aside; returns when that was, by the file's clock."""
    new = self._path.with_name(f'.{NAME}.{self._token}')
    try:
      new.write_text(json.dumps(self._record, indent=1) + '\n')
      modified = new.stat().st_mtime
      if replace:
        os.replace(new, self._path)
    finally:
      new.unlink(missing_ok=True)
    return modified


def _read(path: pathlib.Path) -> dict[str, Any] | None:
  """Returns the record of the owner and when it was last refreshed.

  None where there is no lock; a broken record has only the time.

  Raises:
    OSError: the lock cannot be read.
    UserError: it is not a lock.
  """
  try:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _MOST_BYTES:
      raise UserError(
        f'{str(path)!r} is not a regular file of at most {_MOST_BYTES:,} bytes,'
        ' as locks are. Remove it'
      )
    text = path.read_bytes()
  except FileNotFoundError:
    return None
  try:
    record = json.loads(text)
    pid, token = record['pid'], record['token']
    # Not True, which is an int.
    is_sound = type(pid) is int and 0 < pid < 2**31 and isinstance(token, str)
  except (ValueError, RecursionError, KeyError, TypeError):
    is_sound = False
  return (record if is_sound else {}) | {'modified': status.st_mtime}


def _is_alive(owner: dict[str, Any]) -> bool | None:
  """Whether the owner runs; None if it cannot be known from this machine."""
  if not owner.get('machine') or owner['machine'] != _machine():
    return None
  pid = owner['pid']
  if pid == os.getpid() and owner['token'] not in _held:
    return False
  if owner.get('process') is not None:
    return _process_start(pid) == owner['process']
  try:  # Not Linux.
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # Another user's.
    pass
  return True


def _machine() -> str:
  """Identifies where a pid means the same: a boot of a machine, a container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # Not Linux.
    return socket.gethostname()


def _process_start(pid: int) -> str | None:
  """Returns when a process started, in clock ticks; None if it is dead."""
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return None
  # After the name in parentheses, which may contain anything: man 5 proc.
  fields = text.rpartition(')')[2].split()
  # A killed process that its parent has not waited for is dead, too.
  return None if fields[0] in 'ZX' else fields[19]


def _describe(owner: dict[str, Any]) -> str:
  if 'pid' not in owner:
    return 'a run with an unreadable lock'
  pid, host, since = (owner.get(key) for key in ('pid', 'host', 'since'))
  return printable(f'process {pid} on {host} (since {since})')
