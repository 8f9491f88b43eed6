"""The processor of this machine, to print beside a measurement."""

import os
import pathlib
import platform


def describe() -> str:
  """Returns for example 'AMD EPYC, 2 CPUs'.

  CPUs are those that this process may use: hardware threads, not always cores.
  """
  count = len(os.sched_getaffinity(0))
  return f'{_name()}, {count} CPU{"s" if count != 1 else ""}'


def _name() -> str:
  cpuinfo = pathlib.Path('/proc/cpuinfo')
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      key, _, value = line.partition(':')
      if key.strip() in ('model name', 'Hardware') and value.strip():
        return value.strip()
  return platform.processor() or platform.machine()
