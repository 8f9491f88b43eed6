"""What host ops make of images, told without reading any."""

import pytest

from vit_jax.data import dummy_input


@pytest.mark.parametrize(
  ('ops', 'shape'),
  [
    ('decode|resize((8, 9))|flip_lr', (8, 9, 3)),
    ('decode(1)|resize_small(16)|central_crop(12)', (12, 12, 1)),
    ('decode|resize_small(16)', None),  # depends on the image
    ('resize(8)', None),  # the channels are up to the source
    ('decode|central_crop(2000)', None),  # takes larger images
  ],
)
def test_the_shape_is_told_if_it_is_that_of_all_images(ops, shape):
  assert dummy_input.image_shape(ops) == shape


def test_ops_that_need_more_than_an_image_do_not_tell(monkeypatch):
  def segmented(example, rng):
    return example | {'image': example['mask']}

  monkeypatch.setattr(
    dummy_input.ops_language, 'parse', lambda text, **_: segmented
  )
  assert dummy_input.image_shape('decode|mine.segmented') is None
