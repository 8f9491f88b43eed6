"""One op applied to one image, and texts that are refused."""

import numpy as np
import pytest

from vit_jax.data import ops_language
from vit_jax.errors import UserError


def parse(text):
  return ops_language.parse(text, trusted=True)


def run(text, image, seed=0):
  return parse(text)({'image': image}, np.random.default_rng(seed))['image']


def noise(*shape, dtype=np.uint8, seed=0):
  return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


def assert_refused(text, message):
  with pytest.raises(UserError) as e:
    parse(text)
  assert message in str(e.value)
