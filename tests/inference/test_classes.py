"""Probabilities and names of classes."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.inference import classes
from vit_jax.pretrained.weights import Weights


def _weights(num_classes=3, names=None, **source):
  return Weights({}, dict(num_classes=num_classes), {}, names, source)


def _best(logits, **options):
  options = dict(loss='softmax', class_names=None, top_k=5) | options
  return classes.best(np.float32(logits), **options)


def test_softmax_and_sigmoid_by_hand():
  found = _best(np.log([1, 6, 3]), class_names=['a', 'b', 'c'], top_k=2)
  assert [(p.name, p.label) for p in found] == [('b', 1), ('c', 2)]
  np.testing.assert_allclose([p.probability for p in found], [0.6, 0.3])
  found = _best(np.log([1, 1 / 3]), loss='sigmoid')
  assert [p.name for p in found] == ['0', '1']
  np.testing.assert_allclose([p.probability for p in found], [0.5, 0.25])


def test_large_logits_do_not_overflow_and_keep_their_order():
  for loss in classes.LOSSES:
    found = _best([999, -999, 1000], loss=loss)
    assert [p.label for p in found] == [2, 0, 1]
    assert all(0 <= p.probability <= 1 for p in found)


def test_equals_come_in_the_order_of_their_numbers():
  found = _best([0, 1] * 100, top_k=200)
  assert [p.label for p in found] == [*range(1, 200, 2), *range(0, 200, 2)]


def test_top_k_is_at_least_one():
  with pytest.raises(UserError, match='top_k is at least 1; got 0'):
    _best([1], top_k=0)


@pytest.mark.parametrize(
  ('weights', 'loss'),
  [
    (_weights(), 'softmax'),
    (_weights(loss='sigmoid'), 'sigmoid'),
    (_weights(21843, name='augreg-B/16'), 'sigmoid'),
    (_weights(21843), 'softmax'),
    (_weights(1000, name='augreg-B/16-i1k-384'), 'softmax'),
    (_weights(1000, name='deit3-B/16-224-1k'), 'sigmoid'),
    (_weights(1000, name='deit3-B/16-224-21k'), 'softmax'),
    (_weights(1000, name='timm/deit3_huge_patch14_224.fb_in1k'), 'sigmoid'),
    (_weights(1000, name='timm/deit3_x.fb_in22k_ft_in1k'), 'softmax'),
    (_weights(1000, name='deit3-B/16-224-1k', loss='softmax'), 'softmax'),
  ],
)
def test_the_loss_is_that_of_training(weights, loss):
  assert classes.loss_of(weights, None) == loss
  assert classes.loss_of(weights, 'sigmoid') == 'sigmoid'


def test_an_unknown_loss_is_refused():
  with pytest.raises(UserError, match="softmax, sigmoid; got 'hinge'"):
    classes.loss_of(_weights(), 'hinge')


def test_names_come_from_the_user_the_weights_or_imagenet(tmp_path):
  names = ['x', 'y', 'ü z']
  weights = _weights(names=['a', 'b', 'c'])
  assert classes.names_of(weights, None) == ['a', 'b', 'c']
  assert classes.names_of(weights, names) == names
  (tmp_path / 'names.json').write_text('["x", "y", "ü z"]')
  (tmp_path / 'names.txt').write_text('x\ny\nü z\n', 'utf-8-sig')
  for name in ('names.json', 'names.txt'):
    assert classes.names_of(weights, tmp_path / name) == names
    assert classes.names_of(weights, str(tmp_path / name)) == names
  assert classes.names_of(_weights(), None) is None
  imagenet = _weights(1000, name='deit-S/16')
  assert classes.names_of(imagenet, None)[281] == 'tabby'
  # A thousand classes of someone's own are something else.
  assert classes.names_of(_weights(1000), None) is None
  assert classes.names_of(_weights(1000), 'imagenet')[0] == 'tench'
  assert classes.names_of(_weights(21843, name='augreg-S/16'), None) is None
  assert classes.names_of(_weights(None, names=['a']), None) is None


def test_names_that_do_not_fit_are_refused(tmp_path):
  (tmp_path / 'names.json').write_text('{"a": 1}')
  (tmp_path / 'broken.json').write_text('[')
  for given, words in (
    (['a', 'b'], ['2 names', '3 classes']),
    ('imagenet', ['1000 names', '3 classes']),
    (tmp_path / 'names.json', ['names.json', 'no list']),
    (tmp_path / 'broken.json', ['broken.json', 'JSON list']),
    (tmp_path / 'absent.txt', ['absent.txt', 'imagenet']),
  ):
    with pytest.raises(UserError) as e:
      classes.names_of(_weights(), given)
    for word in words:
      assert word in str(e.value)


def test_imagenet_has_a_thousand_different_names_in_order():
  names = classes.names_of(_weights(1000), 'imagenet')
  assert len(names) == len(set(names)) == 1000
  assert not any('\n' in name or name != name.strip() for name in names)
  # From the list in the README of vision_transformer's colab and elsewhere.
  for i, name in {
    0: 'tench',
    1: 'goldfish',
    134: 'crane (bird)',
    207: 'golden retriever',
    388: 'giant panda',
    517: 'crane (machine)',
    817: 'sports car',
    954: 'banana',
    999: 'toilet tissue',
  }.items():
    assert names[i] == name
