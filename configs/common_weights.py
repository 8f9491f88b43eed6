"""What recipes that start from weights know of them, without reading arrays."""

import pathlib
import re

from vit_jax.pretrained import bounded_read

# What published names begin with: the model, the norm of the images.
_GOOGLE = dict(pooling='token', activation='gelu_tanh', norm_epsilon=1e-6)
_META = dict(pooling='token', activation='gelu', norm_epsilon=1e-6)
_UNIT, _IMAGENET = 'normalize(-1, 1)', "normalize('imagenet')"
FAMILIES = {
  'augreg': (_GOOGLE, _UNIT),
  'vit': (_GOOGLE, _UNIT),
  'sam': (_GOOGLE, _UNIT),
  'bv': (_GOOGLE | dict(pooling='mean', position='sincos2d'), _UNIT),
  'siglip': (_GOOGLE | dict(pooling='map'), _UNIT),
  'siglip2': (_GOOGLE | dict(pooling='map'), _UNIT),
  'dino': (_META, _IMAGENET),
  'dinov2': (_META | dict(layer_scale=1e-5), _IMAGENET),
  'dinov2reg': (_META | dict(layer_scale=1e-5, num_registers=4), _IMAGENET),
  'deit': (_META, _IMAGENET),
  'deit3': (_META | dict(layer_scale=1e-5), _IMAGENET),
  'mae': (_META, _IMAGENET),
}
_PUBLISHED = re.compile(r'(\w+)-([\w-]*?/\d+)(-.*)?')
_AUGREG_FILE = re.compile(r'([A-Za-z]+)_(\d+)-.*-lr_.*')

# What a model section says of the training before, or of its cost.
_NOT_KEPT = ('num_classes', 'representation_size', 'head_bias_init')
_NOT_KEPT += ('head_zero_init', 'dropout_rate', 'attention_dropout_rate')
_NOT_KEPT += ('stochastic_depth_rate', 'scan', 'remat', 'attention')


def model_of(model: str, pixels: int = 384) -> tuple[dict, str, int | None]:
  """Returns the model section, what normalises its images, a resolution.

  Args:
    model: a published name, the folder of a run, or a .safetensors of ours.
    pixels: the resolution wanted of a published model, which becomes the
      nearest multiple of its patch; for the others the resolution is None.

  Raises:
    ValueError: it is none of these.
  """
  if match := _AUGREG_FILE.fullmatch(pathlib.PurePath(model).name):
    model = f'augreg-{match[1]}/{match[2]}'
  match = _PUBLISHED.fullmatch(model)
  if match and match[1] in FAMILIES:
    computed, device_ops = FAMILIES[match[1]]
    section = dict(name='vit', variant=match[2], **computed, dtype='bfloat16')
    patch = int(match[2].rpartition('/')[2])
    return section, device_ops, round(pixels / patch) * patch
  path = pathlib.Path(model).expanduser()
  try:
    if path.suffix == '.safetensors':
      section, device_ops = _read_file(path)
    else:
      run = bounded_read.read_json_object(path / 'config.json')
      section, device_ops = dict(run['model']), run['input']['device_ops']
    if not isinstance(device_ops, str):
      raise TypeError(f'device_ops={device_ops!r} is no text')
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'model={model} is neither a published name, which starts with one of '
      f'{", ".join(FAMILIES)}, nor a run, nor a .safetensors file of ours. Of '
      'weights in any other file either say what they are, as in '
      f'model=augreg-B/16,weights={model}, or make a file of ours with '
      f'`python -m vit_jax.convert {model} x.safetensors`'
    ) from e
  section = {k: v for k, v in section.items() if k not in _NOT_KEPT}
  # The other ops that a run has on the device are for training alone.
  parts = [part.strip() for part in device_ops.split('|')]
  device_ops = '|'.join(p for p in parts if p.startswith('normalize'))
  return section, device_ops, None


def _read_file(path: pathlib.Path) -> tuple[dict, str]:
  """Returns what the header of our .safetensors says of model and images."""
  _, metadata = bounded_read.read_safetensors_header(path)
  said = bounded_read.parse_json(metadata['vit_jax'], str(path))
  return dict(said['model']), dict(said['preprocess']).get('device_ops', _UNIT)
