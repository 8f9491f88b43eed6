"""Evaluators and pictures in a user's own module, named in a config."""

import jax
import numpy as np
import pytest

from tests.training import tiny_runs
from vit_jax import lookup
from vit_jax.errors import UserError
from vit_jax.training import evaluation, train

METRICS = """
import jax
import jax.numpy as jnp
import numpy as np
from vit_jax.evaluators import _rows

class Evaluator:
  lower_is_better = ('brier',)

  def __init__(self, forward, mesh, *, data, ops, batch_size):
    self._split = _rows.Rows(mesh, data=data, ops=ops, batch_size=batch_size)
    self.inputs = {'data': self._split.input}
    self.num_classes = self._split.input.num_classes
    self._forward = forward

  def run(self, params):
    rows = self._split.map(_brier, params, forward=self._forward)
    brier_N = np.concatenate([row['brier'] for row in rows])
    return {'brier': float(brier_N.mean()), 'num_examples': len(brier_N)}


def _brier(params, batch, *, forward):
  probability_BY = jax.nn.softmax(forward(params, batch)['logits'])
  target_BY = jax.nn.one_hot(batch['label'], probability_BY.shape[-1])
  return {'brier': jnp.sum((probability_BY - target_BY) ** 2, axis=-1)}
"""

PLAIN = """
class Evaluator:
  input = 'a path of its own, no data of the loop'

  def __init__(self, forward, mesh, *, answer):
    self._answer = answer

  def run(self, params):
    return {'answer': self._answer}
"""

PICTURE = """
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib import image as png
from vit_jax.data import pipeline

class Picture:
  def __init__(self, forward, mesh, *, data, ops):
    self._forward = forward
    self._input = pipeline.EvalInput(data=data, ops=ops, batch_size=8)
    self._sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec('data'))

  def draw(self, params, path):
    batch = pipeline.to_global(next(iter(self._input)), self._sharding)
    attention_BNLL, saliency_BHW, tokens_BLD = jax.device_get(
      jax.jit(self._explain)(params, batch))
    np.savez(path.with_suffix('.npz'), attention=attention_BNLL,
             saliency=saliency_BHW, tokens=tokens_BLD)
    shown = [attention_BNLL[0].mean(axis=0), saliency_BHW[0]]
    png.imsave(path, np.concatenate([np.resize(x, (16, 16)) for x in shown]))
    return path

  def _explain(self, params, batch):
    batch = self._forward.prepare(batch)
    last = 'encoder/block_00'
    outputs, found = self._forward.apply(params, batch, capture=last)
    attention = found[f'{last}/attention/attention_weights']

    def score(image, tokens):
      outputs, _ = self._forward.apply(
        params, {**batch, 'image': image}, add={last: tokens})
      return outputs['logits'].max(axis=-1).sum()

    zeros = jnp.zeros_like(found[last])
    image, tokens = jax.grad(score, (0, 1))(batch['image'], zeros)
    return attention, jnp.abs(image).sum(axis=-1), tokens
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """Puts a user's package `mine` on the path."""
  (tmp_path / 'mine').mkdir()
  texts = dict(brier=METRICS, plain=PLAIN, attention=PICTURE)
  for name, text in texts.items():
    (tmp_path / 'mine' / f'{name}.py').write_text(text)
  monkeypatch.syspath_prepend(tmp_path)


def test_an_evaluator_of_logits_needs_no_private_lines(mine, tmp_path):
  evals = dict(
    mine=dict(name='mine.brier', data=tiny_runs.TEST, ops=''),
    plain=dict(name='mine.plain', answer=42),
  )
  result = train.train(
    tmp_path / 'run', **tiny_runs.plain(evals=evals, total_steps=0)
  )
  # The head starts at zero: 1/4 for each class, of which one is right.
  assert result['mine/brier'] == pytest.approx(0.75**2 + 3 * 0.25**2)
  assert result['mine/num_examples'] == 21 and result['plain/answer'] == 42
  assert evaluation.lower_is_better(evals, 'mine/brier')


def test_declarations_of_an_evaluator_are_checked_before_training(
  mine, tmp_path
):
  def start(**section):
    section = section or dict(name='mine.plain', answer=1)
    train.train(tmp_path / 'run', **tiny_runs.plain(evals=dict(mine=section)))

  with pytest.raises(UserError, match=r'evals\.mine: .*num_classes=4.* 5 clas'):
    start(name='mine.brier', data=dict(tiny_runs.TEST, num_classes=5), ops='')
  with pytest.raises(UserError, match=r'evals\.mine: the model is trained on'):
    start(name='mine.brier', data=dict(tiny_runs.TEST, image_size=13), ops='')
  kind = lookup.find('evaluators', 'mine.plain', 'Evaluator', trusted=True)
  kind.inputs = ['/data']
  with pytest.raises(UserError, match=r'evals\.mine: the attribute inputs'):
    start()


def test_a_picture_reaches_attention_and_gradients(mine, tmp_path):
  model = dict(name='vit', variant='mu/8', num_classes=4, head_zero_init=False)
  picture = dict(name='mine.attention', data=tiny_runs.TEST, ops='')
  train.train(
    tmp_path / 'run',
    **tiny_runs.plain(
      model=model, pictures=dict(explained=picture), total_steps=0
    ),
  )
  assert (tmp_path / 'run/explained.png').exists()
  with np.load(tmp_path / 'run/explained.npz') as found:
    attention, saliency, tokens = (
      found[k] for k in ('attention', 'saliency', 'tokens')
    )
  assert attention.shape == (8, 2, 5, 5)  # Two heads, a class token, 2x2.
  np.testing.assert_allclose(attention.sum(axis=-1), 1, rtol=1e-5)
  assert saliency.shape == (8, 16, 16) and (saliency.max(axis=(1, 2)) > 0).all()
  # Only the class token is read after the last block.
  assert (np.abs(tokens[:, 0]).sum(axis=-1) > 0).all()
  assert (tokens[:, 1:] == 0).all()


@pytest.mark.parametrize('scan', [False, True])
def test_intermediate_values_do_not_change_the_outputs(scan):
  run = train.build(
    tiny_runs.plain(
      model=dict(
        name='vit',
        variant='mu/8',
        depth=2,
        num_classes=4,
        scan=scan,
        head_zero_init=False,
      )
    )
  )
  params = run.weights(run.init())
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
  batch = jax.device_put(dict(image=image), run.batch_spec['image'].sharding)
  expected = run.predict(params, batch)
  blocks = 'encoder/blocks' if scan else 'encoder/block_01'
  outputs, found = jax.jit(
    lambda params, batch: run.predict.apply(
      params, run.predict.prepare(batch), capture=[blocks]
    )
  )(params, batch)
  for name, value in expected.items():
    np.testing.assert_allclose(outputs[name], value, atol=1e-5)
  tokens = found[blocks][-1] if scan else found[blocks]
  assert tokens.shape == (8, 5, 32)
  # Sown by the model, without capturing anything.
  batch = jax.eval_shape(run.predict.prepare, batch)
  _, sown = jax.eval_shape(run.predict.apply, params, batch)
  shape = sown[f'{blocks}/attention/attention_weights'].shape
  assert shape == (2,) * scan + (8, 2, 5, 5)


HEADLESS = """
from vit_jax.objectives import supervised

class Objective(supervised.Objective):
  def predict(self, params, batch):
    outputs = super().predict(params, batch)
    return {'features': outputs['features']}
"""


@pytest.mark.parametrize('name', ['classification', 'classification_report'])
def test_predictions_without_logits_are_an_error_before_training(
  mine, tmp_path, name
):
  (tmp_path / 'mine/headless.py').write_text(HEADLESS)
  config = tiny_runs.plain(objective=dict(name='mine.headless'))
  train.build(config)
  val = dict(name=name, data=tiny_runs.TEST, ops='')
  message = r"evals.val needs the outputs \['logits'\].*headless.*'features'"
  with pytest.raises(UserError, match=message):
    train.train(tmp_path / 'run', **config, evals=dict(val=val))
  assert not (tmp_path / 'run').exists()
