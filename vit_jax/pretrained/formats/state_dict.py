"""State dicts of torch, read: timm, DeiT, DINO, MAE, Hugging Face.

Files are .safetensors, .pth and its like, and folders with a config.json. The
model and its classifier are read; a decoder (MAE), a projection head (DINO) and
mask tokens are left behind. Models that this package does not have (distilled
DeiT, gated MLPs, CLIP, BEiT) are an error.

.safetensors needs no torch. The pickles of torch (.pth, .pt, .bin) do, and are
read with `weights_only=True`: no code of theirs is run.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import safetensors.numpy

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained import download, mapping, model_section
from vit_jax.pretrained.formats import _pickle, npz, vit_jax as ours
from vit_jax.pretrained.transfer import PICKLES
from vit_jax.pretrained.weights import Weights
from vit_jax.printable import printable

SUFFIXES = ('.safetensors', *PICKLES)
# Where checkpoints keep the weights among other things, first choice first.
_ENTRIES = ('model', 'state_dict', 'model_state_dict', 'teacher')
_CONFIGS = ('config', 'preprocessor_config')
_INDEX = '.index.json'
MAX_SHARING = 4  # Some heads share the weights of another.


@dataclasses.dataclass(frozen=True)
class Stored:
  """A state dict as it was found.

  Attributes:
    arrays: by name.
    config: of config.json; empty without one.
    preprocessor: of preprocessor_config.json; likewise.
    arguments: of the script that trained the weights, where it kept them.
  """

  arrays: dict[str, np.ndarray]
  config: dict[str, Any]
  preprocessor: dict[str, Any]
  arguments: dict[str, Any] = dataclasses.field(default_factory=dict)


def matches(path: str | os.PathLike) -> bool:
  """Whether `read` can read this path."""
  path = pathlib.Path(path)
  if ours.matches(path):
    return False
  found = path.iterdir() if path.is_dir() else [path]
  return any(f.suffix in SUFFIXES or f.name.endswith(_INDEX) for f in found)


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
  `source['resize']`, the method for positions, is that of `resize_method` in
  `names/vit.py`.

  Args:
    path: of a .safetensors or .pth file, or of a folder as timm and Hugging
      Face have them.
    model: keys of the model section that replace those of the files; see
      `model_section.override`.
    grid: (rows, columns) of the position table if it is not square.
    entry: which state dict of several; see `read_files`.

  Raises:
    UserError: no readable file, another kind of model, or names and shapes that
      are not exactly those of the model; all of them in one message.
  """
  stored = read_files(path, entry)
  try:
    return _weights(stored, os.fspath(path), dict(model or {}), grid)
  except UserError as e:
    raise UserError(f'{os.fspath(path)}: {e}') from e


def read_files(path: str | os.PathLike, entry: str | None = None) -> Stored:
  """Returns what a file, or a folder in the layout of a hub, holds.

  The JSON files of a folder are read if `path` is the folder, or a file in it
  with the name that such folders give their weights (model.safetensors,
  pytorch_model.bin). Other files have their config inside or none.

  Args:
    path: of a .safetensors or .pth file, or of a folder.
    entry: which of several state dicts in the file: a key, such as 'model_ema'
      or 'student', or the first part of the names (after 'module.'), also of
      those under one of the following keys. None takes the first of model,
      state_dict, model_state_dict and teacher.

  Raises:
    UserError: it cannot be read, or where in it the weights are is unclear.
  """
  path = pathlib.Path(path).expanduser()
  file = _find(path) if path.is_dir() else path
  shards = download.shards(file) if file.name.endswith(_INDEX) else [file]
  content: dict[str, Any] = {}
  for shard in shards:
    arrays, inside = _read_file(shard)
    content |= arrays
  arguments = content.get('args')
  if not isinstance(arguments, argparse.Namespace):
    arguments = argparse.Namespace()
  if not inside and (path.is_dir() or file.stem in ('model', 'pytorch_model')):
    inside = {
      name: files.read_json_object(file.parent / f'{name}.json')
      for name in _CONFIGS
      if (file.parent / f'{name}.json').exists()
    }
  size = sum(shard.stat().st_size for shard in shards)
  return Stored(
    arrays=_to_numpy(_entry(content, entry, file), file, size),
    config=inside.get('config', {}),
    preprocessor=inside.get('preprocessor_config', {}),
    arguments=dict(vars(arguments)),
  )


def write_files(
  path: str | os.PathLike,
  arrays: Mapping[str, np.ndarray],
  configs: Mapping[str, Any],
) -> None:
  """Writes a folder as the hub has them, or one .safetensors file.

  A file if the path ends in .safetensors, which then has the configs in its
  header. `configs` are contents of JSON files by name without suffix.

  Raises:
    UserError: it cannot be written.
  """
  path = pathlib.Path(path).expanduser()
  header = {'format': 'pt'}  # Without it transformers refuses the file.
  file = path / 'model.safetensors'
  if path.suffix == '.safetensors':
    header |= {name: json.dumps(value) for name, value in configs.items()}
    file, configs = path, {}
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  with files.write_atomically(file) as part:
    safetensors.numpy.save_file(arrays, part, metadata=header)
  for name, value in configs.items():
    with files.write_atomically(path / f'{name}.json') as part:
      part.write_text(json.dumps(value, indent=2) + '\n')


def _weights(stored, path, model, grid) -> Weights:
  detected = model_section.detect('torch', stored.arrays)
  if detected is None:
    raise UserError(
      'these are not the weights of a ViT by timm, DeiT, DINO, DINOv2, MAE or'
      ' Hugging Face: no patch_embed.proj.weight or'
      ' embeddings.patch_embeddings.projection.weight among'
      f' {", ".join(list(stored.arrays)[:5])}, ...'
    )
  names, (dialect, prefix) = detected
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
  mapping.check_tokens(theirs, dialect)
  facts = names.facts(stored, dialect, theirs, unused, model)
  if grid is None and facts.image_size is not None:
    patch = theirs[dialect.anchor].shape[2:]
    grid = tuple(n // p for n, p in zip(facts.image_size, patch, strict=True))
  named, section = mapping.read(
    theirs,
    dialect,
    known=facts.model,
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
      resize=names.resize_method(
        stored, dialect, unused, registers='registers' in named
      ),
      unused=unused,
    ),
    trusted=model_section.trusted_keys(model),
  )


def _find(folder: pathlib.Path) -> pathlib.Path:
  """Returns the file with the weights in a folder."""
  for stem in ('model', 'pytorch_model'):
    for suffix in ('.safetensors', '.bin', '.pth'):
      for name in (f'{stem}{suffix}', f'{stem}{suffix}{_INDEX}'):
        if (folder / name).exists():
          return folder / name
  found = sorted(f for f in folder.iterdir() if f.suffix in SUFFIXES)
  if len(found) != 1:
    names = ', '.join(f.name for f in found) or 'none'
    raise UserError(
      f'{folder} should hold one file of weights, such as model.safetensors;'
      f' there are: {names}'
    )
  return found[0]


def _read_file(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the content of a file, and the configs in its header."""
  if path.suffix in PICKLES:
    return _pickle.read(path), {}
  if path.suffix not in SUFFIXES:
    raise UserError(f'{path}: expected one of {", ".join(SUFFIXES)}')
  arrays, metadata = ours.read_safetensors(path)
  configs = {}
  for name in metadata.keys() & set(_CONFIGS):
    where = f'the {name} in {path}'
    value = files.parse_json(metadata[name], where)
    configs[name] = files.check_object(value, where)
  return arrays, configs


def _to_numpy(
  tensors: Mapping[str, Any],
  file: pathlib.Path,
  size: int,
  *,
  max_sharing: float = MAX_SHARING,
) -> dict[str, np.ndarray]:
  """Returns the arrays and tensors among the values, as arrays.

  Tensors of a pickle may share their memory: all together may have
  `max_sharing` times the `size` of their files in bytes, or SMALL_BYTES.
  """
  for key in tensors:
    if not isinstance(key, str):
      raise UserError(
        f'{file} holds no state dict: the name of an array is'
        f' {printable(reprlib.repr(key), max_length=80)}; set entry= to choose'
        ' another part of the file'
      )
  limit = max(npz.SMALL_BYTES, max_sharing * size)
  arrays, total = {}, 0
  for name, value in tensors.items():
    if hasattr(value, 'shape'):
      where = f'{printable(name, max_length=80)} in {file}'
      arrays[name] = _pickle.to_numpy(value, where)
      total += arrays[name].nbytes
      if total > limit:
        raise UserError(
          f'cannot read {file}: of {size:,} bytes, it has tensors of over'
          f' {total:,} bytes that share their memory, and the limit is'
          f' max_sharing={max_sharing:g}; write the file again with tensors of'
          ' their own'
        )
  return arrays


def _entry(content, entry: str | None, path) -> dict[str, Any]:
  """Returns the state dict among other things that a file may hold."""
  nested = {k: v for k, v in content.items() if isinstance(v, Mapping)}
  usual = [nested[name] for name in _ENTRIES if name in nested]
  if entry is not None:
    for place in (content, *usual):
      if isinstance(place.get(entry), Mapping):
        return dict(place[entry])
      for prefix in (f'{entry}.', f'module.{entry}.'):
        inside = {k: v for k, v in place.items() if str(k).startswith(prefix)}
        if inside:
          return inside
    choices = list(content)
    for place in usual:
      choices += [str(k).removeprefix('module.').split('.')[0] for k in place]
    raise UserError(f'{path} has no entry {entry!r}; it has {_some(choices)}')
  if any(hasattr(value, 'shape') for value in content.values()):
    return content
  if usual:
    return dict(usual[0])
  raise UserError(
    f'{path}: set entry= (--entry= on the command line) to choose where the'
    f' weights are; there are {_some(content)}'
  )


def _some(names: Iterable[Any], *, max_names: int = 20) -> str:
  names = list(dict.fromkeys(names))
  more = f' and {len(names) - max_names} more' if len(names) > max_names else ''
  return printable(names[:max_names], max_length=1000) + more
