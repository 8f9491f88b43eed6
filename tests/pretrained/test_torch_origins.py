"""Training checkpoints of DINO, MAE, DeiT and DINOv2: what shows whose it is.

Their encoders have timm's names, and another way to resize positions each.
"""

import argparse

import jax
import numpy as np
import pytest
import safetensors.numpy

from vit_jax.errors import UserError
from vit_jax.models import _position
from vit_jax.pretrained import catalog, initialize, resample
from vit_jax.pretrained.formats import state_dict

HEADS_OF = dict(num_heads=3)


@pytest.fixture
def encoder(make_weights, tmp_path):
  """Returns a state dict of timm's names without a head."""
  weights = make_weights(num_classes=None)
  catalog.save(weights, tmp_path / 'good', format='timm')
  return safetensors.numpy.load_file(tmp_path / 'good/model.safetensors')


@pytest.fixture
def save(tmp_path):
  """Returns `save(content)`, the path of the nested arrays as a pickle."""
  torch = pytest.importorskip('torch')

  def write(content):
    content = jax.tree.map(
      lambda x: torch.tensor(x) if isinstance(x, np.ndarray) else x, content
    )
    torch.save(content, tmp_path / 'x.pth')
    return tmp_path / 'x.pth'

  return write


def zeros(*shape):
  return np.zeros(shape, np.float32)


def behind(prefix, arrays):
  return {prefix + name: array for name, array in arrays.items()}


DINO_HEAD = {
  'head.mlp.0.weight': zeros(8, 24),
  'head.last_layer.weight_v': zeros(9, 8),
}
MAE_DECODER = {
  'mask_token': zeros(1, 1, 8),
  'decoder_pos_embed': zeros(1, 17, 8),
  'decoder_embed.weight': zeros(8, 24),
  'decoder_blocks.0.norm1.weight': zeros(8),
  'decoder_pred.bias': zeros(5),
}


def teacher_and_student(encoder):
  prefix = 'module.backbone.'
  heads = behind('module.', DINO_HEAD)
  return {
    'student': behind(prefix, encoder) | heads,
    'teacher': behind('backbone.', encoder) | DINO_HEAD,
    'epoch': 3,
  }


KINDS = {
  'DINO, with its head': (lambda e: behind('backbone.', e) | DINO_HEAD, 'dino'),
  'DINO, whole': (teacher_and_student, 'dino'),
  'DINO, by its arguments': (
    lambda e: {
      'teacher': e,
      'args': argparse.Namespace(local_crops_number=8, arch='vit_small'),
    },
    'dino',
  ),
  'MAE, with its decoder': (lambda e: {'model': e | MAE_DECODER}, 'torch'),
  'MAE, of several devices': (
    lambda e: {'model': behind('module.', e | MAE_DECODER)},
    'torch',
  ),
  'MAE, by its arguments': (
    lambda e: {'model': e, 'args': argparse.Namespace(blr=1e-3)},
    'torch',
  ),
  'DeiT, by its arguments': (
    lambda e: {'model': e, 'args': argparse.Namespace(distillation_type='no')},
    'torch',
  ),
  'an encoder alone': (lambda e: {'model': e}, 'timm'),
  'arguments of timm': (
    lambda e: {'state_dict': e, 'args': argparse.Namespace(model='vit')},
    'timm',
  ),
}


@pytest.mark.parametrize('kind', KINDS)
def test_positions_are_resized_as_where_the_weights_are_from(
  kind, encoder, save, make_weights
):
  make, method = KINDS[kind]
  weights = state_dict.read(save(make(encoder)), model=HEADS_OF)
  assert weights.source['resize'] == method
  larger = make_weights(image_shape=(48, 48, 3), num_classes=None)
  found = initialize.initialize(
    dict(params=larger.params), [dict(weights=weights)], on_log=str
  )
  table = weights.params['position_embedding']
  expected = {
    name: resample.resize_position(table, (6, 6), method=name)
    for name in _position.RESIZE
  }
  np.testing.assert_array_equal(
    found['params']['position_embedding'], expected[method]
  )
  for other in expected.keys() - {method}:  # They can be told apart.
    assert np.abs(expected[other] - expected[method]).max() > 1e-3


def test_a_config_of_timm_says_that_the_weights_are_timms(
  make_weights, tmp_path
):
  catalog.save(make_weights(), tmp_path / 'x', format='timm')
  assert state_dict.read(tmp_path / 'x').source['resize'] == 'timm'
  # Also where arrays of the training before are still in the file.
  path = tmp_path / 'x/model.safetensors'
  arrays = safetensors.numpy.load_file(path)
  safetensors.numpy.save_file(arrays | MAE_DECODER, path)
  assert state_dict.read(tmp_path / 'x').source['resize'] == 'timm'


def test_images_of_meta_are_normalized_as_imagenet(encoder, save):
  path = save({'model': encoder, 'args': argparse.Namespace(blr=1e-3)})
  weights = state_dict.read(path, model=HEADS_OF)
  assert weights.preprocess['device_ops'] == "normalize('imagenet')"


def test_the_encoder_of_a_linear_probe_is_read_without_its_head(encoder, save):
  head = {
    'head.0.running_mean': zeros(24),
    'head.0.running_var': zeros(24),
    'head.0.num_batches_tracked': np.zeros((), np.int64),
    'head.1.weight': zeros(5, 24),
    'head.1.bias': zeros(5),
  }
  path = save({'model': encoder | head})
  with pytest.raises(UserError, match=r"BatchNorm .*'num_classes': None"):
    state_dict.read(path, model=HEADS_OF)
  weights = state_dict.read(path, model=HEADS_OF | dict(num_classes=None))
  assert weights.model['num_classes'] is None
  np.testing.assert_array_equal(
    weights.params['encoder/norm/scale'], encoder['norm.weight']
  )


@pytest.mark.parametrize('wrapper', ['', 'module.'])
def test_of_two_models_under_one_key_an_entry_chooses(wrapper, encoder, save):
  """As DINOv2 keeps the state of its training."""
  heads = {'dino_head.mlp.0.weight': zeros(8, 24)}
  student = {k: v + 1 for k, v in encoder.items()} | heads
  both = behind(f'{wrapper}teacher.', behind('backbone.', encoder) | heads)
  both |= behind(f'{wrapper}student.', behind('backbone.', student) | heads)
  path = save({'model': both, 'iteration': 3})
  with pytest.raises(UserError, match='entry= says which'):
    state_dict.read(path, model=HEADS_OF)
  with pytest.raises(UserError, match=r"no entry 'other'; it has .*'teacher'"):
    state_dict.read(path, model=HEADS_OF, entry='other')
  for entry, offset in (
    ('teacher', 0),
    ('student', 1),
    (f'{wrapper}student', 1),
  ):
    weights = state_dict.read(path, model=HEADS_OF, entry=entry)
    np.testing.assert_array_equal(
      weights.params['encoder/norm/scale'],
      encoder['norm.weight'] + offset,
    )
