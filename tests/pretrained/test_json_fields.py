"""Types and sizes that values in the JSON of weight files must have."""

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields


def test_the_size_of_images_is_limited():
  text = '{"preprocess": {"image_size": [%d, 16]}}'
  most = json_fields.MAX_SIDE
  assert json_fields.parse_description(text % most, 'here')
  with pytest.raises(UserError, match=r'image_size=.* 16384 pixels$'):
    json_fields.parse_description(text % (most + 1), 'here')
