"""Resizing, against the libraries that the code bases call."""

import jax
import numpy as np
import pytest
import scipy.ndimage

from vit_jax.errors import UserError
from vit_jax.models import _position
from vit_jax.pretrained import resample

GRIDS = [(10, 14), (3, 4), (5, 9), (1, 7), (16, 2), (6, 1)]


@pytest.fixture
def table():
  return np.random.default_rng(0).normal(size=(5, 7, 3)).astype(np.float32)


@pytest.mark.parametrize('grid', GRIDS)
def test_google_is_scipys_zoom(table, grid):
  zoom = (grid[0] / 5, grid[1] / 7, 1)
  expected = scipy.ndimage.zoom(table, zoom, order=1)
  found = resample.resize_position(table, grid, method='google')
  # scipy adds up in float64 too, in another order.
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)


@pytest.mark.parametrize('grid', GRIDS)
def test_timm_is_antialiased_bicubic(table, grid):
  expected = jax.image.resize(table, (*grid, 3), 'bicubic')
  found = resample.resize_position(table, grid, method='timm')
  # jax computes its weights in float32.
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize('method', ['torch', 'dino'])
def test_torch_and_dino_are_torchs_interpolate(table, grid, method):
  torch = pytest.importorskip('torch')
  arguments = dict(size=grid)
  if method == 'dino':  # vision_transformer.py of DINO.
    arguments = dict(
      scale_factor=((grid[0] + 0.1) / 5, (grid[1] + 0.1) / 7),
      recompute_scale_factor=False,
    )
  expected = torch.nn.functional.interpolate(
    torch.from_numpy(table).permute(2, 0, 1)[None], mode='bicubic', **arguments
  )
  expected = expected[0].permute(1, 2, 0).numpy()
  assert expected.shape[:2] == grid
  found = resample.resize_position(table, grid, method=method)
  np.testing.assert_allclose(found, expected, rtol=0, atol=3e-6)


def test_the_methods_differ(table):
  found = [
    resample.resize_position(table, (8, 8), method=m) for m in _position.RESIZE
  ]
  for i, one in enumerate(found):
    for other in found[:i]:
      assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize('method', _position.RESIZE)
def test_constants_stay_and_dtypes_too(method):
  table = np.full((4, 6, 2), 3, np.float16)
  found = resample.resize_position(table, (7, 3), method=method)
  assert found.dtype == np.float16
  np.testing.assert_allclose(found, 3, rtol=1e-3)


def test_the_same_grid_is_the_same_table(table):
  assert resample.resize_position(table, (5, 7), method='dino') is table
  with pytest.raises(UserError, match='google, timm, torch, dino'):
    resample.resize_position(table, (5, 7), method='scipy')


def test_a_resized_patch_gets_the_same_value():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(4, 6, 3, 2)).astype(np.float32)
  patch = rng.normal(size=(4, 6, 3)).astype(np.float32)
  large = jax.image.resize(patch, (8, 9, 3), 'bicubic')
  found = resample.resize_patch_kernel(kernel, (8, 9))
  np.testing.assert_allclose(
    np.einsum('hwc,hwcd->d', large, found),
    np.einsum('hwc,hwcd->d', patch, kernel),
    rtol=1e-4,
  )


def test_smaller_patches_are_the_pseudo_inverse_of_flexivit():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(6, 4, 1, 2))
  pixels = np.eye(24, dtype=np.float32).reshape(6, 4, 24)
  resized = jax.image.resize(pixels, (3, 3, 24), 'bicubic')
  matrix = np.asarray(resized, np.float64).reshape(9, 24)
  expected = np.linalg.pinv(matrix.T) @ kernel.reshape(24, 2)
  found = resample.resize_patch_kernel(kernel, (3, 3))
  np.testing.assert_allclose(
    found, expected.reshape(3, 3, 1, 2), rtol=0, atol=1e-5
  )


def test_patch_kernels_are_resized_as_in_timm(timm):
  import torch
  from timm.layers import resample_patch_embed

  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(16, 16, 3, 4)).astype(np.float32)
  for size in ((8, 8), (20, 12)):
    expected = resample_patch_embed(
      torch.from_numpy(kernel).permute(3, 2, 0, 1), list(size)
    )
    found = resample.resize_patch_kernel(kernel, size)
    np.testing.assert_allclose(
      found, expected.permute(2, 3, 1, 0).numpy(), rtol=0, atol=2e-4
    )


def test_patches_of_the_same_size_keep_their_kernel():
  kernel = np.zeros((4, 4, 3, 2))
  assert resample.resize_patch_kernel(kernel, (4, 4)) is kernel


def test_one_channel_is_the_sum_of_all():
  kernel = np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2)
  np.testing.assert_array_equal(
    resample.adapt_channels(kernel, 1), [[[[0 + 2 + 4, 1 + 3 + 5]]]]
  )


@pytest.mark.parametrize(
  ('channels', 'expected'),
  [
    (2, [1.5, 3]),  # times 3 / 2
    (3, [1, 2, 3]),
    (4, [0.75, 1.5, 2.25, 0.75]),
    (10, [0.3, 0.6, 0.9, 0.3, 0.6, 0.9, 0.3, 0.6, 0.9, 0.3]),
  ],
)
def test_other_channels_repeat_and_scale(channels, expected):
  kernel = np.array([1, 2, 3], np.float32).reshape(1, 1, 3, 1)
  found = resample.adapt_channels(kernel, channels)
  np.testing.assert_allclose(found[0, 0, :, 0], expected, rtol=1e-6)
  assert found.dtype == np.float32


def test_one_channel_becomes_three_that_add_up_to_it():
  found = resample.adapt_channels(np.full((2, 2, 1, 1), 6.0), 3)
  np.testing.assert_allclose(found, np.full((2, 2, 3, 1), 2.0))
