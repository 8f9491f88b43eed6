"""Scripts that measure name the processor; their failures have a message."""

import json
import pathlib
import subprocess
import sys

import machine
import pytest

SCRIPTS = pathlib.Path(__file__).parents[2] / 'scripts'


def _compare_torch(*flags):
  pytest.importorskip('torch')
  pytest.importorskip('transformers')
  return subprocess.run(
    [sys.executable, SCRIPTS / 'compare_torch.py', *flags],
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_torch_is_compared_on_a_named_processor():
  done = _compare_torch(
    '--variant=mu/16',
    '--batch_size=1',
    '--image_size=32',
    '--rounds=1',
    '--steps=1',
  )
  assert done.returncode == 0, done.stderr
  first, *_, last = done.stdout.splitlines()
  report = json.loads(last)
  assert first == report['machine'] == machine.describe()
  for task in ('train', 'predict'):
    speed = report[task]
    ratio = speed['vit_jax'] / speed['torch']
    assert speed['ratio'] == pytest.approx(ratio)


def test_a_side_that_fails_is_named():
  done = _compare_torch('--variant=mu/5', '--image_size=32')
  assert done.returncode == 1
  assert done.stderr.splitlines()[-1] == (
    'the side vit_jax failed; its error is above'
  )


def test_the_processor_has_a_name_and_a_count():
  name, _, count = machine.describe().rpartition(', ')
  assert name
  assert count.split()[0].isdecimal()
