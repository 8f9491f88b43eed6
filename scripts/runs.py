"""Commands of this package, shown and run, and the metrics of their runs."""

import json
import pathlib
import shlex
import subprocess
import sys


def run(name: str, *arguments: str) -> None:
  """Shows and runs a command; where it fails, ends with its code."""
  command = ['python', '-m', 'vit_jax', name, *arguments]
  print('$ ' + ' \\\n    '.join(map(shlex.quote, command)), flush=True)
  done = subprocess.run([sys.executable, *command[1:]], check=False)
  if done.returncode:
    sys.exit(done.returncode)


def last_metrics(workdir: pathlib.Path) -> dict[str, float]:
  """Returns the newest value of each metric of a run."""
  last = {}
  for row in (workdir / 'metrics.jsonl').read_text().splitlines():
    last |= json.loads(row)
  return last
