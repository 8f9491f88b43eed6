"""Model sections of recipes, from the name or the header of weights."""

import pathlib
import re

from vit_jax import files, lookup
from vit_jax.models._vit_tables import FIELDS
from vit_jax.pretrained import published
from vit_jax.pretrained.main_evaluation import main_evaluation, sides

_PUBLISHED = re.compile(r'(\w+)-([\w-]*?/\d+)(-.*)?')
_AUGREG_FILE = re.compile(r'([A-Za-z]+)_(\d+)-.*-lr_.*')

# The fields of a model section that a new training sets anew.
_NOT_KEPT = {
  field
  for kind in ('head', 'training', 'cost', 'layout')
  for field in FIELDS[kind]
} | {'weight_init', 'position_init'}
_UNIT = 'normalize(-1, 1)'
# Matrix products in bfloat16, the sum of the blocks' outputs in float32.
_PRECISION = dict(dtype='bfloat16', residual_dtype='float32')


def model_of(
  model: str, pixels: int = 384, *, resolution: int = 0
) -> tuple[dict, dict, int]:
  """Returns the model section, `device_ops` for the input, a resolution.

  A published name, a run and a file of ours say what they are. All other
  weights that `vit_jax.load` takes become `like=model`: the run completes the
  section when it starts (`pretrained.like`), and without `device_ops` it
  normalises images as they say.

  Args:
    model: what `vit_jax.load` takes.
    pixels: the resolution wanted of a published model, which becomes the
      nearest multiple of its patch. A run and a file of ours have the one that
      they were evaluated at, and others 224, a multiple of the usual patches.
    resolution: as the user gives it; 0 is one of these.

  Raises:
    ValueError: a run or a file of ours that cannot be read, or that does not
      say the size of its images.
  """
  if match := _AUGREG_FILE.fullmatch(pathlib.PurePath(model).name):
    model = f'augreg-{match[1]}/{match[2]}'
  match = _PUBLISHED.fullmatch(model)
  if match and (relative := _relative(match[1])):
    section = {k: v for k, v in relative.model.items() if k not in _NOT_KEPT}
    section |= dict(variant=match[2], **_PRECISION)
    device_ops = relative.preprocess.get('device_ops', _UNIT)
    patch = int(match[2].rpartition('/')[2])
    resolution = resolution or round(pixels / patch) * patch
    return section, dict(device_ops=device_ops), resolution
  path = pathlib.Path(model).expanduser()
  try:
    found = _read_ours(path) or _read_run(path)
  except (ValueError, KeyError, TypeError) as e:
    raise ValueError(
      f'model={model} cannot be read as a run or a file of ours: {e}'
    ) from e
  if found is None:
    section = dict(name='vit', like=model, representation_size=None)
    return section | _PRECISION, {}, resolution or 224
  section, device_ops, size = found
  section = {k: v for k, v in section.items() if k not in _NOT_KEPT}
  # What a config names is imported, and what a file names must not be.
  code = [v for v in section.values() if re.fullmatch(r'\w+(\.\w+)+', str(v))]
  code = [v for v in code if isinstance(v, str)]
  if section.get('name') not in lookup.names('models'):
    code.append(section.get('name'))
  if code:
    raise ValueError(
      f'model={model} names the code {code[0]!r} as its model. If '
      'you trust it, name it in the model section of a recipe of your own'
    )
  # The other ops that a run has on the device are for training alone.
  parts = [part.strip() for part in device_ops.split('|')]
  normalize = re.compile(r'normalize(\(.*\))?', re.DOTALL)
  device_ops = '|'.join(p for p in parts if normalize.fullmatch(p))
  if not resolution:
    if size is None or size[0] != size[1]:
      raise ValueError(
        f'model={model} was not evaluated at square images of one size: give '
        'resolution=, in pixels'
      )
    resolution = size[0]
  return section, dict(device_ops=device_ops), resolution


def position_resize(model: str) -> dict[str, str]:
  """Returns the key `resize` of `init_from` for a run of ours, {} for others.

  Google's models have the tanh form of GELU, and are resized by scipy's zoom of
  order 1; those with torch's GELU as in DeiT, by torch's bicubic interpolation.
  Published weights know it themselves.
  """
  try:
    found = _read_run(pathlib.Path(model).expanduser())
  except (ValueError, KeyError, TypeError):
    return {}  # `model_of` says what is wrong.
  if found is None:
    return {}
  is_torch = found[0].get('activation') == 'gelu'
  return dict(resize='torch' if is_torch else 'google')


def _relative(family: str) -> published.Published | None:
  """Returns published weights of a family: its models differ in size alone."""
  names = (n for n in published.PUBLISHED if n.startswith(f'{family}-'))
  return published.PUBLISHED.get(next(names, None))


def _read_ours(path: pathlib.Path) -> tuple[dict, str, tuple | None] | None:
  """Returns model, device ops and image size of our .safetensors, or None."""
  if path.suffix != '.safetensors' or not path.exists():
    return None
  _, metadata = files.read_safetensors_header(path)
  if 'vit_jax' not in metadata:
    return None
  said = files.parse_json(metadata['vit_jax'], str(path))
  model, preprocess = dict(said['model']), dict(said['preprocess'])
  device_ops = _text(preprocess.get('device_ops', _UNIT))
  size = sides(_text(preprocess.get('ops', '')))
  return model, device_ops, size or preprocess.get('image_size')


def _read_run(path: pathlib.Path) -> tuple[dict, str, tuple | None] | None:
  """Returns the same of a run, its folder of checkpoints, or one of these."""
  if path.name == 'checkpoints':
    path = path.parent
  elif path.parent.name == 'checkpoints':
    path = path.parent.parent
  if not (path / 'config.json').exists():
    return None
  run = files.read_json_object(path / 'config.json')
  if not isinstance(run.get('model'), dict) or 'input' not in run:
    return None  # Of timm or Hugging Face.
  main = (run.get('evals') or {}).get(main_evaluation(run)) or {}
  texts = (main.get('ops') or '', run['input'].get('ops', ''))
  size = next(filter(None, (sides(_text(text)) for text in texts)), None)
  return run['model'], _text(run['input'].get('device_ops', '')), size


def _text(value) -> str:
  if not isinstance(value, str):
    raise TypeError(f'expected the text of ops; got {value!r}')
  return value
