"""The sine-cosine tables against loops over single numbers."""

import math

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import _position


def _oracle(height, width, dim, frequency):
  """Returns the table, one number at a time."""
  quarter = dim // 4
  table = np.zeros((height, width, dim))
  for y in range(height):
    for x in range(width):
      for i in range(quarter):
        table[y, x, i] = math.sin(x * frequency(i))
        table[y, x, quarter + i] = math.cos(x * frequency(i))
        table[y, x, 2 * quarter + i] = math.sin(y * frequency(i))
        table[y, x, 3 * quarter + i] = math.cos(y * frequency(i))
  return table


def test_sincos2d_ends_at_the_frequency_of_the_temperature():
  expected = _oracle(3, 5, 16, lambda i: 10_000 ** (-i / 3))
  table = _position.sincos2d(3, 5, 16)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table, expected, atol=1e-6)


def test_sincos2d_moco_stops_one_frequency_short_of_it():
  expected = _oracle(3, 5, 16, lambda i: 10_000 ** (-i / 4))
  table = _position.sincos2d_moco(3, 5, 16)
  assert table.dtype == np.float32
  np.testing.assert_allclose(table, expected, atol=1e-6)


def test_the_two_tables_are_not_alike():
  # Weights trained with one must not be used with the other.
  difference = _position.sincos2d(4, 4, 64) - _position.sincos2d_moco(4, 4, 64)
  assert np.abs(difference).max() > 0.05


def test_sincos2d_moco_equals_the_table_of_transformers_mae():
  mae = pytest.importorskip('transformers.models.vit_mae.modeling_vit_mae')
  expected = mae.get_2d_sincos_pos_embed(32, 6).reshape(6, 6, 32)
  table = _position.sincos2d_moco(6, 6, 32)
  np.testing.assert_allclose(table, expected, atol=1e-6)


@pytest.mark.parametrize('make', [_position.sincos2d, _position.sincos2d_moco])
def test_the_temperature_is_the_longest_wavelength(make):
  slow, fast = make(1, 9, 32, temperature=100.0), make(1, 9, 32)
  assert not np.allclose(slow, fast, atol=1e-2)


@pytest.mark.parametrize('make', [_position.sincos2d, _position.sincos2d_moco])
def test_a_width_that_four_does_not_divide_is_an_error(make):
  with pytest.raises(UserError, match=r'multiple of 4.*got 18'):
    make(2, 2, 18)


def test_sincos2d_needs_two_frequencies():
  with pytest.raises(UserError, match='at least 8; got 4'):
    _position.sincos2d(2, 2, 4)
