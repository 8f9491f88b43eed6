"""Preparation of users' images where the weights leave it open."""

import dataclasses
import re

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax.errors import UserError
from vit_jax.inference.model import Model
from vit_jax.pretrained.formats import vit_jax as ours

# Programs of other batch sizes sum in another order.
_close = dict(rtol=0, atol=2e-5)


@pytest.fixture
def images():
  """Returns uint8 [19, 16, 16, 3]."""
  return np.random.default_rng(1).integers(
    0, 256, (19, 16, 16, 3), dtype=np.uint8
  )


def test_unknown_normalisation_is_asked_for(tiny_weights, images, tmp_path):
  weights = dataclasses.replace(tiny_weights(), preprocess=dict(ops='decode'))
  path = tmp_path / 'x.safetensors'
  ours.write(weights, path)
  model = vit_jax.load(path)
  for call in (model, model.predict, model.prepare):
    with pytest.raises(UserError) as e:
      call(images)
    for word in (
      "device_ops='normalize(-1, 1)'",
      "--device_ops='normalize(-1, 1)' on the command line",
      'imagenet',
    ):
      assert word in str(e.value)
    assert 'resize' not in str(e.value)
  model = vit_jax.load(path, device_ops='normalize(-1, 1)')
  assert model(images)['logits'].shape == (19, 5)


def test_without_ops_images_are_resized_with_a_line_about_it(
  tiny_weights, images
):
  weights, log = tiny_weights(), []
  weights.preprocess.pop('ops')
  model = Model(weights, on_log=log.append)
  assert log == []
  large = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
  found = [model(large), model(PIL.Image.fromarray(large))]
  assert len(log) == 1
  for word in (
    "ops='decode|resize((16, 16))'",
    "--ops='decode|resize((16, 16))' on the command line",
  ):
    assert word in log[0]
  expected = Model(tiny_weights())(large)
  for out in found:
    np.testing.assert_array_equal(out['logits'], expected['logits'])


def test_without_ops_and_a_fixed_size_both_are_asked_for(tiny_weights, images):
  weights = tiny_weights(position='sincos2d')
  model = Model(dataclasses.replace(weights, preprocess={}))
  with pytest.raises(UserError, match=r'(?s)--ops=.*--device_ops='):
    model(images)


def test_photos_get_size_and_channels_where_the_ops_leave_them(
  tiny_weights, tmp_path
):
  """As the weights of a run on grey digits of 8x8, which uses no ops."""
  weights = tiny_weights(channels=1)
  weights.preprocess['ops'] = ''
  log = []
  model = Model(weights, on_log=log.append)
  rng = np.random.default_rng(0)
  # Wider than high: newer Pillows resize tall ones in another order.
  photos = [rng.integers(0, 256, (20, w, 3), np.uint8) for w in (30, 40)]
  kinds = []
  for i, photo in enumerate(photos):
    PIL.Image.fromarray(photo).save(tmp_path / f'{i}.png')
    kinds += [PIL.Image.fromarray(photo), tmp_path / f'{i}.png']
  found = model(kinds)['logits']
  model(kinds)
  assert len(log) == 1
  assert 'resizing images to 16x16, because' in log[0]
  small = [
    np.asarray(PIL.Image.fromarray(photo).convert('L').resize((16, 16), 2))
    for photo in photos
  ]
  expected = model(np.stack(small)[..., None])['logits']
  np.testing.assert_allclose(found[::2], expected, **_close)
  np.testing.assert_allclose(found[1::2], expected, **_close)
  assert np.ptp(expected, axis=0).max() > 0.05  # Or any pixels would do.
  # An array is what the data set gave: of another size it is a mistake.
  with pytest.raises(UserError, match=r'20x20 uint8.*expected 16x16'):
    model(np.zeros((20, 20, 1), np.uint8))


def test_ops_that_resize_to_another_size_are_not_corrected(tiny_weights):
  weights = tiny_weights()
  weights.preprocess['ops'] = 'decode|resize(12)'
  photo = PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8))
  with pytest.raises(UserError, match=r'12x12.*expected 16x16'):
    Model(weights)(photo)


def test_the_hint_for_a_grey_model_works(tiny_weights, tmp_path):
  weights = tiny_weights(channels=1)
  model = Model(weights)
  weights.preprocess['ops'] = ''
  with pytest.raises(UserError) as e:
    Model(weights)(np.zeros((20, 20, 3), np.uint8))
  hint = re.search(r"such as ops='([^']*)'", str(e.value))[1]
  weights.preprocess['ops'] = hint
  photo = PIL.Image.fromarray(np.full((20, 30, 3), 9, np.uint8))
  photo.save(tmp_path / 'a.png')
  expected = model(photo)['logits']
  for kind in (photo, tmp_path / 'a.png', (tmp_path / 'a.png').read_bytes()):
    np.testing.assert_allclose(
      Model(weights)(kind)['logits'], expected, **_close
    )


def test_prepared_images_fit_the_module(tiny_weights, images):
  model = Model(tiny_weights())
  image = model.prepare(list(images[:2]))
  np.testing.assert_allclose(image, images[:2] / 127.5 - 1, atol=1e-6)
  assert model.prepare(images[0]).shape == (16, 16, 3)
  out = model.module.apply({'params': model.params}, image, train=False)
  np.testing.assert_allclose(
    out['logits'], model(images[:2])['logits'], **_close
  )
  weights = tiny_weights()
  weights.preprocess['ops'] = ''
  with pytest.raises(UserError, match=r'8x16.*expected 16x16'):
    Model(weights).prepare([images[0], images[1][:8]])
