"""Google's .npz with the names of vision_transformer; `npz` reads it."""

import os

from vit_jax.pretrained.formats import npz
from vit_jax.pretrained.weights import Weights

SUFFIXES = npz.SUFFIXES


def write(
  weights: Weights, path: str | os.PathLike, *, allow_note_only: bool = False
) -> None:
  """Writes an .npz that vision_transformer and timm read; see `npz.write`."""
  npz.write(weights, path, dialect='pre_linen', allow_note_only=allow_note_only)
