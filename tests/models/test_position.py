"""The sine-cosine tables against loops over single numbers."""

import math

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.models import _position
from vit_jax.models.vit import Model
from vit_jax.pretrained import resample


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


def _table(height, width, dim=8):
  rng = np.random.default_rng(0)
  return rng.normal(size=(height, width, dim)).astype(np.float32)


@pytest.mark.parametrize('method', _position.RESIZE)
@pytest.mark.parametrize('grid', [(3, 4), (9, 5), (1, 7)])
def test_resizing_within_a_program_equals_resizing_on_load(method, grid):
  table = _table(5, 6)
  expected = resample.resize_position(table, grid, method=method)
  resized = jax.jit(lambda t: _position.resize(t, grid, method=method))(table)
  assert resized.dtype == np.float32
  # float64 on load, float32 here.
  np.testing.assert_allclose(resized, expected, atol=2e-6)


@pytest.mark.parametrize('method', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('antialias', [True, False])
def test_a_resize_with_half_pixel_centres_is_that_of_jax(method, antialias):
  image = _table(12, 1, 3)
  for size in (5, 29):
    expected = jax.image.resize(
      image, (size, 1, 3), method, antialias=antialias
    )
    matrix = _position.half_pixel(12, size, method, antialias=antialias)
    found = np.einsum('oi,ijk->ojk', matrix, image)
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_local_crops_train_the_table_of_whole_images():
  whole, crop = (np.ones((2, side, side, 3), np.float32) for side in (32, 16))
  model, plain = Model('mu/8', position_resize='timm'), Model('mu/8')
  params = jax.jit(model.init)(jax.random.key(0), whole)['params']

  @jax.jit
  @jax.value_and_grad
  def of_crop(params):
    outputs = model.apply({'params': params}, crop)
    return (outputs['tokens'][..., 0] ** 2).sum()

  value, gradient = of_crop(params)
  # Every entry of the table has a part in the smaller one.
  gradient = gradient['position_embedding']
  assert gradient.shape == (4, 4, 32)
  assert (np.abs(gradient).max(axis=-1) > 0).all()
  # As a model made for the crop, with the table resized on load.
  table = np.asarray(params['position_embedding'])
  table = resample.resize_position(table, (2, 2), method='timm')
  small = params | {'position_embedding': table}
  outputs = jax.jit(plain.apply)({'params': small}, crop)
  np.testing.assert_allclose(
    value, (outputs['tokens'][..., 0] ** 2).sum(), rtol=1e-5
  )
  with pytest.raises(UserError, match=r"images have 2x2.*position_resize='ti"):
    jax.eval_shape(plain.apply, {'params': params}, crop)


def test_only_learned_tables_are_resized():
  with pytest.raises(UserError, match="position_resize='timm' needs position="):
    Model('mu/8', position='sincos2d', position_resize='timm')
  with pytest.raises(UserError, match=r"position_resize='x'.*'google', 'timm'"):
    Model('mu/8', position_resize='x')
