"""decode: encoded bytes become a uint8 image."""

import io

import numpy as np
from PIL import Image

from vit_jax.data.ops.language import Op


def decode(channels: int | None = None) -> Op:
  def op(example, rng):
    image = example['image']
    if isinstance(image, np.ndarray) and image.ndim == 3:
      return example
    return example | {
      'image': np.array(Image.open(io.BytesIO(image)).convert('RGB'))
    }

  return op
