"""Models of `vit_jax.load`: right answers for any images, compiled once."""

import dataclasses
import io

import jax
import ml_dtypes
import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import lookup, trees
from vit_jax.errors import UserError
from vit_jax.inference.model import Model
from vit_jax.parallel import mesh as mesh_lib
from vit_jax.pretrained.formats import vit_jax as ours


@pytest.fixture
def images():
  """Returns uint8 [19, 16, 16, 3]."""
  return np.random.default_rng(1).integers(
    0, 256, (19, 16, 16, 3), dtype=np.uint8
  )


@pytest.fixture
def expected(tiny_weights):
  """Returns the outputs for uint8 images by the model alone."""
  weights = tiny_weights()
  module = lookup.build('models', weights.model, 'Model')

  def outputs(images):
    x = images.astype(np.float32) / 255 * 2 - 1
    params = trees.unflatten(weights.params)
    return jax.jit(module.apply)({'params': params}, x)

  return outputs


# Programs of other batch sizes sum in another order.
_close = dict(rtol=0, atol=2e-5)


def test_outputs_are_those_of_the_model_on_normalised_images(
  tiny_weights, images, expected
):
  found = Model(tiny_weights())(images)
  assert set(found) == {'logits', 'features', 'tokens', 'prefix_tokens'}
  for name, value in expected(images).items():
    assert isinstance(found[name], np.ndarray)
    assert found[name].dtype == np.float32
    np.testing.assert_allclose(found[name], value, **_close, err_msg=name)


def test_one_compilation_serves_any_number_of_images(tiny_weights, images):
  model, compiled = Model(tiny_weights()), []

  def listen(name, seconds, **_):
    if name == '/jax/core/compile/backend_compile_duration':
      compiled.append(name)

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    model.predict(images[0])
    assert len(compiled) == 1
    for number in (1, 3, 8, 19):
      assert len(model(images[:number])['logits']) == number
      model.predict(list(images[:number]), top_k=number)
    model(images[:2], outputs=['features'])
    assert len(compiled) == 1
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)


def test_answers_do_not_depend_on_who_shares_the_batch(tiny_weights, images):
  model = Model(tiny_weights(), batch_size=8)
  together = model(images)['logits']
  assert np.ptp(together, axis=0).min() > 0.1  # Or any order would do.
  for i in (0, 7, 8, 18):
    alone = model(images[i])['logits']
    np.testing.assert_allclose(alone, together[i], **_close)


@pytest.mark.parametrize(
  ('size', 'axes'), [(1, {}), (8, {}), (8, dict(fsdp=4)), (4, dict(tensor=2))]
)
def test_every_mesh_gives_the_same(tiny_weights, images, expected, size, axes):
  mesh = mesh_lib.make_mesh(**axes, devices=jax.devices()[:size])
  model = Model(tiny_weights(), batch_size=5, mesh=mesh)
  assert model.batch_size == {1: 5, 8: 8, 4: 6}[size]
  kernel = model.params['encoder']['block_00']['mlp']['up']['kernel']
  assert len(kernel.sharding.device_set) == size
  logits = model(images)['logits']
  np.testing.assert_allclose(logits, expected(images)['logits'], **_close)


def test_all_kinds_of_images_get_the_same_answer(
  tiny_weights, images, expected, tmp_path
):
  model, path = Model(tiny_weights()), tmp_path / 'a.png'
  picture = PIL.Image.fromarray(images[0])
  picture.save(path)
  data = io.BytesIO()
  picture.save(data, format='PNG')
  kinds = [images[0], path, str(path), picture, data.getvalue()]
  kinds += [jax.numpy.asarray(images[0])]
  logits = expected(images[:1])['logits'][0]
  for kind in kinds:
    np.testing.assert_allclose(model(kind)['logits'], logits, **_close)
  for row in model(kinds)['logits']:
    np.testing.assert_allclose(row, logits, **_close)


def test_one_image_has_no_leading_axis_and_a_list_of_one_has(
  tiny_weights, images
):
  model = Model(tiny_weights())
  assert model(images[0])['tokens'].shape == (4, 32)
  assert model(images[:1])['tokens'].shape == (1, 4, 32)
  assert model([images[0]])['tokens'].shape == (1, 4, 32)
  assert model.predict(images[0])[0].name in model.class_names
  assert len(model.predict([images[0]])) == 1
  assert model.predict([]) == []
  with pytest.raises(UserError, match='no images'):
    model([])


def test_predictions_are_names_with_probabilities(
  tiny_weights, images, expected
):
  model = Model(tiny_weights())
  logits = np.asarray(expected(images)['logits'])
  probabilities = np.asarray(jax.nn.softmax(logits))
  for i, found in enumerate(model.predict(images, top_k=3)):
    assert len(found) == 3
    order = np.argsort(-logits[i])[:3]
    assert [p.label for p in found] == order.tolist()
    assert [p.name for p in found] == [model.class_names[k] for k in order]
    np.testing.assert_allclose(
      [p.probability for p in found], probabilities[i, order], atol=1e-5
    )
  # One binary decision for each class.
  source = dict(loss='sigmoid')
  model = Model(dataclasses.replace(tiny_weights(), source=source))
  found = sorted(model.predict(images[0]), key=lambda p: p.label)
  np.testing.assert_allclose(
    [p.probability for p in found], jax.nn.sigmoid(logits[0]), atol=1e-5
  )


def test_the_ops_prepare_images_of_any_size(tiny_weights, expected):
  weights = dataclasses.replace(
    tiny_weights(),
    preprocess=dict(
      image_size=(16, 16),
      # No labels come with images.
      ops='decode|central_crop(16)|onehot(5)',
      device_ops='normalize(-1, 1)',
    ),
  )
  large = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
  found = Model(weights)(large)['logits']
  inside = large[None, 7:23, 2:18]
  np.testing.assert_allclose(found, expected(inside)['logits'][0], **_close)


def test_images_that_cannot_be_read_keep_their_place(
  tiny_weights, images, tmp_path
):
  (tmp_path / 'b.jpg').write_bytes(b'\xff\xd8 broken')
  model = Model(tiny_weights(), batch_size=8)
  good = model(images)['logits']
  items = [*images[:3], tmp_path / 'b.jpg', *images[3:], tmp_path / 'c.jpg']
  rows = list(model.stream(items, outputs=['logits']))
  assert len(rows) == 21
  for i, name in ((3, 'b.jpg'), (20, 'c.jpg')):
    assert isinstance(rows[i], UserError)
    assert str(rows[i]).startswith(str(tmp_path / name))
  kept = [row['logits'] for i, row in enumerate(rows) if i not in (3, 20)]
  np.testing.assert_allclose(kept, good, **_close)
  with pytest.raises(UserError, match=f'^{tmp_path / "b.jpg"}: decode: '):
    model(items)
  with pytest.raises(UserError, match=f'^{tmp_path / "c.jpg"}: cannot be read'):
    model.predict(tmp_path / 'c.jpg')
  # A batch in which none can be read.
  assert len(list(model.stream([tmp_path / 'c.jpg'] * 9))) == 9


def test_images_that_cannot_share_a_batch_are_named(tiny_weights, images):
  weights = tiny_weights()
  weights = dataclasses.replace(
    weights, preprocess=weights.preprocess | dict(ops='')
  )
  model = Model(weights)
  with pytest.raises(UserError) as e:
    model([images[0], images[1][:8]])
  for word in ('image 1', '8x16', 'expected 16x16', 'decode|resize((16, 16))'):
    assert word in str(e.value)
  # Floats would lose what lies behind the point.
  with pytest.raises(UserError, match=r'float32 after the ops.*uint8'):
    model([images[0], images[1].astype(np.float32)])
  with pytest.raises(UserError, match=r'7 channels.*takes 3'):
    model(np.zeros((16, 16, 7), np.uint8))


def test_positions_that_are_computed_take_any_size(tiny_weights):
  weights = tiny_weights(position='sincos2d')
  preprocess = weights.preprocess | dict(ops='')
  model = Model(dataclasses.replace(weights, preprocess=preprocess))
  for side, tokens in ((16, 4), (24, 9)):
    image = np.zeros((2, side, side, 3), np.uint8)
    assert model(image)['tokens'].shape == (2, tokens, 32)
  with pytest.raises(UserError, match='expected 16x16'):
    model([image[0, :16, :16], image[0]])


def test_a_model_without_a_head_has_features_and_says_so(tiny_weights, images):
  model = Model(tiny_weights(num_classes=None))
  assert 'logits' not in model(images)
  with pytest.raises(UserError, match=r'no output logits \(there is no'):
    model.predict(images)
  with pytest.raises(UserError, match='no output attention; it has'):
    Model(tiny_weights())(images, outputs=['attention'])


def test_only_requested_outputs_are_returned(tiny_weights, images):
  found = Model(tiny_weights())(images, outputs=['features', 'logits'])
  assert set(found) == {'features', 'logits'}


def test_a_saved_model_answers_as_before(tiny_weights, images, tmp_path):
  model = Model(tiny_weights(pooling='mean'))
  before = model(images)['logits']
  for name, format in (
    ('a.safetensors', None),
    ('a.npz', None),
    ('b.npz', 'big_vision_npz'),
    ('timm', 'timm'),
    ('huggingface', 'huggingface'),
  ):
    model.save(tmp_path / name, format=format)
    # Preprocessing is not for every format.
    after = vit_jax.load(
      tmp_path / name, ops='decode', device_ops='normalize(-1, 1)'
    )
    logits = after(images)['logits']
    np.testing.assert_allclose(logits, before, **_close, err_msg=name)


def test_options_of_the_user_win_and_are_saved(tiny_weights, tmp_path):
  ours.write(tiny_weights(), tmp_path / 'a.safetensors')
  model = vit_jax.load(
    tmp_path / 'a.safetensors',
    ops='decode|resize_small(16)|central_crop(16)',
    device_ops="normalize('imagenet')",
    class_names=['v', 'w', 'x', 'y', 'z'],
    loss='sigmoid',
    model=dict(dtype='bfloat16'),
  )
  model.save(tmp_path / 'b.safetensors')
  again = vit_jax.load(tmp_path / 'b.safetensors')
  assert again.class_names == ['v', 'w', 'x', 'y', 'z']
  assert again.loss == 'sigmoid'
  assert again.config['dtype'] == 'bfloat16'
  assert again.weights.preprocess == dict(
    image_size=(16, 16),
    ops='decode|resize_small(16)|central_crop(16)',
    device_ops="normalize('imagenet')",
  )
  embedding = (8 * 8 * 3 + 1) * 32 + 32 + 2 * 2 * 32
  block = 4 * (32 + 1) * 32 + (32 + 1) * 128 + (128 + 1) * 32
  norms, head = 3 * 2 * 32, (32 + 1) * 5
  assert again.num_params == embedding + block + norms + head == 19_269
  assert repr(again) == 'Model(mu/8, 19,269 parameters, 5 classes)'


def test_scanned_blocks_and_half_precision_files_work(
  tiny_weights, images, expected
):
  weights = tiny_weights()
  half = dataclasses.replace(
    weights,
    params=jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), weights.params),
    model=weights.model | dict(scan=True),
  )
  model = Model(half)
  assert 'blocks' in model.params['encoder']
  assert {x.dtype.name for x in jax.tree.leaves(model.params)} == {'float32'}
  # Their eight bits are good for two digits.
  np.testing.assert_allclose(
    model(images)['logits'], expected(images)['logits'], atol=0.3
  )


def test_grey_models_take_colour(tiny_weights):
  model = Model(tiny_weights(channels=1))
  grey = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
  colour = np.repeat(grey[:, :, None], 3, axis=2)
  found = [model(x)['logits'] for x in (grey, grey[:, :, None], colour)]
  np.testing.assert_allclose(found[1], found[0])
  np.testing.assert_allclose(found[2], found[0], **_close)


def test_a_batch_size_of_none_is_refused(tiny_weights):
  with pytest.raises(UserError, match='batch_size is at least 1; got 0'):
    Model(tiny_weights(), batch_size=0)
