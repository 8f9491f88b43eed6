"""Our own .safetensors."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from vit_jax import trees
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog, model_section
from vit_jax.pretrained.formats import npz, vit_jax as ours


def test_everything_comes_back(make_weights, tmp_path):
  weights = make_weights(
    image_shape=(16, 32, 3),
    num_registers=2,
    layer_scale=0.1,
    preprocess=dict(
      image_size=(16, 32), ops='decode', device_ops="normalize('imagenet')"
    ),
  )
  kernel = weights.params['head/kernel']
  weights.params['head/kernel'] = kernel.astype(ml_dtypes.bfloat16)
  weights.params['head/bias'] = weights.params['head/bias'][::-1]
  source = dict(format='x', dialect=dict(names=['a', 'b']), grid=[1, 2])
  weights = dataclasses.replace(
    weights, class_names=['a', 'ü', 'c', 'd', 'e'], source=source
  )
  path = tmp_path / 'x.safetensors'
  ours.write(weights, path)
  found = ours.read(path)
  before, after = trees.flatten(weights.params), trees.flatten(found.params)
  assert set(before) == set(after)
  for name, array in before.items():
    assert after[name].dtype == array.dtype
    np.testing.assert_array_equal(after[name], array)
  assert found.model == weights.model
  assert found.preprocess == weights.preprocess
  assert found.class_names == weights.class_names
  assert found.source == source


def test_weights_without_rows_for_tokens_go_through_ours(google_file, tmp_path):
  arrays = google_file(
    numbers=(0, 1, 0), position='pos_embedding', class_row=False
  )
  np.savez(tmp_path / 'x.npz', **arrays)
  weights = npz.read(tmp_path / 'x.npz')
  ours.write(weights, tmp_path / 'x.safetensors')
  found = ours.read(tmp_path / 'x.safetensors')
  assert found.source == weights.source
  assert found.params.keys() == weights.params.keys()


def test_arrays_of_the_source_in_older_files_are_no_parameters(
  make_weights, tmp_path
):
  weights, path = make_weights(), tmp_path / 'x.safetensors'
  ours.write(weights, path)
  with safetensors.safe_open(path, framework='numpy') as file:
    said = json.loads(file.metadata()['vit_jax'])
  unmapped = dict(cls_token='source:0', rows='source:1')
  said['source'] = dict(format='timm', unmapped=unmapped)
  shapes = {'source:0': (1, 1, 24), 'source:1': (0, 24)}
  aside = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
  arrays = weights.params | aside
  metadata = {'vit_jax': json.dumps(said)}
  safetensors.numpy.save_file(arrays, path, metadata=metadata)
  assert ours.read(path).params.keys() == weights.params.keys()


def test_a_convolutional_stem_comes_back_and_only_ours_can_hold_it(
  make_weights, tmp_path
):
  weights = make_weights(stem='conv', image_shape=(32, 32, 5))
  path = tmp_path / 'x.safetensors'
  ours.write(weights, path)
  found = ours.read(path)
  assert found.model == weights.model
  after = trees.flatten(found.params)
  assert after['patch_embedding/convolution_0/kernel'].shape[:3] == (3, 3, 5)
  for name, array in trees.flatten(weights.params).items():
    np.testing.assert_array_equal(after[name], array, err_msg=name)
  assert model_section.num_channels(after) == 5
  assert model_section.patch_size(after) == (8, 8)
  with pytest.raises(
    UserError, match="stem='conv': Google's ViT has no convolutional stem"
  ):
    npz.write(weights, tmp_path / 'x.npz')
  for format, name in (('timm', 'timm'), ('huggingface', 'Hugging Face')):
    with pytest.raises(
      UserError, match=rf"^{name}'s ViT has no .* stem \(stem='conv'\)"
    ):
      catalog.save(weights, tmp_path / format, format=format)


def test_others_find_the_arrays_under_our_names(make_weights, tmp_path):
  weights = make_weights()
  ours.write(weights, tmp_path / 'x.safetensors')
  arrays = safetensors.numpy.load_file(tmp_path / 'x.safetensors')
  assert set(arrays) == set(trees.flatten(weights.params))


def test_a_file_that_does_not_fit_its_model_is_refused(make_weights, tmp_path):
  weights = make_weights()
  del weights.params['head/bias']
  weights.params['encoder/block_01/extra'] = np.zeros(1)
  ours.write(weights, tmp_path / 'x.safetensors')
  with pytest.raises(UserError) as e:
    ours.read(tmp_path / 'x.safetensors')
  assert 'missing: head/bias' in str(e.value)
  assert 'unexpected: encoder/block_01/extra' in str(e.value)


def test_the_user_may_want_another_model(make_weights, tmp_path):
  ours.write(make_weights(), tmp_path / 'x.safetensors')
  found = ours.read(
    tmp_path / 'x.safetensors', model=dict(num_classes=None, pooling='mean')
  )
  assert not {'head/bias', 'class_token'} & set(found.params)


def test_files_of_other_code_bases_are_distinguished(tmp_path):
  path = tmp_path / 'x.safetensors'
  safetensors.numpy.save_file({'cls_token': np.zeros(3)}, path)
  assert not ours.matches(path)
  with pytest.raises(UserError, match='was not written by vit_jax'):
    ours.read(path)
  path.write_text('<html>')
  with pytest.raises(UserError, match='cannot read'):
    ours.matches(path)


def test_a_newer_version_of_the_format_is_refused(make_weights, tmp_path):
  path = tmp_path / 'x.safetensors'
  ours.write(make_weights(), path)
  with safetensors.safe_open(path, framework='numpy') as file:
    said = json.loads(file.metadata()['vit_jax'])
  said['version'] += 1
  safetensors.numpy.save_file(
    {'a': np.zeros(1)}, path, metadata={'vit_jax': json.dumps(said)}
  )
  with pytest.raises(UserError, match='version 2'):
    ours.read(path)
