"""Roles of fields, ops on every image field, sources without labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.data import device_ops_language, fields, pipeline
from vit_jax.errors import UserError
from vit_jax.training import train

# Views of one image whose logits should agree: needs no label.
OBJECTIVE = """
import jax
import jax.numpy as jnp
from vit_jax.objectives import supervised

class Objective:
  mean_over_examples = True

  def __init__(self, model):
    self._model = model
    self._inner = supervised.Objective(model)

  def init(self, rng, batch):
    image = batch['image']
    one = jax.ShapeDtypeStruct((1, *image.shape[2:]), image.dtype)
    return self._inner.init(rng, {'image': one})

  def loss(self, params, state, batch, rng):
    assert batch['depth'].dtype == jnp.uint8
    logits = []
    for name in ('image', 'local_image'):
      views = batch[name]
      assert views.ndim == 5 and views.dtype == jnp.float32, (name, views)
      for i in range(views.shape[1]):
        out = self._model.apply({'params': params}, views[:, i], train=False)
        logits.append(out['logits'] + out['features'].mean())
    logits = jnp.stack(logits)
    loss = jnp.mean((logits - logits.mean()) ** 2)
    brightest = jnp.max(jnp.abs(batch['local_image']))
    return loss, ({'loss': loss, 'brightest': brightest}, state.extra)

  def flops(self, params, batch):
    assert batch['local_image'].dtype == jnp.float32
    return batch['local_image'].size

  def predict(self, params, batch):
    return self._inner.predict(params, batch)
"""

SOURCE = """
import numpy as np

class Source:
  fields = {'image': 'image', 'depth': 'mask'}

  def __init__(self, split):
    pass

  def __len__(self):
    return 16

  def __getitem__(self, i):
    image = np.random.default_rng(i).integers(0, 256, (20, 20, 3), np.uint8)
    return {'image': image, 'depth': image[..., :1]}

  def describe(self, i):
    return f'picture {i}'
"""

MULTI_CROP = (
  'multi_crop(16, local_size=16, num_local=2, global_ops=("", "flip_lr"), '
  'local_ops="")'
)


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A source and an objective of the user's own, by dotted names."""
  folder = tmp_path / 'own_fields'
  folder.mkdir()
  (folder / 'pictures.py').write_text(SOURCE)
  (folder / 'agree.py').write_text(OBJECTIVE)
  monkeypatch.syspath_prepend(tmp_path)


def config(**kwargs):
  return (
    dict(
      total_steps=2,
      log_every_steps=1,
      model=dict(name='vit', variant='mu/8', num_classes=4),
      objective=dict(name='own_fields.agree'),
      input=dict(
        data=dict(name='own_fields.pictures', split='train'),
        ops=MULTI_CROP,
        device_ops='flip_lr|normalize(-1, 1)|random_erasing(0.5)',
        batch_size=8,
      ),
      optimizer=dict(name='adamw', learning_rate=1e-3, warmup_steps=1),
      evals={},
    )
    | kwargs
  )


def test_views_of_pictures_without_labels_are_trained_on(own, tmp_path):
  metrics = train.train(tmp_path / 'run', **config())
  rows = (tmp_path / 'run' / 'metrics.jsonl').read_text()
  assert '"train/brightest": 1.0' in rows, (metrics, rows)


def test_an_objective_counts_flops_of_a_batch_after_the_device_ops(own):
  assert train.build(config()).flops_per_step() == 8 * 2 * 16 * 16 * 3


def test_labels_are_asked_for_by_the_objective_that_needs_them(own, tmp_path):
  section = config(objective=dict(name='supervised'))
  section['input'] |= dict(ops='resize(16)')
  with pytest.raises(UserError, match=r"needs the fields \['label'\], and"):
    train.train(tmp_path / 'run', **section)


def test_a_field_has_the_role_of_its_declaration_name_or_shape():
  batch = {
    'image': np.zeros((2, 4), np.float32),
    'local_image': np.zeros((2, 3, 8, 8, 3), np.float32),
    'has_image': np.zeros((2,), np.bool_),
    'crops': np.zeros((2, 3, 8, 8, 3), np.uint8),
    'vectors': np.zeros((2, 8, 8, 3), np.float32),
    'depth': np.zeros((2, 8, 8, 1), np.uint8),
    'segmentation_mask': np.zeros((2, 8, 8, 1), np.uint8),
    'true_label': np.zeros((2,), np.int32),
    'caption': np.zeros((2, 5), np.int32),
  }
  declared = {'depth': 'other', 'caption': 'text'}
  roles = {name: fields.role(name, x, declared) for name, x in batch.items()}
  assert roles == {
    'image': 'image',
    'local_image': 'image',
    'has_image': 'other',
    'crops': 'image',
    'vectors': 'other',
    'depth': 'other',
    'segmentation_mask': 'mask',
    'true_label': 'label',
    'caption': 'text',
  }
  assert fields.images(batch, declared) == ['crops', 'image', 'local_image']


def run(text, batch, train=True, roles=None):
  op = device_ops_language.parse(text, roles=roles)
  return op(batch, jax.random.key(0), train=train)


def views(num=40):
  rng = np.random.default_rng(0)
  return jnp.array(rng.integers(1, 256, (num, 3, 6, 7, 1), np.uint8))


def test_each_view_of_each_field_is_flipped_by_its_own_draw():
  view = views()
  got = run(
    'flip_lr', {'image': view[:, 0], 'local_image': view, 'crops': view}
  )
  alone = run('flip_lr', {'image': view[:, 0]})
  np.testing.assert_array_equal(got['image'], alone['image'])
  flips = {}
  for name in ('local_image', 'crops'):
    mirrored = np.asarray(got[name] == view[..., ::-1, :]).all((2, 3, 4))
    kept = np.asarray(got[name] == view).all((2, 3, 4))
    assert (mirrored ^ kept).all()
    flips[name] = mirrored
    assert 0.3 < mirrored.mean() < 0.7
    for i, j in ((0, 1), (0, 2), (1, 2)):
      assert (mirrored[:, i] != mirrored[:, j]).any()
  assert (flips['local_image'] != flips['crops']).any()


def test_every_image_field_is_normalized_cropped_and_erased():
  batch = {'image': views()[:, 0], 'crops': views(), 'text': jnp.zeros((40, 3))}
  text = 'normalize(-1, 1)|random_crop(5)|random_erasing(1.0, area=(0.3, 0.3))'
  got = run(text, batch)
  assert got['image'].shape == (40, 5, 5, 1)
  assert got['crops'].shape == (40, 3, 5, 5, 1)
  assert got['text'] is batch['text']
  erased = np.asarray(got['crops'] == 0).sum((2, 3, 4))
  assert (erased > 0).mean() > 0.9
  evaluated = run(text, batch, train=False)
  np.testing.assert_allclose(
    evaluated['crops'],
    views()[:, :, :5, 1:6].astype(np.float32) / 127.5 - 1,
    atol=1e-6,
  )


def test_a_batch_without_images_passes_and_roles_can_be_declared():
  batch = {'text': jnp.zeros((4, 3), jnp.int32)}
  assert run('flip_lr|normalize(-1, 1)', batch) == batch
  batch = {'depth': jnp.full((4, 2, 2, 1), 255, jnp.uint8)}
  assert run('normalize(-1, 1)', batch)['depth'].max() == 1
  kept = run('normalize(-1, 1)', batch, roles={'depth': 'mask'})
  assert kept['depth'] is batch['depth']


class _Declared:
  def __init__(self, fields):
    self.fields = fields


def test_declared_roles_are_checked():
  assert fields.declared(object()) == {'image': 'image'}
  assert fields.declared(_Declared({'x': 'text'})) == {'x': 'text'}
  for wrong in (['image'], {'image': 'picture'}):
    with pytest.raises(UserError, match=r'Expected a dict .* image, label'):
      fields.declared(_Declared(wrong))


def test_a_source_of_texts_alone_is_read(own, tmp_path):
  fields = "fields = {'text': 'text'}"
  example = "{'text': image[0, 0]}"
  text = SOURCE.replace("fields = {'image': 'image', 'depth': 'mask'}", fields)
  text = text.replace("{'image': image, 'depth': image[..., :1]}", example)
  (tmp_path / 'own_fields' / 'texts.py').write_text(text)
  (tmp_path / 'own_fields' / 'undeclared.py').write_text(
    text.replace(fields, '')
  )
  section = dict(ops='', batch_size=8)
  found = pipeline.EvalInput(
    data=dict(name='own_fields.texts', split='all'), **section
  )
  assert found.element_spec().keys() == {'text', 'mask'}
  assert found.roles == {'text': 'text'}
  with pytest.raises(UserError, match='no array "image"'):
    pipeline.EvalInput(
      data=dict(name='own_fields.undeclared', split='all'), **section
    )
