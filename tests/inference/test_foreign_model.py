"""A model of the user's own, whose parameters show no number of channels."""

import jax
import numpy as np
import pytest

import vit_jax
from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.pretrained import catalog
from vit_jax.pretrained.weights import Weights

MODEL = """
import flax.linen as nn

class Model(nn.Module):
  num_classes: int

  @nn.compact
  def __call__(self, image, *, train=False):
    x = image.reshape(image.shape[0], -1)
    return {'logits': nn.Dense(self.num_classes)(x)}
"""


def test_grey_arrays_stay_grey(tmp_path, monkeypatch):
  (tmp_path / 'grey_net.py').write_text(MODEL)
  monkeypatch.syspath_prepend(tmp_path)
  section = dict(name='grey_net', num_classes=2)
  module = lookup.build('models', section, 'Model', trusted=True)
  grey = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
  params = module.init(jax.random.key(0), grey[None])['params']
  preprocess = dict(ops='', device_ops='normalize(0, 255)')
  params = jax.tree.map(np.asarray, params)
  path = tmp_path / 'grey.safetensors'
  catalog.save(Weights(params, section, preprocess=preprocess), path)
  model = vit_jax.load(path, model=dict(name='grey_net'))
  expected = grey.reshape(1, 16) @ params['Dense_0']['kernel']
  np.testing.assert_allclose(model(grey)['logits'], expected[0], rtol=1e-5)
  with pytest.raises(UserError, match=r'\[4, 4, 3\].*decode\(1\)'):
    model(np.repeat(grey, 3, axis=-1))
