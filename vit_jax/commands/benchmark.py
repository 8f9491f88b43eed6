"""Measure the speed of a recipe on this machine: its step and its input.

examples:
  python -m vit_jax benchmark --config=configs/vit_s16_i1k.py
  python -m vit_jax benchmark --config=configs/vit_s16_i1k.py --input_only
  python -m vit_jax benchmark --config=configs/vit_i1k.py:S/16 \\
    --config.input.batch_size=16 --steps=10 --data=synthetic --format=json

The training step is that of `train`. If the data of the recipe is not on
this machine, generated JPEG files of 500 x 400 pixels replace it, and the
output says so. --input_only compiles nothing: it reports images per second and
per CPU second, the time of each stage, and the growth of memory (--steps=10000
for a long run). With --format=json the last line is one JSON object.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.commands import _cli, _config_file
from vit_jax.errors import UserError
from vit_jax.parallel import host_memory

_WARMUP_STEPS = 3


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the speed of a config; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  parser = _cli.parser('benchmark', __doc__)
  parser.add_argument(
    '--input_only', action='store_true', help='measure the input, not the step'
  )
  parser.add_argument(
    '--steps',
    type=int,
    help='training steps to time (default: 20); with --input_only the number '
    'of batches (default: as many as fit into --seconds)',
  )
  parser.add_argument(
    '--seconds',
    type=float,
    default=10.0,
    help='of each measurement of the input (default: %(default)s)',
  )
  parser.add_argument(
    '--data',
    choices=('auto', 'config', 'synthetic'),
    default='auto',
    help='auto: synthetic if the data of the config cannot be opened',
  )
  parser.add_argument('--format', choices=('table', 'json'), default='table')
  config, args = _config_file.parse(parser, argv)
  if args.steps is not None and args.steps < 2:
    raise UserError(f'--steps={args.steps}: expected 2 or more')
  if not 0 < args.seconds < math.inf:
    raise UserError(f'--seconds={args.seconds}: expected a number above 0')
  # Importing jax takes seconds: a mistyped command should not wait for it.
  from vit_jax import lookup
  from vit_jax.training import train

  sections = config.to_dict()
  lookup.check_keys(train.train, sections, 'config', num_args=1)
  note = _choose_data(sections, args.data)
  if args.input_only:
    from vit_jax.data import pipeline, throughput

    section, seed = sections['input'], sections.get('seed', 0)
    inputs = lookup.call(
      pipeline.TrainInput, section, 'config.input', seed=seed
    )
    result = dict(batch_size=inputs.batch_size) | throughput.measure(
      inputs, section['ops'], seconds=args.seconds, num_batches=args.steps
    )
  else:
    result = measure_step(sections, steps=args.steps or 20)
  if note:
    print(note, file=sys.stderr)
    result['data'] = 'synthetic'
  if args.format == 'json':
    print(json.dumps(result))
  else:
    _print(result)


def measure_step(config: Mapping[str, Any], *, steps: int) -> dict[str, Any]:
  """Returns the speed of the training step of a config on these devices.

  `step_seconds` is the median over `steps` steps, after a few of warm-up,
  from one step's end to the next one's, `step_seconds_p10` and `_p90` their
  spread.
  `input_stall_fraction` is the share of the time in which the loop waited for
  a batch, `dispatch_seconds` the median time in which a step is handed to the
  devices (on a CPU this may hold part of the step). `mfu` is absent where the
  peak of the device is not known. `peak_memory_bytes` is of one device, or on a
  CPU of the process.
  """
  import jax
  import numpy as np

  from vit_jax.data import pipeline
  from vit_jax.parallel import mesh as mesh_lib
  from vit_jax.reporting import flops
  from vit_jax.training import train

  run = train.build(config)
  begin = time.monotonic()
  step = run.step.lower(run.abstract_state, run.batch_spec).compile()
  compile_seconds = time.monotonic() - begin
  state = run.init()
  batches = pipeline.prefetch_to_device(
    run.input.batches(), mesh_lib.batch_sharding(run.mesh)
  )
  ends, waited, dispatched, pending = [], [], [], None
  for _ in range(_WARMUP_STEPS + steps + 1):
    begin = time.monotonic()
    batch = next(batches)
    waited.append(time.monotonic() - begin)
    begin = time.monotonic()
    state, metrics = step(state, batch)
    dispatched.append(time.monotonic() - begin)
    # As in training: a step is waited for when the next one is on its way.
    if pending is not None:
      jax.block_until_ready(pending)
      ends.append(time.monotonic())
    pending = metrics
  jax.block_until_ready(pending)
  batches.close()
  times = np.diff(ends[-steps - 1 :])
  images_per_second = run.input.batch_size * len(times) / times.sum()
  device = run.mesh.devices.flat[0]
  memory = device.memory_stats() or {}
  result = dict(
    device=f'{run.mesh.size} x {device.device_kind}',
    batch_size=run.input.batch_size,
    num_parameters=sum(x.size for x in jax.tree.leaves(state.params)),
    compile_seconds=compile_seconds,
    step_seconds=float(np.median(times)),
    step_seconds_p10=float(np.quantile(times, 0.1)),
    step_seconds_p90=float(np.quantile(times, 0.9)),
    dispatch_seconds=float(np.median(dispatched[-steps:])),
    images_per_second=float(images_per_second),
    input_stall_fraction=float(sum(waited[-steps:]) / times.sum()),
    peak_memory_bytes=memory.get('peak_bytes_in_use', host_memory.peak_bytes()),
  )
  peak = flops.peak_flops(device)
  if peak is not None:
    work = run.flops_per_step() * len(times) / times.sum()
    result['mfu'] = float(work / (peak * run.mesh.size))
  return result


def _choose_data(sections: dict[str, Any], choice: str) -> str | None:
  """Replaces the data of the sections if necessary; returns why."""
  from vit_jax import lookup
  from vit_jax.data import dummy_input

  why = 'asked for'
  if choice != 'synthetic':
    try:
      data = sections['input']['data']
      lookup.build('data/sources', data, 'Source', trusted=True)
      return None
    except UserError as e:
      if choice == 'config':
        raise
      why = str(e).splitlines()[0]
  num_classes = sections['model'].get('num_classes')
  data = dummy_input.data_section(num_classes, encoded=True)
  sections['input'] = dict(sections['input'], data=data)
  return f'measured on synthetic JPEG files of 500 x 400 pixels ({why})'


def _print(result: Mapping[str, Any]) -> None:
  from vit_jax.reporting import tables

  tables.print_table(
    (key.replace('_', ' '), _text(key, value))
    for key, value in result.items()
    if key != 'stages'
  )
  stages = result.get('stages', {})
  total = sum(stages.values())
  if stages:
    tables.print_table(
      [(k, f'{v:.0f}', f'{v / total:.1%}') for k, v in stages.items()],
      header=('stage', 'CPU us per image', 'share'),
    )


def _text(key: str, value: Any) -> str:
  if not isinstance(value, float | int) or isinstance(value, bool):
    return str(value)
  if key.endswith('_bytes'):
    return f'{value / 1e6:,.1f} MB'
  if '_seconds' in key:
    return f'{1e3 * value:,.1f} ms' if value < 1 else f'{value:.2f} s'
  if key.endswith('_fraction') or key == 'mfu':
    return f'{value:.1%}'
  return f'{value:,.1f}' if isinstance(value, float) else f'{value:,}'
