"""A picture of predictions beside images and labels."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from matplotlib import image as matplotlib_image

from vit_jax.errors import UserError
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.visualize import predictions
from vit_jax.visualize.predictions import Picture

NAMES = ['cat', 'dog', 'tench, Tinca tinca']
GREEN, RED = (26, 138, 74), (209, 36, 47)


@pytest.fixture
def mesh():
  return mesh_lib.make_mesh()


@pytest.fixture
def data(tmp_path):
  """20 images: image i is of one colour, i; its class is i % 3."""
  numbers = np.arange(20, dtype=np.uint8)
  images = np.broadcast_to(numbers[:, None, None, None], (20, 8, 8, 3))
  path = tmp_path / 'data.npz'
  labels = np.int32(numbers % 3)
  np.savez(path, test_images=images, test_labels=labels, class_names=NAMES)
  return dict(name='arrays', path=str(path), split='test')


def says_class_of_pixel(params, batch):
  """Class i % 3 + params for the image of colour i, with probability 0.9."""
  colour = batch['image'][:, 0, 0, 0].astype('int32')
  hot = jax.nn.one_hot((colour + params) % 3, 3)
  return {'logits': jax.numpy.log(hot * 0.85 + 0.05)}


@pytest.fixture
def cells(monkeypatch):
  """What would be drawn, instead of a picture."""
  drawn = []
  monkeypatch.setattr(
    predictions, '_draw', lambda cells, *_: drawn.append(cells)
  )
  return drawn


def draw(picture, shift, path, mesh):
  params = jax.device_put(np.int32(shift), mesh_lib.replicated(mesh))
  with jax.transfer_guard('disallow'):
    return picture.draw(params, path)


def test_each_image_has_its_own_prediction_and_label(
  data, mesh, cells, tmp_path
):
  picture = Picture(says_class_of_pixel, mesh, data=data, ops='', count=13)
  for shift in (0, 1):
    draw(picture, shift, tmp_path / 'x.png', mesh)
  short = ['cat', 'dog', 'tench']
  for cell in cells[0]:
    assert cell.right and cell.predicted == cell.true
    assert cell.true == short[cell.image[0, 0, 0] % 3]
    assert cell.probability == pytest.approx(0.9)
  for cell in cells[1]:
    assert not cell.right
    assert cell.true == short[cell.image[0, 0, 0] % 3]
    assert cell.predicted == short[(cell.image[0, 0, 0] + 1) % 3]


def test_the_sample_is_random_and_always_the_same(data, mesh, cells, tmp_path):
  for seed in (0, 0, 1):
    picture = Picture(
      says_class_of_pixel, mesh, data=data, ops='', count=13, seed=seed
    )
    draw(picture, 0, tmp_path / 'x.png', mesh)
  first, again, other = (
    [int(cell.image[0, 0, 0]) for cell in shown] for shown in cells
  )
  assert first == again
  assert sorted(first) != sorted(other)
  assert len(set(first)) == 13 and max(first) > 13


def test_a_small_split_is_shown_whole(data, mesh, cells, tmp_path):
  picture = Picture(says_class_of_pixel, mesh, data=data, ops='', count=36)
  draw(picture, 0, tmp_path / 'x.png', mesh)
  assert sorted(c.image[0, 0, 0] for c in cells[0]) == list(range(20))


def test_the_picture_marks_right_green_and_wrong_red(data, mesh, tmp_path):
  pixels = []
  for shift, columns in ((0, 4), (1, 4), (0, 2)):
    picture = Picture(
      says_class_of_pixel, mesh, data=data, ops='', count=8, columns=columns
    )
    path = draw(picture, shift, tmp_path / 'new/folder/x.png', mesh)
    rgba = matplotlib_image.imread(path)
    pixels.append(np.uint8(np.round(rgba[..., :3] * 255)))
  right, wrong, tall = pixels

  def count(image, color):
    return int((image == color).all(-1).sum())

  # Eight frames, each 4 sides of 130 dots, 3 dots wide.
  assert count(right, GREEN) > 8 * 4 * 130 * 2 and count(right, RED) == 0
  assert count(wrong, RED) > 8 * 4 * 130 * 2 and count(wrong, GREEN) == 0
  assert right.shape[1] > right.shape[0] and tall.shape[0] > tall.shape[1]
  assert [p.name for p in (tmp_path / 'new/folder').iterdir()] == ['x.png']


def test_a_grey_image_keeps_its_grey(mesh, tmp_path):
  # Not stretched to black and white, which matplotlib does by default.
  path = tmp_path / 'data.npz'
  images = np.full((1, 8, 8, 1), 100, np.uint8)
  np.savez(path, test_images=images, test_labels=np.int32([1]))
  data = dict(name='arrays', path=str(path), split='test', num_classes=3)
  picture = Picture(says_class_of_pixel, mesh, data=data, ops='')
  pixels = matplotlib_image.imread(draw(picture, 0, tmp_path / 'x.png', mesh))
  grey = np.float32([100, 100, 100]) / 255
  assert np.isclose(pixels[..., :3], grey, atol=1e-3).all(-1).sum() > 120**2


def test_the_title_counts_the_shown_images(data, mesh, tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    predictions._figure, 'save', lambda figure, path: drawn.append(figure)
  )

  def says_dog(params, batch):
    return {'logits': jax.nn.one_hot(batch['label'] * 0 + 1, 3) + params}

  picture = Picture(says_dog, mesh, data=data, ops='', count=20)
  draw(picture, 0, tmp_path / 'x.png', mesh)
  title = '7 of 20 right (35.0%) in a random sample of 20 images'
  assert drawn[0].get_suptitle() == title
  words = [text.get_text() for axes in drawn[0].axes for text in axes.texts]
  assert words.count('true: dog') == words.count('✓ dog') == 7


def cell(label, best=1, image=None):
  image = np.zeros((4, 4, 1), np.uint8) if image is None else image
  example = {'image': image, 'label': np.asarray(label)}
  return predictions._Cell(example, np.eye(3)[best], NAMES)


def test_any_class_of_a_multi_hot_label_is_right():
  assert cell([0.0, 1.0, 1.0]).right and cell([0.0, 1.0, 1.0], 2).right
  assert cell([0.0, 1.0, 1.0]).true == 'dog / tench'
  assert not cell([0.0, 1.0, 1.0], 0).right
  assert not cell([0.3, 0.7, 0.0], 0).right
  nothing = cell([0.0, 0.0, 0.0])
  assert not nothing.right and nothing.true == 'none'


def test_without_names_a_class_is_its_number():
  example = {'image': np.zeros((4, 4, 1), np.uint8), 'label': np.asarray(2)}
  unnamed = predictions._Cell(example, np.eye(3)[1], None)
  assert (unnamed.predicted, unnamed.true) == ('1', '2')


def test_images_that_were_normalised_on_the_host_are_shown():
  image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 2, 3)
  shown = cell(1, image=image).image
  assert shown.dtype == np.uint8 and shown.min() == 0 and shown.max() == 255
  assert cell(1, image=np.full((2, 2, 1), 0.5, 'float32')).image.shape == (2, 2)


def test_long_names_end_in_an_ellipsis_within_their_room():
  figure = predictions._figure.new(5, 5)
  for words, shown in (('a very long name of a class', None), ('dog', 'dog')):
    text = figure.text(0, 0, words, size=8.5)
    predictions._figure.shorten(text, 0.6)
    assert text.get_window_extent().width <= 60
    assert text.get_text() == shown or text.get_text()[-1] == '…'


def test_dollars_in_a_name_are_no_formula(data, mesh, tmp_path):
  with np.load(data['path']) as file:
    arrays = dict(file)
  arrays['class_names'] = ['$x^{$', '$', 'a$b$']
  np.savez(data['path'], **arrays)
  picture = Picture(says_class_of_pixel, mesh, data=data, ops='', count=3)
  draw(picture, 0, tmp_path / 'a.png', mesh)
  assert (tmp_path / 'a.png').exists()


def test_impossible_options_are_named(data, mesh):
  with pytest.raises(UserError, match=r"count=0.*columns=9.*loss='mse'"):
    Picture(None, mesh, data=data, ops='', count=0, loss='mse')


def test_importing_it_imports_no_matplotlib():
  code = (
    'import sys; from vit_jax.visualize import predictions; '
    "sys.exit('matplotlib' in sys.modules)"
  )
  done = subprocess.run([sys.executable, '-c', code], check=False)
  assert done.returncode == 0


def test_examples_without_labels_are_refused(mesh, tmp_path):
  matplotlib_image.imsave(tmp_path / '0.png', np.zeros((8, 8, 3)))
  (tmp_path / 'all.csv').write_text('image\n0.png')
  path = str(tmp_path / 'all.csv')
  data = dict(name='table', split='all', path=path, label_key=None)
  with pytest.raises(UserError, match=r"needs images and labels.*\['image'\]"):
    Picture(says_class_of_pixel, mesh, data=data, ops='decode')
