"""Signals that end a run: a preemption, Ctrl-C, a closed terminal.

Before the first step there is nothing to save, and a command ends at once, even
in the middle of a compilation (`exit_at_once`). Later the loop saves a
checkpoint first (`watch`). A signal that the parent process ignores, as nohup
does with SIGHUP, stays ignored.
"""

import contextlib
import functools
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

SIGTERM_EXIT_CODE = 42
SIGINT_EXIT_CODE = 130

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_SHOW_CURSOR = b'\x1b[?25h'


@contextlib.contextmanager
def exit_at_once() -> Iterator[None]:
  """Within it SIGTERM and SIGHUP exit with code 42, Ctrl-C with 130, at once.

  For commands, in the main thread: nothing is cleaned up, and no exception is
  raised. Within `watch` the signals have another meaning.
  """
  _forget_in_forked_children()
  woken, wake = socket.socketpair()
  wake.setblocking(False)
  # Python runs handlers between two steps of its main thread, which waits for
  # minutes while XLA compiles. The system wakes this thread without delay.
  thread = threading.Thread(target=_exit_if_woken, args=(woken,), daemon=True)
  thread.start()
  before = {n: signal.signal(n, _exit) for n in _SIGNALS if not _ignored(n)}
  fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
  try:
    yield
  finally:
    signal.set_wakeup_fd(fd)
    for number, handler in before.items():
      signal.signal(number, handler)
    wake.close()
    thread.join()
    woken.close()


@contextlib.contextmanager
def watch() -> Iterator[Callable[[int], int]]:
  """Yields `asked(step)`: 0, or the code with which to exit after saving.

  SIGTERM (a preemption) and SIGHUP (a closed terminal) ask for exit code 42,
  the first Ctrl-C for 130; a second Ctrl-C interrupts at once. With several
  processes a SIGTERM or SIGHUP to one of them gives all of them the same answer
  for the same step, and Ctrl-C, which only this one would know of, interrupts
  at once.

  Within `exit_at_once` that begins with the first call of `asked`: until then
  nothing was trained.
  """
  import jax  # A command handles signals before it imports jax.
  from jax.experimental import multihost_utils

  # With several processes SIGTERM belongs to the preemption service of jax,
  # which informs all of them.
  alone = jax.process_count() == 1
  terminals = [fd for fd in (0, 1, 2) if os.isatty(fd)]
  code = 0

  def handle(number, _):
    nonlocal code
    if number == signal.SIGINT:
      if code:
        raise KeyboardInterrupt
      text = 'saving a checkpoint; press Ctrl-C again to quit without it'
      print(f'\n{text}', file=sys.stderr, flush=True)
      code = SIGINT_EXIT_CODE
      return
    if number == signal.SIGHUP:
      # Writing to a terminal that is gone fails, and would end the run here.
      nothing = os.open(os.devnull, os.O_RDWR)
      for fd in terminals:
        os.dup2(nothing, fd)
      os.close(nothing)
    if alone:
      code = SIGTERM_EXIT_CODE
    else:
      os.kill(os.getpid(), signal.SIGTERM)

  before = {}

  def install(numbers):
    for number in numbers:
      before[number] = signal.signal(number, handle)

  def asked(step: int) -> int:
    install(n for n in watched if n not in before)
    if alone:
      return code
    agreed = multihost_utils.reached_preemption_sync_point(step)
    return SIGTERM_EXIT_CODE if agreed else 0

  watched = _SIGNALS if alone else (signal.SIGHUP,)
  watched = [n for n in watched if not _ignored(n)]
  if threading.current_thread() is not threading.main_thread():
    watched = []  # Python lets no other thread handle signals.
  install(n for n in watched if signal.getsignal(n) is not _exit)
  try:
    yield asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


_exiting = threading.Lock()


def _exit(number: int, _=None) -> None:
  """Ends the process; a signal handler, and called by the woken thread."""
  if not _exiting.acquire(blocking=False):
    return
  name = signal.Signals(number).name
  text = f'\n{name}: ended with nothing to save; the same command continues\n'
  with contextlib.suppress(OSError):  # The terminal may be gone.
    if os.isatty(1):
      os.write(1, _SHOW_CURSOR)
    os.write(2, text.encode())
  os._exit(SIGINT_EXIT_CODE if number == signal.SIGINT else SIGTERM_EXIT_CODE)


def _exit_if_woken(woken: socket.socket) -> None:
  while numbers := woken.recv(1):
    if signal.getsignal(numbers[0]) is _exit:
      _exit(numbers[0])


def _ignored(number: int) -> bool:
  return signal.getsignal(number) is signal.SIG_IGN


@functools.cache
def _forget_in_forked_children() -> None:
  """Lets a signal to a forked child end the child, and not wake its parent."""

  masks = threading.local()

  def block():  # The child must not meet a signal with our handlers.
    masks.before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)

  def unblock():
    signal.pthread_sigmask(signal.SIG_SETMASK, masks.before)

  def forget():
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
      if signal.getsignal(number) is _exit:
        signal.signal(number, signal.SIG_DFL)
    unblock()

  os.register_at_fork(
    before=block, after_in_parent=unblock, after_in_child=forget
  )
