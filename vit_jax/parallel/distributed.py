"""Connection of the processes of a run, and their end when one of them fails.

On a TPU pod, under SLURM, Open MPI or in a Kubernetes job the environment has
the number of each process and the address of process 0; elsewhere flags have
them. A single process needs none of this.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

from vit_jax.errors import RunError, UserError

# Variables with the number of processes and our own, by launcher.
_LAUNCHERS = {
  'SLURM': ('SLURM_NTASKS', 'SLURM_PROCID'),
  'Open MPI': ('OMPI_COMM_WORLD_SIZE', 'OMPI_COMM_WORLD_RANK'),
}
_FLAGS = ('coordinator', 'num_processes', 'process_id')
_SECONDS_FOR_MESSAGES = 3
_MIN_THREADS = 32


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `initialize` takes."""
  group = parser.add_argument_group(
    'several processes (detected on TPU pods, under SLURM, Open MPI and '
    'Kubernetes; needed elsewhere)'
  )
  group.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='address of process 0, with a free port',
  )
  group.add_argument(
    '--num_processes', type=int, metavar='N', help='number of all processes'
  )
  group.add_argument(
    '--process_id',
    type=int,
    metavar='I',
    help='number of this process, from 0 to N - 1',
  )
  group.add_argument(
    '--heartbeat_seconds',
    type=int,
    default=100,
    metavar='S',
    help='end the run if a process does not answer for this long (default: '
    '%(default)s)',
  )


def initialize(args: argparse.Namespace) -> None:
  """Connects this process to the others, before anything asks for devices.

  Raises:
    UserError: flags that do not go together, or no way to find the others.
    RunError: the others cannot be reached.
  """
  if args.heartbeat_seconds < 1:
    raise UserError(
      f'--heartbeat_seconds={args.heartbeat_seconds}: expected 1 or more'
    )
  import jax  # Also detects a TPU VM, and sets variables of the environment.

  flags = {name: getattr(args, name) for name in _FLAGS}
  found = find(flags, os.environ, platforms=jax.config.jax_platforms)
  if found is None:  # A single process.
    return
  source, known = found
  # A program that waits for other processes on a CPU holds a thread for each of
  # its devices. XLA has as many threads as cores, unless this says otherwise,
  # and a few programs on their way would block each other for ever.
  os.environ.setdefault('NPROC', str(max(_MIN_THREADS, os.cpu_count() or 1)))
  try:
    jax.distributed.initialize(
      coordinator_address=known.get('coordinator'),
      num_processes=known.get('num_processes'),
      process_id=known.get('process_id'),
      heartbeat_timeout_seconds=args.heartbeat_seconds,
    )
  except RuntimeError as e:  # The others are not there, or not yet.
    raise RunError(
      f'no connection to the other processes ({source}): {e}. Are all of them '
      'started, and can they reach process 0?'
    ) from e
  except (ValueError, ImportError, KeyError) as e:
    raise UserError(
      f'cannot find the other processes ({source}): {e}. Give '
      '--coordinator=HOST:PORT of process 0, --num_processes and --process_id, '
      'or --num_processes=1 to run alone'
    ) from e


def find(
  flags: Mapping[str, Any],
  environ: Mapping[str, str],
  *,
  platforms: str | None = None,
) -> tuple[str, dict[str, Any]] | None:
  """Returns which launcher numbers the processes, and the numbers it gives.

  Args:
    flags: `coordinator`, `num_processes` and `process_id`, or None for each.
    environ: of the process, after jax was imported.
    platforms: those that jax should use, separated by commas; None is any.

  Returns:
    Its name, and those of the three flags that it decides; JAX finds the
    others. None for a single process.

  Raises:
    UserError: flags that do not go together.
  """
  known = {name: value for name, value in flags.items() if value is not None}
  _check_flags(known)
  if known.get('num_processes') == 1:
    return None
  if 'JAX_COORDINATOR_ADDRESS' in environ:
    known.setdefault('coordinator', environ['JAX_COORDINATOR_ADDRESS'])
  launcher, numbers = None, {}
  for name, (size, rank) in _LAUNCHERS.items():
    if rank in environ and _number(environ, size, 1) > 1:
      launcher, number = name, _number(environ, rank)
      numbers = dict(num_processes=_number(environ, size), process_id=number)
      break
  if known:
    known = numbers | known
    missing = [f'--{name}' for name in _FLAGS if name not in known]
    if missing:
      given = ', '.join(f'{k}={v}' for k, v in known.items())
      raise UserError(
        f'several processes need {" and ".join(missing)} too; got {given}'
      )
    if not 0 <= known['process_id'] < known['num_processes']:
      raise UserError(
        f'process_id={known["process_id"]}: expected 0 to '
        f'{known["num_processes"] - 1}, one for each process'
      )
    return 'flags', known
  if launcher is not None:
    return launcher, {}
  # jax sets it where it finds libtpu and chips.
  on_tpu = 'TPU_ML_PLATFORM' in environ and 'tpu' in (platforms or 'tpu')
  if on_tpu and 'TPU_WORKER_HOSTNAMES' in environ:  # GKE
    is_alone = ',' not in environ['TPU_WORKER_HOSTNAMES'] and (
      _number(environ, 'MEGASCALE_NUM_SLICES', 1) == 1
    )
    return None if is_alone else ('GKE', {})
  if on_tpu:
    return 'TPU metadata', {}
  if {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= set(environ):
    return 'Kubernetes', {}
  return None


@contextlib.contextmanager
def exit_on_peer_failure() -> Iterator[None]:
  """Exits at once when a computation fails because another process ended.

  For a process that is one of several. Nothing is cleaned up: a checkpoint that
  is being written would wait for that other process.
  """
  import jax

  try:
    yield
  except jax.errors.JaxRuntimeError as e:
    if not is_connected():
      raise
    print(
      f'error: process {jax.process_index()} of {jax.process_count()} cannot '
      f'go on: {str(e).strip()[:2000]}\n'
      'If another process ended before this one, what it printed says why. '
      'Saved checkpoints are safe: start the same command for all processes '
      'again to continue from the newest',
      file=sys.stderr,
    )
    exit_now(1)


def is_connected() -> bool:
  """Whether this process is one of several."""
  jax = sys.modules.get('jax')
  return jax is not None and jax.distributed.is_initialized()


def exit_now(code: int) -> None:
  """Ends this process at once, if others are connected to it.

  Python's normal exit waits for the others, which may be waiting for us. They
  notice the broken connection, or the missing heartbeat.
  """
  if not is_connected():
    return
  import jax

  sys.stdout.flush()
  sys.stderr.flush()
  if jax.process_index() == 0:
    # The others are killed without a message when process 0 is gone. What
    # stopped us may be stopping them, with messages of their own.
    time.sleep(_SECONDS_FOR_MESSAGES)
  os._exit(code)


def _check_flags(known: Mapping[str, Any]) -> None:
  """Raises UserError for flags that are wrong whatever the others are."""
  problems = []
  if 'coordinator' in known:
    host, _, port = known['coordinator'].rpartition(':')
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
      problems.append(
        f'--coordinator={known["coordinator"]}: expected HOST:PORT of process '
        '0, such as 10.0.0.2:8476'
      )
  if known.get('num_processes', 1) < 1:
    problems.append(f'--num_processes={known["num_processes"]}: expected 1 up')
  if known.get('process_id', 0) < 0:
    problems.append(f'--process_id={known["process_id"]}: expected 0 or more')
  if problems:
    raise UserError('; '.join(problems))


def _number(environ: Mapping[str, str], key: str, default: int = 0) -> int:
  text = environ.get(key, str(default))
  try:
    return int(text)
  except ValueError as e:
    raise UserError(
      f'the environment variable {key}={text!r} is not a number; unset it, or '
      'give --num_processes=1 to run alone'
    ) from e
