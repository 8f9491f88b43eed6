"""Folders of Hugging Face's transformers, written; `state_dict` reads them."""

import os

from vit_jax.pretrained import model_section
from vit_jax.pretrained.formats import state_dict
from vit_jax.pretrained.weights import Weights


def write(weights: Weights, path: str | os.PathLike) -> None:
  """Writes weights so that transformers builds the same model.

  `AutoModelForImageClassification.from_pretrained(<folder>)` takes the folder
  (`AutoModel` without a head). Preprocessing is written where it is known, but
  for antialiasing, which transformers always does.

  Args:
    weights: of a model with a file in `names/`.
    path: of a folder, or of a single file if it ends in .safetensors.

  Raises:
    UserError: transformers has no such model, or it cannot be written.
  """
  names, model = model_section.to_write(weights, 'huggingface')
  state_dict.write_files(path, *names.huggingface.write(weights, model))
