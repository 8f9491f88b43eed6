"""Weights of torch models in and out: timm, DeiT, DINO, MAE, Hugging Face.

What is read and what is not: the encoder and its classifier are; a decoder
(MAE), a projection head (DINO) and mask tokens are left behind. Distilled DeiT,
gated MLPs, CLIP and BEiT are no models that `models/vit.py` can be: an error.
"""

import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.models import vit
from vit_jax.pretrained import (
  blocks,
  google_position,
  huggingface_config,
  huggingface_preprocessor,
  model_section,
  overrides,
  timm_config,
  torch_arrays,
  torch_dialect,
  torch_facts,
  torch_names,
  torch_storage,
  torch_tokens,
)
from vit_jax.pretrained.torch_names import Dialect
from vit_jax.pretrained.weights import Weights, build_model

FORMATS = ('timm', 'huggingface')
_THEIR_VIT = {'timm': "timm's ViT", 'huggingface': "Hugging Face's ViT"}


def read(
  path: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  grid: tuple[int, int] | None = None,
  entry: str | None = None,
) -> Weights:
  """Returns the weights of a ViT from a torch model's file or folder.

  A config.json beside them tells the activation, norm epsilon, heads and
  preprocessing. Without it they are what is usual for the dialect: exact GELU,
  1e-6 (1e-12 for Hugging Face's ViT), heads of 64 channels where no variant has
  these sizes; what images need is then only known for some dialects.
  `source['resize']`, the method for positions, is that of
  `torch_facts.resize_method`.

  Args:
    path: of a .safetensors or .pth file, or of a folder as timm and Hugging
      Face have them.
    model: keys of the model section that win over what the files tell; see
      `overrides.apply`.
    grid: (rows, columns) of the position table if it is not square.
    entry: which state dict of several; see `torch_storage.read`.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  stored = torch_storage.read(path, entry)
  try:
    return _weights(stored, os.fspath(path), dict(model or {}), grid)
  except UserError as e:
    raise UserError(f'{os.fspath(path)}: {e}') from e


def write(
  weights: Weights, path: str | os.PathLike, *, format: str = 'huggingface'
) -> None:
  """Writes weights so that timm or transformers builds the same model.

  A folder is what `timm.create_model('local-dir:<folder>', pretrained=True)`
  and `transformers.AutoModelForImageClassification.from_pretrained(<folder>)`
  take (`AutoModel` if there is no head). Preprocessing goes with them where it
  is known, but for antialiasing, which both always do.

  Args:
    weights: of a ViT.
    path: of a folder, or of a single file if it ends in .safetensors.
    format: 'timm' or 'huggingface'.

  Raises:
    UserError: the other side has no such model, or it cannot be written.
  """
  module = build_model(weights)
  if not isinstance(module, vit.ViT):
    raise UserError(
      f'{format} can be written for models/vit.py; got {weights.model}'
    )
  if module.stem is not None:
    raise UserError(
      f"{_THEIR_VIT[format]} has no convolutional stem (stem='conv'); write"
      ' .safetensors, or train with a stem of patches'
    )
  named = blocks.unstack(trees.flatten(weights.params))
  named = {name: np.asarray(array) for name, array in named.items()}
  if 'position_embedding' not in named and (
    module.position != 'none' or format == 'huggingface'
  ):
    named['position_embedding'] = google_position.fixed_table(
      module.position,
      weights.preprocess.get('image_size'),
      named['patch_embedding/kernel'],
    )
  image_size = _image_size(named) or weights.preprocess.get('image_size')
  if image_size is None:
    raise UserError(
      "nothing tells the size of images: set preprocess['image_size']"
    )
  make = {'timm': _timm, 'huggingface': _huggingface}
  if format not in make:
    raise UserError(
      f'unknown format {format!r}; there are {", ".join(FORMATS)}'
    )
  theirs, configs = make[format](weights, module, named, tuple(image_size))
  torch_storage.write(path, theirs, configs)


def _timm(weights, module, named, image_size):
  timm_config.check_writable(module)
  theirs = _theirs(weights, module, named, torch_names.TIMM)
  config = timm_config.write(
    module,
    theirs,
    image_size=image_size,
    preprocess=weights.preprocess,
    class_names=weights.class_names,
  )
  return theirs, dict(config=config)


def _huggingface(weights, module, named, image_size):
  dialect, kind = huggingface_config.choose(module)
  named = huggingface_config.complete(named, kind)
  theirs = _theirs(weights, module, named, dialect)
  channels = named['patch_embedding/kernel'].shape[2]
  configs = dict(
    config=huggingface_config.write(
      module,
      kind,
      channels=channels,
      image_size=image_size,
      class_names=weights.class_names,
    )
  )
  if {'ops', 'device_ops'} <= weights.preprocess.keys():
    configs['preprocessor_config'] = huggingface_preprocessor.write(
      weights.preprocess, channels, image_size
    )
  prefix = huggingface_config.prefix(kind, bool(module.num_classes))
  outside = (f'{dialect.head}.weight', f'{dialect.head}.bias')
  theirs = {k if k in outside else prefix + k: v for k, v in theirs.items()}
  return theirs, configs


def _theirs(weights, module, named, dialect: Dialect) -> dict[str, np.ndarray]:
  same = weights.source.get('dialect') == dialect.name
  aside = weights.source.get('aside') if same else None
  return torch_arrays.write(named, dialect, pooling=module.pooling, aside=aside)


def _weights(stored, path, model, grid) -> Weights:
  dialect, prefix = torch_dialect.detect(stored.arrays)
  theirs, unused = _strip(stored.arrays, dialect, prefix)
  if model.get('num_classes', 'as it is') is None:
    head = f'{dialect.head}.'
    theirs = {k: v for k, v in theirs.items() if not k.startswith(head)}
  elif f'{dialect.head}.0.running_mean' in theirs:
    raise UserError(
      f'the classifier {dialect.head} starts with a BatchNorm (linear probing'
      ' of MAE), which models/vit.py does not have: say'
      " model={'num_classes': None} to read the encoder alone"
    )
  torch_tokens.check(theirs, dialect)
  facts = torch_facts.of(stored, dialect, unused)
  if grid is None and facts.image_size is not None:
    patch = theirs[dialect.anchor].shape[2:]
    grid = tuple(n // p for n, p in zip(facts.image_size, patch, strict=True))
  pooling = facts.model.get('pooling')
  pooling = pooling or torch_arrays.guess_pooling(theirs, dialect)
  converted = torch_arrays.read(
    theirs,
    dialect,
    num_heads=torch_facts.num_heads(theirs, dialect, facts, model),
    grid=torch_tokens.find_grid(theirs, dialect, grid),
    pooling=pooling,
  )
  known = facts.model | dict(pooling=pooling)
  named, section = _section(converted, known, facts.class_names, model)
  resize = torch_facts.resize_method(
    stored, dialect, unused, registers='registers' in named
  )
  return Weights(
    params=trees.unflatten(named),
    model=section,
    preprocess=facts.preprocess
    | dict(image_size=_image_size(named) or facts.image_size),
    class_names=facts.class_names if 'head/kernel' in named else None,
    source=dict(
      format=FORMATS[dialect.name.startswith('huggingface')],
      dialect=dialect.name,
      path=path,
      resize=resize,
      unused=unused,
      aside=converted.aside,
    ),
    trusted=overrides.trusted(model),
  )


def _strip(arrays, dialect, prefix) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns arrays by their names without prefix, and names of unused ones."""
  theirs, unused = {}, []
  for name, array in arrays.items():
    short = name.removeprefix(prefix)
    if short != dialect.mask_token and any(
      re.fullmatch(pattern, name) for pattern in dialect.unused
    ):
      unused.append(name)
    else:
      # DINOv2 trains with its blocks in chunks: blocks.<chunk>.<block>.
      theirs[re.sub(r'^blocks\.\d+\.(?=\d+\.)', 'blocks.', short)] = array
  return theirs, unused


def _section(converted, known, class_names, model):
  """Returns named arrays and model section, if one fits the other exactly."""
  named, labels = converted.params, converted.labels
  problems = list(converted.problems.values())
  told = set(converted.problems)
  needed = (
    'patch_embedding/kernel',
    'encoder/block_00/attention/query/kernel',
    'encoder/block_00/mlp/up/kernel',
  )
  absent = [labels.get(name, name) for name in needed if name not in named]
  problems += [f'missing: {name}' for name in absent if name not in told]
  section = {}
  if not absent:
    section = model_section.compact(model_section.infer(named) | known)
    named, section = overrides.apply(named, section, model)
    told = tuple(f'missing: {name} ' for name in told)
    problems += [
      line
      for line in model_section.problems(
        named, section, labels=labels, trusted=bool(overrides.trusted(model))
      )
      if not (told and line.startswith(told))
    ]
    classes = section.get('num_classes')
    if classes and class_names and classes != len(class_names):
      problems.append(f'{len(class_names)} class names for {classes} classes')
  if problems:
    raise UserError(
      'these are not exactly the parameters of a ViT:'
      + model_section.listed(problems)
    )
  return named, section


def _image_size(named) -> tuple[int, int] | None:
  """Returns (height, width) that the position table is for, if there is one."""
  table = named.get('position_embedding')
  if table is None:
    return None
  patch = named['patch_embedding/kernel'].shape
  return table.shape[0] * patch[0], table.shape[1] * patch[1]
