"""Made-up JPEG files: about the size of real ones, always the same."""

import numpy as np
import pytest

from vit_jax.data.ops.decode import decode_image
from vit_jax.data.sources.synthetic_jpegs import Source
from vit_jax.errors import UserError


def test_synthetic_jpegs_are_about_as_large_as_those_of_imagenet():
  example = Source('train')[7]
  assert decode_image(example['image']).shape == (400, 500, 3)
  assert 60_000 < len(example['image']) < 120_000
  assert example['label'] == 7


def test_records_are_the_same_each_time_and_differ_from_each_other():
  options = dict(image_size=(40, 56), num_examples=70, num_classes=3)
  first, second = (Source('train', **options) for _ in range(2))
  assert len(first) == 70 and first.num_classes == 3
  images = [decode_image(first[i]['image']).astype(int) for i in range(3)]
  np.testing.assert_array_equal(images[1], decode_image(second[1]['image']))
  assert np.abs(images[0] - images[1]).mean() > 20
  assert first[64]['image'] == first[0]['image']
  assert [first[i]['label'] for i in range(4)] == [0, 1, 2, 0]
  halves = [Source(f'train[{x}]', **options) for x in (':50%', '50%:')]
  names = [half.describe(i).split()[2] for half in halves for i in range(35)]
  assert sorted(map(int, names)) == list(range(70))


def test_one_number_is_both_sides():
  image = decode_image(Source('train', image_size=24)[0]['image'])
  assert image.shape == (24, 24, 3)


def test_numbers_out_of_range_are_named():
  with pytest.raises(UserError, match='height=0, num_classes=-1'):
    Source('train', image_size=(0, 5), num_classes=-1)
