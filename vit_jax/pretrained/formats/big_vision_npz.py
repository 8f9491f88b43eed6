"""Google's .npz with the names of big_vision, written; `npz` reads it."""

import os

from vit_jax.pretrained.formats import npz
from vit_jax.pretrained.weights import Weights

SUFFIXES = npz.SUFFIXES


def write(
  weights: Weights, path: str | os.PathLike, *, allow_note_only: bool = False
) -> None:
  """Writes an .npz that big_vision and timm read; see `npz.write`."""
  npz.write(
    weights, path, dialect='big_vision', allow_note_only=allow_note_only
  )
