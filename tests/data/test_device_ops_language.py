"""Ops on the device: normalization, and the text that lists ops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from vit_jax import lookup
from vit_jax.data import device_ops, device_ops_language
from vit_jax.errors import UserError

USER_OPS = """
import jax

def draw(key='drawn'):
  def op(batch, rng, *, train):
    if not train:
      return batch
    return batch | {key: jax.random.uniform(rng, (8,))}
  return op

def brighten():
  def op(batch, rng, *, train):
    factor = jax.random.uniform(rng, (len(batch['image']), 1, 1, 1))
    return batch | {'image': batch['image'] * factor}
  return op

def onehot(num_classes):
  def op(batch, rng, *, train):
    return batch | {'label': jax.nn.one_hot(batch['label'], num_classes)}
  return op
"""
DOUBLE = """
def double():
  return lambda batch, rng, *, train: batch | {'image': 2 * batch['image']}
"""


@pytest.fixture
def user_ops(tmp_path, monkeypatch):
  (tmp_path / 'their_device_ops.py').write_text(USER_OPS)
  monkeypatch.syspath_prepend(tmp_path)


def run(text, image, train=True):
  op = device_ops_language.parse(text)
  return op({'image': image}, jax.random.key(0), train=train)['image']


def levels(channels=3):
  """Every uint8 value in every channel: `[1, 16, 16, C]`."""
  values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
  return np.repeat(values, channels, axis=-1)


@pytest.mark.parametrize('low, high', [(-1, 1), (0, 1), (-2.5, 0.5)])
@pytest.mark.parametrize('train', [True, False])
def test_a_range_is_met_with_exact_ends(low, high, train):
  got = np.asarray(run(f'normalize({low}, {high})', jnp.array(levels()), train))
  assert got.dtype == np.float32
  assert got.min() == low and got.max() == high
  want = low + levels() / 255.0 * (high - low)
  np.testing.assert_allclose(got, want, atol=5e-7)


def test_inception_statistics_are_the_range_of_minus_one_to_one():
  image = jnp.array(levels())
  np.testing.assert_allclose(
    run("normalize('inception')", image),
    run('normalize(-1, 1)', image),
    atol=3e-7,
  )


@pytest.mark.parametrize('name', ['imagenet', 'clip'])
def test_named_statistics_are_subtracted_and_divided_per_channel(name):
  # Known from torchvision's and OpenAI's code.
  mean, std = {
    'imagenet': ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    'clip': (
      [0.48145466, 0.4578275, 0.40821073],
      [0.26862954, 0.26130258, 0.27577711],
    ),
  }[name]
  want = (levels() / 255.0 - mean) / std
  got = run(f'normalize({name!r})', jnp.array(levels()))
  np.testing.assert_allclose(got, want, atol=1e-6)
  got = run(f'normalize(mean={mean}, std={std})', jnp.array(levels()))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_any_number_of_channels_can_have_its_statistics():
  mean, std = np.linspace(0.1, 0.9, 10), np.linspace(0.2, 0.4, 10)
  text = f'normalize(mean={mean.tolist()}, std={std.tolist()})'
  want = (levels(10) / 255.0 - mean) / std
  got = run(text, jnp.array(levels(10)))
  np.testing.assert_allclose(got, want, atol=1e-6)
  got = run('normalize(mean=0.5, std=0.25)', jnp.array(levels(10)))
  np.testing.assert_allclose(got, (levels(10) / 255.0 - 0.5) * 4, atol=1e-6)


def test_images_that_are_not_uint8_need_their_largest_value():
  deep = jnp.full([1, 2, 2, 1], 65535, jnp.uint16)
  assert run('normalize(-1, 1, max_value=65535)', deep).max() == 1
  light = jnp.full([1, 2, 2, 1], 0.5)
  assert run('normalize(-1, 1, max_value=1)', light).max() == 0
  with pytest.raises(
    UserError, match='float32, not uint8: are they normalized'
  ):
    run('normalize(-1, 1)|normalize(-1, 1)', jnp.array(levels()))
  with pytest.raises(UserError, match='uint16, not uint8'):
    run('normalize(-1, 1)', deep)


def test_it_runs_inside_jit_and_keeps_the_batch_where_it_is():
  mesh = jax.make_mesh((8,), ('data',))
  sharding = NamedSharding(mesh, P('data'))
  image = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 3), np.uint8)
  batch = {
    'image': jax.device_put(image, sharding),
    'label': jax.device_put(np.arange(8, dtype=np.int32), sharding),
  }
  op = device_ops_language.parse("normalize('imagenet')")
  step = jax.jit(lambda batch, key: op(batch, key, train=True))
  compiled = step.lower(batch, jax.random.key(0)).compile()
  assert 'all-' not in compiled.as_text()  # No image crosses to another device.
  got = step(batch, jax.random.key(0))
  assert got['image'].sharding.is_equivalent_to(sharding, 4)
  alone = run("normalize('imagenet')", jnp.array(image))
  np.testing.assert_allclose(got['image'], alone, atol=1e-6)
  np.testing.assert_array_equal(got['label'], np.arange(8))


def test_no_ops_leave_the_batch_as_it_is():
  batch = {'image': levels()}
  assert device_ops_language.parse('')(batch, None, train=True) is batch


def test_other_ops_do_not_change_the_draws_of_an_op(user_ops):
  draw = "their_device_ops.draw('a')"
  batch, key = {'image': jnp.array(levels())}, jax.random.key(3)
  alone = device_ops_language.parse(draw, trusted=True)(batch, key, train=True)
  text = f"normalize(-1, 1)|{draw}|their_device_ops.draw('b')"
  more = device_ops_language.parse(text, trusted=True)(batch, key, train=True)
  np.testing.assert_array_equal(alone['a'], more['a'])
  assert not np.any(np.asarray(more['a']) == np.asarray(more['b']))
  other = device_ops_language.parse(draw, trusted=True)
  other = other(batch, jax.random.key(4), train=True)
  assert not np.any(np.asarray(alone['a']) == np.asarray(other['a']))


def test_train_is_handed_on_and_evaluation_needs_no_key(user_ops):
  text = 'normalize(0, 1)|their_device_ops.draw'
  op = device_ops_language.parse(text, trusted=True)
  batch = {'image': jnp.array(levels())}
  assert 'drawn' in op(batch, jax.random.key(0), train=True)
  assert 'drawn' not in op(batch, None, train=False)


def test_the_input_batch_is_not_changed():
  batch = {'image': jnp.array(levels()), 'label': jnp.arange(1)}
  before = dict(batch)
  device_ops_language.parse('normalize(-1, 1)')(batch, None, train=False)
  assert batch.keys() == before.keys()
  assert all(batch[key] is before[key] for key in before)


@pytest.mark.parametrize(
  'text, message',
  [
    ('normalise(-1, 1)', "unknown op 'normalise' (did you mean 'normalize'?)"),
    ('normalize(-1, 1', "'(' was never closed"),
    ('parse', "unknown op 'parse'"),
    ('normalize', 'expected normalize(low, high)'),
    ('normalize(-1)', 'expected normalize(low, high)'),
    ('normalize(-1, 1, mean=0.5, std=0.5)', 'expected normalize(low, high)'),
    ('normalize(mean=0.5)', 'expected normalize(low, high)'),
    ("normalize('imagnet')", "there are ['imagenet', 'inception', 'clip']"),
    ('normalize(mean=0.5, std=0)', 'std must be positive'),
    ("normalize(mean='a', std=1)", 'could not convert'),
    ('normalize(-1, 1, mxa_value=3)', "(did you mean 'max_value'?)"),
  ],
)
def test_mistakes_are_explained(text, message):
  with pytest.raises(UserError) as e:
    device_ops_language.parse(text)
  assert message in str(e.value)


def test_statistics_of_another_number_of_channels_are_refused():
  message = r"normalize\('imagenet'\): .* 3 channels; the images have 4"
  with pytest.raises(UserError, match=message):
    run("normalize('imagenet')", jnp.array(levels(4)))


def test_a_file_in_the_folder_is_an_op(tmp_path, monkeypatch):
  folder = tmp_path / 'data' / 'device_ops'
  folder.mkdir(parents=True)
  (folder / 'double.py').write_text(DOUBLE)
  (folder / '_helper.py').write_text(DOUBLE.replace('double', 'helper'))
  monkeypatch.setattr(lookup, '_PACKAGE', tmp_path)
  monkeypatch.setattr(device_ops, '__path__', [str(folder)])
  image = jnp.ones((2, 4, 4, 3))
  op = device_ops_language.parse('double', trusted=True)
  assert op({'image': image}, None, train=False)['image'].max() == 2
  with pytest.raises(
    UserError, match="unknown op 'helper'; there are: double;"
  ):
    device_ops_language.parse('helper', trusted=True)
  with pytest.raises(UserError, match=r'double.* may only be'):
    device_ops_language.parse('double')  # Of a file: the list is closed.


def test_a_batch_wise_op_of_the_users_acts_before_mixing(user_ops):
  """The partner that is mixed in is the row that is in the batch."""
  batch = {'image': jnp.ones((8, 4, 4, 1)), 'label': jnp.arange(8)}
  text = 'their_device_ops.brighten'
  before = device_ops_language.parse(text, trusted=True)
  bright = before(batch, jax.random.key(0), train=True)['image']
  assert len(set(bright[:, 0, 0, 0].tolist())) == 8
  op = device_ops_language.parse(f'{text}|mixup(1.0)', 8, trusted=True)
  mixed = op(batch, jax.random.key(0), train=True)
  weight = mixed['label'][0, 0]
  np.testing.assert_allclose(
    mixed['image'],
    weight * bright + (1 - weight) * bright[::-1],
    rtol=1e-5,
  )


def test_the_number_of_classes_reaches_an_op_of_the_users(user_ops):
  batch = {'image': jnp.array(levels()), 'label': jnp.array([1])}
  for text, num in (('', 3), ('(num_classes=3)', None)):
    text = f'their_device_ops.onehot{text}'
    op = device_ops_language.parse(text, num, trusted=True)
    got = op(batch, None, train=False)['label']
    np.testing.assert_array_equal(got, [[0, 1, 0]])
