"""Start one run as several processes on this machine.

    python scripts/launch_local.py --processes=4 -- \
      --config=configs/quickstart.py --workdir=runs/four

What follows `--` goes to `python -m vit_jax train`. It is for trying out, on
CPUs, what a pod will do. Ctrl-C or SIGTERM lets the run save and end.

Exit code: that of the first process that failed (128 + n where signal n ended
it), or else 42 where they were preempted, or else 0.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time


def main(argv: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--processes', type=int, required=True)
  parser.add_argument(
    '--devices', type=int, default=1, help='CPU devices of each process'
  )
  parser.add_argument(
    '--heartbeat_seconds', type=int, default=20, help='see vit_jax train'
  )
  parser.add_argument('arguments', nargs='*', help='of vit_jax train')
  args = parser.parse_args(argv)
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  command = [sys.executable, '-u', '-m', 'vit_jax', 'train', *args.arguments]
  command += [
    f'--coordinator=localhost:{port}',
    f'--num_processes={args.processes}',
    f'--heartbeat_seconds={args.heartbeat_seconds}',
  ]
  workers = [
    subprocess.Popen(
      [*command, f'--process_id={i}'],
      env=_environment(args.devices),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors='replace',
      # Ctrl-C comes to us alone.
      start_new_session=True,
    )
    for i in range(args.processes)
  ]
  readers = [
    threading.Thread(target=_copy, args=(i, worker.stdout))
    for i, worker in enumerate(workers)
  ]
  for reader in readers:
    reader.start()
  asked = 0

  def stop(number, frame):
    nonlocal asked
    asked += 1
    for worker in workers:
      if worker.poll() is None:
        worker.send_signal(signal.SIGTERM if asked == 1 else signal.SIGKILL)

  signal.signal(signal.SIGINT, stop)
  signal.signal(signal.SIGTERM, stop)
  try:
    code = _wait(workers, patience_seconds=2 * args.heartbeat_seconds + 10)
  finally:
    for worker in workers:
      worker.kill()
  for reader in readers:
    reader.join()
  return code


def _wait(workers: list[subprocess.Popen], patience_seconds: float) -> int:
  """Returns the code of them all; kills those that outlive a failure."""
  codes, failed = {}, None
  while len(codes) < len(workers):
    time.sleep(0.05)
    for i, worker in enumerate(workers):
      if i in codes or worker.poll() is None:
        continue
      codes[i] = worker.returncode
      print(f'[{i}] ended with code {worker.returncode}', flush=True)
      if worker.returncode not in (0, 42) and failed is None:
        failed = (worker.returncode, time.monotonic())
    if failed and time.monotonic() - failed[1] > patience_seconds:
      for worker in workers:
        worker.kill()
  if failed:
    return failed[0] if failed[0] > 0 else 128 - failed[0]
  return max(codes.values())


def _copy(number: int, lines) -> None:
  for line in lines:
    print(f'[{number}] {line}', end='', flush=True)


def _environment(num_devices: int) -> dict[str, str]:
  """Returns ours with this number of CPU devices."""
  option = '--xla_force_host_platform_device_count'
  flags = re.sub(rf'{option}=\d+', '', os.environ.get('XLA_FLAGS', ''))
  flags = f'{flags} {option}={num_devices}'.strip()
  return dict(os.environ, XLA_FLAGS=flags)


if __name__ == '__main__':
  sys.exit(main())
