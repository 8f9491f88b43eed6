"""Suggestions for mistyped names, without importing anything.

The keys of a section are those of a signature, and reading the source of that
signature takes milliseconds where importing it takes seconds.
"""

import ast
import difflib
import functools
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

_PACKAGE = pathlib.Path(__file__).parent
# What other libraries and papers call our keys.
_ALIASES = {
  alias: key
  for key, aliases in {
    'b1': 'beta1',
    'b2': 'beta2',
    'batch_size': 'batch bs',
    'depth': 'num_layers',
    'dropout_rate': 'drop_rate',
    'dtype': 'amp fp16 precision',
    'end_learning_rate': 'min_lr',
    'eps': 'epsilon',
    'grad_clip_norm': 'clip_grad',
    'init_from': 'weights',
    'label_smoothing': 'smoothing',
    'layer_scale': 'init_values',
    'learning_rate': 'lr',
    'name': 'opt',
    'num_heads': 'n_heads',
    'num_workers': 'workers',
    'patch_size': 'patch',
    'stochastic_depth_rate': 'drop_path drop_path_rate',
    'total_epochs': 'epochs max_epochs num_epochs num_train_epochs',
    'total_steps': 'max_steps steps train_steps',
    'warmup_steps': 'warmup',
    'weight_decay': 'wd',
    'weight_init': 'init',
    'width': 'embed_dim hidden_size',
  }.items()
  for alias in aliases.split()
}
_TRAIN = ('training/train', 'train')  # Takes a whole config.
# The file and the export that take a section of a config; `{name}` is its name.
_SECTIONS = {
  'optimizer': ('optim/chain', 'make'),
  'model': ('models/{name}', 'Model'),
  'input': ('data/pipeline', 'TrainInput'),
  'input.data': ('data/sources/{name}', 'Source'),
  'objective': ('objectives/{name}', 'Objective'),
  'checkpoint': ('checkpoints/manager', 'Checkpointer'),
  'ema': ('training/train_state', 'ema_decay'),
  'mesh': ('parallel/mesh', 'make_mesh'),
  'sharding': ('parallel/limits', 'Options'),
}


def close(name: str, choices: Iterable[str]) -> str | None:
  """Returns the choice that `name` most likely means, or None."""
  choices = list(choices)
  alias = _ALIASES.get(name.lower())
  if alias in choices:
    return alias
  return next(iter(difflib.get_close_matches(name, choices, n=1)), None)


def config_key(name: str, config: Mapping[str, Any]) -> str | None:
  """Returns the key of a config, with dots, that `name` may mean.

  Args:
    name: without a section, such as 'learning_rate' or 'lr'.
    config: a recipe's; its sections' other keys are read from the source of
      what takes them.
  """
  name = name.lower().replace('-', '_').rpartition('.')[2]
  keys = {'': set(exported(_TRAIN[0]).get(_TRAIN[1], ())) - {'workdir'}}
  for section, (file, export) in _SECTIONS.items():
    inside = config
    for key in section.split('.'):
      found = inside.get(key)
      inside = found if isinstance(found, Mapping) else {}
    file = file.format(name=inside.get('name'))
    keys[f'{section}.'] = {*inside, *exported(file).get(export, ())}
  for wanted in (name, _ALIASES.get(name)):
    for section, choices in keys.items():
      if wanted in choices:
        return section + wanted
  flat = {k: section for section in reversed(keys) for k in keys[section]}
  near = difflib.get_close_matches(name, flat, n=1)
  return flat[near[0]] + near[0] if near else None


@functools.cache
def exported(file: str) -> dict[str, list[str]]:
  """Returns the public names of a file of this package, each with its keys.

  Args:
    file: such as 'models/vit'; one that does not exist exports nothing.

  Returns:
    For each function its arguments, for each class those of `__init__` or its
    annotated fields; a function that takes `**keys` has, in addition, the
    fields of the first class of the file.
  """
  path = _PACKAGE / f'{file}.py'
  if not path.is_file():
    return {}
  found, fields, open_ended = {}, [], []
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, ast.FunctionDef):
      found[node.name] = _arguments(node)
      if node.args.kwarg is not None:
        open_ended.append(node.name)
    elif isinstance(node, ast.ClassDef):
      inits = [n for n in node.body if getattr(n, 'name', '') == '__init__']
      annotated = [n for n in node.body if isinstance(n, ast.AnnAssign)]
      own = [n.target.id for n in annotated if isinstance(n.target, ast.Name)]
      found[node.name] = _arguments(inits[0]) if inits else own
      fields = fields or own
    else:
      found |= {name: [] for name in _assigned(node)}
  for name in open_ended:
    found[name] = [*found[name], *fields]
  return {k: v for k, v in found.items() if not k.startswith('_')}


def _arguments(node: ast.FunctionDef) -> list[str]:
  every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
  return [argument.arg for argument in every if argument.arg != 'self']


def _assigned(node: ast.stmt) -> list[str]:
  """Returns the names that an assignment or an import binds."""
  if isinstance(node, ast.Assign):
    return [t.id for t in node.targets if isinstance(t, ast.Name)]
  if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
    return [node.target.id]
  if isinstance(node, ast.Import | ast.ImportFrom):
    return [alias.asname or alias.name for alias in node.names]
  return []
