"""Compile a recipe for a TPU topology, without a TPU and without the data.

examples:
  python -m vit_jax aot --config=configs/vit_i1k.py --topology=v5e-256
  for fsdp in 1 4 16; do
    python -m vit_jax aot --config=configs/vit_i1k.py --topology=v5e-16 \\
      --config.mesh.fsdp=$fsdp --format=json
  done

Shows whether the training step fits into memory, its collectives, and the time
that the TPU compiler estimates for it, without waiting for other chips: a way
to compare variants, not a bound on the real time. The compiler comes with pip
install 'vit_jax[aot]'. Topologies have the names of Cloud TPU (v3, v4, v5e,
v5p, v6e, tpu7x); --slices is for several slices of one. Change values of the
config as for training, with --config.section.key=value. With --format=json the
last line is one JSON object, with null for what is not known.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax.commands import _cli, _config_file
from vit_jax.reporting import tables


def main(argv: Sequence[str] | None = None) -> int:
  """Compiles and prints; returns the exit code, 1 if it does not fit."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> int:
  config, args = _config_file.parse(_parser(), argv)
  # Importing jax takes seconds: a mistyped command should not wait for it.
  import jax

  from vit_jax import lookup
  from vit_jax.commands import _aot_compile
  from vit_jax.compiler import topology as topology_lib
  from vit_jax.training import train

  lookup.check_keys(train.train, config.to_dict(), 'config', num_args=1)
  # The process computes nothing but a few constants, on the CPU.
  jax.config.update('jax_platforms', 'cpu')
  topology = topology_lib.topology(args.topology, args.slices)
  if args.per_chip_batch:
    config.input.batch_size = args.per_chip_batch * topology.num_chips
  found = _aot_compile.compile_step(
    config.to_dict(),
    topology,
    schedules=topology_lib.schedules(),
    image_size=args.image_size,
    hlo=args.hlo,
  )
  if args.format == 'json':
    print(json.dumps(found))
  else:
    _print(found)
  return int(found['out_of_memory'])


def _parser() -> argparse.ArgumentParser:
  parser = _cli.parser('aot', __doc__, failure='it does not fit into memory')
  parser.add_argument('--topology', required=True, help='such as v5e-256')
  parser.add_argument(
    '--slices',
    type=_cli.positive,
    default=1,
    help='number of slices of that topology (default: %(default)s)',
  )
  parser.add_argument(
    '--per_chip_batch',
    type=_cli.positive,
    help='images per chip; replaces config.input.batch_size',
  )
  parser.add_argument('--format', choices=('table', 'json'), default='table')
  parser.add_argument(
    '--image_size',
    type=_cli.size,
    metavar='H[,W]',
    help='size of the stored images, if the ops do not resize them',
  )
  parser.add_argument(
    '--hlo', metavar='FILE', help='write the compiled program, as text'
  )
  return parser


def _print(found: Mapping[str, Any]) -> None:
  slices = f' x {found["num_slices"]}' if found['num_slices'] > 1 else ''
  mesh = ' x '.join(f'{k}={v}' for k, v in found['mesh'].items() if v > 1)
  rows = [
    ('topology', f'{found["topology"]}{slices}, {found["num_chips"]} chips'),
    ('mesh', mesh or 'one device'),
    ('parameters', f'{found["num_params"]:,}'),
    ('batch', f'{found["batch_size"]:,}, {found["images_per_chip"]:g} a chip'),
    ('compiled in', f'{found["compile_seconds"]:.0f} s'),
    ('memory', _memory(found)),
  ]
  if not found['out_of_memory']:
    rows += [
      ('state and batch', _gib(found['argument_bytes'])),
      ('temporary', _gib(found['temporary_bytes'])),
      (
        'step',
        f'{_milliseconds(found["step_seconds"])} estimated, without waiting '
        'for other chips',
      ),
    ]
    rows += [
      (f'  {phase}', _milliseconds(seconds))
      for phase, seconds in found['seconds'].items()
    ]
  if found['step_seconds'] is not None:
    speed = found['images_per_second_per_chip']
    rows += [
      ('images/s/chip', f'{speed:,.0f} estimated'),
      ('MFU', f'{found["mfu"]:.1%} estimated'),
    ]
  rows += [
    (
      f'{one["kind"]} over {", ".join(one["axes"])}',
      f'{one["count"]} of {one["bytes"] / 1e6:,.1f} MB together',
    )
    for one in found['collectives']
  ]
  rows += [
    (f'kernel {kernel["name"]}', _kernel(kernel)) for kernel in found['kernels']
  ]
  tables.print_table(rows, left=(0, 1))
  if found['unknown_loops']:
    print(
      f'note: {found["unknown_loops"]} loops of unknown length count as one '
      'turn, so the time is too short'
    )
  if found['out_of_memory']:
    print(
      'suggestion: a smaller --per_chip_batch, more --config.mesh.fsdp, '
      '--config.micro_batches or --config.model.remat='
      'dots_with_no_batch_dims_saveable'
    )


def _memory(found: Mapping[str, Any]) -> str:
  asked, has = found['peak_memory_bytes'], _gib(found['hbm_bytes'])
  if found['out_of_memory']:
    how_much = '' if asked is None else f': it takes {_gib(asked)}'
    return f'DOES NOT FIT {has} a device{how_much}'
  share = asked / found['hbm_bytes']
  return f'{_gib(asked)} at its peak, {share:.0%} of {has} a device'


def _kernel(kernel: Mapping[str, Any]) -> str:
  if kernel['bundles'] is None:
    return f'{kernel["calls"]} calls of unknown time'
  return (
    f'{kernel["calls"]} calls of {kernel["iterations"]} x '
    f'{kernel["bundles"]:,} cycles, without waits'
  )


def _milliseconds(seconds: float | None) -> str:
  return 'unknown time' if seconds is None else f'{seconds * 1e3:.2f} ms'


def _gib(num_bytes: int) -> str:
  return f'{num_bytes / 2**30:.2f} GiB'
