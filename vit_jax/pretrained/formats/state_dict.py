"""State dicts of torch, read: timm, DeiT, DINO, MAE, Hugging Face.

The model and its classifier are read; a decoder (MAE), a projection head (DINO)
and mask tokens are left behind. Models that this package does not have
(distilled DeiT, gated MLPs, CLIP, BEiT) are an error.
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

from vit_jax.errors import UserError
from vit_jax.pretrained import mapping, model_section, tokens
from vit_jax.pretrained.formats import _state_dict_files, vit_jax as ours
from vit_jax.pretrained.weights import Weights

SUFFIXES = _state_dict_files.SUFFIXES


def matches(path: str | os.PathLike) -> bool:
  """Whether `read` can read this path."""
  path = pathlib.Path(path)
  if ours.matches(path):
    return False
  if path.is_dir():
    return any(_state_dict_files.is_part(file) for file in path.iterdir())
  return _state_dict_files.is_part(path)


def read(
  path: str | os.PathLike,
  *,
  model: Mapping[str, Any] | None = None,
  grid: tuple[int, int] | None = None,
  entry: str | None = None,
) -> Weights:
  """Returns the weights from a torch model's file or folder.

  The activation, norm epsilon, heads and preprocessing are those of the
  config.json beside them. Without it they are the usual ones of the dialect:
  exact GELU, 1e-6 (1e-12 for Hugging Face's ViT), heads of 64 channels where no
  variant has these sizes; preprocessing is then only known for some dialects.
  `source['resize']`, the method for positions, is that of
  `names/_vit_facts.resize_method`.

  Args:
    path: of a .safetensors or .pth file, or of a folder as timm and Hugging
      Face have them.
    model: keys of the model section that replace those of the files; see
      `model_section.override`.
    grid: (rows, columns) of the position table if it is not square.
    entry: which state dict of several; see `_state_dict_files.read`.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  stored = _state_dict_files.read(path, entry)
  try:
    return _weights(stored, os.fspath(path), dict(model or {}), grid)
  except UserError as e:
    raise UserError(f'{os.fspath(path)}: {e}') from e


def _weights(stored, path, model, grid) -> Weights:
  names, dialect, prefix = _detect(stored.arrays)
  theirs, unused = mapping.without_unused(stored.arrays, dialect, prefix)
  if model.get('num_classes', 'as it is') is None:
    head = f'{dialect.head}.'
    theirs = {k: v for k, v in theirs.items() if not k.startswith(head)}
  elif f'{dialect.head}.0.running_mean' in theirs:
    raise UserError(
      f'the classifier {dialect.head} starts with a BatchNorm (linear probing'
      ' of MAE), which models/vit.py does not have: say'
      " model={'num_classes': None} to read the encoder alone"
    )
  tokens.check(theirs, dialect)
  facts = names.facts.facts(stored, dialect, unused)
  if grid is None and facts.image_size is not None:
    patch = theirs[dialect.anchor].shape[2:]
    grid = tuple(n // p for n, p in zip(facts.image_size, patch, strict=True))
  named, section, unmapped = mapping.read(
    theirs,
    dialect,
    known=facts.model,
    num_heads=names.facts.num_heads(theirs, dialect, facts, model),
    grid=grid,
    class_names=facts.class_names,
    model=model,
  )
  size = model_section.image_size(named) or facts.image_size
  kind = 'huggingface' if dialect.name.startswith('huggingface') else 'timm'
  return Weights(
    params=named,
    model=section,
    preprocess=facts.preprocess | dict(image_size=size),
    class_names=facts.class_names if 'head/kernel' in named else None,
    source=dict(
      format=kind,
      dialect=dialect.name,
      path=path,
      resize=names.facts.resize_method(
        stored, dialect, unused, registers='registers' in named
      ),
      unused=unused,
      unmapped=unmapped,
    ),
    trusted=model_section.trusted_keys(model),
  )


def _detect(arrays) -> tuple[Any, Any, str]:
  """Returns the file of `names/`, the dialect and the prefix of names."""
  for names in model_section.all_names():
    if found := names.torch.detect(arrays):
      return names, *found
  raise UserError(
    'these are not the weights of a ViT by timm, DeiT, DINO, DINOv2, MAE or'
    ' Hugging Face: no patch_embed.proj.weight or'
    ' embeddings.patch_embeddings.projection.weight among'
    f' {", ".join(list(arrays)[:5])}, ...'
  )
