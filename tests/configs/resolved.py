"""Settings of resolved recipes, in the words of the papers' tables."""

import dataclasses
import inspect
import pathlib

from vit_jax.commands import _recipe
from vit_jax.data import device_ops_language, ops_language
from vit_jax.data.device_ops import mixing

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'


def bound(segment, folder):
  """Returns the arguments of an op as it gets them, defaults included."""
  taken = inspect.signature(ops_language.find(segment.name, folder)).bind(
    *segment.args, **segment.kwargs
  )
  taken.apply_defaults()
  return dict(taken.arguments)


def resolve(recipe, arg):
  """Returns what a recipe does in the words of the papers' tables."""
  config = _recipe.load(f'{CONFIGS / recipe}.py:{arg}')
  found = {}
  for section in ('optimizer', 'objective', 'model'):
    found |= config[section].to_dict()
  found |= dict(
    optimizer=config.optimizer.name,
    epochs=config.get('total_epochs'),
    steps=config.get('total_steps'),
    batch_size=config.input.batch_size,
    repeats=config.input.get('repeats', 1),
    init_from=config.to_dict().get('init_from'),
    input_split=config.input.data.split,
    eval_ops=config.evals.val.ops,
  )
  found |= {
    f'{name}_split': section.data.split
    for name, section in config.evals.items()
    if 'data' in section
  }
  host = ops_language.segments(config.input.ops)
  found['order'] = [segment.name for segment in host]
  for segment in host:
    found |= {
      f'{segment.name}.{key}': value
      for key, value in bound(segment, 'data/ops').items()
    }
  folder = device_ops_language.FOLDER
  device = ops_language.build(config.input.device_ops, folder, limits=None)
  found['device_order'] = [segment.name for segment, _ in device]
  for segment, op in device:
    if isinstance(op, mixing.Mix):
      found |= {f'mix.{k}': v for k, v in dataclasses.asdict(op).items()}
    else:
      arguments = bound(segment, folder).items()
      found |= {f'{segment.name}.{key}': value for key, value in arguments}
  return found


def none(names):
  return dict.fromkeys(names.split())
