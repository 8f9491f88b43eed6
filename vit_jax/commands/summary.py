"""Show the layers, parameters, multiply-adds and memory of a model.

examples:
  python -m vit_jax summary --config=configs/vit_s16_i1k.py
  python -m vit_jax summary --weights=augreg-B/16 --format=json

Nothing is trained or computed. Change values of the config as for training,
with --config.section.key=value.
"""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from vit_jax import printable
from vit_jax.commands import _cli, _config_file
from vit_jax.errors import UserError

# Durations decide nothing that is shown here: long enough for any warm-up.
_TOTAL_STEPS, _STEPS_PER_EPOCH = 10**9, 1000


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the summary of a config or of weights; returns the exit code."""
  return _cli.run(_main, argv)


def _main(argv: Sequence[str]) -> None:
  config, args = _config_file.parse(_parser(), argv, required=False)
  if (config is None) == (args.weights is None):
    raise UserError('give one of --config or --weights')
  options = ('model', 'step', 'ema', 'entry', 'weights_dir', 'part')
  unused = [f'--{key}' for key in options if getattr(args, key) is not None]
  if config is not None and unused:
    raise UserError(f'{", ".join(unused)} has no effect without --weights')
  # Importing jax takes seconds: a mistyped command should not wait for it.
  if config is None:
    summary = _of_weights(args)
  else:
    summary = _of_config(config.to_dict(), args)
  if args.format == 'json':
    print(json.dumps(summary, indent=2))
  else:
    _print(summary)


def _parser() -> argparse.ArgumentParser:
  parser = _cli.parser('summary', __doc__)
  parser.add_argument(
    '--weights',
    metavar='WEIGHTS',
    help='in place of --config: a run, a file, a folder or a published name',
  )
  parser.add_argument('--format', choices=('table', 'json'), default='table')
  parser.add_argument(
    '--image_size',
    type=_cli.size,
    metavar='H[,W]',
    help='in pixels (default: the size that the config or the weights use)',
  )
  parser.add_argument(
    '--channels',
    type=_cli.positive,
    metavar='C',
    help='of an image (default: as the config or the weights have)',
  )
  _cli.add_weights_options(parser)
  return parser


def _of_config(config: Mapping[str, Any], args) -> dict[str, Any]:
  import jax

  from vit_jax import lookup, trees
  from vit_jax.inference import model_summary
  from vit_jax.optim import chain
  from vit_jax.pretrained import like
  from vit_jax.training import durations, train

  lookup.check_keys(train.train, config, 'config', num_args=1)
  config = like.complete(config)
  module = lookup.build('models', config['model'], 'Model', trusted=True)
  if args.image_size is None:
    image_shape = _config_shape(config, args.channels)
  else:
    image_shape = (*args.image_size, args.channels or 3)
  params = model_summary.abstract_params(module, image_shape)
  section = durations.in_steps(
    config['optimizer'], _STEPS_PER_EPOCH, 'config.optimizer'
  )
  where = 'config.optimizer'
  tx, _ = lookup.call(
    chain.make,
    section,
    where,
    params,
    total_steps=_TOTAL_STEPS,
    roles=getattr(module, 'ROLES', None),
  )
  trained = chain.trained_names(params, section.get('freeze', ()))
  memory = {
    'params': model_summary.bytes_of(params),
    'gradients': model_summary.bytes_of(
      [x for name, x in trees.flatten(params).items() if trained[name]]
    ),
    'optimizer state': model_summary.bytes_of(jax.eval_shape(tx.init, params)),
  }
  if config.get('ema') is not None:
    memory['average of params'] = memory['params']
  summary = _summary(module, config['model'], image_shape, memory)
  batch_size = config['input']['batch_size']
  kept = batch_size * summary['activation_bytes_per_image']
  memory[f'activations of {batch_size:,} images'] = kept
  return summary


def _of_weights(args) -> dict[str, Any]:
  from vit_jax.data import dummy_input
  from vit_jax.inference import model_summary
  from vit_jax.pretrained import catalog, model_section
  from vit_jax.pretrained.weights import build_model

  weights = catalog.load(args.weights, **_cli.weights_options(args))
  module = build_model(weights)
  found = model_section.num_channels(weights.params)
  channels = args.channels or found or 3
  size = args.image_size or weights.preprocess.get('image_size')
  if size is None:
    shape = dummy_input.image_shape(weights.preprocess.get('ops', ''))
    size = (shape or (None,))[:2]
  if None in size:
    raise UserError(
      f'{args.weights} does not say the size of images: give --image_size'
    )
  memory = {
    'params as stored': model_summary.bytes_of(weights.params),
    'params': 4 * sum(x.size for x in weights.params.values()),
  }
  return _summary(module, weights.model, (*size, channels), memory)


def _summary(module, section, image_shape, memory) -> dict[str, Any]:
  from vit_jax.inference import model_summary

  found = model_summary.layers(module, image_shape)
  return dict(
    model=dict(section),
    image_shape=list(image_shape),
    layers=[dataclasses.asdict(layer) for layer in found],
    num_params=sum(layer.num_params for layer in found),
    gmacs_per_image=model_summary.macs(module, image_shape) / 1e9,
    activation_bytes_per_image=model_summary.activation_bytes(
      module, image_shape
    ),
    memory_bytes=memory,
  )


def _config_shape(
  config: Mapping[str, Any], channels: int | None
) -> tuple[int, int, int]:
  """Returns the shape of the images that the model trains on.

  It follows from the host ops where they resize; else an example is read.
  """
  from vit_jax import lookup
  from vit_jax.data import dummy_input, pipeline

  shape = dummy_input.image_shape(config['input']['ops'], trusted=True)
  if shape is None:
    try:
      train_input = lookup.call(
        pipeline.TrainInput, config['input'], 'config.input', seed=0
      )
    except UserError as e:
      e.add_note('with --image_size and --channels no image is needed')
      raise
    shape = train_input.element_spec()['image'].shape[-3:]
  return (*shape[:2], channels or shape[2])


def _print(summary: Mapping[str, Any]) -> None:
  from vit_jax.reporting import tables

  rows = []
  for layer in summary['layers']:
    times = f' x {layer["repeats"]}' if layer['repeats'] > 1 else ''
    output = '' if layer['output'] is None else str(list(layer['output']))
    shapes = [f'{k} {list(v)}' for k, v in sorted(layer['shapes'].items())]
    if layer['output'] is None:
      shapes = [str(list(shape)) for shape in layer['shapes'].values()]
    number = f'{layer["num_params"]:,}'
    rows.append((layer['name'] + times, output, ', '.join(shapes), number))
  header = ('layer', 'output', 'parameters', 'number')
  tables.print_table(rows, header=header, left=(0, 2))
  shape = 'x'.join(str(side) for side in summary['image_shape'])
  print(f'{summary["num_params"]:,} parameters')
  print(f'{summary["gmacs_per_image"]:.4g} GMACs for an image of {shape}')
  kept = printable.size(summary['activation_bytes_per_image'])
  print(f'{kept} kept for the backward pass of an image, before fusion')
  print('memory of all devices together:')
  for name, num_bytes in summary['memory_bytes'].items():
    print(f'  {printable.size(num_bytes):>9}  {name}')
