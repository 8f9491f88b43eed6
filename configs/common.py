"""Options of recipes, AugReg's strengths, and the smoke run."""

import re
import sys

import ml_collections

from vit_jax.data import dummy_input

ConfigDict = ml_collections.ConfigDict

_SMOKE_PIXELS = 16  # 2x2 patches of 8
_SMOKE_CLASSES = 4
# Strengths of regularization in "How to train your ViT?" (arXiv:2106.10270,
# section 3.3): RandAugment's layers and magnitude, or none, and mixup's alpha.
_AUGREG = {
  'none': (None, 0.0),
  'light1': ((2, 0), 0.0),
  'light2': ((2, 10), 0.2),
  'medium1': ((2, 15), 0.2),
  'medium2': ((2, 15), 0.5),
  'strong1': ((2, 20), 0.5),
  'strong2': ((2, 20), 0.8),
}
_SIZE = re.compile(
  r'\b((?:resize\w*|\w*crop)\(|local_size=)(\d+|[(\[][\d, ]*[)\]])'
)
_ONEHOT = re.compile(r'\bonehot\(\d+\)')
_LABEL = re.compile(r'\|vtab_label\([^)]*\)')  # Synthetic images have labels.


def parse_arg(arg: str | None, **options) -> ConfigDict:
  """Returns a recipe's options as `--config=recipe.py:<arg>` sets them.

  `parse_arg(arg, variant=('B/16', 'S/16'), epochs=90, smoke=False)` reads
  'variant=S/16,epochs=30', 'S/16,smoke' and ''. Options are separated by
  commas. A word without '=' switches on the bool option of that name; the
  first other word is the value of the first option. `dataset=` is `data=`.

  Args:
    arg: what follows the colon; None or '' keeps every default.
    **options: the default of each option, which also fixes its type: bool,
      int, float, or str (also for None). A tuple lists all the values that are
      allowed, the default first.

  Raises:
    ValueError: an unknown option, one given twice, or a value that does not
      fit; it lists the choices.
  """
  given, first = {}, next(iter(options))
  for part in filter(None, (arg or '').split(',')):
    name, equals, text = (word.strip() for word in part.partition('='))
    if name == 'dataset' and name not in options:
      name = 'data'  # An older spelling.
    if not equals and isinstance(options.get(name), bool):
      text = 'true'
    elif not equals and name not in options and first not in given:
      name, text = first, name
    elif not equals or name not in options:
      hint = ''
      if ':/' in arg or '=/' in arg:
        hint = ' (a path with a comma goes into --config.input.data.data_dir=)'
      raise ValueError(f'unknown option {part!r}{hint}; {_describe(options)}')
    if name in given:
      raise ValueError(f'the option {name!r} is given twice in {arg!r}')
    given[name] = _value(name, text, options[name])
  defaults = {
    name: default[0] if isinstance(default, tuple) else default
    for name, default in options.items()
  }
  return ConfigDict(defaults | given)


def say(line: str) -> None:
  """Prints what a recipe decided by itself; stdout is for results."""
  print(line, file=sys.stderr, flush=True)


def augreg(strength: str, flavour: str = 'fixed') -> tuple[str, float]:
  """Returns AugReg's host op of this strength and the alpha of its mixup.

  `augreg('medium1')` is ('randaug(2, 15)', 0.2); 'none' is ('', 0.0).

  Args:
    strength: none, light1, light2, medium1, medium2, strong1 or strong2.
    flavour: of `randaug`; 'compat' is what the published models had.

  Raises:
    ValueError: another strength.
  """
  if strength not in _AUGREG:
    raise ValueError(f'strength is one of {list(_AUGREG)}; got {strength!r}')
  layers, alpha = _AUGREG[strength]
  if layers is None:
    return '', alpha
  more = '' if flavour == 'fixed' else f', flavour={flavour!r}'
  return f'randaug({layers[0]}, {layers[1]}{more})', alpha


def smoke(config: ConfigDict, *, channels: int = 3) -> ConfigDict:
  """Shrinks a recipe in place to 2 steps, seconds on a CPU; returns it.

  The model becomes a 'mu' but keeps its options (pooling, position, ...); the
  data becomes synthetic images of few classes, in the evaluations and pictures
  too; sizes in the ops shrink; evaluations and the checkpoint are made at the
  end; the mesh is what the machine has. What remains is the recipe's own:
  objective, optimizer, EMA, ops.

  Args:
    config: what a recipe would return.
    channels: of the recipe's images.
  """
  with config.ignore_type(), config.unlocked():
    config.total_steps, config.total_epochs = 2, None
    config.log_every_steps = 1
    if 'mesh' in config:
      config.mesh = None  # Whatever there is here, each with all of the state.
    config.model.variant = 'mu/8'
    if 'like' in config.model:  # Weights that are not read.
      del config.model.like
      config.input.device_ops = 'normalize(-1, 1)'
    for key in ('width', 'depth', 'mlp_dim', 'num_heads', 'patch_size'):
      if key in config.model:
        del config.model[key]
    for key, value in list(config.optimizer.items()):
      duration, _, unit = key.rpartition('_')
      if duration in ('warmup', 'cooldown') and unit in ('steps', 'epochs'):
        del config.optimizer[key]
        if value:
          config.optimizer[f'{duration}_steps'] = 1
    _shrink(config, channels)
  return config


def _shrink(section: ConfigDict, channels: int, split: str = 'test') -> None:
  """Shrinks the data of a section and of the sections in it."""
  for key, value in list(section.items()):
    if key in ('data', 'data_train', 'data_test'):
      section[key] = dummy_input.data_section(
        _SMOKE_CLASSES,
        split=split if key == 'data' else key.removeprefix('data_'),
        # No multiple of the batch size: the last batch is filled up.
        num_examples=20,
        image_size=_SMOKE_PIXELS,
        channels=channels,
      )
    elif key in ('ops', 'device_ops'):
      value = _SIZE.sub(rf'\g<1>{_SMOKE_PIXELS}', value)
      value = _LABEL.sub('', value)
      section[key] = _ONEHOT.sub(f'onehot({_SMOKE_CLASSES})', value)
    elif key == 'batch_size':
      section.batch_size = 8
    elif key == 'num_classes':
      section.num_classes = _SMOKE_CLASSES
    elif key in ('every_steps', 'every_epochs'):
      del section[key]  # The end of the run remains.
    elif isinstance(value, ConfigDict):
      _shrink(value, channels, 'train' if key == 'input' else split)


def _value(name: str, text: str, default):
  """Returns `text` as a value of the kind of `default`."""
  choices, kind = (), type(default)
  if isinstance(default, tuple):
    choices, kind = default, type(default[0])
  words = {'true': True, '1': True, 'false': False, '0': False}
  try:
    if default is None or kind is str:
      value = text
    else:
      value = words[text.lower()] if kind is bool else kind(text)
  except (KeyError, ValueError) as e:
    raise ValueError(f'{name}={text!r}: expected {kind.__name__}') from e
  if choices and value not in choices:
    listed = ', '.join(str(choice) for choice in choices)
    raise ValueError(f'{name}={text!r}: expected one of {listed}')
  return value


def _describe(options) -> str:
  texts = []
  for name, default in options.items():
    if isinstance(default, tuple):
      texts.append(f'{name}={"|".join(str(choice) for choice in default)}')
    else:
      texts.append(f'{name}={default}')
  return f'the options and their defaults are: {", ".join(texts)}'
