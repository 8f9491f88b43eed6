"""The features of whole splits: order, masks, which output, what is refused."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import RunError, UserError
from vit_jax.evaluators import _features, _rows
from vit_jax.parallel import mesh as mesh_lib

SOURCE = """
import numpy as np

class Source:
  class_names = None

  def __init__(self, split, num_classes=7, broken=(), label=None, nan=()):
    self.num_classes = num_classes
    self._size = int(split)
    self._broken, self._label, self._nan = broken, label, nan

  def __len__(self):
    return self._size

  def __getitem__(self, i):
    if i in self._broken:
      raise OSError('truncated')
    image = np.full((2, 2, 3), np.nan if i in self._nan else i, np.float32)
    if self._label == 'none':
      return {'image': image}
    label = i % 7 if self._label is None else self._label
    return {'image': image, 'label': label}

  def describe(self, i):
    return f'picture_{i}.jpg'
"""


def predict(params, batch):
  pixels = params * batch['image'].reshape(len(batch['image']), 4, 3)
  return {
    'features': pixels[:, 0].astype(jnp.bfloat16),
    'tokens': pixels * jnp.arange(4.0)[None, :, None],
    'prefix_tokens': pixels[:, :2] * jnp.array([5.0, 7.0])[None, :, None],
    'image_embedding': pixels[:, 0, :2],
  }


@pytest.fixture
def splits(tmp_path, monkeypatch):
  """Returns a function from two sources' options to their `Splits`."""
  folder = tmp_path / 'my_images'
  folder.mkdir()
  (folder / 'numbered.py').write_text(SOURCE)
  monkeypatch.syspath_prepend(tmp_path)

  def make(train, test, *, devices=8, **options):
    defaults = dict(
      ops='',
      batch_size=8,
      representation='features',
      on_error='stop',
      num_threads=0,
    )
    return _features.Splits(
      predict,
      mesh_lib.make_mesh(devices=jax.devices()[:devices]),
      data_train=dict(train, name='my_images.numbered'),
      data_test=dict(test, name='my_images.numbered'),
      **defaults | options,
    )

  return make


def _extract(splits):
  return splits.extract(jnp.float32(1))


@pytest.mark.parametrize('devices, batch_size', [(1, 4), (8, 3), (3, 64)])
def test_every_image_is_there_once_and_in_order(splits, devices, batch_size):
  train, test, num_classes, facts = _extract(
    splits(
      dict(split='21'), dict(split='5'), devices=devices, batch_size=batch_size
    )
  )
  for split, n in ((train, 21), (test, 5)):
    assert split.x.dtype == np.float32
    expected = np.repeat(np.arange(n, dtype=np.float32)[:, None], 3, axis=1)
    np.testing.assert_array_equal(split.x, expected)
    np.testing.assert_array_equal(split.label, np.arange(n) % 7)
  assert num_classes == 7 and facts == {'num_examples': 5}


def test_the_representation_is_the_output_that_is_named(splits):
  factors = {
    'features': [1] * 3,
    'tokens': [1.5] * 3,  # the mean of 0, 1, 2, 3
    'prefix_tokens': [5] * 3,  # the first: the class token
    'image_embedding': [1] * 2,
    'prefix_tokens+tokens': [5] * 3 + [1.5] * 3,
  }
  for name, factor in factors.items():
    train, *_ = _extract(
      splits(dict(split='9'), dict(split='1'), representation=name)
    )
    expected = np.arange(9)[:, None] * np.array(factor)
    np.testing.assert_array_equal(train.x, expected, err_msg=name)


def test_an_unknown_representation_lists_those_that_exist(splits):
  with pytest.raises(
    UserError, match=r"no output 'pre_logits'; it has .*'tokens': \[8, 4, 3\]"
  ):
    _extract(
      splits(dict(split='9'), dict(split='1'), representation='pre_logits')
    )


def test_several_vectors_for_an_image_are_an_error(splits, monkeypatch):
  def unpooled(params, batch):
    return {'features': batch['image'][:, 0]}

  one = splits(dict(split='9'), dict(split='1'))
  monkeypatch.setattr(one, 'predict', unpooled)
  with pytest.raises(
    UserError, match=r"'features' is \[8, 2, 3\].*'tokens' is the mean"
  ):
    _extract(one)


def test_skipped_images_are_left_out_counted_and_named(splits, caplog):
  made = splits(
    dict(split='12', broken=(4, 9)),
    dict(split='6', broken=(1,)),
    on_error='skip',
  )
  with caplog.at_level(logging.WARNING):
    train, test, _, facts = _extract(made)
  rest = [i for i in range(12) if i not in (4, 9)]
  np.testing.assert_array_equal(train.x[:, 0], rest)
  np.testing.assert_array_equal(test.label, [0, 2, 3, 4, 5])
  assert facts == {'num_examples': 5, 'num_skipped': 3}
  assert 'skipped 2 examples of data_train' in caplog.text
  assert 'picture_9.jpg' in caplog.text


def test_unknown_classes_are_counted_by_the_largest_label(splits):
  *_, num_classes, _ = _extract(
    splits(dict(split='3', num_classes=None), dict(split='6', num_classes=None))
  )
  assert num_classes == 6
  *_, num_classes, _ = _extract(
    splits(dict(split='3', num_classes=None), dict(split='6'))
  )
  assert num_classes == 7


def test_labels_outside_the_classes_are_an_error(splits):
  made = splits(dict(split='3'), dict(split='3', label=-1))
  with pytest.raises(UserError, match=r'data_test has the labels \[-1\]'):
    _extract(made)
  made = splits(
    dict(split='7', num_classes=None), dict(split='2', num_classes=5)
  )
  with pytest.raises(
    UserError, match=r'data_train has the labels \[5, 6\].*5 classes 0\.\.4'
  ):
    _extract(made)


def test_splits_that_do_not_fit_are_errors_before_anything_runs(splits):
  with pytest.raises(UserError, match='data_train has 7 classes and data_test'):
    splits(dict(split='3'), dict(split='3', num_classes=9))
  with pytest.raises(UserError) as e:
    splits(dict(split='3', label='none'), dict(split='3', label=[0.0, 1.0]))
  assert 'data_train has no labels' in str(e.value)
  assert 'data_test has labels float32[2]' in str(e.value)


def test_features_that_are_not_finite_end_the_run(splits):
  made = splits(dict(split='9'), dict(split='9', nan=(3, 5)))
  with pytest.raises(
    RunError, match="'features' is not finite for 2 of 9 images of data_test"
  ):
    _extract(made)


def test_unused_outputs_are_not_computed():
  def costly(params, batch):
    tokens = jnp.linalg.inv(jnp.tile(jnp.eye(3)[None], (8, 1, 1)) * params)
    return predict(params, batch) | {'tokens': tokens}

  mesh = mesh_lib.make_mesh()
  batch = {
    'image': jnp.zeros((8, 2, 2, 3)),
    'label': jnp.zeros(8, jnp.int32),
    'mask': jnp.ones(8, bool),
  }
  for representation, computed in (('features', False), ('tokens', True)):
    program = _rows._call.lower(
      jnp.float32(1),
      batch,
      function=_features._represent,
      options=(
        ('predict', jax.jit(costly)),
        ('representation', representation),
      ),
      out_sharding=mesh_lib.replicated(mesh),
    )
    assert ('getrf' in program.compile().as_text()) == computed


def test_rows_are_split_over_the_devices_and_padded_with_zeros():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  x = np.arange(1, 11, dtype=np.float32).reshape(5, 2)
  rows = _features.put_rows(x, mesh)
  np.testing.assert_array_equal(rows, np.pad(x, ((0, 3), (0, 0))))
  assert rows.sharding.shard_shape(rows.shape) == (2, 2)
  whole = _features.put(x, mesh)
  np.testing.assert_array_equal(whole, x)
  assert whole.sharding.is_fully_replicated
