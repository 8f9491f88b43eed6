"""The main components of patch filters as a picture."""

import jax
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.visualize import filters


@pytest.fixture
def shown(monkeypatch):
  """The images that are drawn, in order."""
  images, tiles = [], filters._figure.tiles

  def spy(*args, **options):
    figure, grid = tiles(*args, **options)
    for axes in grid:
      imshow = axes.imshow

      def keep(image, *args, imshow=imshow, **options):
        images.append(np.asarray(image))
        return imshow(image, *args, **options)

      axes.imshow = keep
    return figure, grid

  monkeypatch.setattr(filters._figure, 'tiles', spy)
  return images


def kernel(height=4, width=4, channels=3, dim=32, seed=0):
  shape = height, width, channels, dim
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_components_are_those_of_scikit_learn():
  from sklearn.decomposition import PCA

  x = kernel(dim=64)
  found, share = filters.components(x)
  pca = PCA().fit(x.reshape(48, 64).T)
  assert found.shape == (48, 4, 4, 3) and share.shape == (48,)
  np.testing.assert_allclose(share, pca.explained_variance_ratio_, atol=1e-6)
  for ours, theirs in zip(found[:40], pca.components_, strict=False):
    theirs = theirs * np.sign(theirs[np.argmax(np.abs(theirs))])
    np.testing.assert_allclose(ours.ravel(), theirs, atol=1e-4)


def test_a_component_has_the_sign_of_its_largest_number():
  x = kernel()
  for signed in (x, -x):
    found, _ = filters.components(signed)
    flat = found.reshape(len(found), -1)
    assert (flat.max(axis=1) >= -flat.min(axis=1)).all()


def test_filters_that_are_all_equal_have_no_share():
  found, share = filters.components(np.ones((2, 2, 1, 5)))
  assert np.isfinite(found).all() and (share == 0).all()


def test_zero_is_grey_and_the_largest_number_white(shown, tmp_path):
  x = np.zeros((2, 2, 1, 3))
  x[0, 0, 0] = [-2, 0, 2]  # The only pixel that differs between filters.
  filters.Picture(count=1).plot(x, tmp_path / 'new/x.png')
  np.testing.assert_allclose(shown, [[[1, 0.5], [0.5, 0.5]]], atol=1e-6)
  assert [p.name for p in (tmp_path / 'new').iterdir()] == ['x.png']


@pytest.mark.parametrize(
  'channels, shape', [(1, (4, 2)), (2, (4, 2)), (3, (4, 2, 3)), (10, (4, 2, 3))]
)
def test_any_number_of_channels_can_be_shown(channels, shape, shown, tmp_path):
  x = kernel(4, 2, channels)
  filters.Picture(count=5, columns=3).plot(x, tmp_path / 'x.png')
  assert [image.shape for image in shown] == [shape] * 5
  assert all(0 <= image.min() and image.max() <= 1 for image in shown)


def test_a_run_draws_its_own_kernel_wherever_its_parts_are(shown, tmp_path):
  mesh = mesh_lib.make_mesh(data=1, fsdp=8)
  split = jax.sharding.NamedSharding(
    mesh, jax.sharding.PartitionSpec(None, None, None, 'fsdp')
  )
  x = kernel()
  params = {'patch_embedding': {'kernel': jax.device_put(x, split)}}
  picture = filters.Picture(None, mesh, count=3)
  with jax.transfer_guard('disallow'):
    path = picture.draw({'params': params}, tmp_path / 'x.png')
  assert path.exists()
  filters.Picture(count=3).plot(x, tmp_path / 'y.png')
  np.testing.assert_array_equal(shown[:3], shown[3:])


def test_impossible_options_are_named(tmp_path):
  with pytest.raises(UserError, match=r'count and columns.*got 0 and 7'):
    filters.Picture(None, None, count=0)
  with pytest.raises(UserError, match=r'kernel.*got \(4, 4\)'):
    filters.Picture().plot(np.ones((4, 4)), tmp_path / 'x.png')
  with pytest.raises(UserError, match='another name; it has stem'):
    filters.Picture(None, None).draw(
      {'params': {'stem': 0}}, tmp_path / 'x.png'
    )
