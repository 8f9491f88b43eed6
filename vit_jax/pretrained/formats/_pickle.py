"""Reading of torch pickles with `weights_only=True`, which runs no code."""

import argparse
import pathlib
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.pretrained.formats import _npz, _opcodes
from vit_jax.printable import printable


def read(path: pathlib.Path) -> dict[str, Any]:
  """Returns the dict in a file that `torch.save` wrote.

  Raises:
    UserError: torch is not installed, the file is broken, or it holds something
      else than a dict of tensors, numbers, texts and containers of them.
  """
  try:
    import torch
  except ImportError as e:
    raise UserError(
      f'{path} is a pickle of torch, which is not installed: pip install torch,'
      ' or get the weights as .safetensors'
    ) from e
  size = files.check_regular(path)
  try:
    if _opcodes.is_zip(path):
      with zipfile.ZipFile(path) as archive:
        _npz.check_archive(archive, size)
        _opcodes.check_archive(archive)
    else:  # Not compressed.
      _opcodes.check_legacy(path)
    # Training scripts put their arguments beside the weights.
    with torch.serialization.safe_globals([argparse.Namespace]):
      content = torch.load(path, map_location='cpu', weights_only=True)
  except Exception as e:  # torch raises many kinds for a broken file.
    raise _refused(path, e) from e
  if not isinstance(content, Mapping):
    raise UserError(
      f'{path} holds a {type(content).__name__}, not a state dict'
    )
  return dict(content)


def to_numpy(tensor: Any, where: str) -> np.ndarray:
  """Returns a tensor of torch as a view of numpy; arrays stay what they are.

  Raises:
    UserError: a type that numpy does not have, an empty tensor, or one that is
      larger than its memory; the message starts with `where`.
  """
  if isinstance(tensor, np.ndarray):
    return tensor
  import torch

  try:
    tensor = tensor.detach()
    held = tensor.untyped_storage().nbytes()
    if not 0 < tensor.numel() * tensor.element_size() <= held:
      raise ValueError(
        f'it has the shape {tuple(tensor.shape)} and {held:,} bytes'
      )
    if tensor.dtype == torch.bfloat16:  # numpy has none of its own.
      bits = tensor.contiguous().view(torch.int16).numpy()
      return bits.view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, ValueError, RuntimeError, NotImplementedError) as e:
    reason = printable(' '.join(str(e).split()), max_length=200)
    raise UserError(
      f'cannot use {where}: {reason}; write the file again with tensors of'
      ' float32, bfloat16 or float16'
    ) from e


def _refused(path: pathlib.Path, e: Exception) -> UserError:
  """Returns the error for a pickle, in one line and without torch's advice.

  Torch suggests to load the file with `weights_only=False`, which runs whatever
  code is in it.
  """
  text = ' '.join(str(e).split())
  named = re.search(r'GLOBAL ([\w.<>]+)', text)
  if named is None and 'weights_only' not in text.lower().replace(' ', '_'):
    return files.unreadable(path, e)
  what = 'more than tensors'
  if named:
    what = f'the Python object {printable(named[1], max_length=80)}'
  return UserError(
    f'cannot read {path}: it holds {what}, and of pickles only tensors are'
    ' read, since others can run code; get the weights as .safetensors, or save'
    ' the state dict alone where the file is from'
  )
