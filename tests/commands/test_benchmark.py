"""The benchmark command, on recipes that fit a test."""

import json
import pathlib

import pytest

from vit_jax.commands import benchmark

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def run(capsys, *arguments):
  code = benchmark.main(list(arguments))
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def test_a_step_is_measured_with_its_input(capsys):
  code, out, err = run(
    capsys,
    f'--config={CONFIGS}/vit_s16_i1k.py:smoke',
    '--steps=4',
    '--format=json',
  )
  assert code == 0 and not err
  found = json.loads(out.splitlines()[-1])
  assert found['batch_size'] == 8
  assert found['num_parameters'] > 10_000
  assert found['compile_seconds'] > 0
  times = [found[f'step_seconds{x}'] for x in ('_p10', '', '_p90')]
  assert 0 < times[0] <= times[1] <= times[2]
  # The mean lies within the fastest and the slowest step.
  assert found['images_per_second'] == pytest.approx(8 / times[1], rel=3)
  assert 0 < found['input_stall_fraction'] <= 1
  assert found['peak_memory_bytes'] > 10e6
  assert 'mfu' not in found  # No peak is known of a CPU.
  assert 'data' not in found


def test_missing_data_is_replaced_and_logged(capsys, tmp_path):
  arguments = (
    f'--config={CONFIGS}/cifar10.py:folder:{tmp_path}/none',
    '--input_only',
    '--seconds=0.2',
    '--config.input.batch_size=8',
  )
  code, out, err = run(capsys, *arguments)
  assert code == 0
  assert 'synthetic JPEG files' in err and f'{tmp_path}/none' in err
  for text in ('images per cpu second', 'decode', 'batches', 'synthetic'):
    assert text in out
  code, out, err = run(capsys, *arguments, '--data=config')
  assert code == 2 and not out
  assert f'{tmp_path}/none' in err


def test_bad_numbers_are_refused(capsys):
  config = f'--config={CONFIGS}/quickstart.py'
  code, _, err = run(capsys, config, '--steps=1')
  assert code == 2 and '--steps=1: expected 2 or more' in err
