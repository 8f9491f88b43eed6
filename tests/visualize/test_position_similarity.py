"""Similarity of positions as a picture."""

import jax
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.visualize import position_similarity

# Where the colour map ends: the least and the most alike.
DARK, BRIGHT = (68, 1, 84), (253, 231, 37)


def pixels(path):
  rgba = matplotlib_image.imread(path)
  return np.uint8(np.round(rgba[..., :3] * 255))


def table(height, width, dim=8):
  return np.random.default_rng(0).normal(size=(height, width, dim))


def test_similarity_is_the_cosine_of_every_two_positions():
  x = np.float32([[[1, 0], [0, 2]], [[3, 3], [-1, 0]], [[0, 0], [0, 1]]])
  found = position_similarity.similarity(x)
  assert found.shape == (3, 2, 3, 2) and found.dtype == np.float32
  half = 0.5**0.5
  np.testing.assert_allclose(found[0, 0], [[1, 0], [half, -1], [0, 0]])
  np.testing.assert_allclose(found[0, 1], [[0, 1], [half, 0], [0, 1]])
  # A position of zeros is like none.
  np.testing.assert_allclose(found[2, 0], np.zeros((3, 2)))
  np.testing.assert_allclose(found, found.transpose(2, 3, 0, 1))


def test_each_tile_maps_the_image_and_is_where_its_patch_is(
  monkeypatch, tmp_path
):
  drawn = []
  monkeypatch.setattr(
    position_similarity._figure,
    'save',
    lambda figure, path: drawn.append(figure),
  )
  x = table(3, 4)
  position_similarity.Picture().plot(x, tmp_path / 'x.png')
  cosine = position_similarity.similarity(x)
  axes, bar = drawn[0].axes
  image = axes.images[0]
  for i in range(3):
    for j in range(4):
      tile = image.get_array()[3 * i : 3 * i + 3, 4 * j : 4 * j + 4]
      np.testing.assert_array_equal(tile, cosine[i, j])
  assert [x.get_text() for x in axes.get_yticklabels()] == ['1', '2', '3']
  np.testing.assert_array_equal(axes.get_yticks(), [1, 4, 7])
  assert bar.get_ylabel() == 'cosine'
  # The ones on the diagonal do not set the scale.
  others = cosine.reshape(12, 12)[~np.eye(12, dtype=bool)]
  np.testing.assert_allclose(image.get_clim(), (others.min(), others.max()))


def test_a_patch_is_brightest_in_its_own_tile(tmp_path):
  # Four directions at right angles and one against: cells are 2 bright or dark.
  x = np.zeros((2, 2, 3))
  x[0, 0], x[0, 1], x[1, 0], x[1, 1] = np.eye(3)[[0, 1, 2, 0]] * [
    [1],
    [1],
    [1],
    [-1],
  ]
  path = position_similarity.Picture().plot(x, tmp_path / 'new/folder/x.png')
  image = pixels(path)
  side = 150  # Dots of a cell: 6 inches of 4 cells, less the lines between.
  dark = (image == DARK).all(-1).sum()
  assert dark == pytest.approx(2 * side**2, rel=0.1)
  assert [p.name for p in path.parent.iterdir()] == ['x.png']


def test_of_a_large_grid_some_patches_have_a_tile():
  assert position_similarity._spread(37, 14)[:3] == [0, 3, 6]
  assert position_similarity._spread(37, 14)[-1] == 36
  assert len(position_similarity._spread(37, 14)) == 14
  assert position_similarity._spread(3, 14) == [0, 1, 2]


def test_a_run_draws_its_own_table_wherever_its_parts_are(tmp_path):
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('fsdp'))
  x = np.float32(table(8, 4))
  params = {'position_embedding': jax.device_put(x, split)}
  picture = position_similarity.Picture(None, mesh)
  with jax.transfer_guard('disallow'):
    path = picture.draw({'params': params}, tmp_path / 'x.png')
  expected = position_similarity.Picture().plot(x, tmp_path / 'y.png')
  np.testing.assert_array_equal(pixels(path), pixels(expected))


def test_a_model_without_learned_positions_is_reported(tmp_path):
  picture = position_similarity.Picture(None, None)
  with pytest.raises(UserError, match=r'not learned.*it has encoder, head'):
    params = {'head': {'bias': 0}, 'encoder': {'x': 0}}
    picture.draw({'params': params}, tmp_path / 'x.png')


def test_impossible_options_are_named(tmp_path):
  with pytest.raises(UserError, match='max_tiles is at least 2; got 1'):
    position_similarity.Picture(None, None, max_tiles=1)
  with pytest.raises(UserError, match=r'got \(1, 8, 4\)'):
    position_similarity.Picture().plot(table(1, 8, 4), tmp_path / 'x.png')
