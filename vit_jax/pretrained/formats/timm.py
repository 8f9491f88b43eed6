"""Folders of timm, written; `state_dict` reads them."""

import os

from vit_jax.pretrained import model_section
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.weights import Weights


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights so that timm builds the same model.

  `timm.create_model('local-dir:<folder>', pretrained=True)` takes the folder.
  Preprocessing is written where it is known, but for antialiasing, which timm
  always does.

  Args:
    weights: of a model with a file in `names/`.
    path: of a folder, or of a single file if it ends in .safetensors.

  Raises:
    UserError: timm has no such model, or it cannot be written.
  """
  names, model = model_section.to_write(weights, 'timm')
  state_dict.write_files(path, *names.timm.write(weights, model))
