"""Types and sizes that values in the JSON of weight files must have."""

import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained import json_fields


@pytest.mark.parametrize(
  ('key', 'value'),
  [
    # JSON's true is an int of Python: a width of 1, or one channel.
    ('width', True),
    ('num_registers', False),
    ('patch_size', [16, True]),
    ('norm_epsilon', True),
    ('num_heads', 0),
    ('depth', 2.0),
    ('num_classes', 2**31),
  ],
)
def test_a_number_is_neither_a_flag_nor_out_of_range(key, value):
  with pytest.raises(UserError, match=rf'^here has .* wrong: {key}='):
    json_fields.check_model({key: value}, 'here')


def test_the_size_of_images_is_limited():
  text = '{"preprocess": {"image_size": [%d, 16]}}'
  most = json_fields.MAX_SIDE
  assert json_fields.parse_description(text % most, 'here')
  with pytest.raises(UserError, match=r'image_size=.* 16384 pixels$'):
    json_fields.parse_description(text % (most + 1), 'here')
