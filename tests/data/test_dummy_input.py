"""Made-up data that has the shapes of a recipe's own after its host ops."""

import ml_collections
import pytest

from vit_jax.configs import common
from vit_jax.data import dummy_input, ops_language, pipeline
from vit_jax.errors import UserError

OWN = """
import numpy as np

def letters(length):
  def op(example, rng):
    codes = np.frombuffer(example['text'].encode()[:length], np.uint8)
    return example | {'text': np.resize(codes.astype(np.int32), length)}
  return op
"""


@pytest.mark.parametrize(
  ('ops', 'shape'),
  [
    ('decode|resize((8, 9))|flip_lr', (8, 9, 3)),
    ('decode(1)|resize_small(16)|central_crop(12)', (12, 12, 1)),
    ('decode|resize_small(16)', None),  # depends on the image
    ('resize(8)', None),  # the channels are up to the source
    ('decode|central_crop(2000)', None),  # takes larger images
    ('decode|multi_crop(32, local_size=16)', (32, 32, 3)),  # of one view
  ],
)
def test_the_shape_is_known_if_all_images_have_it(ops, shape):
  assert dummy_input.image_shape(ops, trusted=True) == shape


def test_ops_that_need_other_fields_determine_no_shape(monkeypatch):
  def segmented(example, rng):
    return example | {'image': example['mask']}

  monkeypatch.setattr(ops_language, 'parse', lambda text, **_: segmented)
  assert dummy_input.image_shape('decode|mine.segmented') is None


def shapes(section):
  """Returns the shapes of the fields of the input of a section."""
  spec = pipeline.TrainInput(**section, seed=0).element_spec()
  return {name: x.shape for name, x in spec.items()}


def test_every_field_has_the_shape_of_the_recipes_ops(tmp_path, monkeypatch):
  (tmp_path / 'their_texts.py').write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  views = "multi_crop(32, num_local=3, local_size=16, local_ops='flip_lr')"
  section = dict(
    data=dict(name='tfds', split='train', dataset='not_on_this_machine'),
    ops=f'decode|{views}|onehot(7)|their_texts.letters(5)',
    batch_size=8,
  )
  assert shapes(dummy_input.input_section(section, 7)) == {
    'image': (8, 2, 32, 32, 3),
    'local_image': (8, 3, 16, 16, 3),
    'label': (8, 7),
    'text': (8, 5),
  }
  section['ops'] = 'decode(1)|resize_small(8)'
  with pytest.raises(UserError, match='give it with --image_size'):
    dummy_input.input_section(section, 7)
  # Of another shape than any image that is made up without a size.
  made_up = dummy_input.input_section(section, 7, (16, 32))
  assert shapes(made_up) == {'image': (8, 8, 16, 1), 'label': (8,)}
  made_up['data'] = dummy_input.data_section(7, encoded=True, num_examples=8)
  assert shapes(made_up) == {'image': (8, 8, 10, 1), 'label': (8,)}


def test_a_smoke_run_of_views_is_small():
  config = ml_collections.ConfigDict()
  config.model = dict(name='vit', variant='S/16')
  config.optimizer = dict(name='adamw')
  config.input = dict(
    data=dict(name='tfds', split='train'),
    ops='decode|multi_crop(224, num_local=2, local_size=96)',
    batch_size=1024,
  )
  assert shapes(common.smoke(config).to_dict()['input']) == {
    'image': (8, 2, 16, 16, 3),
    'local_image': (8, 2, 16, 16, 3),
    'label': (8,),
  }
