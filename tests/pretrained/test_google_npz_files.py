"""Files that are wrong, models that are not Google's, and who else reads."""

import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.pretrained.formats import npz

OLD = 'Transformer/posembed_input/pos_embedding'
NEW = dict(numbers=(0, 1, 0), position='pos_embedding', class_row=False)


@pytest.fixture
def save(tmp_path):
  def save_arrays(arrays):
    np.savez(tmp_path / 'x.npz', **arrays)
    return tmp_path / 'x.npz'

  return save_arrays


def test_all_mistakes_are_reported_at_once(google_file, save):
  arrays = google_file()
  del arrays['Transformer/encoderblock_1/LayerNorm_2/bias']
  del arrays['head/bias']
  arrays['dist_token'] = np.zeros((1, 1, 24), np.float32)
  arrays['Transformer/encoderblock_0/LayerNorm_1/bias'] = np.zeros(24)
  arrays['Transformer/encoder_norm/scale'] = np.ones(25, np.float32)
  with pytest.raises(UserError) as e:
    npz.read(save(arrays))
  for text in (
    'missing: Transformer/encoderblock_1/LayerNorm_2/bias',
    'missing: head/bias',
    'unexpected: dist_token (1, 1, 24)',
    'unexpected: Transformer/encoderblock_0/LayerNorm_1/bias',
    'Transformer/encoder_norm/scale (our encoder/norm/scale): expected (24,)',
  ):
    assert text in str(e.value)


def test_blocks_with_a_gap_are_an_error_and_are_not_renumbered(
  google_file, save
):
  arrays = {
    name.replace('encoderblock_1/', 'encoderblock_3/'): array
    for name, array in google_file().items()
  }
  arrays['extra_leaf'] = np.zeros(1)
  with pytest.raises(UserError) as e:
    npz.read(save(arrays))
  assert 'blocks [1, 2] of 0 to 3 are missing' in str(e.value)
  assert 'unexpected: extra_leaf' in str(e.value)
  assert 'LayerNorm' not in str(e.value)  # Not each of their names as well.


def test_a_file_without_its_first_block_is_refused(google_file, save):
  arrays = {
    name: array
    for name, array in google_file().items()
    if 'encoderblock_0' not in name
  }
  with pytest.raises(UserError, match=r'blocks \[0\] of 0 to 1'):
    npz.read(save(arrays))


def test_stacks_of_different_depths_are_refused(google_file, save):
  arrays = google_file(**NEW, stacked=True, prefix='params/')
  name = 'params/Transformer/encoderblock/LayerNorm_0/scale'
  arrays[name] = arrays[name][:1]
  with pytest.raises(UserError, match='same depth'):
    npz.read(save(arrays))


def test_missing_parameters_of_a_stack_are_reported_once(google_file, save):
  arrays = google_file(**NEW, stacked=True, prefix='params/')
  del arrays['params/Transformer/encoderblock/LayerNorm_0/scale']
  with pytest.raises(UserError) as e:
    npz.read(save(arrays))
  assert str(e.value).count('missing: ') == 1
  assert 'params/Transformer/encoderblock/LayerNorm_0/scale' in str(e.value)


@pytest.mark.parametrize('kind', ['truncated', 'text', 'pickle', 'absent'])
def test_an_unreadable_file_is_named(kind, google_file, save):
  path = save(google_file())
  if kind == 'truncated':
    path.write_bytes(path.read_bytes()[:-100])
  elif kind == 'text':
    path.write_text('<html>404</html>')
  elif kind == 'pickle':
    np.savez(path, a=np.array([{}], dtype=object))
  else:
    path.unlink()
  with pytest.raises(UserError, match=f'cannot read {path}'):
    npz.read(path)


def test_state_of_the_training_and_other_towers_stay_in_the_file(
  google_file, save
):
  arrays = google_file(
    **NEW, prefix='params/img/', class_token=False, map_head='MAPHead_0/'
  )
  beside = dict.fromkeys(
    ('params/txt/Embed_0/embedding', 'params/t', 'params/b', 'opt/0/count'),
    np.zeros(1, np.float32),
  )
  weights = npz.read(save(arrays | beside))
  assert weights.model['pooling'] == 'map'
  with pytest.raises(UserError, match='unexpected: params/other'):
    npz.read(save(arrays | {'params/other': np.zeros(1)}))


@pytest.mark.parametrize(
  ('settings', 'rows', 'class_token', 'grid'),
  [
    ({}, 17, True, (4, 4)),
    (NEW, 16, True, (4, 4)),
    (NEW, 17, True, (4, 4)),
    # A row for the class token is not taken for patches, nor the reverse.
    (dict(map_head=None), 16, False, (4, 4)),
    (dict(map_head=None), 17, False, None),
    ({}, 16, True, None),
    (NEW, 1, True, (1, 1)),
    (NEW, 2, True, (1, 1)),
    ({}, 2, True, (1, 1)),
  ],
)
def test_the_grid_of_a_table(
  settings, rows, class_token, grid, google_file, save
):
  arrays = google_file(**settings | dict(class_token=class_token))
  name = settings.get('position', OLD)
  arrays[name] = np.zeros((1, rows, 24), np.float32)
  if grid is None:
    with pytest.raises(UserError, match=r'set grid=\(rows, columns\)'):
      npz.read(save(arrays))
    return
  params = npz.read(save(arrays)).params
  assert params['position_embedding'].shape == (*grid, 24)


@pytest.mark.parametrize('settings', [{}, NEW, NEW | dict(class_row=True)])
def test_a_rectangular_grid_can_be_given(settings, google_file, save):
  path = save(google_file(**settings))
  with np.load(path) as file:
    table = file[settings.get('position', OLD)][0, -16:]
  found = npz.read(path, grid=(2, 8)).params['position_embedding']
  np.testing.assert_array_equal(found, table.reshape(2, 8, 24))
  with pytest.raises(UserError, match='3x6'):
    npz.read(path, grid=(3, 6))


def test_facts_from_the_file(google_file, save):
  weights = npz.read(save(google_file(pre_logits=True)))
  assert weights.model == dict(
    name='vit',
    patch_size=8,
    width=24,
    depth=2,
    mlp_dim=40,
    num_heads=3,
    num_classes=5,
    pooling='token',
    representation_size=8,
    activation='gelu_tanh',
    norm_epsilon=1e-6,
  )
  assert weights.preprocess == dict(
    image_size=(32, 32),
    ops="decode(dct='fast')|resize(32, antialias=False)",
    device_ops='normalize(-1, 1)',
  )
  settings = NEW | dict(position='', class_token=False, map_head=None)
  weights = npz.read(save(google_file(**settings)))
  assert weights.model['position'] == 'sincos2d'
  assert weights.model['pooling'] == 'mean'
  assert weights.preprocess['ops'] == (
    "decode(dct='fast')|resize_small(256, method='area', truncate=True)"
    '|central_crop(224)'
  )


def test_a_variant_is_named(make_weights, tmp_path):
  weights = make_weights(width=32, depth=1, mlp_dim=128, num_heads=2)
  npz.write(weights, tmp_path / 'x.npz')
  section = npz.read(tmp_path / 'x.npz').model
  assert section['variant'] == 'mu/8'
  assert not {'width', 'depth', 'patch_size'} & set(section)


def test_the_user_gives_the_model(google_file, save, outputs):
  path = save(google_file())
  image = np.zeros((1, 32, 32, 3), np.float32)
  weights = npz.read(path, model=dict(pooling='mean', num_classes=None))
  assert not {'class_token', 'head/bias'} & set(weights.params)
  assert 'logits' not in outputs(weights, image)
  mean = save(google_file(class_token=False, class_row=False, map_head=None))
  weights = npz.read(mean, model=dict(pooling='token'))
  np.testing.assert_array_equal(
    weights.params['class_token'], np.zeros((1, 1, 24))
  )
  assert outputs(weights, image)['logits'].shape == (1, 5)
  with pytest.raises(UserError, match='expected'):
    npz.read(path, model=dict(variant='mu/8'))
